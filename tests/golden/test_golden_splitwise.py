"""Splitwise by hand: the hand-over, a token machine lent to prompts, a prompt machine to decodes.

Prices (`hand.PRICES`): a step with n prompt tokens 10 + n ms, with B decodes that cache K tokens
20 + 2 B + K / 10 ms, with both the sum. A KV cache moves at 0.1 ms a token.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hand import MS, NEVER, PRICES, TOLERANCE_S, check_empty, check_equal, policy

from sim.core.simulation import Simulation
from sim.core.spec import InstanceSpec, Settings
from sim.types import Policy, Trace

pytestmark = pytest.mark.skipif(
    not hasattr(Policy, "places_decode"), reason="the engine does not ask where a request decodes"
)
COLUMNS = (
    *("prefill_instance", "decode_instance", "prefill_start_s", "prefill_end_s"),
    *("transfer_start_s", "transfer_end_s", "finish_s"),
)
NOWHERE = -1


def check(
    machines: Sequence[tuple[str, int]],
    requests: Sequence[tuple[float, int, int]],
    expected: Sequence[tuple[float, ...]],
    overlap: float = 0.0,
    **config: Any,
) -> None:
    """Run fused and step by step and compare `COLUMNS`, times in ms; blocks hold 4 tokens."""
    trace = Trace(
        np.array([r[1] for r in requests]),
        np.array([r[2] for r in requests]),
        np.array([r[0] * MS for r in requests]),
    )
    specs = [InstanceSpec(PRICES, n, 4, role=role, kv_token_bytes=1) for role, n in machines]
    records = []
    for fuse in (True, False):
        settings = Settings(fuse_steps=fuse, link_bytes_per_s=1e4, link_overlap=overlap)
        sim = Simulation(trace, policy("splitwise", **config), specs, settings)
        records.append(sim.run())
        check_empty(sim)
    check_equal(*records)
    columns = records[0].requests
    assert columns["emitted_tokens"].tolist() == [r[2] for r in requests]
    for name, values in zip(COLUMNS, zip(*expected, strict=True), strict=True):
        unit = MS if name.endswith("_s") else 1
        by_hand = np.array(values) * unit
        same = np.isclose(columns[name], by_hand, rtol=0, atol=TOLERANCE_S, equal_nan=True)
        assert same.all(), f"{name}: {columns[name].tolist()}, by hand {by_hand.tolist()}"


def test_from_prompt_to_token_machine_with_overlap():
    # Half of a transfer is hidden: 0.05 ms a token.
    #   0     Machine 0: A.                                          10 + 10         = 20
    #  20     A's KV starts at once (machine 1 is idle), 10 tokens.                  = 0.5
    #         Machine 0: B.                                          10 + 4          = 14
    #  20.5   Machine 1: A, K=10.                                    20 + 2 + 1      = 23
    #  34     B's prompt is done; machine 1 is in a step until 43.5.
    #  43.5   A, K=11: 23.1. B's KV starts, 4 tokens, 0.2.
    #  66.6   A is done. B (there since 43.7), K=4:                                  = 22.4
    #  89.0   B is done.
    check(
        [("prefill", 100), ("decode", 100)],
        [(0, 10, 3), (5, 4, 2)],
        [(0, 1, 0, 20, 20, 20.5, 66.6), (0, 1, 20, 34, 43.5, 43.7, 89.0)],
        overlap=0.5,
    )


def test_a_token_machine_is_lent_to_a_prompt():
    # A queue is long beyond 12 pending tokens.
    #   0     A: prompt machine 0, token machine 1 (all equal: the first). A runs.   10 + 13 = 23
    #   1     B: machine 0 (nothing waits there); machine 2 (4 blocks are reserved on 1).
    #   2     C: B waits on 0 and 13 + 8 + 6 > 12. Token machines 1 and 2 have one pending token
    #         each: 1 is lent. Decodes on 2 (3 blocks against 4). Machine 1: C.      10 + 6  = 16
    #  18     C is prefilled, machine 1 is a token machine again. C's KV moves to 2.         = 0.6
    #  18.6   Machine 2: C, K=6: 22.6.
    #  23     A is prefilled, its KV moves to 1: 1.3. Machine 0: B.                  10 + 8  = 18
    #  24.3   Machine 1: A, K=13: 23.3, and A is done at 47.6.
    #  41     B is prefilled; machine 2 is in a step until 41.2.
    #  41.2   B's KV moves to 2: 0.8. Machine 2: C, K=7: 22.7.
    #  63.9   C is done. Machine 2: B, K=8: 22.8.
    #  86.7   B is done.
    check(
        [("prefill", 100), ("decode", 100), ("decode", 100)],
        [(0, 13, 2), (1, 8, 2), (2, 6, 3)],
        [
            (0, 1, 0, 23, 23, 24.3, 47.6),
            (0, 2, 23, 41, 41.2, 42.0, 86.7),
            (1, 2, 2, 18, 18, 18.6, 63.9),
        ],
        max_pending_tokens=12,
    )


def test_a_hand_over_to_a_lower_index_comes_after_its_plan():
    # A queue is long beyond 28 pending tokens; a step holds 17.
    #   0     A: machines 0 and 1 (7 tokens: 2 blocks). Machine 0: A.                10 + 6  = 16
    #   1     B: machines 0 (nothing waits) and 2 (18 tokens: 5 blocks).
    #   2     C: machines 0 (6 + 17 + 4 = 27) and 1 (2 blocks against 5).
    #  16     A's KV moves: 0.6. Machine 0: B (C would exceed 17 tokens).            10 + 17 = 27
    #  16.6   Machine 1: A, K=6.                                                             = 22.6
    #  21.2   D: C waits on 0 and 17 + 4 + 8 > 28. Pending on 1: A and C, on 2: B; so 2 is lent.
    #         Decodes on 1 (4 blocks against 5). Machine 2: D.                       10 + 8  = 18
    #  39.2   Machine 1 ends A's step and starts the next, K=7: 22.7. At the same instant machine 2
    #         ends D's prompt: machine 1 has decided, D has to wait for its next step end.
    #  43     B's KV moves to 2: 1.7. Machine 0: C.                                  10 + 4  = 14
    #  44.7   Machine 2: B, K=17: 23.7, done at 68.4.
    #  57     C is prefilled, behind D at machine 1.
    #  61.9   A is done. D's KV (0.8, from 2) and C's (0.4, from 0) start moving to 1.
    #  62.3   Machine 1: C, K=4: 22.4. C is done at 84.7.
    #  84.7   D (there since 62.7), K=8: 22.8.
    # 107.5   D is done.
    check(
        [("prefill", 100), ("decode", 100), ("decode", 100)],
        [(0, 6, 3), (1, 17, 2), (2, 4, 2), (21.2, 8, 2)],
        [
            (0, 1, 0, 16, 16, 16.6, 61.9),
            (0, 2, 16, 43, 43, 44.7, 68.4),
            (0, 1, 43, 57, 61.9, 62.3, 84.7),
            (2, 1, 21.2, 39.2, 61.9, 62.7, 107.5),
        ],
        max_pending_tokens=28,
        max_num_batched_tokens=17,
    )


def test_a_prompt_machine_is_lent_to_decodes():
    # The token machine has 4 blocks.
    #   0     A: 10 + 1 tokens reserve 3 of them. Machine 0: A.                      10 + 10 = 20
    #   1     B: 3 + 2 blocks would fill machine 1, so machine 0 is lent and runs both phases.
    #  20     A's KV moves: 1.0. Machine 0: B.                                       10 + 4  = 14
    #  21     Machine 1: A, K=10: 23, K=11: 23.1; done at 67.1.
    #  34     Machine 0: B, K=4: 22.4.
    #  40     C: no machine is in the prompt pool, so the mixed one; 3 + 1 blocks would fill
    #         machine 1, so it decodes there too.
    #  56.4   B is done. Machine 0: C.                                               10 + 3  = 13
    #  69.4   C's only token.
    check(
        [("prefill", 100), ("decode", 4)],
        [(0, 10, 3), (1, 4, 2), (40, 3, 1)],
        [
            (0, 1, 0, 20, 20, 21, 67.1),
            (0, 0, 20, 34, NEVER, NEVER, 56.4),
            (0, NOWHERE, 56.4, 69.4, NEVER, NEVER, 69.4),
        ],
    )
