"""Continuous batching step by step: chunks, stalls, arrivals at a step's end, knots of the cost."""

import pytest
from hand import CONSTANT, Row, policy, replay

from sim.costs.simple import AffineCost
from sim.types import DecodePiece, N, to_fs

FEMTOSECOND_MS = 1e-12


def test_v1_prompt_is_chunked_beside_a_decode():
    run = replay(
        [(0, 4, 6), (10, 20, 2), (60, 3, 1)],
        policy("continuous", scheduler="v1", max_num_batched_tokens=8, max_num_seqs=4),
    )
    # 8 tokens a step; decodes take theirs first.
    #   0    A, whole prompt.                                             10 + 4          = 14
    #  14    A decodes, 7 tokens are left for B.   17 + (B=1, K=4: 20 + 2 + 0.4 = 22.4)   = 39.4
    #  53.4  7 more of B.                          17 + (B=1, K=5: 22.5)                  = 39.5
    #  60      C arrives.
    #  92.9  The last 6 of B, and the first 1 of C. 17 + (B=1, K=6: 22.6)                 = 39.6
    # 132.5  B's first token. A and B decode, 6 tokens are left: C's other 2.
    #                                              12 + (B=2, K=7+20: 20 + 4 + 2.7)      = 38.7
    # 171.2  B is done, C too. A:                           B=1, K=8:                    = 22.8
    # 194.0  A's 6th token (14, 53.4, 92.9, 132.5, 171.2, 194).
    run.check(
        Row(arrival=0, start=0, first=14, finish=194.0, tokens=6),
        Row(arrival=10, start=14, first=132.5, finish=171.2, tokens=2),
        Row(arrival=60, start=92.9, first=171.2, finish=171.2, tokens=1),
    )
    # Cached before the step: decodes and half-prefilled prompts.
    run.check_steps(
        (0, 14, "prefill", 4, 0, 0),
        (14, 39.4, "mixed", 7, 1, 4),
        (53.4, 39.5, "mixed", 7, 1, 5 + 7),
        (92.9, 39.6, "mixed", 7, 1, 6 + 14),
        (132.5, 38.7, "mixed", 2, 2, 27 + 1),
        (171.2, 22.8, "decode", 0, 1, 8),
    )
    run.check_gaps(39.4, 39.5, 39.6, 38.7, 22.8, 38.7)


def test_v1_long_prompt_threshold_leaves_budget_for_others():
    run = replay(
        [(0, 10, 1), (0, 3, 1)],
        policy(
            "continuous",
            scheduler="v1",
            max_num_batched_tokens=8,
            max_num_seqs=4,
            long_prefill_token_threshold=4,
        ),
    )
    #  0  4 tokens of A (the threshold, not the budget), B whole.         10 + 7          = 17
    # 17  B is done. 4 more of A.                                         10 + 4          = 14
    # 31  The last 2.                                                     10 + 2          = 12
    run.check(
        Row(arrival=0, start=0, first=43, finish=43, tokens=1),
        Row(arrival=0, start=0, first=17, finish=17, tokens=1),
    )


def test_v0_prefills_stall_the_decodes():
    run = replay([(0, 4, 5), (20, 4, 3), (40, 4, 2)], policy("continuous", scheduler="v0"))
    #   0    A.                                                           10 + 4          = 14
    #  14                                                   B=1, K=4:                    = 22.4
    #  36.4  B (arrived at 20) alone.                                     10 + 4          = 14
    #  50.4  C (arrived at 40) alone.                                     10 + 4          = 14
    #  64.4  cached A 5, B 4, C 4.                          B=3, K=13:   20 + 6 + 1.3    = 27.3
    #  91.7  C is done.                                     B=2, K=11:   20 + 4 + 1.1    = 25.1
    # 116.8  B is done.                                     B=1, K=7:                    = 22.7
    # 139.5  A is done.
    run.check(
        Row(arrival=0, start=0, first=14, finish=139.5, tokens=5),
        Row(arrival=20, start=36.4, first=50.4, finish=116.8, tokens=3),
        Row(arrival=40, start=50.4, first=64.4, finish=91.7, tokens=2),
    )
    # A waited from 36.4 to 91.7 = 55.3 for its third token, B from 50.4 to 91.7 = 41.3 for its
    # second, C 27.3.
    run.check_gaps(22.4, 55.3, 25.1, 22.7, 41.3, 25.1, 27.3)
    # In the log the step at 64.4 says: 3 emit; the one who decoded before ("veteran") stood still
    # for 64.4 - 36.4 = 28 more; the gap of one who joined earlier ("odd") is listed apart.
    step = run.fused.steps[run.fused.steps["decode_requests"] == 3][0]
    assert (step["emitting"], step["veterans"], step["odd"]) == (3, 1, 1)
    assert step["lead_fs"] == 28 * 10**12
    assert run.fused.gaps_s.tolist() == pytest.approx([0.0413], abs=1e-12)


