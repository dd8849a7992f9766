"""Prefix reuse by hand: blocks of 4 tokens, prices of `hand.PRICES` (ms), `continuous` v1."""

from __future__ import annotations

import numpy as np
from hand import PRICES, Row, policy, replay

ALONE = (-1, 0)


def test_hits_are_whole_blocks_and_never_the_whole_prompt():
    """The first prompt leaves its shared 8 tokens, 2 blocks; the others begin behind what fits.

    1: 9 tokens, (9 - 1) // 4 = 2 blocks found, 1 token left: 11 ms.
    2: 8 tokens, (8 - 1) // 4 = 1 block found although both are there, 4 tokens left: 14 ms.
    3: 12 tokens, of which 7 are shared: 1 whole block, 8 left: 18 ms.
    4: of another group, nobody else in it: nothing.
    5: 3 shared tokens are no block.
    """
    done = replay(
        [(0, 9, 2), (100, 9, 1), (200, 8, 1), (300, 12, 1), (400, 9, 1), (500, 9, 1)],
        policy("continuous"),
        prefixes=[(0, 8), (0, 8), (0, 8), (0, 7), (1, 8), (0, 3)],
    )
    done.check(
        Row(0, 0, 19, 41.9, 2),
        Row(100, 100, 111, 111, 1),
        Row(200, 200, 214, 214, 1),
        Row(300, 300, 318, 318, 1),
        Row(400, 400, 419, 419, 1),
        Row(500, 500, 519, 519, 1),
    )
    assert done.fused.requests["cached_tokens"].tolist() == [0, 8, 4, 4, 0, 0]


def test_admitted_in_one_step_the_second_finds_what_the_first_is_about_to_fill():
    """Both in one step: 9 prompt tokens and 1, 10 + 10 ms; attention sees 9 + 9 tokens.

    Blocks: 3, then 1 new one beside the 2 shared: 4 of 4. A third prompt needs a block more than
    there is and waits for both to end; it finds the shared blocks.
    """
    done = replay(
        [(0, 9, 1), (0, 9, 1), (0, 9, 1)],
        policy("continuous"),
        blocks=4,
        prefixes=[(0, 8)] * 3,
    )
    done.check(Row(0, 0, 20, 20, 1), Row(0, 0, 20, 20, 1), Row(0, 20, 31, 31, 1))
    done.check_steps((0, 20, "prefill", 10, 0, 0), (20, 11, "prefill", 1, 0, 0))
    assert done.fused.requests["cached_tokens"].tolist() == [0, 8, 8]


def test_a_request_without_a_length_begins_its_group():
    """As in traces that count what was there before: 0 for the first."""
    done = replay([(0, 9, 1), (100, 9, 1)], policy("continuous"), prefixes=[(0, 0), (0, 8)])
    assert done.fused.requests["cached_tokens"].tolist() == [0, 8]


def test_a_preempted_request_finds_what_nobody_has_taken():
    """5 blocks, two prompts of 8 tokens, 8 tokens to emit each, nothing shared.

    0-26: both prefill (10 + 16), 4 blocks. Both want a third, 1 is free: the second is preempted,
    its blocks free in the order 1, 0 behind the free one. The first goes on alone: 22 + K/10 ms
    with K = 8 to 14, 161.7 ms, until 187.7; at 8 it takes the nameless block, at 12 the preempted
    block 1. The second needs 9 tokens, 3 blocks, and 2 are free until the first ends. Then it finds
    block 0, 4 tokens, and prefills 5: 15 ms, until 202.7; 22 + K/10 with K = 9 to 14 is 138.9.
    """
    done = replay([(0, 8, 8), (0, 8, 8)], policy("continuous"), blocks=5, prefixes=[ALONE, ALONE])
    done.check(Row(0, 0, 26, 187.7, 8), Row(0, 0, 26, 341.6, 8, preemptions=1))
    assert done.fused.requests["cached_tokens"].tolist() == [0, 0]
    assert done.counters["prefix_recomputed_tokens"] == 9
    assert done.counters["prefix_recovered_tokens"] == 4


def test_the_least_recently_freed_blocks_go_first_and_a_prompt_loses_its_end_first():
    """8 blocks. 0 and 1 leave 2 shared blocks each, free in this order behind 2 nameless ones of
    their own tails: 1 more is nameless from the start. The fourth request takes 5.

    Free list before it, head first: 2 never used, then of request 0 (its tail, block 1, block 0),
    then of request 1 (its tail, block 1, block 0). It takes 2 + 3: request 0's prefix is gone,
    request 1's is whole.
    """
    done = replay(
        [(0, 9, 1), (100, 9, 1), (200, 20, 1), (300, 9, 1), (400, 9, 1)],
        policy("continuous"),
        blocks=8,
        prefixes=[(0, 8), (1, 8), ALONE, (1, 8), (0, 8)],
    )
    assert done.fused.requests["cached_tokens"].tolist() == [0, 0, 0, 8, 0]
    done.check_steps(
        (0, 19, "prefill", 9, 0, 0),
        (100, 19, "prefill", 9, 0, 0),
        (200, 30, "prefill", 20, 0, 0),
        (300, 11, "prefill", 1, 0, 0),
        (400, 19, "prefill", 9, 0, 0),
    )


def test_a_chunked_prompt_is_shared_chunk_by_chunk():
    """Budget 8: 0-18 the first 8 of 17 tokens; meanwhile another prompt of the group arrives.

    18-36: 8 more of the first: the budget is gone. 36-47: its last token; the newcomer finds the
    16 tokens computed by then and adds its own last one: 10 + 2.
    """
    done = replay(
        [(0, 17, 1), (5, 17, 1)],
        policy("continuous", max_num_batched_tokens=8, max_num_seqs=8),
        prefixes=[(0, 16)] * 2,
    )
    done.check(Row(0, 0, 48, 48, 1), Row(5, 36, 48, 48, 1))
    assert done.fused.requests["cached_tokens"].tolist() == [0, 16]


def test_the_prefill_instance_keeps_prefixes_and_the_decode_instance_copies():
    """A prompt that moves is copied whole; the next of its group hits where it was prefilled."""
    from sim.core.simulation import simulate
    from sim.core.spec import InstanceSpec, Settings
    from sim.types import Trace

    trace = Trace(
        np.array([9, 9]),
        np.array([3, 3]),
        np.array([0.0, 1.0]),
        prefix_group=np.array([0, 0]),
        prefix_len=np.array([8, 8]),
    )
    specs = [InstanceSpec(PRICES, 100, 4, role=role) for role in ("prefill", "decode")]
    settings = Settings(enable_prefix_caching=True, padding="none")
    record = simulate(trace, policy("distserve"), specs, settings)
    assert record.requests["cached_tokens"].tolist() == [0, 8]
    prefills = record.steps[record.steps["prefill_tokens"] > 0]
    assert prefills["prefill_tokens"].tolist() == [9, 1]
    decodes = record.steps[record.steps["decode_requests"] > 0]
    assert decodes["kv_tokens"].tolist() == [9, 9]
