"""Plans that the built-in policies do not use: pause, resume, max_steps, until_s, preempt; padding.

Each policy here is a few lines made for its trace. `CONSTANT` prices: a prefill of n tokens takes
10 + n ms, a decode step 20 ms.
"""

from typing import Any

import pytest
from hand import CONSTANT, Row, policy, replay

from sim.types import Decode, Mixed, Plan, Policy, Preemption, Prefill, RunToCompletion, View


class PauseFirst(Policy):
    """Request 0 sits out from its second token until it is alone."""

    name = "pause-first"

    def plan(self, view: View) -> Plan | None:
        if view.num_waiting:
            return Prefill(list(view.waiting))
        first = view.running.get(0)
        if first is None:
            return Decode()
        if 0 in view.paused:
            return Decode(resume=[first]) if not view.num_decoding else Decode()
        left = 2 - view.generated(first)
        if view.num_decoding == 1 or left < 0:
            return Decode()
        # What depends on the number of tokens has to be said beforehand: `max_steps`.
        return Decode(max_steps=left) if left else Decode(pause=[first])


def test_pause_and_resume():
    run = replay([(0, 4, 4), (0, 4, 5)], PauseFirst(), cost=CONSTANT)
    #  0  A and B prefill, 10 + 8 = 18.
    # 18  One step for both: two tokens each at 38.
    # 38  A sits out and keeps its block. B alone: 58, 78, 98: 5 tokens.
    # 98  A is alone and resumes: 118, 138: 4 tokens.
    run.check(
        Row(arrival=0, start=0, first=18, finish=138, tokens=4),
        Row(arrival=0, start=0, first=18, finish=98, tokens=5),
    )
    run.check_gaps(20, 20, 20, 20, 20, 80, 20)  # A: 20, 118 - 38 = 80, 20
    run.check_steps(
        (0, 18, "prefill", 8, 0, 0),
        (18, 20, "decode", 0, 2, 8),
        *((t, 20, "decode", 0, 1, k) for t, k in ((38, 10), (58, 11), (78, 12))),
        *((t, 20, "decode", 0, 1, k) for t, k in ((98, 5), (118, 6))),
    )


class Gate(Policy):
    """Request 0 at once, the others from `open_s` on."""

    name = "gate"

    def __init__(self, open_s: float) -> None:
        self.open_s = open_s

    def plan(self, view: View) -> Plan | None:
        if not view.running:
            return Prefill([next(iter(view.waiting))])
        if not view.num_waiting:
            return Decode()
        if view.now_s < self.open_s:
            return Decode(until_s=self.open_s)
        return Mixed([(r, r.target_tokens) for r in view.waiting])


@pytest.mark.parametrize(("gate", "start"), [(53, 54), (54, 54), (54.1, 74), (13, 14)])
def test_until_s_is_the_first_step_end_not_before_it(gate: float, start: float):
    run = replay([(0, 4, 6), (0, 2, 1)], Gate(gate / 1000), cost=CONSTANT)
    # A prefills until 14; steps end at 34, 54, 74, ... B's prompt (10 + 2) makes one step 32.
    # A has five steps in all, wherever that one stands: 14 + 4 * 20 + 32 = 126.
    run.check(
        Row(arrival=0, start=0, first=14, finish=126, tokens=6),
        Row(arrival=0, start=start, first=start + 32, finish=start + 32, tokens=1),
    )


class Shove(Policy):
    """A waiting request pushes a running one out, by recompute or swap; then in its turn."""

    name = "shove"

    def __init__(self, swap: bool) -> None:
        self.swap = swap

    def plan(self, view: View) -> Plan | None:
        fresh = next((r for r in view.waiting if not r.preemptions), None)
        if fresh is not None:
            gone = [Preemption(r, self.swap) for r in view.running.values()]
            return Mixed([(fresh, fresh.target_tokens)], preempt=gone)
        if not view.num_decoding:
            if view.swapped:
                return Decode(swap_in=list(view.swapped.values()))
            return Prefill(list(view.waiting))
        return Decode()


