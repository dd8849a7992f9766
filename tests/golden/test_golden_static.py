"""Static batches: release, finished rows, fill timeout; out of memory and the halved retry.

A padded batch costs as if every prompt were as long as the longest. After the prefill each row
caches one token a step, finished or not, until the last row has its last token.
"""

import pytest
from hand import NEVER, Replay, Row, policy, replay

# -- release and finished rows ----------------------------------------------------------------

# A (2 -> 3 tokens) and B (4 -> 1) wait for a third until A has waited 50 ms: [A, B], padded to 4.
#  50    prefill of 2 x 4 tokens                                    10 + 8          = 18
#  68    A and B have a token, B is done. A needs two decode steps.
# compute, B charged:  K=8  20 + 4 + 0.8 = 24.8   ->  92.8;   K=10                25.0  -> 117.8
# skip, A alone:       K=4  20 + 2 + 0.4 = 22.4   ->  90.4;   K=5  20 + 2 + 0.5 = 22.5  -> 112.9
# C (3 -> 2 tokens) comes at 60, in mid-batch. At the batch's end it has waited more than 50 ms.
#       prefill 10 + 3 = 13; decode K=3: 20 + 2 + 0.3 = 22.3
# compute:  117.8 -> 130.8 -> 153.1;   skip:  112.9 -> 125.9 -> 148.2
COMPUTE = Row(arrival=60, start=117.8, first=130.8, finish=153.1, tokens=2)
SKIP = Row(arrival=60, start=112.9, first=125.9, finish=148.2, tokens=2)


@pytest.mark.parametrize(
    ("release", "finished_rows", "a_finish", "b_finish", "c"),
    [
        ("together", "compute", 117.8, 117.8, COMPUTE),
        ("together", "skip", 112.9, 112.9, SKIP),
        ("each", "compute", 117.8, 68, COMPUTE),
        ("each", "skip", 112.9, 68, SKIP),
    ],
)
def test_release_and_finished_rows(
    release: str, finished_rows: str, a_finish: float, b_finish: float, c: Row
):
    run = replay(
        [(0, 2, 3), (20, 4, 1), (60, 3, 2)],
        policy(
            "static",
            max_batch_size=3,
            fill_timeout_s=0.050,
            release=release,
            finished_rows=finished_rows,
        ),
    )
    run.check(
        Row(arrival=0, start=50, first=68, finish=a_finish, tokens=3),
        Row(arrival=20, start=50, first=68, finish=b_finish, tokens=1),
        c,
    )
    # Only A and C have gaps, whatever is charged for B.
    if finished_rows == "compute":
        run.check_gaps(24.8, 25.0, 22.3)
    else:
        run.check_gaps(22.4, 22.5, 22.3)


def test_a_full_batch_does_not_wait_for_the_timeout():
    run = replay(
        [(0, 2, 1), (20, 4, 2), (30, 3, 1), (31, 1, 1)],
        policy("static", max_batch_size=3, fill_timeout_s=0.050, padded=False),
    )
    # 30     A, B, C are three. Not padded: 2 + 4 + 3 tokens.            10 + 9          = 19
    # 49     All have a token. One decode step for B, three rows charged.
    #                                                       B=3, K=9:   20 + 6 + 0.9    = 26.9
    # 75.9   D (arrived at 31) waits alone, until 31 + 50 = 81.
    # 81                                                                 10 + 1          = 11
    # 92     D is done.
    run.check(
        Row(arrival=0, start=30, first=49, finish=75.9, tokens=1),
        Row(arrival=20, start=30, first=49, finish=75.9, tokens=2),
        Row(arrival=30, start=30, first=49, finish=75.9, tokens=1),
        Row(arrival=31, start=81, first=92, finish=92, tokens=1),
    )
    run.check_steps(
        (30, 19, "static_prefill", 9, 0, 0),
        (49, 26.9, "static_decode", 0, 3, 9),
        (81, 11, "static_prefill", 1, 0, 0),
    )


# -- out of memory ----------------------------------------------------------------------------


