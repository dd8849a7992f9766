"""How many drafted tokens a target accepts: drawn from a seed, whatever order it is asked in.

A round drafts K tokens one after the other; the target accepts them up to the first it would not
have said. With conditional rates c1, c2, ... (the last one repeated) the number n that would be
accepted if `k_max` were drafted has P(n >= j) = c1*...*cj; a round of K <= k_max accepts min(n, K).

A request of its own kind shifts the logit of all its rates by a normal deviate of sd `request_sd`:
some texts are easier to foresee (`spec/neighbours.md` 5: 0.4 matches the spread of ShareGPT).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Final

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.typing import NDArray

from sim.types import BadInput, N

REQUESTS_A_DRAW: Final = 256
ROUNDS_A_DRAW: Final = 128
"""One generator draws this many rounds of this many requests at once."""

DRAWS_KEPT: Final = 256
"""Draws kept, 32 KiB each; forgotten ones are drawn again."""

HIGHEST_RATE: Final = 1 - 1e-12
"""Rates of 0 and 1 have no logit; what is this close to them is left as it is."""

Counts = NDArray[np.uint8]


@mypyc_attr(allow_interpreted_subclasses=True)
class Acceptance(abc.ABC):
    """Numbers of accepted tokens, a function of seed, request and round."""

    def joins(self, request_id: N, batch: N) -> None:  # noqa: B027
        """Take note of a request that joins a decoding batch, which then is `batch` large."""

    @abc.abstractmethod
    def accepted(self, request_id: N, rounds: N) -> Counts:
        """Return how many tokens each of the first `rounds` rounds of a request accepts at most.

        A round that drafts K accepts the smaller of its number and K. A longer call begins with
        what a shorter one returns. Read only: it may be shared.
        """


class Positions(Acceptance):
    """Independent rounds with a rate for each drafted position.

    Args:
        rates: c1, c2, ...: chance that a token is accepted if those before it are; the last one
            holds for all further positions.
        k_max: most tokens a round drafts, 1 to 255.
        seed: of the draws.
        request_sd: standard deviation of the requests' logit shifts; 0: all alike.
    """

    def __init__(
        self, rates: Sequence[float], k_max: N, seed: int, request_sd: float = 0.0
    ) -> None:
        if not rates or not all(0 <= rate <= 1 for rate in rates):
            raise BadInput(f"acceptance rates {list(rates)}: expected numbers from 0 to 1")
        if not 1 <= k_max <= 255:
            raise BadInput(f"acceptance k_max {k_max}: expected 1 to 255")
        if request_sd < 0:
            raise BadInput(f"acceptance request_sd {request_sd}: expected 0 or more")
        padded = [*rates, *[rates[-1]] * k_max][:k_max]
        self._rates = np.array(padded, np.float64)
        self._seed = seed
        self._request_sd = request_sd
        self._draws: dict[tuple[N, N], Counts] = {}

    def accepted(self, request_id: N, rounds: N) -> Counts:
        """Return the numbers of the first rounds of a request."""
        chunk, row = divmod(request_id, REQUESTS_A_DRAW)
        if rounds <= ROUNDS_A_DRAW:
            return self._draw(chunk, 0)[row, :rounds]
        draws = -(-rounds // ROUNDS_A_DRAW)
        joined: Counts = np.concatenate([self._draw(chunk, at)[row] for at in range(draws)])
        return joined[:rounds]

    def _draw(self, chunk: N, at: N) -> Counts:
        """Return the rounds of number `at` on, of the requests of a chunk: [request, round]."""
        found = self._draws.get((chunk, at))
        if found is not None:
            return found
        reach = self._reach(chunk)
        shape = (REQUESTS_A_DRAW, ROUNDS_A_DRAW)
        chance = self._generator(chunk, at + 1).random(shape, np.float32)
        found = np.zeros(shape, np.uint8)
        for position in range(len(self._rates)):
            found += chance < reach[:, position, None]
        found.flags.writeable = False
        if len(self._draws) == DRAWS_KEPT:
            del self._draws[next(iter(self._draws))]
        self._draws[chunk, at] = found
        return found

    def _reach(self, chunk: N) -> NDArray[np.float64]:
        """Return P(n >= j) of each request of a chunk: [request, j - 1]."""
        rates = np.broadcast_to(self._rates, (REQUESTS_A_DRAW, len(self._rates)))
        if self._request_sd:
            shift = self._generator(chunk, 0).normal(0.0, self._request_sd, (REQUESTS_A_DRAW, 1))
            inner = (rates > 1 - HIGHEST_RATE) & (rates < HIGHEST_RATE)
            odds = np.where(inner, rates, 0.5) / (1 - np.where(inner, rates, 0.5))
            odds = odds * np.exp(shift)
            rates = np.where(inner, odds / (1 + odds), rates)
        reach: NDArray[np.float64] = np.cumprod(rates, axis=1, dtype=np.float64)
        return reach

    def _generator(self, chunk: N, stream: N) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(chunk, stream)))


def geometric(rate: float, k_max: N, seed: int, request_sd: float = 0.0) -> Positions:
    """Return rounds in which every drafted token is accepted with the same chance."""
    return Positions([rate], k_max, seed, request_sd)


class Traced(Acceptance):
    """Measured lengths by output position: a round at position p accepts what was measured there.

    Each request follows one of the measured ones, chosen by the seed; it begins again at the front
    when its output is longer. A round of `k_max` drafts moves on by what it accepts and one more;
    rounds of fewer drafts use the numbers of these positions too, though they would not get there.

    Args:
        lengths: of each measured request, how many tokens are accepted after output token 1, 2, ...
        k_max: most tokens a round drafts.
        seed: of the choice.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], k_max: N, seed: int) -> None:
        if not lengths or not all(lengths):
            raise BadInput("acceptance trace: expected at least one length for every request")
        self._k_max = k_max
        self._seed = seed
        self._lengths = [list(each) for each in lengths]
        self._walks: dict[int, Counts] = {}
        self._chosen: dict[N, NDArray[np.int64]] = {}

    def accepted(self, request_id: N, rounds: N) -> Counts:
        """Return the numbers of the first rounds of a request."""
        chunk, row = divmod(request_id, REQUESTS_A_DRAW)
        chosen = self._chosen.get(chunk)
        if chosen is None:
            seeds = np.random.SeedSequence(self._seed, spawn_key=(chunk,))
            generator = np.random.default_rng(seeds)
            chosen = generator.integers(len(self._lengths), size=REQUESTS_A_DRAW)
            self._chosen[chunk] = chosen
        walk = self._walk(int(chosen[row]))
        times = -(-rounds // len(walk))
        repeated: Counts = np.tile(walk, times)[:rounds]
        return repeated

    def _walk(self, number: int) -> Counts:
        """Return the rounds of a measured request until its output ends."""
        walk = self._walks.get(number)
        if walk is None:
            lengths, at, found = self._lengths[number], 0, []
            while at < len(lengths):
                found.append(min(lengths[at], self._k_max))
                at += found[-1] + 1
            walk = self._walks[number] = np.array(found, np.uint8)
        return walk
