"""The conditions of a network (labels, scalars, text, an interval): how they are checked, embedded and made null."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.core.errors import InputError
from ditlab.networks.embeddings import TimeEmbedding, check_sizes
from ditlab.networks.kernels import full_precision, has_values
from ditlab.networks.layers import xavier_initialised
from ditlab.networks.presets import Published

Cond = Mapping[str, Tensor]
Check = Callable[[Tensor, int | None], None]  # of a value for a batch of that size, or of any size
Tokens = Literal["parts", "text"]


class Embedded(NamedTuple):
    """Time and conditions of a batch as vectors and tokens: what a kind of conditioning works with."""

    vector: Float[Tensor, "B D"]  # c, the sum of the parts
    parts: tuple[Tensor, ...]  # (B, D) each: the time, then every condition except text
    text: Tensor | None  # (B, L + 1, D), a learned null token first; None in a network without text
    text_mask: Tensor | None  # (B, L + 1), True for tokens to read

    def tokens(self, which: Sequence[Tokens]) -> tuple[Float[Tensor, "B K D"] | None, Bool[Tensor, "B 1 1 K"] | None]:
        """The parts, the text or both as a sequence, None if it is empty; and a mask of its keys, None if all count."""
        pieces, mask = [], None
        if "parts" in which:
            pieces.append(torch.stack(self.parts, dim=1))
        if "text" in which and self.text is not None and self.text_mask is not None:
            pieces.append(self.text)
            mask = F.pad(self.text_mask, (len(self.parts) if "parts" in which else 0, 0), value=True)[:, None, None]
        return (torch.cat(pieces, dim=1) if pieces else None), mask


def check_conditions(cond: Cond | None, batch: int | None, known: Mapping[str, Check]) -> None:
    """Raise ``ValueError`` for conditions that a network does not take, by name, shape, type or range."""
    for name, value in (cond or {}).items():
        if name not in known:
            taken = f"; it takes {', '.join(map(repr, known))}" if known else ""
            build = "; build it with num_classes for labels" if name == "label" else ""
            raise ValueError(f"this network takes no condition {name!r}{taken}{build}")
        if not isinstance(value, Tensor):
            raise ValueError(f"condition {name!r} must be a tensor, not {type(value).__name__}")
        known[name](value, batch)


def _expect(valid: bool, what: str, value: Tensor) -> None:
    if not valid:
        raise ValueError(f"{what}, not {value.dtype} of shape {tuple(value.shape)}")


def check_scalar(name: str) -> Check:
    """A check that a condition is one float for each sample."""

    def check(value: Tensor, batch: int | None) -> None:
        valid = value.dim() == 1 and value.is_floating_point() and batch in (None, value.shape[0])
        _expect(valid, f"{name!r} must be one float for each of the {batch} samples", value)

    return check


def check_text_mask(mask: Tensor, batch: int | None) -> None:
    """Refuse anything but booleans (B, L)."""
    valid = mask.dim() == 2 and mask.dtype == torch.bool and batch in (None, mask.shape[0])
    _expect(valid, f"'text_mask' must be True or False for each token of each of the {batch} samples", mask)


def check_scalar_names(names: Sequence[str]) -> None:
    """Raise ``ValueError`` for names of scalars that are taken or cannot name a part of a network."""
    taken = {"time", "label", "interval", "text", "text_mask"}
    for name in names:
        if not name.isidentifier() or name in taken or hasattr(nn.ModuleDict, name) or list(names).count(name) > 1:
            raise ValueError(f"{name!r} cannot name a scalar condition; choose a new word of letters, digits and '_'")


class Labels(nn.Module):
    """Class labels as vectors: one row for each class and a last one for the null label, which is ``num_classes``.

    A network without labels has no table (``num_classes=None``). In a network with labels, no condition means the null
    label for every sample: "unconditional" is a value that is learned.

    Without a row for the null label (``null=False``) each sample needs a label; an ``InputError`` says so.
    """

    def __init__(self, num_classes: int | None, dim: int, null: bool = True) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1, or None for a network without labels")
        self.num_classes = num_classes
        self.has_null = null
        self.table = None if num_classes is None else nn.Embedding(num_classes + null, dim)
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, cond: Cond | None, batch: int) -> Float[Tensor, "B D"] | None:
        """The vectors of a batch of that size, or None on a network without labels."""
        if self.table is None:
            return None
        if not cond or "label" not in cond:
            self._need_null()
            return self.table.weight[-1].expand(batch, -1)
        return self.table(cond["label"])

    def null(self, label: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The null label in the same shape."""
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
        """Refuse anything but one label for each sample. Only a CPU's values are read: reading stalls a GPU."""
        assert self.table is not None
        valid = label.dim() == 1 and not label.is_floating_point() and batch in (None, label.shape[0])
        _expect(valid, f"labels must be whole numbers, one for each of the {batch} samples", label)
        last = self.table.num_embeddings - 1
        if has_values(label) and (label.min() < 0 or label.max() > last):
            null = ", the null label" if self.has_null else ""
            raise ValueError(f"labels run from 0 to {last}{null}, not {label.tolist()}")


