"""The timers of the core: on an agenda they call what they wake directly.

A bound method costs a compiled core as much as a small decision does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import simpy

from sim.core.loop import ARRIVAL, INSTANCE, TRANSFER, AgendaLoop, AgendaTimer, Timer

if TYPE_CHECKING:
    from sim.core.arrivals import Arrivals
    from sim.core.instance import Instance
    from sim.core.links import Link


class InstanceTimer(AgendaTimer):
    """Ends the steps of an instance."""

    __slots__ = ("instance",)

    def __init__(self, env: AgendaLoop, instance: Instance) -> None:
        super().__init__(env, instance.fire, INSTANCE + instance.id)
        self.instance = instance

    def call(self, now: int) -> None:
        """A step has ended."""
        self.instance.fire(now)


class LinkTimer(AgendaTimer):
    """Ends the transfers of a link."""

    __slots__ = ("link",)

    def __init__(self, env: AgendaLoop, link: Link) -> None:
        super().__init__(env, link.fire, TRANSFER)
        self.link = link

    def call(self, now: int) -> None:
        """Transfers have ended."""
        self.link.fire(now)


class ArrivalTimer(AgendaTimer):
    """Lets requests arrive."""

    __slots__ = ("arrivals",)

    def __init__(self, env: AgendaLoop, arrivals: Arrivals) -> None:
        super().__init__(env, arrivals.fire, ARRIVAL)
        self.arrivals = arrivals

    def call(self, now: int) -> None:
        """Requests are due."""
        self.arrivals.fire(now)


def instance_timer(env: simpy.Environment, instance: Instance) -> Timer:
    """Return the timer of an instance."""
    if isinstance(env, AgendaLoop):
        return InstanceTimer(env, instance)
    return Timer(env, instance.fire, INSTANCE + instance.id)


def link_timer(env: simpy.Environment, link: Link) -> Timer:
    """Return the timer of a link."""
    if isinstance(env, AgendaLoop):
        return LinkTimer(env, link)
    return Timer(env, link.fire, TRANSFER)


def arrival_timer(env: simpy.Environment, arrivals: Arrivals) -> Timer:
    """Return the timer of arrivals."""
    if isinstance(env, AgendaLoop):
        return ArrivalTimer(env, arrivals)
    return Timer(env, arrivals.fire, ARRIVAL)
