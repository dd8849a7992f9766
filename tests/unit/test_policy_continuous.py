"""Continuous batching as a pure decision: build a bare view, look at the plan. No SimPy."""

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from policies.continuous import Continuous, ContinuousConfig
from sim.costs.simple import AffineCost
from sim.types import Decode, Mixed, Plan, Prefill, Request, View
from sim.types.request import DECODING, PREFILLING, SWAPPED

BLOCK = 4


def continuous(**config: Any) -> Continuous:
    return Continuous(ContinuousConfig(**config))


def empty_view(blocks: int = 100) -> View:
    return View(0, AffineCost(decode_base_s=0.02), blocks, BLOCK, total_swap_blocks=blocks)


def new_request(id: int, tokens: int) -> Request:
    return Request(id, 0, 0.0, tokens)


def wait(view: View, id: int, tokens: int) -> Request:
    """A request of `tokens` prompt tokens joins the queue."""
    request = new_request(id, tokens)
    request.home = view
    view.waiting.push(request)
    view.num_waiting += 1
    return request


def decode(view: View, id: int, cached: int) -> Request:
    """A request that has cached `cached` tokens is in the decoding batch."""
    request = new_request(id, cached)
    request.home = view
    request.state = DECODING
    request.prefilled = cached
    request.kv_offset = cached - view.steps
    request.steps_at_join = view.steps
    view.phases[request.kv_offset % BLOCK] += 1
    view.kv_tokens += cached
    view.num_decoding += 1
    view.running[id] = request
    view.free_blocks -= view.blocks_for(cached)
    return request


def half_prefilled(view: View, id: int, tokens: int, done: int) -> Request:
    """A request that has `done` of its `tokens` prompt tokens cached."""
    request = new_request(id, tokens)
    request.home = view
    request.state = PREFILLING
    request.prefilled = done
    request.held_blocks = view.blocks_for(done)
    view.running[id] = view.prefilling[id] = request
    view.free_blocks -= request.held_blocks
    return request


def swapped(view: View, id: int, cached: int) -> Request:
    """A request whose `cached` tokens are in host memory."""
    request = new_request(id, cached)
    request.home = view
    request.state = SWAPPED
    request.prefilled = cached
    request.held_blocks = view.blocks_for(cached)
    view.swapped[id] = request
    view.free_swap_blocks -= request.held_blocks
    return request


def chunks(plan: Plan | None) -> list[tuple[int, int]]:
    """(request, tokens) of a plan with prompt chunks."""
    assert isinstance(plan, Mixed)
    return [(request.id, tokens) for request, tokens in plan.chunks]


def prefills(plan: Plan | None) -> list[int]:
    assert isinstance(plan, Prefill)
    return ids(plan.requests)


def ids(requests: Sequence[Request]) -> list[int]:
    return [request.id for request in requests]


def goes_on(plan: Plan | None) -> bool:
    """The plan changes nothing: one more decode step, or many."""
    return isinstance(plan, Decode) and not plan.changes and plan.max_steps is None


# -- V1: one budget a step --------------------------------------------------------------------


def test_v1_only_decodes_go_on():
    view = empty_view()
    decode(view, 0, 7)
    assert goes_on(continuous().plan(view))


def test_v1_order_decodes_then_unfinished_prompts_then_the_queue():
    view = empty_view()
    decode(view, 0, 7)
    decode(view, 1, 7)
    half_prefilled(view, 2, tokens=10, done=6)
    wait(view, 3, 5)
    wait(view, 4, 50)
    plan = continuous(max_num_batched_tokens=16, max_num_seqs=8).plan(view)
    # 16 tokens: 2 decodes, the last 4 of request 2, all 5 of request 3, and 5 of 50.
    assert chunks(plan) == [(2, 4), (3, 5), (4, 5)]
    assert plan.decode


def test_v1_without_decodes_the_step_is_prompts_only():
    view = empty_view()
    wait(view, 0, 5)
    plan = continuous().plan(view)
    assert chunks(plan) == [(0, 5)]
    assert not plan.decode


def test_v1_budget_used_up_by_an_unfinished_prompt():
    view = empty_view()
    decode(view, 0, 7)
    half_prefilled(view, 1, tokens=100, done=6)
    half_prefilled(view, 2, tokens=100, done=6)
    wait(view, 3, 1)
    assert chunks(continuous(max_num_batched_tokens=8, max_num_seqs=8).plan(view)) == [(1, 7)]


