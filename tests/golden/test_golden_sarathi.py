"""Sarathi-Serve by hand: chunks beside decodes, the budget, the watermark, a preemption.

Prices (`hand.PRICES`): a step with n prompt tokens 10 + n ms, with B decodes that cache K tokens
20 + 2 B + K / 10 ms, with both the sum.
"""

from hand import Row, policy, replay


def test_chunks_fill_the_budget_beside_the_decodes():
    run = replay(
        [(0, 6, 4), (0, 9, 3), (20, 4, 2)],
        policy("sarathi", max_num_batched_tokens=8),
    )
    # 8 tokens a step.
    #   0    A whole (6), 2 of B.                                    10 + 8          = 18
    #  18    A decodes, the last 7 of B.  17 + (B=1, K=6: 20 + 2 + 0.6 = 22.6)       = 39.6
    #  57.6  A and B decode, all 4 of C (arrived at 20), 2 tokens are left over.
    #                                     14 + (B=2, K=7+9: 20 + 4 + 1.6 = 25.6)     = 39.6
    #  97.2  All three decode.                 B=3, K=8+10+4: 20 + 6 + 2.2           = 28.2
    # 125.4  A has 4 tokens, B 3, C 2.
    run.check(
        Row(arrival=0, start=0, first=18, finish=125.4, tokens=4),
        Row(arrival=0, start=0, first=57.6, finish=125.4, tokens=3),
        Row(arrival=20, start=57.6, first=97.2, finish=125.4, tokens=2),
    )
    run.check_steps(
        (0, 18, "prefill", 8, 0, 0),
        (18, 39.6, "mixed", 7, 1, 6 + 2),
        (57.6, 39.6, "mixed", 4, 2, 16),
        (97.2, 28.2, "decode", 0, 3, 22),
    )
    run.check_gaps(39.6, 39.6, 28.2, 39.6, 28.2, 28.2)


def test_prompts_wait_while_decodes_fill_the_budget():
    run = replay(
        [(0, 2, 5), (0, 1, 5), (0, 2, 1)],
        policy("sarathi", max_num_batched_tokens=2),
    )
    # 2 tokens a step.
    #   0    A.                                                      10 + 2          = 12
    #  12    A decodes, B.                         11 + (B=1, K=2: 22.2)             = 33.2
    #  45.2  A and B decode: nothing is left for C.     B=2, K=3+1:  24.4            = 24.4
    #  69.6                                             B=2, K=6:                    = 24.6
    #  94.2                                             B=2, K=8:                    = 24.8
    # 119.0  A has its 5 tokens. B decodes, 1 of C.  11 + (B=1, K=4: 22.4)           = 33.4
    # 152.4  B has its 5. The other 1 of C.                          10 + 1          = 11
    # 163.4  C is done.
    run.check(
        Row(arrival=0, start=0, first=12, finish=119, tokens=5),
        Row(arrival=0, start=12, first=45.2, finish=152.4, tokens=5),
        Row(arrival=0, start=119, first=163.4, finish=163.4, tokens=1),
    )
    run.check_gaps(33.2, 24.4, 24.6, 24.8, 24.4, 24.6, 24.8, 33.4)
    assert run.fused.steps["n_steps"].tolist() == [1, 1, 3, 1, 1]


def test_the_watermark_keeps_a_prompt_out_that_would_fit():
    run = replay(
        [(0, 8, 9), (0, 17, 3)],
        policy("sarathi", watermark=0.25),
        blocks=8,
    )
    # 8 blocks of 4 tokens, 2 are to stay free. A takes 2; B's 5 would leave 1, so it waits.
    #   0    A.                                                      10 + 8          = 18
    #  18    8 decode steps, K = 8 .. 15:       8 * 22 + (8 + ... + 15) / 10         = 185.2
    # 203.2  A is done. B.                                           10 + 17         = 27
    # 230.2  K=17: 23.7, K=18: 23.8                                                  = 47.5
    # 277.7  B is done.
    run.check(
        Row(arrival=0, start=0, first=18, finish=203.2, tokens=9),
        Row(arrival=0, start=203.2, first=230.2, finish=277.7, tokens=3),
    )
    assert run.counters["preemptions_recompute"] == 0


def test_without_a_watermark_it_is_let_in():
    run = replay(
        [(0, 8, 9), (0, 17, 3)],
        policy("sarathi", watermark=0.0),
        blocks=8,
    )
    #   0    A and B (7 of 8 blocks).                                10 + 25         = 35
    #  35    K=8+17, B=2: 20 + 4 + 2.5. A takes the last block.                      = 26.5
    #  61.5  K=27:                                                                   = 26.7
    #  88.2  B is done. A: 6 steps, K = 10 .. 15:   6 * 22 + 75 / 10                 = 139.5
    # 227.7  A is done.
    run.check(
        Row(arrival=0, start=0, first=35, finish=227.7, tokens=9),
        Row(arrival=0, start=0, first=35, finish=88.2, tokens=3),
    )


def test_the_last_admitted_is_recomputed():
    run = replay(
        [(0, 6, 8), (0, 4, 6)],
        policy("sarathi", watermark=0.0),
        blocks=4,
    )
    # 4 blocks of 4 tokens: A takes 2, B 1.
    #   0    A and B.                                                10 + 10         = 20
    #  20    B's block is full: it takes the last.   B=2, K=6+4:     20 + 4 + 1      = 25
    #  45                                            B=2, K=12:                      = 25.2
    #  70.2  A's blocks are full, none is free: B, admitted last, leaves with 3 tokens emitted.
    #                                                B=1, K=8:       20 + 2 + 0.8    = 22.8
    #  93.0  B needs 2 blocks for its 4 + 3 tokens, 1 is free. A alone, and takes it at the last:
    #                                         K = 9 .. 12:           4 * 22 + 4.2    = 92.2
    # 185.2  A has its 8 tokens. B again, 7 tokens.                  10 + 7          = 17
    # 202.2  B's 4th token. K=7: 22.7, K=8: 22.8                                     = 45.5
    # 247.7  B's 6th.
    run.check(
        Row(arrival=0, start=0, first=20, finish=185.2, tokens=8),
        Row(arrival=0, start=0, first=20, finish=247.7, tokens=6, preemptions=1),
    )
    assert run.counters["preemptions_recompute"] == 1
    run.check_gaps(
        *[25, 25.2, 22.8, 22.9, 23.0, 23.1, 23.2],  # A
        *[25, 25.2, 202.2 - 70.2, 22.7, 22.8],  # B
    )
