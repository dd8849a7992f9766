"""Routers: one of several instances, from what stands still inside a span."""

from collections import Counter

import pytest

from sim.core.routers import ROUTERS, PrefixRouting, make_router
from sim.costs.simple import AffineCost
from sim.types import BadInput, Request, View

COST = AffineCost(decode_base_s=0.02)
ANY = Request(0, 0, 0.0, 10)


def views(count: int, outstanding: list[int] | None = None) -> list[View]:
    made = [View(id, COST, 100) for id in range(count)]
    for view, number in zip(made, outstanding or [], strict=False):
        view.outstanding = number
    return made


def picks(name: str, instances: list[View], times: int = 1, seed: int = 0) -> list[int]:
    router = make_router(name, seed)
    return [router.pick(ANY, instances).id for _ in range(times)]


def wait(view: View, *prompts: int) -> None:
    for number, tokens in enumerate(prompts):
        view.waiting.push(Request(100 * view.id + number, 0, 0.0, tokens))


def test_round_robin_takes_turns():
    assert picks("round-robin", views(3), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_random_is_uniform_and_repeatable():
    chosen = picks("random", views(4), 4000, seed=1)
    assert chosen == picks("random", views(4), 4000, seed=1)
    assert chosen != picks("random", views(4), 4000, seed=2)
    assert all(900 < n < 1100 for n in Counter(chosen).values())
    assert set(chosen) == {0, 1, 2, 3}


def test_shortest_queue_counts_requests_that_have_not_left():
    assert picks("shortest-queue", views(3, [2, 1, 3])) == [1]
    assert picks("shortest-queue", views(3, [2, 1, 1])) == [1]  # ties: lowest id


def test_shortest_queue_tokens_counts_prompts_that_wait():
    instances = views(3, [1, 2, 2])
    wait(instances[0], 50)
    wait(instances[1], 10, 30)
    wait(instances[2], 40)
    assert picks("shortest-queue-tokens", instances) == [1]  # 50, 40, 40: then requests, then id
    instances[1].outstanding = 3
    assert picks("shortest-queue-tokens", instances) == [2]


def test_least_loaded_counts_all_prompt_tokens():
    instances = views(3)
    for view, tokens in zip(instances, (70, 60, 60), strict=True):
        view.outstanding_tokens = tokens
    assert picks("least-loaded", instances) == [1]


def test_power_of_two_takes_the_shorter_of_two_different_instances():
    # With two instances both are looked at: always the shorter one.
    assert set(picks("power-of-two", views(2, [5, 4]), 200)) == {1}
    assert set(picks("power-of-two", views(2, [4, 4]), 200)) == {0}
    # With three, the longest queue is never taken, the others are, 2/3 to 1/3.
    chosen = Counter(picks("power-of-two", views(3, [0, 1, 2]), 3000))
    assert set(chosen) == {0, 1}
    assert 1900 < chosen[0] < 2100
    assert picks("power-of-two", views(1)) == [0]


def test_power_of_two_is_repeatable():
    instances = views(5)
    assert picks("power-of-two", instances, 50, 3) == picks("power-of-two", instances, 50, 3)
    assert picks("power-of-two", instances, 50, 3) != picks("power-of-two", instances, 50, 4)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_returns_one_of_the_instances_and_writes_nothing(name: str):
    instances = views(3, [1, 2, 3])
    assert set(picks(name, instances, 20)) <= {0, 1, 2}
    assert picks(name, instances[:1], 3) == [0, 0, 0]
    assert [view.outstanding for view in instances] == [1, 2, 3]


def test_an_unknown_router_names_the_valid_ones():
    with pytest.raises(BadInput, match=r"engine\.router: .*'best'; valid: round-robin, random"):
        make_router("best", 0)


# -- prefix ---------------------------------------------------------------------------------------


def beginning(id: int, tokens: int, *prefix: tuple[int, int]) -> Request:
    request = Request(id, 0, 0.0, tokens)
    request.prefix = prefix
    return request


def test_prefix_follows_the_longest_match():
    router, instances = make_router("prefix", 0), views(3)
    assert router.pick(beginning(0, 100, (7, 40)), instances).id == 0
    assert router.pick(beginning(1, 100, (8, 40)), instances).id == 1  # 0 was sent more
    assert router.pick(beginning(2, 90, (7, 40), (9, 80)), instances).id == 0
    assert router.pick(beginning(3, 90, (7, 40), (9, 80)), instances).id == 0
    assert router.pick(beginning(4, 90, (8, 40)), instances).id == 1


def test_prefix_needs_a_match_above_the_threshold():
    limits = PrefixRouting(cache_threshold=0.5)
    router, instances = make_router("prefix", 0, limits), views(2)
    assert router.pick(beginning(0, 100, (7, 50)), instances).id == 0
    assert router.pick(beginning(1, 100, (7, 50)), instances).id == 1  # half is not above it
    assert router.pick(beginning(2, 99, (7, 50)), instances).id in (0, 1)


def test_prefix_gives_way_to_load():
    limits = PrefixRouting(balance_abs_threshold=4, balance_rel_threshold=2.0)
    same = beginning(0, 10, (7, 9))
    for outstanding, chosen in (([4, 0], 0), ([5, 0], 1), ([10, 5], 0), ([11, 5], 1)):
        router, instances = make_router("prefix", 0, limits), views(2)
        assert router.pick(same, instances).id == 0
        instances[0].outstanding, instances[1].outstanding = outstanding
        assert router.pick(same, instances).id == chosen, outstanding


def test_prefix_without_any_prefix_spreads_tokens():
    router, instances = make_router("prefix", 0), views(2)
    chosen = [router.pick(Request(n, 0, 0.0, 10), instances).id for n in range(4)]
    assert chosen == [0, 1, 0, 1]
