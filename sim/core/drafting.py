"""Who decides how many tokens to draft while a run goes on.

`goodput` (SmartSpec / TurboSpec, 2406.14066) weighs what a round is expected to emit against what
it takes:

    K = argmax over 0..k_max of B * E(a, K) / T_round(B, K, KV)    E(a, K) = (1 - a^(K+1))/(1 - a)

with one K for the whole batch. The acceptance rate a is the share of accepted tokens among those
put to the test: the accepted ones, and the first rejected one of a round. Rejections are not
counted by the engine; their number is expected to be B*(1 - a^K), with the a of the round before.
What is old is forgotten by 1/window a round, towards a prior.
"""

from __future__ import annotations

import abc
from typing import Final

from mypy_extensions import mypyc_attr

from sim.types import CostModel, DrafterRules, N

PRIOR_RATE: Final = 0.6
"""Acceptance before anything was seen (assumption; spec: neighbours.md section 5)."""

PRIOR_TOKENS: Final = 8.0
"""Tokens that the prior is worth (assumption)."""

WINDOW_ROUNDS: Final = 32
"""Rounds that are remembered (assumption: the middle of 20-50)."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Controller(abc.ABC):
    """Decides on K for one instance.

    Args:
        window: steps after which it is asked again.
    """

    def __init__(self, window: N) -> None:
        self.window = window

    @abc.abstractmethod
    def choose(self, batch: N, kv: N) -> N:
        """Return how many tokens each request of the next steps drafts; changes nothing.

        Args:
            batch: decoding requests.
            kv: tokens they cache.
        """

    @abc.abstractmethod
    def note(self, batch: N, drafts: N, accepted: N) -> None:
        """Learn from a step.

        Args:
            batch: requests that decoded.
            drafts: tokens each of them drafted.
            accepted: tokens accepted, of all.
        """


class ByGoodput(Controller):
    """The K of most expected tokens per second; the smallest of equals.

    Args:
        cost: prices the rounds.
        k_max: largest K tried.
        window: steps after which it chooses again, and that it remembers.
        prior_rate: acceptance believed in before anything was seen.
    """

    def __init__(
        self,
        cost: CostModel,
        k_max: N,
        window: N = WINDOW_ROUNDS,
        prior_rate: float = PRIOR_RATE,
    ) -> None:
        super().__init__(window)
        self._cost = cost
        self._k_max = k_max
        self._keep = 1.0 - 1.0 / window
        self._prior = PRIOR_TOKENS * prior_rate
        self._accepted = 0.0
        self._tried = 0.0
        self.rate = prior_rate

    def choose(self, batch: N, kv: N) -> N:
        """Return the best K."""
        best: N = 0
        most, emitted, chance = 0.0, 1.0, 1.0
        for drafts in range(self._k_max + 1):
            goodput = emitted / self._cost.verify(batch, drafts).at(kv)
            if goodput > most:
                best, most = drafts, goodput
            chance *= self.rate
            emitted += chance
        return best

    def note(self, batch: N, drafts: N, accepted: N) -> None:
        """Forget a little, and count what was put to the test."""
        rejected = batch * (1.0 - self.rate**drafts)
        self._accepted = self._accepted * self._keep + accepted
        self._tried = self._tried * self._keep + accepted + rejected
        self.rate = (self._accepted + self._prior) / (self._tried + PRIOR_TOKENS)


class ByRules(Controller):
    """The K that a policy's rules come to from round to round (`DrafterRules.next_drafts`).

    The verifier is idle for `1 - verify/round` of a round; beside a verification that takes longer,
    the drafters could finish `verify/draft - 1` rounds more. Both at the prices of the last K.

    Args:
        cost: prices the rounds.
        rules: the policy's.
        k_max: largest K.
        first: K at first.
    """

    def __init__(self, cost: CostModel, rules: DrafterRules, k_max: N, first: N) -> None:
        super().__init__(1)
        self._cost = cost
        self._rules = rules
        self._k_max = k_max
        self._drafts = min(first, k_max)

    def choose(self, batch: N, kv: N) -> N:
        """Return the next K."""
        drafts = max(self._drafts, 1)
        verify, draft = self._cost.phases(batch, drafts, kv)
        idle = 1.0 - verify / self._cost.verify(batch, drafts).at(kv)
        queued = max(verify / max(draft, 1) - 1.0, 0.0)
        wanted = self._rules.next_drafts(self._drafts, idle, queued)
        return max(min(wanted, self._k_max), 1)

    def note(self, batch: N, drafts: N, accepted: N) -> None:
        """Remember K."""
        self._drafts = drafts
