"""Answers of a policy that are no plan, or none that can be carried out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.types import N, PlanError, Request
from sim.types.request import PREFILLING

if TYPE_CHECKING:
    from sim.core.instance import Instance
    from sim.core.seats import Seats


def refused(instance: Seats, error: TypeError) -> Exception:
    """Return the error for an answer that a compiled core refuses before it is looked at.

    Any other type error is the policy's own.
    """
    _, refused, got = str(error).partition("sim.types.plans.Plan or None object expected; got ")
    return instance.broken(f"plan() returned {got}, which is no plan") if refused else error


def bad_chunk(instance: Instance, request: Request, tokens: N) -> PlanError:
    """Return the error for a chunk that a request of the instance cannot run."""
    if not instance.has(request) or request.stamp == instance.plans:
        return instance.broken(f"request {request.id} is named twice or is not here")
    if request.state > PREFILLING:
        return instance.broken(f"request {request.id} has no prompt left to prefill")
    left = request.target_tokens - request.prefilled
    return instance.broken(f"a chunk of {tokens} tokens of request {request.id}, {left} are left")
