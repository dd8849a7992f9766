"""Failures of instances: engines are killed and repaired, and their requests are served elsewhere.

What a failure does, at its instant (before anything else that happens then):

* The step under way is lost: it is in no log, its time is `Outage.lost_s`. Steps that ended before
  count as ever. Of a run-to-completion batch the steps that ended stay in the log, but the tokens
  of rows that have not left are lost, as after an out-of-memory event.
* KV blocks, host memory and pulled requests of the instance are gone; so is what it had prefilled
  and was not copied away. A request on the bridge of a failed decode instance, or on its way there,
  gives the blocks at its source back and starts over too: proxies send the whole request again.
* All these requests are put back (`retries`), none is lost. They keep the tokens their clients have
  and recompute them with the prompt, as after a preemption; the gap to the next token spans the
  outage. Prefill and transfer times of a request without a first token start over.
* Put back requests are routed again at once, the youngest first, each to the front of its queue. If
  the chosen instance is too small for what is to be recomputed, the first that is not takes it (a
  decode instance recomputes locally). While no instance that is up can take a request, arrivals
  included, it waits in `Failures.held` and is routed at a repair.
* A failed instance is in none of `Cluster.entry` and `Cluster.decode`, and sending a request to it
  is an error in the policy. Prompts prefilled while no decode instance is up are parked on the
  bridge of their own instance, which keeps their KV, and are routed at a repair.

A repaired instance starts empty. Lanes of one pipeline fail together.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

import simpy

from sim.core.loop import FAILURE, new_timer
from sim.core.outages import Outages
from sim.core.records import Outage
from sim.types import N, PlanError, Request, SimulationError, to_s
from sim.types.request import DECODING, WAITING

if TYPE_CHECKING:
    from sim.core.instance import Instance
    from sim.core.simulation import Simulation

MAX_FUTILE_FAILURES: Final = 1000
"""Failures in a row that put requests back while none leaves, before the run is given up."""


class Failures:
    """Kills and repairs the engines of a simulation, and routes their requests again."""

    def __init__(self, sim: Simulation, env: simpy.Environment, outages: Outages) -> None:
        self.sim = sim
        self.env = env
        self.engines = _engines(sim.instances)
        self.plans = [outages.of(engine) for engine in range(len(self.engines))]
        self.due: list[tuple[int, N, int]] = []
        """Heap of (when, engine, when it will be up again; -1: this is the repair)."""
        self.timer = new_timer(env, self.fire, FAILURE)
        self.held: dict[N, Request] = {}
        """Requests that no instance that is up can take."""
        self.log: list[tuple[N, int, int, int, N]] = []
        """(instance, failed at, repaired at, time lost in the step under way, requests put back),
        in femtoseconds."""
        self.count: N = 0
        """Engines that have failed, each time counted."""
        self.futile: N = 0
        self.left: N = 0
        """Requests that had left at the last failure."""

    def start(self) -> None:
        """Schedule the first failures."""
        for engine in range(len(self.engines)):
            self._plan_next(engine)
        if self.due:
            self.timer.at(self.due[0][0])

    def _plan_next(self, engine: N) -> None:
        planned = next(self.plans[engine], None)
        if planned is not None:
            heappush(self.due, (planned[0], engine, planned[1]))

    def fire(self, now: int) -> None:
        """Kill and repair what is due, in order of engines; then route what waits for it."""
        if not self.sim.expects_work():
            return
        while self.due and self.due[0][0] == now:
            _, engine, repaired_fs = heappop(self.due)
            if repaired_fs < 0:
                self._repair(engine, now)
            else:
                self._kill(engine, now, repaired_fs)
        self.sim.cluster.update()
        self._route_parked(now)
        self._route_held(now)
        if self.due:
            self.timer.at(self.due[0][0])

    # -- down and up ------------------------------------------------------------------------

    def _kill(self, engine: N, now: int, repaired_fs: int) -> None:
        lanes = self.engines[engine]
        lost = [instance.go_down(now) for instance in lanes]
        put_back = 0
        for instance, lost_fs in zip(lanes, lost, strict=True):
            before = len(self.held)
            for request in _requests_of(instance, now):
                self._put_back(request, now)
            requests = len(self.held) - before
            self.log.append((instance.id, now, repaired_fs, lost_fs, requests))
            put_back += requests
        for instance in lanes:
            instance.wipe()
            if instance.pipeline is not None:
                instance.pipeline.empty()
        self.count += 1
        self._check_progress(put_back)
        heappush(self.due, (repaired_fs, engine, -1))

    def _repair(self, engine: N, now: int) -> None:
        for instance in self.engines[engine]:
            instance.come_up()
            instance.wake(now)  # requests may wait in a shared queue
        self._plan_next(engine)

    def _put_back(self, request: Request, now: int) -> None:
        """Let a request start over, in nobody's hands; one whose client has gone leaves."""
        home = request.home
        assert home is not None
        instance = self.sim.instances[home.id]
        if request.first_token_fs >= now:  # due in the step that was lost
            request.first_token_fs = -1
        if request.first_token_fs < 0:
            request.prefill_start_fs = request.prefill_end_fs = -1
            request.transfer_start_fs = request.transfer_end_fs = -1
        elif request.transfer_end_fs < 0:
            request.transfer_start_fs = -1
        if request.aborted:
            self.sim.leave(request, instance, -1, request.emitted)
            return
        instance.outstanding -= 1
        instance.outstanding_tokens -= request.input_len
        if self.sim.tells:
            self.sim.policy.on_leave(request)
        request.failures += 1
        request.home = None
        request.state = WAITING
        request.seq = request.stamp = request.source = -1
        request.prefilled = request.held_blocks = request.known_blocks = 0
        request.target_tokens = request.input_len + request.emitted
        self.held[request.id] = request

    def _check_progress(self, put_back: N) -> None:
        left = self.sim.requests.count()
        if left != self.left:
            self.left, self.futile = left, 0
        elif put_back:
            self.futile += 1
            if self.futile > MAX_FUTILE_FAILURES:
                raise SimulationError(
                    f"{self.futile} failures in a row put requests back and none has left since: "
                    "the time between failures is too short for them"
                )

    def outages(self, end_fs: int) -> list[Outage]:
        """Return what happened until `end_fs`, by time and instance."""
        return [
            Outage(id, to_s(at), to_s(min(up, end_fs)), to_s(lost), requests)
            for id, at, up, lost, requests in self.log
        ]

    # -- where requests go ------------------------------------------------------------------

    def entry(self, request: Request) -> Instance | None:
        """Return where the policy sends a request; None: it is held, nothing is up."""
        sim = self.sim
        if sim.cluster.entry or (sim.policy.places_decode and sim.cluster.decode):
            instance = sim.instances[sim.policy.route(request, sim.cluster)]
            if instance.up:
                return instance
            raise PlanError(
                f"policy {sim.policy.name!r}: route() sends request {request.id} to instance "
                f"{instance.id}, which is down"
            )
        self.held[request.id] = request
        return None

    def abort(self, request: Request) -> None:
        """The client of a held request has gone."""
        del self.held[request.id]
        request.aborted = True
        self.sim.give_up(request)

    def _route_held(self, now: int) -> None:
        """Send on what is held: put back requests to the front, arrivals to the back of a queue."""
        shared = self.sim.shared
        held = sorted(self.held)
        again = [i for i in reversed(held) if self.held[i].failures]
        for id in [*again, *[i for i in held if not self.held[i].failures]]:
            request = self.held.pop(id)
            if shared is not None and shared.fits(request):
                shared.push_front(request, now)
                continue
            instance = self.entry(request) if shared is None else self._other(request)
            if instance is None:
                self.held[id] = request
                continue
            if not request.failures:
                self.sim.queue(request, instance, now)
                continue
            if not self.sim.takes(request, instance):
                instance = self._other(request)
            if instance is None:
                self.held[id] = request
                continue
            instance.take_back(request, now)
            instance.wake(now)

    def _other(self, request: Request) -> Instance | None:
        """Return the first instance with a queue of its own that is up and takes a request."""
        for instance in self.sim.instances:
            if instance.up and instance.shared is None and self.sim.takes(request, instance):
                return instance
        return None

    def _route_parked(self, now: int) -> None:
        """Send prefilled requests on that had no decode instance to go to."""
        if not self.sim.cluster.decode:
            return
        for source in self.sim.instances:
            parked = [r for r in source.bridge.values() if r.source == source.id]
            for request in parked:
                del source.bridge[request.id]
                source.send(request, source.decode_place(request), now)


def _engines(instances: list[Instance]) -> list[list[Instance]]:
    """Return what fails together: an instance, or the lanes of a pipeline."""
    engines: list[list[Instance]] = []
    for instance in instances:
        last = engines[-1][0] if engines else None
        if last is not None and last.pipeline is not None and last.pipeline is instance.pipeline:
            engines[-1].append(instance)
        else:
            engines.append([instance])
    return engines


def _requests_of(instance: Instance, now: int) -> list[Request]:
    """Take all requests from a failed instance, and those elsewhere whose KV it holds."""
    found = list(instance.waiting) if instance.shared is None else []
    for request in found:
        instance.dequeue(request)
    if instance.inbox is not None:
        found += instance.inbox.taken()
    for request in instance.running.values():
        if request.state == DECODING:
            instance.note_emitted(request)
    for place in (instance.running, instance.swapped, instance.ready):
        found += place.values()
        place.clear()
    for other in instance.sim.instances:
        for place in (other.bridge, other.in_transfer):
            for request in list(place.values()):
                if other is instance or request.source == instance.id:
                    other.lose(request, now)
                    found.append(request)
    return found
