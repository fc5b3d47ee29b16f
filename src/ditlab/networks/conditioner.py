"""The conditions of a network: labels, scalars, text and an interval; checked, embedded, taken away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.networks.embeddings import TimeEmbedding, check_sizes
from ditlab.networks.kernels import full_precision
from ditlab.networks.layers import xavier_initialised

Condition = Mapping[str, Tensor]
Checks = Mapping[str, Callable[[Tensor, int | None], None]]


class Conditions(NamedTuple):
    """What a batch is told, embedded: what a kind of conditioning has to work with."""

    vector: Float[Tensor, "B D"]  # c, the sum of the parts
    parts: tuple[Tensor, ...]  # (B, D) each: time, then what else the network takes but text
    text: Tensor | None  # (B, L + 1, D), a learned null token first; None on a network without text
    text_mask: Tensor | None  # (B, L + 1), False where there is nothing to read


def check_conditions(cond: Condition | None, batch: int | None, known: Checks) -> None:
    """Refuse what a network cannot be conditioned on.

    Raises:
        ValueError: a condition the network does not know, or one of the wrong shape, type or range.
    """
    for name, value in (cond or {}).items():
        if not known:
            build = "num_classes" if name == "label" else "what it is to be told"
            raise ValueError(f"this network takes no conditions, and so no {name!r}; build it with {build}")
        if name not in known:
            raise ValueError(
                f"this network takes no condition {name!r}; it takes {', '.join(map(repr, known))}"
                + ("; build it with num_classes for labels" if name == "label" else "")
            )
        if not isinstance(value, Tensor):
            raise ValueError(f"condition {name!r} must be a tensor, not {type(value).__name__}")
        known[name](value, batch)


def check_scalar_names(names: Sequence[str]) -> None:
    """Refuse names of scalars that are taken or cannot name a part of a network.

    Raises:
        ValueError: one is.
    """
    taken = {"time", "label", "interval", "text", "text_mask"}
    for name in names:
        if not name.isidentifier() or name in taken or hasattr(nn.ModuleDict, name) or list(names).count(name) > 1:
            raise ValueError(f"{name!r} cannot name a scalar condition; choose a new word of letters, digits and '_'")


def check_scalar(name: str) -> Callable[[Tensor, int | None], None]:
    """A check that a condition is one float for each sample."""

    def check(value: Tensor, batch: int | None) -> None:
        if value.dim() != 1 or not value.is_floating_point() or batch not in (None, value.shape[0]):
            raise ValueError(
                f"{name!r} must be one float for each of the {batch} samples, "
                f"not {value.dtype} of shape {tuple(value.shape)}"
            )

    return check


class Labels(nn.Module):
    """Class labels as vectors: one row per class and a last one for "no label", the null label ``num_classes``.

    A network without labels has none of these (``num_classes=None``). On a network with labels no condition means the
    null label for every sample: "unconditional" is a value that was learned.

    Args:
        num_classes: number of labels, or None.
        dim: width of a vector.
        null: whether there is a row for "no label". Without, each sample needs a label, and none can be taken away.

    Raises:
        InputError: "no label" is asked of a network that has no row for it.
    """

    def __init__(self, num_classes: int | None, dim: int, null: bool = True) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1, or None for a network without labels")
        self.num_classes = num_classes
        self.has_null = null
        self.table: nn.Embedding | None = None
        if num_classes is not None:
            self.table = nn.Embedding(num_classes + null, dim)
            nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, cond: Condition | None, batch: int) -> Float[Tensor, "B D"] | None:
        """The vectors of a batch of that size, or None on a network without labels."""
        if self.table is None:
            return None
        if not cond or "label" not in cond:
            self._need_null()
            return self.table.weight[-1].expand(batch, -1)
        return self.table(cond["label"])

    def null(self, label: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The null label, as often."""
        self._need_null()
        assert self.num_classes is not None
        return torch.full_like(label, self.num_classes)

    def _need_null(self) -> None:
        if not self.has_null:
            raise InputError(
                "this network was built without a null label (null_label=False): give each sample a label, "
                "train with condition_dropout 0 and sample without guidance"
            )

    def check(self, label: Tensor, batch: int | None) -> None:
        """Refuse what is no label; values are read on the CPU alone: a GPU need not wait, and shapes have none."""
        assert self.table is not None
        if label.dim() != 1 or label.is_floating_point() or batch not in (None, label.shape[0]):
            raise ValueError(
                f"labels must be whole numbers, one for each of the {batch} samples, "
                f"not {label.dtype} of shape {tuple(label.shape)}"
            )
        plain = type(label) is Tensor and label.device.type == "cpu"
        readable = plain and label.numel() and not torch.compiler.is_compiling()
        last = self.table.num_embeddings - 1
        if readable and (label.min() < 0 or label.max() > last):
            null = ", the null label" if self.has_null else ""
            raise ValueError(f"labels run from 0 to {last}{null}, not {label.tolist()}")


