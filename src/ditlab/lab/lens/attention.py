"""Attention maps of one image, computed for the layers, heads and queries asked for and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.inspection.probe import attention_layers, attention_map
from ditlab.inspection.statistics import brightness, query_statistics
from ditlab.networks.dit import DiT
from ditlab.networks.layers import CrossAttention

Head = int | Literal["mean"]
CHUNK = 128  # queries at a time: what is in memory at once grows with N, not with N²
WHOLE = 256  # tokens up to which a map is shown cell by cell


class _Enough(Exception):
    """Raised inside a forward pass whose further layers nobody asked for."""


class QueriesAndKeys(NamedTuple):
    """What went into one attention layer, for a batch; the first ``patches`` of its M tokens are patches or pixels."""

    q: Float[Tensor, "B h M d"]
    k: Float[Tensor, "B h M d"]
    mask: Bool[Tensor, "B 1 1 M"] | None
    patches: int


@torch.no_grad()
def queries_and_keys(
    network: nn.Module, forward: Callable[[], Any], layers: Sequence[int]
) -> dict[int, QueriesAndKeys]:
    """Run ``forward`` as far as the last of ``layers``, and keep q and k of those layers."""
    modules = attention_layers(network)
    patches = len(network.patches) if isinstance(network, DiT) else None
    kept: dict[int, QueriesAndKeys] = {}

    def keep(layer: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        q, k, mask = inputs[0].float(), inputs[1].float(), inputs[3] if len(inputs) > 3 else None
        kept[layer] = QueriesAndKeys(q, k, mask, patches or q.shape[2])
        if len(kept) == len(layers):
            raise _Enough

    with suppress(_Enough), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(modules[layer].register_forward_pre_hook(partial(keep, layer)))
        forward()
    return kept


def map_rows(layer: QueriesAndKeys, head: Head, queries: Sequence[int]) -> Float[Tensor, "B Q N"]:
    """Rows of a head's map, or of the mean over all heads, to the patches; what is missing from 1 goes elsewhere."""
    return split_rows(layer, head, queries)[0]


def split_rows(
    layer: QueriesAndKeys, head: Head, queries: Sequence[int]
) -> tuple[Float[Tensor, "B Q N"], Float[Tensor, "B Q K"]]:
    """``map_rows``, and what the same rows give to the K tokens after the patches: K is 0 where there are none."""
    heads = None if head == "mean" else [head]
    rows = attention_map(layer.q, layer.k, heads, queries, layer.mask).mean(1)  # (B, Q, M)
    return rows[..., : layer.patches], rows[..., layer.patches :]


@torch.no_grad()
def cross_shares(network: nn.Module, forward: Callable[[], Any]) -> Float[Tensor, "L K"]:
    """What each cross-attention of a network gives to each token it reads; mean over samples, heads and queries."""
    shares: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        q, k, mask = inputs[0], inputs[1], inputs[3] if len(inputs) > 3 else None
        shares.append(attention_map(q, k, mask=mask).mean((0, 1, 2)))

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, CrossAttention):
                hooks.enter_context(module.attention.register_forward_pre_hook(keep))
        forward()
    return torch.stack(shares)


def row_chunks(layer: QueriesAndKeys) -> Iterator[list[int]]:
    """All queries of a layer, some at a time."""
    count = layer.patches
    return (list(range(first, min(first + CHUNK, count))) for first in range(0, count, CHUNK))


def whole_map(layer: QueriesAndKeys, head: Head) -> Float[Tensor, "P P"]:
    """The first image's map: every cell, or means over cells where there are more than 256 tokens."""
    count = layer.patches
    rows = [_pooled(map_rows(layer, head, queries)[0], count) for queries in row_chunks(layer)]
    whole = torch.cat(rows)  # (N, min(N, 256))
    return whole if count <= WHOLE else _pooled(whole.T.contiguous(), count).T.contiguous()


def _pooled(rows: Tensor, count: int) -> Tensor:
    return rows if count <= WHOLE else F.adaptive_avg_pool1d(rows[None], WHOLE)[0]


def per_query(
    layer: QueriesAndKeys, head: Head, grid: tuple[int, int], x0: Float[Tensor, "B C H W"]
) -> dict[str, Tensor]:
    """Statistics of each row of a map among patches, and how much of each patch is object, (B, N) each.

    Where there are K tokens after the patches, also ``to_tokens``, (B, N, K): what each row gives them.
    """
    chunks, share = [], brightness(x0, grid).cpu()
    for queries in row_chunks(layer):
        rows, others = split_rows(layer, head, queries)
        rows, others = rows.cpu(), others.cpu()
        if others.shape[-1]:
            rows = rows / rows.sum(-1, keepdim=True)
        chunk = query_statistics(rows, torch.tensor(queries), grid, share)
        chunks.append(chunk | ({"to_tokens": others} if others.shape[-1] else {}))
    found = {name: torch.cat([chunk[name] for chunk in chunks], dim=1) for name in chunks[0]}
    return found | {"object_share": share}


def one_row(layer: QueriesAndKeys, head: Head, query: int, direction: str) -> Float[Tensor, " N"]:
    """Where a patch looks (``"from"``: its row of the map), or who looks at it (``"to"``: its column)."""
    if direction == "from":
        return map_rows(layer, head, [query])[0, 0]
    return torch.cat([map_rows(layer, head, queries)[0, :, query] for queries in row_chunks(layer)])


def thumbnails(layer: QueriesAndKeys, query: int, direction: str, grid: tuple[int, int]) -> Float[Tensor, "h r c"]:
    """``one_row`` of every head, laid out on the grid of patches, at most 16 × 16."""
    heads = range(layer.q.shape[1])
    if direction == "from":
        rows = attention_map(layer.q, layer.k, None, [query], layer.mask)[0, :, 0, : layer.patches]  # (h, N)
    else:
        rows = torch.stack([one_row(layer, head, query, direction) for head in heads])
    tiles = rows.reshape(len(heads), *grid)
    small = (min(grid[0], 16), min(grid[1], 16))
    return tiles if small == grid else F.adaptive_avg_pool2d(tiles[None], small)[0]
