"""`deadline-batch` traces worked out by hand; times in milliseconds.

One prefill and one decode instance; KV moves at 1 ms a token, ample memory.

    a prefill of n tokens, padding included   10 + n             ms
    a step with B decodes, K cached           20 + 2 B + K / 10  ms
"""

from typing import Any

import numpy as np
import pytest

from policies.deadline_batch import DeadlineBatch, DeadlineBatchConfig
from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace

PRICES = AffineCost(0.010, 0.001, 0.020, 0.002, 0.0001)
NEVER = float("nan")
TIMES = ("prefill_start_s", "first_token_s", "transfer_start_s", "transfer_end_s", "finish_s")

Row = tuple[float, ...]


def replay(
    requests: list[tuple[float, int, int, int]], slo_ms: tuple[float, ...], **config: Any
) -> RunRecord:
    """Run (arrival in ms, input_len, output_len, source) fused and step by step, `slo_ms` a source.

    Both runs must agree.
    """
    arrival, inputs, outputs, source = (np.array(c) for c in zip(*requests, strict=True))
    names = tuple(str(bound) for bound in slo_ms)
    trace = Trace(inputs, outputs, arrival / 1000, source=source, sources=names)
    specs = [
        InstanceSpec(PRICES, 1000, 4, role="prefill", kv_token_bytes=1000),
        InstanceSpec(PRICES, 1000, 4, role="decode", kv_token_bytes=1000),
    ]
    runs = []
    for fuse in (True, False):
        settings = Settings(
            fuse_steps=fuse, link_bytes_per_s=1e6, ttft_slo_s=[bound / 1000 for bound in slo_ms]
        )
        runs.append(simulate(trace, DeadlineBatch(DeadlineBatchConfig(**config)), specs, settings))
    for name, values in runs[0].requests.items():
        np.testing.assert_array_equal(values, runs[1].requests[name], err_msg=name)
    return runs[0]


def check(record: RunRecord, *rows: Row) -> None:
    """Compare the prefill's start and end of every request and, if given, the later `TIMES`."""
    assert record.requests["status"].tolist() == ["finished"] * len(rows)
    full = [row if len(row) == 5 else (*row, NEVER, NEVER, row[1]) for row in rows]
    for at, name in enumerate(TIMES):
        hand = [row[at] for row in full]
        found = (record.requests[name] * 1000).tolist()
        assert found == pytest.approx(hand, abs=1e-9, nan_ok=True), name


# A (10) keeps the prefill instance busy until 20. Bounds: loose 200 ms, tight 60 ms.
#   B (4 -> 3 tokens) at 2, loose: due 202      C (20) at 3, loose: due 203
#   D (5) at 4, tight: due 64                   E (18) at 5, tight: due 65
#   F (2) at 6, loose: due 206                  all but B have one token of output
# At 20 all can be in time. Sorted: F 2, B 4, D 5 | E 18, C 20:
#   (10 + 3 x 5) + (10 + 2 x 20) = 75; splitting or joining any of them costs more.
GROUPS = [(0, 10, 1, 0), (2, 4, 3, 0), (3, 20, 1, 0), (4, 5, 1, 1), (5, 18, 1, 1), (6, 2, 1, 0)]
BOUNDS_MS = (200.0, 60.0)

# D leads: [D, B, F]                                                   20 + 25          =  45
# B moves 4 tokens: 45 - 49; K=4: 20 + 2 + 0.4 = 22.4; K=5: 22.5                        =  93.9
B_ROW = (20, 45, 45, 49, 93.9)


def test_groups_and_a_lost_request():
    record = replay(GROUPS, BOUNDS_MS)
    # 45     E alone would end at 45 + 28 = 73, after 65: lost. C is the only one left:   30 =  75
    # 75     nothing else waits: E                                                        28 = 103
    check(record, (0, 20), B_ROW, (45, 75), (20, 45), (75, 103), (20, 45))


def test_without_demotion_the_lost_request_leads():
    record = replay(GROUPS, BOUNDS_MS, demote_lost=False)
    # 45     E leads; [E, C] is cheaper than one after the other (50 against 28 + 30)        =  95
    check(record, (0, 20), B_ROW, (45, 95), (20, 45), (45, 95), (20, 45))


def test_without_groups_batches_are_filled_in_order():
    record = replay(GROUPS, BOUNDS_MS, grouping="none")
    # 20     D, due 64; E would make it [D, E] padded to 18: 20 + 46 = 66, too late: D alone   35
    # 35     E: 35 + 28 = 63 <= 65; B with it: 35 + 46 = 81, late: E alone                     63
    # 63     B, due 202; C: 10 + 40; F: 10 + 60                                              = 133
    #        B moves 133 - 137; 22.4 + 22.5                                                  = 181.9
    check(record, (0, 20), (63, 133, 133, 137, 181.9), (63, 133), (20, 35), (35, 63), (63, 133))


def test_padding_free():
    record = replay(GROUPS, BOUNDS_MS, padded=False)
    # 20     in order of deadline: D and E: 10 + 23 -> 53; B: 57; C: 10 + 47 -> 77, later than 64.
    #        [D, E, B]                                                     20 + 37         =  57
    # 57     C and F                                                       10 + 22         =  89
    #        B moves 57 - 61; 22.4 + 22.5                                                  = 105.9
    check(record, (0, 20), (20, 57, 57, 61, 105.9), (57, 89), (20, 57), (20, 57), (57, 89))


# A (10) until 20. B (10) at 5, due 45; C (12) at 6, due 206. [B, C]: 10 + 24 = 34 against 20 + 22.
SHRINK = [(0, 10, 1, 0), (5, 10, 1, 1), (6, 12, 1, 0)]


def test_a_group_shrinks_until_its_members_are_in_time():
    # 20     [B, C] would end at 54, after 45: C, the longest, is dropped. B until 40, C until 62.
    check(replay(SHRINK, (200.0, 40.0)), (0, 20), (20, 40), (40, 62))


def test_without_shrinking():
    check(replay(SHRINK, (200.0, 40.0), shrink=False), (0, 20), (20, 54), (20, 54))


# One prompt of 10 tokens a batch, 20 ms each. B has a bound of 15 ms, so it is lost from the start.
#   A at 0, B at 1 (lost), C at 2, D at 30, E at 50
AGE = [(0, 10, 1, 0), (1, 10, 1, 1), (2, 10, 1, 0), (30, 10, 1, 0), (50, 10, 1, 0)]


@pytest.mark.parametrize(
    ("age_limit_ms", "age_share", "b_start", "e_start"),
    [
        (1000, 1.0, 80, 60),  # nothing else is left
        (50, 1.0, 60, 80),  # at 60 it has waited 59 ms
        (58, 1.0, 60, 80),
        (60, 1.0, 80, 60),
        (50, 1 / 3, 60, 80),  # C and D, 20 tokens, have gone ahead: (3 - 1) x 10
        (50, 1 / 4, 80, 60),  # 20 < (4 - 1) x 10
    ],
)
def test_age_limit(age_limit_ms: float, age_share: float, b_start: float, e_start: float):
    record = replay(
        AGE,
        (200.0, 15.0),
        max_batch_size=1,
        age_limit_s=age_limit_ms / 1000,
        age_share=age_share,
    )
    check(record, (0, 20), (b_start, b_start + 20), (20, 40), (40, 60), (e_start, e_start + 20))
