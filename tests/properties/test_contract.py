"""A policy that breaks the contract is told so: `PlanError`, or `Deadlock`, naming the instance."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_checks import assert_same

from sim.core.loop import steps_to_cover
from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import (
    Cluster,
    CostModel,
    Deadlock,
    Decode,
    DecodePiece,
    Mixed,
    Plan,
    PlanError,
    Policy,
    Preemption,
    Prefill,
    Request,
    RunToCompletion,
    Trace,
    View,
    Wait,
)

Decide = Callable[[View], object]


class Scripted(Policy):
    """Decides as a function says."""

    name = "scripted"

    def __init__(self, decide: Decide, evict: Decide | None = None) -> None:
        self.decide = decide
        self.evict = evict

    def plan(self, view: View) -> Plan | None:
        return self.decide(view)  # type: ignore[return-value]

    def victim(self, view: View) -> Preemption:
        return self.evict(view) if self.evict else super().victim(view)  # type: ignore[return-value]


def play(
    decide: Decide,
    evict: Decide | None = None,
    *,
    requests: int = 2,
    blocks: int = 100,
    swap_blocks: int = 0,
    instances: int = 1,
    arrival_s: float = 1.0,
    input_len: int = 8,
    cost: CostModel | None = None,
    fuse: bool = True,
) -> RunRecord:
    """Run `requests` requests of 8 prompt and 10 output tokens, blocks of 4, all at once."""
    trace = Trace(
        np.full(requests, input_len),
        np.full(requests, 10),
        np.full(requests, arrival_s),
    )
    cost = cost or AffineCost(1.0, 0.0, 1.0)
    specs = [InstanceSpec(cost, blocks, 4, total_swap_blocks=swap_blocks)] * instances
    return simulate(trace, Scripted(decide, evict), specs, Settings(fuse_steps=fuse))


def waiting(view: View) -> list[Request]:
    return list(view.waiting)


def first(view: View) -> Request:
    return next(iter([*view.running.values(), *view.swapped.values(), *view.waiting]))


def then(decide: Decide) -> Decide:
    """Prefill everyone, then decide so."""
    return lambda view: Prefill(waiting(view)) if view.num_waiting else decide(view)


def stranger() -> Request:
    return Request(0, 0, 0.0, 8)


BROKEN: dict[str, tuple[Decide, str]] = {
    "an unknown request": (lambda v: Prefill([stranger()]), "twice or is not here"),
    "a request named twice": (lambda v: Prefill([first(v), first(v)]), "twice or is not here"),
    "a chunk twice": (lambda v: Mixed([(first(v), 4), (first(v), 4)]), "twice or is not here"),
    "too many tokens": (lambda v: Mixed([(first(v), 9)]), "a chunk of 9 tokens"),
    "no tokens": (lambda v: Mixed([(first(v), 0)]), "a chunk of 0 tokens"),
    "fewer than no tokens": (lambda v: Mixed([(first(v), -1)]), "a chunk of -1 tokens"),
    "the rest twice": (
        lambda v: Mixed([(first(v), 4 if v.num_waiting == 2 else 5)]),
        "a chunk of 5 tokens",
    ),
    "a prompt that is done": (then(lambda v: Mixed([(first(v), 1)])), "no prompt left"),
    "Decode with nothing": (lambda v: Decode(), "nothing to decode"),
    "Decode beside a prompt alone": (
        lambda v: Mixed([(first(v), 4)]) if not v.prefilling else Decode(),
        "nothing to decode",
    ),
    "Wait until now": (lambda v: Wait(v.now_s), "not after now"),
    "Wait in the past": (lambda v: Wait(v.now_s - 0.5), "not after now"),
    "no plan at all": (lambda v: "go on", "returned str, which is no plan"),
    "a class, not a plan": (lambda v: Decode, "which is no plan"),
    "empty plans for ever": (lambda v: Prefill([]), "plans in a row ran nothing"),
    "empty chunks for ever": (lambda v: Mixed([], decode=False), "plans in a row ran nothing"),
    "a batch of nobody": (lambda v: RunToCompletion([]), "of no requests"),
    "a batch with one twice": (lambda v: RunToCompletion([first(v)] * 2), "named twice"),
    "a batch with a stranger": (lambda v: RunToCompletion([stranger()]), "does not wait here"),
    "a batch beside others": (then(lambda v: RunToCompletion([first(v)])), "running ones"),
    "a preemption of who waits": (
        lambda v: Decode(preempt=[Preemption(first(v))]),
        "does not run here",
    ),
    "a preemption of a stranger": (
        then(lambda v: Decode(preempt=[Preemption(stranger())])),
        "does not run here",
    ),
    "a preemption in Mixed": (
        lambda v: Mixed([], preempt=[Preemption(stranger())]),
        "does not run here",
    ),
    "the same preempted twice": (
        then(lambda v: Decode(preempt=[Preemption(first(v))] * 2)),
        "does not run here",
    ),
    "a pause of who waits": (lambda v: Decode(pause=[first(v)]), "not decoding here"),
    "a pause twice": (then(lambda v: Decode(pause=[first(v), first(v)])), "not decoding here"),
    "a resume of who decodes": (then(lambda v: Decode(resume=[first(v)])), "not paused here"),
    "a move of a stranger": (lambda v: Decode(move=[(stranger(), 0)]), "does not wait here"),
    "a move to where it is": (lambda v: Decode(move=[(first(v), 0)]), "move of request 0 to"),
    "a move beside chunks": (
        lambda v: Mixed([(first(v), 4)], move=[(stranger(), 0)]),
        "does not wait here",
    ),
    "a move of who decodes": (
        then(lambda v: Decode(move=[(first(v), 0)])),
        "does not wait here",
    ),
    "a swap-in of who waits": (lambda v: Decode(swap_in=[first(v)]), "not swapped out here"),
}


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plan_raises(what, fuse):
    decide, message = BROKEN[what]
    with pytest.raises(PlanError, match=message) as caught:
        play(decide, fuse=fuse)
    assert "policy 'scripted' on instance 0 at " in str(caught.value)


def test_a_request_of_another_instance():
    seen: list[View] = []

    def decide(view: View) -> Plan:
        seen.append(view)
        return Prefill([first(seen[0])])

    with pytest.raises(PlanError, match=r"on instance 1 at .* is not here"):
        play(decide, instances=2)


def test_prompts_that_do_not_fit():
    with pytest.raises(PlanError, match="needs 1 KV blocks more than are free"):
        play(lambda v: Prefill(waiting(v)), requests=3, blocks=5)


def test_chunks_that_leave_no_room_for_growth():
    """Two decode and each takes a block in the next step; beside them a prompt of one block."""

    def decide(view: View) -> Plan:
        if not view.num_decoding:
            return Prefill(waiting(view)[:2])
        return Mixed([(waiting(view)[0], 4)])

    with pytest.raises(PlanError, match="needs 1 KV blocks more than are free"):
        play(decide, requests=3, input_len=4, blocks=4)


def test_a_swap_in_that_does_not_fit():
    def decide(view: View) -> Plan:
        if view.num_running < 2 and not view.swapped:
            return Prefill([first(view)] if view.num_running == 0 else waiting(view)[:1])
        if not view.swapped:
            return Decode(preempt=[Preemption(first(view), swap=True)])
        if view.num_waiting:
            return Prefill(waiting(view)[:1])
        return Decode(swap_in=list(view.swapped.values()))

    with pytest.raises(PlanError, match="swap-in of 2 KV blocks, 1 are free"):
        play(decide, requests=3, blocks=6, swap_blocks=10)


def test_a_victim_that_does_not_run():
    with pytest.raises(PlanError, match="does not run here"):
        play(then(lambda v: Decode()), lambda v: Preemption(stranger()), blocks=5)


@pytest.mark.parametrize("fuse", [True, False])
def test_an_idle_policy_is_a_deadlock(fuse):
    work = then(lambda v: Decode())
    with pytest.raises(Deadlock, match=r"instance 1 at .*: 1 requests wait, 0 hold seats") as e:
        play(lambda v: work(v) if v.id == 0 else None, instances=2, fuse=fuse)
    assert "policy 'scripted' asks for nothing" in str(e.value)


def test_a_policy_that_stops_in_the_middle_is_a_deadlock():
    with pytest.raises(Deadlock, match=r"instance 0 at 2\.0 s: 0 requests wait, 2 hold seats"):
        play(then(lambda v: None))


def test_one_that_never_swaps_in_is_a_deadlock():
    out = then(lambda v: Decode(preempt=[Preemption(first(v), True)]) if v.num_running else None)
    with pytest.raises(Deadlock, match="0 hold seats and 2 are swapped out"):
        play(out, swap_blocks=10)


# -- promises the engine makes ------------------------------------------------------------------


class Ticking(CostModel):
    """Every step lasts the same number of femtoseconds."""

    def __init__(self, step_fs: int) -> None:
        self.piece = DecodePiece(step_fs, 0)

    def decode(self, batch: int) -> DecodePiece:
        return self.piece

    def step(self, chunks: int, new: int, context: int, quad: int, batch: int, kv: int) -> int:
        return self.piece.base_fs

    def extrapolates(self, new: int, batch: int) -> bool:
        return False


@pytest.mark.parametrize("early_fs", [1000, 60, 20, 1, 0, -1, -1000])
@pytest.mark.parametrize("until_s", [0.5, 1024.3, 100_000.7])
def test_until_s_ends_a_span_when_the_view_says_so(until_s, early_fs):
    """Late in a run many femtoseconds read as one float: `now_s >= until_s` decides, in both modes.

    The policy admits the second request from `until_s` on; the fourth decode step of the first one
    ends `early_fs` before that.
    """

    def decide(view: View) -> Plan:
        if view.num_waiting and (not view.num_decoding or view.now_s >= until_s):
            return Prefill(waiting(view)[:1])
        return Decode(until_s=until_s if view.now_s < until_s else None)

    until_fs = round(until_s * 1e15)
    start_s = until_s - 0.25
    step_fs = (until_fs - early_fs - round(start_s * 1e15)) // 5
    runs = [play(decide, arrival_s=start_s, cost=Ticking(step_fs), fuse=f) for f in (True, False)]
    assert_same(*runs)


def test_an_arrival_at_exactly_a_steps_end_is_in_time():
    """Steps end at 2, 3, 4, ...: the second request, arriving at 4.0, is in the plan made then."""
    trace = Trace(np.array([8, 8]), np.array([10, 10]), np.array([1.0, 4.0]))
    policy = Scripted(lambda v: Prefill(waiting(v)) if v.num_waiting else Decode())
    for fuse in (True, False):
        specs = [InstanceSpec(AffineCost(1.0, 0.0, 1.0), 100, 4)]
        record = simulate(trace, policy, specs, Settings(fuse_steps=fuse))
        assert record.requests["prefill_start_s"].tolist() == [1.0, 4.0]
        assert record.requests["finish_s"].tolist() == [12.0, 14.0]


@given(st.integers(-5, 3000), st.integers(1, 60), st.integers(0, 9))
@settings(max_examples=300)
def test_steps_to_cover_is_exact(elapsed, first_fs, increment_fs):
    def length(steps: int) -> int:
        return sum(first_fs + k * increment_fs for k in range(steps))

    for scale in (1, 10**14 + 1):  # beyond what a float holds
        steps = steps_to_cover(elapsed * scale, first_fs * scale, increment_fs * scale)
        assert steps >= 1
        assert length(steps) >= elapsed
        assert steps == 1 or length(steps - 1) < elapsed
    at_an_end = length(elapsed // 60 + 2)
    assert steps_to_cover(at_an_end, first_fs, increment_fs) == elapsed // 60 + 2


@pytest.mark.parametrize("reserve", [0, 1, 3])
def test_max_steps_on_memory(reserve):
    """A rule on free blocks, given as `max_steps`: asked again exactly when it applies."""

    def decide(view: View) -> Plan:
        head = waiting(view)[:1]
        room = view.free_blocks - view.growth_blocks - reserve
        if view.num_running < 2 and head and view.blocks_for(head[0].target_tokens) <= room:
            return Prefill(head)
        if view.num_decoding > 1 and view.free_blocks < reserve:
            return Decode(preempt=[Preemption(list(view.running.values())[-1])])
        steps = view.steps_until_free_below(reserve) if view.num_decoding > 1 else None
        return Decode(max_steps=steps)

    runs = [play(decide, requests=3, blocks=8, fuse=fuse) for fuse in (True, False)]
    assert_same(*runs)
    assert runs[0].counters["preemptions_recompute"] > 0
    assert runs[0].events["plans"] < runs[1].events["plans"]


@pytest.mark.parametrize("start_s", [1.0, 1024.0, 2.0**20])
def test_an_arrival_at_exactly_the_end_of_a_wait_is_in_time(start_s):
    """The timer is not early by what a float does not show."""

    def decide(view: View) -> Plan:
        if view.now_s < start_s + 0.25:
            return Wait(start_s + 0.25)
        return Prefill(waiting(view)) if view.num_waiting else Decode()

    trace = Trace(np.array([8, 8]), np.array([10, 10]), np.array([start_s, start_s + 0.25]))
    specs = [InstanceSpec(AffineCost(1.0, 0.0, 1.0), 100, 4)]
    record = simulate(trace, Scripted(decide), specs, Settings())
    assert record.requests["prefill_start_s"].tolist() == [start_s + 0.25] * 2
    assert record.steps["prefill_requests"].tolist()[0] == 2


class Here(Scripted):
    """Sends all requests to the first instance."""

    def route(self, request: Request, cluster: Cluster) -> int:
        return 0


def test_a_client_that_goes_just_before_its_request_moves():
    """Steps are formed ahead, so the move does not know of it: the new instance is told."""

    def decide(view: View) -> Plan | None:
        if view.id == 0 and view.now_s >= 4.5 and view.num_waiting:
            return Decode(move=[(waiting(view)[0], 1)])
        if view.id == 0 and view.num_waiting == 2:
            return Prefill(waiting(view)[1:])
        return Decode() if view.num_decoding else None

    # The second request decodes from 3.5 to 4.5, the client of the first goes at 4.2.
    trace = Trace(np.array([8, 8]), np.array([10, 3]), np.array([1.0, 2.5]))
    specs = [InstanceSpec(AffineCost(1.0, 0.0, 1.0), 100, 4)] * 2
    for fuse in (True, False):
        ahead = Settings(fuse_steps=fuse, async_scheduling=True, abort_after_s=3.2)
        record = simulate(trace, Here(decide), specs, ahead)
        assert record.requests["status"].tolist() == ["aborted", "finished"]
