"""Other ways to leave: aborts, the horizon; and the closed loop, where leaving makes arrivals.

`CONSTANT` prices: a prefill of n tokens takes 10 + n ms, a decode step 20 ms.
"""

import pytest
from hand import CONSTANT, MS, NEVER, Row, policy, replay

from sim.costs.simple import AffineCost

FEMTOSECOND_MS = 1e-12


# -- aborts -----------------------------------------------------------------------------------


def test_abort_of_running_and_waiting_requests():
    run = replay(
        [(0, 4, 20), (10, 4, 2), (20, 4, 2), (70, 3, 2)],
        policy("continuous", max_num_seqs=1),
        cost=CONSTANT,
        abort_after_s=0.100,
    )
    # One seat; clients wait 100 ms.
    #   0  A prefills until 14, tokens at 14, 34, 54, 74, 94, 114.
    # 100  A's client goes in mid-step. The step is run to its end, 114, and its token is made.
    # 110  B's client goes. B waits: it leaves the queue at once and never ran.
    # 114  A's seat is free: C, 10 + 4 = 14.
    # 120  C's client goes in mid-prefill; C leaves at 128, with the token of that prefill.
    # 128  D (arrived at 70), 10 + 3 = 13, token at 141; 20, token at 161: before 170.
    run.check(
        Row(arrival=0, start=0, first=14, finish=NEVER, tokens=6, status="aborted"),
        Row(arrival=10, start=NEVER, first=NEVER, finish=NEVER, tokens=0, status="aborted"),
        Row(arrival=20, start=114, first=128, finish=NEVER, tokens=1, status="aborted"),
        Row(arrival=70, start=128, first=141, finish=161, tokens=2),
    )
    run.check_gaps(20, 20, 20, 20, 20, 20)


@pytest.mark.parametrize(
    ("patience", "status"),
    [(54 - FEMTOSECOND_MS, "aborted"), (54, "aborted"), (54 + FEMTOSECOND_MS, "finished")],
)
def test_patience_that_ends_with_the_last_token_is_not_enough(patience: float, status: str):
    run = replay([(0, 4, 3)], policy("continuous"), cost=CONSTANT, abort_after_s=patience * MS)
    # Tokens at 14, 34, 54. At one instant clients act before steps end, as arrivals do.
    finish = 54 if status == "finished" else NEVER
    run.check(Row(arrival=0, start=0, first=14, finish=finish, tokens=3, status=status))


def test_abort_of_a_swapped_request_gives_its_host_memory_back():
    run = replay(
        [(0, 4, 9), (0, 4, 9), (1, 4, 9)],
        policy("continuous", scheduler="v0", preemption_mode="swap", max_num_seqs=2),
        cost=CONSTANT,
        blocks=3,
        spec={"total_swap_blocks": 2, "swap_s_per_block": 0.001},
        abort_after_s=0.100,
    )
    # 3 blocks of 4 tokens, two seats, clients wait 100 ms.
    #   0  A and B prefill: 1 block each.                                   10 + 8        = 18
    #  18  Both need a block, 1 is free: B (latest) goes to the host, 1 block, 1 ms. A takes 1.
    #                                                                       1 + 20        = 21
    #  39  A has 2 tokens. 1 block is free; B would need 2. C is not admitted beside the swapped B.
    #  59, 79, 99  A has 5 tokens, caches 8: the next step takes the last block.
    # 100  A's and B's clients go; both leave when the step has ended, B from the host.
    # 101  C's client goes: C waits, and leaves at once.
    # 119  A leaves with 6 tokens.
    run.check(
        Row(arrival=0, start=0, first=18, finish=NEVER, tokens=6, status="aborted"),
        Row(
            arrival=0,
            start=0,
            first=18,
            finish=NEVER,
            tokens=1,
            preemptions=1,
            status="aborted",
        ),
        Row(arrival=1, start=NEVER, first=NEVER, finish=NEVER, tokens=0, status="aborted"),
    )
    run.check_swaps((18, 1, 1, 1, "out"))


