"""Answers of a policy that are no plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.core.seats import Seats


def refused(instance: Seats, error: TypeError) -> Exception:
    """Return the error for an answer that a compiled core refuses before it is looked at.

    Any other type error is the policy's own.
    """
    _, refused, got = str(error).partition("sim.types.plans.Plan or None object expected; got ")
    return instance.broken(f"plan() returned {got}, which is no plan") if refused else error
