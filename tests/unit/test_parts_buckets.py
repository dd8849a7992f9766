"""The bucket queue and Algorithm 1: hand-worked sequences, a literal twin, cost."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest

from policies.parts.buckets import BucketQueue
from policies.parts.midpoint import BatchLimit, Midpoints
from policies.parts.ordered import PIECE, Entry, Ordered
from sim.types import Request


def request(id: int, length: int, arrival_s: float | None = None) -> Request:
    return Request(id, 0, float(id) if arrival_s is None else arrival_s, length)


def by_arrival(request: Request) -> Entry:
    return (0, request.priority, request.arrival_s, request.id, request)


def rule(
    n_max: int | str = 4,
    l_max: int = 1024,
    theta: float = 0.5,
    either: bool = False,
    to_fixpoint: bool = False,
    max_buckets: int | None = 8,
    min_width: int = 1,
) -> Midpoints:
    return Midpoints(BatchLimit(n_max, l_max), theta, either, to_fixpoint, max_buckets, min_width)


class Bench:
    """A queue under a rule, fed with lengths."""

    def __init__(self, midpoints: Midpoints, lengths: list[int], m_tok: int = 0) -> None:
        self.midpoints = midpoints
        self.queue = BucketQueue(midpoints.starts(), by_arrival)
        self.requests: list[Request] = []
        self.m_tok = m_tok
        self.push(*lengths)

    def push(self, *lengths: int) -> None:
        for length in lengths:
            self.requests.append(request(len(self.requests), length))
            self.queue.push(self.requests[-1])

    def adjust(self, mean_len: float = 0.0) -> tuple[list[int], list[int]]:
        self.midpoints.adjust(self.queue, self.m_tok, mean_len)
        return self.queue.lengths(), self.queue.counts()


# -- Algorithm 1 by hand ----------------------------------------------------------------------


def test_splits_one_level_per_review_and_merges_at_low_load() -> None:
    bench = Bench(rule(4), [10, 20, 30, 40, 600, 700])
    # 6 > 4 and 4 of 6 below 512.
    assert bench.adjust() == ([0, 512], [4, 2])
    # Nothing changed: the same instant asked twice gives the same buckets.
    assert bench.adjust() == ([0, 512], [4, 2])
    # [0, 512) holds 5 > 4, all below 256.
    bench.push(50)
    assert bench.adjust() == ([0, 256, 512], [5, 0, 2])
    # A long one arrives: [0, 256) still holds 5, all below 128.
    bench.push(900)
    assert bench.adjust() == ([0, 128, 256, 512], [5, 0, 0, 3])
    # 4 leave, 4 wait: 4 < 4 is false, no merge; no bucket holds more than 4, no split.
    for gone in bench.requests[:4]:
        bench.queue.remove(gone)
    assert bench.adjust() == ([0, 128, 256, 512], [1, 0, 0, 3])
    # 3 < 4: one bucket again.
    bench.queue.remove(bench.requests[4])
    assert bench.adjust() == ([0], [3])
    assert bench.queue.operation_counts == {
        "assignments": 8,
        "split_tests": 1 + 2 + 3 + 4,
        "splits": 3,
        "merges": 1,
        "moves": 6 + 5 + 5 + 3,
        "programmes": 0,
    }


def test_fixpoint_repeats_the_pass() -> None:
    # 512: 5 of 7. 256, 128, 64: 5 of 5. 32: 3 of 5. Then no bucket holds more than 4.
    bench = Bench(rule(4, to_fixpoint=True), [10, 20, 30, 40, 50, 600, 700])
    assert bench.adjust() == ([0, 32, 64, 128, 256, 512], [3, 2, 0, 0, 0, 2])


def test_max_buckets_stops_splitting() -> None:
    bench = Bench(rule(4, to_fixpoint=True, max_buckets=3), [10, 20, 30, 40, 50, 600, 700])
    assert bench.adjust() == ([0, 256, 512], [5, 0, 2])


def test_min_width_stops_splitting() -> None:
    bench = Bench(rule(4, to_fixpoint=True, min_width=200), [10, 20, 30, 40, 50, 600, 700])
    assert bench.adjust() == ([0, 256, 512], [5, 0, 2])


@pytest.mark.parametrize(("theta", "cuts"), [(0.5, [0]), (0.49, [0, 512]), (0.7, [0])])
def test_theta_is_exceeded_not_reached(theta: float, cuts: list[int]) -> None:
    assert Bench(rule(4, theta=theta), [1, 2, 3, 600, 601, 602]).adjust()[0] == cuts


def test_short_side_never_splits_a_long_heavy_bucket() -> None:
    lengths = [10, 600, 700, 800, 900, 1000]
    assert Bench(rule(4), lengths).adjust()[0] == [0]
    assert Bench(rule(4, either=True), lengths).adjust()[0] == [0, 512]


def test_midpoint_itself_is_long() -> None:
    assert Bench(rule(1), [511, 511, 512]).adjust() == ([0, 512], [2, 1])


def test_over_long_prompts_stay_in_the_last_bucket() -> None:
    assert Bench(rule(1), [5, 6, 1024, 5000]).adjust(0)[1] == [4]
    assert Bench(rule(1), [5, 6, 7, 1024, 5000]).adjust(0)[1] == [3, 2]


def test_odd_l_max_halves_exactly() -> None:
    # Midpoints of 100: 50, 25, 12.5, 6.25: 12 is below 12.5, 13 is not.
    bench = Bench(rule(1, l_max=100, to_fixpoint=True, max_buckets=4), [12, 12, 12, 13])
    assert bench.adjust() == ([0, 13, 25, 50], [3, 1, 0, 0])


def test_nmax_up_takes_each_buckets_upper_end() -> None:
    # M_tok 2048: N = 2 for [0, 1024), 4 for [0, 512), 8 for [0, 256); to merge 2048/100 = 20.
    bench = Bench(rule("up"), [10] * 25, m_tok=2048)
    assert bench.adjust(100.0)[0] == [0, 512]
    bench.push(10)
    assert bench.adjust(100.0)[0] == [0, 256, 512]
    for gone in bench.requests[:6]:  # 20 wait: not fewer than 20
        bench.queue.remove(gone)
    assert bench.adjust(100.0)[0] == [0, 128, 256, 512]
    bench.queue.remove(bench.requests[6])
    assert bench.adjust(100.0)[0] == [0]


def test_nmax_mean_and_lmax() -> None:
    assert BatchLimit("mean", 1024).of_queue(2048, 100.0) == 20
    assert BatchLimit("mean", 1024).of_bucket(2048, 100.0, 64.0) == 20
    assert BatchLimit("lmax", 1024).of_queue(2047, 100.0) == 1
    assert BatchLimit("lmax", 1024).of_bucket(2048, 100.0, 64.0) == 2
    assert BatchLimit("lmax", 1024).of_queue(100, 1.0) == 1  # never 0
    assert BatchLimit(7, 1024).of_queue(10, 1.0) == 7
    assert [BatchLimit(7, 64).needs_mean, BatchLimit("up", 64).needs_mean] == [False, True]


# -- against a literal twin -------------------------------------------------------------------


class Literal:
    """Algorithm 1 as printed: lists of requests, redistributed at every split."""

    def __init__(self, midpoints: Midpoints, min_width: int) -> None:
        self.rule = midpoints
        self.min_width = min_width
        self.buckets = [(Fraction(0), Fraction(midpoints.l_max), [])]

    def assign(self, request: Request) -> None:
        length = min(request.target_tokens, self.rule.l_max - 1)
        for low, up, held in self.buckets:
            if low <= length < up:
                held.append(request)

    def adjust(self, m_tok: int, mean_len: float) -> None:
        held = [r for bucket in self.buckets for r in bucket[2]]
        if len(held) < self.rule.limit.of_queue(m_tok, mean_len):
            self.buckets = [(Fraction(0), Fraction(self.rule.l_max), held)]
            return
        while self.split_pass(m_tok, mean_len) and self.rule.to_fixpoint:
            pass

    def split_pass(self, m_tok: int, mean_len: float) -> bool:
        found = False
        for bucket in list(self.buckets):
            low, up, held = bucket
            mid = (low + up) / 2
            n_max = self.rule.limit.of_bucket(m_tok, mean_len, float(up))
            if len(held) <= n_max or len(self.buckets) >= self.rule.max_buckets:
                continue
            part = sum(min(r.target_tokens, self.rule.l_max - 1) < mid for r in held)
            if self.rule.either:
                part = max(part, len(held) - part)
            if part / len(held) > self.rule.theta and (up - low) / 2 >= self.min_width:
                at = self.buckets.index(bucket)
                self.buckets[at : at + 1] = [(low, mid, []), (mid, up, [])]
                for r in held:
                    self.assign(r)
                found = True
        return found


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_literal_algorithm(seed: int) -> None:
    draw = random.Random(seed)
    l_max, min_width = draw.choice([64, 100, 1000, 1024]), draw.choice([1, 1, 7])
    midpoints = rule(
        draw.choice([1, 3, 10, "up", "mean", "lmax"]),
        l_max,
        draw.choice([0.0, 0.3, 0.5, 0.8]),
        draw.random() < 0.5,
        draw.random() < 0.5,
        draw.choice([1, 2, 3, 8, None]),
        min_width,
    )
    queue, twin = BucketQueue(midpoints.starts(), by_arrival), Literal(midpoints, min_width)
    waiting: list[Request] = []
    for turn in range(60):
        for _ in range(draw.choice([0, 1, 12])):
            skewed = int(draw.expovariate(8 / l_max)) + 1
            waiting.append(request(10_000 * turn + len(waiting), skewed, draw.random()))
            queue.push(waiting[-1])
            twin.assign(waiting[-1])
        for _ in range(draw.choice([0, 1, 12])):
            if waiting:
                gone = waiting.pop(draw.randrange(len(waiting)))
                queue.remove(gone)
                for bucket in twin.buckets:
                    if gone in bucket[2]:
                        bucket[2].remove(gone)
        if queue.adjusted == queue.revision:
            continue  # the literal algorithm is run once a change too
        m_tok, mean_len = draw.randint(l_max, 4 * l_max), draw.uniform(1, l_max)
        midpoints.adjust(queue, m_tok, mean_len)
        twin.adjust(m_tok, mean_len)
        assert queue.lengths() == [-(-bucket[0] // 1) for bucket in twin.buckets]
        assert queue.counts() == [len(bucket[2]) for bucket in twin.buckets]
        assert len(queue) == len(waiting) == queue.num_bucketed
        assert list(queue) == sorted(waiting, key=lambda r: (r.arrival_s, r.id))
        if waiting:
            first = min(waiting, key=lambda r: (r.arrival_s, r.id))
            of_first = next(b[2] for b in twin.buckets if first in b[2])
            wanted = sorted(of_first, key=lambda r: (r.arrival_s, r.id))
            assert [entry[4] for entry in queue.candidates()] == wanted


# -- the queue --------------------------------------------------------------------------------


def test_front_stands_outside_the_buckets_and_is_batched_by_bucket() -> None:
    bench = Bench(rule(1), [10, 20, 30, 600])
    assert bench.adjust()[0] == [0, 512]
    back = [request(10, 700), request(11, 40), request(12, 800)]
    for r in back:
        bench.queue.push_front(r)
    assert list(bench.queue) == [*reversed(back), *bench.requests]
    assert (len(bench.queue), bench.queue.num_bucketed) == (7, 4)
    assert bench.queue.tokens == 660 + 700 + 40 + 800
    # The first in front is of the long bucket; the other long one goes with it, no other does.
    assert [entry[4].id for entry in bench.queue.candidates()] == [12, 10]
    for r in back:
        bench.queue.remove(r)
    assert [entry[4].id for entry in bench.queue.candidates()] == [0, 1, 2]


def test_empty_queue_has_no_candidates() -> None:
    queue = BucketQueue([0, 10], by_arrival)
    assert (list(queue.candidates()), list(queue), len(queue), queue.tokens) == ([], [], 0, 0)


def test_ordered_pieces() -> None:
    draw = random.Random(1)
    entries = [by_arrival(request(i, 1, draw.random())) for i in range(5 * PIECE)]
    ordered = Ordered()
    for entry in entries:
        ordered.add(entry)
    assert list(ordered) == sorted(entries)
    assert max(len(piece) for piece in ordered.pieces) <= PIECE
    draw.shuffle(entries)
    while entries:
        ordered.discard(entries.pop())
        if len(entries) % 300 == 0:
            assert list(ordered) == sorted(entries)
            assert all(ordered.pieces) or not entries
    ordered.add(by_arrival(request(1, 1)))
    assert len(list(ordered)) == 1


# -- cost -------------------------------------------------------------------------------------


def seconds(bench: Bench) -> float:
    begin = time.process_time()
    bench.adjust()
    return time.process_time() - begin


def test_cost_of_algorithm_1(capsys: pytest.CaptureFixture[str]) -> None:
    """Bars: 0.2 ms without a split, 20 ms with one that moves all; twice that passes here."""
    draw = random.Random(0)
    lengths = [draw.randint(1, 4095) for _ in range(10_000)]
    quiet, moving, widest = [], [], []
    for _ in range(3):
        bench = Bench(rule(4, 4096, theta=1.0), lengths)
        quiet.append(seconds(bench))
        bench = Bench(rule(10**4 - 1, 4096, theta=0.4), lengths)
        moving.append(seconds(bench))
        assert bench.queue.operation_counts["moves"] == 10_000
        bench = Bench(rule(10**5, 4096, theta=0.4), lengths)
        bench.queue.recut(list(range(0, 128, 16)))
        moving.append(seconds(bench))  # a merge
        assert len(bench.queue.cuts) == 1
        bench = Bench(rule(4, 4096, theta=1.0, max_buckets=None), lengths)
        bench.queue.recut(list(range(4096)))
        widest.append(seconds(bench))
    with capsys.disabled():
        print(
            f"\nadjust at 10,000 waiting: no split {min(quiet) * 1e3:.4f} ms, "
            f"split or merge of all {min(moving) * 1e3:.4f} ms, "
            f"4,096 buckets {min(widest) * 1e3:.2f} ms"
        )
    assert min(quiet) < 0.4e-3
    assert min(moving) < 40e-3


def test_adjust_moves_no_request() -> None:
    """What Algorithm 1 moves, and counts, this queue leaves where it is: bins keep theirs."""
    bench = Bench(rule(4, to_fixpoint=True), [10, 20, 30, 40, 50, 600, 700])
    bench.queue.counts()  # fills the bins
    places = dict(bench.queue._places)
    lists = {at: entries.pieces[0] for at, entries in bench.queue._bins.items()}
    bench.adjust()
    assert len(bench.queue.cuts) == 6
    for gone in bench.requests[:5]:
        bench.queue.remove(gone)
        del places[gone.id]
    assert bench.adjust() == ([0], [2])
    assert bench.queue._places == places
    assert all(entries.pieces[0] is lists[at] for at, entries in bench.queue._bins.items())


class Moves:
    """How often Algorithm 1 as published puts each request into another bucket."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.moves: dict[int, int] = {}
        self.merges: dict[int, int] = {}

    def width(self, waiting: Request) -> int:
        begin, end = self.bench.queue.span(self.bench.queue.bucket_of(waiting))
        return end - begin

    def adjust(self) -> None:
        """Review the buckets; a request moves once a halving of its bucket, once a merge."""
        counts = self.bench.queue.operation_counts
        waiting = list(self.bench.queue)
        widths = {r.id: self.width(r) for r in waiting}
        merges = counts["merges"]
        self.bench.adjust()
        merged = counts["merges"] - merges
        for r in waiting:
            halvings = 0 if merged else (widths[r.id] // self.width(r)).bit_length() - 1
            self.moves[r.id] = self.moves.get(r.id, 0) + merged + halvings
            self.merges[r.id] = self.merges.get(r.id, 0) + merged


@pytest.mark.parametrize("seed", range(30))
def test_how_often_a_request_moves(seed: int) -> None:
    """At most the halvings that a bucket allows after each merge, and the merges.

    That is log2(bins) = max_buckets - 1 halvings, not log2(max_buckets): Algorithm 1 may halve the
    same end again and again.
    """
    draw = random.Random(seed)
    most = draw.choice([2, 4, 8])
    midpoints = rule(draw.choice([1, 4, 20]), 4096, 0.5, False, draw.random() < 0.5, most)
    bench = Bench(midpoints, [])
    moves = Moves(bench)
    waiting: list[Request] = []
    for _ in range(60):
        bench.push(*[int(2 ** draw.uniform(0, 12)) for _ in range(draw.randint(0, 12))])
        moves.adjust()
        waiting = list(bench.queue)
        for gone in draw.sample(waiting, draw.randint(0, len(waiting))):
            bench.queue.remove(gone)
    assert sum(moves.moves.values()) == bench.queue.operation_counts["moves"]
    assert midpoints.bins == 1 << (most - 1)
    for id, count in moves.moves.items():
        merges = moves.merges[id]
        assert count <= (merges + 1) * (most - 1) + merges


def test_a_request_can_move_more_often_than_log2_of_the_buckets() -> None:
    bench = Bench(rule(1, 4096, to_fixpoint=True), [5, 6])
    moves = Moves(bench)
    moves.adjust()
    assert (moves.moves, len(bench.queue.cuts)) == ({0: 7, 1: 7}, 8)


def test_pushing_and_removing_stays_cheap_in_a_long_queue() -> None:
    def per_request(waiting: int) -> float:
        midpoints = rule(4, 4096)
        queue = BucketQueue(midpoints.starts(), by_arrival)
        requests = [request(i, 1 + i % 30) for i in range(waiting)]
        begin = time.process_time()
        for r in requests:
            queue.push(r)
        for r in requests:
            queue.remove(r)
        return (time.process_time() - begin) / waiting

    short = min(per_request(1_000) for _ in range(3))
    assert per_request(100_000) < 10 * short
