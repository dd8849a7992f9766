"""The block pool against vLLM's written out (`naive_pool.py`), over random histories.

Each history is a little scheduler on one instance: prompts in chunks, a decoding batch, shared
prefixes of several lengths, preemptions, aborts, and prompts admitted several in a step. After
every step both pools must have the same free list, block by block, and the same known blocks; what
`prospect` promised must be what `start` finds.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from naive_pool import Hash, NaivePool

from sim.core.blocks import BlockPool
from sim.costs.simple import AffineCost
from sim.types import Request, View
from sim.types.request import DECODING, PREFILLING, WAITING

QUICK, FULL = 100, 1000
STEPS = 60


class History:
    """One random history; `run` plays it on both pools."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.size = rng.choice([1, 2, 4, 16])
        total = rng.choice([6, 12, 30, 80])
        self.view = View(0, AffineCost(1.0), total, self.size)
        self.pool = BlockPool(self.view)
        self.naive = NaivePool(total, self.size)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.cached: dict[int, int] = {}
        """Tokens in the cache of each running request."""
        self.wanted: dict[int, int] = {}
        self.next_id = 0
        self.chains = self._chains()
        self.seen: Counter[str] = Counter()

    def _chains(self) -> list[tuple[tuple[int, int], ...]]:
        """A little tree of shared prompts, the root first in each."""
        rng, longest = self.rng, self.size * len(self.naive.blocks)
        chains: list[tuple[tuple[int, int], ...]] = [()]
        for node in range(rng.randint(1, 5)):
            parent = rng.choice(chains)
            start = parent[-1][1] if parent else 0
            chains.append((*parent, (node, start + rng.randint(1, max(longest // 3, 1)))))
        return chains

    def hashes(self, request: Request) -> list[Hash]:
        """The hash of every block of a request, far beyond what it will ever fill."""
        found: list[Hash] = []
        for node, end in request.prefix:
            found += [(node, at) for at in range(len(found), end // self.size)]
        own = range(len(found), len(self.naive.blocks) + 2)
        return found + [(~request.id, at) for at in own]

    def arrive(self) -> None:
        """A request joins the queue, with some of a shared prompt and some of its own."""
        rng = self.rng
        room = self.size * len(self.naive.blocks) - 1
        chain = rng.choice(self.chains)
        length = (chain[-1][1] if chain else 0) + rng.choice([0, 0, 1, rng.randint(0, room // 2)])
        length = max(min(length, room - 1, rng.randint(1, room)), 1)
        cut = tuple((node, min(end, length)) for node, end in chain)
        kept = [i for i, (_, end) in enumerate(cut) if not i or cut[i - 1][1] < end]
        request = Request(self.next_id, 0, 0.0, length)
        request.prefix = tuple(cut[i] for i in kept)
        self.wanted[request.id] = rng.randint(1, room + 1 - length)
        self.next_id += 1
        self.waiting.append(request)

    def run(self) -> None:
        """Play."""
        for _ in range(STEPS):
            while self.rng.random() < 0.4 and len(self.waiting) < 6:
                self.arrive()
            self.step()
            self.compare()

    # -- one step ---------------------------------------------------------------------------

    def step(self) -> None:
        """Leave, preempt, then one step: decodes, chunks under way, admissions."""
        rng = self.rng
        for request in list(self.running):
            done = request.state == DECODING and request.emitted >= self.wanted[request.id]
            if done or rng.random() < 0.02:
                self._leave(request)
        chunks = [(r, self._chunk(r)) for r in self.running if r.state == PREFILLING]
        preempted = False
        while self._need(chunks) > self.view.free_blocks or (self.running and rng.random() < 0.05):
            victim = self.running[-1] if rng.random() < 0.8 else rng.choice(self.running)
            self._preempt(victim)
            preempted = True
            chunks = [(r, n) for r, n in chunks if r is not victim]
        growing = [r for r in self.running if r.state == DECODING]
        growth = sum(self.cached[r.id] % self.size == 0 for r in growing)
        for request in growing:
            self.naive.grow(request.id, self.hashes(request), self.cached[request.id] + 1)
        promised = [] if preempted else self._admissions(chunks, growth)
        started = self.pool.start(chunks, growth)
        for request, tokens in started:
            self._run_chunk(request, tokens)
        for request, cached in promised:
            assert request.prefilled - dict(map(_by_id, started))[request.id] == cached
        self.view.free_blocks -= growth
        for request in growing:
            self.cached[request.id] += 1
            request.emitted += 1
        for request in [r for r, _ in started if r.prefilled == r.target_tokens]:
            request.state = DECODING
            request.emitted += 1

    def _chunk(self, request: Request) -> int:
        return self.rng.randint(1, request.target_tokens - request.prefilled)

    def _need(self, chunks: list[tuple[Request, int]]) -> int:
        need = sum(r.state == DECODING and self.cached[r.id] % self.size == 0 for r in self.running)
        for request, tokens in chunks:
            need += self.view.blocks_for(request.prefilled + tokens) - request.held_blocks
        return need

    def _admissions(
        self, chunks: list[tuple[Request, int]], growth: int
    ) -> list[tuple[Request, int]]:
        """Append chunks of waiting requests that fit; return what is promised to be cached."""
        need = self._need(chunks)
        room = self.view.free_blocks - need
        prospect = self.pool.prospect(growth, chunks)
        promised = []
        for request in list(self.waiting)[: self.rng.choice([0, 1, 2, 6])]:
            cached = prospect.cached(request)
            left = request.target_tokens - cached
            tokens = left if self.rng.random() < 0.6 else self.rng.randint(1, left)
            room -= prospect.admit(request, tokens)
            if room < 0:
                break
            chunks.append((request, tokens))
            promised.append((request, cached))
            self.waiting.remove(request)
        self.seen["several admitted in a step"] += len(promised) > 1
        return promised

    def _run_chunk(self, request: Request, tokens: int) -> None:
        total = request.prefilled + tokens
        hashes = self.hashes(request)
        if request.state == WAITING:
            found = self.naive.find(hashes, request.target_tokens)
            assert request.prefilled == len(found) * self.size
            self.seen["hits"] += len(found)
            self.seen["hits on free blocks"] += sum(b.refs == 0 for b in found)
            self.seen["hits after a preemption"] += len(found) * bool(request.preemptions)
            self.naive.admit(request.id, hashes, found, total)
            request.state = PREFILLING
            self.running.append(request)
        else:
            self.naive.grow(request.id, hashes, total)
        blocks = self.view.blocks_for(total)
        self.view.free_blocks -= blocks - request.held_blocks
        request.held_blocks = blocks
        request.prefilled = total
        self.cached[request.id] = total

    def _settle(self, request: Request) -> None:
        """What the engine notes when a request leaves the batch."""
        request.prefilled = self.cached[request.id]
        request.held_blocks = self.view.blocks_for(request.prefilled)

    def _leave(self, request: Request) -> None:
        self._settle(request)
        self.running.remove(request)
        self.pool.release(request)
        self.naive.release(request.id, back=False)

    def _preempt(self, request: Request) -> None:
        self._settle(request)
        self.running.remove(request)
        self.pool.keep(request)
        self.naive.release(request.id, back=True)
        request.preemptions += 1
        request.prefilled = 0
        request.target_tokens = request.input_len + request.emitted
        request.state = WAITING
        self.waiting.insert(0, request)
        self.seen["preemptions"] += 1

    # -- comparison -------------------------------------------------------------------------

    def compare(self) -> None:
        """Both pools are in the same state."""
        self.naive.check()
        self.pool.sync()
        assert self.view.free_blocks == len(self.naive.free)
        assert free_list(self.pool) == self.naive.free_list()
        for node, pieces in self.pool.nodes.items():
            for piece in pieces:
                assert piece.lo < piece.hi
                keys = [(node, at) for at in range(piece.lo, piece.hi)]
                assert all(key in self.naive.known for key in keys)
        ours = Counter(
            (node, at)
            for node, pieces in self.pool.nodes.items()
            for piece in pieces
            for at in range(piece.lo, piece.hi)
        )
        theirs = Counter({key: len(same) for key, same in self.naive.known.items() if key[0] >= 0})
        assert {key: n for key, n in ours.items() if key[0] >= 0} == theirs
        held = sum(self.view.blocks_for(self.cached[r.id]) for r in self.running)
        used = self.view.total_blocks - self.view.free_blocks
        assert held - self.pool.spare_copies() == used
        self.seen["shared blocks"] += self.pool.spare_copies()
        self.seen["known twice"] += sum(n > 1 for n in theirs.values())


def _by_id(chunk: tuple[Request, int]) -> tuple[int, int]:
    return chunk[0].id, chunk[1]


def free_list(pool: BlockPool) -> list[Hash | None]:
    """Return a pool's free blocks in order: what can be found by its hash, None for the rest."""
    found: list[Hash | None] = []
    piece = pool.ends.after
    while piece is not pool.ends:
        assert piece.refs == 0
        assert piece.after.before is piece
        found += [None] * piece.ahead
        found += [(piece.node, at) for at in reversed(range(piece.lo, piece.hi))]
        piece = piece.after
    assert len(found) == pool.listed <= pool.view.free_blocks
    return found + [None] * (pool.view.free_blocks - pool.listed)


def play(seeds: range) -> Counter[str]:
    """Play histories; return what they reached."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        history = History(seed)
        try:
            history.run()
        except Exception as error:
            error.add_note(f"history {seed}")
            raise
        seen += history.seen
    return seen


def test_same_as_the_naive_pool():
    seen = play(range(QUICK))
    cases = ("hits", "hits on free blocks", "hits after a preemption", "preemptions")
    cases += ("several admitted in a step", "shared blocks", "known twice")
    assert [case for case in cases if not seen[case]] == []


@pytest.mark.slow
def test_same_as_the_naive_pool_1000(record_property):
    figure = f"{FULL} random histories of {STEPS} steps, free list and known blocks identical"
    record_property("evidence", f"block pool = naive pool with ids: {figure}")
    seen = play(range(FULL))
    assert seen["hits"] > FULL
