"""The schedulers of vLLM, V0 and V1, as naive loops: the reference for `continuous`.

Written from what vLLM's schedulers do, step by step and request by request, with nothing of our
engine: no spans, no phase counters, no heaps. Lists are walked and sorted as a whole every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Chunk = tuple[int, int]
"""Request and new tokens."""


@dataclass
class Row:
    """A request: what it has cached (`computed`) of its prompt and the tokens it has emitted."""

    id: int
    arrival: int
    prompt: int
    output: int
    priority: int = 0
    """Smaller is more urgent; the same for all: first come, first served."""
    emitted: int = 0
    computed: int = 0
    blocks: int = 0
    decoding: bool = False
    """Whether all that was to be prefilled is, or is on its way."""
    in_flight: int = 0
    """Tokens that steps under way will emit (asynchronous scheduling)."""
    first: int = -1
    finish: int = -1
    preemptions: int = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        """Order of service by priority, then arrival."""
        return (self.priority, self.arrival, self.id)

    @property
    def tokens(self) -> int:
        """Known tokens: all but the last will be or are cached when it decodes."""
        return self.prompt + self.emitted


@dataclass
class Step:
    """What one forward pass holds.

    Attributes:
        chunks: prompts, in order.
        decodes: requests that decode, sorted.
        kv: tokens those have cached.
        cached: tokens each chunk has cached before.
        start: when it starts.
    """

    chunks: list[Chunk] = field(default_factory=list)
    decodes: list[int] = field(default_factory=list)
    kv: int = 0
    cached: list[int] = field(default_factory=list)
    start: int = -1


class Scheduler:
    """What both versions share: queues, blocks, one entry to form a step."""

    def __init__(self, blocks: int, block_size: int, max_num_seqs: int, budget: int) -> None:
        self.blocks = self.free = blocks
        self.size = block_size
        self.max_num_seqs = max_num_seqs
        self.budget = budget
        self.waiting: list[Row] = []
        self.running: list[Row] = []
        self.swapped: list[Row] = []
        self.evictions = 0

    def form(self) -> Step:
        """Form the next step; one without chunks and decodes is none."""
        raise NotImplementedError

    def needed(self, row: Row, tokens: int) -> int:
        """Blocks a request lacks to cache so many tokens more."""
        return max(-(-(row.computed + tokens) // self.size) - row.blocks, 0)

    def take(self, row: Row, tokens: int) -> bool:
        """Give a request the blocks for so many tokens more, if there are enough."""
        blocks = self.needed(row, tokens)
        if blocks > self.free:
            return False
        self.free -= blocks
        row.blocks += blocks
        return True

    def give_back(self, row: Row) -> None:
        """Free a request's blocks."""
        self.free += row.blocks
        row.blocks = 0

    def drop(self, row: Row) -> None:
        """Preempt by recompute: all of it is to be prefilled again, before all who wait."""
        self.give_back(row)
        row.computed = 0
        row.decoding = False
        if row.emitted + row.in_flight < row.output:  # else it finishes nevertheless
            row.preemptions += 1
        self.evictions += 1
        self.waiting.insert(0, row)

    def done(self, row: Row) -> None:
        """Let a request go."""
        self.give_back(row)
        self.running.remove(row)


