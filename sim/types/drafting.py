"""What a policy decides about a pool of small models that draft for a large one."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from sim.types.units import N


@mypyc_attr(allow_interpreted_subclasses=True)
class DrafterRules(abc.ABC):
    """Which drafters propose for a request, and how many tokens: pure, like a plan.

    The engine draws what is accepted and keeps the scores; the rules see neither a request's text
    nor how good a drafter really is.
    """

    adapts: bool = False
    """Whether `next_drafts` changes anything: K begins low then, else at its most."""

    @abc.abstractmethod
    def width(self, batch: N, drafters: N) -> N:
        """Return how many of the drafters propose for each request of a batch."""

    @abc.abstractmethod
    def choose(
        self,
        scores: Sequence[float],
        tried: Sequence[N],
        untried: Sequence[N],
        last: N,
        width: N,
    ) -> list[N]:
        """Return the drafters of a request's next round, `width` of them.

        Args:
            scores: of every drafter for this request.
            tried: drafters that have proposed for it, in the order they did.
            untried: the others, in the order to try them.
            last: tokens its last round emitted, the target's own included; 0: it had none.
            width: how many.
        """

    @abc.abstractmethod
    def score(self, before: float, confidence: float, agreement: float) -> float:
        """Return a drafter's new score for a request.

        Args:
            before: the old one.
            confidence: mean probability it gave its own tokens.
            agreement: how far they agree with what was accepted, 0 to 1.
        """

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

    def choose(
        self,
        scores: Sequence[float],
        tried: Sequence[N],
        untried: Sequence[N],
        last: N,
        width: N,
    ) -> list[N]:
        """Return the first."""
        return [tried[0] if tried else untried[0]]

    def score(self, before: float, confidence: float, agreement: float) -> float:
        """Return the old one."""
        return before
