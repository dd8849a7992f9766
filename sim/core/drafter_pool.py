"""Accepted tokens where several specialised drafters work together (CoSine, 2503.10325).

Every text belongs to a domain, every drafter knows one. A drafter's token is accepted with the
rate of the text's domain, times `off_domain` where it knows another; the best of the chosen ones
counts, and each further one adds `fusion_gain`, for up to `MOST_FUSED` of them. The round's
acceptance is geometric in that rate. Scores see a noisy confidence and how many of the emitted
tokens a drafter would have said. All of it is assumed (`spec/neighbours.md` 3): the paper gives
lengths by domain and drafter only.

Scores make a round depend on those before it. So `TEXTS` texts are drawn side by side, and request
r follows text r modulo `TEXTS`.
"""

from __future__ import annotations

from math import ceil, comb
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sim.core.acceptance import SUMS_KEPT, Acceptance, Counts, Tokens, keep, summed
from sim.types import BadInput, DrafterRules, N

MOST_FUSED: Final = 3
"""Drafters beside the best that still add to the rate."""

CONFIDENCE_SD: Final = 0.1
"""How far a drafter's mean confidence lies from its rate, standard deviation."""

FIRST_SCORE: Final = 0.5
HIGHEST_RATE: Final = 0.99
LOWEST_RATE: Final = 1e-30
"""Stands for 0, which has no logarithm."""

TEXTS: Final = 1024
"""Texts that are drawn, all at once."""

ROUNDS_A_DRAW: Final = 64
"""Rounds drawn of each text whenever there are too few."""

ROUNDS_A_BLOCK: Final = 16
"""Rounds whose random numbers are drawn together: 64 KiB of them."""

ROUNDS_SUMMED: Final = 512
"""Running sums are kept of the first rounds; those of longer requests are made when asked for."""

TEXTS_SUMMED: Final = 128
"""Texts whose sums are made together."""

OUTCOMES: Final = 1024
"""Equally likely pairs of a confidence and an agreement, of each rate and length of a round."""

GOLDEN: Final = 0.6180339887498949
"""Multiples of it, modulo 1, fill the unit interval evenly."""

UNTRIED: Final = -(2**30)
TAKEN: Final = -(2**31)
"""Ranks below all scores: of a drafter that has not proposed yet, and of one chosen already."""

Numbers = NDArray[np.int64]
Ranks = NDArray[np.int32]
Rates = NDArray[np.float32]


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
        own = [best_rate - step * domain for domain in range(domains)]
        self.drafters = drafters
        self.domains = domains
        self.rates = np.array([[rate * off_domain, rate] for rate in own], np.float64)
        """How often a drafter's token is accepted: [domain, whether the drafter knows it]."""
        self.fusion_gain = fusion_gain


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
        self._texts: dict[N, Texts] = {}

    def joins(self, request_id: N, batch: N) -> None:
        """Settle how many drafters propose for a request that makes a batch that large."""
        if request_id not in self._widths:
            self._widths[request_id] = self.rules.width(batch, self.pool.drafters)

    def accepted(self, request_id: N, rounds: N) -> Counts:
        """Return the numbers of the first rounds of a request."""
        return self._texts_of(request_id).drawn(rounds)[request_id % TEXTS, :rounds]

    def emitted(self, request_id: N, drafts: N, rounds: N) -> tuple[Tokens, Tokens]:
        """Return the tokens that rounds of `drafts` drafts emit, and their running sums."""
        return self._texts_of(request_id).emitted(request_id % TEXTS, drafts, rounds)

    def _texts_of(self, request_id: N) -> Texts:
        """Return the texts as the request's number of drafters fares with them."""
        self.joins(request_id, 1)
        width = self._widths[request_id]
        found = self._texts.get(width)
        if found is None:
            found = Texts(self.pool, self.rules, self.k_max, width, self.seed)
            self._texts[width] = found
        return found


