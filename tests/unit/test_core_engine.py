"""What the engine lets in, how many events it takes, and how it refuses broken plans."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from policies.continuous import Continuous, ContinuousConfig
from policies.static import Static, StaticConfig
from sim.core.records import RunRecord
from sim.core.simulation import Simulation, simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import (
    Deadlock,
    Decode,
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

COST = AffineCost(prefill_base_s=0.010, prefill_token_s=0.001, decode_base_s=0.020)


def trace(*requests: tuple[float, int, int]) -> Trace:
    """(arrival in s, input_len, output_len) rows."""
    arrival_s, input_len, output_len = zip(*requests, strict=True)
    return Trace(np.array(input_len), np.array(output_len), np.array(arrival_s))


def run(
    requests: Trace,
    policy: Policy | None = None,
    spec: dict[str, Any] | None = None,
    instances: int = 1,
    **settings: Any,
) -> RunRecord:
    made = {"total_blocks": 1000, "block_size": 4, **(spec or {})}
    return simulate(
        requests,
        policy or Continuous(ContinuousConfig()),
        [InstanceSpec(COST, **made)] * instances,
        Settings(**settings),
    )


def statuses(record: RunRecord) -> list[str]:
    return record.requests["status"].tolist()


# -- what is rejected -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input_len", "output_len", "status"),
    [
        (8, 1, "finished"),  # 8 tokens to cache: exactly 2 blocks of 4
        (7, 2, "finished"),  # the last output token is never cached
        (1, 8, "finished"),
        (9, 1, "rejected"),
        (8, 2, "rejected"),
        (1, 9, "rejected"),
    ],
)
@pytest.mark.parametrize("policy", [Continuous(ContinuousConfig()), Static(StaticConfig())])
def test_requests_that_need_more_than_the_whole_kv_cache(
    policy: Policy, input_len: int, output_len: int, status: str
):
    record = run(trace((0, input_len, output_len)), policy, {"total_blocks": 2})
    assert statuses(record) == [status]


@pytest.mark.parametrize(
    ("input_len", "output_len", "status"),
    [(16, 4, "finished"), (19, 1, "finished"), (17, 4, "rejected"), (20, 1, "rejected")],
)
def test_requests_longer_than_the_model(input_len: int, output_len: int, status: str):
    record = run(trace((0, input_len, output_len)), spec={"max_model_len": 20})
    assert statuses(record) == [status]


def test_a_rejected_request_has_a_row_and_takes_nothing():
    record = run(trace((0, 50, 1), (0, 4, 1), (1, 50, 1)), spec={"total_blocks": 2})
    assert statuses(record) == ["rejected", "finished", "rejected"]
    columns = record.requests
    assert columns["emitted_tokens"].tolist() == [0, 1, 0]
    assert columns["prefill_instance"].tolist() == [-1, 0, -1]
    assert columns["arrival_s"].tolist() == [0, 0, 1]
    assert np.isnan(columns["finish_s"][[0, 2]]).all()
    assert len(record.steps) == 1


def test_an_empty_trace():
    record = run(Trace(np.array([], int), np.array([], int), np.array([], float)))
    assert statuses(record) == []
    assert len(record.steps) == 0


def test_a_trace_without_arrivals_needs_a_closed_loop():
    lengths = Trace(np.array([4, 4]), np.array([1, 1]))
    with pytest.raises(ValueError, match="no arrival times"):
        run(lengths)
    assert statuses(run(lengths, concurrency=1)) == ["finished"] * 2


# -- events: what fusing saves ----------------------------------------------------------------


def test_a_lone_request_takes_four_events_fused_and_one_a_step_otherwise():
    lone = trace((0, 10, 100))
    # The arrival, the wake of the idle instance, the end of the prefill, the end of 99 steps.
    assert run(lone).events == {"events": 4, "plans": 2, "spans": 2}
    assert run(lone, fuse_steps=False).events == {"events": 102, "plans": 100, "spans": 100}


def test_a_static_batch_that_leaves_together_is_one_event():
    together, each = (Static(StaticConfig(release=r)) for r in ("together", "each"))
    three = trace((0, 10, 100), (0, 5, 50), (0, 7, 50))
    # The arrivals (one instant), the wake, the end of the batch.
    assert run(three, together).events["events"] == 3
    # Rows that leave by themselves end a span: after the prefill, at 50 tokens, at 100.
    assert run(three, each).events["events"] == 5
    for policy in (together, each):
        assert run(three, policy, fuse_steps=False).events["events"] == 102


def test_an_arrival_cuts_a_span_once():
    # 10 requests arrive within one step of a long span: a second event ends it at that step.
    requests = trace((0, 10, 100), *[(0.505 + k * 1e-4, 4, 1) for k in range(10)])
    events = run(requests).events
    # 11 arrivals, wake, prefill, span (superseded end), cut end, mixed step, rest.
    assert events["events"] == 11 + 6
    assert events["spans"] == 4
    assert events["plans"] == 4


def test_no_plan_call_when_nothing_waits_or_runs():
    events = run(trace((0, 4, 1), (5, 4, 1))).events
    assert events["plans"] == 2
    # A rejected arrival wakes nobody.
    events = run(trace((0, 50, 1)), spec={"total_blocks": 2}).events
    assert events == {"events": 1, "plans": 0, "spans": 0}


# -- routing ----------------------------------------------------------------------------------


def test_route_is_asked_once_an_arrival_when_there_is_a_choice():
    class Second(Policy):
        name = "second"

        def route(self, request: Request, cluster: Any) -> int:
            return 1

        def plan(self, view: View) -> Plan | None:
            return Prefill(list(view.waiting)) if view.num_waiting else Decode()

    requests = trace((0, 4, 2), (0, 4, 2), (1, 4, 1))
    record = run(requests, Second(), instances=3)
    assert record.requests["prefill_instance"].tolist() == [1, 1, 1]
    assert [i["id"] for i in record.instances] == [0, 1, 2]


@pytest.mark.parametrize(
    ("router", "instances"),
    [
        ("round-robin", [0, 1, 2, 0]),
        ("shortest-queue", [0, 1, 2, 2]),  # C has left by then
        ("shortest-queue-tokens", [0, 1, 2, 2]),  # nothing waits anywhere: fewest requests
        ("least-loaded", [0, 1, 2, 2]),
    ],
)
def test_routers_in_a_run(router: str, instances: list[int]):
    requests = trace((0, 30, 50), (0, 20, 50), (0, 10, 1), (0.1, 5, 1))
    record = run(requests, instances=3, router=router)
    assert record.requests["prefill_instance"].tolist() == instances


def test_policies_see_priority_and_task_but_never_the_output_length():
    class Urgent(Policy):
        name = "urgent"

        def plan(self, view: View) -> Plan | None:
            if not view.num_waiting:
                return Decode()
            for request in view.waiting:
                assert not hasattr(request, "output_len")
                assert request.predicted_output_len == 0
            return Prefill([min(view.waiting, key=lambda r: (r.task != "online", r.priority))])

    requests = Trace(
        input_len=np.array([4, 4, 4]),
        output_len=np.array([1, 1, 1]),
        arrival_s=np.array([0.0, 0.0, 0.0]),
        priority=np.array([1, 3, 2]),
        task=np.array([1, 0, 0]),
        tasks=("online", "offline"),
    )
    record = run(requests, Urgent())
    # Online first, the smaller number first: request 2, 1, then 0; 14 ms each.
    assert record.requests["first_token_s"].tolist() == [0.042, 0.028, 0.014]


# -- broken plans -----------------------------------------------------------------------------


class Scripted(Policy):
    """Answers with `script(view)`."""

    name = "scripted"

    def __init__(
        self, script: Callable[[View], Any], victim: Callable[[View], Preemption] | None = None
    ) -> None:
        self.script = script
        self.named = victim

    def plan(self, view: View) -> Plan | None:
        plan: Plan | None = self.script(view)
        return plan

    def victim(self, view: View) -> Preemption:
        return self.named(view) if self.named else super().victim(view)


STRANGER = Request(99, 0, 0.0, 4)


def head(view: View) -> Request:
    return next(iter(view.waiting))


def after_prefill(then: Callable[[View], Any]) -> Callable[[View], Any]:
    """Prefill whoever waits; `then` decides about the running batch."""
    return lambda view: Prefill(list(view.waiting)) if view.num_waiting else then(view)


def first(view: View) -> Request:
    return next(iter(view.running.values()))


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (lambda v: Decode(), "Decode.. with nothing to decode"),
        (lambda v: Mixed([(head(v), 0)]), "a chunk of 0 tokens of request 0, 8 are left"),
        (lambda v: Mixed([(head(v), 9)]), "a chunk of 9 tokens of request 0, 8 are left"),
        (lambda v: Mixed([(head(v), 2), (head(v), 2)]), "request 0 is named twice or is not here"),
        (lambda v: Prefill([STRANGER]), "request 99 is named twice or is not here"),
        (
            after_prefill(lambda v: Mixed([(first(v), 1)])),
            "request 0 has no prompt left to prefill",
        ),
        (lambda v: RunToCompletion([]), "no requests or beside running ones"),
        (
            after_prefill(lambda v: RunToCompletion([first(v)])),
            "no requests or beside running ones",
        ),
        (lambda v: RunToCompletion([head(v)] * 2), "request 0 is named twice"),
        (lambda v: RunToCompletion([STRANGER]), "request 99 is named twice or does not wait here"),
        (lambda v: Wait(v.now_s), r"Wait\(until_s=0.0\) is not after now"),
        (lambda v: "sleep", r"plan\(\) returned str, which is no plan"),
        (after_prefill(lambda v: Decode(pause=[STRANGER])), "pause of request 99"),
        (after_prefill(lambda v: Decode(resume=[first(v)])), "resume of request 0, .* not paused"),
        (after_prefill(lambda v: Decode(swap_in=[first(v)])), "swap-in of request 0, .* not swap"),
        (
            after_prefill(lambda v: Decode(preempt=[Preemption(STRANGER)])),
            "preemption of request 99, which does not run here",
        ),
        (lambda v: Mixed([]), "1000 plans in a row ran nothing"),
    ],
)  # fmt: skip
def test_a_plan_that_breaks_the_contract(script: Callable[[View], Any], complaint: str):
    with pytest.raises(PlanError, match=complaint) as error:
        run(trace((0, 8, 5)), Scripted(script))
    # Who, where, when.
    assert str(error.value).startswith("policy 'scripted' on instance 0 at 0.0")


def test_a_paged_plan_that_does_not_fit_is_the_policys_error():
    with pytest.raises(PlanError, match="needs 1 KV blocks more than are free"):
        run(trace((0, 8, 1), (0, 9, 1)), Scripted(lambda v: Prefill(list(v.waiting))), FOUR)
    # Blocks of the step's own growth count: A's 9th token and B's prompt need 1 + 2 of 2 blocks.
    script = Scripted(
        lambda v: Mixed([(head(v), head(v).target_tokens)]) if v.num_waiting else Decode()
    )
    with pytest.raises(PlanError, match="needs 1 KV blocks more than are free"):
        run(trace((0, 8, 5), (0.001, 8, 1)), script, FOUR)


FOUR = {"total_blocks": 4}


def test_a_victim_that_does_not_run():
    policy = Scripted(after_prefill(lambda v: Decode()), victim=lambda v: Preemption(STRANGER))
    with pytest.raises(PlanError, match="preemption of request 99"):
        run(trace((0, 8, 5), (0, 8, 5)), policy, FOUR)


def test_a_swap_in_that_does_not_fit():
    def script(view: View) -> Plan:
        if view.swapped:
            return Decode(swap_in=list(view.swapped.values()))
        return Prefill(list(view.waiting)) if view.num_waiting else Decode()

    policy = Scripted(script, victim=lambda v: Preemption(v.running[1], swap=True))
    with pytest.raises(PlanError, match="swap-in of 2 KV blocks, 1 are free"):
        run(trace((0, 8, 5), (0, 8, 5)), policy, {**FOUR, "total_swap_blocks": 9})


def test_a_policy_that_asks_for_nothing_is_a_deadlock():
    with pytest.raises(Deadlock, match=r"instance 0 at 0.5 s: 2 requests wait, 0 hold seats"):
        run(trace((0, 4, 1), (0.5, 4, 1)), Scripted(lambda v: None))


def test_a_wait_is_cut_short_by_an_arrival():
    def script(view: View) -> Plan:
        return Prefill(list(view.waiting)) if view.num_waiting == 2 else Wait(10.0)

    record = run(trace((0, 4, 1), (3, 4, 1)), Scripted(script))
    assert record.requests["prefill_start_s"].tolist() == [3, 3]


def test_a_wait_ends_by_itself():
    def script(view: View) -> Plan:
        return Prefill(list(view.waiting)) if view.now_s >= 10.1 else Wait(10.1)

    record = run(trace((0, 4, 1), (3, 4, 1)), Scripted(script))
    assert record.requests["prefill_start_s"].tolist() == [10.1, 10.1]


# -- settled state between spans --------------------------------------------------------------


def test_blocks_seats_and_tokens_come_back():
    requests = trace((0, 9, 30), (0, 7, 20), (0.1, 5, 10), (0.2, 30, 1))
    sim = Simulation(
        requests,
        Continuous(ContinuousConfig(max_num_batched_tokens=16, max_num_seqs=8)),
        [InstanceSpec(COST, 14, 4)],
        Settings(),
    )
    record = sim.run()
    assert statuses(record) == ["finished"] * 4
    assert record.counters["preemptions_recompute"] > 0
    (instance,) = sim.instances
    assert instance.free_blocks == instance.total_blocks
    assert instance.waiting.tokens == instance.outstanding == instance.outstanding_tokens == 0


def test_counters_are_those_the_record_documents():
    counters = run(trace((0, 4, 1))).counters
    assert set(counters) >= {
        *("preemptions_recompute", "preemptions_swap", "oom_events", "extrapolated_steps"),
        *("swap_out_blocks", "swap_in_blocks"),
    }
    assert set(counters.values()) == {0}


def test_rejected_requests_are_counted():
    record = run(trace((0, 50, 1), (0, 4, 1)), spec={"total_blocks": 2})
    assert record.requests["status"].tolist() == ["rejected", "finished"]


def test_static_batches_say_where_they_decoded():
    record = run(trace((0, 4, 3)), Static(StaticConfig()))
    assert record.requests["decode_instance"].tolist() == [0]


def test_a_run_ends_at_the_same_time_in_both_modes():
    # Prefill until 14 ms, steps of 20 ms; the client goes at 100 ms, the step ends at 114.
    ends = [run(trace((0, 4, 50)), abort_after_s=0.1, fuse_steps=f).end_s for f in (True, False)]
    assert ends == [0.114, 0.114]


def test_steps_outside_the_fitted_range_are_counted():
    class Fitted(AffineCost):
        def extrapolates(self, new: int, batch: int) -> bool:
            return new > 8

    record = simulate(
        trace((0, 8, 1), (1, 9, 1), (2, 10, 1)),
        Continuous(ContinuousConfig()),
        [InstanceSpec(Fitted(prefill_base_s=0.01), 100, 4)],
        Settings(),
    )
    assert record.counters["extrapolated_steps"] == 2


def test_a_run_leaves_nothing_behind():
    requests = Trace(np.full(50, 20), np.full(50, 5), np.arange(50.0))
    spec = InstanceSpec(AffineCost(decode_base_s=0.1), 100, 16)

    def objects():
        simulate(requests, Continuous(ContinuousConfig()), [spec], Settings())
        return len(gc.get_objects())

    objects()
    gc.disable()  # what is left is found in the counts, not by luck
    try:
        before = objects()
        assert max(objects() for _ in range(5)) < before + 20
    finally:
        gc.enable()
