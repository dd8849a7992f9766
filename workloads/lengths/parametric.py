"""Parametric lengths: fixed, uniform, lognormal, geometric."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Discriminator, model_validator

from workloads.base import MAX_TOKENS, Config, Field, Floats, Ints
from workloads.lengths.pair import Marginal

PARAMETRIC = ("fixed", "uniform", "lognormal", "geometric")


class Fixed(Config, Marginal):
    """Always the same length."""

    dist: Literal["fixed"] = "fixed"
    tokens: int = Field(ge=1, le=MAX_TOKENS, description="length [tokens]")

    def quantile(self, u: Floats) -> Ints:
        """Return the length for each of `u`."""
        return np.full(len(u), self.tokens, np.int64)


class Uniform(Config, Marginal):
    """Every whole number of a range, equally often."""

    dist: Literal["uniform"] = "uniform"
    low: int = Field(ge=1, le=MAX_TOKENS, description="shortest [tokens]")
    high: int = Field(ge=1, le=MAX_TOKENS, description="longest, included [tokens]")

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.high < self.low:
            raise ValueError(f"high = {self.high} is below low = {self.low}")
        return self

    def quantile(self, u: Floats) -> Ints:
        """Return the lengths at the probabilities `u`."""
        return self.low + np.floor(u * (self.high - self.low + 1)).astype(np.int64)


class Lognormal(Config, Marginal):
    """Lognormal, rounded to whole tokens."""

    dist: Literal["lognormal"] = "lognormal"
    mean: float = Field(ge=1, le=MAX_TOKENS, description="mean before rounding [tokens]")
    cv: float = Field(1.0, ge=0, le=100, description="standard deviation / mean")

    def quantile(self, u: Floats) -> Ints:
        """Return the lengths at the probabilities `u`."""
        from scipy.special import ndtri

        variance = np.log1p(self.cv**2)
        tokens = np.exp(np.log(self.mean) - variance / 2 + np.sqrt(variance) * ndtri(u))
        return _whole(np.rint(tokens))


class Geometric(Config, Marginal):
    """Geometric on 1, 2, …: after each token the request ends with the same probability."""

    dist: Literal["geometric"] = "geometric"
    mean: float = Field(ge=1, le=MAX_TOKENS, description="mean [tokens]")

    def quantile(self, u: Floats) -> Ints:
        """Return the lengths at the probabilities `u`."""
        if self.mean == 1:
            return np.ones(len(u), np.int64)
        tokens = np.ceil(np.log1p(-u) / np.log1p(-1 / self.mean))
        return _whole(tokens)


def _whole(tokens: Floats) -> Ints:
    whole: Ints = np.clip(tokens, 1, MAX_TOKENS).astype(np.int64)
    return whole


Parametric = Annotated[Fixed | Uniform | Lognormal | Geometric, Discriminator("dist")]
