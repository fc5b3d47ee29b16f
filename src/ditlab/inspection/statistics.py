"""Attention maps in numbers: how wide and how far attention spreads, how much stays on itself or on the object."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def brightness(x0: Float[Tensor, "*B C H W"], grid: tuple[int, int]) -> Float[Tensor, "*B N"]:
    """Mean brightness of each patch, [−1, 1] mapped to [0, 1]: on a dark background, how much of it is object."""
    light = ((x0.float() + 1) / 2).clamp(0, 1).mean(-3, keepdim=True)  # (..., 1, H, W)
    return F.adaptive_avg_pool2d(light, grid).flatten(-3)


def offsets(grid: tuple[int, int]) -> Int[Tensor, "N N 2"]:
    """Rows and columns from each patch to each other one; patches run row by row."""
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))  # (N, 2)
    return places[:, None] - places


def distances(grid: tuple[int, int]) -> Float[Tensor, "N N"]:
    """Euclidean distance between the centres of patches, in patches."""
    return torch.linalg.vector_norm(offsets(grid).float(), dim=-1)


def within(grid: tuple[int, int], radius: int) -> Bool[Tensor, "N N"]:
    """Whether two patches are at most so many rows and columns apart."""
    return offsets(grid).abs().amax(-1) <= radius


def neighbourhood(grid: tuple[int, int]) -> Float[Tensor, "N N"]:
    """1 where a key is the query itself or one of its (up to eight) neighbours, 0 elsewhere."""
    return within(grid, 1).float()


def query_statistics(
    rows: Float[Tensor, "... Q N"], queries: Tensor, grid: tuple[int, int], object_share: Float[Tensor, "... N"]
) -> dict[str, Float[Tensor, "... Q"]]:
    """Statistics of each query's row of attention, which sums to 1.

    Args:
        rows: attention of Q queries to all N = rows · columns keys of the grid.
        queries: (Q,) which queries these are.
        grid: rows and columns of patches.
        object_share: how much of each patch is object, from 0 to 1.

    Returns:
        entropy: −Σ A·log₂ A in bits; log₂ N for a uniform row.
        distance: Σ A·|position of query − position of key|, in patches.
        diagonal_rank: 1 + number of keys that get more attention than the query itself.
        inside: Σ A·object_share: attention that lands on the object.
        near: attention to itself and its neighbours.
    """
    own = rows.gather(-1, queries.expand(*rows.shape[:-2], -1)[..., None])  # (..., Q, 1)
    return {
        "entropy": torch.special.entr(rows).sum(-1) / torch.log(torch.tensor(2.0)),
        "distance": (rows * distances(grid)[queries]).sum(-1),
        "diagonal_rank": 1 + (rows > own).sum(-1).float(),
        "inside": (rows * object_share[..., None, :]).sum(-1),
        "near": (rows * neighbourhood(grid)[queries]).sum(-1),
    }


def map_statistics(
    per_query: dict[str, Float[Tensor, "... N"]], grid: tuple[int, int], object_share: Float[Tensor, "... N"]
) -> dict[str, Float[Tensor, ...]]:
    """Means of ``query_statistics`` over all N queries of a map, and the values that a uniform map would give.

    ``inside`` weights the queries by how much of them is object, ``near`` by how much is background; ``inside_chance``
    and ``near_chance`` are those of a uniform map. ``diagonal_first`` is the share of queries that attend to themselves
    most. Without any object (background) the value is 0.
    """
    background = 1 - object_share
    near_by_chance = neighbourhood(grid).mean(1).expand_as(object_share)
    rank = per_query["diagonal_rank"]
    return {
        "entropy": per_query["entropy"].mean(-1),
        "distance": per_query["distance"].mean(-1),
        "diagonal_rank": rank.mean(-1),
        "diagonal_first": (rank == 1).float().mean(-1),
        "inside": _weighted(per_query["inside"], object_share),
        "inside_chance": object_share.mean(-1).expand_as(rank.mean(-1)),
        "near": _weighted(per_query["near"], background),
        "near_chance": _weighted(near_by_chance, background).expand_as(rank.mean(-1)),
    }


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum(-1)
    return (values * weights).sum(-1) / torch.where(total > 0, total, torch.ones_like(total))