def test_abort_of_a_half_prefilled_prompt():
    run = replay(
        [(0, 4, 4), (0, 30, 1), (1, 4, 1)],
        policy("continuous", max_num_batched_tokens=8, max_num_seqs=2),
        cost=CONSTANT,
        abort_after_s=0.050,
    )
    # Steps of 8 tokens, two seats, clients wait 50 ms.
    #  0  A (4) and 4 tokens of B.                                          10 + 8        = 18
    # 18  A decodes, 7 tokens of B; C has no seat.                          17 + 20       = 37
    # 50, 51  All clients go; C waits and leaves at once.
    # 55  A leaves with 2 tokens, B with 11 of 30 cached and none emitted.
    run.check(
        Row(arrival=0, start=0, first=18, finish=NEVER, tokens=2, status="aborted"),
        Row(arrival=0, start=0, first=NEVER, finish=NEVER, tokens=0, status="aborted"),
        Row(arrival=1, start=NEVER, first=NEVER, finish=NEVER, tokens=0, status="aborted"),
    )


def test_static_batch_runs_on_without_its_client():
    run = replay(
        [(0, 4, 4), (10, 2, 2)],
        policy("static", max_batch_size=2),
        cost=CONSTANT,
        abort_after_s=0.070,
    )
    #  0  [A] prefills until 14; steps end at 34, 54, 74.
    # 70  A's client goes; a static batch runs to completion.
    # 74  [B] prefills for 10 + 2 = 12.
    # 80  B's client goes, too.
    # 86  B's first token; its batch ends at 106.
    run.check(
        Row(arrival=0, start=0, first=14, finish=NEVER, tokens=4, status="aborted"),
        Row(arrival=10, start=74, first=86, finish=NEVER, tokens=2, status="aborted"),
    )


# -- the horizon ------------------------------------------------------------------------------

# One seat: A (4 -> 10 tokens) has tokens at 14, 34, 54, 74, 94; B waits; C comes at 96.


@pytest.mark.parametrize(
    ("horizon", "tokens"), [(14, 0), (14 + FEMTOSECOND_MS, 1), (90, 4), (94, 4), (95, 5)]
)
def test_horizon_counts_what_ended_before_it(horizon: float, tokens: int):
    run = replay(
        [(0, 4, 10), (5, 4, 2), (96, 4, 2)],
        policy("continuous", max_num_seqs=1),
        cost=CONSTANT,
        horizon_s=horizon * MS,
    )
    # What would happen at the horizon itself does not happen. C has not arrived: it has no row.
    run.check(
        Row(
            arrival=0,
            start=0,
            first=14 if tokens else NEVER,
            finish=NEVER,
            tokens=tokens,
            status="unfinished",
        ),
        Row(arrival=5, start=NEVER, first=NEVER, finish=NEVER, tokens=0, status="unfinished"),
    )
    assert run.fused.end_s == pytest.approx(horizon * MS, abs=1e-15)


@pytest.mark.parametrize("release", ["together", "each"])
@pytest.mark.parametrize(("horizon", "tokens"), [(18, 0), (19, 1), (58, 2), (59, 3), (98, 4)])
def test_horizon_inside_a_static_batch(release: str, horizon: float, tokens: int):
    run = replay(
        [(0, 4, 6), (0, 2, 3)],
        policy("static", release=release),
        cost=CONSTANT,
        horizon_s=horizon * MS,
    )
    # Prefill 10 + 2 x 4 = 18; steps end at 38, 58, 78, 98, 118. B has its 3 tokens at 58: with
    # `each` it leaves then (58 itself is too late), together it would leave at 118.
    first = 18 if tokens else NEVER
    b_left = release == "each" and tokens >= 3
    run.check(
        Row(arrival=0, start=0, first=first, finish=NEVER, tokens=tokens, status="unfinished"),
        Row(
            arrival=0,
            start=0,
            first=first,
            finish=58 if b_left else NEVER,
            tokens=min(tokens, 3),
            status="finished" if b_left else "unfinished",
        ),
    )


def test_horizon_at_a_static_steps_end_late_in_the_run():
    tenth = AffineCost(prefill_base_s=0.1, decode_base_s=0.1)
    run = replay([(16300, 4, 50)], policy("static"), cost=tenth, horizon_s=16.7)
    # Prefill until 16400; steps end at 16500, 16600 and 16700: the last is too late.
    row = Row(16300, start=16300, first=16400, finish=NEVER, tokens=3, status="unfinished")
    run.check(row)


