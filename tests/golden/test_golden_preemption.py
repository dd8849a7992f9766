"""Blocks run out: preemption by recompute (V1 and V0) and by swap (V0).

All traces use blocks of 4 tokens and the price list of `hand.py`.
"""

from hand import CONSTANT, Replay, Row, policy, replay

A_B_C = [(0, 6, 6), (0, 7, 6), (30, 3, 2)]
"""A and B arrive together; C comes during their first decode step."""


def test_v1_recompute_from_the_head_of_the_queue():
    run = replay(A_B_C, policy("continuous", scheduler="v1"), blocks=5)
    # 5 blocks of 4 tokens.
    #   0    A (6 tokens) and B (7) take 2 blocks each, 1 is free.        10 + 13         = 23
    #  23    cached A 6, B 7: no block is full.              B=2, K=13:   20 + 4 + 1.3    = 25.3
    #  30      C arrives.
    #  48.3  cached 7, 8: B's next token needs the last block; C (1 block) does not fit beside it.
    #                                                       B=2, K=15:   20 + 4 + 1.5    = 25.5
    #  73.8  cached 8, 9: A needs a block and none is free. B was admitted last: its 3 blocks are
    #        dropped, its 3 tokens emitted become prompt (7 + 3 = 10), and it stands before C.
    #        A takes 1 of the 3 blocks.                     B=1, K=8:    20 + 2 + 0.8    = 22.8
    #  96.6  2 blocks are free, B needs 3 for its 10 tokens; C would fit, but is behind B.
    #                                                       B=1, K=9:    20 + 2 + 0.9    = 22.9
    # 119.5                                                 B=1, K=10:   20 + 2 + 1.0    = 23.0
    # 142.5  A has 6 tokens. B (10 tokens: 3 blocks) and C (3: 1) fit.    10 + 13         = 23
    # 165.5  B has 4 tokens, C 1. cached 10, 3.             B=2, K=13:   20 + 4 + 1.3    = 25.3
    # 190.8  C has 2 tokens. cached B 11.                   B=1, K=11:   20 + 2 + 1.1    = 23.1
    # 213.9  B has 6 tokens.
    run.check(
        Row(arrival=0, start=0, first=23, finish=142.5, tokens=6),
        Row(arrival=0, start=0, first=23, finish=213.9, tokens=6, preemptions=1),
        Row(arrival=30, start=142.5, first=165.5, finish=190.8, tokens=2),
    )
    run.check_steps(
        (0, 23, "prefill", 13, 0, 0),
        (23, 25.3, "decode", 0, 2, 13),
        (48.3, 25.5, "decode", 0, 2, 15),
        (73.8, 22.8, "decode", 0, 1, 8),
        (96.6, 22.9, "decode", 0, 1, 9),
        (119.5, 23.0, "decode", 0, 1, 10),
        (142.5, 23, "prefill", 13, 0, 0),
        (165.5, 25.3, "decode", 0, 2, 13),
        (190.8, 23.1, "decode", 0, 1, 11),
    )
    # A: 25.3 25.5 22.8 22.9 23.0. B: 25.3 25.5, then 165.5 - 73.8 = 91.7, 25.3 23.1. C: 25.3.
    run.check_gaps(25.3, 25.5, 22.8, 22.9, 23.0, 25.3, 25.5, 91.7, 25.3, 23.1, 25.3)
    assert run.counters["preemptions_recompute"] == 1
    assert run.counters["preemptions_swap"] == 0


def test_v0_recompute_of_the_latest_arrival():
    run = replay(A_B_C, policy("continuous", scheduler="v0"), blocks=5)
    # The watermark is int(1 % of 5) = 0 blocks.
    #   0    A and B prefill.                                             10 + 13         = 23
    #  23    cached 6, 7.                                   B=2, K=13:   20 + 4 + 1.3    = 25.3
    #  48.3  C (arrived at 30) fits into the last block: a step with only its prefill, although B
    #        will need that block.                                        10 + 3          = 13
    #  61.3  C has 1 token. cached 7, 8, 3: B needs a block, none is free. C is the latest arrival:
    #        dropped, its prompt is now 3 + 1 = 4.          B=2, K=15:   20 + 4 + 1.5    = 25.5
    #  86.8  cached 8, 9: C (1 block) does not fit, A needs a block: B is evicted (10 tokens), and
    #        stands before C.                               B=1, K=8:    20 + 2 + 0.8    = 22.8
    # 109.6  B needs 3 of 2 free blocks; C waits behind it. B=1, K=9:                    = 22.9
    # 132.5                                                 B=1, K=10:                   = 23.0
    # 155.5  A has 6 tokens. B (10) and C (4) prefill.                    10 + 14         = 24
    # 179.5  B has 4 tokens; C has 2 and is done. cached B 10.
    #                                                       B=1, K=10:                   = 23.0
    # 202.5                                                 B=1, K=11:                   = 23.1
    # 225.6  B has 6 tokens.
    run.check(
        Row(arrival=0, start=0, first=23, finish=155.5, tokens=6),
        Row(arrival=0, start=0, first=23, finish=225.6, tokens=6, preemptions=1),
        Row(arrival=30, start=48.3, first=61.3, finish=179.5, tokens=2, preemptions=1),
    )
    # A and B stood still from 48.3 to 61.3: their second gaps are 13 + 25.5 = 38.5.
    # B: 179.5 - 86.8 = 92.7. C: 179.5 - 61.3 = 118.2.
    run.check_gaps(25.3, 38.5, 22.8, 22.9, 23.0, 25.3, 38.5, 92.7, 23.0, 23.1, 118.2)
    assert run.counters["preemptions_recompute"] == 2