class ScalarEmbedding(nn.Module):
    """A number to a vector, (B,) → (B, D), as a time is embedded; NaN stands for "unknown" and has a learned vector.

    Args:
        dim, features, scale: those of ``TimeEmbedding``; the sinusoid tells values apart that lie 1/scale to
            10000/scale from one another.
    """

    def __init__(self, dim: int, features: int, scale: float = 1000.0) -> None:
        super().__init__()
        self.embed = TimeEmbedding(dim, features, scale)
        self.unknown = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, value: Float[Tensor, " B"] | None, batch: int) -> Float[Tensor, "B D"]:
        """The vectors of a batch of that size; without a value, that of "unknown" for all."""
        if value is None:
            return self.unknown.expand(batch, -1)
        unknown = value.isnan()
        exact = value.to(torch.promote_types(torch.float32, self.unknown.dtype))
        known = self.embed(exact.masked_fill(unknown, 0.0))
        return torch.where(unknown[:, None], self.unknown, known)


class TextEmbedding(nn.Module):
    """Token features to the network's width, (B, L, D_text) → (B, L + 1, D), and which of them are to be read.

    The first token is a learned one that stands for "no text" and is always read, so that a sample without text reads
    it alone. A token that is NaN, or that the mask says not to read, is not read.

    Args:
        text_dim, dim: widths D_text and D.
    """

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.projection = xavier_initialised(nn.Linear(text_dim, dim))
        self.null_token = nn.Parameter(0.02 * torch.randn(dim))

    def forward(
        self, text: Float[Tensor, "B L T"] | None, mask: Bool[Tensor, "B L"] | None, batch: int
    ) -> tuple[Float[Tensor, "B K D"], Bool[Tensor, "B K"]]:
        first = self.null_token.expand(batch, 1, -1)
        always = torch.ones(batch, 1, dtype=torch.bool, device=first.device)
        if text is None:
            return first, always
        read = ~text.isnan().any(-1)
        if mask is not None:
            read = read & mask
        with full_precision(first):
            tokens = self.projection(text.to(first.dtype).masked_fill(~read[..., None], 0.0))
        return torch.cat([first, tokens], dim=1), torch.cat([always, read], dim=1)

    def check(self, text: Tensor, batch: int | None) -> None:
        """Refuse what are no token features of the right width."""
        if text.dim() != 3 or text.shape[2] != self.text_dim or not text.is_floating_point():
            raise ValueError(
                f"'text' must be floats of shape (B, L, {self.text_dim}), not {text.dtype} of {tuple(text.shape)}"
            )
        if batch not in (None, text.shape[0]):
            raise ValueError(f"'text' must hold a sequence for each of the {batch} samples, not {len(text)}")


def check_text_mask(mask: Tensor, batch: int | None) -> None:
    """Refuse what is no mask of a batch of sequences."""
    if mask.dim() != 2 or mask.dtype != torch.bool or batch not in (None, mask.shape[0]):
        raise ValueError(
            f"'text_mask' must be True or False for each token of each of the {batch} samples, "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )


