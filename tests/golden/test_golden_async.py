"""Scheduling one step ahead: step k+1 is formed when step k starts, its outputs not yet seen.

In the end: prompts admitted whole only, the slow first step, the time a request is seen.
"""

from dataclasses import replace
from typing import Any

import pytest
from hand import CONSTANT, NEVER, Replay, Row, policy, replay

FEMTOSECOND_MS = 1e-12


def ahead(*requests: tuple[float, int, int], blocks: int = 1000, **options: Any) -> Replay:
    """Replay with prompts of 10 + n ms and decode steps of 20 ms; `policy` holds its options."""
    config = {"max_num_batched_tokens": 64, "max_num_seqs": 8} | options.pop("policy", {})
    options = {"async_scheduling": True} | options
    return replay(requests, policy("continuous", **config), CONSTANT, blocks, **options)


LATE = Row(arrival=0, start=0, first=14, finish=127, tokens=6)
"""A decodes alone at 14, 34, 54; beside B's prompt (33 ms) from 74, and with B from 107."""


def test_an_arrival_joins_the_step_after_the_next():
    run = ahead((0, 4, 6), (40, 3, 2))
    # B arrives in the step from 34 to 54. The one from 54 to 74 was formed at 34.
    run.check(LATE, Row(arrival=40, start=74, first=107, finish=127, tokens=2, queued=54))
    run.check_steps(
        (0, 14, "prefill", 4, 0, 0),
        (14, 20, "decode", 0, 1, 4),
        (34, 20, "decode", 0, 1, 5),
        (54, 20, "decode", 0, 1, 6),
        (74, 33, "mixed", 3, 1, 7),
        (107, 20, "decode", 0, 2, 8 + 3),
    )


def test_an_arrival_at_a_steps_end_is_in_time_for_the_step_formed_then():
    run = ahead((0, 4, 6), (34, 3, 2))
    # The step formed at 34 starts at 54.
    first = Row(arrival=0, start=0, first=14, finish=127, tokens=6)
    run.check(first, Row(arrival=34, start=54, first=87, finish=107, tokens=2, queued=34))
    run = ahead((0, 4, 6), (34 + FEMTOSECOND_MS, 3, 2))
    late = Row(arrival=34, start=74, first=107, finish=127, tokens=2, queued=54)
    run.check(LATE, replace(late, arrival=34 + FEMTOSECOND_MS))


def test_arrivals_of_two_steps_join_two_steps():
    run = ahead((0, 4, 6), (40, 3, 1), (60, 5, 1))
    # B arrives in the step from 34, C in that from 54: B joins at 74 (33 ms), C at 107 (35 ms).
    run.check(
        Row(arrival=0, start=0, first=14, finish=142, tokens=6),
        Row(arrival=40, start=74, first=107, finish=107, tokens=1, queued=54),
        Row(arrival=60, start=107, first=142, finish=142, tokens=1, queued=74),
    )


def test_an_idle_engine_starts_at_once():
    run = ahead((0, 4, 1), (5, 4, 1), (50, 4, 1))
    # A takes 14 ms. The step formed at 0 was empty: B starts when A's token is there.
    run.check(
        Row(arrival=0, start=0, first=14, finish=14, tokens=1),
        Row(arrival=5, start=14, first=28, finish=28, tokens=1, queued=14),
        Row(arrival=50, start=50, first=64, finish=64, tokens=1),
    )


def test_a_finish_keeps_its_seat_one_step_longer():
    run = ahead((0, 4, 1), (0, 4, 3), (0, 4, 1), policy={"max_num_seqs": 2})
    # A's only token comes at 18, and the step from 18 to 38 was formed at 0: C joins at 38.
    run.check(
        Row(arrival=0, start=0, first=18, finish=18, tokens=1),
        Row(arrival=0, start=0, first=18, finish=72, tokens=3),
        Row(arrival=0, start=38, first=72, finish=72, tokens=1),
    )


def test_a_finish_keeps_its_blocks_one_step_longer():
    run = ahead((0, 8, 1), (0, 4, 3), (0, 8, 1), blocks=4)
    # A holds 2 blocks, B one and from 22 on 2; C wants 2. A is done at 22, when the step to 42 has
    # been formed.
    run.check(
        Row(arrival=0, start=0, first=22, finish=22, tokens=1),
        Row(arrival=0, start=0, first=22, finish=80, tokens=3),
        Row(arrival=0, start=42, first=80, finish=80, tokens=1),
    )


def test_a_decode_that_ends_keeps_its_seat_one_step_longer():
    run = ahead((0, 4, 2), (0, 4, 4), (0, 4, 1), policy={"max_num_seqs": 2})
    # A ends at 38, and the step from 38 to 58 was formed at 18.
    run.check(
        Row(arrival=0, start=0, first=18, finish=38, tokens=2),
        Row(arrival=0, start=0, first=18, finish=92, tokens=4),
        Row(arrival=0, start=58, first=92, finish=92, tokens=1),
    )


def test_a_victim_may_have_its_last_token_under_way():
    run = ahead((0, 4, 3), (0, 4, 1), blocks=2)
    # At 18 A needs a second block; B, admitted last, has got its token and gives its block up.
    run.check(
        Row(arrival=0, start=0, first=18, finish=58, tokens=3),
        Row(arrival=0, start=0, first=18, finish=18, tokens=1),
    )
    assert run.counters["preemptions_recompute"] == 0


def test_an_abort_is_seen_a_step_later():
    run = ahead((0, 4, 6), abort_after_s=0.030)
    # In the step from 14 to 34; the next was formed with it and brings its third token.
    run.check(Row(arrival=0, start=0, first=14, finish=NEVER, tokens=3, status="aborted"))


def test_a_prompt_is_admitted_only_if_it_fits_whole():
    requests = [(0, 4, 6), (0, 20, 1)]
    v1 = policy("continuous", max_num_batched_tokens=8, max_num_seqs=4)
    run = replay(requests, v1, CONSTANT, blocks=5, reserve_full_isl=True)
    # B's 20 tokens take all 5 blocks: it starts when A has left, with 8 tokens a step.
    run.check(
        Row(arrival=0, start=0, first=14, finish=114, tokens=6),
        Row(arrival=0, start=114, first=164, finish=164, tokens=1),
    )
    assert replay(requests, v1, CONSTANT, blocks=5).fused.requests["prefill_start_s"][1] == 0


def test_the_first_step_is_slow():
    run = replay([(5, 4, 2)], policy("continuous"), CONSTANT, first_step_s=0.1)
    run.check(Row(arrival=5, start=5, first=119, finish=139, tokens=2))


@pytest.mark.parametrize("name", ["continuous", "static"])
def test_a_request_is_seen_when_the_engine_next_plans(name):
    run = replay([(0, 4, 3), (20, 4, 1)], policy(name), CONSTANT, note_queued=True)
    # A: 14, 34, 54. B arrives in the step from 14; a static batch is not looked at before 54.
    seen_s = 0.034 if name == "continuous" else 0.054
    assert run.fused.requests["queued_s"].tolist() == [0, seen_s]
