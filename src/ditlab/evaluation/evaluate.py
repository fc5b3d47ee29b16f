"""Measure a run: draw samples, compare them with real data, and say with what they were drawn."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ditlab.config import DigitsData, ExternalData, ImagesData, LatentsData, OwnData, SamplingConfig
from ditlab.core.distributed import ALONE, Ranks
from ditlab.core.errors import InputError
from ditlab.data.dataset import Dataset, External, HeldOut, Prepared
from ditlab.data.images.dataset import Images
from ditlab.data.images.open import located
from ditlab.data.latents.dataset import Latents
from ditlab.data.latents.index import read_index
from ditlab.evaluation.evaluator import Decode, Evaluator, Measured, silent
from ditlab.evaluation.metrics.likelihood import measure_likelihood
from ditlab.evaluation.reference import asked_for
from ditlab.runs.agreement import content_of
from ditlab.runs.run import Run
from ditlab.runs.sampling import build_drawing

if TYPE_CHECKING:
    from ditlab.runs.decode import Decoder

Labels = Literal["balanced", "data"]


def evaluate(run: Run, n: int = 1000, **options: Any) -> dict[str, Any]:
    """The figures of ``ditlab eval``, and everything that decided them; the options are those of ``measure``.

    Raises:
        InputError: too few samples for the figures; settings that do not go together.
    """
    return measure(run, n, **options).figures


def measure(
    run: Run,
    n: int = 1000,
    *,
    seed: int = 0,
    guide: Run | None = None,
    labels: Labels = "balanced",
    features: str = "auto",
    data: str | None = None,
    vae: str | None = None,
    batch_size: int | None = None,
    nll: bool = False,
    nll_n: int | None = None,
    ranks: Ranks = ALONE,
    notice: Callable[[str], None] = silent,
    **sampling: Any,
) -> Measured:
    """The figures of a run, those of its data's kind among them, and some of the samples they are of.

    ``evaluations`` is how often the network ran for each sample, counted, the passes of a guided one as one.

    Args:
        run: what to measure.
        n, seed: how many samples, and which.
        guide: a weaker run to guide away from.
        labels: each class in turn, or drawn as often as the data have them.
        features: what samples are compared by, as ``Evaluator`` takes it.
        data: a folder of images, or a store of latents, to compare with instead of the run's own.
        vae: the autoencoder that decodes latents, which are compared as images then.
        batch_size: samples drawn together; it decides memory and speed alone.
        nll, nll_n: whether to add the negative log-likelihood of held-out data, without guidance, and of how many.
        ranks: processes that share the drawing, the features and the integrals of the likelihood; the first one
            measures, the others get nothing.
        notice: is told what takes long.
        sampling: fields of ``SamplingConfig``, such as ``steps=25, solver="heun", guidance=2.0``; the others are
            the run's own.

    Raises:
        InputError: too few samples for the figures; settings that do not go together.
    """
    _check(run, n, data, vae, features)
    dataset = _own_data(run, nll, data, notice)  # before samples are drawn, which may take long
    if labels == "data" and isinstance(dataset, External):
        raise InputError(f"--labels data: how often {run.folder.path} has seen each label is not known; use balanced")
    ranks.agree(lambda: content_of(dataset, run.config))
    asked = {name: value for name, value in sampling.items() if value is not None}
    settings = SamplingConfig(**{**dict(run.config.sampling), **asked})
    drawing = build_drawing(settings, run.process, guided=bool(run.conditions or guide))
    decode = _decoder(run, vae)
    compared: dict[str, Any] = {"features": features, "decode": decode, "batch_size": batch_size, "notice": notice}
    compared |= {"other": None if data is None else _other_data(run, data, decode), "device": run.process.like().device}
    evaluator = Evaluator(run.config, dataset, n=n, seed=seed, ranks=ranks, **compared)
    cond = asked_for(dataset, n, seed, labels)
    draw = _Draw(run, cond, {"seed": seed, **drawing} | ({} if guide is None else {"guide": run.guide(guide)}))
    measured = evaluator.measure(draw, cond.get("label"))
    likelihood = _likelihood(run, dataset, nll_n, seed, ranks) if nll else {}
    if not ranks.first:
        return measured
    decided = (
        {"n": n, "seed": seed} | ({"labels": labels} if "label" in cond else {}) | drawn_with(run, settings, guide)
    )
    decided |= {"evaluations": draw.evaluations, "weights": run.weights, "run_step": run.step}
    return measured._replace(figures=measured.figures | likelihood | decided | _made_by(run, decode, vae))


def _likelihood(run: Run, dataset: Dataset, n: int | None, seed: int, ranks: Ranks) -> dict[str, Any]:
    """The negative log-likelihood of held-out data, which ``_own_data`` made sure of."""
    assert isinstance(dataset, HeldOut)
    return measure_likelihood(run.process, dataset, n, seed, ranks.spread)


class _Draw:
    """Draws samples of a run by number, and counts how often the network runs for them."""

    def __init__(self, run: Run, cond: dict[str, Tensor], options: dict[str, Any]) -> None:
        self.run, self.cond, self.options = run, cond, options
        self.drawn, self.before = 0, run.process.evaluations

    def __call__(self, numbers: range) -> Tensor:
        count = len(numbers)
        self.drawn += count
        told = {name: value[torch.tensor(numbers).clamp(max=len(value) - 1)] for name, value in self.cond.items()}
        return self.run.drawn(count, told, numbers.start, count, **self.options)

    @property
    def evaluations(self) -> float:
        """For each sample."""
        found = (self.run.process.evaluations - self.before) / self.drawn
        return int(found) if found.is_integer() else round(found, 1)


def _check(run: Run, n: int, data: str | None, vae: str | None, features: str) -> None:
    """Refuse what cannot be compared."""
    kind = run.config.data
    if isinstance(run.dataset, External) and data is None:
        raise InputError(
            f"{run.folder.path} was trained elsewhere: there are no data here to compare its samples with; name a "
            f"folder with --data FOLDER, give them to ditlab.load as dataset=, or draw some with ditlab sample "
            f"{run.folder.path}"
        )
    if data is not None and not isinstance(kind, ImagesData | LatentsData | ExternalData | OwnData):
        raise InputError(f"--data {data}: samples of {kind.kind} are compared with {kind.kind}; leave --data out")
    if vae is not None and not run.latent:
        raise InputError(f"samples of {run.folder.path} are no latents: there is nothing to decode, leave --vae out")
    if isinstance(kind, DigitsData) and n < 100 and features != "none":
        raise InputError(f"--n {n} is too few for the Fréchet distance of 64 features: use at least 100")


def _own_data(run: Run, nll: bool, data: str | None, notice: Callable[[str], None]) -> Dataset:
    """The data of the run, ready to be looked at; images and latents may be gone, or have no part that was held out.

    They may be gone for good where samples are compared with other ``data``: then they are not compared with these.
    """
    dataset = run.dataset
    if nll and not isinstance(dataset, HeldOut):
        raise InputError(f"all of the {run.config.data.kind} are trained on: drop --nll")
    if isinstance(dataset, Prepared):
        try:
            dataset.prepare()
        except InputError as error:
            if data is None:
                raise
            notice(f"{error}; measured without them: no floors, no search for copies")
            return External(dataset.shape, dataset.conditions)
    return dataset


def _decoder(run: Run, vae: str | None) -> Decoder | None:
    """What makes images of samples, if they are to be compared as images."""
    if not run.latent or (vae is None and not isinstance(run.config.data, ExternalData)):
        return None
    from ditlab.runs.decode import decoder

    return decoder(run, vae)


def _other_data(run: Run, path: str, decode: Decode | None) -> Images | Latents:
    """Data elsewhere, brought to the shape of what is compared; ready to be looked at."""
    data = run.config.data
    other: Images | Latents
    if isinstance(data, LatentsData) and decode is None:
        index, place = read_index(path), str(Path(path).absolute())
        scale, shift = data.latent_scale, data.latent_shift
        other = Latents(place, index.shape, index.classes, False, scale, shift, data.vae, data.vae_digest)
        if index.shape != data.shape:
            raise InputError(f"--data {path} holds latents of {index.shape}, and the run's are of {data.shape}")
    else:
        channels, *size = run.shape if decode is None else decode(torch.zeros(1, *run.shape)).shape[1:]
        window = data.window if isinstance(data, ImagesData) else None
        other = Images(located(path), (size[0], size[1]), channels, window=window)
    other.prepare()
    return other


def _made_by(run: Run, decode: Decoder | None, vae: str | None) -> dict[str, Any]:
    """What computed the figures."""
    found: dict[str, Any] = {} if decode is None else {"vae": vae or "the run's own", "vae_digest": decode.digest[:12]}
    weights = next(run.process.parameters())
    found |= {"device": weights.device.type, "dtype": str(weights.dtype).removeprefix("torch.")}
    return {**found, "threads": torch.get_num_threads(), "ditlab": version("ditlab"), "torch": torch.__version__}


def drawn_with(run: Run, settings: SamplingConfig, guide: Run | None) -> dict[str, Any]:
    """All that decided samples besides the run and the seed; of guidance, what was on."""
    drawn: dict[str, Any] = {
        "solver": settings.solver,
        "steps": settings.steps,
        "grid": settings.grid,
        "shift": settings.shift,
    }
    if settings.grid == "auto":
        drawn["grid"] = run.process.grid
    if not run.conditions and guide is None:
        return drawn
    drawn["guidance"] = settings.guidance
    plain = SamplingConfig()
    for name in ("guidance_interval", "guidance_rescale", "guidance_channels"):
        if settings.guidance != 1 and getattr(settings, name) != getattr(plain, name):
            drawn[name] = getattr(settings, name)
    return drawn if guide is None else {**drawn, "guide": str(guide.folder.path), "guide_step": guide.step}