def test_horizon_before_a_static_batch_runs_out_of_memory():
    # 8 tokens fit: the batch would crash after two steps (at 58); the horizon is at 50.
    run = replay([(0, 2, 4), (0, 2, 4)], policy("static"), cost=CONSTANT, blocks=2, horizon_s=0.050)
    # Prefill 10 + 4 = 14, a step until 34: two tokens each, and one gap each.
    run.check(*[Row(0, start=0, first=14, finish=NEVER, tokens=2, status="unfinished")] * 2)
    run.check_gaps(20, 20)


def test_horizon_while_a_recomputed_request_waits():
    run = replay([(0, 8, 9), (0, 4, 9)], policy("continuous"), blocks=4, horizon_s=0.080)
    # Prices with K: prefill 10 + 12 = 22. A holds 2 blocks, B 1, 1 is free; both need one.
    #  22    B is evicted with 1 token emitted.              B=1, K=8:                   = 22.8
    #  44.8  A holds 3 blocks, 1 is free; B needs 2 for 4 + 1 tokens.
    #                                                        B=1, K=9:                   = 22.9
    #  67.7                                                  B=1, K=10: ends after 80.
    run.check(
        Row(arrival=0, start=0, first=22, finish=NEVER, tokens=3, status="unfinished"),
        Row(
            arrival=0,
            start=0,
            first=22,
            finish=NEVER,
            tokens=1,
            preemptions=1,
            status="unfinished",
        ),
    )


# -- closed loop ------------------------------------------------------------------------------


def test_closed_loop_with_think_time():
    run = replay(
        [(0, 4, 1), (0, 6, 2), (0, 5, 1), (0, 5, 1), (0, 2, 1)],
        policy("continuous"),
        cost=CONSTANT,
        concurrency=2,
        think_s=0.050,
    )
    # Two users; arrival times of the trace do not matter.
    #   0  A and B arrive: 10 + 10 = 20.
    #  20  A leaves; its user comes back at 70 with C. B decodes until 40; its user: 90, with D.
    #  70  C: 10 + 5 = 15, leaves at 85; next at 135: E.
    #  90  D: 15, leaves at 105; nothing is left to send.
    # 135  E: 10 + 2 = 12.
    run.check(
        Row(arrival=0, start=0, first=20, finish=20, tokens=1),
        Row(arrival=0, start=0, first=20, finish=40, tokens=2),
        Row(arrival=70, start=70, first=85, finish=85, tokens=1),
        Row(arrival=90, start=90, first=105, finish=105, tokens=1),
        Row(arrival=135, start=135, first=147, finish=147, tokens=1),
    )


def test_closed_loop_without_think_time_misses_the_plan_it_follows_from():
    run = replay(
        [(0, 4, 1), (0, 6, 3), (0, 5, 1)],
        policy("continuous"),
        cost=CONSTANT,
        concurrency=2,
    )
    #  0  A and B: 20.
    # 20  A leaves. The next step is planned with what is there: B alone, until 40. C comes 1 fs
    #     after 20 and is in time for the plan at 40: 15 + 20 = 35 with B's last token.
    run.check(
        Row(arrival=0, start=0, first=20, finish=20, tokens=1),
        Row(arrival=0, start=0, first=20, finish=75, tokens=3),
        Row(arrival=20 + FEMTOSECOND_MS, start=40, first=75, finish=75, tokens=1),
    )


def test_a_rejected_request_lets_its_user_send_the_next():
    run = replay(
        [(0, 50, 1), (0, 4, 1)],
        policy("continuous"),
        cost=CONSTANT,
        blocks=2,
        concurrency=1,
        think_s=0.030,
    )
    # A (50 tokens) can never fit into 8: rejected at 0. Its user sends B at 30.
    run.check(
        Row(arrival=0, start=NEVER, first=NEVER, finish=NEVER, tokens=0, status="rejected"),
        Row(arrival=30, start=30, first=44, finish=44, tokens=1),
    )