def starved(release: str) -> Replay:
    return replay(
        [(0, 5, 6), (0, 3, 2), (0, 2, 3), (0, 4, 5)],
        policy("static", max_batch_size=4, release=release),
        blocks=8,
        oom_restart_s=1.0,
    )


def test_out_of_memory_in_mid_decode_loses_the_batch():
    run = starved("together")
    # 8 blocks of 4 tokens. A, B, C, D padded to 5 tokens: 2 blocks each, all 8 taken.
    #    0    prefill 4 x 5                                               10 + 20         = 30
    #   30                                                  B=4, K=20:   20 + 8 + 2.0    = 30.0
    #   60    B has its 2 tokens, but results leave together.
    #                                                       B=4, K=24:                   = 30.4
    #   90.4  C has its 3.                                  B=4, K=28:                   = 30.8
    #  121.2  rows are 8 tokens long; a 9th needs a third block for each: out of memory. All four go
    #         back to the queue, in order; the engine is away for 1000 ms.
    # 1121.2  A has been retried once: batches of 4 / 2 = 2. [A, B] padded to 5: 10 + 10  = 20
    # 1141.2  Five steps for A (3 blocks a row fit): K=10, 12, 14, 16, 18:
    #                                             25.0 + 25.2 + 25.4 + 25.6 + 25.8        = 127.0
    # 1268.2  A and B leave. [C, D] padded to 4.                          10 + 8          = 18
    # 1286.2  Four steps for D: K=8, 10, 12, 14:  24.8 + 25.0 + 25.2 + 25.4               = 100.4
    # 1386.6  C and D leave.
    run.check(
        Row(arrival=0, start=1121.2, first=1141.2, finish=1268.2, tokens=6, retries=1),
        Row(arrival=0, start=1121.2, first=1141.2, finish=1268.2, tokens=2, retries=1),
        Row(arrival=0, start=1268.2, first=1286.2, finish=1386.6, tokens=3, retries=1),
        Row(arrival=0, start=1268.2, first=1286.2, finish=1386.6, tokens=5, retries=1),
    )
    run.check_steps(
        (0, 30, "static_prefill", 14, 0, 0),
        (30, 30.0, "static_decode", 0, 4, 20),
        (60, 30.4, "static_decode", 0, 4, 24),
        (90.4, 30.8, "static_decode", 0, 4, 28),
        (1121.2, 20, "static_prefill", 8, 0, 0),
        *((t, d, "static_decode", 0, 2, k) for t, d, k in FIVE_STEPS),
        (1268.2, 18, "static_prefill", 6, 0, 0),
        (1286.2, 24.8, "static_decode", 0, 2, 8),
        (1311.0, 25.0, "static_decode", 0, 2, 10),
        (1336.0, 25.2, "static_decode", 0, 2, 12),
        (1361.2, 25.4, "static_decode", 0, 2, 14),
    )
    assert run.counters["oom_events"] == 1
    # Tokens lost with the batch are no tokens: only the gaps of the second attempt count.
    run.check_gaps(
        *(25.0, 25.2, 25.4, 25.6, 25.8, 25.0),  # A, B
        *(24.8, 25.0, 24.8, 25.0, 25.2, 25.4),  # C, D
    )


FIVE_STEPS = [
    (1141.2, 25.0, 10),
    (1166.2, 25.2, 12),
    (1191.4, 25.4, 14),
    (1216.8, 25.6, 16),
    (1242.4, 25.8, 18),
]


def test_out_of_memory_keeps_what_has_left():
    run = starved("each")
    # As above up to 121.2, but B left at 60 and C at 90.4: only A and D are lost.
    # 1121.2  [A, D] padded to 5                                          10 + 10         = 20
    # 1141.2  D has 5 tokens after four steps: 25.0 + 25.2 + 25.4 + 25.6 = 101.2, at 1242.4
    # 1268.2  A has 6 after the fifth (25.8).
    run.check(
        Row(arrival=0, start=1121.2, first=1141.2, finish=1268.2, tokens=6, retries=1),
        Row(arrival=0, start=0, first=30, finish=60, tokens=2),
        Row(arrival=0, start=0, first=30, finish=90.4, tokens=3),
        Row(arrival=0, start=1121.2, first=1141.2, finish=1242.4, tokens=5, retries=1),
    )
    assert run.counters["oom_events"] == 1
    run.check_gaps(
        *(25.0, 25.2, 25.4, 25.6, 25.8),  # A
        *(30.0, 30.0, 30.4),  # B, C
        *(25.0, 25.2, 25.4, 25.6),  # D
    )


