"""The solver against brute force, the laws, the bands and the queue that sees the rate."""

from itertools import pairwise

import numpy as np
import pytest
from policy_views import view_of
from scipy import stats

from policies import load
from policies.parts.smdp_model import BatchQueue, ServiceLaw, arrivals_in, law_of
from policies.parts.smdp_solver import (
    control_limit,
    evaluate,
    fixed_batches,
    limit_of,
    solve,
)
from policies.parts.smdp_tables import Bands, Power, RatedQueue, Solver, decode_seconds
from sim.costs.simple import AffineCost
from sim.types import Request

CASES = 50


def random_queue(seed):
    rng = np.random.default_rng(seed)
    most = int(rng.integers(1, 6))
    times = np.sort(rng.uniform(0.2, 3.0, most))
    energy = np.sort(rng.uniform(0.0, 5.0, most))
    stages = int(rng.choice([0, 0, 1, 3]))
    law = ServiceLaw(times.tolist(), energy.tolist(), stages)
    rate = float(rng.uniform(0.1, 0.95)) * law.most_per_s
    weight = float(rng.choice([0.0, 0.3, 1.0, 4.0]))
    return BatchQueue(law, rate, weight, most + int(rng.integers(1, 8)), float(rng.uniform(0, 5)))


def brute_force(queue):
    """Policy iteration on the semi-Markov process as it is written down, dense and in loops."""
    law, rate, last = queue.law, queue.rate, queue.states - 1
    options = []
    for s in range(last + 1):
        batches = [law.max_batch] if s == last else range(min(s, law.max_batch) + 1)
        options.append({a: _decision(law, rate, queue, s, a, last) for a in batches})
    table = [max(choices) for choices in options]
    for _ in range(100):
        gain, values = _averaged([options[s][a] for s, a in enumerate(table)])
        better = []
        for s, choices in enumerate(options):
            scores = {a: c - gain * y + p @ values for a, (p, y, c) in choices.items()}
            least = min(scores.values())
            keep = table[s] if scores[table[s]] <= least + 1e-12 else min(scores, key=scores.get)
            better.append(keep)
        if better == table:
            return tuple(table), gain
        table = better
    raise AssertionError("policy iteration goes round in circles")


def _decision(law, rate, queue, s, a, last):
    moves = np.zeros(last + 1)
    extra = queue.overflow_cost_s if s == last else 0.0
    if a == 0:
        moves[min(s + 1, last)] = 1
        return moves, 1 / rate, s / rate**2
    mean = law.service_s[a - 1]
    if law.stages:
        ended = stats.nbinom(law.stages, law.stages / (law.stages + rate * mean))
        square = mean**2 * (1 + 1 / law.stages)
    else:
        ended, square = stats.poisson(rate * mean), mean**2
    for k, chance in enumerate(ended.pmf(np.arange(400))):
        moves[min(s - a + k, last)] += chance
    response = (s * mean + rate * square / 2) / rate
    return moves, mean, response + queue.power_weight * law.energy_j[a - 1] + extra * mean


def _averaged(rows):
    """Gain and values of a table: v = c - g*y + P v, v[0] = 0."""
    size = len(rows)
    system = np.eye(size) - np.array([p for p, _, _ in rows])
    system[:, 0] = [y for _, y, _ in rows]
    solved = np.linalg.solve(system, np.array([c for _, _, c in rows]))
    return solved[0], np.concatenate(([0.0], solved[1:]))


@pytest.mark.parametrize("seed", range(CASES))
def test_equals_brute_force_policy_iteration(seed):
    queue = random_queue(seed)
    table, gain = brute_force(queue)
    for improve in (True, False):
        assert solve(queue, 1e-10, improve) == table
    found = evaluate(queue, table)
    cost = found.cost_s(queue.power_weight)
    assert cost + found.overflow * _overflow_cost(queue, table) == pytest.approx(gain, rel=1e-8)


def _overflow_cost(queue, table):
    """Abstract cost per decision made in overflow, over the mean time between decisions."""
    moves = queue.chain(table) - np.eye(queue.states)
    system = np.vstack((moves.T, np.ones(queue.states)))
    share = np.linalg.lstsq(system, np.eye(queue.states + 1)[-1], rcond=None)[0]
    times = [queue.service_s[a - 1] if a else 1 / queue.rate for a in table]
    return queue.overflow_cost_s * times[-1] / float(share @ times)


def test_evidence_of_brute_force(record_property):
    record_property("evidence", f"SMDP tables = brute-force policy iteration: {CASES} random cases")


@pytest.mark.parametrize("stages", [0, 1, 4])
@pytest.mark.parametrize("mean", [0.01, 1.7, 40.0])
def test_arrivals_in_a_service(stages, mean):
    found = arrivals_in(mean, 30, stages)
    law = stats.nbinom(stages, stages / (stages + mean)) if stages else stats.poisson(mean)
    np.testing.assert_allclose(found[:-1], law.pmf(range(29)), rtol=1e-10)
    assert found[-1] == pytest.approx(law.sf(28), abs=1e-12)


