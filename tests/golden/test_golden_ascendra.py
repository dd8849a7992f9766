"""Ascendra by hand: two instances, who waits too long moves in time."""

import numpy as np
import pytest

from policies import load
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace

BUDGET = 100


def run(rows, fuse=True, ttft_s=3.0, instances=2, **config):
    """Serve (arrival, prompt, output) at 10 ms a prompt token and 100 ms a decode step."""
    arrival_s, input_len, output_len = (np.array(c) for c in zip(*rows, strict=True))
    trace = Trace(input_len, output_len, np.array(arrival_s, dtype=float))
    cls = load("ascendra")
    values = {
        "max_num_batched_tokens": BUDGET,
        "max_num_seqs": 2,
        "margin_s": 0.5,
        "transfer_s": 0.25,
        "estimate_error": 0.0,
    } | config
    specs = [InstanceSpec(AffineCost(0.0, 0.01, 0.1), 1000, 16) for _ in range(instances)]
    settings = Settings(fuse, ttft_slo_s=[ttft_s] if ttft_s else [])
    return simulate(trace, cls(cls.Config(**values)), specs, settings)


ROWS = [
    (0.0, 100, 1),  # ticket: HP, 1 s
    (0.1, 100, 30),  # HP has a seat taken of two: LP, 1 s; it then decodes
    (0.2, 80, 1),  # LP: at 1.1 the budget is 99: fits, step of 0.9 s
    (0.3, 70, 1),  # LP: does not fit beside; 1.1 + 0.9 + 0.5 < 3.3: stays, and runs at 2.0
]


@pytest.mark.parametrize("fuse", [True, False])
def test_who_fits_is_served_out_of_order(fuse):
    record = run(ROWS, fuse)
    assert record.requests["prefill_instance"].tolist() == [1, 0, 0, 0]
    assert record.requests["prefill_start_s"].tolist() == [0.0, 0.1, 1.1, 2.0]
    assert record.counters["policy_moves"] == 0


@pytest.mark.parametrize("fuse", [True, False])
def test_who_will_be_late_moves(fuse):
    """With a bound of 2 s: at 1.1 a step of 0.9 s begins, and 2.0 + 0.5 > 2.3: the last one moves.

    It may start on the other instance when the message is there, at 1.35.
    """
    record = run(ROWS, fuse, ttft_s=2.0)
    assert record.requests["prefill_instance"].tolist() == [1, 0, 0, 1]
    assert record.requests["prefill_start_s"].tolist() == [0.0, 0.1, 1.1, 1.35]
    assert record.requests["first_token_s"][3] == pytest.approx(2.05)
    assert record.counters["policy_moves"] == 1
    assert record.counters["policy_high_arrivals"] == 1


def test_nobody_moves_without_a_bound_or_another_instance():
    for options in ({"ttft_s": 0.0}, {"instances": 1, "ttft_s": 2.0}):
        record = run(ROWS, **options)
        assert record.counters["policy_moves"] == 0
        assert (record.requests["status"] == "finished").all()


def test_a_longer_margin_moves_more():
    rows = [(0.05 * k, 40 + 3 * (k % 7), 5) for k in range(60)]
    moves = [run(rows, margin_s=m).counters["policy_moves"] for m in (0.0, 1.0, 2.5)]
    assert moves[0] <= moves[1] <= moves[2]
    assert moves[2] > moves[0]
