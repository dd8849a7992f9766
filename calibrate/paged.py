"""Decode attention straight from KV pages: a Triton kernel, split over the keys.

Reads each cached key and value once, so that its time is affine in cached tokens, and takes all
lengths from device memory, so that it runs inside a CUDA graph. Every (sequence, KV head) is
split into parts that run side by side; a second kernel joins them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
"""Keys read at once."""

MIN_QUERY_ROWS = 16
"""Smallest tile of tensor-core products: a group of fewer query heads is filled up."""

PROGRAMS_PER_PROCESSOR = 4
"""Programs in flight per multiprocessor, by which the number of parts is chosen."""

MAX_PARTS = 32
"""Parts of one sequence's keys at most."""

DOUBLE_BUFFERED_BYTES = 256
"""Largest key of a head whose tiles have two buffers: no GPU since 2020 has less room."""

LOW = tl.constexpr(-1e30)
"""Highest score before any key: finite, so that parts without a key add zero, not nan."""


@triton.jit
def _attend_part(
    q, k, v, table, rows, lengths, spans, partial, most, total,
    scale, columns,
    page_size: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, dim: tl.constexpr,
    query_rows: tl.constexpr, tile: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Attend to one part of the keys of one sequence and KV head, with its group of queries."""
    sequence, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = heads // kv_heads
    length = tl.load(lengths + sequence).to(tl.int32)
    span = tl.load(spans + sequence).to(tl.int32)
    pages = table + tl.load(rows + sequence) * columns
    share = tl.cdiv(tl.cdiv(span, parts), tile) * tile
    first = part * share
    last = tl.minimum(first + share, span)

    dims = tl.arange(0, dim)
    members = tl.arange(0, query_rows)
    head = sequence * heads + kv_head * group + members
    real = members < group
    query = tl.load(q + head[:, None] * dim + dims[None, :], mask=real[:, None], other=0.0)
    highest = tl.full([query_rows], LOW, tl.float32)
    weight = tl.zeros([query_rows], tl.float32)
    sums = tl.zeros([query_rows, dim], tl.float32)
    for begin in range(first, last, tile):
        place = begin + tl.arange(0, tile)
        inside = place < last
        page = tl.load(pages + place // page_size, mask=inside, other=0).to(tl.int64)
        slot = (page * page_size + place % page_size) * kv_heads + kv_head
        at = slot[:, None] * dim + dims[None, :]
        key = tl.load(k + at, mask=inside[:, None], other=0.0)
        value = tl.load(v + at, mask=inside[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where((inside & (place < length))[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weights = tl.exp(score - higher[:, None])
        fade = tl.exp(highest - higher)
        weight = weight * fade + tl.sum(weights, 1)
        sums = sums * fade[:, None]
        sums += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        highest = higher
    out = head * parts + part
    tl.store(partial + out[:, None] * dim + dims[None, :], sums, mask=real[:, None])
    tl.store(most + out, highest, mask=real)
    tl.store(total + out, weight, mask=real)


@triton.jit
def _join_parts(
    partial, most, total, out,
    dim: tl.constexpr, parts: tl.constexpr, parts_tile: tl.constexpr,
):  # fmt: skip
    """Join the parts of one sequence and head."""
    head = tl.program_id(0).to(tl.int64)
    part, dims = tl.arange(0, parts_tile), tl.arange(0, dim)
    real = part < parts
    at = head * parts + part
    highest = tl.load(most + at, mask=real, other=LOW)
    fade = tl.where(real, tl.exp(highest - tl.max(highest, 0)), 0.0)
    weight = tl.sum(tl.load(total + at, mask=real, other=0.0) * fade, 0)
    sums = tl.load(partial + at[:, None] * dim + dims[None, :], mask=real[:, None], other=0.0)
    joined = tl.sum(sums * fade[:, None], 0) / weight
    tl.store(out + head * dim + dims, joined.to(out.dtype.element_ty))


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    rows: Tensor,
    lengths: Tensor,
    spans: Tensor,
    page: int,
) -> Tensor:
    """Attention of one query per sequence over its pages.

    Args:
        q: queries [B, heads, head_dim]; head_dim is a power of two.
        keys: [slots, kv_heads, head_dim], contiguous.
        values: as `keys`.
        table: pages of every table row [rows, columns], int32.
        rows: table row of each sequence [B].
        lengths: keys a sequence sees [B].
        spans: keys that are read [B]: more than `lengths` in a padded batch.
        page: tokens in a page.

    Returns:
        Like `q`.
    """
    q = q.contiguous()
    batch, heads, dim = q.shape
    kv_heads = keys.shape[1]
    parts = _parts(triton.next_power_of_2(batch) * kv_heads, q.device)
    partial = torch.empty((batch, heads, parts, dim), dtype=torch.float32, device=q.device)
    most, total = torch.empty((2, batch, heads, parts), dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    query_rows = max(MIN_QUERY_ROWS, triton.next_power_of_2(heads // kv_heads))
    _attend_part[(batch, kv_heads, parts)](
        q, keys, values, table, rows, lengths, spans, partial, most, total,
        dim**-0.5, table.shape[1],
        page_size=page, heads=heads, kv_heads=kv_heads, dim=dim,
        query_rows=query_rows, tile=TILE, parts=parts, num_warps=4, num_stages=_stages(q),
    )  # fmt: skip
    _join_parts[(batch * heads,)](
        partial, most, total, out,
        dim=dim, parts=parts, parts_tile=triton.next_power_of_2(parts), num_warps=4,
    )  # fmt: skip
    return out


def _stages(q: Tensor) -> int:
    """Return how many stages of the loop overlap; for other types two buffers are too large.

    Below five the compiler (Triton 3.6, for Hopper) gives keys and values one buffer each: a tile
    waits for the page of the next and then for its keys. Two of each take 64 KiB of 16-bit heads
    of 128.
    """
    return 5 if q.element_size() * q.shape[-1] <= DOUBLE_BUFFERED_BYTES else 2


def _parts(programs: int, device: torch.device) -> int:
    """Return into how many parts to split the keys; the same for one batch size always.

    `programs` counts the batch as the next power of two: every number of parts is a kernel of its
    own to compile, and so all of them are met when the smallest graphs are captured.
    """
    processors = 1
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = PROGRAMS_PER_PROCESSOR * processors // programs
    return int(triton.next_power_of_2(min(MAX_PARTS, max(1, wanted))))
