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
from typing import Final, TypeVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.typing import NDArray

from sim.types import BadInput, N

REQUESTS_A_DRAW: Final = 128
"""One generator draws for so many requests."""

ROUNDS_A_DRAW: Final = 128
"""It draws so many rounds of each at once."""

ROUNDS_SUMMED: Final = 512
"""Running sums are kept of the first rounds; those of longer requests are made when asked for."""

DRAWS_KEPT: Final = 64
"""Generators kept, with what they drew, mostly 64 KiB; forgotten rounds are drawn again."""

SUMS_KEPT: Final = 32
"""Sums kept, 512 KiB each."""

CHANCES: Final = 2**32
"""Values of a random number."""

HIGHEST_RATE: Final = 1 - 1e-12
"""Rates of 0 and 1 have no logit; what is this close to them is left as it is."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Counts = NDArray[np.uint8]
Tokens = NDArray[np.int32]


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

    def emitted(self, request_id: N, drafts: N, rounds: N) -> tuple[Tokens, Tokens]:
        """Return the tokens that rounds of `drafts` drafts emit, and their running sums.

        At least `rounds` rounds, from the first on. Read only.
        """
        return _summed(self.accepted(request_id, rounds), drafts)


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
        self._draws: dict[N, _Draw] = {}
        self._sums: dict[tuple[N, N], tuple[Tokens, Tokens]] = {}

    def accepted(self, request_id: N, rounds: N) -> Counts:
        """Return the numbers of the first rounds of a request."""
        chunk, row = divmod(request_id, REQUESTS_A_DRAW)
        return self._drawn(chunk, rounds)[row, :rounds]

    def emitted(self, request_id: N, drafts: N, rounds: N) -> tuple[Tokens, Tokens]:
        """Return the tokens that rounds of `drafts` drafts emit, and their running sums."""
        if rounds > ROUNDS_SUMMED:
            return super().emitted(request_id, drafts, rounds)
        chunk, row = divmod(request_id, REQUESTS_A_DRAW)
        found = self._sums.get((chunk, drafts))
        if found is None:
            numbers = self._drawn(chunk, ROUNDS_SUMMED)[:, :ROUNDS_SUMMED]
            found = _summed(numbers, drafts)
            _keep(self._sums, (chunk, drafts), found, SUMS_KEPT)
        return found[0][row], found[1][row]

    def _drawn(self, chunk: N, rounds: N) -> Counts:
        """Return at least the first `rounds` rounds of a chunk's requests: [request, round]."""
        draw = self._draws.get(chunk)
        if draw is None:
            draw = _Draw(self._generator(chunk, 1), self._reach(chunk))
            _keep(self._draws, chunk, draw, DRAWS_KEPT)
        if draw.numbers.shape[1] < rounds:
            draw.go_on(rounds)
        return draw.numbers

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


class _Draw:
    """The rounds of the requests of a chunk, as far as somebody has asked for them.

    Args:
        generator: draws them, always in the same order.
        reach: P(n >= j): [request, j - 1].
    """

    def __init__(self, generator: np.random.Generator, reach: NDArray[np.float64]) -> None:
        self._bits = generator.bit_generator
        # Of 32 bits: a rate of 1 fails once in 4 billion rounds.
        self._reach = np.minimum(np.rint(reach * CHANCES), CHANCES - 1).astype(np.uint32)
        self.numbers: Counts = np.zeros((len(reach), 0), np.uint8)

    def go_on(self, rounds: N) -> None:
        """Draw more, until there are `rounds` rounds."""
        drawn = self.numbers.shape[1]
        width = max(drawn * 2, -(-rounds // ROUNDS_A_DRAW) * ROUNDS_A_DRAW)
        requests, positions = self._reach.shape
        numbers = np.zeros((requests, width), np.uint8)
        numbers[:, :drawn] = self.numbers
        for start in range(drawn, width, ROUNDS_A_DRAW):
            raw = self._bits.random_raw(requests * ROUNDS_A_DRAW // 2)
            chance = raw.view("<u4").reshape(requests, ROUNDS_A_DRAW)
            part = numbers[:, start : start + ROUNDS_A_DRAW]
            for position in range(positions):
                part += (chance < self._reach[:, position, None]).view(np.uint8)
        numbers.flags.writeable = False
        self.numbers = numbers


def _summed(numbers: Counts, drafts: N) -> tuple[Tokens, Tokens]:
    """Return the tokens that rounds of `drafts` drafts emit, and their running sums."""
    tokens = np.minimum(numbers, drafts).astype(np.int32)
    tokens += 1
    return tokens, tokens.cumsum(axis=-1, dtype=np.int32)


def _keep(kept: dict[Key, Value], key: Key, value: Value, most: N) -> None:
    """Add an entry; the oldest goes if there are too many."""
    if len(kept) == most:
        del kept[next(iter(kept))]
    kept[key] = value


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
