"""A view's arithmetic against the naive way: look at every request of the batch."""

import random

import pytest

from sim.costs.simple import AffineCost
from sim.types import Decode, DecodePiece, Mixed, Prefill, Request, RunToCompletion, View, Wait
from sim.types.request import DECODING, PREFILLING

COST = AffineCost(
    prefill_base_s=0.010,
    prefill_token_s=0.001,
    decode_base_s=0.020,
    decode_seq_s=0.002,
    decode_kv_s=0.0001,
)


def view_of(cached: list[int], block_size: int, steps: int, free: int = 1000) -> View:
    """A view whose batch has cached so many tokens each, after `steps` steps."""
    view = View(0, COST, 10**6, block_size)
    view.steps = steps
    view.free_blocks = free
    for id, tokens in enumerate(cached):
        request = Request(id, 0, 0.0, tokens)
        request.home = view
        request.state = DECODING
        request.kv_offset = tokens - steps
        request.steps_at_join = steps
        view.running[id] = request
        view.phases[request.kv_offset % block_size] += 1
        view.kv_tokens += tokens
        view.num_decoding += 1
    return view


def blocks(tokens: int, block_size: int) -> int:
    return (tokens + block_size - 1) // block_size


def naive_growth(cached: list[int], block_size: int, steps: int) -> int:
    """Blocks taken by `steps` steps: a step needs room for one more token of each request."""
    return sum(blocks(n + steps, block_size) - blocks(n, block_size) for n in cached)


def random_batch(rng: random.Random) -> tuple[list[int], int, int]:
    block_size = rng.choice([1, 2, 4, 16, 17])
    cached = [rng.randint(1, 60) for _ in range(rng.randint(1, 12))]
    return cached, block_size, rng.randint(0, 50)


@pytest.mark.parametrize("seed", range(100))
def test_growth(seed: int):
    rng = random.Random(seed)
    cached, block_size, at = random_batch(rng)
    view = view_of(cached, block_size, at)
    assert view.growth_blocks == naive_growth(cached, block_size, 1)
    for steps in (0, 1, 2, block_size - 1, block_size, block_size + 1, rng.randint(0, 200)):
        assert view.growth_over(steps) == naive_growth(cached, block_size, steps)


@pytest.mark.parametrize("seed", range(100))
def test_steps_until_free_below(seed: int):
    rng = random.Random(seed)
    cached, block_size, at = random_batch(rng)
    free = rng.choice([0, 1, rng.randint(0, 50), rng.randint(0, 500)])
    keep = rng.choice([0, 0, 1, rng.randint(0, 20)])
    view = view_of(cached, block_size, at, free)
    if free < keep:
        assert view.steps_until_free_below(keep) == 0
        return
    steps = 0
    while free - naive_growth(cached, block_size, steps + 1) >= keep:
        steps += 1
    assert view.steps_until_free_below(keep) == steps


def test_steps_until_free_below_without_a_batch():
    view = view_of([], 16, 5)
    assert view.steps_until_free_below(0) > 10**15
    assert view.steps_until_free_below(1001) == 0


def test_huge_counts_stay_exact():
    cached = [10**12 + 3, 10**12 + 9]
    view = view_of(cached, 16, 10**15, free=10**14)
    steps = view.steps_until_free_below(0)
    assert naive_growth(cached, 16, steps) <= 10**14 < naive_growth(cached, 16, steps + 1)
    assert view.growth_over(10**14 + 5) == naive_growth(cached, 16, 10**14 + 5)


def test_the_batch_advances_without_being_touched():
    view = view_of([4, 6], block_size=4, steps=100)
    a, b = view.running.values()
    assert [view.blocks_of(a), view.blocks_of(b)] == [1, 2]
    assert [view.generated(a), view.generated(b)] == [0, 0]
    assert [a.blocks, b.blocks] == [1, 2]
    view.steps += 3  # three tokens each: 7 and 9
    assert [view.blocks_of(a), view.blocks_of(b)] == [2, 3]
    assert [view.generated(a), view.generated(b)] == [3, 3]
    assert view.growth_blocks == 0
    view.steps += 1  # 8 and 10: the first is full
    assert view.growth_blocks == 1


def test_price():
    view = view_of([4, 6], block_size=4, steps=0)
    new, half = Request(7, 0, 0.0, 5), Request(8, 0, 0.0, 9)
    half.prefilled = 6
    decode_s = 0.020 + 2 * 0.002 + 10 * 0.0001
    assert view.price(Decode()) == pytest.approx(decode_s)
    assert view.price(Mixed([(new, 5), (half, 3)])) == pytest.approx(0.018 + decode_s)
    assert view.price(Mixed([(new, 5)], decode=False)) == pytest.approx(0.015)
    assert view.price(Prefill([new, half])) == pytest.approx(0.024)
    assert view.price(Prefill([new, half], padded=True)) == pytest.approx(0.028)
    assert view.price(RunToCompletion([new, half])) == pytest.approx(0.028)
    assert view.price(Wait(1.0)) == 0
    assert view_of([], 4, 0).price(Decode()) == 0


def test_price_beyond_a_knot():
    class Kinked(AffineCost):
        def decode(self, batch: int) -> DecodePiece:
            low = DecodePiece(1 * 10**12, 0, kv_end=10)
            low.next = DecodePiece(2 * 10**12, 0, kv_end=20)
            low.next.next = DecodePiece(3 * 10**12, 0)
            return low

    for cached, price_s in ((9, 0.001), (10, 0.002), (19, 0.002), (20, 0.003)):
        view = view_of([cached], 4, 0)
        view.cost = Kinked()
        assert view.price(Decode()) == pytest.approx(price_s)


def test_blocks_of_a_request_that_does_not_decode():
    view = view_of([], 4, 7)
    request = Request(0, 0, 0.0, 9)
    request.home = view
    request.state = PREFILLING
    request.held_blocks = 2
    assert view.blocks_of(request) == request.blocks == 2
    assert view.generated(request) == 0