def test_v1_long_prefill_token_threshold_caps_every_chunk():
    view = empty_view()
    half_prefilled(view, 0, tokens=100, done=10)
    wait(view, 1, 100)
    wait(view, 2, 3)
    policy = continuous(max_num_batched_tokens=20, max_num_seqs=8, long_prefill_token_threshold=8)
    assert chunks(policy.plan(view)) == [(0, 8), (1, 8), (2, 3)]


def test_v1_seats():
    view = empty_view()
    decode(view, 0, 7)
    half_prefilled(view, 1, tokens=5, done=1)
    for id in (2, 3, 4):
        wait(view, id, 3)
    # Decoding and half-prefilled requests both hold a seat.
    assert chunks(continuous(max_num_seqs=3).plan(view)) == [(1, 4), (2, 3)]
    assert chunks(continuous(max_num_seqs=2).plan(view)) == [(1, 4)]


def test_v1_blocks_are_for_the_chunk_and_after_the_growth_of_the_batch():
    view = empty_view(blocks=4)
    decode(view, 0, 8)  # 2 blocks, and its next token needs a third
    wait(view, 1, 5)  # needs 2
    assert view.growth_blocks == 1
    assert goes_on(continuous().plan(view))  # 4 - 2 - 1 = 1 block is left
    view = empty_view(blocks=5)
    decode(view, 0, 8)
    wait(view, 1, 5)
    assert chunks(continuous().plan(view)) == [(1, 5)]
    # A chunk needs blocks for the tokens of this step only.
    view = empty_view(blocks=4)
    decode(view, 0, 8)
    wait(view, 1, 50)
    assert chunks(continuous(max_num_batched_tokens=5, max_num_seqs=2).plan(view)) == [(1, 4)]


def test_v1_an_unfinished_prompt_uses_the_room_in_its_last_block():
    view = empty_view(blocks=3)
    half_prefilled(view, 0, tokens=8, done=6)  # 2 blocks, room for 2 tokens
    wait(view, 1, 4)
    assert chunks(continuous().plan(view)) == [(0, 2), (1, 4)]


def test_v1_strictly_first_come_first_served():
    view = empty_view(blocks=3)
    decode(view, 0, 3)
    wait(view, 1, 12)  # needs 3 blocks, 2 are free
    wait(view, 2, 4)  # would fit
    assert goes_on(continuous().plan(view))


def test_v1_admits_nobody_when_the_batch_itself_does_not_fit():
    view = empty_view(blocks=3)
    decode(view, 0, 8)
    decode(view, 1, 4)
    wait(view, 2, 1)
    # No block is free and two are needed: the engine will evict; the plan is to go on.
    assert goes_on(continuous().plan(view))
    half_prefilled(view, 3, tokens=5, done=4)
    assert chunks(continuous().plan(view)) == [(3, 1)]


def test_v1_recomputed_requests_prefill_prompt_and_emitted_tokens():
    view = empty_view()
    request = new_request(5, 10)
    request.target_tokens = 13
    wait(view, 6, 2)
    view.waiting.push_front(request)
    view.num_waiting += 1
    assert chunks(continuous().plan(view)) == [(5, 13), (6, 2)]


def test_v1_victim_is_the_last_admitted():
    view = empty_view()
    decode(view, 4, 5)
    decode(view, 2, 5)
    preemption = continuous().victim(view)
    assert (preemption.request.id, preemption.swap) == (2, False)


# -- V0: prefills first -----------------------------------------------------------------------


def v0(**config: Any) -> Continuous:
    return continuous(scheduler="v0", **config)


def test_v0_prefills_go_first_and_alone():
    view = empty_view()
    decode(view, 0, 7)
    wait(view, 1, 5)
    wait(view, 2, 6)
    plan = v0().plan(view)
    assert prefills(plan) == [1, 2]
    assert not plan.padded
    assert v0(padded=True).plan(view).padded


def test_v0_nothing_to_prefill():
    view = empty_view()
    decode(view, 0, 7)
    assert goes_on(v0().plan(view))
    wait(view, 1, 5)
    assert goes_on(v0(max_num_seqs=1).plan(view))


def test_v0_token_limit_counts_whole_prompts():
    view = empty_view()
    for id, tokens in enumerate((5, 6, 5, 1)):
        wait(view, id, tokens)
    assert prefills(v0(max_num_batched_tokens=16).plan(view)) == [0, 1, 2]
    assert prefills(v0(max_num_batched_tokens=15).plan(view)) == [0, 1]
    # Strictly in order: request 3 would fit after 1.


