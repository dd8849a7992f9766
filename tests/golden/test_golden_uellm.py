"""UELLM traces worked out by hand; times in milliseconds.

    a step with n prompt tokens, padded   10 + n             ms
    a step with B decodes, K cached       20 + 2 B + K / 10  ms

Batches are padded, rows compute until the longest is done, results leave together.
"""

from typing import Any

import numpy as np
import pytest

from policies.uellm import Uellm, UellmConfig
from sim.core.predictors import Constant, Oracle
from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace

PRICES = AffineCost(0.010, 0.001, 0.020, 0.002, 0.0001)
TIMES = ("prefill_start_s", "first_token_s", "finish_s")


def replay(
    requests: list[tuple[float, int, int]],
    source: list[int],
    settings: dict[str, Any],
    **config: Any,
) -> RunRecord:
    """Run (arrival in ms, input_len, output_len) fused and step by step; both must agree."""
    arrival, inputs, outputs = (np.array(column) for column in zip(*requests, strict=True))
    trace = Trace(inputs, outputs, arrival / 1000, source=np.array(source), sources=("a", "b"))
    runs = [
        simulate(
            trace,
            Uellm(UellmConfig(**config)),
            [InstanceSpec(PRICES, 1000, 4)],
            Settings(fuse_steps=fuse, **settings),
        )
        for fuse in (True, False)
    ]
    for name, values in runs[0].requests.items():
        np.testing.assert_array_equal(values, runs[1].requests[name], err_msg=name)
    return runs[0]


def check(record: RunRecord, *rows: tuple[float, float, float, int]) -> None:
    """Compare (start, first token, finish, tokens) of every request."""
    assert record.requests["status"].tolist() == ["finished"] * len(rows)
    for at, name in enumerate(TIMES):
        hand = [row[at] for row in rows]
        assert (record.requests[name] * 1000).tolist() == pytest.approx(hand, abs=1e-9), name
    assert record.requests["emitted_tokens"].tolist() == [row[3] for row in rows]


def test_order_and_the_coded_rule():
    # b = 10 ms a token, threshold 6 tokens, lengths known, SLO 225 s for all.
    #    0    A (2 -> 2) alone                                          10 + 2         =  12
    #   12    one step, B=1, K=2                                        22.2           =  34.2
    #         Meanwhile, key (arrival + 10 ms x output, less 225 s):
    #           B (3 -> 3) at  5: 35    C (4 -> 1) at 10: 20
    #           D (5 -> 6) at 15: 75    E (2 -> 2) at 20: 40            order C, B, E, D
    #         C starts with 1 token; B: (3 - 1) x 2 x 1.2 = 4.8 <= 6; E is shorter: accepted;
    #         D: (6 - 3) x 4 x 1.2 = 14.4 > 6: not.
    #   34.2  [C, B, E] padded to 4                                     10 + 12        =  56.2
    #         two steps for B: K=12, 20 + 6 + 1.2 = 27.2; K=15, 27.5                   = 110.9
    #  110.9  D alone                                                   10 + 5         = 125.9
    #         five steps, K=5..9: 22.5 + 22.6 + 22.7 + 22.8 + 22.9 = 113.5             = 239.4
    record = replay(
        [(0, 2, 2), (5, 3, 3), (10, 4, 1), (15, 5, 6), (20, 2, 2)],
        [0] * 5,
        {"predictor": Oracle()},
        max_batch_size=4,
        token_weight_s=0.010,
        threshold_tokens=6,
    )
    check(
        record,
        (0, 12, 34.2, 2),
        (34.2, 56.2, 110.9, 3),
        (34.2, 56.2, 110.9, 1),
        (110.9, 125.9, 239.4, 6),
        (34.2, 56.2, 110.9, 2),
    )


def test_the_published_rule_with_two_bounds():
    # SLO of A 3 s, of B and C 1 s; lengths weigh nothing; threshold 20 s.
    #         Order B, C, A. [B, C]: sum (1 + 1) + (1 + 1) = 4, x 2 x 1.2 = 9.6 <= 20.
    #         [B, C, A]: (1 + 3) + (1 + 3) + (3 + 3) = 14, x 3 x 1.2 = 50.4 > 20.
    #    0    [B, C] padded to 3                                        10 + 6         =  16
    #   16    one step for C, B=2, K=6                                  24.6           =  40.6
    #   40.6  A                                                         10 + 1         =  51.6
    record = replay(
        [(0, 1, 1), (0, 2, 1), (0, 3, 2)],
        [1, 0, 0],
        {"e2e_slo_s": (1.0, 3.0)},
        rule="published",
        token_weight_s=0,
        published_token_weight_s=0,
        published_threshold_s=20.0,
    )
    check(record, (40.6, 51.6, 51.6, 1), (0, 16, 40.6, 1), (0, 16, 40.6, 2))


def test_a_cap_cuts_what_the_prediction_missed():
    # Everyone is predicted 2 tokens, slack 1: generation stops after 3.
    #    0    A (2 -> 6) and B (2 -> 2): 10 + 4                                        =  14
    #   14    two steps, B=2, K=4 and 6: 24.4 + 24.6                                   =  63
    record = replay(
        [(0, 2, 6), (0, 2, 2)],
        [0, 0],
        {"predictor": Constant(2)},
        generation_cap="predicted",
        cap_slack_tokens=1,
    )
    check(record, (0, 14, 63, 3), (0, 14, 63, 2))
