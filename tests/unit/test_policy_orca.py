"""Orca as a pure decision: slots of the longest length, whole prompts beside decodes."""

from typing import Any

import pytest
from policy_views import chunks, decode, goes_on, view_of, wait
from pydantic import ValidationError

from policies.orca import Orca, OrcaConfig


def orca(**config: Any) -> Orca:
    return Orca(OrcaConfig(**config))


def test_whole_prompts_beside_the_decodes_without_a_token_limit():
    policy = orca(max_len=64)
    view = view_of(policy, blocks=10_000)
    decode(view, 0, 7)
    wait(view, 1, 60)
    wait(view, 2, 1)
    wait(view, 3, 64)
    plan = policy.plan(view)
    assert chunks(plan) == [(1, 60), (2, 1), (3, 64)]
    assert plan.decode


def test_without_decodes_the_step_is_prompts_only():
    policy = orca(max_len=64)
    view = view_of(policy)
    wait(view, 0, 5)
    plan = policy.plan(view)
    assert chunks(plan) == [(0, 5)]
    assert not plan.decode


@pytest.mark.parametrize(
    ("max_len", "blocks", "slots"),
    [
        (40, 100, 10),  # 400 tokens of 40
        (40, 99, 9),
        (41, 100, 9),  # a slot is 11 blocks of 4 tokens
        (400, 100, 1),
        (2048, 100, 1),  # a cache smaller than one slot serves one at a time
    ],
)
def test_a_slot_is_reserved_for_every_running_request(max_len: int, blocks: int, slots: int):
    policy = orca(max_len=max_len)
    view = view_of(policy, blocks=blocks)
    for id in range(20):
        wait(view, id, 2)  # two tokens, but a whole slot
    assert chunks(policy.plan(view)) == [(id, 2) for id in range(slots)]


def test_slots_hold_drafted_tokens():
    policy = orca(max_len=40)
    view = view_of(policy)
    view.lookahead = 3
    for id in range(20):
        wait(view, id, 2)
    assert len(chunks(policy.plan(view))) == 9  # a slot is 11 blocks of 4 tokens


def test_running_requests_hold_their_slots():
    policy = orca(max_len=40)
    view = view_of(policy, blocks=30)  # 3 slots
    decode(view, 0, 2)
    decode(view, 1, 2)
    wait(view, 2, 2)
    wait(view, 3, 2)
    assert chunks(policy.plan(view)) == [(2, 2)]
    decode(view, 4, 2)
    assert goes_on(policy.plan(view))


def test_the_cap_on_the_batch():
    policy = orca(max_len=4, max_num_seqs=3)
    view = view_of(policy)
    decode(view, 0, 2)
    for id in range(1, 5):
        wait(view, id, 2)
    assert chunks(policy.plan(view)) == [(1, 2), (2, 2)]


def test_prompts_longer_than_a_slot_wait_for_free_blocks():
    policy = orca(max_len=8)
    view = view_of(policy, blocks=10)  # 5 slots
    wait(view, 0, 32)  # 8 blocks
    wait(view, 1, 9)  # 3 blocks, 2 are left
    wait(view, 2, 1)
    assert chunks(policy.plan(view)) == [(0, 32)]


def test_only_decodes_go_on_and_nothing_at_all_is_none():
    policy = orca()
    view = view_of(policy)
    assert policy.plan(view) is None
    decode(view, 0, 7)
    assert goes_on(policy.plan(view))


@pytest.mark.parametrize("config", [{"max_len": 0}, {"max_num_seqs": 0}, {"watermark": 0.01}])
def test_bad_configs(config: dict[str, Any]):
    with pytest.raises(ValidationError):
        OrcaConfig(**config)
