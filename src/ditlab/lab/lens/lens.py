"""What the page shows, as numbers: each method answers one question about a run with named arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.rng import SampleNoise
from ditlab.diffusion.paths import times_of
from ditlab.diffusion.targets import compose, resolve
from ditlab.inspection.interventions import intervened
from ditlab.inspection.probe import attention_layers
from ditlab.inspection.statistics import map_statistics
from ditlab.lab.lens import attention as maps
from ditlab.lab.lens.ablations import Costs, measure_costs
from ditlab.lab.lens.answer import Answer, Look, look_away
from ditlab.lab.lens.attention import Head
from ditlab.lab.lens.diagram import diagram
from ditlab.lab.lens.recordings import gate_recordings, previews
from ditlab.lab.lens.scenes import Cond, Scene, Scenes, Where, affordable, check_work, evaluations_of, joined, walked
from ditlab.lab.lens.uploads import OwnImages
from ditlab.networks.dit import DiT
from ditlab.runs.run import Run, load

KINDS = {"dit": "A DiT", "unet": "A U-Net", "mlp": "An MLP", "own": "A registered network"}
MAX_STEPS = 200
MAX_BYTES = 256e6  # of the arrays of one trajectory
SUMMARY_IMAGES = 64
SUMMARY_TIMES = tuple(i / 10 for i in range(1, 10))


class Lens:
    """Looks inside a trained run.

    Args:
        run: the run's folder, its name in ``runs/``, or a loaded run.
        step: which checkpoint; None for the newest.
        weights: "ema" for the averaged weights, "raw" for the last ones, or the width of an average that is tracked.
        own: where images that people bring are kept.
        device: "auto", "cpu", "cuda" or "mps", where a run that is not loaded yet is loaded.

    Where a method takes ``input``, it is ``"data:I"`` for the I-th training example, ``"sample:SEED"`` for a generated
    one, or the name that ``own`` returned; ``t`` is the time, 0 for data and 1 for noise. A generated image is drawn as
    the run's configuration says and shown in its state at the time nearest to t; others are mixed with a noise that is
    always the same. ``label`` is a class, −1 for the null label, None for the image's own: that of an example, the seed
    modulo the classes for a generated image, the null label for an image brought along. ``cond`` holds
    scalars by name, in their unit; without one, an example has its own, and others have none. ``edits`` change the
    network while it answers, as ``inspection.interventions`` says; a generated image is still the unchanged network's.

    Raises:
        InputError: anything asked for that is not there; the message says what is.
    """

    def __init__(
        self,
        run: str | Path | Run,
        step: int | None = None,
        weights: Literal["ema", "raw"] | float = "ema",
        own: OwnImages | None = None,
        device: str = "auto",
    ) -> None:
        self.run = run if isinstance(run, Run) else load(run, weights=weights, step=step, device=device)
        self.process, self.network = self.run.process, self.run.process.network
        self.scenes = Scenes(self.run, OwnImages() if own is None else own)
        self._costs: Costs | None = None

    # ---- what there is

    @cached_property
    def _any(self) -> Scene:
        """Something of the right shape, to learn other shapes with."""
        x = SampleNoise(0, [0], self.run.shape, self.scenes.like)()
        return Scene(x, x, x, 0.5, self.scenes.condition(0, None, 1))

    @cached_property
    def _sizes(self) -> list[tuple[int, int]]:
        """Heads and tokens of each attention layer, from one forward pass."""
        layers = range(len(attention_layers(self.network)))
        kept = maps.queries_and_keys(self.network, self._forward(self._any), layers) if layers else {}
        return [(kept[layer].q.shape[1], kept[layer].q.shape[2]) for layer in layers]

    @property
    def layers(self) -> list[int]:
        """Numbers of the attention layers, from 0."""
        return list(range(len(self._sizes)))

    @property
    def heads(self) -> list[int]:
        """Heads of each attention layer."""
        return [heads for heads, _ in self._sizes]

    @cached_property
    def grids(self) -> list[tuple[int, int]]:
        """Rows and columns of the tokens of each attention layer; empty without attention."""
        if isinstance(self.network, DiT):
            return [self.network.patch_embed.grid] * len(self._sizes)
        scales = [math.isqrt(math.prod(self.run.shape[1:]) // tokens) for _, tokens in self._sizes]
        return [(self.run.shape[1] // scale, self.run.shape[2] // scale) for scale in scales]

    def _need_attention(self) -> None:
        if not self.layers:
            raise InputError(f"{KINDS[self.run.config.network.kind]} has no attention")

    @property
    def condition_tokens(self) -> tuple[str, ...]:
        """Names of the tokens that follow the patches in the sequence; of most networks there are none."""
        return self.network.token_names(None) if isinstance(self.network, DiT) else ()

    @property
    def cross_tokens(self) -> tuple[str, ...]:
        """Names of the tokens that cross-attention reads; empty without."""
        return self.network.token_names(None, self.network.context) if isinstance(self.network, DiT) else ()

    # ---- shape flow and patches

    def flow(self) -> dict[str, Any]:
        """The network as nodes: shapes, parameters, multiply-accumulates and milliseconds, from one sample."""
        return diagram(self.network, self._any.x, self._forward(self._any))

    def own(self, image: np.ndarray) -> str:
        """Keep an image, uint8 of the network's shape (0 is −1, 255 is +1), and return its name for ``input``."""
        if image.shape != self.run.shape or image.dtype != np.uint8:
            raise InputError(
                f"an image of this run is uint8 of shape {self.run.shape}, not {image.dtype} {image.shape}"
            )
        return self.scenes.own.add(image)

    @torch.no_grad()
    def input(self, *, edits: str = "", **where: Unpack[Where]) -> Answer:
        """The image, its noisy version, what the network says about it, and its tokens (DiT)."""
        scene = self.scenes.scene(**where)
        with intervened(self.network, edits):
            prediction, x0, _ = self._estimate(scene.x, scene.t, scene.cond, None)
        arrays = {"x0": scene.x0, "x": scene.x, "noise": scene.noise, "prediction": prediction, "denoised": x0}
        arrays = {name: value[0] for name, value in arrays.items()}
        if isinstance(self.network, DiT):
            embedded = self.network.patch_embed(scene.x)[0]
            positions = self.network.positions[0]
            arrays |= {"embedded": embedded, "positions": positions, "tokens": embedded + positions}
        c = self.process.path(torch.tensor(scene.t, dtype=torch.float64))
        label_word = str(int(scene.cond["label"]) if scene.cond and "label" in scene.cond else None)
        how = {"drawn": scene.drawn} if scene.drawn else {}
        return Answer(arrays, t=repr(scene.t), a=repr(float(c.a)), s=repr(float(c.s)), label=label_word, **how)

    # ---- attention

    def attention(self, *, layer: int = 0, head: Head = "mean", **where: Unpack[Where]) -> Answer:
        """The map of a head, rows are queries, and statistics of each row; see ``inspection.statistics``.

        Where there are more than 256 tokens, the map holds means over cells; the statistics are exact. Where conditions
        are tokens of the sequence too, rows of the map sum to less than 1: ``to_tokens`` (N, K) holds what goes to each
        of the ``condition_tokens``, and the statistics are those of the rest, divided by its sum.
        """
        scene = self.scenes.scene(**where)
        kept = self._attention_of(scene, layer, head)
        tokens = kept.patches
        rows = maps.per_query(kept, head, self.grids[layer], scene.x0)
        return Answer(
            {"map": maps.whole_map(kept, head)} | {name: value[0] for name, value in rows.items()},
            pool=f"{max(1.0, tokens / maps.WHOLE):g}",
            tokens=str(tokens),
        )

    def attention_row(
        self, *, query: int, direction: str = "from", layer: int = 0, head: Head = "mean", **where: Unpack[Where]
    ) -> Answer:
        """Where one patch looks, or (``direction="to"``) who looks at it."""
        kept = self._attention_of(self.scenes.scene(**where), layer, head)
        self._check_query(query, kept)
        return Answer({"row": maps.one_row(kept, head, query, direction)})

    def attention_thumbnails(
        self, *, query: int, direction: str = "from", look: Look = look_away, **where: Unpack[Where]
    ) -> Answer:
        """``attention_row`` of every head of every layer on the grid of patches, at most 16 × 16."""
        self._need_attention()
        if len(set(self.grids)) > 1:
            raise InputError("the layers of this network have different grids")
        tiles, grid = [], self.grids[0]
        for _, kept in self._each_layer(self.scenes.scene(**where), look):
            self._check_query(query, kept)
            tiles.append(maps.thumbnails(kept, query, direction, grid))
        return Answer({"thumbnails": torch.stack(tiles)}, pool=f"{max(1.0, grid[0] / 16):g}")

    def attention_statistics(self, *, look: Look = look_away, **where: Unpack[Where]) -> Answer:
        """Statistics of every map, (L, h + 1) each; the last column is that of the mean over heads.

        Where there are ``condition_tokens``, ``to_tokens`` is what goes to them all, a mean over queries.
        """
        scene = self.scenes.scene(**where)
        table: dict[str, list[Tensor]] = {}
        for layer, kept in self._each_layer(scene, look):
            heads: list[Head] = [*range(kept.q.shape[1]), "mean"]
            found = [self._map_statistics(kept, head, layer, scene) for head in heads]
            for name in found[0]:
                table.setdefault(name, []).append(torch.cat([numbers[name] for numbers in found]))
        return Answer({name: torch.stack(rows) for name, rows in table.items()})

    def cross_attention(self, **where: Unpack[Where]) -> Answer:
        """Of each layer's cross-attention, what it gives to each of the K ``cross_tokens``: (L, K), rows sum to 1.

        Means over heads and patches.
        """
        if not self.cross_tokens:
            raise InputError(f"{KINDS[self.run.config.network.kind]} like this one has no cross-attention")
        scene = self.scenes.scene(**where)
        return Answer({"share": maps.cross_shares(self.network, self._forward(scene))})

    def attention_summary(self, *, look: Look = look_away) -> Answer:
        """Statistics over 64 training images at nine times, (T, L), of the mean over heads.

        Larger networks are measured on fewer images; ``meta["images"]`` says on how many.
        """
        self._need_attention()
        cost = self.scenes.macs + 64 * sum(math.prod(grid) ** 2 for grid in self.grids)
        images = affordable(SUMMARY_IMAGES, len(SUMMARY_TIMES) * cost, self.scenes.like.device)
        table: dict[str, list[Tensor]] = {}
        for t in SUMMARY_TIMES:
            scene = joined([self.scenes.scene(f"data:{i}", t, None) for i in range(images)])
            layers = [self._map_statistics(kept, "mean", i, scene) for i, kept in self._each_layer(scene, look)]
            for name in layers[0]:
                table.setdefault(name, []).append(torch.stack([layer[name].mean() for layer in layers]))
        return Answer(
            {"t": torch.tensor(SUMMARY_TIMES)} | {name: torch.stack(rows) for name, rows in table.items()},
            images=str(images),
        )

    # ---- gates

    def gates(self) -> Answer:
        """What the run recorded of its gates while it was trained, and its loss. Damaged recordings are left out."""
        return Answer(gate_recordings(self.run.folder), previews=repr(self.previews()))

    def previews(self) -> list[int]:
        """Steps at which the run left a picture drawn from the same noise."""
        return previews(self.run.folder)

    # ---- denoising

    def trajectory(
        self,
        *,
        solver: str = "heun",
        steps: int = 25,
        guidance: float | None = None,
        seed: int = 0,
        label: int | None = None,
        cond: Cond = None,
        n: int = 1,
        edits: str = "",
        look: Look = look_away,
    ) -> Answer:
        """From noise to data: times, and at each x_t and what the network says there, (steps + 1, n, *shape)."""
        passes = 1 if guidance in (None, 1) else 2
        if not 1 <= steps <= MAX_STEPS:
            raise InputError(f"steps={steps} must be between 1 and {MAX_STEPS}")
        evaluations = evaluations_of(self.process, solver, steps) * passes
        work = (evaluations + (steps + 1) * passes) * n * self.scenes.macs
        check_work(work, self.scenes.like.device, "ask for fewer steps or samples")
        held = 4 * 4 * (steps + 1) * n * math.prod(self.run.shape)
        if held > MAX_BYTES:
            raise InputError(f"this trajectory would hold {held / 1e6:.0f} MB: ask for fewer steps or samples")
        told = self.scenes.condition(seed, label, n, cond)
        frames: dict[str, list[Tensor]] = {"x": [], "prediction": [], "x0": [], "eps": []}
        times = []
        walk = self.process.trajectory(
            n, self.run.shape, cond=told, steps=steps, solver=solver, guidance=guidance, seed=seed
        )
        spent = 0
        for t, x, evaluations in walked(self.process, walk, edits):
            look()
            with intervened(self.network, edits):
                prediction, x0, eps = self._estimate(x, t, told, guidance)
            for name, value in (("x", x), ("prediction", prediction), ("x0", x0), ("eps", eps)):
                frames[name].append(value)
            times.append(t)
            spent += evaluations
        arrays = {name: torch.stack(values) for name, values in frames.items()}
        return Answer({"t": torch.tensor(times), **arrays}, evaluations=str(spent // n * passes))

    def samples(
        self,
        *,
        n: int = 10,
        seed: int = 0,
        label: int | None = None,
        cond: Cond = None,
        edits: str = "",
        look: Look = look_away,
    ) -> Answer:
        """``samples`` (n, *shape), those of ``ditlab sample``; ``meta["drawn"]`` says how the run's settings draw."""
        self.scenes.check_samples(n, label, cond)  # the whole network's work counts
        return Answer({"samples": self.scenes.samples(n, seed, label, cond, edits, look)}, drawn=self.scenes.drawn)

    def costs(self, *, look: Look = look_away) -> Answer:
        """How much the loss rises when a head, a gate or a block is switched off, dearest first: ``cost``, (E,).

        ``meta["edits"]`` names the E parts; ``error`` is the standard error of the mean over ``meta["images"]`` images,
        which are training examples, or generated where ``meta["source"]`` says so; ``loss`` is the whole network's.
        """
        self._costs = self._costs or measure_costs(self.process, self.scenes, look)
        edits, images, source, arrays = self._costs
        return Answer(arrays, edits=" ".join(edits), images=str(images), source=source)

    @torch.no_grad()
    def field(self, *, t: float = 0.5, size: int = 24) -> Answer:
        """For two-dimensional data: dx/dt of the deterministic path at time t, on a grid of size × size points."""
        if self.run.shape != (2,):
            raise InputError(f"a vector field is drawn for points, not for data of shape {self.run.shape}")
        if not 2 <= size <= 64:
            raise InputError(f"size={size} must be between 2 and 64")
        limit = 3.0
        axis = torch.linspace(-limit, limit, size)
        points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(-1, 2).to(self.scenes.like)
        t = min(max(t, 1e-3), self.process.start)
        _, x0, eps = self._estimate(points, t, self.scenes.condition(0, None, len(points)), None)
        c = self.process.path(torch.tensor(t, dtype=torch.float64))
        return Answer({"points": points, "velocity": c.da * x0 + c.ds * eps}, limit=repr(limit))

    # ---- inside

    def _forward(self, scene: Scene) -> Callable[[], Any]:
        t = torch.full((len(scene.x),), scene.t, dtype=scene.x.dtype, device=scene.x.device)

        def forward() -> Any:
            with torch.no_grad():
                return self.network(scene.x, t, scene.cond)

        return forward

    @torch.no_grad()
    def _estimate(
        self, x: Tensor, t: float, cond: dict[str, Tensor] | None, guidance: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(prediction, x0, eps) at x_t; with guidance, the prediction that stands for the guided pair."""
        time = torch.tensor(t, dtype=torch.float64)
        if guidance in (None, 1):
            y = self.process.predict(x, times_of(time, x), cond)
            x0, eps, _ = resolve(self.process.target, self.process.path(time), x, y)
            return y, x0, eps
        x0, eps, _ = self.process.denoiser(cond, guidance)(x, time)
        return compose(self.process.target, self.process.path(time), x0, eps), x0, eps

    def _attention_of(self, scene: Scene, layer: int, head: Head) -> maps.QueriesAndKeys:
        """q and k of one layer, with layer and head looked at."""
        self._need_attention()
        if layer not in self.layers:
            raise InputError(f"layer {layer} is not there: this network has layers 0 to {self.layers[-1]}")
        if head != "mean" and not 0 <= head < self.heads[layer]:
            raise InputError(f"head {head} is not there: use 0 to {self.heads[layer] - 1}, or mean")
        return maps.queries_and_keys(self.network, self._forward(scene), [layer])[layer]

    def _each_layer(self, scene: Scene, look: Look) -> Any:
        """(layer, q and k), all from one forward pass."""
        self._need_attention()
        kept = maps.queries_and_keys(self.network, self._forward(scene), self.layers)
        for layer in self.layers:
            look()
            yield layer, kept[layer]

    def _map_statistics(self, kept: maps.QueriesAndKeys, head: Head, layer: int, scene: Scene) -> dict[str, Tensor]:
        """Means over the queries of a map, (B,) each."""
        rows = maps.per_query(kept, head, self.grids[layer], scene.x0)
        found = map_statistics(rows, self.grids[layer], rows["object_share"])
        return found | ({"to_tokens": rows["to_tokens"].sum(-1).mean(-1)} if "to_tokens" in rows else {})

    def _check_query(self, query: int, kept: maps.QueriesAndKeys) -> None:
        if not 0 <= query < kept.patches:
            raise InputError(f"patch {query} is not there: there are patches 0 to {kept.patches - 1}")