def test_m_d_1_by_the_solver():
    """Batches of one, no power: Pollaczek and Khinchine."""
    law = ServiceLaw([2.0], [0.0])
    queue = BatchQueue(law, 0.4, 0.0, 300, 1.0)
    found = evaluate(queue, solve(queue, 1e-6))
    assert found.response_s == pytest.approx(2 + 0.4 * 4 / (2 * 0.2), rel=1e-6)
    exponential = BatchQueue(ServiceLaw([2.0], [0.0], 1), 0.4, 0.0, 300, 1.0)
    assert evaluate(exponential, control_limit(1, 1, 302)).response_s == pytest.approx(10, rel=1e-6)


def test_rules_as_tables():
    assert control_limit(3, 4, 8) == (0, 0, 0, 3, 4, 4, 4, 4)
    assert control_limit(1, 4, 6) == (0, 1, 2, 3, 4, 4)
    assert fixed_batches(3, 6) == (0, 0, 0, 3, 3, 3)
    assert limit_of(fixed_batches(3, 6)) == 3


def test_more_weight_on_power_waits_longer():
    law = law_of(8, lambda b: 1 + 0.2 * b, lambda b: 10 + b)
    limits = [limit_of(solve(BatchQueue(law, 1.0, w, 40, 1.0), 1e-6)) for w in (0, 1, 3, 10)]
    assert all(a <= b for a, b in pairwise(limits))
    assert limits[-1] > limits[0]


def test_what_cannot_be():
    with pytest.raises(ValueError, match="max_waiting 3 is below the batch of 4"):
        BatchQueue(law_of(4, float, float), 1.0, 0.0, 3, 0.0)
    with pytest.raises(ValueError, match="positive service time"):
        ServiceLaw([0.0], [1.0])


# -- bands ----------------------------------------------------------------------------------------


def bands(count=9):
    law = law_of(4, lambda b: 1.0 + 0.1 * b, float)
    return Bands(law, Solver("smdp", 1, 0.0, 8, 1.0, 1e-6), count)


def test_bands_are_kept_until_another_centre_is_passed():
    nine = bands()
    assert [round(nine.load(b), 2) for b in (0, 4, 8)] == [0.1, 0.5, 0.9]
    assert nine.next_band(0.52, -1) == 4
    assert nine.next_band(0.59, 4) == 4  # 0.6 has not been passed
    assert nine.next_band(0.61, 4) == 5
    assert nine.next_band(0.41, 4) == 4
    assert nine.next_band(0.39, 4) == 3
    assert nine.next_band(0.9, 0) == 8


def test_a_load_beyond_the_bands_gets_the_nearest():
    nine = bands()
    assert (nine.next_band(0.0, -1), nine.next_band(7.0, -1)) == (0, 8)
    assert [nine.beyond(x) for x in (0.04, 0.06, 0.5, 0.94, 0.96, 3.0)] == [-1, 0, 0, 0, 1, 1]


def push(queue, view, gaps):
    at = 0.0
    for row, gap in enumerate(gaps):
        at += gap
        request = Request(row, 0, at, 1)
        request.home = view
        queue.push(request)


def smdp(**config):
    cls = load("smdp")
    return cls(cls.Config(**config))


def test_the_queue_follows_the_rate():
    """Service of 4 takes 4.4 s at most: 0.8 a second."""
    service = {"base_ms": 1000, "request_ms": 100}
    policy = smdp(service=service, max_batch_size=4, max_waiting=8, smoothing=0.5)
    view = view_of(policy)
    queue = view.waiting
    assert isinstance(queue, RatedQueue)
    full = 4 / 1.4
    push(queue, view, [0.0, 2 / full])
    assert (queue.gap_s, queue.band) == (pytest.approx(2 / full), 4)
    push(RatedQueue(policy.book), view, [1.0])
    assert policy.operation_counts == {"below_bands": 0, "above_bands": 0}
    push(queue, view, [0.0001] * 20)
    above = policy.operation_counts["above_bands"]
    assert above > 0
    push(queue, view, [1000.0] * 2)
    assert policy.operation_counts == {"below_bands": 2, "above_bands": above}


def test_a_law_from_the_cost_model():
    """One prompt of 10 tokens, 4 outputs on average: 3 decode steps of 20 ms with 1 ms a token."""
    cost = AffineCost(0.1, 0.01, 0.02, 0.0, 0.001)
    assert decode_seconds(cost, 1, 10, 4) == pytest.approx(3 * (0.02 + 0.001 * 11.5))
    assert decode_seconds(cost, 2, 10, 4) == pytest.approx(5 * (0.02 + 0.001 * 25))
    assert decode_seconds(cost, 1, 10, 1) == 0
    policy = smdp(max_batch_size=2, mean_input_tokens=10, mean_output_tokens=4, prefill_w=100)
    law = policy.book.maker.law(cost)
    assert law.service_s[0] == pytest.approx(0.2 + 3 * 0.0315)
    watts = Power(0, 175, 385, 2.5).decode_watts(1)
    assert watts == pytest.approx(191, abs=0.5)  # neighbours.md, section 6
    assert law.energy_j[0] == pytest.approx(0.2 * 100 + 3 * 0.0315 * watts)
    prompts = smdp(applies_to="prefill", max_batch_size=2, mean_input_tokens=10)
    assert prompts.book.maker.law(cost).service_s == pytest.approx([0.2, 0.3])


def test_the_power_curve_of_an_a100():
    power = Power(400, 175, 385, 2.5)
    found = [round(power.decode_watts(b)) for b in (1, 4, 16, 32, 64, 128)]
    assert found == [191, 254, 347, 369, 379, 383]
