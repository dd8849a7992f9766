"""Orca by hand: slots of the longest length, whole prompts beside the decodes.

Prices (`hand.PRICES`): a step with n prompt tokens 10 + n ms, with B decodes that cache K tokens
20 + 2 B + K / 10 ms, with both the sum.
"""

from hand import Row, policy, replay


def test_a_slot_for_each_however_short():
    run = replay(
        [(0, 3, 5), (0, 4, 2), (0, 1, 3), (30, 2, 1)],
        policy("orca", max_len=8),
        blocks=5,
    )
    # 5 blocks of 4 tokens: two slots of 8 tokens, and one block over.
    #   0    A and B.                                                10 + 7          = 17
    #  17    C would fit, but both slots are taken.  B=2, K=3+4:     20 + 4 + 0.7    = 24.7
    #  41.7  B is done. C beside A's decode (D, arrived at 30, finds no slot).
    #                                         11 + (B=1, K=4: 20 + 2 + 0.4 = 22.4)   = 33.4
    #  75.1                                          B=2, K=5+1:     20 + 4 + 0.6    = 24.6
    #  99.7                                          B=2, K=8:                       = 24.8
    # 124.5  A has 5 tokens and C 3. D.                              10 + 2          = 12
    # 136.5  D is done.
    run.check(
        Row(arrival=0, start=0, first=17, finish=124.5, tokens=5),
        Row(arrival=0, start=0, first=17, finish=41.7, tokens=2),
        Row(arrival=0, start=41.7, first=75.1, finish=124.5, tokens=3),
        Row(arrival=30, start=124.5, first=136.5, finish=136.5, tokens=1),
    )
    run.check_steps(
        (0, 17, "prefill", 7, 0, 0),
        (17, 24.7, "decode", 0, 2, 7),
        (41.7, 33.4, "mixed", 1, 1, 4),
        (75.1, 24.6, "decode", 0, 2, 6),
        (99.7, 24.8, "decode", 0, 2, 8),
        (124.5, 12, "prefill", 2, 0, 0),
    )
    run.check_gaps(24.7, 33.4, 24.6, 24.8, 24.7, 24.6, 24.8)
    assert run.counters["preemptions_recompute"] == 0


def test_long_prompts_stall_the_decodes():
    run = replay(
        [(0, 2, 4), (15, 100, 2), (15, 60, 1)],
        policy("orca", max_len=128),
    )
    #   0    A.                                                      10 + 2          = 12
    #  12    A decodes; B and C arrive at 15 and wait for the step's end.
    #                                                B=1, K=2:       20 + 2 + 0.2    = 22.2
    #  34.2  B and C, whole, beside A.   170 + (B=1, K=3: 22.3)                      = 192.3
    # 226.5  C is done.                              B=2, K=4+100:   20 + 4 + 10.4   = 34.4
    # 260.9  A has 4 tokens, B 2.
    run.check(
        Row(arrival=0, start=0, first=12, finish=260.9, tokens=4),
        Row(arrival=15, start=34.2, first=226.5, finish=260.9, tokens=2),
        Row(arrival=15, start=34.2, first=226.5, finish=226.5, tokens=1),
    )
    run.check_gaps(22.2, 192.3, 34.4, 34.4)


def test_a_cache_smaller_than_a_slot_serves_one_at_a_time():
    run = replay([(0, 3, 2), (0, 3, 1)], policy("orca"), blocks=10)
    #  0  A.        10 + 3 = 13
    # 13  K=3:      20 + 2 + 0.3 = 22.3
    # 35.3  B.      13
    run.check(
        Row(arrival=0, start=0, first=13, finish=35.3, tokens=2),
        Row(arrival=0, start=35.3, first=48.3, finish=48.3, tokens=1),
    )


def test_overrun_of_a_slot_recomputes_the_last_admitted():
    run = replay([(0, 4, 6), (0, 4, 3)], policy("orca", max_len=4), blocks=3)
    # Three slots of one block, but both requests outgrow theirs: the limit was set too low.
    #   0    A and B.                                                10 + 8          = 18
    #  18    Both need a second block, one is free: B leaves with 1 token emitted. A, K=4.
    #                                                B=1, K=4:                       = 22.4
    #  40.4  B has a free slot but needs 2 blocks for its 5 tokens, 1 is free. A: K = 5 .. 7,
    #        3 * 22 + 1.8                                                            = 67.8
    # 108.2  A's 5th token; it takes its third block.  K=8:                          = 22.8
    # 131.0  A is done. B again.                                     10 + 5          = 15
    # 146.0  B's 2nd token.  K=5:                                                    = 22.5
    # 168.5  B's 3rd.
    run.check(
        Row(arrival=0, start=0, first=18, finish=131, tokens=6),
        Row(arrival=0, start=0, first=18, finish=168.5, tokens=3, preemptions=1),
    )
