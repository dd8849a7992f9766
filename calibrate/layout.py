"""Where every token of a step is: packed one after another, or in padded rectangles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibrate.attention import Group, Kernel, PagedKernel
from calibrate.cache import TRASH_ROW, PagedCache


@dataclass(frozen=True)
class Gathered:
    """Attention of packed or padded tokens, to their own keys or to keys gathered from pages.

    Attributes:
        kernel: what attends.
        cache: where cached keys and values are.
        group: lengths, for the kernel.
        key_slots: cache slots of all keys [K]; `None`: the keys are those of the tokens.
    """

    kernel: Kernel
    cache: PagedCache
    group: Group
    key_slots: Tensor | None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend in one layer, after keys and values of the tokens are in the cache."""
        if self.key_slots is not None:
            k = self.cache.keys[layer].index_select(0, self.key_slots)
            v = self.cache.values[layer].index_select(0, self.key_slots)
        return self.kernel(q, k, v, self.group)


@dataclass(frozen=True)
class InPages:
    """Attention of decodes that reads the pages in place.

    Attributes:
        kernel: what attends.
        cache: where keys and values are.
        rows: page-table row of each sequence [B].
        lengths: keys each sequence sees [B].
        spans: keys that are read [B].
    """

    kernel: PagedKernel
    cache: PagedCache
    rows: Tensor
    lengths: Tensor
    spans: Tensor

    def __call__(self, layer: int, q: Tensor, _k: Tensor, _v: Tensor) -> Tensor:
        """Attend in one layer, after keys and values of the tokens are in the cache."""
        cache, lengths = self.cache, (self.lengths, self.spans)
        keys, values = cache.keys[layer], cache.values[layer]
        return self.kernel(q, keys, values, cache.table, self.rows, *lengths, cache.block_size)


@dataclass(frozen=True)
class Part:
    """The chunks of a step, or its decodes.

    Attributes:
        positions: place of each token in its sequence [T]; padding goes on counting.
        rows: page-table row each token is written to [T]; padding goes to the spare page.
        ends: the last real token of each sequence, counted within the part [n].
        attention: how the tokens attend.
    """

    positions: Tensor
    rows: Tensor
    ends: Tensor
    attention: Gathered | InPages


def packed(
    cache: PagedCache,
    kernel: Kernel,
    rows: Sequence[int],
    cached: Sequence[int],
    new: Sequence[int],
) -> Part:
    """Lay sequences out one after another, without padding.

    Args:
        cache: whose table the rows belong to.
        kernel: what attends.
        rows: page-table row of each sequence.
        cached: tokens of each sequence in the cache.
        new: tokens each sequence adds.
    """
    device = cache.table.device
    totals = [before + adds for before, adds in zip(cached, new, strict=True)]
    slots = None
    if any(cached):
        # on the device: prefixes of 100,000 tokens would take the host a millisecond
        lens = np.asarray(totals)
        of_each = _on(device, np.asarray(rows), np.cumsum(lens) - lens, lens)
        count = sum(totals)
        owners, starts = of_each[:2].repeat_interleave(of_each[2], 1, output_size=count)
        slots = cache.slots(owners, torch.arange(count, device=device) - starts)
    tokens = _on(device, _count(new) + np.repeat(cached, new), np.repeat(rows, new))
    ends = _on(device, np.cumsum(new) - 1)[0]
    attention = Gathered(kernel, cache, Group.of(new, totals, device), slots)
    return Part(tokens[0], tokens[1], ends, attention)


def padded(
    cache: PagedCache,
    kernel: Kernel,
    rows: Sequence[int],
    cached: Sequence[int],
    new: Sequence[int],
) -> Part:
    """Lay sequences out as a rectangle: as many tokens and cached ones as the longest.

    Arguments as of `packed`.
    """
    device = cache.table.device
    n, width, prefix = len(new), max(new), max(cached)
    column = np.arange(width)
    # padding behind the longest sequence a model takes has no position of its own
    places = np.minimum(np.asarray(cached)[:, None] + column, cache.max_tokens - 1)
    real = column < np.asarray(new)[:, None]
    owners = np.where(real, np.asarray(rows)[:, None], TRASH_ROW)
    tokens = _on(device, places.ravel(), owners.ravel())
    ends = _on(device, np.arange(n) * width + new - 1)[0]
    slots = seen = None
    total = prefix + width
    if prefix:
        key = torch.arange(total, device=device)
        slots = cache.slots(_on(device, np.asarray(rows))[0][:, None], key).flatten()
        seen = (key <= tokens[0].reshape(n, width, 1))[:, None]
    group = Group.of([width] * n, [total] * n, device, seen)
    return Part(tokens[0], tokens[1], ends, Gathered(kernel, cache, group, slots))


def in_pages(cache: PagedCache, kernel: PagedKernel, inputs: Tensor) -> Part:
    """Lay decodes out that read their pages in place.

    Args:
        cache: whose table the rows belong to.
        kernel: what attends.
        inputs: page-table row, position of the new token and keys to read [3, B], on the device.
    """
    rows, positions, spans = inputs.unbind()
    ends = torch.arange(len(rows), device=rows.device)
    attention = InPages(kernel, cache, rows, positions + 1, spans)
    return Part(positions, rows, ends, attention)


def _count(lens: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return 0, 1, … for each length, one after another."""
    starts = np.cumsum(lens) - lens
    return np.arange(sum(lens)) - np.repeat(starts, lens)


def _on(device: torch.device, *arrays: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
    """Return arrays of one length as the rows of one tensor: one copy to the device."""
    return torch.from_numpy(np.stack(arrays).astype(np.int64)).to(device)