def test_two_victims_in_one_step_keep_their_order():
    run = replay(
        [(0, 8, 3), (0, 4, 3), (0, 4, 2)],
        policy("continuous", scheduler="v1"),
        blocks=4,
    )
    # A (8 tokens) fills 2 blocks, B and C (4 each) fill 1 each: every next token needs a block.
    #   0    all three prefill 16 tokens, none of 4 blocks is free.       10 + 16         = 26
    #  26    the batch needs 3 blocks. Victims from the tail: C (1 block free, A and B need 2), then
    #        B (2 free, A needs 1). Queue: B, C, each with prompt 4 + 1 = 5.
    #                                                       B=1, K=8:    20 + 2 + 0.8    = 22.8
    #  48.8  1 block is free, B needs 2.                    B=1, K=9:                    = 22.9
    #  71.7  A has 3 tokens. B and C (5 tokens, 2 blocks each) prefill.   10 + 10         = 20
    #  91.7  C has 2 tokens: done. B has 2; cached 5.       B=1, K=5:                    = 22.5
    # 114.2  B has 3 tokens.
    run.check(
        Row(arrival=0, start=0, first=26, finish=71.7, tokens=3),
        Row(arrival=0, start=0, first=26, finish=114.2, tokens=3, preemptions=1),
        Row(arrival=0, start=0, first=26, finish=91.7, tokens=2, preemptions=1),
    )
    # B and C waited for their second token from 26 to 91.7.
    run.check_gaps(22.8, 22.9, 65.7, 22.5, 65.7)


def test_v1_evicts_a_half_prefilled_prompt():
    run = replay(
        [(0, 4, 6), (0, 11, 1)],
        policy("continuous", scheduler="v1", max_num_batched_tokens=6, max_num_seqs=2),
        blocks=4,
    )
    # A step holds 6 tokens at most; 4 blocks.
    #   0    A (4) and 2 tokens of B: 1 block each, 2 free.               10 + 6          = 16
    #  16    A's next token needs a block (4 is full): 1 left for B's chunk. B caches 2; the budget
    #        leaves 5 tokens, 7 need 2 blocks, 1 more than it holds: fits, 0 free.
    #                                                  15 + (20 + 2 + 0.4 = 22.4)        = 37.4
    #  53.4  cached A 5, B 7. The remaining 4 of B (11 tokens, 3 blocks) need a block, none is free.
    #        The last admitted is B itself: dropped, to the queue. A goes on alone.
    #                                                       B=1, K=5:                    = 22.5
    #  75.9  A holds 2 blocks, 2 are free. B is cut to 5 tokens: 2 blocks.
    #                                                  15 + (20 + 2 + 0.6 = 22.6)        = 37.6
    # 113.5  cached A 7, B 5; B's next 5 tokens need a 3rd block, none is free: evicted again.
    #                                                       B=1, K=7:                    = 22.7
    # 136.2  cached A 8: its next token takes one of the 2 free blocks, B's chunk of 5 would need 2.
    #                                                       B=1, K=8:                    = 22.8
    # 159.0  A has 6 tokens (16, 53.4, 75.9, 113.5, 136.2, 159). B: 6 tokens.
    #                                                                     10 + 6          = 16
    # 175.0  B: the last 5.                                               10 + 5          = 15
    # 190.0  B's only token.
    run.check(
        Row(arrival=0, start=0, first=16, finish=159, tokens=6),
        Row(arrival=0, start=0, first=190, finish=190, tokens=1, preemptions=2),
    )
    run.check_gaps(37.4, 22.5, 37.6, 22.7, 22.8)
    assert run.counters["preemptions_recompute"] == 2


