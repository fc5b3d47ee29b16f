"""The page as one file: its modules, its style and precomputed answers, to be opened from disk without Python."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from posixpath import join, normpath
from typing import Any, Literal
from urllib.parse import quote, urlencode

import torch

from ditlab.core.disk import write_atomically
from ditlab.core.errors import InputError
from ditlab.evaluation.evaluator import silent
from ditlab.inspection.interventions import single_edits
from ditlab.lab.lens.answer import Answer
from ditlab.lab.lens.attention import WHOLE
from ditlab.lab.lens.comparing import configuration
from ditlab.lab.lens.lens import Lens
from ditlab.lab.lens.recordings import losses, picture, recorded
from ditlab.lab.lens.scenes import affordable, evaluations_of
from ditlab.lab.server.api import PAGE, encode
from ditlab.lab.server.library import Library, describe_run

INPUTS = ("data:0", "data:1", "data:2", "sample:0", "sample:1")
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
WALKS = ({"solver": "heun", "steps": 25}, {"solver": "euler", "steps": 10}, {"solver": "dpm-solver++", "steps": 10})
SEEDS = (0, 1, 2)
PARTICLES = 400
DRAWN = 10  # images to compare
MAX_BYTES = 30_000_000  # of attention maps in a file
CHANGE_TIMES = (0.3, 0.7)
MAX_CHANGE_BYTES = 1_300_000  # of what changed networks answer, as base64
PART_INPUTS, PART_SEEDS = ("data:0", "data:1", "sample:0"), (0,)  # of a page that holds one section
PART_BYTES = 8_000_000
Part = Literal["attention", "denoise"]
Asked = tuple[str, dict[str, Any], Any]  # path, query and value
IMPORT = re.compile(r'(\bfrom\s+|^import\s+)"(\.[\w./-]+\.js)"', re.MULTILINE)


def export(library: Library, name: str, out: Path, told: Callable[[str], None] = silent) -> int:
    """Write the page of one run to ``out``; return its size in bytes. ``told`` hears of each answer, by its path.

    Raises:
        InputError: the attention maps alone would make a file that no browser likes to open.
    """
    page = one_page(embed(library, name, told))
    write_atomically(out, lambda path: path.write_text(page, encoding="utf-8"))
    return len(page.encode())


def embed(library: Library, name: str, told: Callable[[str], None] = silent) -> dict[str, Any]:
    """Every answer the page will ask for, under the address it asks at, and what there is to choose from."""
    lens = library.lens(name)
    run, choices = library.describe(name, None, "ema"), _choices()
    choices["changes"] = {"edits": [], "input": [], "t": []}
    paths = _paths(run, _answers(lens, run, choices), told)
    base, folder = f"/api/runs/{name}", library.folder(name)
    settings = configuration(folder)  # but not where the data lie on this machine
    paths[f"{base}/config"] = _packed({key: value for key, value in settings.items() if not key.startswith("data.")})
    paths[f"{base}/losses"] = _packed(Answer(losses(folder)))
    for step in run["previews"]:
        paths[f"{base}/samples/{step}"] = {"type": "image", "body": _base64(picture(folder, step))}
    return {"paths": paths, "choices": choices}


def page_of_part(lens: Lens, section: Part) -> str:
    """The page with one section of a run, and a small choice of what it may ask.

    Raises:
        InputError: the attention maps are too large for a page, or a trajectory takes too long.
    """
    run, choices = describe_run(lens.run.folder, lens), _choices()
    paths = _paths(run, _attention_alone(lens, run, choices) if section == "attention" else _walks(lens, run, choices))
    return one_page({"paths": paths, "choices": choices, "section": section})


def _choices() -> dict[str, Any]:
    return {"input": [], "t": list(TIMES), "settings": []}


def _json(value: Any) -> str:
    """JSON that may stand within a <script>."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _paths(run: dict[str, Any], answers: Iterable[Asked], told: Callable[[str], None] = silent) -> dict[str, Any]:
    """Answers under their addresses, with those that every page begins with."""
    run |= {"checkpoints": [run["step"]], "path": run["name"]}  # but not where it lies on this machine
    base, common = f"/api/runs/{run['id']}", {"step": run["step"], "weights": "ema"}
    entry = {name: run[name] for name in ("id", "name", "step", "data", "network", "process")}
    paths: dict[str, Any] = {"/api/runs": _packed({"runs": [entry]})}
    paths[base] = paths[_address(base, common)] = _packed(run)
    for path, query, value in answers:
        paths[_address(f"{base}/{path}", common | query)] = _packed(value)
        told(path)
    return paths


