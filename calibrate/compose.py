"""A model's step out of measured operators: the time that a profile is fitted to.

Two families of tables (`calibrate.tables`): `compose_matrix` composes any dense model out of matrix
products and attention, `compose_layers` takes the layers of one model at one tp as measured.
"""

from __future__ import annotations

import abc

from numpy.typing import ArrayLike

from calibrate.steps import Steps
from calibrate.tables import Floats
from sim.costs.catalogue import Model

BYTES = 2
"""Of a weight, an activation and a cached value: all tables are 16-bit."""


class Operators(abc.ABC):
    """Times of one GPU's share of a model, milliseconds.

    Attributes:
        files: names of the tables used.
        most_tokens: largest step that the tables of the dense layers hold, tokens.
        derivation: how, and every assumption.
        notes: what any user of a profile must be told.
        dense_sizes: token counts at which the dense layers were measured as they are, rising; None:
            they are composed of matrix products, and knots say as much.
    """

    files: tuple[str, ...]
    most_tokens: int
    derivation: str
    notes: tuple[str, ...] = ()
    dense_sizes: Floats | None = None

    @abc.abstractmethod
    def dense(self, tokens: ArrayLike) -> Floats:
        """Return everything of a step that runs over its tokens, attention left out."""

    @abc.abstractmethod
    def lm_head(self, rows: ArrayLike) -> Floats:
        """Return everything that runs over the rows that need logits."""

    @abc.abstractmethod
    def prefill(self, steps: Steps) -> Floats:
        """Return the attention of the chunks, one layer; 0 without a chunk."""

    @abc.abstractmethod
    def decode(self, batch: ArrayLike, kv: ArrayLike) -> Floats:
        """Return the attention of decodes that hold `kv` tokens in all, one layer."""

    @abc.abstractmethod
    def beside(self, steps: Steps) -> Floats:
        """Return what the decodes add to one layer's attention of a step with chunks."""

    @abc.abstractmethod
    def allreduce(self, message_bytes: ArrayLike) -> Floats:
        """Return one all-reduce; tp > 1."""


def attention(operators: Operators, steps: Steps) -> Floats:
    """Return all attention of one layer, ms."""
    found = operators.prefill(steps)
    plain = (steps.chunks == 0) & (steps.batch > 0)
    found[plain] += operators.decode(steps.batch[plain], steps.kv[plain])
    both = (steps.chunks > 0) & (steps.batch > 0)
    found[both] += operators.beside(steps.where(both))
    return found


def composed(operators: Operators, steps: Steps, model: Model, tp: int) -> Floats:
    """Return the composed time of every step, ms (`spec/costs.md` section 1, without host)."""
    total = operators.dense(steps.tokens) + operators.lm_head(steps.rows)
    total += model.layers * attention(operators, steps)
    if tp > 1:
        message = steps.tokens * model.hidden * BYTES
        total += 2 * model.layers * operators.allreduce(message)
    return total
