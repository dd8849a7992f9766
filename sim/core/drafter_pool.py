"""Accepted tokens where several specialised drafters work together (CoSine, 2503.10325).

Every request belongs to a domain, every drafter knows one. A drafter's token is accepted with the
rate of the request's domain, times `off_domain` where it knows another; the best of the chosen ones
counts, and each further one adds `fusion_gain`, for up to `MOST_FUSED` of them. The round's
acceptance is geometric in that rate. Scores see a noisy confidence and how many of the emitted
tokens a drafter would have said. All of it is assumed (`spec/neighbours.md` 3): the paper gives
lengths by domain and drafter only.
"""

from __future__ import annotations

from random import Random
from typing import Final

import numpy as np

from sim.core.acceptance import Acceptance, Counts
from sim.types import BadInput, DrafterRules, N

MOST_FUSED: Final = 3
"""Drafters beside the best that still add to the rate."""

CONFIDENCE_SD: Final = 0.1
"""How far a drafter's mean confidence lies from its rate, standard deviation."""

FIRST_SCORE: Final = 0.5
HIGHEST_RATE: Final = 0.99
REQUESTS_KEPT: Final = 4096
"""Requests whose draws are kept; those of others are drawn again."""


class DrafterPool:
    """What the drafters are like.

    Args:
        drafters: how many.
        domains: kinds of texts, equally frequent; drafter d knows domain d modulo `domains`.
        worst_rate: acceptance in the domain where it is lowest.
        best_rate: where it is highest; the others lie evenly between.
        off_domain: factor for a drafter of another domain.
        fusion_gain: what each drafter beside the best adds to the rate.
    """

    def __init__(
        self,
        drafters: N,
        domains: N = 5,
        worst_rate: float = 0.42,
        best_rate: float = 0.78,
        off_domain: float = 0.75,
        fusion_gain: float = 0.04,
    ) -> None:
        rates = (worst_rate, best_rate, off_domain, fusion_gain)
        if drafters < 1 or domains < 1 or not all(0 <= rate <= 1 for rate in rates):
            raise BadInput(
                f"drafter pool of {drafters} drafters, {domains} domains, rates {rates}: expected "
                "at least one of each and numbers from 0 to 1"
            )
        step = (best_rate - worst_rate) / max(domains - 1, 1)
        self.drafters = drafters
        self.domains = domains
        self.rates = [best_rate - step * domain for domain in range(domains)]
        self.off_domain = off_domain
        self.fusion_gain = fusion_gain

    def rate(self, drafter: N, domain: N) -> float:
        """Return how often a token of a drafter is accepted."""
        own = drafter % self.domains == domain
        return self.rates[domain] if own else self.rates[domain] * self.off_domain


class _Texts:
    """The rounds of a request as far as they have been drawn."""

    __slots__ = ("domain", "last", "lengths", "random", "scores", "tried", "untried", "width")

    def __init__(self, random: Random, pool: DrafterPool, width: N) -> None:
        self.random = random
        self.width = width
        self.domain = random.randrange(pool.domains)
        self.scores = [FIRST_SCORE] * pool.drafters
        self.tried: list[N] = []
        self.untried = list(range(pool.drafters))
        random.shuffle(self.untried)
        self.last: N = 0
        self.lengths = bytearray()


class Cooperative(Acceptance):
    """Rounds for which rules choose drafters by how they did before.

    How many propose for a request is settled when it first joins a batch (assumption: the paper
    adapts it each round). Scores move with the round as if all `k_max` tokens were drafted.

    Args:
        pool: the drafters.
        rules: choose them.
        k_max: most tokens a round drafts, 1 to 255.
        seed: of the draws.
    """

    def __init__(self, pool: DrafterPool, rules: DrafterRules, k_max: N, seed: int) -> None:
        if not 1 <= k_max <= 255:
            raise BadInput(f"acceptance k_max {k_max}: expected 1 to 255")
        self.pool = pool
        self.rules = rules
        self.k_max = k_max
        self.seed = seed
        self._widths: dict[N, N] = {}
        self._texts: dict[N, _Texts] = {}

    def joins(self, request_id: N, batch: N) -> None:
        """Settle how many drafters propose for a request that makes a batch that large."""
        if request_id not in self._widths:
            self._widths[request_id] = self.rules.width(batch, self.pool.drafters)

    def accepted(self, request_id: N, rounds: N) -> Counts:
        """Return the numbers of the first rounds of a request."""
        texts = self._texts.get(request_id)
        if texts is None:
            self.joins(request_id, 1)
            # a seed of its own for each request, whatever else is drawn
            random = Random(self.seed * 1_000_003 + request_id)
            texts = _Texts(random, self.pool, self._widths[request_id])
            if len(self._texts) == REQUESTS_KEPT:
                del self._texts[next(iter(self._texts))]
            self._texts[request_id] = texts
        while len(texts.lengths) < rounds:
            self._draw(texts)
        return np.frombuffer(bytes(texts.lengths[:rounds]), np.uint8)

    def _draw(self, texts: _Texts) -> None:
        """Draw one more round."""
        pool, random, rules = self.pool, texts.random, self.rules
        scores, untried = texts.scores, texts.untried
        width = min(texts.width, pool.drafters)
        chosen = rules.choose(scores, texts.tried, untried, texts.last, width)
        rates = [pool.rate(drafter, texts.domain) for drafter in chosen]
        rate = max(rates) + pool.fusion_gain * min(len(chosen) - 1, MOST_FUSED)
        rate = min(rate, HIGHEST_RATE)
        length: N = 0
        while length < self.k_max and random.random() < rate:
            length += 1
        texts.lengths.append(length)
        emitted = length + 1
        for drafter, own in zip(chosen, rates, strict=True):
            said: N = 0
            for _ in range(emitted):
                said += random.random() < own
            confidence = min(max(random.gauss(own, CONFIDENCE_SD), 0.0), 1.0)
            scores[drafter] = rules.score(scores[drafter], confidence, said / emitted)
            if drafter in untried:
                untried.remove(drafter)
                texts.tried.append(drafter)
        texts.last = emitted
