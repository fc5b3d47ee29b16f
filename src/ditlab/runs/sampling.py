"""How a run draws: solver, times and guidance from its configuration, its conditions, and the clamp of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.config import Config, SamplingConfig
from ditlab.core.distributed import ALONE, Ranks
from ditlab.core.errors import InputError
from ditlab.core.malloc import freed_memory_kept
from ditlab.data.conditions import AnyCondition, Conditions, Label, Scalar
from ditlab.diffusion.guidance import ClassifierFree, Guidance, Interval, Rescaled
from ditlab.diffusion.process import Process


def build_drawing(sampling: SamplingConfig, process: Process, guided: bool) -> dict[str, Any]:
    """The arguments of ``Process.sample`` that a configuration's sampling stands for; no guidance if not ``guided``.

    Raises:
        InputError: its settings do not go together, or not with the process.
    """
    grid = None if sampling.grid == "auto" else sampling.grid
    try:
        solver = process.stepper(sampling.solver)
        process.sampling_times(sampling.steps, grid, sampling.shift)
        guidance = _guidance(sampling) if guided and sampling.guidance != 1 else None
    except ValueError as error:
        raise InputError(str(error)) from None
    return {"steps": sampling.steps, "solver": solver, "guidance": guidance, "grid": grid, "shift": sampling.shift}


def _guidance(sampling: SamplingConfig) -> Guidance:
    guidance: Guidance = ClassifierFree(sampling.guidance, sampling.guidance_channels)
    if sampling.guidance_rescale:
        guidance = Rescaled(guidance, sampling.guidance_rescale)
    return guidance if sampling.guidance_interval is None else Interval(guidance, *sampling.guidance_interval)


def conditioned(
    conditions: Conditions, n: int, cond: Mapping[str, Any] | None = None, first: int = 0
) -> dict[str, Tensor]:
    """What the network is told of samples ``first`` to ``first + n − 1``.

    Args:
        conditions: of the data.
        n: how many samples.
        cond: raw values by name, one for all samples or one for each: numbers or names of classes; scalars in their
            unit, NaN for unknown; features of text (L, dim) or (n, L, dim), and beside them "text_mask" (L,) or (n, L).
            A label that is not given is i mod classes for sample i; other conditions that are not given are unknown.
        first: number of the first sample.

    Raises:
        InputError: a condition that the data do not have, or values that do not fit it.
    """
    given = dict(cond or {})
    allowed = {*conditions} | ({"text_mask"} if "text" in conditions else set())
    if unknown := sorted({*given} - allowed):
        known = f"; there are {', '.join(sorted(allowed))}" if allowed else ""
        raise InputError(f"trained without {', '.join(name + 's' * (name == 'label') for name in unknown)}{known}")
    found: dict[str, Tensor] = {}
    for name, kind in conditions.items():
        if isinstance(kind, Label) and name not in given:
            found[name] = torch.arange(first, first + n) % len(kind)
        elif name in given:
            found[name] = _values(name, kind, given[name], n)
    if "text_mask" in given:
        found["text_mask"] = _for_each("text_mask", torch.as_tensor(given["text_mask"]).bool(), n, 1)
    return found


def _values(name: str, kind: AnyCondition, value: Any, n: int) -> Tensor:
    """The values of one condition as the network sees them, one for each of n samples."""
    if isinstance(kind, Label):
        if isinstance(value, str):
            value = class_number(kind.names, value)
        if isinstance(value, list | tuple):
            value = [class_number(kind.names, one) if isinstance(one, str) else one for one in value]
        labels = torch.as_tensor(value).cpu()
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError(f"{name}s are whole numbers or names of classes, not {str(value)[:80]}")
        labels = _for_each(name, labels.long(), n, 0)
        if labels.min() < 0 or labels.max() >= len(kind):
            raise InputError(f"{name}s run from 0 to {len(kind) - 1}, not {str(value)[:80]}")
        return labels
    try:
        number = torch.as_tensor(value, dtype=torch.float32).cpu()
    except (TypeError, ValueError):
        raise InputError(f"{name} takes numbers, not {str(value)[:80]!r}") from None
    if isinstance(kind, Scalar):
        return (_for_each(name, number, n, 0) - kind.mean) / kind.std
    if number.shape[-1:] != (kind.dim,):
        raise InputError(f"{name} takes features of shape (L, {kind.dim}) or (n, L, {kind.dim})")
    return _for_each(name, number, n, 2)


def _for_each(name: str, value: Tensor, n: int, dims: int) -> Tensor:
    """A value of so many dimensions for each of n samples: the same for all, or as given."""
    if value.dim() == dims:
        return value.expand(n, *value.shape)
    if value.dim() != dims + 1 or len(value) != n:
        raise InputError(f"{name} takes one value, or one for each of the {n} samples, not {tuple(value.shape)}")
    return value


def class_number(names: Sequence[str], word: str) -> int:
    """The number of a class by its name or, where no class has that name, by its number.

    Raises:
        InputError: there is no such class; the first ones are listed.
    """
    if word in names:
        return names.index(word)
    if word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < len(names):
        return int(word)
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(names[:20])) + (", …" if len(names) > 20 else "")
    raise InputError(f"labels run from 0 to {len(names) - 1}, not {word[:80]}: {listed}")


def draw(
    process: Process,
    n: int,
    shape: Sequence[int],
    cond: Mapping[str, Tensor],
    ranks: Ranks = ALONE,
    batch_size: int | None = None,
    first: int = 0,
    **drawing: Any,
) -> Float[Tensor, "n ..."]:
    """Samples ``first`` to ``first + n − 1``, not clamped; of several processes each draws a share, and all get all.

    Args:
        process: draws them.
        n, shape: how many, and of which shape.
        cond: what the network is told of each, as ``conditioned`` gives it.
        ranks: the processes.
        batch_size: drawn at a time; it changes nothing but memory and speed.
        first: number of the first sample.
        drawing: other arguments of ``Process.sample``, as ``build_drawing`` gives them.

    Raises:
        InputError: arguments that do not go together.
    """
    own, pieces = ranks.share(n), []
    for begin in range(0, len(own), batch_size or len(own)):
        some = own[begin : begin + (batch_size or len(own))]
        chosen = torch.tensor(some).clamp(max=n - 1)
        told = {name: value[chosen] for name, value in cond.items()} or None
        try:
            with freed_memory_kept(process.like().device.type):
                pieces.append(process.sample(len(some), shape, cond=told, first=first + some[0], **drawing))
        except ValueError as error:
            raise InputError(str(error)) from None
    return ranks.gather(torch.cat(pieces))[:n]


def clamped(samples: Tensor, config: Config) -> Tensor:
    """Images and videos brought into [−1, 1]; points, signals and latents as they are."""
    return samples if samples.dim() < 4 or config.latent_space is not None else samples.clamp(-1, 1)
