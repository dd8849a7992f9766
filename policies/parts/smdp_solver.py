"""Tables for batch-service queues: solved by relative value iteration, evaluated, or by rule.

A *table* says for each state how many to serve, 0 to wait; its last entry is the overflow state's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.parts.smdp_model import BatchQueue, Floats
from sim.types import N

Table = tuple[N, ...]

MAX_SWEEPS = 100_000
"""Far beyond what any load short of overload takes."""
MAX_IMPROVEMENTS = 100
"""A dozen are many."""
ROUNDING = 1e-12
"""Share of the values below which their changes are rounding."""
STEP_SHARE = 0.999
"""Of the largest step of the discretisation, which must stay below its bound."""


class Averages:
    """What a table comes to in the long run.

    Attributes:
        response_s: mean response time.
        power_w: mean power, nothing counted while idle.
        overflow: share of decisions made in the overflow state.
        mean_batch: requests of a batch.
    """

    __slots__ = ("mean_batch", "overflow", "power_w", "response_s")

    def __init__(
        self, response_s: float, power_w: float, overflow: float, mean_batch: float
    ) -> None:
        self.response_s = response_s
        self.power_w = power_w
        self.overflow = overflow
        self.mean_batch = mean_batch

    def cost_s(self, power_weight: float) -> float:
        """Return the weighted sum, seconds."""
        return self.response_s + power_weight * self.power_w


class _Discretised:
    """A decision process with steps of one length: what relative value iteration sweeps over.

    Cost per second c, and moves P' = eta/y P + (1 - eta/y) I, with a step eta < y/(1 - P_ss).
    """

    def __init__(self, queue: BatchQueue) -> None:
        self.queue = queue
        self.cost, times = queue.costs()
        size, actions = self.cost.shape
        batches = np.arange(1, actions)
        # A state follows itself when as many arrive as are served.
        stays = np.concatenate(([0.0], queue.arrivals[batches - 1, batches]))
        self.eta = STEP_SHARE * float((times / (1.0 - stays)).min())
        self.share = self.eta / times
        left = np.arange(size)[:, None] - batches
        self.at = np.where(left >= 0, (batches - 1) * size + left, 0)
        """Where `expected` has what a state and a batch lead to."""

    def sweep(self, values: Floats) -> Floats:
        """Return the value of each state and action when `values` come after, (states, 1+B)."""
        after = np.empty_like(self.cost)
        after[:-1, 0] = values[1:]
        after[-1, 0] = values[-1]
        after[:, 1:] = self.queue.expected(values).ravel()[self.at]
        after *= self.share
        after += values[:, None] * (1.0 - self.share)
        after += self.cost
        return after

    def values_of(self, table: Sequence[N]) -> Floats:
        """Return the relative values of a table: g + v = c + P'v with v[0] = 0."""
        size = self.queue.states
        rows = np.arange(size)
        pick = np.array(table)
        share = self.share[pick]
        system = share[:, None] * (np.eye(size) - self.queue.chain(table))
        system[:, 0] = 1.0  # the unknown g takes the place of v[0]
        values = np.asarray(np.linalg.solve(system, self.cost[rows, pick]))
        values[0] = 0.0
        return values


def solve(queue: BatchQueue, tolerance_s: float, improve: bool = True) -> Table:
    """Return the optimal table by relative value iteration.

    Values are iterated until their changes differ by less than `tolerance_s` between states.

    Args:
        queue: the decision process.
        tolerance_s: span of the last change of the values.
        improve: start from the values of a table that Howard's policy improvement finds, which
            leaves a sweep or two to do; else from zeros, which takes hundreds at high load.
    """
    process = _Discretised(queue)
    values = np.zeros(queue.states)
    if improve:
        values = _improved(process)
    for _ in range(MAX_SWEEPS):
        options = process.sweep(values)
        new = options.min(axis=1)
        change = new - values
        values = new - new[0]
        floor_s = ROUNDING * float(np.abs(values).max())
        if change.max() - change.min() < max(tolerance_s, floor_s):
            break
    return _best(options)


def _improved(process: _Discretised) -> Floats:
    """Return the values of a table that no single change improves."""
    queue = process.queue
    table = control_limit(1, queue.law.max_batch, queue.states)
    values = process.values_of(table)
    for _ in range(MAX_IMPROVEMENTS):
        better = _best(process.sweep(values))
        if better == table:
            break
        table = better
        values = process.values_of(table)
    return values


def _best(options: Floats) -> Table:
    return tuple(int(a) for a in options.argmin(axis=1))


def evaluate(queue: BatchQueue, table: Sequence[N]) -> Averages:
    """Return the long-run averages of a table, from the stationary chain of its decisions."""
    size = queue.states
    balance = queue.chain(table).T - np.eye(size)
    balance[0] = 1.0  # one equation says nothing new: the shares add up to 1 instead
    share = np.linalg.solve(balance, np.eye(size)[0])
    times = np.array([queue.service_s[a - 1] if a else 1.0 / queue.rate for a in table])
    energy = np.array([queue.energy_j[a - 1] if a else 0.0 for a in table])
    waits = np.array([queue.response_cost(s, a) for s, a in enumerate(table)])
    served = np.array(table, dtype=np.float64)
    total_s = float(share @ times)
    batches = float(share @ (served > 0))
    return Averages(
        float(share @ waits) / total_s,
        float(share @ energy) / total_s,
        float(share[-1]),
        float(share @ served) / batches,
    )


# -- tables by rule -----------------------------------------------------------------------------


def control_limit(threshold: N, max_batch: N, size: N) -> Table:
    """Wait for `threshold` requests, then serve what is there; 1 is greedy (work conserving)."""
    return tuple(min(s, max_batch) if s >= threshold else 0 for s in range(size))


def fixed_batches(batch: N, size: N) -> Table:
    """Serve exactly `batch` requests, when there are so many."""
    return tuple(batch if s >= batch else 0 for s in range(size))


def limit_of(table: Sequence[N]) -> N:
    """Return the control limit of a table: the fewest requests that it serves."""
    return next(s for s, a in enumerate(table) if a)
