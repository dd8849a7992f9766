"""CoSine's choice of drafters and of how many tokens they draft (2503.10325)."""

from __future__ import annotations

from typing import Final

import numpy as np

from sim.types import DrafterRules, N, Shares

IDLE: Final = 0.1
"""Share of a round for which the verifier may wait before more is drafted."""

LEAST: Final = 1e-12
"""Divided by instead of zero."""

QUEUED: Final = 1.0
"""Rounds that may wait for the verifier before less is drafted."""


class Cooperation(DrafterRules):
    """Scores from past rounds, explored where they disappoint.

    Args:
        width: drafters that propose for a request; 0: as many as are idle, 1 to `widest`.
        widest: see there.
        explore_below: a round that emitted fewer tokens lets an untried drafter have a go.
        smoothing: weight of the last round in a score.
        routing: choose by score; False: the first untried ones for good.
        ladder: adapt K from round to round.
        most_candidates: drafted tokens of all requests of a round divided by `width`; 0: no limit.
    """

    def __init__(
        self,
        width: N,
        widest: N,
        explore_below: float,
        smoothing: float,
        routing: bool,
        ladder: bool,
        most_candidates: N,
    ) -> None:
        self._width = width
        self._widest = widest
        self.explore_below = explore_below
        self.smoothing = smoothing
        self.routes = routing
        self.adapts = ladder
        self._most_candidates = most_candidates

    def width(self, batch: N, drafters: N) -> N:
        """Return the number asked for, or as many as find an idle drafter."""
        wanted = self._width or min(max(drafters // batch, 1), self._widest)
        return min(wanted, drafters)

    def merit(self, confidence: Shares, agreement: Shares) -> Shares:
        """Return the harmonic mean of both; 0 where both are 0."""
        both = np.maximum(confidence + agreement, LEAST)
        harmonic: Shares = 2.0 * confidence * agreement / both
        return harmonic

    def next_drafts(self, drafts: N, idle: float, queued: float) -> N:
        """Return one more while the verifier waits, one less while drafts do."""
        if not self.adapts:
            return drafts
        if idle > IDLE:
            return drafts + 1
        return drafts - 1 if queued > QUEUED else drafts

    def most_drafts(self, batch: N) -> N:
        """Return what the limit on all candidates leaves each request."""
        return max(self._most_candidates // batch, 1) if self._most_candidates else 0