def _answers(lens: Lens, run: dict[str, Any], choices: dict[str, Any]) -> Iterator[Asked]:
    """All that is precomputed."""
    yield "flow", {}, lens.flow()
    if run["sections"]["gates"] is None and recorded(lens.run.folder):
        yield "gates", {}, lens.gates()
    elif run["last_loss"] is not None:
        yield "losses", {}, Answer(losses(lens.run.folder), previews=repr(lens.previews()))
    if len(lens.run.shape) == 3:
        choices["input"], choices["t"] = _affordable(run, INPUTS)
        if run["attention"] and run["has_examples"]:
            yield "attention/summary", {}, lens.attention_summary()
        yield from _looks(lens, run, choices)
    yield from _walks(lens, run, choices, SEEDS)
    n = DRAWN if len(lens.run.shape) == 3 else PARTICLES
    for seed in SEEDS:
        yield "samples", {"seed": seed, "n": n}, lens.samples(seed=seed, n=n)
    yield from _changes(lens, run, choices)


def _walks(
    lens: Lens, run: dict[str, Any], choices: dict[str, Any], seeds: tuple[int, ...] = PART_SEEDS
) -> Iterator[Asked]:
    """What the section Denoise asks for."""
    if len(lens.run.shape) == 1:
        for t in (i / 20 for i in range(21)):
            yield "field", {"t": t, "size": 24}, lens.field(t=t)
    guidance = {} if run["sampling"]["guidance"] == 1 else {"guidance": run["sampling"]["guidance"]}
    n = 1 if len(lens.run.shape) == 3 else PARTICLES
    for walk, seed in product(WALKS, seeds):
        setting: dict[str, Any] = {**walk, **guidance, "seed": seed}
        choices["settings"].append(setting)
        yield "trajectory", {**setting, "n": n}, lens.trajectory(**setting, n=n)


def _attention_alone(lens: Lens, run: dict[str, Any], choices: dict[str, Any]) -> Iterator[Asked]:
    """What the section about attention asks for, without what it measures over many images."""
    choices["input"], choices["t"] = _affordable(run, PART_INPUTS, PART_BYTES)
    for path, query, value in _looks(lens, run, choices):
        if path == "input":
            value = Answer({name: torch.from_numpy(value[name]) for name in ("x0", "x")}, **value.meta)
        yield path, query, value


