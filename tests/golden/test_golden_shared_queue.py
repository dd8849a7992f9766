"""One waiting queue for two instances: whoever plans first takes, and a victim may go elsewhere.

Blocks of 4 tokens, times in ms and the price lists of `hand.py`.
"""

from hand import CONSTANT, Replay, Row, policy, replay

from sim.types import to_fs


def instances_of(run: Replay) -> tuple[list[int], list[int]]:
    columns = run.fused.requests
    return columns["prefill_instance"].tolist(), columns["decode_instance"].tolist()


def late_fs(run: Replay, column: str, row: int, by_hand_ms: float) -> int:
    """Return how many femtoseconds after the hand's time something happened."""
    return to_fs(float(run.fused.requests[column][row])) - to_fs(by_hand_ms / 1000)


FREE_FIRST = [
    (0, 10, 5),
    (0, 10, 3),
    (5, 30, 2),
    (6, 10, 1),
    (120, 10, 1),
    (120, 20, 1),
    (200, 5, 1),
]


def test_the_instance_that_is_free_first_takes_the_head():
    run = replay(
        FREE_FIRST,
        policy("continuous", queue="cluster", max_num_seqs=1),
        cost=CONSTANT,
        instances=2,
    )
    # One seat each; a prompt of n takes 10 + n, a decode step 20.
    #    0  A and B: both instances are idle, 0 plans first and takes A; 1 takes B.
    #   20  4 steps are left for A (to 100), 2 for B (to 60). C and D have come at 5 and 6.
    #   60  1 is free and takes the head, C (in turn it would be 0's): 10 + 30, a step: to 120.
    #  100  0 is free and takes D: to 120.
    #  120  Both are free, E and F arrive: arrivals come first, then 0 takes E (20), 1 F (30).
    #  200  Both are idle: 0 takes G.
    run.check(
        Row(arrival=0, start=0, first=20, finish=100, tokens=5),
        Row(arrival=0, start=0, first=20, finish=60, tokens=3),
        Row(arrival=5, start=60, first=100, finish=120, tokens=2),
        Row(arrival=6, start=100, first=120, finish=120, tokens=1),
        Row(arrival=120, start=120, first=140, finish=140, tokens=1),
        Row(arrival=120, start=120, first=150, finish=150, tokens=1),
        Row(arrival=200, start=200, first=215, finish=215, tokens=1),
    )
    assert instances_of(run)[0] == [0, 1, 1, 0, 0, 1, 0]
    assert run.fused.steps["queue_len"].max() == 2


def test_routed_at_arrival_they_stand_in_two_queues():
    run = replay(
        FREE_FIRST[:4],
        policy("continuous", queue="instance", max_num_seqs=1),
        cost=CONSTANT,
        instances=2,
    )
    # In turn: C waits for A until 100, D is served at 60.
    run.check(
        Row(arrival=0, start=0, first=20, finish=100, tokens=5),
        Row(arrival=0, start=0, first=20, finish=60, tokens=3),
        Row(arrival=5, start=100, first=140, finish=160, tokens=2),
        Row(arrival=6, start=60, first=80, finish=80, tokens=1),
    )


