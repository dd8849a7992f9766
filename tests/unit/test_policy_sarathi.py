"""Sarathi-Serve as a pure decision: chunk budgets, admission, no stalls."""

from typing import Any

import pytest
from policy_views import chunks, decode, goes_on, half_prefilled, view_of, wait
from pydantic import ValidationError

from policies.sarathi import Sarathi, SarathiConfig


def sarathi(**config: Any) -> Sarathi:
    return Sarathi(SarathiConfig(**config))


# -- the budget -------------------------------------------------------------------------------


def test_order_decodes_then_unfinished_prompts_then_the_queue():
    policy = sarathi(max_num_batched_tokens=16)
    view = view_of(policy)
    decode(view, 0, 7)
    decode(view, 1, 7)
    half_prefilled(view, 2, tokens=10, done=6)
    wait(view, 3, 5)
    wait(view, 4, 50)
    plan = policy.plan(view)
    # tau = 16: 2 decodes, the last 4 of request 2, all 5 of request 3, and 5 of 50.
    assert chunks(plan) == [(2, 4), (3, 5), (4, 5)]
    assert plan.decode


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (1, None),  # the decodes alone fill it
        (2, None),
        (3, [(2, 1)]),
        (8, [(2, 6)]),  # 2 + 6
        (9, [(2, 6), (3, 1)]),
        (18, [(2, 6), (3, 10)]),  # exactly: the next gets nothing, not an empty chunk
        (19, [(2, 6), (3, 10), (4, 1)]),
        (512, [(2, 6), (3, 10), (4, 3)]),
    ],
)
def test_chunk_is_the_smaller_of_the_rest_and_tau_minus_t(
    tau: int, expected: list[tuple[int, int]] | None
):
    policy = sarathi(max_num_batched_tokens=tau)
    view = view_of(policy)
    decode(view, 0, 7)
    decode(view, 1, 7)
    half_prefilled(view, 2, tokens=10, done=4)
    wait(view, 3, 10)
    wait(view, 4, 3)
    plan = policy.plan(view)
    if expected is None:
        assert goes_on(plan)
    else:
        assert chunks(plan) == expected
        assert plan.decode


def test_hand_worked_chunks_of_one_prompt():
    # tau = 512, 12 decodes: a prompt of 1,300 goes in chunks of 500, 500 and 300.
    policy = sarathi()
    for done, expected in [(0, 500), (500, 500), (1000, 300)]:
        view = view_of(policy, blocks=1000)
        for id in range(12):
            decode(view, id, 7)
        if done:
            half_prefilled(view, 12, tokens=1300, done=done)
        else:
            wait(view, 12, 1300)
        assert chunks(policy.plan(view)) == [(12, expected)]


def test_without_decodes_the_step_is_prompts_only():
    policy = sarathi(max_num_batched_tokens=8)
    view = view_of(policy)
    wait(view, 0, 5)
    wait(view, 1, 5)
    plan = policy.plan(view)
    assert chunks(plan) == [(0, 5), (1, 3)]
    assert not plan.decode


def test_only_decodes_go_on():
    policy = sarathi()
    view = view_of(policy)
    decode(view, 0, 7)
    assert goes_on(policy.plan(view))


# -- admission --------------------------------------------------------------------------------


def test_admission_wants_the_whole_prompt_and_the_watermark():
    policy = sarathi(max_num_batched_tokens=8, watermark=0.2)  # 2 of 10 blocks stay free
    for length, admitted in [(20, True), (21, False)]:  # 5 blocks, 6 blocks
        view = view_of(policy, blocks=10)
        decode(view, 0, 9)  # 3 blocks; its next token takes none: 7 are free
        wait(view, 1, length)
        plan = policy.plan(view)
        assert chunks(plan) == [(1, 7)] if admitted else goes_on(plan)