def test_an_evicted_request_finishes_later_than_it_would_have():
    run = replay(
        [(0, 4, 8), (0, 12, 2), (0, 4, 6)],
        policy("continuous", scheduler="v1"),
        cost=CONSTANT,
        blocks=7,
    )
    # Decode steps of 20 ms. A and C fill 1 block, B 3: 2 of 7 are free.
    #  30  (10 + 20) Each needs a block: C, admitted last, is dropped with 1 token.
    #  50  B has its 2 tokens and gives 4 blocks back. C (5 tokens) prefills beside A's decode,
    #      (10 + 5) + 20 = 35.
    #  85  A has 3 tokens, C 2. Without the eviction C would have had its 6th token with A's 6th.
    # 105, 125, 145  A has 6, C 5.
    # 165  C has 6.
    # 185  A has 8.
    run.check(
        Row(arrival=0, start=0, first=30, finish=185, tokens=8),
        Row(arrival=0, start=0, first=30, finish=50, tokens=2),
        Row(arrival=0, start=0, first=30, finish=165, tokens=6, preemptions=1),
    )
    run.check_gaps(20, 35, 20, 20, 20, 20, 20, 20, 55, 20, 20, 20, 20)


# -- swapping ---------------------------------------------------------------------------------

PCIE4_X16_BYTES_PER_S = 32e9
KV_BYTES_PER_TOKEN = 16e6
"""Round numbers: a block of 4 tokens is 64 MB and takes 2 ms, one way."""


def swapping(requests: list[tuple[float, int, int]], blocks: int, swap_blocks: int) -> Replay:
    return replay(
        requests,
        policy("continuous", scheduler="v0", preemption_mode="swap"),
        blocks=blocks,
        spec={
            "total_swap_blocks": swap_blocks,
            "swap_s_per_block": 4 * KV_BYTES_PER_TOKEN / PCIE4_X16_BYTES_PER_S,
        },
    )


A_B_LATE_C = [(0, 6, 6), (0, 7, 6), (80, 3, 1)]


def test_v0_swap_out_and_in():
    run = swapping(A_B_LATE_C, blocks=5, swap_blocks=3)
    #   0    A and B prefill: 4 of 5 blocks.                              10 + 13         = 23
    #  23                                                   B=2, K=13:   20 + 4 + 1.3    = 25.3
    #  48.3  B takes the last block.                        B=2, K=15:   20 + 4 + 1.5    = 25.5
    #  73.8  cached 8, 9: A needs a block. B's 3 blocks go to the host, 3 * 2 = 6 ms, and the step
    #        waits for it.                                  B=1, K=8:    6 + 22.8        = 28.8
    #  80      C arrives.
    # 102.6  2 blocks are free; B needs 3 (9 tokens and the next one). C would fit, but nobody is
    #        admitted while something is swapped out.       B=1, K=9:                    = 22.9
    # 125.5                                                 B=1, K=10:                   = 23.0
    # 148.5  A has 6 tokens. B comes back, before C.        B=1, K=9:    6 + 22.9        = 28.9
    # 177.4  B has 4 tokens; nothing is swapped any more: C prefills.     10 + 3          = 13
    # 190.4  C has its only token.                          B=1, K=10:                   = 23.0
    # 213.4                                                 B=1, K=11:                   = 23.1
    # 236.5  B has 6 tokens.
    run.check(
        Row(arrival=0, start=0, first=23, finish=148.5, tokens=6),
        Row(arrival=0, start=0, first=23, finish=236.5, tokens=6, preemptions=1),
        Row(arrival=80, start=177.4, first=190.4, finish=190.4, tokens=1),
    )
    run.check_swaps((73.8, 6, 1, 3, "out"), (148.5, 6, 1, 3, "in"))
    run.check_steps(
        (0, 23, "prefill", 13, 0, 0),
        (23, 25.3, "decode", 0, 2, 13),
        (48.3, 25.5, "decode", 0, 2, 15),
        (73.8, 28.8, "decode", 0, 1, 8),
        (102.6, 22.9, "decode", 0, 1, 9),
        (125.5, 23.0, "decode", 0, 1, 10),
        (148.5, 28.9, "decode", 0, 1, 9),
        (177.4, 13, "prefill", 3, 0, 10),
        (190.4, 23.0, "decode", 0, 1, 10),
        (213.4, 23.1, "decode", 0, 1, 11),
    )
    # B: out at 73.8, next token at 177.4: 103.6; then the stall by C: 13 + 23.0 = 36.0.
    run.check_gaps(25.3, 25.5, 28.8, 22.9, 23.0, 25.3, 25.5, 103.6, 36.0, 23.1)
    assert run.counters["preemptions_swap"] == 1
    assert run.counters["preemptions_recompute"] == 0
    assert (run.counters["swap_out_blocks"], run.counters["swap_in_blocks"]) == (3, 3)