def test_v0_token_count_padded_charges_the_longest_for_each():
    view = empty_view()
    for id, tokens in enumerate((5, 6, 5)):
        wait(view, id, tokens)
    assert prefills(v0(max_num_batched_tokens=18, token_count="padded").plan(view)) == [0, 1, 2]
    assert prefills(v0(max_num_batched_tokens=17, token_count="padded").plan(view)) == [0, 1]
    assert prefills(v0(max_num_batched_tokens=16, token_count="sum").plan(view)) == [0, 1, 2]


def test_v0_padding_tokens_of_a_batch_are_limited():
    view = empty_view()
    for id, tokens in enumerate((20, 18, 12, 19)):
        wait(view, id, tokens)
    assert prefills(v0(max_paddings=None).plan(view)) == [0, 1, 2, 3]
    assert prefills(v0(max_paddings=10).plan(view)) == [0, 1, 2]  # 0, 2, 8 more: 10; then 11
    assert prefills(v0(max_paddings=9).plan(view)) == [0, 1]
    assert prefills(v0(max_paddings=0).plan(view)) == [0]


def test_v0_a_prompt_longer_than_the_limit_runs_alone():
    view = empty_view()
    wait(view, 0, 30)
    wait(view, 1, 1)
    assert prefills(v0(max_num_batched_tokens=16).plan(view)) == [0]


def test_v0_seats():
    view = empty_view()
    decode(view, 0, 7)
    for id in (1, 2, 3):
        wait(view, id, 3)
    assert prefills(v0(max_num_seqs=3).plan(view)) == [1, 2]


def test_v0_watermark_stays_free_at_admission():
    # 100 blocks, 10 % watermark; request 0 holds 80, so 20 are free and 10 may be given away.
    view = empty_view(blocks=100)
    decode(view, 0, 80 * BLOCK - 1)
    wait(view, 1, 10 * BLOCK)
    assert prefills(v0(watermark=0.1).plan(view)) == [1]
    view.waiting.remove(next(iter(view.waiting)))
    wait(view, 2, 10 * BLOCK + 1)
    assert goes_on(v0(watermark=0.1).plan(view))
    assert prefills(v0(watermark=0).plan(view)) == [2]


def test_v0_watermark_is_whole_blocks_rounded_down():
    view = empty_view(blocks=99)
    decode(view, 0, 4)
    wait(view, 1, 98 * BLOCK)
    assert prefills(v0(watermark=0.01).plan(view)) == [1]  # int(0.99) = 0


def test_v0_watermark_is_waived_for_a_prompt_on_an_idle_instance():
    # Such a prompt would otherwise never run.
    view = empty_view(blocks=100)
    wait(view, 0, 100 * BLOCK)
    assert prefills(v0(watermark=0.1).plan(view)) == [0]


def test_v0_growth_of_the_batch_does_not_matter_for_a_prefill_step():
    view = empty_view(blocks=3)
    decode(view, 0, 8)
    wait(view, 1, 4)
    assert view.growth_blocks == 1
    assert prefills(v0().plan(view)) == [1]


def test_v0_swapped_requests_come_back_before_any_prefill():
    view = empty_view()
    decode(view, 0, 7)
    swapped(view, 1, 6)
    swapped(view, 2, 6)
    wait(view, 3, 1)
    plan = v0().plan(view)
    assert isinstance(plan, Decode)
    assert ids(plan.swap_in) == [1, 2]


def test_v0_nobody_is_prefilled_while_something_is_swapped_out():
    view = empty_view(blocks=4)
    decode(view, 0, 11)  # 3 blocks, 1 is free
    swapped(view, 1, 4)  # 1 block, and its next token needs another
    wait(view, 2, 1)
    assert goes_on(v0().plan(view))


def test_v0_swap_in_leaves_room_for_the_growth_of_the_batch():
    view = empty_view(blocks=6)
    decode(view, 0, 8)  # 2 blocks, needs a third
    swapped(view, 1, 5)  # 2 blocks, and one to spare
    assert ids(v0().plan(view).swap_in) == [1]
    view = empty_view(blocks=5)
    decode(view, 0, 8)
    swapped(view, 1, 5)
    assert goes_on(v0().plan(view))