def test_what_unfinished_prompts_still_take_is_not_free():
    policy = sarathi(max_num_batched_tokens=64, watermark=0.0)
    for length, expected in [(8, [(0, 12), (1, 8)]), (9, [(0, 12)])]:
        view = view_of(policy, blocks=6)
        half_prefilled(view, 0, tokens=16, done=4)  # holds 1 block, will take 3 more: 2 are left
        wait(view, 1, length)
        assert chunks(policy.plan(view)) == expected


def test_growth_of_the_batch_is_not_free():
    policy = sarathi(watermark=0.0)
    for cached, admitted in [(7, True), (8, False)]:  # 8 tokens: the next takes a third block
        view = view_of(policy, blocks=4)
        decode(view, 0, cached)
        wait(view, 1, 8)
        plan = policy.plan(view)
        assert chunks(plan) == [(1, 8)] if admitted else goes_on(plan)


def test_the_watermark_is_waived_for_the_first_when_nothing_runs():
    policy = sarathi(watermark=0.5)
    view = view_of(policy, blocks=10)
    wait(view, 0, 28)  # 7 blocks, 3 would be left
    wait(view, 1, 1)
    assert chunks(policy.plan(view)) == [(0, 28)]


def test_a_head_that_does_not_fit_holds_up_the_queue():
    policy = sarathi(watermark=0.0)
    view = view_of(policy, blocks=4)
    decode(view, 0, 7)
    wait(view, 1, 9)
    wait(view, 2, 1)
    assert goes_on(policy.plan(view))


def test_the_cap_counts_everyone_who_runs():
    policy = sarathi(max_num_seqs=3)
    view = view_of(policy)
    decode(view, 0, 5)
    half_prefilled(view, 1, tokens=9, done=4)
    wait(view, 2, 5)
    wait(view, 3, 5)
    assert chunks(policy.plan(view)) == [(1, 5), (2, 5)]


# -- preemption -------------------------------------------------------------------------------


def test_nobody_is_admitted_when_the_batch_cannot_grow():
    policy = sarathi(watermark=0.0)
    view = view_of(policy, blocks=4)
    decode(view, 0, 8)
    decode(view, 1, 8)  # both need a block, none is free
    wait(view, 2, 1)
    assert goes_on(policy.plan(view))
    preemption = policy.victim(view)
    assert (preemption.request.id, preemption.swap) == (1, False)


def test_nobody_is_admitted_when_the_unfinished_prompt_does_not_fit():
    policy = sarathi(watermark=0.0)
    view = view_of(policy, blocks=4)
    decode(view, 0, 5)
    half_prefilled(view, 1, tokens=12, done=4)  # holds 1, needs 2 more, 1 is free
    wait(view, 2, 1)
    assert chunks(policy.plan(view)) == [(1, 8)]  # the engine evicts it: the last admitted
    assert policy.victim(view).request.id == 1


def test_the_victim_is_the_last_admitted_not_the_last_to_arrive():
    policy = sarathi()
    view = view_of(policy)
    decode(view, 7, 5)
    decode(view, 2, 5)
    assert policy.victim(view).request.id == 2


# -- purity and config ------------------------------------------------------------------------


def test_asked_twice_says_the_same():
    policy = sarathi(max_num_batched_tokens=8)
    view = view_of(policy)
    decode(view, 0, 7)
    half_prefilled(view, 1, tokens=9, done=4)
    wait(view, 2, 5)
    assert chunks(policy.plan(view)) == chunks(policy.plan(view)) == [(1, 5), (2, 2)]


@pytest.mark.parametrize(
    "config", [{"max_num_batched_tokens": 0}, {"watermark": 1.0}, {"chunk_size": 5}]
)
def test_bad_configs(config: dict[str, Any]):
    with pytest.raises(ValidationError):
        SarathiConfig(**config)


def test_defaults_are_those_of_the_papers_simulator():
    config = SarathiConfig()
    assert (config.max_num_batched_tokens, config.max_num_seqs) == (512, 128)
    assert config.watermark == 0.01
