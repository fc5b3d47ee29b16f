"""What runs are compared by beside a lens: their configuration, and the figures of their checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ditlab.config import ImagesData
from ditlab.core.errors import InputError
from ditlab.data.images.dataset import Images
from ditlab.evaluation.evaluate import evaluate
from ditlab.lab.lens.answer import Look, look_away
from ditlab.lab.lens.scenes import check_work, evaluations_of
from ditlab.networks.costs import multiply_accumulates
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run


def configuration(folder: RunFolder) -> dict[str, Any]:
    """Every setting of a run under the name of its option, such as ``"network.depth"``.

    Raises:
        InputError: the configuration is damaged.
    """
    return dict(_flat("", folder.read_config().model_dump(mode="json")))


def quality(run: Run, *, n: int = 200, seed: int = 0, look: Look = look_away) -> dict[str, Any]:
    """The figures of ``ditlab eval --features none`` of a run, drawn as its own configuration says.

    Nothing is fetched or written: images must have been prepared before. ``look`` is called before each pass of the
    network; what it raises ends the measurement.

    Raises:
        InputError: there are no data to compare with, too few samples for the figures, or too much work.
    """
    own, process = run.config.sampling, run.process
    evaluations = evaluations_of(process, own.solver, own.steps) * (2 if run.conditions and own.guidance != 1 else 1)
    work = evaluations * n * multiply_accumulates(process.network, run.shape)
    check_work(work, process.like().device, "measure fewer samples")
    if isinstance(run.config.data, ImagesData):
        dataset = build_dataset(run.config)
        assert isinstance(dataset, Images)
        if not dataset.prepared:
            raise InputError(f"the images of {run.folder.path.name} are not prepared here: ditlab eval does it")
    with run.process.network.register_forward_pre_hook(lambda *_: look()):
        return evaluate(run, n, seed=seed, features="none", **run.config.sampling.model_dump())


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of all leaves; the kind of a part goes by the part's name."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, part in value.items():
        yield from _flat(prefix if name == "kind" else f"{prefix}.{name}".lstrip("."), part)
