"""Compares samples with real data as they are drawn: of a run after training, or of one that is in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ditlab.config import CirclesData, Config, DigitsData, ExternalData, ImagesData, LatentsData, PointsData
from ditlab.core.distributed import ALONE, Ranks
from ditlab.core.errors import InputError
from ditlab.data.conditions import num_classes
from ditlab.data.dataset import Dataset
from ditlab.data.digits import Digits
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.evaluation.classifier import Classifier, classifier_of, trained
from ditlab.evaluation.features import Custom, Disc, Features, Inception, Values
from ditlab.evaluation.metrics.by_data import REFERENCE, measure_circles, measure_digits, measure_points, measure_values
from ditlab.evaluation.metrics.comparison import Reference, judged
from ditlab.evaluation.metrics.memorisation import Bank, memorised
from ditlab.evaluation.reference import Lot, Real, labelled, other_data, real_data
from ditlab.runs.pictures import false_colors

MOST_VALUES = 2**26  # of samples that are kept
FAIR = 0.8  # of as many samples: a floor of fewer would lie too high
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
        return self.images and isinstance(self.config.data, ImagesData | LatentsData | ExternalData)

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
        learn_from = labelled(self._judged_by) if self.images and word in ("auto", "classifier") else None
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

    @property
    def _judged_by(self) -> Dataset | Images | Latents:
        """The data that a classifier learns from."""
        return self.dataset if self.other is None or isinstance(self.dataset, Images) else self.other

    @cached_property
    def _judge(self) -> Classifier | None:
        """What says which label a sample has, where its labels are those that samples are asked for."""
        judge, own = self.features, self.dataset
        if not isinstance(judge, Classifier) or not judge.judges:
            return None
        names = [getattr(data, "classes", None) for data in (own, self._judged_by)]
        classes, judged = (num_classes(data.conditions) for data in (own, self._judged_by))
        same = names[0] == names[1] if None not in names else classes == judged
        if not same and classes is not None:
            self.notice("no accuracy: the classes of --data are not those that samples are drawn for")
        return judge if same else None

    @cached_property
    def real(self) -> Real:
        """The data that samples are compared with."""
        if self.other is not None:
            return other_data(self.other, self.dataset, self.n, self.seed, self.decode)
        return real_data(self.dataset, self.n, self.seed, self.decode)

    @cached_property
    def reference(self) -> Reference:
        """Features of these data."""
        features, floor = self.features, self._floor
        assert features is not None
        others = None if floor is None else self._of_lot(floor, features)
        data = self._of_lot(self.real.reference, features)
        few = min(self.n, self.real.reference.size)
        if few <= data.shape[1]:
            self.notice(f"no Fréchet distance: {data.shape[1]} features need more than {few} samples and data")
        return Reference(data, others)

    @cached_property
    def _floor(self) -> Lot | None:
        """Data in the place of samples, where there are about as many."""
        floor = self.real.floor
        if floor is None or floor.size >= FAIR * self.n:
            return floor
        self.notice(f"no floors: {floor.size:,} data are left to put in the place of {self.n:,} samples")
        return None

    @cached_property
    def _values_of_data(self) -> tuple[Tensor, Tensor | None]:
        """Data to compare the kept samples with as they are, and others in their place."""
        most = min(self.n, self.kept)
        whole = None if self._floor is None or self._floor.size < FAIR * most else self._first(self._floor, most)
        return self._first(self.real.reference, min(REFERENCE, self.kept)), whole

    def _first(self, lot: Lot, count: int) -> Tensor:
        data = lot.get(torch.arange(min(lot.size, count)))
        return self._as_data(data) if self.images else data

    @cached_property
    def bank(self) -> Bank | None:
        """The values of what was trained on, to find copies by; None where data are made as they are needed."""
        training = self.real.training
        if training is None or (self.features is None and not isinstance(self.config.data, DigitsData)):
            return None
        plain, *others = (
            None if lot is None else self._of_lot(lot, self.values)
            for lot in (training.plain, training.mirrored, training.held_out)
        )
        assert plain is not None
        return Bank(plain, *others)

    # ---- features of many

    def _of_lot(self, lot: Lot, features: Features) -> Tensor:
        def some(numbers: range) -> list[Tensor]:
            data = lot.get(torch.tensor(numbers).clamp(max=lot.size - 1))
            return [self._by(features, self._as_data(data) if self.images else data)]

        return self._shared(lot.size, some)[0]

    def _by(self, features: Features, samples: Tensor) -> Tensor:
        pieces = torch.split(samples.to(self.device), features.at_once)
        found = torch.cat([features(piece).detach().float().cpu() for piece in pieces])
        if not found.isfinite().all():
            raise InputError(f"some samples have no finite features ({features.name}): was the run trained to its end?")
        return found

    def _shared(self, count: int, some: Callable[[range], Sequence[Tensor]]) -> list[Tensor]:
        """What ``some`` gives of all numbers, each process taking its share of a batch; what is too much is cut.

        The first process gets it, the others get nothing.
        """
        found, each = [], self.batch_size * self.ranks.world
        for first in range(0, count, each):
            size = min(each, count - first)
            own = self.ranks.share(size)
            pieces = self.ranks.together(partial(some, range(first + own.start, first + own.stop)))
            found.append([self.ranks.collect(piece)[:size] for piece in pieces])
            self.beat()
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    # ---- figures

    def measure(self, draw: Draw, labels: Int[Tensor, " n"] | None = None) -> Measured:
        """Figures of n samples.

        Args:
            draw: gives the samples of these numbers, which may go beyond n.
            labels: that were asked for.
        """
        features, bank = self.features, self.bank
        wanted: list[Features] = [] if features is None else [features]
        if bank is not None and (features is None or features.digest != self.values.digest):
            wanted.append(self.values)
        if features is not None:
            _ = self.reference  # made first: it says what is wanting before much is drawn

        def some(numbers: range) -> list[Tensor]:
            samples = draw(numbers)
            if not samples.isfinite().all():
                raise InputError("some samples are not finite numbers: was the run trained to its end?")
            begun = numbers.start - self.ranks.rank * len(numbers)  # of the batch of all processes
            compared = self._comparable(samples) if wanted else samples
            shown = samples.cpu() if begun < self.kept else samples[:0].cpu()
            return [shown, *(self._by(one, compared) for one in wanted)]

        samples, *found = self._shared(self.n, some)
        samples = samples[: self.kept]
        figures, suspects = self.ranks.decided(lambda: self._figures(samples, labels, found))
        again = [i for i in suspects if i >= min(self.n, self.kept)]
        drawn = self.ranks.together(lambda: {i: draw(range(i, i + 1))[0].cpu() for i in again})
        if not self.ranks.first:
            return Measured({}, samples)
        suspected = [drawn[i] if i in drawn else samples[i] for i in suspects]
        copies = None if bank is None else self._copies(bank, suspects, suspected, found[-1])
        classes = num_classes(self.dataset.conditions) or 0
        in_turn = labels is not None and torch.equal(labels, torch.arange(self.n) % max(1, classes))
        columns = classes if in_turn and 1 < classes <= COLUMNS else None
        shown = samples[: 1000 if samples.dim() == 2 else SHOWN // columns * columns if columns else SHOWN]
        return Measured(figures | self._decided_by(features), self._shown(shown), columns, copies)

    def _figures(self, samples: Tensor, labels: Tensor | None, found: list[Tensor]) -> tuple[dict[str, Any], list[int]]:
        """Of the samples that were kept and the features of all; and which are nearest to what was trained on."""
        figures, suspects = self._of_samples(samples, labels), []
        self.beat()
        if self.features is not None:
            figures |= self.reference.figures(found[0], self.seed)
            self.beat()
        if self._judge is not None and labels is not None:
            figures |= judged(self._judge.judge(found[0]), labels) | {"judge": f"classifier {self._judge.digest}"}
            if self._judge.accuracy is not None:
                figures["accuracy_real"] = self._judge.accuracy
        if self.bank is not None:
            near = self.bank.nearest(found[-1], 2)
            figures |= memorised(self.bank, near)
            suspects = near.distances[:, 0].argsort(stable=True)[:SUSPECTS].tolist()
            self.beat()
        return figures, suspects

    def _of_samples(self, samples: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """What is measured on samples of the data's kind alone."""
        match self.config.data:
            case CirclesData():
                return measure_circles(samples, self.seed)
            case PointsData(name=name):
                return measure_points(samples, name, self.seed)
            case DigitsData():
                assert labels is not None
                return measure_digits(samples, labels) | {"judge": "support-vector machine of half B"}
        if self.decode is not None:
            return {}
        found = measure_values(self._as_data(samples) if self.images else samples, *self._values_of_data)
        return found | ({"sliced_wasserstein_n": len(samples)} if len(samples) < self.n else {})

    def _decided_by(self, features: Features | None) -> dict[str, Any]:
        """All that decides the figures beside the samples."""
        if features is None:
            return {"features": "none"}
        reference = self.reference
        learned = {} if not isinstance(features, Classifier) else {"classifier_learned_from": self._learned_from}
        return learned | {
            "features": features.name,
            "features_digest": features.digest,
            "frechet_features": features.description,
            "preprocessing": self.preprocessing,
            "reference": self.real.name,
            "reference_n": len(reference.data),
            "floor_n": 0 if reference.others is None else len(reference.others),
        }

    @property
    def _learned_from(self) -> str:
        """What the classifier has seen: data that it has are more alike to it than others are."""
        if isinstance(self.dataset, Digits):
            return "the reference"
        if self._judged_by is self.other:
            return "nine tenths of the reference"
        return "nine tenths of " + ("the floor" if self.other is not None else "reference and floor")

    # ---- copies

    def _copies(self, bank: Bank, numbers: list[int], samples: list[Tensor], values: Tensor) -> list[Copy]:
        """The samples of these numbers, and what was trained on that is nearest to them."""
        training = self.real.training
        assert training is not None
        shown, rows = self._shown(torch.stack(samples)), []
        for k, (i, distances, nearest) in enumerate(zip(numbers, *bank.nearest(values[numbers], BESIDE), strict=True)):
            data = training.plain.get(nearest)
            data = data if self.images else false_colors(data)
            names = [training.name(number) for number in nearest.tolist()]
            rows.append(Copy(i, shown[k], data, distances.tolist(), names))
        return rows

    def _shown(self, samples: Tensor) -> Tensor:
        """Samples as a picture has them."""
        if self.config.latent_space is None:
            return samples
        return false_colors(samples) if self.decode is None else self.decode(samples)
