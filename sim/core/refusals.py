"""What is said to a policy that breaks the contract, where the reason has to be found first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sim.types import N, PlanError, Request
from sim.types.request import PREFILLING

if TYPE_CHECKING:
    from sim.core.instance import Instance

MAX_EMPTY_PLANS: Final = 1000
"""Plans in a row at one instant that run nothing, before the policy is declared stuck."""


def bad_chunk(instance: Instance, request: Request, tokens: N) -> PlanError:
    """Return the error for a chunk of `tokens` tokens that cannot be prefilled."""
    if not instance.has(request) or request.stamp == instance.plans:
        return instance.broken(f"request {request.id} is named twice or is not here")
    if request.state > PREFILLING:
        return instance.broken(f"request {request.id} has no prompt left to prefill")
    left = request.target_tokens - request.prefilled
    return instance.broken(f"a chunk of {tokens} tokens of request {request.id}, {left} are left")


def no_plan(instance: Instance, error: TypeError) -> Exception:
    """Return the error for an answer that a compiled core refuses before it is looked at.

    Any other type error is the policy's own.
    """
    _, refused, got = str(error).partition("sim.types.plans.Plan or None object expected; got ")
    return instance.broken(f"plan() returned {got}, which is no plan") if refused else error