class V1(Scheduler):
    """Running requests in admission order, then waiting ones, under one budget.

    Args:
        blocks: KV blocks.
        block_size: tokens in one.
        max_num_seqs: running requests, at most.
        budget: tokens of a step, at most.
        threshold: tokens of one prompt in a step, at most.
        whole: admit only what fits whole (`scheduler_reserve_full_isl`).
        by_priority: waiting requests go by rank, and the running one of lowest rank is evicted.
        stops: with `by_priority`, who evicts itself ends the walk: those admitted after it are in
            no chunk and decode not in this step, as in vLLM.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        max_num_seqs: int,
        budget: int,
        threshold: int = 0,
        whole: bool = False,
        by_priority: bool = False,
        stops: bool = False,
    ) -> None:
        super().__init__(blocks, block_size, max_num_seqs, budget)
        self.threshold = threshold or budget
        self.whole = whole
        self.by_priority = by_priority
        self.stops = stops or not by_priority

    def form(self) -> Step:
        """Walk the running requests, then the waiting ones."""
        taken: dict[int, tuple[Row, int]] = {}
        before = self.evictions
        self.walk(taken)
        left = self.budget - sum(tokens for _, tokens in taken.values())
        if self.by_priority:
            self.waiting.sort(key=lambda row: row.rank)
        while self.evictions == before and self.waiting and left > 0:
            row = self.waiting[0]
            tokens = min(row.tokens, self.threshold, left)
            if len(self.running) == self.max_num_seqs:
                break
            if self.whole and self.needed(row, row.tokens) > self.free:
                break
            if not self.take(row, tokens):
                break
            self.running.append(self.waiting.pop(0))
            taken[row.id] = (row, tokens)
            left -= tokens
        step = Step()
        for row, tokens in taken.values():
            self.add(step, row, tokens)
        return step

    def walk(self, taken: dict[int, tuple[Row, int]]) -> None:
        """Give the running requests their tokens, in order of admission."""
        for row in list(self.running):
            left = self.budget - sum(tokens for _, tokens in taken.values())
            if row not in self.running or left <= 0:
                continue
            if row.in_flight and row.emitted + row.in_flight >= row.output:
                continue  # its last token is on its way
            tokens = min(row.tokens + row.in_flight - row.computed, self.threshold, left)
            while not self.take(row, tokens):
                victim = self.running[-1]
                if self.by_priority:
                    victim = max(self.running, key=lambda other: other.rank)
                self.running.remove(victim)
                taken.pop(victim.id, None)
                self.drop(victim)
                if victim is row:
                    break
            else:
                taken[row.id] = (row, tokens)
                continue
            if self.stops:
                return

    def add(self, step: Step, row: Row, tokens: int) -> None:
        """Put a request into the step."""
        if row.decoding:
            step.decodes.append(row.id)
            step.kv += row.computed
        else:
            step.chunks.append((row.id, tokens))
            step.cached.append(row.computed)


class V0(Scheduler):
    """Whole prompts alone in a step when some fit, else all decodes.

    Args:
        blocks: KV blocks.
        block_size: tokens in one.
        max_num_seqs: running requests, at most.
        budget: prompt tokens of a step, at most.
        watermark: blocks kept free at admission.
        padded: count a batch as its number of prompts times the longest.
        swap: what is preempted keeps its KV in host memory (of any size).
        spare_block: a decode wants a free block whether it needs one or not, as vLLM's heuristic.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        max_num_seqs: int,
        budget: int,
        watermark: int = 0,
        padded: bool = False,
        swap: bool = False,
        spare_block: bool = False,
    ) -> None:
        super().__init__(blocks, block_size, max_num_seqs, budget)
        self.watermark = watermark
        self.padded = padded
        self.swap = swap
        self.spare_block = spare_block

    def form(self) -> Step:
        """Prefill if nothing is swapped out and some prompts fit; else decode, and swap in."""
        step = Step()
        if not self.swapped:
            self.prefill(step)
        if not step.chunks and not self.decode(step):
            self.swap_in(step)
        step.decodes.sort()
        return step

    def prefill(self, step: Step) -> None:
        """Admit waiting requests in order."""
        lens: list[int] = []
        while self.waiting and len(self.running) < self.max_num_seqs:
            row = self.waiting[0]
            after = [*lens, row.tokens]
            if (len(after) * max(after) if self.padded else sum(after)) > self.budget:
                return
            if self.free - self.needed(row, row.tokens) < self.watermark:
                return
            self.take(row, row.tokens)
            self.running.append(self.waiting.pop(0))
            lens = after
            step.chunks.append((row.id, row.tokens))
            step.cached.append(0)

    def decode(self, step: Step) -> bool:
        """Let all decode, in order of arrival; evict the latest. Whether one was evicted."""
        left = sorted(self.running, key=lambda row: (row.arrival, row.id))
        kept: list[Row] = []
        evicted = False
        while left:
            row = left.pop(0)
            while (self.spare_block and not self.free) or not self.take(row, 1):
                evicted = True
                victim = left.pop() if left else row
                if self.swap:
                    self.give_back(victim)
                    victim.preemptions += 1
                    self.evictions += 1
                    self.swapped.append(victim)
                else:
                    self.drop(victim)
                if victim is row:
                    break
            else:
                kept.append(row)
                step.decodes.append(row.id)
                step.kv += row.computed
        self.running = kept
        return evicted

    def swap_in(self, step: Step) -> None:
        """Bring swapped requests back in order of arrival, each with a block to spare."""
        self.swapped.sort(key=lambda row: (row.arrival, row.id))
        while self.swapped and len(self.running) < self.max_num_seqs:
            row = self.swapped[0]
            held = -(-row.computed // self.size)
            if self.free - held - 1 < self.watermark:
                return
            self.take(row, 1)
            self.running.append(self.swapped.pop(0))
            step.decodes.append(row.id)
            step.kv += row.computed


def run(
    rows: Sequence[Row], scheduler: Scheduler, price: Callable[[Step], int], ahead: bool = False
) -> list[Step]:
    """Run the requests to the end; return the steps, with the times in the rows.

    Args:
        rows: by arrival.
        scheduler: forms the steps.
        price: how long a step takes, and never 0.
        ahead: a step is formed when the one before it starts (asynchronous scheduling).
    """
    assert all(a.arrival <= b.arrival for a, b in pairwise(rows))
    by_id = {row.id: row for row in rows}
    coming = list(rows)
    steps: list[Step] = []
    under_way: list[tuple[int, Step]] = []
    """Formed and not over: when each ends, in order; with `ahead` two."""
    now = 0
    while coming or scheduler.waiting or scheduler.running or scheduler.swapped:
        while coming and coming[0].arrival <= now:
            scheduler.waiting.append(coming.pop(0))
        evictions = scheduler.evictions
        step = scheduler.form()
        if step.chunks or step.decodes:
            step.start = max([now, *[end for end, _ in under_way]])
            advance(step, by_id)
            steps.append(step)
            under_way.append((step.start + price(step), step))
            if ahead and len(under_way) == 1:
                continue
        elif not under_way:
            if scheduler.evictions > evictions:
                continue  # all who ran; the next look admits again
            if not coming:
                raise RuntimeError(f"nothing runs at {now}, and requests wait")
            now = coming[0].arrival
            continue
        now, over = under_way.pop(0)
        emit(over, by_id, scheduler, now)
    return steps


def advance(step: Step, by_id: dict[int, Row]) -> None:
    """Count what a step caches, and the tokens it will emit, when it is formed."""
    for id, tokens in [*step.chunks, *[(id, 1) for id in step.decodes]]:
        row = by_id[id]
        row.computed += tokens
        if row.computed == row.tokens + row.in_flight:
            row.in_flight += 1
            row.decoding = True


def emit(step: Step, by_id: dict[int, Row], scheduler: Scheduler, now: int) -> None:
    """Let a step that is over emit its tokens; free who is finished."""
    ends = {}
    for cached, (id, tokens) in zip(step.cached, step.chunks, strict=True):
        ends[id] = cached + tokens
    for id in [*ends, *step.decodes]:
        row = by_id[id]
        if id in ends and ends[id] < row.tokens:
            continue
        row.in_flight -= 1
        row.emitted += 1
        if row.first < 0:
            row.first = now
        if row.emitted == row.output:
            row.finish = now
            if row in scheduler.waiting:  # preempted while its last token was on its way
                scheduler.waiting.remove(row)
            else:
                scheduler.done(row)