def _affordable(run: dict[str, Any], inputs: tuple[str, ...], most: int = MAX_BYTES) -> tuple[list[str], list[float]]:
    """Inputs and times whose attention maps fit into a file that opens: fewer of them for larger networks."""
    cells = [(layer["heads"] + 1) * layer["tokens"] ** 2 for layer in run["attention"]]
    if any(layer["tokens"] > WHOLE for layer in run["attention"]) or 6 * sum(cells) > most:
        raise InputError(
            f"the attention maps of {run['name']} are too large for one file: look at them with ditlab lab"
        )
    scenes = max(1, most // (6 * sum(cells) + 1))  # four bytes a cell, as base64, and what comes with them
    times = TIMES if scenes >= len(TIMES) else TIMES[1:2]
    there = [name for name in inputs if run["has_examples"] or not name.startswith("data:")]
    return there[: max(1, scenes // len(times))], list(times)


def _looks(lens: Lens, run: dict[str, Any], choices: dict[str, Any]) -> Iterator[Asked]:
    for name, t in product(choices["input"], choices["t"]):
        where: dict[str, Any] = {"input": name, "t": t}
        yield "input", where, lens.input(**where)
        if run["attention"] and run["cross_tokens"]:
            yield "attention/cross", where, lens.cross_attention(**where)
        for layer in run["attention"]:
            for head in [*range(layer["heads"]), "mean"]:
                one = where | {"layer": layer["layer"], "head": head}
                yield "attention", one, lens.attention(**one)


def _changes(lens: Lens, run: dict[str, Any], choices: dict[str, Any]) -> Iterator[Asked]:
    """What the network says and draws with one change at a time, and what parts are worth; nothing that takes long."""
    draws, device = {"n": run["draws"]}, lens.scenes.like.device
    sampling = run["draws"] * evaluations_of(lens.process, run["sampling"]["solver"], run["sampling"]["steps"])
    words = [*single_edits(lens.network), *(f"uniform:{layer}" for layer in lens.layers)]
    if affordable(len(words) + 1, sampling * lens.scenes.macs, device) <= len(words):
        return
    yield "samples", draws, lens.samples(**draws)
    if not words:
        return
    yield "costs", {}, lens.costs()
    held = choices["changes"] = _held_changes(words, run, choices)
    for edits in held["edits"]:
        yield "samples", draws | {"edits": edits}, lens.samples(**draws, edits=edits)
        for name, t in product(held["input"], held["t"]):
            where = {"input": name, "t": t, "edits": edits}
            answer = Answer({})
            answer["denoised"] = lens.input(**where)["denoised"]
            yield "input", where, answer


def _held_changes(words: list[str], run: dict[str, Any], choices: dict[str, Any]) -> dict[str, Any]:
    """Inputs and times at which there is room for every change; none of them where there is not."""
    times = [t for t in CHANGE_TIMES if t in choices["t"]] or choices["t"][:1]
    image = 4 * (4 * math.prod(run["shape"]) + 400) // 3  # as base64, with its header and address
    room = MAX_CHANGE_BYTES // len(words) // image - run["draws"]
    inputs = choices["input"][: max(0, room) // len(times)]
    return {"edits": words if inputs else [], "input": inputs, "t": times}


def _address(path: str, query: dict[str, Any]) -> str:
    """Path and query as the page writes them: keys in order, numbers as JavaScript prints them, where 2.0 is 2."""
    words = [(key, f"{value:g}" if isinstance(value, float) else str(value)) for key, value in query.items()]
    return f"{path}?{urlencode(sorted(words), quote_via=quote)}"


def _packed(value: Any) -> dict[str, Any]:
    body, media_type = encode(value)
    if media_type == "application/json":
        return {"type": "json", "body": value}
    return {"type": "arrays", "body": _base64(body)}


def one_page(embedded: dict[str, Any]) -> str:
    """index.html with its styles, its modules (as data: addresses in an import map) and the answers inside."""
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    modules = {file.relative_to(PAGE).as_posix(): _from_top(file) for file in sorted(PAGE.rglob("*.js"))}
    addresses = {name: f"data:text/javascript;base64,{_base64(text.encode())}" for name, text in modules.items()}
    import_map = _json({"imports": addresses})
    start = 'import "main.js";'
    styles = []

    def inline_style(match: re.Match[str]) -> str:
        text = (PAGE / match[1]).read_text(encoding="utf-8")
        styles.append(text)
        return f"<style>{text}</style>"

    page = re.sub(r'<link rel="stylesheet" href="\./([\w/-]+\.css)"\s*/?>', inline_style, page)
    scripts = [
        f'<script type="importmap">{import_map}</script>',
        f'<script type="application/json" id="embedded">{_json(embedded)}</script>',
        f'<script type="module">{start}</script>',
    ]
    policy = (
        f"default-src 'none'; script-src data: {_hashes(import_map, start)}; style-src {_hashes(*styles)}; "
        "img-src data: blob:; connect-src 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{meta}', 1)
    return re.sub(r'<script type="module" src="\./main\.js">\s*</script>', lambda _: "\n".join(scripts), page)


def _from_top(file: Path) -> str:
    """A module that imports others by their path from the top of the page: a data: address has no folder of its own."""
    folder = file.parent.relative_to(PAGE).as_posix()
    return IMPORT.sub(lambda match: f'{match[1]}"{normpath(join(folder, match[2]))}"', file.read_text(encoding="utf-8"))


def _hashes(*texts: str) -> str:
    """What a Content-Security-Policy calls texts that may stand in the page."""
    return " ".join(f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'" for text in texts)


def _base64(body: bytes) -> str:
    return base64.b64encode(body).decode()
