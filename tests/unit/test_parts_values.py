"""The queue by value against the values themselves, sorted afresh each time."""

from math import inf

import numpy as np
import pytest
from policy_views import view_of

from policies import load
from policies.parts.values import Estimator, ValueQueue
from sim.costs.simple import AffineCost
from sim.types import Request

TOKEN_S = 0.01


def values(order, waiting, now_s):
    """Id and value of each, and whether it is late, most valuable first."""
    found = []
    for request in waiting:
        prompt_s, bound = TOKEN_S * request.target_tokens, request.deadline_s >= 0
        slack_s = request.deadline_s - now_s - prompt_s if bound else inf
        if order == "edf":
            value = inf if slack_s <= 0 else 1 / slack_s
        elif order == "sjf":
            value = 1 / request.target_tokens
        else:
            bound_s = request.deadline_s - request.arrival_s
            value = (bound_s + now_s - request.arrival_s) / (bound_s * request.target_tokens)
            value = value if bound else 0.0
        start_s = request.deadline_s - prompt_s if order == "edf" and slack_s <= 0 else 0.0
        found.append((-value, start_s, request.id, slack_s))
    return [(id, slack_s) for _, _, id, slack_s in sorted(found)]


@pytest.mark.parametrize("order", ["edf", "sjf", "basic"])
@pytest.mark.parametrize("seed", range(4))
def test_order_is_that_of_the_values(order, seed):
    rng = np.random.default_rng(seed)
    cls = load("ascendra")
    view = view_of(cls(cls.Config()))
    view.cost = AffineCost(0.0, TOKEN_S, 0.02)
    queue = ValueQueue(order, Estimator(0.0))
    waiting, front, now_s = {}, [], 0.0
    for id in range(300):
        request = Request(id, 0, now_s, int(rng.integers(1, 60)))
        request.home = view
        request.deadline_s = -1.0 if rng.random() < 0.1 else now_s + float(rng.uniform(0.1, 3))
        if rng.random() < 0.05:
            queue.push_front(request)
            front.insert(0, request)
        else:
            queue.push(request)
            waiting[id] = request
        if rng.random() < 0.4 and waiting:
            queue.remove(waiting.pop(int(rng.choice(list(waiting)))))
        if rng.random() < 0.1 and front:
            queue.remove(front.pop())
        now_s += float(rng.exponential(0.02))
        queue.now_s = now_s
        first = [r.id for r in front]
        wanted = values(order, waiting.values(), now_s)
        live, late = ([w for w in wanted if (w[1] > 0) == is_live] for is_live in (True, False))
        assert [r.id for r in queue.by_value()] == first + [id for id, _ in wanted]
        assert [r.id for r in queue.late_last()] == first + [id for id, _ in [*live, *late]]
        if order != "basic":
            left_s = live[0][1] if live else inf
            assert queue.next_late_s() - now_s == pytest.approx(left_s, abs=1e-9)
        assert sorted(r.id for r in queue) == sorted([*first, *waiting])
        assert queue.tokens == sum(r.target_tokens for r in [*front, *waiting.values()])
        assert len(queue) == len(front) + len(waiting)
    assert late


def test_a_length_is_priced_once():
    class Counting(AffineCost):
        calls = 0

        def step(self, *args):
            self.calls += 1
            return super().step(*args)

    estimator, cost = Estimator(0.05), Counting(0.0, TOKEN_S, 0.02)
    found = [estimator.prefill_s(cost, tokens) for tokens in (7, 9, 7, 9, 7)]
    assert cost.calls == 2
    assert found == [found[0], found[1]] * 2 + [found[0]]
    assert estimator.prefill_s(AffineCost(0.0, 1.0, 0.0), 7) > 10 * found[0]
