"""What `measure` runs: the points of the grid, their order, and what each one needs.

A point is one forward pass of a given shape. The grid covers four phases, each for the padding-free
and for the padded path:

* prefill: one prompt, equal prompts (up to 256 of 8-64 tokens among them), unequal prompts (the
  same ones for both paths), and chunks of prompts whose first part is cached (padding-free only);
* decode: batch x context, equal and unequal contexts;
* mixed: a chunk beside decodes;
* host: the least work at different numbers of sequences, where host time shows.

Its ends are the model's longest sequence, the KV cache that fits, and a cap on the tokens of a
step.

Order: the points of a phase are sorted so that every next one is the farthest from all before it
(in log lengths and counts): the corners first, then the middles of what is left. But for the first
`CORNERS`, a costly point has to be farther away than a cheap one, so that the time buys many
points. The phases take turns by their `WEIGHTS`. So every prefix of the list covers every phase,
and a run that stops early has lost the points that say least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np

from sim.costs.catalogue import DTYPE_BYTES, Model
from sim.costs.memory import activation_bytes_per_token

SHORTEST = 8
"""Shortest prompt of the grid, tokens; below it only host points."""

WEIGHTS = {"prefill": 4, "decode": 4, "mixed": 3, "host": 1}
"""Turns of a phase in one round of the padding-free points."""

PADDED_WEIGHTS = {"prefill": 4, "decode": 3, "mixed": 2, "host": 1}
"""Likewise of the padded points."""

CORNERS = 4
"""Points of a phase and path that are chosen whatever they cost."""

THRIFT = 1 / 3
"""How much the price of a point counts: one that takes 8 times as long must be twice as far off."""

RUNGS = 8
"""Different lengths in a batch of unequal ones."""

LOGIT_BYTES = 4
"""Logits are fp32 in every dtype."""

T = TypeVar("T")
Key = tuple[str, bool, str]
Price = Callable[["Point"], float]


@dataclass(frozen=True)
class Point:
    """One step to measure.

    Attributes:
        phase: prefill, decode, mixed or host.
        padded: on the padded path: one rectangle of chunks, one of caches.
        chunks: (new tokens, tokens cached before) of each prompt chunk.
        decodes: cached tokens of each decoding sequence.
    """

    phase: str
    padded: bool
    chunks: tuple[tuple[int, int], ...] = ()
    decodes: tuple[int, ...] = ()

    @property
    def lengths(self) -> str:
        """The true lengths, as text: `16x128+64`, `256@1024` (256 after 1024), `;d32x1024`."""
        chunks = "+".join(
            (f"{count}x" if count > 1 else "") + f"{new}" + (f"@{cached}" if cached else "")
            for count, (new, cached) in _runs(self.chunks)
        )
        decodes = "+".join(f"{count}x{context}" for count, context in _runs(self.decodes))
        return ";".join(part for part in (chunks, decodes and f"d{decodes}") if part)

    @property
    def key(self) -> Key:
        """What tells it from the other points of a file."""
        return (self.phase, self.padded, self.lengths)

    @property
    def charged_chunks(self) -> tuple[tuple[int, int], ...]:
        """The chunks as computed: on the padded path every row is as long as the longest."""
        if not self.padded or not self.chunks:
            return self.chunks
        longest = (max(new for new, _ in self.chunks), max(cached for _, cached in self.chunks))
        return (longest,) * len(self.chunks)

    @property
    def new_tokens(self) -> int:
        """sum(l), tokens."""
        return sum(new for new, _ in self.charged_chunks)

    @property
    def context_tokens(self) -> int:
        """sum(l + p), tokens."""
        return sum(new + cached for new, cached in self.charged_chunks)

    @property
    def quad_tokens(self) -> int:
        """sum(l * (l + 2p)), tokens squared."""
        return sum(new * (new + 2 * cached) for new, cached in self.charged_chunks)

    @property
    def batch(self) -> int:
        """Decodes."""
        return len(self.decodes)

    @property
    def kv_tokens(self) -> int:
        """Tokens the decodes hold before the step; on the padded path those of the rectangle."""
        if self.padded and self.decodes:
            return len(self.decodes) * max(self.decodes)
        return sum(self.decodes)

    @property
    def step_tokens(self) -> int:
        """Tokens that pass the dense layers."""
        return self.new_tokens + self.batch

    def kv_blocks(self, block_size: int) -> int:
        """Return the KV blocks its sequences hold after the step."""
        ends = [new + cached for new, cached in self.chunks] + [c + 1 for c in self.decodes]
        return sum(-(-end // block_size) for end in ends)

    def working_bytes(self, model: Model, dtype: str) -> int:
        """Return the memory it needs beside weights and KV cache, bytes: an estimate.

        Activations of the tokens computed, logits and, on the padded path, the mask and one layer
        of the gathered caches.
        """
        size = DTYPE_BYTES[dtype]
        total = self.step_tokens * activation_bytes_per_token(model, dtype)
        total += (len(self.chunks) + self.batch) * model.vocab * LOGIT_BYTES
        if not self.padded:
            return total
        layer_token = model.kv_bytes_per_token(dtype) // model.layers
        mask = sum(new * (new + cached) for new, cached in self.charged_chunks)
        return total + (self.context_tokens + self.kv_tokens) * layer_token + mask * size


@dataclass(frozen=True)
class Limits:
    """Ends of the grid.

    Attributes:
        max_length: longest sequence, tokens.
        num_blocks: KV blocks.
        block_size: tokens in a KV block.
        step_tokens: most prompt tokens computed in a step, padding included.
        sequences: most prompts, and most decodes, of a step.
    """

    max_length: int
    num_blocks: int
    block_size: int
    step_tokens: int
    sequences: int

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return self.num_blocks * self.block_size

    def longest(self, count: int, beside: int = 0) -> int:
        """Return how long `count` equal sequences can be, `beside` tokens of another one."""
        blocks = self.num_blocks - -(-beside // self.block_size)
        return max(0, min(self.max_length, blocks // count * self.block_size))


def grid(limits: Limits, paths: Sequence[bool], price: Price) -> list[Point]:
    """Return all points, best first.

    Args:
        limits: ends of the grid.
        paths: False: padding-free, True: padded.
        price: seconds a point will take, as far as known; only ratios matter.
    """
    queues = []
    for padded in paths:
        weights = PADDED_WEIGHTS if padded else WEIGHTS
        for phase, build in BUILDERS.items():
            points = _distinct(build(limits, padded))
            if points:
                queues.append((weights[phase], spread_out(points, price)))
    return _in_turns(queues)


def spread_out(points: Sequence[Point], price: Price) -> list[Point]:
    """Return points in an order of which every prefix covers their range.

    Starts with the smallest; every next one is the farthest from those before it: corners first,
    then the middles of the widest gaps. After `CORNERS` distances count over price**`THRIFT`.
    """
    places = np.array([_place(point) for point in points])
    spans = np.ptp(places, axis=0)
    places = places / np.where(spans > 0, spans, 1.0)
    worth = np.array([price(point) for point in points]) ** -THRIFT
    chosen = [int(np.argmin(places.sum(axis=1)))]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < len(points):
        nearest = np.minimum(nearest, np.linalg.norm(places - places[chosen[-1]], axis=1))
        nearest[chosen[-1]] = -1.0
        corners = len(chosen) < CORNERS
        chosen.append(int(np.argmax(nearest if corners else nearest * worth)))
    return [points[i] for i in chosen]


def _place(point: Point) -> list[float]:
    """Return where a point lies: counts and mean lengths, doublings being equal steps."""
    chunks = len(point.chunks)
    lengths = [new for new, _ in point.chunks] or [0]
    cached = sum(cached for _, cached in point.chunks) / max(1, chunks)
    context = sum(point.decodes) / max(1, point.batch)
    unequal = len(set(point.chunks)) > 1 or len(set(point.decodes)) > 1
    sizes = [chunks, sum(lengths) / len(lengths), cached, point.batch, context]
    return [*np.log2(1 + np.array(sizes, dtype=float)).tolist(), float(unequal)]


def _in_turns(queues: Sequence[tuple[int, Sequence[Point]]]) -> list[Point]:
    """Merge lists so that each is served in proportion to its weight, from the start."""
    served = [0] * len(queues)
    merged: list[Point] = []
    while True:
        left = [i for i, (_, points) in enumerate(queues) if served[i] < len(points)]
        if not left:
            return merged
        i = min(left, key=lambda i: (served[i] + 1) / queues[i][0])
        merged.append(queues[i][1][served[i]])
        served[i] += 1


def _prefill(limits: Limits, padded: bool) -> Iterator[Point]:
    for chunks in _equal(limits):
        yield Point("prefill", padded, chunks)
    for lengths in _unequal(limits):
        yield Point("prefill", padded, tuple((length, 0) for length in lengths))
    if not padded:
        for chunks in _with_prefix(limits):
            yield Point("prefill", padded, chunks)


def _equal(limits: Limits) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield n prompts of l tokens; of the largest steps, which cost most, a few n only."""
    longest = min(limits.max_length, limits.step_tokens)
    for length in sorted({*_powers(SHORTEST, longest, 2), longest}):
        for count in _powers(1, limits.sequences, 2):
            tokens = count * length
            if tokens > limits.step_tokens or length > limits.longest(count):
                break
            if 4 * tokens <= limits.step_tokens or count in _powers(1, limits.sequences, 16):
                yield ((length, 0),) * count
    for length in _powers(3 * SHORTEST // 2, longest, 2):
        yield ((length, 0),)


def _unequal(limits: Limits) -> Iterator[tuple[int, ...]]:
    """Yield prompts of unequal lengths whose rectangle fits: short/long halves and ladders."""
    for count in _powers(2, limits.sequences // 4, 2):
        longest = min(limits.longest(count), limits.step_tokens // count)
        for length in (longest, longest // 4):
            if length < 4 * SHORTEST:
                break
            yield ladder(length, SHORTEST, count, 2)
            yield ladder(length, SHORTEST, count, RUNGS)


def ladder(high: int, low: int, count: int, rungs: int) -> tuple[int, ...]:
    """Return `count` lengths (a power of two) from high down to low, falling by equal factors."""
    rungs = min(rungs, count)
    lengths = [round(high * (low / high) ** (i / (rungs - 1))) for i in range(rungs)]
    return tuple(length for length in lengths for _ in range(count // rungs))


def _with_prefix(limits: Limits) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield n chunks of l tokens after p cached ones."""
    for count in _powers(1, 16, 4):
        for new in _powers(2 * SHORTEST, limits.step_tokens // count, 4):
            end = limits.longest(count) - new
            for cached in sorted({*_powers(8 * SHORTEST, end, 4), end}):
                if cached >= 8 * SHORTEST:
                    yield ((new, cached),) * count


def _decode(limits: Limits, padded: bool) -> Iterator[Point]:
    for count in _powers(1, limits.sequences, 2):
        contexts = _contexts(limits, count)
        for context in contexts:
            yield Point("decode", padded, decodes=(context,) * count)
        for longest in contexts[-2:]:
            if count > 1 and longest > 2 * SHORTEST:
                yield Point("decode", padded, decodes=ladder(longest, SHORTEST, count, RUNGS))


def _contexts(limits: Limits, count: int) -> list[int]:
    """Return the contexts of `count` equal decodes, tokens; the last is the longest that fits."""
    end = limits.longest(count) - 1
    return sorted({c for c in (*_powers(2 * SHORTEST, end, 4), end) if c >= 2 * SHORTEST})


def _mixed(limits: Limits, padded: bool) -> Iterator[Point]:
    """Yield a chunk (or equal prompts, where padded) beside decodes."""
    for batch in _powers(1, limits.sequences, 4):
        for new in _powers(4 * SHORTEST, min(limits.max_length, limits.step_tokens), 4):
            end = limits.longest(batch, beside=new) - 1
            for context in _powers(8 * SHORTEST, end, 4):
                decodes = (context,) * batch
                yield Point("mixed", padded, ((new, 0),), decodes)
                if padded:
                    continue
                cached = limits.longest(1, beside=batch * (context + limits.block_size)) - new
                if cached >= 8 * SHORTEST:
                    yield Point("mixed", padded, ((new, cached),), decodes)


def _host(limits: Limits, padded: bool) -> Iterator[Point]:
    """Yield the least work at 1 sequence to the most: decodes, and prompts, of one token."""
    for count in _powers(1, min(limits.sequences, limits.step_tokens), 4):
        yield Point("host", padded, decodes=(1,) * count)
        yield Point("host", padded, ((1, 0),) * count)


BUILDERS = {"prefill": _prefill, "decode": _decode, "mixed": _mixed, "host": _host}


def _powers(first: int, last: int, factor: int) -> list[int]:
    """Return first, first*factor, ... up to last."""
    values = []
    while first <= last:
        values.append(first)
        first *= factor
    return values


def _distinct(points: Iterable[Point]) -> list[Point]:
    return list({point.key: point for point in points}.values())


def _runs(items: Sequence[T]) -> Iterator[tuple[int, T]]:
    for item, same in groupby(items):
        yield len(list(same)), item
