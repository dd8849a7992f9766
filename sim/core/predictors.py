"""Length predictors: what a policy believes about outputs it must not know.

Part of the experiment, not of a policy, so that policies differ only in decisions.
"""

from __future__ import annotations

import abc
import random
from bisect import bisect_left

from mypy_extensions import mypyc_attr

from sim.types import BadInput, N

CLASS_EDGES = (256, 512, 1024, 2048)
"""Upper edges of the output classes in UELLM's batch code, tokens."""


@mypyc_attr(allow_interpreted_subclasses=True)
class LengthPredictor(abc.ABC):
    """Predicts the output length of each request once, in order of arrival."""

    @abc.abstractmethod
    def predict(self, output_len: N) -> N:
        """Return the predicted output length of a request that will emit `output_len` tokens."""


class Oracle(LengthPredictor):
    """Knows the true length."""

    def predict(self, output_len: N) -> N:
        """Return the true length."""
        return output_len


class Constant(LengthPredictor):
    """Says the same for every request (the mean of the workload, say)."""

    def __init__(self, tokens: N) -> None:
        self.tokens = tokens

    def predict(self, output_len: N) -> N:
        """Return the constant."""
        return self.tokens


class ClassWithAccuracy(LengthPredictor):
    """Names the right class with probability `accuracy`, else a neighbouring one.

    A right answer is the true length, as in UELLM's experiments; a wrong one is the upper edge of a
    class beside the true one (either side with equal chance where there are two).
    """

    def __init__(self, accuracy: float, seed: int, edges: tuple[N, ...] = CLASS_EDGES) -> None:
        self.accuracy = accuracy
        self.edges = edges
        self._random = random.Random(seed)

    def predict(self, output_len: N) -> N:
        """Return the true length or a neighbouring class's upper edge."""
        right, side = self._random.random() < self.accuracy, self._random.random() < 0.5
        if right:
            return output_len
        at = min(bisect_left(self.edges, output_len), len(self.edges) - 1)
        other = at - 1 if side else at + 1
        if not 0 <= other < len(self.edges):
            other = at + 1 if side else at - 1
        return self.edges[other]


def make_predictor(
    name: str, seed: int, accuracy: float, tokens: N, mean_tokens: float
) -> LengthPredictor | None:
    """Return the predictor called `name`; None for `none`.

    Args:
        name: `none`, `oracle`, `class`, `constant` or `mean`.
        seed: of the random choices of `class`.
        accuracy: of `class`.
        tokens: of `constant`.
        mean_tokens: mean output length of the workload, for `mean`.
    """
    if name == "none":
        return None
    if name == "oracle":
        return Oracle()
    if name == "class":
        return ClassWithAccuracy(accuracy, seed)
    if name == "constant":
        return Constant(tokens)
    if name == "mean":
        return Constant(max(round(mean_tokens), 1))
    raise BadInput(f"predictor: unknown {name!r}; valid: none, oracle, class, constant, mean")
