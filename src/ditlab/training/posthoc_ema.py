"""Averages of any length, made after training from snapshots of two or more (Karras et al. 2024, section 3.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditlab.core.disk import must_be_file
from ditlab.core.errors import InputError
from ditlab.runs.checkpoint import read_tensors, save_tensors
from ditlab.runs.weights import tensor_name
from ditlab.training.ema import exponent

ROUNDING = 2.0**-12  # root mean square of what rounding to fp16 changes, over the number itself
Array = NDArray[np.float64]


# ---- files of snapshots


def write_snapshot(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that knows the sha256 of its tensors."""
    save_tensors(path, tensors, {"sha256": _sha256(tensors)})


def read_snapshot(path: Path) -> dict[str, Tensor]:
    """The tensors of a snapshot.

    Raises:
        InputError: there is no such file, or it is not what was written.
    """
    must_be_file(path, path.parent.parent)
    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get("sha256")
        tensors = read_tensors(path)
    except (SafetensorError, InputError):
        tensors, told = {}, None
    if not tensors or told != _sha256(tensors):
        raise InputError(f"{path} is damaged: remove it, and averages are made from the other snapshots")
    return tensors


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


# ---- other lengths


class Combination(NamedTuple):
    """How an average is made from snapshots.

    Attributes:
        coefficients: (steps, widths); their sum is 1.
        expected_error: root mean square error over the size of the weights, if these move by about their own size in
            training, evenly and at random.
    """

    coefficients: Array
    expected_error: float


def combine(sigma_rel: float, step: int, steps: Sequence[int], widths: Sequence[float]) -> Combination:
    """The combination of snapshots that comes closest to the average of another relative width.

    The paper (section 3.2, appendix C.3) minimises the distance of the profiles p(τ), whose inner products are closed
    forms. Here it is the distance of their integrals P(τ) = ∫₀^τ p, for with equal ends

        ∫ Δp(τ) θ(τ) dτ = −∫ ΔP(τ) dθ(τ):

    what counts of a weight is how it moves, not where it is. Each P is (τ/t)^(γ+1) up to t and 1 from there, so that
    the inner products are closed forms too. The rounding of the snapshots is added, as far as a combination adds it up.

    Args:
        sigma_rel: of the average that is wanted.
        step: after which it is wanted.
        steps: of the snapshots, none later.
        widths: of the averages in each snapshot.
    """
    ends = np.repeat(np.asarray(steps, dtype=np.float64) / step, len(widths))
    powers = np.tile([exponent(width) + 1 for width in widths], len(steps))
    wanted = np.ones(1), np.array([exponent(sigma_rel) + 1])
    gram = inner_products((ends, powers), (ends, powers)) + ROUNDING**2 * np.eye(len(ends))
    right = inner_products((ends, powers), wanted)[:, 0]
    ones = np.ones((len(ends), 1))
    bordered = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
    coefficients = np.linalg.solve(bordered, np.append(right, 1.0))[:-1]
    distance = inner_products(wanted, wanted)[0, 0] - 2 * right @ coefficients + coefficients @ gram @ coefficients
    return Combination(coefficients.reshape(len(steps), len(widths)), float(max(distance, 0.0) ** 0.5))


def inner_products(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
    """∫₀¹ P_i(τ) P_j(τ) dτ of P(τ) = (τ/t)^k for τ ≤ t and 1 beyond, for each pair of (t, k) with t ≤ 1.

    With t ≤ u it is t·(t/u)^l/(k + l + 1) on [0, t], (u − t·(t/u)^l)/(l + 1) on [t, u], and 1 − u on [u, 1].

    Args:
        a, b: ends t and powers k, (n,) and (m,) each.
    """
    first, second = (a[0][:, None], a[1][:, None]), (b[0][None], b[1][None])
    swapped = first[0] > second[0]
    t, u = np.minimum(first[0], second[0]), np.maximum(first[0], second[0])
    k, m = np.where(swapped, second[1], first[1]), np.where(swapped, first[1], second[1])
    begun = t * (t / u) ** m
    products: Array = begun / (k + m + 1) + (u - begun) / (m + 1) + 1 - u
    return products


def combined(files: Iterable[Path], made_of: Sequence[Combination], widths: Sequence[float]) -> list[dict[str, Tensor]]:
    """The averaged parameters, fp32, for each combination; each file is read once.

    Args:
        files: the snapshots, in the order of the coefficients.
        made_of: how each average is made from them.
        widths: of the averages in each snapshot.

    Raises:
        InputError: a file is damaged, or is not of those widths.
    """
    sums: list[dict[str, Tensor]] = [{} for _ in made_of]
    for i, file in enumerate(files):
        tensors = read_snapshot(file)
        for j, width in enumerate(widths):
            start = tensor_name(width)
            found = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            shapes = {name: tensor.shape for name, tensor in found.items()}
            if not found or any(total and {n: t.shape for n, t in total.items()} != shapes for total in sums):
                raise InputError(f"{file} is no snapshot of averages of {width}: remove it, if it is of another run")
            for name, tensor in found.items():
                value = tensor.float()
                for total, combination in zip(sums, made_of, strict=True):
                    share = float(combination.coefficients[i, j])
                    total[name] = value * share if name not in total else total[name].add_(value, alpha=share)
    return sums