def test_a_victim_is_taken_by_the_other_instance():
    run = replay(
        [(0, 6, 6), (0, 7, 6), (30, 3, 2)],
        policy("continuous", queue="cluster"),
        blocks=5,
        instances=2,
    )
    # The trace of test_golden_preemption.py, with a second instance of 5 blocks.
    #   0    0 takes A (6 tokens) and B (7), 2 blocks each.               10 + 13         = 23
    #  23    0: B=2, K=13: 25.3.
    #  30      C arrives: 1 is idle and takes it, to 43.
    #  43    1: B=1, K=3: 22.3.
    #  48.3  0: B=2, K=15: 25.5.
    #  65.3  C has 2 tokens.
    #  73.8  0: A needs a block and none is free: B goes to the head of the queue, with 10 tokens.
    #        A goes on with B=1, K=8: 22.8, then 22.9, 23.0, to 142.5.
    #        1 plans after 0 at this instant and takes B:                 10 + 10         = 20
    #  93.8  B has 4 tokens. 1: B=1, K=10: 23.0, then 23.1.
    # 139.9  B has 6 tokens, 74 ms earlier than with one instance.
    run.check(
        Row(arrival=0, start=0, first=23, finish=142.5, tokens=6),
        Row(arrival=0, start=0, first=23, finish=139.9, tokens=6, preemptions=1),
        Row(arrival=30, start=30, first=43, finish=65.3, tokens=2),
    )
    run.check_steps(
        (0, 23, "prefill", 13, 0, 0),
        (23, 25.3, "decode", 0, 2, 13),
        (48.3, 25.5, "decode", 0, 2, 15),
        (73.8, 22.8, "decode", 0, 1, 8),
        (96.6, 22.9, "decode", 0, 1, 9),
        (119.5, 23.0, "decode", 0, 1, 10),
        (30, 13, "prefill", 3, 0, 0),
        (43, 22.3, "decode", 0, 1, 3),
        (73.8, 20, "prefill", 10, 0, 0),
        (93.8, 23.0, "decode", 0, 1, 10),
        (116.8, 23.1, "decode", 0, 1, 11),
    )
    # A: 25.3 25.5 22.8 22.9 23.0. B: 25.3 25.5, 93.8 - 73.8 = 20, 23.0 23.1. C: 22.3.
    run.check_gaps(25.3, 25.5, 22.8, 22.9, 23.0, 25.3, 25.5, 20, 23.0, 23.1, 22.3)
    assert instances_of(run) == ([0, 0, 1], [0, 1, 1])
    assert late_fs(run, "finish_s", 1, 139.9) == 0


def test_an_instance_that_has_planned_sees_a_victim_a_femtosecond_later():
    run = replay(
        [(0, 20, 1), (0, 6, 6), (0, 7, 6)],
        policy("continuous", queue="cluster"),
        blocks=5,
        instances=2,
    )
    # Z (20 tokens) fills the 5 blocks of 0 until 30: A and B are 1's, which evicts B at 73.8. 0 is
    # idle, and comes before 1 in the order of an instant.
    run.check(
        Row(arrival=0, start=0, first=30, finish=30, tokens=1),
        Row(arrival=0, start=0, first=23, finish=142.5, tokens=6),
        Row(arrival=0, start=0, first=23, finish=139.9, tokens=6, preemptions=1),
    )
    assert instances_of(run) == ([0, 1, 1], [-1, 1, 0])
    assert late_fs(run, "finish_s", 1, 142.5) == 0
    assert late_fs(run, "finish_s", 2, 139.9) == 1


def test_who_took_the_head_lets_the_next_go_ahead():
    run = replay(
        [(0, 6, 8), (0, 20, 1), (5, 16, 3), (6, 8, 1)],
        policy("continuous", queue="cluster"),
        cost=CONSTANT,
        blocks=5,
        instances=2,
    )
    #   0  0 takes X (2 blocks); Y (5) does not fit beside it and is 1's: to 16 and to 30.
    #  16  H (4 blocks) and S (2) wait. H does not fit beside X, S is behind it: X decodes.
    #  30  1 takes H; 1 block is left, S needs 2. Now S is the head, and would fit on 0.
    #  36  X's step ends, and with it the span of 7: 0 takes S beside X.      10 + 8 + 20 = 38
    #  56  H has its first token; two steps to 96.
    #  74  S is done. X has 3 tokens; five steps more, to 174.
    run.check(
        Row(arrival=0, start=0, first=16, finish=174, tokens=8),
        Row(arrival=0, start=0, first=30, finish=30, tokens=1),
        Row(arrival=5, start=30, first=56, finish=96, tokens=3),
        Row(arrival=6, start=36, first=74, finish=74, tokens=1),
    )
    assert instances_of(run)[0] == [0, 1, 1, 0]
    run.check_steps(
        (0, 16, "prefill", 6, 0, 0),
        (16, 20, "decode", 0, 1, 6),
        (36, 38, "mixed", 8, 1, 7),
        *[(74 + 20 * k, 20, "decode", 0, 1, 8 + k) for k in range(5)],
        (0, 30, "prefill", 20, 0, 0),
        (30, 26, "prefill", 16, 0, 0),
        (56, 20, "decode", 0, 1, 16),
        (76, 20, "decode", 0, 1, 17),
    )