def test_v0_swap_space_too_small_recomputes():
    run = swapping(A_B_LATE_C, blocks=5, swap_blocks=2)
    # As above up to 73.8, where B's 3 blocks do not fit into the 2 of the host: recompute.
    #  73.8                                                 B=1, K=8:                    = 22.8
    #  96.6  B (10 tokens, 3 blocks) does not fit into 2, C waits behind.
    #                                                       B=1, K=9:                    = 22.9
    # 119.5                                                 B=1, K=10:                   = 23.0
    # 142.5  A is done. B (10) and C (3) prefill together.                10 + 13         = 23
    # 165.5  C is done. B has 4 tokens.                     B=1, K=10:                   = 23.0
    # 188.5                                                 B=1, K=11:                   = 23.1
    # 211.6  B has 6 tokens.
    run.check(
        Row(arrival=0, start=0, first=23, finish=142.5, tokens=6),
        Row(arrival=0, start=0, first=23, finish=211.6, tokens=6, preemptions=1),
        Row(arrival=80, start=142.5, first=165.5, finish=165.5, tokens=1),
    )
    run.check_swaps()
    assert run.counters["preemptions_recompute"] == 1
    assert run.counters["preemptions_swap"] == 0


def test_v0_full_swap_space_falls_back_to_recompute():
    run = swapping([(0, 6, 8), (0, 7, 8), (0, 3, 4)], blocks=6, swap_blocks=3)
    # 6 blocks, room for 3 on the host.
    #   0    A, B, C prefill 16 tokens: 2 + 2 + 1 blocks, 1 free.         10 + 16         = 26
    #  26    cached 6, 7, 3.                                B=3, K=16:   20 + 6 + 1.6    = 27.6
    #  53.6  cached 7, 8, 4: B and C need a block each, 1 is free. C (latest) goes to the host with
    #        1 block, 2 ms. 2 are free, B takes 1.          B=2, K=15:   2 + 25.5        = 27.5
    #  81.1  cached 8, 9: A needs the last block, so C cannot come back.
    #                                                       B=2, K=17:   20 + 4 + 1.7    = 25.7
    # 106.8  cached 9, 10, no block free.                   B=2, K=19:                   = 25.9
    # 132.7                                                 B=2, K=21:                   = 26.1
    # 158.8  cached 11, 12: B needs a block. The latest arrival running is B itself, with 3 blocks;
    #        the host has 2 left: recompute (7 + 6 emitted = 13 tokens).
    #                                                       B=1, K=11:                   = 23.1
    # 181.9  cached A 12: it needs 1 of 3 free blocks, C (4 tokens and the next) 2: C comes back,
    #        2 ms, before B is prefilled.                   B=2, K=16:   2 + 25.6        = 27.6
    # 209.5  A has 8 tokens, done; C has 3. B (13 tokens, 4 blocks) prefills; C stands still.
    #                                                                     10 + 13         = 23
    # 232.5  B has 7 tokens. cached C 5, B 13.              B=2, K=18:                   = 25.8
    # 258.3  B has 8, C has 4.
    run.check(
        Row(arrival=0, start=0, first=26, finish=209.5, tokens=8),
        Row(arrival=0, start=0, first=26, finish=258.3, tokens=8, preemptions=1),
        Row(arrival=0, start=0, first=26, finish=258.3, tokens=4, preemptions=1),
    )
    run.check_swaps((53.6, 2, 2, 1, "out"), (181.9, 2, 2, 1, "in"))
    # A: 27.6 27.5 25.7 25.9 26.1 23.1 27.6. B: the same five, 232.5 - 158.8 = 73.7, 25.8.
    # C: 27.6, 209.5 - 53.6 = 155.9, 23 + 25.8 = 48.8.
    run.check_gaps(
        *(27.6, 27.5, 25.7, 25.9, 26.1, 23.1, 27.6),
        *(27.6, 27.5, 25.7, 25.9, 26.1, 73.7, 25.8),
        *(27.6, 155.9, 48.8),
    )
    assert run.counters["preemptions_swap"] == 1
    assert run.counters["preemptions_recompute"] == 1