def test_v0_swap_in_needs_a_seat_and_the_watermark():
    view = empty_view(blocks=10)
    decode(view, 0, 7)
    swapped(view, 1, 6)
    swapped(view, 2, 6)
    assert ids(v0(max_num_seqs=2).plan(view).swap_in) == [1]
    # 8 blocks are free; 3 stay free; each needs 2 and one to spare.
    assert ids(v0(watermark=0.3).plan(view).swap_in) == [1, 2]
    assert ids(v0(watermark=0.4).plan(view).swap_in) == [1]


def test_v0_swap_in_goes_by_arrival_not_by_eviction():
    # Victims are the latest arrivals: 2 went before 1.
    view = empty_view(blocks=10)
    decode(view, 0, 7)
    swapped(view, 2, 6)
    swapped(view, 1, 6)
    assert ids(v0().plan(view).swap_in) == [1, 2]
    assert ids(v0(max_num_seqs=2).plan(view).swap_in) == [1]


def test_v0_swap_in_wants_a_block_to_spare():
    # 2 blocks are free and would hold its 7th token: vLLM wants a third, unless nothing runs.
    view = empty_view(blocks=4)
    decode(view, 0, 7)
    swapped(view, 1, 6)
    assert goes_on(v0().plan(view))
    view = empty_view(blocks=2)
    swapped(view, 1, 6)
    assert ids(v0().plan(view).swap_in) == [1]


def test_v0_swap_in_on_an_idle_instance_waives_the_watermark():
    view = empty_view(blocks=2)
    swapped(view, 1, 7)
    assert ids(v0(watermark=0.9).plan(view).swap_in) == [1]


def test_v0_victim_is_the_latest_arrival_whatever_the_order_of_admission():
    view = empty_view()
    decode(view, 4, 5)
    decode(view, 7, 5)
    decode(view, 2, 5)
    preemption = v0().victim(view)
    assert (preemption.request.id, preemption.swap) == (7, False)
    assert v0(preemption_mode="swap").victim(view).swap


# -- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["v0", "v1"])
def test_nothing_runs_and_nothing_fits(scheduler: str):
    view = empty_view(blocks=2)
    wait(view, 0, 9)
    assert continuous(scheduler=scheduler).plan(view) is None


@pytest.mark.parametrize("scheduler", ["v0", "v1"])
def test_same_view_same_plan(scheduler: str):
    view = empty_view()
    decode(view, 0, 7)
    wait(view, 1, 5)
    policy = continuous(scheduler=scheduler)
    first, second = policy.plan(view), policy.plan(view)
    if scheduler == "v0":
        assert prefills(first) == prefills(second)
    else:
        assert chunks(first) == chunks(second)
    assert view.num_waiting == len(view.waiting) == 1
    assert (view.free_blocks, len(view.running)) == (98, 1)


def test_defaults_are_vllms():
    config = ContinuousConfig()
    assert config.scheduler == "v1"
    assert config.max_num_batched_tokens == 2048
    assert config.watermark == 0.01
    assert config.token_count == "sum"
    assert config.preemption_mode == "recompute"
    assert config.long_prefill_token_threshold == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"scheduler": "v2"},
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 0},
        {"long_prefill_token_threshold": -1},
        {"watermark": -0.1},
        {"watermark": 1.0},
        {"token_count": "max"},
        {"preemption_mode": "drop"},
        {"max_num_sequences": 8},
        {"max_num_batched_tokens": 128, "max_num_seqs": 129},
    ],
)
def test_bad_config(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        ContinuousConfig(**bad)


def test_a_budget_below_the_seats_names_both_values():
    with pytest.raises(ValidationError, match=r"max_num_batched_tokens=128 .*max_num_seqs=256"):
        ContinuousConfig(max_num_batched_tokens=128)
    # V0 decodes outside the budget.
    assert ContinuousConfig(scheduler="v0", max_num_batched_tokens=128).max_num_seqs == 256


def test_config_is_frozen():
    config = ContinuousConfig()
    with pytest.raises(ValidationError):
        config.max_num_seqs = 3


@pytest.mark.parametrize(
    ("scheduler", "ignored"),
    [
        *(("v1", {"watermark": 0.1}), ("v1", {"token_count": "padded"}), ("v1", {"padded": True})),
        ("v1", {"max_paddings": 256}),
        *(("v1", {"preemption_mode": "swap"}), ("v0", {"long_prefill_token_threshold": 8})),
    ],
)
def test_a_parameter_of_the_other_scheduler_is_refused(scheduler: str, ignored: dict[str, Any]):
    with pytest.raises(ValueError, match=f"has no meaning with scheduler: {scheduler}"):
        ContinuousConfig(scheduler=scheduler, **ignored)
