"""Attention by the batch, by hand: blocks of 4 tokens, prices of `hand.PRICES` (ms)."""

from __future__ import annotations

from hand import Row, policy, replay

from sim.core.attention import Ctas


def test_the_longest_row_keeps_everybody_waiting():
    """4 CTAs, 2 KV heads: two requests are 4 rows, and each has a CTA of its own.

    With 20 and 10 tokens cached the longest takes 20 tokens' time on one CTA, as 20 * 4 / 2 = 40
    evenly shared ones would: 20 + 2*2 + 40/10 = 28 ms. Then one is left, with 21: 42 / 10.
    """
    done = replay(
        [(0, 20, 3), (0, 10, 2)], policy("continuous"), spec={"ctas": Ctas(4, kv_heads=2)}
    )
    done.check(Row(0, 0, 40, 94.2, 3), Row(0, 0, 40, 68, 2))
    done.check_steps(
        (0, 40, "prefill", 30, 0, 0), (40, 28, "decode", 0, 2, 30), (68, 26.2, "decode", 0, 1, 21)
    )


WAVES_MS = (28, 28.2, 28.4, 28.6, 28.9, 29.2, 29.6)
"""Rows of 10, 4 and 3 tokens on 2 CTAs, after s steps: the longest has 10 + s, an even share is
(17 + 3s) / 2, and two of the rows are on one CTA: at least 2 * (3 + s). Twice the highest, in
tokens: 20 22 24 26 | 29 32 | 36, the first up to s = 3, the last from s = 6; 26 ms and a tenth."""


def test_a_span_ends_where_another_bound_takes_over():
    done = replay(
        [(0, 10, 8), (0, 4, 8), (0, 3, 8)], policy("continuous"), spec={"ctas": Ctas(2, kv_heads=1)}
    )
    done.check(*[Row(0, 0, 27, 27 + sum(WAVES_MS), 8)] * 3)
    found = done.fused.steps["n_steps"].tolist()
    assert found == [1, 4, 2, 1]


def test_rows_of_a_static_batch_wait_for_the_longest():
    done = replay(
        [(0, 10, 8), (0, 4, 8), (0, 3, 8)],
        policy("static", max_batch_size=3),
        spec={"ctas": Ctas(2, kv_heads=1)},
        padding="none",
    )
    done.check(*[Row(0, 0, 27, 27 + sum(WAVES_MS), 8)] * 3)


def test_finished_rows_of_a_static_batch_are_waited_for_no_more():
    """One decode of three rows; then 5 and 4 tokens are left: the longest of two, 2 * 5 / 10."""
    done = replay(
        [(0, 10, 2), (0, 4, 3), (0, 3, 3)],
        policy("static", max_batch_size=3, finished_rows="skip", release="each"),
        spec={"ctas": Ctas(2, kv_heads=1)},
        padding="none",
    )
    done.check(Row(0, 0, 27, 55, 2), Row(0, 0, 27, 80, 3), Row(0, 0, 27, 80, 3))


def test_shared_blocks_are_read_once():
    """Three of a group share 3, 1 and 3 blocks.

     23    A decodes (K 13) while B, which finds 1 block, computes 5 tokens: 15 + 23.3 ms.
     61.3  A, B decode (K 14 + 9, a block of 4 read once less: 19) while C computes 1: 11 + 25.9.
     98.2  All: K 15 + 10 + 13; three have the first block, two the others: less 4 * (2 + 1 + 1).
    126.4  B is done. A, C: K 16 + 14, less 12.
    """
    done = replay(
        [(0, 13, 5), (1, 9, 3), (30, 13, 3)],
        policy("continuous"),
        spec={"cascade_attention": True},
        prefixes=[(0, 12), (0, 4), (0, 12)],
    )
    done.check_steps(
        (0, 23, "prefill", 13, 0, 0),
        (23, 38.3, "mixed", 5, 1, 13),
        (61.3, 36.9, "mixed", 1, 2, 23),
        (98.2, 28.2, "decode", 0, 3, 38),
        (126.4, 25.8, "decode", 0, 2, 30),
    )
    done.check(Row(0, 0, 23, 152.2, 5), Row(1, 23, 61.3, 126.4, 3), Row(30, 61.3, 98.2, 152.2, 3))
