"""Measure a run: draw samples, compare them with real data, and say with what they were drawn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ditlab.build import build_dataset, build_drawing
from ditlab.config import CirclesData, DigitsData, ExternalData, ImagesData, PointsData, SamplingConfig
from ditlab.data.datasets import Dataset, HeldOut, Prepared
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.errors import InputError
from ditlab.evaluation.likelihood import measure_likelihood
from ditlab.evaluation.measures import (
    measure_circles,
    measure_digits,
    measure_images,
    measure_latents,
    measure_points,
)
from ditlab.run import Run
from ditlab.training.parallel import ALONE, Ranks


def evaluate(
    run: Run,
    n: int = 1000,
    *,
    seed: int = 0,
    guide: Run | None = None,
    nll: bool = False,
    nll_n: int | None = None,
    ranks: Ranks = ALONE,
    **sampling: Any,
) -> dict[str, Any]:
    """The figures of ``ditlab eval``: those of the data's kind, and everything that decided them.

    ``evaluations`` is how often the network ran for each sample, counted, the passes of a guided one as one.

    Args:
        run: what to measure.
        n, seed: how many samples, and which.
        guide: a weaker run to guide away from.
        nll, nll_n: whether to add the negative log-likelihood of held-out data, without guidance, and of how many.
        ranks: processes that share the drawing and the integrals of the likelihood; the first one measures, the others
            get nothing.
        sampling: fields of ``SamplingConfig``, such as ``steps=25, solver="heun", guidance=2.0``; the others are its
            defaults.

    Raises:
        InputError: too few samples for the figures; settings that do not go together.
    """
    if isinstance(run.config.data, ExternalData):
        raise InputError(
            f"{run.folder.path} was trained elsewhere: there are no data here to compare its samples with; draw some "
            f"with ditlab sample {run.folder.path}"
        )
    dataset = _compared_with(run, nll)  # before samples are drawn, which may take long
    settings = SamplingConfig(**{name: value for name, value in sampling.items() if value is not None})
    if isinstance(run.config.data, DigitsData) and n < 100:
        raise InputError(f"--n {n} is too few for the Fréchet distance of 64 features: use at least 100")
    guided = run.num_classes is not None or guide is not None
    before = run.process.evaluations
    samples = run.sample(n, seed=seed, guide=guide, ranks=ranks, **build_drawing(settings, run.process, guided)).cpu()
    evaluations = (run.process.evaluations - before) / len(ranks.share(n))
    likelihood: dict[str, Any] = {}
    if nll:
        assert isinstance(dataset, HeldOut)
        likelihood = measure_likelihood(run.process, dataset, nll_n, seed, ranks.spread)
    if not ranks.first:
        return {}
    figures = _figures(run, samples, dataset, seed) | likelihood
    drawn = drawn_with(run, settings, guide)
    evaluations = int(evaluations) if evaluations.is_integer() else round(evaluations, 1)
    return figures | {"n": n, "seed": seed, **drawn, "evaluations": evaluations, "run_step": run.step}


def _figures(run: Run, samples: Tensor, dataset: Dataset, seed: int) -> dict[str, Any]:
    """What is measured on samples of the data's kind."""
    match run.config.data:
        case CirclesData():
            return measure_circles(samples, seed)
        case PointsData(name=name):
            return measure_points(samples, name, seed)
        case DigitsData():
            labels = run.labels(len(samples))
            assert labels is not None
            return measure_digits(samples, labels)
        case ImagesData():
            assert isinstance(dataset, Images)
            return measure_images(samples, dataset, seed)
        case _:
            assert isinstance(dataset, Latents)
            return measure_latents(samples, dataset, seed)


def _compared_with(run: Run, nll: bool) -> Dataset:
    """The data of the run, ready to be looked at; images and latents may be gone, or have no part that was held out."""
    dataset = build_dataset(run.config)
    if nll and not isinstance(dataset, HeldOut):
        raise InputError(f"all of the {run.config.data.kind} are trained on: drop --nll")
    if isinstance(dataset, Prepared):
        dataset.prepare()
    return dataset


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
    if run.num_classes is None and guide is None:
        return drawn
    drawn["guidance"] = settings.guidance
    plain = SamplingConfig()
    for name in ("guidance_interval", "guidance_rescale", "guidance_channels"):
        if settings.guidance != 1 and getattr(settings, name) != getattr(plain, name):
            drawn[name] = getattr(settings, name)
    return drawn if guide is None else {**drawn, "guide": str(guide.folder.path), "guide_step": guide.step}
