"""One simulated run: wires arrivals, router and instances, and collects the records."""

from __future__ import annotations

import gc
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import simpy

from sim.core.arrivals import Arrivals, ClosedArrivals, OpenArrivals
from sim.core.attention import price_by_batch
from sim.core.failures import Failures
from sim.core.inbox import check_ahead
from sim.core.instance import Instance
from sim.core.links import Links
from sim.core.loop import ABORT, new_environment, new_timer
from sim.core.monitor import Monitor
from sim.core.pipeline import Pipeline
from sim.core.prefixes import shared_prefixes
from sim.core.records import (
    ABORTED,
    FINISHED,
    LARGEST_COUNT,
    REJECTED,
    UNFINISHED,
    RequestLog,
    RunRecord,
    StepLog,
)
from sim.core.routers import make_router
from sim.core.seats import Seats
from sim.core.shared_queue import SharedQueue
from sim.core.spec import InstanceSpec, Settings
from sim.core.speculation import SpeculativeInstance, speculation_counts
from sim.types import (
    FS_PER_S,
    BadInput,
    Cluster,
    Deadlock,
    N,
    Policy,
    Request,
    Trace,
    to_fs,
    to_s,
)
from sim.types.request import DONE

QUEUE_SCOPES = ("instance", "cluster")
COLLECTING = (50_000, 20, 20)
"""Thresholds of the garbage collector during a run; Python's own are (700, 10, 10)."""
ROLE_ORDER = ("prefill", "mixed", "decode")
"""Order of instances: what a prefill's end causes at a decode instance is in time for its plan."""


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
        BadInput: a count of the trace, or a step, is over the range of the records.
        TypeError: the policy is no `Policy`.
    """
    if not isinstance(policy, Policy):  # compiled, the call itself says so
        raise TypeError(f"sim.types.policy.Policy object expected; got {type(policy).__name__}")
    _check_counts(trace)
    # The collector would walk the columns of a million rows again and again (3 % of a run). What a
    # run leaves behind are cycles: they go at once, while all that was there before is frozen.
    # Most of what a run makes goes by itself, so the young are looked at less often, too.
    often = gc.get_threshold()
    gc.set_threshold(*COLLECTING)
    gc.freeze()
    try:
        return Simulation(trace, policy, specs, settings).run()
    except struct.error as error:
        raise BadInput(
            "a step is too long or too large for the records (over 9,223 s, or a sum of over "
            f"{LARGEST_COUNT} tokens): the profile, engine.min_step_ms, num_gpu_blocks or lengths"
        ) from error
    finally:
        gc.set_threshold(*often)
        gc.collect()
        gc.unfreeze()


def _check_counts(trace: Trace) -> None:
    """The records hold counts in 32 bits: say so before the run, not in the middle of it."""
    for name, lens in (("input_len", trace.input_len), ("output_len", trace.output_len)):
        if len(lens) and int(lens.max()) > LARGEST_COUNT:
            row = int(lens.argmax())
            raise BadInput(
                f"trace row {row}: {name} {int(lens[row])} is over the largest count, "
                f"{LARGEST_COUNT}"
            )


def _check_roles(roles: list[str]) -> None:
    if roles != sorted(roles, key=ROLE_ORDER.index):
        raise ValueError(f"prefill pools come first and decode pools last, not {roles}")
    if ("decode" in roles) != ("prefill" in roles):
        raise ValueError(f"prefill and decode pools need each other, got {roles}")


class Aborts:
    """Clients that give up a constant time after arrival: a queue, in order of arrival."""

    def __init__(self, sim: Simulation, env: simpy.Environment, after_s: float) -> None:
        self.sim = sim
        self.env = env
        self.after_fs = to_fs(after_s)
        self.timer = new_timer(env, self.fire, ABORT)
        self.pending: deque[tuple[int, Request]] = deque()

    def watch(self, request: Request) -> None:
        """Start the clock of a request that has just arrived."""
        due = request.arrival_fs + self.after_fs
        if not self.pending:
            self.timer.at(due)
        self.pending.append((due, request))

    def fire(self, now: int) -> None:
        """Abort what is due and not done."""
        pending = self.pending
        while pending and (pending[0][0] <= now or pending[0][1].state == DONE):
            _, request = pending.popleft()
            if request.state == DONE:
                continue
            shared = self.sim.shared
            if request.home is not None:
                self.sim.instances[request.home.id].abort(request, now)
            elif shared is not None and request.id in shared.inside:
                shared.remove(request, now)
                self.sim.give_up(request)
            elif self.sim.failures is not None:
                self.sim.failures.abort(request)
        if pending:
            self.timer.at(pending[0][0])


class Simulation:
    """State of one run. Instances report to it through `leave` and `reject`."""

    def __init__(
        self, trace: Trace, policy: Policy, specs: Sequence[InstanceSpec], settings: Settings
    ) -> None:
        self.trace = trace
        self.policy = policy
        self.settings = settings
        self._read(policy)
        if settings.async_scheduling:
            check_ahead(policy, specs)
        self.misses = settings.misses
        self.env = new_environment(settings.loop)
        self.requests = RequestLog()
        self.steps = StepLog()
        self.input_len: list[int] = trace.input_len.tolist()
        self.output_len: list[int] = trace.output_len.tolist()
        self.priority = None if trace.priority is None else trace.priority.tolist()
        self.task = None if trace.task is None else trace.task.tolist()
        reads = settings.enable_prefix_caching or settings.router == "prefix"
        self.prefixes = shared_prefixes(trace) if reads else None
        """What each row shares of its prompt, if anybody wants to know."""
        self.end_fs = 0
        """When the last request left."""
        self.oom_events: N = 0
        self.preemptions_recompute: N = 0
        self.preemptions_swap: N = 0
        self.pipelines: dict[N, Pipeline] = {}
        one = len(specs) == 1 and settings.outages is None
        self.shared = None if one else self._new_shared_queue()
        self.rounds_done: dict[N, N] = {}
        """Rounds of speculation that requests outside a decoding batch have had."""
        self.instances = self._new_instances(specs)
        self.queues = [i.waiting for i in self.instances if i.shared is None]
        """Each queue once."""
        if self.shared is not None:
            self.shared.members = [i for i in self.instances if i.shared is not None]
            self.queues.append(self.shared.queue)
        self.entry = self.instances[0] if one else self._lone(policy, False)
        """The instance that takes every arrival; None if somebody chooses."""
        self.decoder = self._lone(policy, True)
        """The instance where every prefilled request decodes; None if somebody chooses."""
        self.tells = policy.places_decode
        self._set_limits()
        self.cluster = Cluster(
            self.instances,
            make_router(settings.router, settings.router_seed, settings.prefix_routing),
            make_router(settings.decode_router, settings.router_seed, settings.prefix_routing),
        )
        self.links = self._new_links()
        self.source = None if trace.source is None else trace.source.tolist()
        self.arrivals = self._new_arrivals()
        self.closed = self.arrivals if isinstance(self.arrivals, ClosedArrivals) else None
        self._set_watchers()

    def _read(self, policy: Policy) -> None:
        """Read what a policy declares, once.

        By name: a compiled core would find the fields of the base class where a user's class has
        set them in its body.
        """
        declared: Any = policy
        self.queue_scope: str = declared.queue_scope
        if self.queue_scope not in QUEUE_SCOPES:
            raise ValueError(f"queue_scope {self.queue_scope!r}; valid: {QUEUE_SCOPES}")
        self.charges_overhead: bool = declared.charges_overhead
        self.monitor_period_s: float = declared.monitor_period_s
        self.monitor_delay_s: float = declared.monitor_delay_s
        self.step_tokens: N = declared.step_tokens

    def _lone(self, policy: Policy, decodes: bool) -> Instance | None:
        """Return the only instance for arrivals or after prefills; None if it is chosen or fails.

        No router has a choice then: it need not be asked.
        """
        chosen: Any = policy
        if self.settings.outages is not None or self.shared is not None or policy.places_decode:
            return None
        if type(chosen).route is not Policy.route or "route" in getattr(chosen, "__dict__", ()):
            return None
        found = [i for i in self.instances if (i.role == "decode") == decodes]
        return found[0] if len(found) == 1 else None

    def _set_limits(self) -> None:
        """Find the longest prompt + output: where decoding is, on any instance, on all."""
        anywhere = self.policy.places_decode
        self.decode_tokens: N = min(
            [i.max_tokens for i in self.instances if anywhere or i.role == "decode"],
            default=1 << 40,
        )
        self.longest: N = max(
            self.decode_tokens if i.hands_over else i.max_tokens
            for i in self.instances
            if i.role != "decode"
        )
        self.shortest: N = min([self.decode_tokens, *[i.max_tokens for i in self.instances]])

    def _set_watchers(self) -> None:
        """Set up what only some runs have: monitor, impatient clients, failures."""
        settings = self.settings
        self.monitor: Monitor | None = None
        if self.monitor_period_s > 0:
            self.monitor = Monitor(self, self.env, self.policy)
        self.annotate = bool(
            settings.ttft_slo_s or settings.e2e_slo_s or settings.predictor or self.monitor
        )
        self.aborts: Aborts | None = None
        if settings.abort_after_s is not None:
            self.aborts = Aborts(self, self.env, settings.abort_after_s)
        self.failures: Failures | None = None
        if settings.outages is not None:
            self.failures = Failures(self, self.env, settings.outages)

    def _new_instances(self, specs: Sequence[InstanceSpec]) -> list[Instance]:
        make = Instance if self.settings.speculation is None else SpeculativeInstance
        instances = [make(i, s, self.policy, self, self.env) for i, s in enumerate(specs)]
        for instance in instances:
            price_by_batch(instance)
        _check_roles([i.role for i in instances])
        return instances

    def _new_shared_queue(self) -> SharedQueue | None:
        return SharedQueue(self, self.policy) if self.queue_scope == "cluster" else None

    def _new_links(self) -> Links:
        return Links(self.env, *self.settings.links)

    def _new_arrivals(self) -> Arrivals:
        trace, settings = self.trace, self.settings
        if settings.concurrency is not None:
            return ClosedArrivals(
                self, self.env, len(trace), settings.concurrency, settings.think_s
            )
        if trace.arrival_s is None:
            raise ValueError("the trace has no arrival times and no closed loop is configured")
        return OpenArrivals(self, self.env, trace.arrival_s.tolist())

    def run(self) -> RunRecord:
        """Run until all requests have left, or to the horizon."""
        self.arrivals.start()
        if self.monitor is not None:
            self.monitor.start()
        if self.failures is not None:
            self.failures.start()
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

    def pipeline_of(self, spec: InstanceSpec) -> Pipeline | None:
        """Return the stages that an instance of `spec` shares with other lanes."""
        if spec.pipeline < 0:
            return None
        if spec.pipeline not in self.pipelines:
            self.pipelines[spec.pipeline] = Pipeline(spec.stages)
        return self.pipelines[spec.pipeline]

    # -- life of a request ------------------------------------------------------------------

    def arrive(self, row: N, now: int) -> None:
        """Let row `row` of the trace arrive: check, route, queue."""
        request = Request(row, now, now / FS_PER_S, self.input_len[row])
        if self.priority is not None:
            request.priority = self.priority[row]
        if self.task is not None:
            request.task = self.trace.tasks[self.task[row]]
        if self.prefixes is not None:
            request.prefix = self.prefixes[row]
        total = request.input_len + self.output_len[row]
        if total > self.longest:  # no policy ever hears of it
            self.reject(request, None)
            return
        if self.annotate:
            self._annotate(request, row)
        instance = self.entry
        if instance is None:
            if self.shared is not None:
                self.shared.arrive(request, now)
                return
            if self.failures is None:
                instance = self.instances[self.policy.route(request, self.cluster)]
            else:
                instance = self.failures.entry(request)
                if instance is None:
                    if self.aborts is not None:
                        self.aborts.watch(request)
                    return
        if total > self.shortest and not self.takes(request, instance):
            self.reject(request, None)
            return
        instance.enqueue(request, now)
        if self.aborts is not None:
            self.aborts.watch(request)
        instance.wake(now)

    def queue(self, request: Request, instance: Instance, now: int) -> None:
        """Let an instance have a request that was held when it arrived."""
        if not self.takes(request, instance):
            self.reject(request, None)
            return
        instance.enqueue(request, now)
        instance.wake(now)

    def takes(self, request: Request, instance: Instance) -> bool:
        """Whether a request fits the memory and the model of an instance, and of where it decodes.

        What a failure has put back prefills what it has emitted, too.
        """
        total = request.input_len + self.output_len[request.id]
        if instance.hands_over:
            return request.target_tokens < instance.max_tokens and total <= self.decode_tokens
        return total <= instance.max_tokens

    def expects_work(self) -> bool:
        """Whether requests are to come or have not left."""
        arrivals = self.arrivals
        if arrivals.next_row < arrivals.count or any(
            i.outstanding or i.num_waiting for i in self.instances
        ):
            return True
        return self.failures is not None and bool(self.failures.held)

    def _annotate(self, request: Request, row: N) -> None:
        """Add what some policies know about a request: bounds and a predicted length."""
        settings = self.settings
        source = 0 if self.source is None else self.source[row]
        if settings.ttft_slo_s and settings.ttft_slo_s[source] >= 0:
            request.deadline_s = request.arrival_s + settings.ttft_slo_s[source]
        if settings.e2e_slo_s:
            request.e2e_slo_s = settings.e2e_slo_s[source]
        if settings.predictor is not None:
            request.predicted_output_len = settings.predictor.predict(self.output_len[row])
        if self.monitor is not None:
            self.monitor.arrived += 1
            self.monitor.arrived_tokens += request.input_len

    def leave(self, request: Request, instance: Seats, now: int, emitted: N) -> None:
        """Record a request that has emitted its last token (or whose client has gone)."""
        instance.outstanding -= 1
        instance.outstanding_tokens -= request.input_len
        request.state = DONE
        self.end_fs = self.env._now  # type: ignore[assignment]
        if self.tells:
            self.policy.on_leave(request)
        if request.aborted:
            self.requests.add(request, -1, emitted, ABORTED)
        else:
            self.requests.add(request, now, emitted, FINISHED)
        if self.misses is not None:
            finish = -1 if request.aborted else now
            self.misses.left(request, finish, emitted, self.queues, self.end_fs)
        if self.closed is not None:
            self.closed.on_leave(self.env.now)  # type: ignore[arg-type]

    def reject(self, request: Request, instance: Seats | None) -> None:
        """Record a request that can never be served."""
        if instance is not None:
            instance.outstanding -= 1
            instance.outstanding_tokens -= request.input_len
        self._leave_unserved(request, 0, REJECTED)

    def give_up(self, request: Request) -> None:
        """Record a request that no instance holds and whose client has gone."""
        self._leave_unserved(request, request.emitted, ABORTED)

    def _leave_unserved(self, request: Request, emitted: N, status: N) -> None:
        request.state = DONE
        self.end_fs = self.env._now  # type: ignore[assignment]
        if self.tells:
            self.policy.on_leave(request)
        self.requests.add(request, -1, emitted, status)
        if self.misses is not None:
            self.misses.left(request, -1, emitted, self.queues, self.end_fs)
        if self.closed is not None:
            self.closed.on_leave(self.env.now)  # type: ignore[arg-type]

    # -- the end ----------------------------------------------------------------------------

    def _check_all_left(self) -> None:
        for instance in self.instances:
            if instance.outstanding or instance.num_waiting:
                raise self._deadlock(instance)

    def _check_none_stuck(self) -> None:
        waiting = [i for i in self.instances if i.num_waiting]
        stuck = [i for i in waiting if i.asleep() and i.free_blocks == i.total_blocks]
        for instance in stuck:
            shared = instance.shared
            if shared is None or all(member in stuck for member in shared.members):
                raise self._deadlock(instance)

    def _deadlock(self, instance: Instance) -> Deadlock:
        where = "" if instance.shared is None else " in the shared queue"
        return Deadlock(
            f"instance {instance.id} at {to_s(self.env.now)} s: "  # type: ignore[arg-type]
            f"{instance.num_waiting} requests wait{where}, {len(instance.running)} hold seats and "
            f"{len(instance.swapped)} are swapped out, but policy {self.policy.name!r} "
            "asks for nothing and no event is left for it"
        )

    def _record_unfinished(self) -> None:
        if self.failures is not None:
            for request in self.failures.held.values():
                self.requests.add(request, -1, request.emitted, UNFINISHED)
        for request in [r for queue in self.queues for r in queue]:
            self.requests.add(request, -1, request.emitted, UNFINISHED)
        for instance in self.instances:
            for request in [] if instance.inbox is None else instance.inbox.hidden():
                self.requests.add(request, -1, request.emitted, UNFINISHED)
            moving = [instance.bridge, instance.in_transfer, instance.ready]
            for request in [r for held in moving for r in held.values()]:
                self.requests.add(request, -1, request.emitted, UNFINISHED)
            for request in [*instance.running.values(), *instance.swapped.values()]:
                emitted = instance.generated(request)
                if request.first_token_fs >= self.env.now:  # due in the step cut by the horizon
                    request.first_token_fs = -1
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
            "failures": 0 if self.failures is None else self.failures.count,
        }
        pools = [i.pool for i in self.instances if i.pool is not None]
        if pools:
            counts["prefix_recomputed_tokens"] = sum([p.recomputed_tokens for p in pools])
            counts["prefix_recovered_tokens"] = sum([p.recovered_tokens for p in pools])
        counts |= speculation_counts(self.instances)
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
        declared: Any = self.policy
        counts |= {f"policy_{name}": n for name, n in declared.operation_counts.items()}
        return RunRecord(
            requests=self.requests.columns(self.trace),
            steps=steps,
            gaps_s=np.sort(np.array(self.steps.gaps_fs, dtype=np.float64)) / FS_PER_S,
            swaps=swaps,
            end_s=to_s(end),
            counters=counts,
            instances=described,
            outages=[] if self.failures is None else self.failures.outages(end),
            events={
                "events": next(self.env._eid),
                "plans": sum(i.plans for i in self.instances),
                "spans": len(steps),
            },
        )
