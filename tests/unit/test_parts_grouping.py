"""Grouping by price: the programme against brute force, prices, the queue of the lost, tallies."""

import random
from collections.abc import Iterator, Sequence

import pytest

from policies.parts.grouping import DeadlineQueue, PaddedPrices, Tally, cut_groups, group_at
from sim.costs.simple import AffineCost
from sim.types import CostModel, DecodePiece, Request, View

PRICES = AffineCost(prefill_base_s=0.010, prefill_token_s=0.001)
MS = 10**12


class QuadraticCost(CostModel):
    """a + b * tokens + c * sum(l^2) + d * rows."""

    def __init__(self, a: int, b: int, c: int, d: int) -> None:
        self.terms = (a, b, c, d)
        self.calls = 0

    def decode(self, batch: int) -> DecodePiece:
        return DecodePiece(1, 0)

    def step(self, chunks: int, new: int, context: int, quad: int, batch: int, kv: int) -> int:
        self.calls += 1
        assert context == new
        assert (batch, kv) == (0, 0)
        a, b, c, d = self.terms
        return a + b * new + c * quad + d * chunks

    def extrapolates(self, new: int, batch: int) -> bool:
        return False


def groups(lengths: Sequence[int], prices: PaddedPrices) -> list[list[int]]:
    """The lengths, cut."""
    starts = cut_groups(lengths, prices)
    found, at = [], 0
    while at < len(lengths):
        first, end = group_at(starts, at)
        assert first == at
        assert all(group_at(starts, i) == (first, end) for i in range(first, end))
        found.append(list(lengths[first:end]))
        at = end
    return found