def test_v0_a_prefill_after_a_stalled_step_has_no_gaps():
    run = replay([(0, 4, 4), (20, 4, 1), (60, 4, 1)], policy("continuous", scheduler="v0"))
    #   0    A.                                                           10 + 4          = 14
    #  14                                                   B=1, K=4:                    = 22.4
    #  36.4  B (arrived at 20) alone.                                     10 + 4          = 14
    #  50.4                                                 B=1, K=5:                    = 22.5
    #  72.9  C (arrived at 60) alone.                                     10 + 4          = 14
    #  86.9                                                 B=1, K=6:                    = 22.6
    # 109.5  A is done.
    run.check(
        Row(arrival=0, start=0, first=14, finish=109.5, tokens=4),
        Row(arrival=20, start=36.4, first=50.4, finish=50.4, tokens=1),
        Row(arrival=60, start=72.9, first=86.9, finish=86.9, tokens=1),
    )
    # Three gaps, all of A: 22.4, 72.9 - 36.4 = 36.5, 109.5 - 72.9 = 36.6.
    run.check_gaps(22.4, 36.5, 36.6)


# -- arrivals and step ends at one instant ----------------------------------------------------


@pytest.mark.parametrize("scheduler", ["v1", "v0"])
@pytest.mark.parametrize(
    ("arrival", "in_time"), [(55, True), (55 + FEMTOSECOND_MS, False), (60, False), (75, False)]
)
def test_arrival_at_exactly_a_steps_end_is_in_time(scheduler: str, arrival: float, in_time: bool):
    run = replay(
        [(0, 5, 5), (arrival, 3, 1)], policy("continuous", scheduler=scheduler), cost=CONSTANT
    )
    # Decode steps of 20 ms. A prefills until 15 and gets tokens at 15, 35, 55, 75, 95.
    # B at 55 is in time for the plan made at 55; one femtosecond later it waits for 75.
    # V1: one step with B's prompt and A's decode, 13 + 20 = 33. V0: B alone, 13; A's decode after.
    start = 55 if in_time else 75
    b_first = start + (33 if scheduler == "v1" else 13)
    # A still needs tokens 4 and 5 at 55 (or 5 at 75). The first comes 33 later either way.
    a_finish = start + 33 + (20 if in_time else 0)
    run.check(
        Row(arrival=0, start=0, first=15, finish=a_finish, tokens=5),
        Row(arrival=arrival, start=start, first=b_first, finish=b_first, tokens=1),
    )


def test_arrival_at_the_instant_of_the_last_token():
    run = replay([(0, 5, 2), (35, 3, 1), (35, 2, 1)], policy("continuous"), cost=CONSTANT)
    # A prefills until 15 and has its second token at 35; B and C come at 35 and start at once,
    # in one step of 10 + 5 = 15.
    run.check(
        Row(arrival=0, start=0, first=15, finish=35, tokens=2),
        Row(arrival=35, start=35, first=50, finish=50, tokens=1),
        Row(arrival=35, start=35, first=50, finish=50, tokens=1),
    )


def test_two_instances_share_an_instant():
    run = replay(
        [(0, 5, 2), (0, 5, 2), (35, 3, 1), (35, 3, 1)],
        policy("continuous"),
        cost=CONSTANT,
        instances=2,
        router="shortest-queue",
    )
    # A goes to instance 0 and B, at the same instant but later in the trace, to instance 1. Both
    # finish at 35. C and D arrive before that is settled: 1 and 1 outstanding, so again 0, then 1.
    run.check(
        Row(arrival=0, start=0, first=15, finish=35, tokens=2),
        Row(arrival=0, start=0, first=15, finish=35, tokens=2),
        Row(arrival=35, start=35, first=48, finish=48, tokens=1),
        Row(arrival=35, start=35, first=48, finish=48, tokens=1),
    )
    assert run.fused.requests["prefill_instance"].tolist() == [0, 1, 0, 1]
    assert run.fused.requests["decode_instance"].tolist() == [0, 1, -1, -1]


