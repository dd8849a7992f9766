"""One waiting queue for all instances that take arrivals: whichever plans first takes from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sim.types import N, Policy, Request, WaitQueue

if TYPE_CHECKING:
    from sim.core.instance import Instance
    from sim.core.simulation import Simulation

OUTSIDE: Final = -1
"""Whose doing a change is that comes before all plans of its instant: arrival, abort, failure."""


class SharedQueue:
    """The queue of a policy whose `queue_scope` is `cluster`.

    A request in it is nobody's: an instance has it from its admission on, until it puts it back.
    Every change, a removal too, is a reason for the others to plan again: a request that blocked
    the head may be gone. An instance of lower index than the one that plans has planned at this
    instant already: it sees the change a femtosecond later. One that is down sleeps on.
    """

    def __init__(self, sim: Simulation, policy: Policy) -> None:
        self.sim = sim
        self.queue: WaitQueue = policy.new_queue()
        self.members: list[Instance] = []
        self.inside: dict[N, Request] = {}
        """The waiting requests by id."""

    def fits(self, request: Request) -> bool:
        """Whether every instance that may be the first to plan can serve a request."""
        return all(self.sim.takes(request, member) for member in self.members)

    def arrive(self, request: Request, now: int) -> None:
        """Let an arriving request wait for any of the instances."""
        if not self.fits(request):
            self.sim.reject(request, None)
            return
        self.inside[request.id] = request
        self.queue.push(request)
        if self.sim.aborts is not None:
            self.sim.aborts.watch(request)
        self._changed(OUTSIDE, now)

    def push_front(self, request: Request, now: int, by: N = OUTSIDE) -> None:
        """Put a request back in front: instance `by` has preempted it, or one has failed."""
        request.home = None
        request.stamp = -1
        self.inside[request.id] = request
        self.queue.push_front(request)
        self._changed(by, now)

    def remove(self, request: Request, now: int, by: N = OUTSIDE) -> None:
        """Take out a request, for instance `by` or because its client has gone."""
        del self.inside[request.id]
        self.queue.remove(request)
        self._changed(by, now)

    def _changed(self, by: N, now: int) -> None:
        count = len(self.queue)
        for member in self.members:
            member.num_waiting = count
            if member.id != by:
                member.wake(now if member.id > by else now + 1)
