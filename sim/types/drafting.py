"""What a policy decides about a pool of small models that draft for a large one."""

from __future__ import annotations

import abc

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.typing import NDArray

from sim.types.units import N

Shares = NDArray[np.float64]
"""Numbers from 0 to 1."""


@mypyc_attr(allow_interpreted_subclasses=True)
class DrafterRules(abc.ABC):
    """Which drafters propose for a request, and how many tokens: pure, like a plan.

    A request meets the drafters in an order of its own. It keeps a score of each, and the best
    propose in its next round; of equals the one met first, and those not yet tried, in their
    order, after all others. After a poor round the next untried one takes the place of the last of
    them. The engine draws what is accepted and keeps the scores; the rules see neither a request's
    text nor how good a drafter really is.
    """

    routes: bool = False
    """Whether scores choose; else the drafters that a request meets first stay."""

    explore_below: float = 0.0
    """A round that emitted fewer tokens, the target's own included, is a poor one."""

    smoothing: float = 1.0
    """How far a score moves towards the merit of a round, as a share of the way."""

    adapts: bool = False
    """Whether `next_drafts` changes anything: K begins low then, else at its most."""

    @abc.abstractmethod
    def width(self, batch: N, drafters: N) -> N:
        """Return how many of the drafters propose for each request of a batch."""

    def merit(self, confidence: Shares, agreement: Shares) -> Shares:
        """Return what a round says of a drafter, 0 to 1: of many rounds at once.

        Args:
            confidence: mean probability it gave its own tokens.
            agreement: how far they agree with what was emitted. Both broadcast to one shape.
        """
        return agreement

    def next_drafts(self, drafts: N, idle: float, queued: float) -> N:
        """Return how many tokens to draft next.

        Args:
            drafts: as many were drafted until now.
            idle: share of a round in which the verifier waits for drafts.
            queued: rounds that the drafters could finish beside the one that is verified.
        """
        return drafts

    def most_drafts(self, batch: N) -> N:
        """Return how many tokens each request of a batch drafts at most, not rising; 0: any."""
        return 0


@mypyc_attr(allow_interpreted_subclasses=True)
class OneDrafter(DrafterRules):
    """The drafter a request meets first proposes for it alone, to the end."""

    def width(self, batch: N, drafters: N) -> N:
        """Return one."""
        return 1