class Texts:
    """The rounds of all texts with one number of drafters, as far as somebody has asked for them.

    A drafter's place is its number in the order in which a text meets them. Its rank holds the
    score's bits, the last of them replaced by the place: of equals the one met first is the best.

    Args:
        pool: the drafters.
        rules: choose them.
        k_max: most tokens a round drafts.
        width: drafters of a round.
        seed: of the draws.
    """

    def __init__(
        self, pool: DrafterPool, rules: DrafterRules, k_max: N, width: N, seed: int
    ) -> None:
        drafters = pool.drafters
        self._rules = rules
        self._k_max = k_max
        self._width = min(width, drafters)
        start = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        own = np.random.SeedSequence(seed, spawn_key=(width,))
        self._bits = np.random.default_rng(own).bit_generator
        domain = start.integers(pool.domains, size=TEXTS)
        self.domain: Numbers = domain
        numbers = np.broadcast_to(np.arange(drafters)[:, None], (drafters, TEXTS))
        order = start.permuted(numbers, axis=0)
        self.knows: Numbers = (order % pool.domains == domain).astype(np.int64).ravel()
        """Whether the drafter at a place knows the text's domain: [place * TEXTS + text]."""
        gain = pool.fusion_gain * min(self._width - 1, MOST_FUSED)
        best = np.clip(pool.rates[domain].T + gain, LOWEST_RATE, HIGHEST_RATE)
        self._per_log: Rates = (1.0 / np.log(best)).astype(np.float32).ravel()
        """1/log of the best rate: [TEXTS * whether a chosen one knows the domain + text]."""
        self._merits: Rates = merits(pool, rules, k_max).ravel()
        self._lengths = k_max + 1
        self._first_merit: Numbers = domain * 2 * self._lengths
        self._rows: Numbers = np.arange(TEXTS)
        self._places: Numbers = np.empty((self._width, TEXTS), np.int64)
        self._places[:] = np.arange(self._width)[:, None]
        self._tried: Numbers = np.zeros(TEXTS, np.int64)
        self._explored: Numbers = np.zeros(TEXTS, np.int64)
        """The place that has a go in the next round; 0: none."""
        self._poor = ceil(rules.explore_below) - 1
        """Tokens a round accepts at least if no other drafter is to have a go."""
        self._drafters = drafters
        self._place_bits = (1 << (drafters - 1).bit_length()) - 1
        self.scores: Rates = np.full(drafters * TEXTS, FIRST_SCORE, np.float32)
        """[place * TEXTS + text]."""
        places = np.arange(drafters, dtype=np.int32)[:, None]
        self._ranks: Ranks = UNTRIED + self._place_bits - np.repeat(places, TEXTS, axis=1)
        self._numbers: Counts = np.zeros((TEXTS, 0), np.uint8)
        self._sums: dict[tuple[N, N], tuple[Tokens, Tokens]] = {}

    def drawn(self, rounds: N) -> Counts:
        """Return at least the first `rounds` rounds: [text, round]; read only."""
        drawn = self._numbers.shape[1]
        if drawn < rounds:
            width = -(-rounds // ROUNDS_A_DRAW) * ROUNDS_A_DRAW
            numbers = np.empty((TEXTS, width), np.uint8)
            numbers[:, :drawn] = self._numbers
            for start in range(drawn, width, ROUNDS_A_BLOCK):
                numbers[:, start : start + ROUNDS_A_BLOCK] = self._block().T
            numbers.flags.writeable = False
            self._numbers = numbers
        return self._numbers

    def emitted(self, text: N, drafts: N, rounds: N) -> tuple[Tokens, Tokens]:
        """Return the tokens that rounds of `drafts` drafts emit, and their running sums."""
        if rounds > ROUNDS_SUMMED:
            return summed(self.drawn(rounds)[text, :rounds], drafts)
        part, row = divmod(text, TEXTS_SUMMED)
        found = self._sums.get((part, drafts))
        if found is None or found[0].shape[1] < rounds:
            first = part * TEXTS_SUMMED
            numbers = self.drawn(rounds)[first : first + TEXTS_SUMMED, :ROUNDS_SUMMED]
            found = summed(numbers, drafts)
            keep(self._sums, (part, drafts), found, SUMS_KEPT)
        return found[0][row], found[1][row]

    def _block(self) -> Counts:
        """Draw a block of rounds: [round, text]."""
        width = self._width
        raw = self._bits.random_raw(ROUNDS_A_BLOCK * TEXTS // 2).view("<u4")
        logs = raw.astype(np.float32).reshape(ROUNDS_A_BLOCK, TEXTS)
        logs += np.float32(0.5)
        logs *= np.float32(2.0**-32)
        np.log(logs, out=logs)
        raw = self._bits.random_raw(ROUNDS_A_BLOCK * width * TEXTS // 4).view("<u2")
        outcomes = (raw % OUTCOMES).reshape(ROUNDS_A_BLOCK, width, TEXTS)
        block = np.empty((ROUNDS_A_BLOCK, TEXTS), np.uint8)
        for number in range(ROUNDS_A_BLOCK):
            block[number] = self.round(logs[number], outcomes[number])
        return block

    def round(self, logs: Rates, outcomes: NDArray[np.uint16]) -> Counts:
        """Return how many tokens one more round of every text accepts.

        Args:
            logs: logarithms of uniform numbers: [text].
            outcomes: 0 to OUTCOMES - 1: [chosen drafter, text].
        """
        routes = self._rules.routes
        if routes:
            self._choose()
        at = self._places * TEXTS
        at += self._rows
        knows = self.knows.take(at)
        best = np.bitwise_or.reduce(knows, axis=0)
        best *= TEXTS
        best += self._rows
        # P(n >= j) = P(u <= rate**j)
        length: Counts = np.minimum(logs * self._per_log.take(best), self._k_max).astype(np.uint8)
        if routes:
            kind = knows * self._lengths
            kind += self._first_merit + length
            kind *= OUTCOMES
            kind += outcomes
            self._learn(at.ravel(), self._merits.take(kind.ravel()))
            poor = (length < self._poor) & (self._tried < self._drafters)
            self._explored = self._tried * poor
        return length

    def _choose(self) -> None:
        """Find the places of a round's drafters: the best, and perhaps the next untried one."""
        ranks, places, last = self._ranks, self._places, self._width - 1
        for number in range(self._width):
            places[number] = self._place_bits - (ranks.max(axis=0) & self._place_bits)
            if number < last:
                ranks.ravel()[places[number] * TEXTS + self._rows] = TAKEN
        np.maximum(places[last], self._explored, out=places[last])
        np.maximum(self._tried, places[last] + 1, out=self._tried)

    def _learn(self, at: Numbers, said: Rates) -> None:
        """Move scores towards what the round says of the chosen drafters."""
        scores = self.scores.take(at)
        scores += (said - scores) * np.float32(self._rules.smoothing)
        self.scores[at] = scores
        bits = scores.view(np.int32) & ~self._place_bits
        self._ranks.ravel()[at] = bits + (self._place_bits - self._places.ravel())


def merits(pool: DrafterPool, rules: DrafterRules, k_max: N) -> Rates:
    """Return what a round says of a drafter: [domain, whether it knows it, length, outcome].

    Outcomes are the same at every seed: even steps of the agreement's distribution, and for each
    another one of the confidence's.
    """
    steps = (np.arange(OUTCOMES) + 0.5) / OUTCOMES
    normal = NormalDist(0.0, CONFIDENCE_SD)
    errors = np.array([normal.inv_cdf(float(step)) for step in steps])
    errors = errors[(np.arange(OUTCOMES) * GOLDEN % 1.0).argsort()]
    agreement = np.empty((pool.domains, 2, k_max + 1, OUTCOMES))
    for domain, knows, length in np.ndindex(*agreement.shape[:3]):
        emitted, rate = length + 1, float(pool.rates[domain, knows])
        chances = [
            comb(emitted, said) * rate**said * (1 - rate) ** (emitted - said)
            for said in range(emitted)
        ]
        said = np.cumsum(chances).searchsorted(steps)
        agreement[domain, knows, length] = said / emitted
    confidence = np.clip(pool.rates[:, :, None, None] + errors, 0.0, 1.0)
    return rules.merit(confidence, agreement).astype(np.float32)
