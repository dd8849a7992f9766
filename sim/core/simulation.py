"""One simulated run: wires arrivals, router and instances, and collects the records."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import simpy

from sim.core.arrivals import Arrivals, ClosedArrivals, OpenArrivals
from sim.core.instance import Instance
from sim.core.loop import ABORT, Timer, new_environment
from sim.core.records import (
    ABORTED,
    FINISHED,
    REJECTED,
    UNFINISHED,
    RequestLog,
    RunRecord,
    StepLog,
)
from sim.core.routers import make_router
from sim.core.seats import Seats
from sim.core.spec import InstanceSpec, Settings
from sim.types import FS_PER_S, Cluster, Deadlock, N, Policy, Request, Trace, to_fs, to_s
from sim.types.request import DONE


def simulate(
    trace: Trace, policy: Policy, specs: Sequence[InstanceSpec], settings: Settings
) -> RunRecord:
    """Run `trace` through `policy` on instances of `specs` and return what happened.

    Args:
        trace: the requests; needs arrival times unless `settings.concurrency` is set.
        policy: the decisions.
        specs: one per instance; instance ids are their positions.
        settings: how the engine runs.

    Raises:
        PlanError: the policy broke the contract.
        Deadlock: requests wait, nothing runs and the policy asks for nothing.
    """
    return Simulation(trace, policy, specs, settings).run()


class Aborts:
    """Clients that give up a constant time after arrival: a queue, in order of arrival."""

    def __init__(self, env: simpy.Environment, after_s: float) -> None:
        self.env = env
        self.after_fs = to_fs(after_s)
        self.timer = Timer(env, self.fire, ABORT)
        self.pending: deque[tuple[int, Request, Instance]] = deque()

    def watch(self, request: Request, instance: Instance) -> None:
        """Start the clock of a request that has just arrived."""
        due = request.arrival_fs + self.after_fs
        if not self.pending:
            self.timer.at(due)
        self.pending.append((due, request, instance))

    def fire(self, timer: Timer) -> None:
        """Abort what is due and not done."""
        timer.callbacks = timer.armed
        now: int = self.env.now  # type: ignore[assignment]
        pending = self.pending
        while pending and (pending[0][0] <= now or pending[0][1].state == DONE):
            _, request, instance = pending.popleft()
            if request.state != DONE:
                instance.abort(request, now)
        if pending:
            timer.at(pending[0][0])


class Simulation:
    """State of one run. Instances report to it through `leave` and `reject`."""

    def __init__(
        self, trace: Trace, policy: Policy, specs: Sequence[InstanceSpec], settings: Settings
    ) -> None:
        self.trace = trace
        self.policy = policy
        self.settings = settings
        self.env = new_environment()
        self.requests = RequestLog()
        self.steps = StepLog()
        self.input_len: list[int] = trace.input_len.tolist()
        self.output_len: list[int] = trace.output_len.tolist()
        self.priority = None if trace.priority is None else trace.priority.tolist()
        self.task = None if trace.task is None else trace.task.tolist()
        self.end_fs = 0
        """When the last request left."""
        self.oom_events: N = 0
        self.preemptions_recompute: N = 0
        self.preemptions_swap: N = 0
        self.instances = [Instance(i, s, policy, self, self.env) for i, s in enumerate(specs)]
        self.only = self.instances[0] if len(specs) == 1 else None
        self.cluster = Cluster(self.instances, make_router(settings.router, settings.router_seed))
        self.arrivals: Arrivals
        self.closed: ClosedArrivals | None = None
        if settings.concurrency is not None:
            self.closed = ClosedArrivals(
                self, self.env, len(trace), settings.concurrency, settings.think_s
            )
            self.arrivals = self.closed
        else:
            if trace.arrival_s is None:
                raise ValueError("the trace has no arrival times and no closed loop is configured")
            self.arrivals = OpenArrivals(self, self.env, trace.arrival_s.tolist())
        self.aborts: Aborts | None = None
        if settings.abort_after_s is not None:
            self.aborts = Aborts(self.env, settings.abort_after_s)

    def run(self) -> RunRecord:
        """Run until all requests have left, or to the horizon."""
        self.arrivals.start()
        horizon = self.settings.horizon_s
        if horizon is None:
            self.env.run()
        else:
            self.env.run(until=to_fs(horizon))
        end = self.end_fs
        if horizon is None:
            self._check_all_left()
        else:
            end = to_fs(horizon)
            self._check_none_stuck()
            for instance in self.instances:
                instance.settle_at(end)
            self._record_unfinished()
        return self._record(end)

    # -- life of a request ------------------------------------------------------------------

    def arrive(self, row: N, now: int) -> None:
        """Let row `row` of the trace arrive: check, route, queue."""
        request = Request(row, now, now / FS_PER_S, self.input_len[row])
        if self.priority is not None:
            request.priority = self.priority[row]
        if self.task is not None:
            request.task = self.trace.tasks[self.task[row]]
        instance = self.only
        if instance is None:
            instance = self.instances[self.policy.route(request, self.cluster)]
        if request.input_len + self.output_len[row] > instance.max_tokens:
            self.reject(request, None)
            return
        instance.enqueue(request)
        if self.aborts is not None:
            self.aborts.watch(request, instance)
        instance.wake(now)

    def leave(self, request: Request, instance: Seats, now: int, emitted: N) -> None:
        """Record a request that has emitted its last token (or whose client has gone)."""
        instance.outstanding -= 1
        instance.outstanding_tokens -= request.input_len
        request.state = DONE
        self.end_fs = self.env._now  # type: ignore[assignment]
        if request.aborted:
            self.requests.add(request, -1, emitted, ABORTED)
        else:
            self.requests.add(request, now, emitted, FINISHED)
        if self.closed is not None:
            self.closed.on_leave(self.env.now)  # type: ignore[arg-type]

    def reject(self, request: Request, instance: Seats | None) -> None:
        """Record a request that can never be served."""
        if instance is not None:
            instance.outstanding -= 1
            instance.outstanding_tokens -= request.input_len
        request.state = DONE
        self.end_fs = self.env._now  # type: ignore[assignment]
        self.requests.add(request, -1, 0, REJECTED)
        if self.closed is not None:
            self.closed.on_leave(self.env.now)  # type: ignore[arg-type]

    # -- the end ----------------------------------------------------------------------------

    def _check_all_left(self) -> None:
        for instance in self.instances:
            if instance.outstanding:
                raise self._deadlock(instance)

    def _check_none_stuck(self) -> None:
        for instance in self.instances:
            empty = instance.free_blocks == instance.total_blocks
            if instance.asleep() and instance.num_waiting and empty:
                raise self._deadlock(instance)

    def _deadlock(self, instance: Instance) -> Deadlock:
        return Deadlock(
            f"instance {instance.id} at {to_s(self.env.now)} s: "  # type: ignore[arg-type]
            f"{instance.num_waiting} requests wait, {len(instance.running)} hold seats and "
            f"{len(instance.swapped)} are swapped out, but policy {self.policy.name!r} "
            "asks for nothing and no event is left for it"
        )

    def _record_unfinished(self) -> None:
        for instance in self.instances:
            for request in instance.waiting:
                self.requests.add(request, -1, request.emitted, UNFINISHED)
            for request in [*instance.running.values(), *instance.swapped.values()]:
                emitted = instance.generated(request)
                if instance.static is not None:
                    emitted = instance.static.emitted(request)
                self.requests.add(request, -1, emitted, UNFINISHED)

    def _record(self, end: int) -> RunRecord:
        steps = self.steps.table()
        swaps = self.steps.swaps
        counts = {
            "preemptions_recompute": self.preemptions_recompute,
            "preemptions_swap": self.preemptions_swap,
            "oom_events": self.oom_events,
            "extrapolated_steps": int(steps["n_steps"][steps["extrapolated"]].sum()),
        }
        for direction in ("out", "in"):
            counts[f"swap_{direction}_blocks"] = sum(s[4] for s in swaps if s[5] == direction)
        described = [
            {
                "id": i.id,
                "role": i.role,
                "gpu": i.spec.gpu,
                "tp": i.spec.tp,
                "total_blocks": i.total_blocks,
                "block_size": i.block_size,
            }
            for i in self.instances
        ]
        return RunRecord(
            requests=self.requests.columns(self.trace),
            steps=steps,
            gaps_s=np.sort(np.array(self.steps.gaps_fs, dtype=np.float64)) / FS_PER_S,
            swaps=swaps,
            end_s=to_s(end),
            counters=counts,
            instances=described,
            events={
                "events": next(self.env._eid),
                "plans": sum(i.plans for i in self.instances),
                "spans": len(steps),
            },
        )