def test_preempt_in_a_mixed_plan_recompute():
    run = replay([(0, 4, 3), (20, 6, 2)], Shove(swap=False), cost=CONSTANT)
    #  0  A, 14. Step until 34.
    # 34  B pushes A out; A has emitted 2: 4 + 2 = 6 tokens to recompute. B: 10 + 6 = 16.
    # 50  B decodes until 70: done. A: 10 + 6 = 16.
    # 86  A has its third token.
    run.check(
        Row(arrival=0, start=0, first=14, finish=86, tokens=3, preemptions=1),
        Row(arrival=20, start=34, first=50, finish=70, tokens=2),
    )


def test_preempt_in_a_mixed_plan_swap():
    run = replay(
        [(0, 4, 3), (20, 6, 2)],
        Shove(swap=True),
        cost=CONSTANT,
        spec={"total_swap_blocks": 10, "swap_s_per_block": 0.001},
    )
    # 34  A caches 5 tokens: 2 blocks of 4, 2 ms; then B: 2 + 16 = 18.
    # 52  B decodes until 72: done. A comes back, 2 ms, and steps: 2 + 20.
    # 94  A has its third token.
    run.check(
        Row(arrival=0, start=0, first=14, finish=94, tokens=3, preemptions=1),
        Row(arrival=20, start=34, first=52, finish=72, tokens=2),
    )
    run.check_swaps((34, 2, 0, 2, "out"), (72, 2, 0, 2, "in"))


class NoVictim(Policy):
    """Prefills whoever waits and fits, decodes else; leaves victims to the default."""

    name = "no-victim"

    def plan(self, view: View) -> Plan | None:
        room = view.free_blocks
        fitting = []
        for request in view.waiting:
            room -= view.blocks_for(request.target_tokens)
            if room < 0:
                break
            fitting.append(request)
        if fitting:
            return Prefill(fitting)
        return Decode() if view.num_decoding else None


def test_default_victim_is_the_last_admitted_recomputed():
    run = replay([(0, 4, 3), (0, 4, 2)], NoVictim(), cost=CONSTANT, blocks=3)
    #  0  A and B prefill, 10 + 8 = 18: a block each, 1 is free.
    # 18  Both need one: B, admitted last, is dropped. A holds 2 blocks of 3; B needs 2.
    # 38  A steps again, until 58: 3 tokens. B: 4 + 1 tokens, 10 + 5 = 15.
    # 73  B has its second token.
    run.check(
        Row(arrival=0, start=0, first=18, finish=58, tokens=3),
        Row(arrival=0, start=0, first=18, finish=73, tokens=2, preemptions=1),
    )


class SwapTwice(Policy):
    """Two preemptions in one plan."""

    name = "swap-twice"

    def plan(self, view: View) -> Plan | None:
        if view.num_waiting:
            return Prefill(list(view.waiting))
        if view.swapped:
            return Decode(swap_in=list(view.swapped.values()))
        if len(view.running) == 3 and not any(r.preemptions for r in view.running.values()):
            return Decode(preempt=[Preemption(view.running[i], swap=True) for i in (1, 2)])
        return Decode()


def test_copies_queue_up_and_delay_one_step():
    run = replay(
        [(0, 4, 3), (0, 8, 3), (0, 4, 3)],
        SwapTwice(),
        cost=CONSTANT,
        spec={"total_swap_blocks": 10, "swap_s_per_block": 0.001},
    )
    #  0  10 + 16 = 26.
    # 26  B (2 blocks) and C (1) go out, one after the other: 26-28, 28-29. A's step: 29-49.
    # 49  Both come back: 49-51, 51-52. Step 52-72: A has 3 tokens, B and C 2.
    # 72  B and C: 92.
    run.check(
        Row(arrival=0, start=0, first=26, finish=72, tokens=3),
        Row(arrival=0, start=0, first=26, finish=92, tokens=3, preemptions=1),
        Row(arrival=0, start=0, first=26, finish=92, tokens=3, preemptions=1),
    )
    run.check_swaps(
        (26, 2, 1, 2, "out"), (28, 1, 2, 1, "out"), (49, 2, 1, 2, "in"), (51, 1, 2, 1, "in")
    )
    run.check_gaps(23, 23, 46, 20, 46, 20)