A_B_C = [(0, 5, 2), (0, 3, 2), (0, 2, 2)]


def test_padding_exceeds_the_activation_limit():
    run = replay(
        A_B_C,
        policy("static", max_batch_size=4),
        spec={"max_step_tokens": 12},
        oom_restart_s=1.0,
    )
    # The activations of 12 prompt tokens fit.
    #    0  3 x 5 = 15 tokens do not: out of memory at once, 1000 ms lost.
    # 1000  4 / 2 = 2 at a time: [A, B] 2 x 5                            10 + 10         = 20
    # 1020                                                  B=2, K=10:   20 + 4 + 1.0    = 25.0
    # 1045  [C]                                                          10 + 2          = 12
    # 1057                                                  B=1, K=2:    20 + 2 + 0.2    = 22.2
    run.check(
        Row(arrival=0, start=1000, first=1020, finish=1045, tokens=2, retries=1),
        Row(arrival=0, start=1000, first=1020, finish=1045, tokens=2, retries=1),
        Row(arrival=0, start=1045, first=1057, finish=1079.2, tokens=2, retries=1),
    )
    assert run.counters["oom_events"] == 1


def test_without_padding_the_same_batch_fits():
    run = replay(
        A_B_C,
        policy("static", max_batch_size=4, padded=False),
        spec={"max_step_tokens": 12},
    )
    #  0  5 + 3 + 2 = 10 tokens                                          10 + 10         = 20
    # 20                                                    B=3, K=10:   20 + 6 + 1.0    = 27.0
    run.check(*[Row(arrival=0, start=0, first=20, finish=47, tokens=2)] * 3)
    assert run.counters["oom_events"] == 0


def test_a_prompt_that_never_fits_is_rejected_by_its_own_batch():
    run = replay(
        [(0, 13, 2), (0, 2, 1)],
        policy("static", max_batch_size=2),
        spec={"max_step_tokens": 12},
        oom_restart_s=1.0,
    )
    #    0  [A, B]: 2 x 13 tokens, out of memory.
    # 1000  2 / 2 = 1: [A] alone: 13 tokens, out of memory, and nothing is left to halve.
    # 2000  [B]                                                          10 + 2          = 12
    never = Row(
        arrival=0, start=NEVER, first=NEVER, finish=NEVER, tokens=0, retries=2, status="rejected"
    )
    run.check(never, Row(arrival=0, start=2000, first=2012, finish=2012, tokens=1, retries=1))
    assert run.counters["oom_events"] == 2


def test_arrivals_during_the_restart_wait_and_the_timeout_runs_on():
    run = replay(
        [(0, 5, 2), (0, 3, 2), (10, 2, 1)],
        policy("static", max_batch_size=2, fill_timeout_s=0.100),
        spec={"max_step_tokens": 8},
        oom_restart_s=1.0,
    )
    #    0    [A, B] is full at once: 2 x 5 tokens > 8, out of memory.
    #   10      C arrives; the engine is away.
    # 1000    The head is A, retried: batches of 1. [A]                  10 + 5          = 15
    # 1015                                                  B=1, K=5:                    = 22.5
    # 1037.5  The head is B, retried. [B]                                10 + 3          = 13
    # 1050.5                                                B=1, K=3:                    = 22.3
    # 1072.8  The head is C, never retried: batches of 2, but C has waited long enough.
    #                                                                    10 + 2          = 12
    run.check(
        Row(arrival=0, start=1000, first=1015, finish=1037.5, tokens=2, retries=1),
        Row(arrival=0, start=1037.5, first=1050.5, finish=1072.8, tokens=2, retries=1),
        Row(arrival=10, start=1072.8, first=1084.8, finish=1084.8, tokens=1),
    )
