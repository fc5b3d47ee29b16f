"""Compares samples with real data as they are drawn: of a run after training, or of one that is in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ditlab.config import CirclesData, Config, DigitsData, ImagesData, PointsData
from ditlab.data.datasets import Dataset
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.errors import InputError
from ditlab.evaluation.classifier import Classifier, classifier_of, trained
from ditlab.evaluation.comparison import Bank, Reference, judged, memorised
from ditlab.evaluation.features import Custom, Disc, Features, Inception, Values
from ditlab.evaluation.measures import (
    MOST_VALUES,
    measure_circles,
    measure_digits,
    measure_images,
    measure_latents,
    measure_points,
)
from ditlab.evaluation.real import Lot, Real, labelled, other_data, real_data
from ditlab.pictures import false_colors
from ditlab.training.parallel import ALONE, Ranks

LARGEST_BATCH, BATCH_VALUES = 500, 2**22  # samples, and their values, drawn together unless told otherwise
SHOWN, COLUMNS = 64, 16  # samples in a grid, and columns that it can have
SUSPECTS, BESIDE = 8, 5  # samples that may be copies, each shown beside so many of what was trained on

Draw = Callable[[range], Tensor]
Decode = Callable[[Tensor], Tensor]


def silent(_: str = "") -> None:
    """Hears everything and says nothing."""


class Copy(NamedTuple):
    """Sample ``number``, and what was trained on that is nearest to it, the nearest first."""

    number: int
    sample: Tensor
    data: Tensor
    distances: list[float]
    names: list[str]


class Measured(NamedTuple):
    """Figures of samples, and some of the samples themselves; of several processes, in the first one alone.

    Attributes:
        figures: all of them.
        shown: the first 64 samples, or 1,000 points; latents decoded, or in false colours.
        columns: of a grid of them, where each is of a class.
        copies: samples that are nearest to what was trained on; None where data are made as they are needed.
    """

    figures: dict[str, Any]
    shown: Tensor
    columns: int | None = None
    copies: list[Copy] | None = None


class Evaluator:
    """Measures samples of one configuration as often as it is asked to; what real data score is computed once.

    Args:
        config: of the run.
        dataset: that it is trained on, ready to be looked at.
        n: how many samples are measured.
        seed: of what they are compared with, and of the intervals.
        features: ``"auto"``, ``"pixels"``, ``"disc"``, ``"classifier"``, ``"inception"``, ``"module:function"``, or
            ``"none"`` for the figures of the data's kind alone, which need none.
        other: data to compare with instead of those of the run.
        decode: makes images of latents; without, latents are compared.
        device: where features are computed.
        batch_size: samples drawn, or turned into features, together by each process; None is up to 500. It decides
            memory and speed alone.
        ranks: processes that share drawing and features; the first one measures.
        notice, beat: are told what takes long, and that it goes on.

    Raises:
        InputError: features that these data do not have, or whose parts are missing.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        *,
        n: int,
        seed: int = 0,
        features: str = "auto",
        other: Images | Latents | None = None,
        decode: Decode | None = None,
        device: torch.device | None = None,
        batch_size: int | None = None,
        ranks: Ranks = ALONE,
        notice: Callable[[str], None] = silent,
        beat: Callable[[], None] = silent,
    ) -> None:
        self.config, self.dataset, self.other = config, dataset, other
        self.n, self.seed, self.decode, self.ranks = n, seed, decode, ranks
        self.device = torch.device("cpu") if device is None else device
        self.notice, self.beat = notice, beat
        self.images = len(dataset.shape) == 3 and (config.latent_space is None or decode is not None)
        self.shape = tuple(self._comparable(torch.zeros(1, *dataset.shape)).shape[1:]) if self.images else dataset.shape
        values = max(math.prod(dataset.shape), math.prod(self.shape))
        self.batch_size = batch_size or max(1, min(LARGEST_BATCH, BATCH_VALUES // values))
        small = isinstance(config.data, CirclesData | PointsData | DigitsData)
        self.kept = n if small else max(1, MOST_VALUES // values)  # samples; of the others features are kept alone
        self.features = ranks.together(lambda: self._features(features))
        self.values = Values(self.shape, latent=not self.images)

    # ---- what is compared

    @property
    def rounds(self) -> bool:
        """Whether samples are rounded to 8 bits, as the images they are compared with were."""
        return self.images and not isinstance(self.config.data, CirclesData | DigitsData)

    @property
    def preprocessing(self) -> str:
        """What is done to samples before features are made of them."""
        if not self.images:
            return "none"
        decoded = "decoded, " if self.decode is not None else ""
        return f"{decoded}clamped to [-1, 1]" + (", rounded to the nearest of 256 levels" if self.rounds else "")

    def _comparable(self, samples: Tensor) -> Tensor:
        """Samples as images or latents are compared."""
        if not self.images:
            return samples
        return self._as_data(samples if self.decode is None else self.decode(samples))

    def _as_data(self, images: Tensor) -> Tensor:
        images = images.clamp(-1, 1)
        return ((images + 1) * 127.5).round() / 127.5 - 1 if self.rounds else images

    def _features(self, word: str) -> Features | None:
        data = self.config.data
        judged_by = self.dataset if self.other is None or isinstance(self.dataset, Images) else self.other
        learn_from = labelled(judged_by) if self.images and word in ("auto", "classifier") else None
        if word == "auto":
            word = "disc" if isinstance(data, CirclesData) else "pixels"
            if learn_from is not None and not isinstance(data, DigitsData):
                word = "classifier"
        if word == "none":
            return None
        if word == "pixels":
            return Values(self.shape, latent=not self.images)
        if word == "disc" and isinstance(data, CirclesData):
            return Disc()
        if word == "inception" and self.images:
            return Inception(self.device)
        if word == "classifier" and learn_from is not None:
            kept = self.ranks.decided(lambda: trained(learn_from, self.shape, self.notice, self.beat))
            return classifier_of(kept, learn_from, self.shape).to(self.device)
        if ":" in word:
            return Custom(word)
        known = "disc or pixels" if isinstance(data, CirclesData) else "pixels"
        if learn_from is not None or isinstance(data, ImagesData | DigitsData):
            known = "classifier, inception or pixels"
        raise InputError(
            f"--features {word}: {'latents' if not self.images and self.config.latent_space else data.kind} are "
            f"compared by {known}, or by a function of your own as module:function"
        )

    @cached_property
    def real(self) -> Real:
        """The data that samples are compared with."""
        if self.other is not None:
            return other_data(self.other, self.dataset, self.n, self.seed, self.decode)
        return real_data(self.dataset, self.n, self.seed, self.decode)

    @cached_property
    def reference(self) -> Reference:
        """Features of these data."""
        floor, features = self.real.floor, self.features
        assert features is not None
        others = None if floor is None else self._of_lot(floor, features)
        return Reference(self._of_lot(self.real.reference, features), others)

    @cached_property
    def bank(self) -> Bank | None:
        """The values of what was trained on, to find copies by; None where data are made as they are needed."""
        training = self.real.training
        if training is None:
            return None
        mirrored = None if training.mirrored is None else self._of_lot(training.mirrored, self.values)
        return Bank(self._of_lot(training.plain, self.values), mirrored)

    # ---- features of many

    def _of_lot(self, lot: Lot, features: Features) -> Tensor:
        def some(numbers: range) -> list[Tensor]:
            data = lot.get(torch.tensor(numbers).clamp(max=lot.size - 1))
            return [self._by(features, self._as_data(data) if self.images else data)]

        return self._shared(lot.size, some)[0]

    def _by(self, features: Features, samples: Tensor) -> Tensor:
        found = features(samples.to(self.device)).detach().float().cpu()
        if not found.isfinite().all():
            raise InputError(f"some samples have no finite features ({features.name}): was the run trained to its end?")
        return found

    def _shared(self, count: int, some: Callable[[range], Sequence[Tensor]]) -> list[Tensor]:
        """What ``some`` gives of all numbers, each process taking its share of a batch; what is too much is cut."""
        found, each = [], self.batch_size * self.ranks.world
        for first in range(0, count, each):
            size = min(each, count - first)
            own = self.ranks.share(size)
            pieces = self.ranks.together(partial(some, range(first + own.start, first + own.stop)))
            found.append([self.ranks.gather(piece)[:size] for piece in pieces])
            self.beat()
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    # ---- figures

    def measure(self, draw: Draw, labels: Int[Tensor, " n"] | None = None) -> Measured:
        """Figures of n samples.

        Args:
            draw: gives the samples of these numbers, which may go beyond n.
            labels: that were asked for.
        """
        features, bank = self.features, None if self.features is None else self.bank
        wanted: list[Features] = [] if features is None else [features]
        if bank is not None and features is not None and features.digest != self.values.digest:
            wanted.append(self.values)

        def some(numbers: range) -> list[Tensor]:
            samples = draw(numbers)
            begun = numbers.start - self.ranks.rank * len(numbers)  # of the batch of all processes
            compared = self._comparable(samples) if wanted else samples
            shown = samples.cpu() if begun < self.kept else samples[:0].cpu()
            return [shown, *(self._by(one, compared) for one in wanted)]

        reference = None if features is None else self.reference  # first: it says what is wanting before much is drawn
        samples, *found = self._shared(self.n, some)
        samples = samples[: self.kept]
        if not self.ranks.first:
            return Measured({}, samples)
        figures, copies = self._of_kind(samples, labels), None
        if "sliced_wasserstein" in figures and len(samples) < self.n:
            figures["sliced_wasserstein_n"] = len(samples)
        if reference is not None:
            figures |= reference.figures(found[0], self.seed)
        if isinstance(features, Classifier) and features.judges and labels is not None:
            figures |= judged(features.judge(found[0]), labels, self.seed) | {"accuracy_real": features.accuracy}
        if bank is not None:
            copies = self._copies(bank, samples, found[-1][: len(samples)])
            if not isinstance(self.config.data, DigitsData):
                figures |= memorised(bank, found[-1], self.seed)
        classes = self.dataset.num_classes or 0
        in_turn = labels is not None and torch.equal(labels, torch.arange(self.n) % max(1, classes))
        columns = classes if in_turn and 1 < classes <= COLUMNS else None
        shown = samples[: 1000 if samples.dim() == 2 else SHOWN // columns * columns if columns else SHOWN]
        return Measured(figures | self._decided_by(features), self._shown(shown), columns, copies)

    def _of_kind(self, samples: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """What is measured on samples of the data's kind alone."""
        against = self.dataset if self.other is None else self.other
        match self.config.data:
            case CirclesData():
                return measure_circles(samples, self.seed)
            case PointsData(name=name):
                return measure_points(samples, name, self.seed)
            case DigitsData():
                assert labels is not None
                return measure_digits(samples, labels, self.seed)
        if self.decode is None and isinstance(against, Images):
            return measure_images(samples, against, self.seed)
        if self.decode is None and isinstance(against, Latents):
            return measure_latents(samples, against, self.seed)
        return {}

    def _decided_by(self, features: Features | None) -> dict[str, Any]:
        """All that decides the figures beside the samples."""
        if features is None:
            return {"features": "none"}
        reference = self.reference
        return {
            "features": features.name,
            "features_digest": features.digest,
            "frechet_features": features.description,
            "preprocessing": self.preprocessing,
            "reference": self.real.name,
            "reference_n": len(reference.data),
            "floor_n": 0 if reference.others is None else len(reference.others),
        }

    # ---- copies

    def _copies(self, bank: Bank, samples: Tensor, values: Tensor) -> list[Copy]:
        """The samples that are nearest to what was trained on, and what that is."""
        training = self.real.training
        assert training is not None
        closest = bank.nearest(values, 1).distances[:, 0].argsort(stable=True)[:SUSPECTS]
        found = bank.nearest(values[closest], BESIDE)
        shown, rows = self._shown(samples[closest]), []
        for k, (i, distances, numbers) in enumerate(zip(closest.tolist(), *found, strict=True)):
            data = training.plain.get(numbers)
            data = data if self.images else false_colors(data)
            names = [training.name(number) for number in numbers.tolist()]
            rows.append(Copy(i, shown[k], data, distances.tolist(), names))
        return rows

    def _shown(self, samples: Tensor) -> Tensor:
        """Samples as a picture has them."""
        if self.config.latent_space is None:
            return samples
        return false_colors(samples) if self.decode is None else self.decode(samples)