def test_instances_act_in_the_order_of_their_index():
    run = replay(
        [(0, 5, 9), (0, 5, 9), (0, 5, 9), (0, 5, 9), (0, 1, 2)],
        policy("continuous", scheduler="v0", preemption_mode="swap"),
        cost=AffineCost(prefill_base_s=0.020, decode_base_s=0.020),
        blocks=5,
        instances=2,
        spec={"total_swap_blocks": 4, "swap_s_per_block": 0.001},
    )
    # Every step takes 20 ms. Instance 0 has A, C and E, instance 1 has B and D.
    #   0  Prefill; A, B, C, D hold two blocks each.
    #  20  Instance 1 plans three steps, until 80. Instance 0 plans one: E is done at 40; there it
    #      plans two, until 80: later than instance 1 planned.
    #  80  At this instant instance 0 acts first all the same. 8 tokens are cached each, two blocks
    #      are needed, one is free: C goes to the host, 2 blocks, 2 ms; then D on instance 1.
    # 102, 122, 142, 162, 182  A and B have 9 tokens. C and D come back, 2 ms.
    # 204, 224, 244, 264, 284  C and D have 9.
    run.check(
        Row(arrival=0, start=0, first=20, finish=182, tokens=9),
        Row(arrival=0, start=0, first=20, finish=182, tokens=9),
        Row(arrival=0, start=0, first=20, finish=284, tokens=9, preemptions=1),
        Row(arrival=0, start=0, first=20, finish=284, tokens=9, preemptions=1),
        Row(arrival=0, start=0, first=20, finish=40, tokens=2),
    )
    run.check_swaps(
        *((80, 2, 2, 2, "out"), (80, 2, 3, 2, "out")),
        *((182, 2, 2, 2, "in"), (182, 2, 3, 2, "in")),
    )


# -- one token, one block ---------------------------------------------------------------------


def test_prompt_of_exactly_one_block_and_one_token_output():
    run = replay([(0, 4, 1), (0, 4, 2)], policy("continuous", max_num_seqs=1), blocks=2)
    #  0  A fills one block and is done with its first token.              10 + 4         = 14
    # 14  B fills one; its second token takes the other.                   10 + 4         = 14
    # 28                                                     B=1, K=4:                   = 22.4
    run.check(
        Row(arrival=0, start=0, first=14, finish=14, tokens=1),
        Row(arrival=0, start=14, first=28, finish=50.4, tokens=2),
    )
    run.check_gaps(22.4)


# -- knots of the cost model ------------------------------------------------------------------


class Kinked(AffineCost):
    """Prefill as in `CONSTANT`; a decode step lasts 20 ms below 10 cached tokens, then 30 ms."""

    def decode(self, batch: N) -> DecodePiece:
        low = DecodePiece(to_fs(0.020), 0, kv_end=10)
        low.next = DecodePiece(to_fs(0.030), 0)
        return low


KINKED = Kinked(prefill_base_s=0.010, prefill_token_s=0.001)


def test_span_ends_at_a_knot():
    run = replay([(0, 6, 8)], policy("continuous"), cost=KINKED)
    #  0  prefill                                                          10 + 6         = 16
    # 16  steps that find 6, 7, 8, 9 cached tokens                         4 x 20         = 80
    # 96  steps that find 10, 11, 12                                       3 x 30         = 90
    run.check(Row(arrival=0, start=0, first=16, finish=186, tokens=8))
    run.check_gaps(20, 20, 20, 20, 30, 30, 30)
    assert run.fused.steps["n_steps"].tolist() == [1, 4, 3]


def test_a_batch_may_step_over_a_knot():
    run = replay([(0, 4, 3), (0, 5, 3)], policy("continuous"), cost=KINKED)
    #  0  prefill                                                          10 + 9         = 19
    # 19  finds 9 cached tokens, below 10                                                 = 20
    # 39  finds 11                                                                        = 30
    run.check(*[Row(arrival=0, start=0, first=19, finish=69, tokens=3)] * 2)


def test_static_batch_across_a_knot():
    run = replay([(0, 4, 4), (0, 3, 2)], policy("static", finished_rows="skip"), cost=KINKED)
    #  0  prefill 2 x 4                                                    10 + 8         = 18
    # 18  finds 8 cached tokens                                                           = 20
    # 38  B is done; without its 5 tokens A finds 5                                       = 20
    # 58  finds 6                                                                         = 20
    run.check(
        Row(arrival=0, start=0, first=18, finish=78, tokens=4),
        Row(arrival=0, start=0, first=18, finish=78, tokens=2),
    )
    run = replay([(0, 4, 4), (0, 3, 2)], policy("static"), cost=KINKED)
    # Charged until the end, B stays: the steps find 8, 10, 12 tokens.     20 + 30 + 30  = 80
    run.check(
        Row(arrival=0, start=0, first=18, finish=98, tokens=4),
        Row(arrival=0, start=0, first=18, finish=98, tokens=2),
    )
