"""Empirical lengths: compact tables fitted to real traces by `workloads.fit_lengths`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from pydantic import ValidationError, model_validator

from workloads.base import Config, Field, Floats, Ints, bad
from workloads.lengths.pair import LengthPair, Marginal, Mixture

FOLDER = Path(__file__).parent


class Knots(Config, Marginal):
    """A distribution on whole numbers by knots of its distribution function.

    Between two knots the probability is spread evenly over the whole numbers above the lower and
    up to the upper knot; a value that stands out has a knot on it and one just below.
    """

    tokens: tuple[int, ...] = Field(min_length=2, description="knots, increasing [tokens]")
    cdf: tuple[float, ...] = Field(min_length=2, description="share of lengths <= knot, 0 to 1")

    @model_validator(mode="after")
    def _increasing(self) -> Knots:
        if len(self.tokens) != len(self.cdf) or self.cdf[0] != 0 or self.cdf[-1] != 1:
            raise ValueError("tokens and cdf need equal lengths, cdf runs from 0 to 1")
        if min(np.diff(self.tokens)) <= 0 or min(np.diff(self.cdf)) < 0 or self.tokens[0] < 0:
            raise ValueError("tokens have to increase from 0 or more, cdf must not fall")
        return self

    def quantile(self, u: Floats) -> Ints:
        """Return the lengths at the probabilities `u`."""
        tokens = np.ceil(np.interp(u, self.cdf, self.tokens)).astype(np.int64)
        return np.clip(tokens, self.tokens[0] + 1, self.tokens[-1])


class Table(Config):
    """One fitted population."""

    tags: tuple[str, ...] = Field((), description="groups it belongs to; a source `file-tag` each")
    n: int = Field(gt=0, description="requests it was fitted to; its weight")
    normal_correlation: float = Field(gt=-1, lt=1, description="of the Gaussian copula")
    input: Knots = Field(description="prompt tokens")
    output: Knots = Field(description="output tokens")


class TableFile(Config):
    """One file of `workloads/lengths`."""

    source: str = Field(description="where the trace comes from")
    licence: str = Field(description="of the trace")
    note: str = Field("", description="what the lengths are")
    tables: tuple[Table, ...] = Field(min_length=1, description="the populations")


def table_names() -> list[str]:
    """Return all sources: a name for each file, and one for each of its tags."""
    return sorted(
        name
        for stem in _stems()
        for name in [stem, *{f"{stem}-{tag}" for table in _file(stem).tables for tag in table.tags}]
    )


def table_source(name: str) -> LengthPair | Mixture | None:
    """Return the fitted source called `name`, or None."""
    stem, _, tag = name.partition("-")
    if stem not in _stems():
        return None
    tables = [table for table in _file(stem).tables if not tag or tag in table.tags]
    if not tables:
        return None
    pairs = [LengthPair(table.input, table.output, table.normal_correlation) for table in tables]
    if len(pairs) == 1:
        return pairs[0]
    return Mixture([pair.draw for pair in pairs], [table.n for table in tables])


def _stems() -> set[str]:
    return {file.stem for file in FOLDER.glob("*.yaml")}


@cache
def _file(stem: str) -> TableFile:
    import yaml

    path = FOLDER / f"{stem}.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # a safe loader
        return TableFile.model_validate(content)
    except (yaml.YAMLError, ValidationError) as error:
        raise bad(path, f"not a table of lengths: {error}") from error