class ScalarEmbedding(nn.Module):
    """A number as a vector, (B,) → (B, D), embedded like a time; NaN stands for "unknown" and has a learned vector.

    Args:
        dim, features, scale: as for ``TimeEmbedding``; the sinusoids distinguish values that differ by 1/scale to
            10000/scale.
    """

    def __init__(self, dim: int, features: int, scale: float = 1000.0) -> None:
        super().__init__()
        self.embed = TimeEmbedding(dim, features, scale)
        self.unknown = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, value: Float[Tensor, " B"] | None, batch: int) -> Float[Tensor, "B D"]:
        """The vectors of a batch of that size; no value means "unknown" for all samples."""
        if value is None:
            return self.unknown.expand(batch, -1)
        unknown = value.isnan()
        exact = value.to(torch.promote_types(torch.float32, self.unknown.dtype))
        known = self.embed(exact.masked_fill(unknown, 0.0))
        return torch.where(unknown[:, None], self.unknown, known)


class TextEmbedding(nn.Module):
    """Token features in the network's width, (B, L, D_text) → (B, L + 1, D), and which of them to read.

    The first token is learned, stands for "no text" and is always read: it is the only one that a sample without text
    reads. Tokens that are NaN, or where the mask is False, are not read.
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
        """Refuse anything but token features (B, L, D_text)."""
        valid = text.dim() == 3 and text.shape[2] == self.text_dim and text.is_floating_point()
        _expect(valid, f"'text' must be floats of shape (B, L, {self.text_dim})", text)
        _expect(batch in (None, text.shape[0]), f"'text' must hold a sequence for each of the {batch} samples", text)


class Conditioner(nn.Module):
    """Embed the time and every condition; a condition that is not given is null.

    Args:
        interval: embeds ``cond["interval"]``, t − r, MeanFlow's second time (Geng et al. 2025); absent is 0.
        scalars: name → embedding of ``cond[name]``, one float for each sample; absent or NaN is unknown.
        text: embeds ``cond["text"]`` and ``cond["text_mask"]``.
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
        """The names of ``Embedded.parts``, in order."""
        label = () if self.labels.table is None else ("label",)
        interval = () if self.interval is None else ("interval",)
        return ("time", *label, *interval, *self.scalars)

    def checks(self) -> dict[str, Check]:
        """Name → check of each condition that the network takes."""
        known: dict[str, Check] = {}
        if self.labels.table is not None:
            known["label"] = self.labels.check
        if self.interval is not None:
            known["interval"] = check_scalar("interval")
        known |= {name: check_scalar(name) for name in self.scalars}
        if self.text is not None:
            known |= {"text": self.text.check, "text_mask": check_text_mask}
        return known

    def check(self, cond: Cond | None, batch: int | None) -> None:
        """Refuse conditions that the network does not take: see ``check_conditions``."""
        check_conditions(cond, batch, self.checks())
        if cond and "text_mask" in cond and ("text" not in cond or cond["text_mask"].shape != cond["text"].shape[:2]):
            raise ValueError("'text_mask' (B, L) goes with a 'text' (B, L, D) of the same B and L")

    def null(self, cond: Cond) -> dict[str, Tensor]:
        """Their nulls, in the same shapes: the null label, NaN for scalars and text; an interval stays."""
        self.check(cond, None)
        return {name: self._null(name, value) for name, value in cond.items()}

    def _null(self, name: str, value: Tensor) -> Tensor:
        if name == "label":
            return self.labels.null(value)
        return value if name in ("interval", "text_mask") else torch.full_like(value, torch.nan)

    def forward(self, t: Float[Tensor, " B"], cond: Cond | None) -> Embedded:
        cond, batch = cond or {}, t.shape[0]
        parts = [self.time(t)]
        label = self.labels(cond, batch)
        if label is not None:
            parts.append(label)
        if self.interval is not None:
            parts.append(self.interval(cond["interval"].to(t.dtype) if "interval" in cond else torch.zeros_like(t)))
        parts += [embed(cond.get(name), batch) for name, embed in self.scalars.items()]
        text, mask = (None, None) if self.text is None else self.text(cond.get("text"), cond.get("text_mask"), batch)
        return Embedded(reduce(torch.add, parts), tuple(parts), text, mask)


def make_conditioner(
    dim: int,
    num_classes: int | None,
    interval: bool,
    scalars: Sequence[str],
    time_scale: float,
    published: Published,
    text_dim: int | None,
) -> Conditioner:
    """The conditioner of a ``DiT`` with these arguments."""
    check_scalar_names(scalars)
    check_sizes(text_dim=1 if text_dim is None else text_dim)
    features = published.time_features
    return Conditioner(
        TimeEmbedding(dim, features, time_scale, published.time_offset, published.time_frequency_shift),
        Labels(num_classes, dim, published.null_label),
        TimeEmbedding(dim, features, time_scale, at_zero=True) if interval else None,
        {name: ScalarEmbedding(dim, features) for name in scalars},
        None if text_dim is None else TextEmbedding(text_dim, dim),
    )
