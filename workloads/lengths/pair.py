"""Joint distributions of input and output length: two quantile functions and a Gaussian copula."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workloads.base import Draw, Floats, Ints


class Marginal(abc.ABC):
    """Distribution of one length."""

    @abc.abstractmethod
    def quantile(self, u: Floats) -> Ints:
        """Return the lengths, each >= 1, at the probabilities `u` in (0, 1)."""


@dataclass(frozen=True)
class LengthPair:
    """Input and output length of a request.

    Attributes:
        input: distribution of the prompt tokens.
        output: distribution of the output tokens.
        normal_correlation: correlation of the two normal variables of the Gaussian copula.
    """

    input: Marginal
    output: Marginal
    normal_correlation: float = 0.0

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """Return input and output lengths of `n` requests."""
        return self.at(rng.standard_normal((n, 2)))

    def at(self, normals: Floats) -> tuple[Ints, Ints]:
        """Return the lengths for independent standard normals, shape (n, 2)."""
        from scipy.special import ndtr

        rho = self.normal_correlation
        first = normals[:, 0]
        second = rho * first + np.sqrt(1 - rho * rho) * normals[:, 1]
        return self.input.quantile(ndtr(first)), self.output.quantile(ndtr(second))


@dataclass(frozen=True)
class Mixture:
    """A weighted choice between sources of lengths.

    Attributes:
        draws: the components.
        weights: their shares, summing to any positive number.
    """

    draws: Sequence[Draw]
    weights: Sequence[float]

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """Return input and output lengths of `n` requests."""
        return self.draw_labelled(rng, n)[1:]

    def draw_labelled(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints, Ints]:
        """Return the component index, input and output length of `n` requests."""
        component = shares(rng, n, self.weights)
        lengths = np.empty((2, n), np.int64)
        for index, draw in enumerate(self.draws):
            chosen = np.flatnonzero(component == index)
            lengths[:, chosen] = draw(rng, len(chosen))
        return component, lengths[0], lengths[1]


def shares(rng: np.random.Generator, n: int, weights: Sequence[float]) -> Ints:
    """Return `n` indices drawn in proportion to `weights`."""
    edges = np.cumsum(weights) / np.sum(weights)
    return np.searchsorted(edges[:-1], rng.random(n), side="right").astype(np.int64, copy=False)