class Conditioner(nn.Module):
    """Embed the time and every condition.

    Args:
        time: the embedding of t.
        labels: of class labels.
        interval: of ``cond["interval"]``, t − r, MeanFlow's second time (Geng et al. 2025); absent is 0.
        scalars: name → embedding of ``cond[name]``, one float for each sample; absent or NaN is unknown.
        text: of ``cond["text"]`` and ``cond["text_mask"]``.

    A condition that is not given is its null. ``null`` gives the same conditions, of the same shapes, taken away.
    """

    def __init__(
        self,
        time: TimeEmbedding,
        labels: Labels,
        interval: TimeEmbedding | None = None,
        scalars: Mapping[str, ScalarEmbedding] | None = None,
        text: TextEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.time = time
        self.labels = labels
        self.interval = interval
        self.scalars = nn.ModuleDict(scalars or {})
        self.text = text

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of ``Conditions.parts``, in order."""
        label = () if self.labels.table is None else ("label",)
        interval = () if self.interval is None else ("interval",)
        return ("time", *label, *interval, *self.scalars)

    def checks(self) -> dict[str, Callable[[Tensor, int | None], None]]:
        """Name → check of each condition that is taken."""
        known: dict[str, Callable[[Tensor, int | None], None]] = {}
        if self.labels.table is not None:
            known["label"] = self.labels.check
        if self.interval is not None:
            known["interval"] = check_scalar("interval")
        known |= {name: check_scalar(name) for name in self.scalars}
        if self.text is not None:
            known |= {"text": self.text.check, "text_mask": check_text_mask}
        return known

    def check(self, cond: Condition | None, batch: int | None) -> None:
        """Refuse what cannot be conditioned on; see ``check_conditions``."""
        check_conditions(cond, batch, self.checks())
        if cond and "text_mask" in cond and ("text" not in cond or cond["text_mask"].shape != cond["text"].shape[:2]):
            raise ValueError("'text_mask' (B, L) goes with a 'text' (B, L, D) of the same B and L")

    def null(self, cond: Condition) -> dict[str, Tensor]:
        """The same conditions taken away: the null label, NaN for scalars and text; the interval is no condition."""
        self.check(cond, None)
        return {name: self._null(name, value) for name, value in cond.items()}

    def _null(self, name: str, value: Tensor) -> Tensor:
        if name == "label":
            return self.labels.null(value)
        return value if name in ("interval", "text_mask") else torch.full_like(value, torch.nan)

    def forward(self, t: Float[Tensor, " B"], cond: Condition | None) -> Conditions:
        cond, batch = cond or {}, t.shape[0]
        parts = [self.time(t)]
        label = self.labels(cond, batch)
        if label is not None:
            parts.append(label)
        if self.interval is not None:
            parts.append(self.interval(cond["interval"].to(t.dtype) if "interval" in cond else torch.zeros_like(t)))
        parts += [embed(cond.get(name), batch) for name, embed in self.scalars.items()]
        text, mask = (None, None) if self.text is None else self.text(cond.get("text"), cond.get("text_mask"), batch)
        return Conditions(total(parts), tuple(parts), text, mask)


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum, from the first to the last."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def make_conditioner(
    time: TimeEmbedding,
    labels: Labels,
    dim: int,
    features: int,
    interval: bool = False,
    scalars: Sequence[str] = (),
    text_dim: int | None = None,
) -> Conditioner:
    """A conditioner of width ``dim`` for these conditions; ``features`` is the width of all sinusoidal features.

    Raises:
        ValueError: a name that cannot be a scalar's; a width of text that is not above 0.
    """
    check_scalar_names(scalars)
    check_sizes(text_dim=1 if text_dim is None else text_dim)
    return Conditioner(
        time,
        labels,
        TimeEmbedding(dim, features, time.scale, at_zero=True) if interval else None,
        {name: ScalarEmbedding(dim, features) for name in scalars},
        None if text_dim is None else TextEmbedding(text_dim, dim),
    )
