"""What has reached an engine and its scheduler has not seen; scheduling one step ahead.

With `async_scheduling` step k+1 is formed when step k starts. It is enough to form it when k ends,
from what was known then. Known are the outputs of k-1 and every token that k is to cache. Not known
are the arrivals and aborts since k began: they are held back for one step. Nor are the outputs of
k: who gets the last token in it is in no further step, but keeps seat and blocks until k+1 is
formed; that k brings it follows from `max_tokens`, as in a benchmark that ignores stop tokens.

If nothing is left to run, the engine has waited for the outputs of k: it sees all and plans again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sim.core.records import RequestLog
from sim.types import BadInput, Policy, Request

if TYPE_CHECKING:
    from sim.core.instance import Instance
    from sim.core.spec import InstanceSpec


class Inbox:
    """Arrivals and aborts of an instance while a step is under way.

    Args:
        instance: whose.
        ahead: whether its steps are formed one ahead; else arrivals are only noted.
        log: learns when each request was seen.
    """

    def __init__(self, instance: Instance, ahead: bool, log: RequestLog) -> None:
        self.instance = instance
        self.ahead = ahead
        self.log = log
        self.fuse = instance.fuse
        self.formed_fs = -1
        """Start of the step that has just ended, when the next was formed; -1: none has."""
        self.arrived: list[tuple[int, Request, bool]] = []
        """(when, who, whether it goes to the front of the queue), not seen yet."""
        self.gone: list[tuple[int, Request]] = []
        """(when, whose client has gone), not seen yet."""

    def arrive(self, request: Request, now: int, front: bool = False) -> bool:
        """Take note of an arrival; True if it must not join the queue yet."""
        if not self.instance.busy():
            return False
        self.arrived.append((now, request, front))
        return self.ahead

    def abort(self, request: Request, now: int) -> bool:
        """Take note of a client that has gone; True if nothing is to be done about it yet."""
        if not self.ahead or not self.instance.busy():
            return False
        self.gone.append((now, request))
        return True

    def hand_on(self, request: Request, target: Instance, now: int) -> None:
        """Let the instance that a request moves to take note that its client has gone."""
        self.gone = [entry for entry in self.gone if entry[1] is not request]
        target.abort(request, now)

    def taken(self) -> list[Request]:
        """Forget everything, for the instance has failed; return who had not joined the queue."""
        hidden = self.hidden()
        self.arrived.clear()
        self.gone.clear()
        return hidden

    def hidden(self) -> list[Request]:
        """Return who has arrived and is not in the queue."""
        return [request for _, request, _ in self.arrived] if self.ahead else []

    def decide(self, now: int) -> None:
        """Let the instance plan."""
        instance = self.instance
        formed_fs = now if self.formed_fs < 0 else self.formed_fs
        self.formed_fs = -1
        if not self.ahead:
            self._see(now)
            instance.decide(now)
            return
        self._see(formed_fs)
        leaving = instance.leaving
        if not (leaving or self.arrived or self.gone):
            instance.fuse = self.fuse
            instance.decide(now)
            return
        # The next step's plan will know more: no span.
        instance.fuse = False
        idle = not (instance.num_waiting or instance.swapped or instance.ready)
        if idle and len(instance.running) == len(leaving):
            running = False
        else:
            running = instance.decide(now, ahead=True) and instance.busy()
        for request in leaving:
            instance.release(request)
        leaving.clear()
        if not running:
            instance.end_fs = -1
            self._see(now)
            instance.fuse = self.fuse
            instance.decide(now)

    def _see(self, until_fs: int) -> None:
        """Let the scheduler see what had happened by `until_fs`."""
        instance = self.instance
        arrived = self.arrived
        if arrived and arrived[0][0] <= until_fs:
            count = 0
            for when, request, front in arrived:
                if when > until_fs:
                    break
                count += 1
                self.log.seen(request, until_fs)
                if self.ahead:
                    instance.join_queue(request, front)
            del arrived[:count]
        gone = self.gone
        while gone and gone[0][0] <= until_fs:
            instance.apply_abort(gone.pop(0)[1], until_fs)


def check_ahead(policy: Policy, specs: Sequence[InstanceSpec]) -> None:
    """Check that the steps of a policy on these instances can be formed one ahead.

    Raises:
        BadInput: why they cannot.
    """
    name = f"policy {policy.name!r}"
    declared: Any = policy  # read by name: see `Simulation._read`
    if declared.synchronous:
        why = f"{name} {declared.synchronous}"
    elif policy.places_decode or any(spec.role != "mixed" for spec in specs):
        why = f"{name} hands requests over from instance to instance"
    elif declared.queue_scope == "cluster":
        why = f"{name} holds requests in one queue of all instances"
    elif any(spec.pipeline >= 0 for spec in specs):
        why = "the lanes of a pipeline take turns"
    else:
        return
    raise BadInput(f"engine.async_scheduling true: {why}, so no step is formed ahead; valid: false")