def partitions(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """All ways to put the items into groups."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for i in range(len(rest)):
            yield [*rest[:i], [items[0], *rest[i]], *rest[i + 1 :]]


def price(group: list[int], cost: CostModel) -> int:
    new = len(group) * max(group)
    return cost.step(len(group), new, new, new * max(group), 0, 0)


# -- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "max_rows", "expected"),
    [
        # 10 + n * longest ms: joining saves 10, and costs the padding.
        ([7], 2048, 128, [[7]]),
        ([5, 10], 2048, 128, [[5, 10]]),  # 30 = 15 + 20 - 5
        ([5, 20], 2048, 128, [[5], [20]]),  # 50 > 15 + 30
        ([2, 4, 5, 18, 20], 2048, 128, [[2, 4, 5], [18, 20]]),  # 25 + 50
        ([5, 5, 5, 5], 2048, 128, [[5, 5, 5, 5]]),
        ([5, 5, 5, 5], 10, 128, [[5, 5], [5, 5]]),  # padded tokens
        ([5, 5, 5, 5], 2048, 3, [[5, 5, 5], [5]]),  # rows; ties: the smaller group last
        ([5, 30], 20, 128, [[5], [30]]),  # one prompt may exceed the budget
        ([30, 30], 20, 128, [[30], [30]]),
    ],
)
def test_groups_by_hand(lengths, max_tokens, max_rows, expected):
    assert groups(lengths, PaddedPrices(PRICES, max_tokens, max_rows)) == expected


# -- brute force ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_equals_brute_force(seed: int):
    rng = random.Random(seed)
    cost = QuadraticCost(
        rng.choice([0, 10, 100, 1000]), rng.randint(0, 5), rng.choice([0, 0, 1]), rng.randint(0, 9)
    )
    lengths = sorted(rng.randint(1, rng.choice([10, 60])) for _ in range(rng.randint(1, 7)))
    max_tokens, max_rows = rng.choice([20, 60, 1000]), rng.choice([1, 2, 3, 10])
    allowed = [
        [price(group, cost) for group in partition]
        for partition in partitions(lengths)
        if all(
            len(g) == 1 or (len(g) <= max_rows and len(g) * max(g) <= max_tokens) for g in partition
        )
    ]
    found = groups(lengths, PaddedPrices(cost, max_tokens, max_rows))
    assert sorted(x for g in found for x in g) == lengths
    assert all(len(g) == 1 or (len(g) <= max_rows and len(g) * max(g) <= max_tokens) for g in found)
    assert sum(price(g, cost) for g in found) == min(map(sum, allowed))


# -- prices ---------------------------------------------------------------------------------------


def test_prices_are_asked_for_once():
    cost = QuadraticCost(10, 1, 0, 0)
    prices = PaddedPrices(cost, 100, 8)
    assert prices.of(5, 2) == 10 + 2 * 5
    assert cost.calls == 2
    assert prices.of(5, 1) == 15
    assert prices.of(5, 2) == 20
    assert cost.calls == 2
    cut_groups([5, 5, 5], prices)
    assert cost.calls == 3


# -- the queue ------------------------------------------------------------------------------------


def requests(*latest_s: float, tokens: int = 10) -> list[Request]:
    """Requests whose latest start is their deadline."""
    made = []
    for id, late_s in enumerate(latest_s):
        request = Request(id, 0, 0.0, tokens)
        request.deadline_s = late_s
        made.append(request)
    return made


def queue_of(made: list[Request]) -> DeadlineQueue:
    queue = DeadlineQueue(deadline, deadline)
    for request in made:
        queue.push(request)
    return queue


def deadline(request: Request) -> float:
    return request.deadline_s if request.deadline_s >= 0 else float("inf")


def ids(waiting: object) -> list[int]:
    return [request.id for request in waiting]  # type: ignore[attr-defined]


def test_the_lost_stand_apart():
    queue = queue_of(requests(3.0, 1.0, -1.0, 2.0))
    assert ids(queue) == ids(queue.live) == [1, 3, 0, 2]
    queue.expire(1.0)  # just in time
    assert ids(queue.lost) == []
    queue.expire(2.5)
    assert (ids(queue.live), ids(queue.lost), ids(queue)) == ([0, 2], [1, 3], [0, 2, 1, 3])
    queue.expire(2.5)
    assert ids(queue) == [0, 2, 1, 3]
    queue.expire(1e9)
    assert (ids(queue.live), ids(queue.lost)) == ([2], [1, 3, 0])
    assert (len(queue), queue.tokens) == (4, 40)


def test_removing_from_either_side():
    made = requests(3.0, 1.0, -1.0, 2.0)
    queue = queue_of(made)
    queue.expire(1.5)
    queue.remove(made[1])
    queue.remove(made[3])
    queue.expire(9.0)  # nothing is left of 3 to expire
    assert ids(queue) == [2, 0]
    queue.remove(made[0])
    queue.remove(made[2])
    assert (len(queue), queue.tokens, ids(queue)) == (0, 0, [])


def test_requeued_requests_stand_in_front_and_are_never_lost():
    made = requests(1.0, 2.0)
    queue = queue_of(made)
    queue.remove(made[1])
    queue.push_front(made[1])
    assert ids(queue) == [1, 0]
    queue.expire(5.0)
    assert (ids(queue.live), ids(queue.lost)) == ([1], [0])
    assert queue.oldest() is made[1]


def test_tokens_that_passed_the_oldest():
    made = requests(4.0, 3.0, 2.0, 1.0)
    queue = queue_of(made)
    assert queue.oldest() is made[0]
    queue.remove(made[2])
    queue.remove(made[3])
    assert queue.passed_tokens == 20
    queue.remove(made[0])
    assert (queue.oldest(), queue.passed_tokens) == (made[1], 0)


# -- UELLM's terms --------------------------------------------------------------------------------


def test_tally():
    tally = Tally()
    tally.add(100, 2.0)
    tally.add(60, 3.0)
    assert (tally.size, tally.total, tally.longest) == (2, 160, 100)
    assert tally.uneven_tokens(150) == (150 - 100) * 3
    assert tally.uneven_tokens(80) == -20 * 3
    assert tally.uneven_s(3.5) == 0.5 * 3
    # T_l = ((2 + 4) + (3 + 4) + (4 + 4)) * 3 = 63; T_o = (200 + 160 + 170) * 3 = 1590
    assert tally.weighed_s(70, 4.0, 1.0, 0.0) == 63
    assert tally.weighed_s(70, 4.0, 0.0, 0.5) == 795
    assert tally.weighed_s(70, 4.0, 1.0, 0.5) == 858


def test_a_view_is_not_needed_to_price():
    # The programme takes any cost model's integers: 10 ms + 1 ms a token.
    assert PaddedPrices(PRICES, 2048, 128).of(20, 3) == View(0, PRICES, 1).cost.step(
        3, 60, 60, 1200, 0, 0
    )
    assert PaddedPrices(PRICES, 2048, 128).of(20, 3) == 70 * MS