# -- padding is a property of the engine, or left to the policy --------------------------------


@pytest.mark.parametrize(
    ("padding", "wanted", "charged"),
    [
        ("policy", True, 8),
        ("policy", False, 6),
        ("batch", True, 8),
        ("batch", False, 8),
        ("none", True, 6),
        ("none", False, 6),
    ],
)
@pytest.mark.parametrize("name", ["static", "continuous"])
def test_padding(name: str, padding: str, wanted: bool, charged: int):
    config: dict[str, Any] = {"padded": wanted}
    if name == "continuous":
        config["scheduler"] = "v0"
    run = replay([(0, 2, 1), (0, 4, 1)], policy(name, **config), cost=CONSTANT, padding=padding)
    # Prompts of 2 and 4 tokens: 6, or padded to 2 x 4 = 8.
    done = 10 + charged
    run.check(*[Row(arrival=0, start=0, first=done, finish=done, tokens=1)] * 2)
    assert run.fused.steps["prefill_tokens"].tolist() == [6]
    assert run.fused.steps["padded_tokens"].tolist() == [charged]


def test_padded_prices_see_every_prompt_as_long_as_the_longest():
    seen = []

    class Recording(type(CONSTANT)):
        def step(self, *args: int) -> int:
            seen.append(args)
            return super().step(*args)

    requests = [(0.0, 2, 1), (0.0, 4, 1), (0.0, 3, 1)]
    for name, config in (("static", {}), ("continuous", {"scheduler": "v0", "padded": True})):
        seen.clear()
        replay(requests, policy(name, **config), cost=Recording(prefill_base_s=0.010))
        # chunks, new tokens, context, sum of squares, decodes, cached
        assert set(seen) == {(3, 12, 12, 48, 0, 0)}
    seen.clear()
    replay(requests, policy("continuous"), cost=Recording(prefill_base_s=0.010))
    assert set(seen) == {(3, 9, 9, 4 + 16 + 9, 0, 0)}


def test_chunks_attend_to_what_their_request_has_cached():
    seen = []

    class Recording(type(CONSTANT)):
        def step(self, *args: int) -> int:
            seen.append(args)
            return super().step(*args)

    replay(
        [(0, 10, 1)],
        policy("continuous", max_num_batched_tokens=4, max_num_seqs=1),
        cost=Recording(prefill_base_s=0.010),
    )
    # 10 tokens in chunks of 4, 4, 2: context l + p, and l * (l + 2p) with p = 0, 4, 8 cached.
    assert seen[:3] == [(1, 4, 4, 16, 0, 0), (1, 4, 8, 48, 0, 0), (1, 2, 10, 36, 0, 0)]


def test_run_to_completion_leaves_decoding_to_nobody_else():
    class Both(Policy):
        """A static batch of one at a time, then the rest together."""

        name = "both"

        def plan(self, view: View) -> Plan | None:
            waiting = list(view.waiting)
            if not waiting:
                return None
            return RunToCompletion(waiting[:1] if waiting[0].id == 0 else waiting, padded=False)

    run = replay([(0, 4, 2), (0, 2, 1), (0, 3, 2)], Both(), cost=CONSTANT)
    #  0  [A] 14, 34.   34  [B, C] 10 + 5 = 15, 49; 69.
    run.check(
        Row(arrival=0, start=0, first=14, finish=34, tokens=2),
        Row(arrival=0, start=34, first=49, finish=69, tokens=1),
        Row(arrival=0, start=34, first=49, finish=69, tokens=2),
    )
