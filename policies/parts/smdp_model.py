"""A batch-service queue as a semi-Markov decision process: when to serve, and how many.

One server, Poisson arrivals; a batch of a requests is served for l(a) seconds and takes z(a) J.
State s: requests waiting at a decision, 0..`max_waiting`, and one more that stands for all beyond
(*overflow*). Action a: 0 waits for the next arrival, a > 0 serves a of them. With w the weight of
power, the cost of a state and an action is what it adds to

    mean response time + w * mean power

because by Little's law the integral of the number in the system, over the arrival rate, is the sum
of response times. With y the mean time to the next decision and y2 its mean square:

    a = 0:  s -> s+1,              y = 1/rate,   cost s*y/rate
    a > 0:  s -> s-a+k,            y = l(a),     cost (s*y + rate*y2/2)/rate + w*z(a)

where k arrivals come during the service. In the overflow state the largest batch is served and
`overflow_cost_s` is added to the cost per second (the paper's abstract cost), which keeps a small
state space honest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.types import N

Floats = NDArray[np.float64]


class ServiceLaw:
    """What a batch takes.

    Args:
        service_s: seconds of a batch of 1, 2, ... requests.
        energy_j: joules of the same.
        stages: 0: service takes exactly so long; k: Erlang with k stages (1: exponential).
    """

    __slots__ = ("energy_j", "service_s", "stages")

    def __init__(
        self, service_s: Sequence[float], energy_j: Sequence[float], stages: N = 0
    ) -> None:
        if len(service_s) != len(energy_j) or min(service_s) <= 0:
            raise ValueError("a batch needs a positive service time and an energy")
        self.service_s = tuple(service_s)
        self.energy_j = tuple(energy_j)
        self.stages = stages

    @property
    def max_batch(self) -> N:
        """The largest batch."""
        return len(self.service_s)

    @property
    def most_per_s(self) -> float:
        """Requests a second that full batches serve."""
        return self.max_batch / self.service_s[-1]

    def load(self, rate: float) -> float:
        """Return the load of `rate` arrivals a second: 1 is what full batches can serve."""
        return rate / self.most_per_s


def law_of(
    max_batch: N,
    service_s: Callable[[N], float],
    energy_j: Callable[[N], float],
    stages: N = 0,
) -> ServiceLaw:
    """Return the law of functions of the batch size."""
    sizes = range(1, max_batch + 1)
    return ServiceLaw([service_s(b) for b in sizes], [energy_j(b) for b in sizes], stages)


class BatchQueue:
    """The decision process of one arrival rate.

    Args:
        law: of the server.
        rate: arrivals per second.
        power_weight: seconds of mean response that a watt of mean power is worth.
        max_waiting: the largest state short of overflow; at least the largest batch.
        overflow_cost_s: added to the cost per second in overflow.

    Attributes:
        states: how many, the overflow state (the last one) included.
        arrivals: chance of k = 0..states-1 arrivals in a service of a = 1..B requests, (B, states);
            the last column is the chance of at least so many.
    """

    def __init__(
        self,
        law: ServiceLaw,
        rate: float,
        power_weight: float,
        max_waiting: N,
        overflow_cost_s: float,
    ) -> None:
        if max_waiting < law.max_batch:
            raise ValueError(f"max_waiting {max_waiting} is below the batch of {law.max_batch}")
        self.law = law
        self.rate = rate
        self.power_weight = power_weight
        self.overflow_cost_s = overflow_cost_s
        self.states: N = max_waiting + 2
        self.service_s: Floats = np.array(law.service_s)
        self.energy_j: Floats = np.array(law.energy_j)
        spread = 1.0 + (1.0 / law.stages if law.stages else 0.0)
        self.square_s2: Floats = self.service_s**2 * spread
        self.arrivals: Floats = np.array(
            [arrivals_in(rate * s, self.states, law.stages) for s in law.service_s]
        )

    def response_cost(self, state: N, batch: N) -> float:
        """Return the response time, over the rate, that an action adds until the next decision."""
        rate = self.rate
        if batch == 0:
            return state / rate / rate
        mean_s, square_s2 = self.service_s[batch - 1], self.square_s2[batch - 1]
        return float((state * mean_s + rate * square_s2 / 2) / rate)

    def costs(self) -> tuple[Floats, Floats]:
        """Return cost per second (states, 1+B) and mean time (1+B) of each action.

        What is not allowed costs infinity: batches of more than wait, and anything but the largest
        batch in overflow.
        """
        last = self.states - 1
        waiting = np.arange(self.states, dtype=np.float64)[:, None]
        times = np.concatenate(([1.0 / self.rate], self.service_s))
        within = np.concatenate(([0.0], self.square_s2 / 2))
        energy = np.concatenate(([0.0], self.energy_j))
        cost = (waiting * times / self.rate + within + self.power_weight * energy) / times
        batches = np.arange(len(times))
        cost[batches[None, :] > waiting] = math.inf
        cost[last, :-1] = math.inf
        cost[last, -1] += self.overflow_cost_s
        return cost, times

    def expected(self, values: Floats) -> Floats:
        """Return E[values(m + k)] after a service of a = 1..B that leaves m: (B, states)."""
        padded = np.concatenate((values, np.full(self.states - 1, values[-1])))
        window = np.lib.stride_tricks.sliding_window_view(padded, self.states)
        return np.asarray(self.arrivals @ window.T)

    def chain(self, table: Sequence[N]) -> Floats:
        """Return the chances of going from decision to decision under a table, (states, states)."""
        size, last = self.states, self.states - 1
        moves = np.zeros((size, size))
        for state in range(size):
            batch = table[state]
            if batch == 0:
                moves[state, min(state + 1, last)] = 1.0
                continue
            left = state - batch
            chances = self.arrivals[batch - 1]
            room = last - left
            moves[state, left:last] = chances[:room]
            moves[state, last] = chances[room:].sum()
        return moves


def arrivals_in(mean: float, size: N, stages: N) -> list[float]:
    """Return the chances of 0, 1, ... size-1 arrivals in a service; the last one: or more.

    Args:
        mean: of the number of arrivals.
        size: how many chances.
        stages: of the service; 0: it is deterministic (Poisson), else negative binomial.
    """
    chances: list[float] = []
    if stages:
        ratio = mean / (stages + mean)
        term = -stages * math.log1p(mean / stages)
        for k in range(size - 1):
            chances.append(math.exp(term))
            term += math.log(ratio) + math.log(stages + k) - math.log(k + 1)
    else:
        term = -mean
        for k in range(size - 1):
            chances.append(math.exp(term))
            term += math.log(mean) - math.log(k + 1)
    chances.append(max(1.0 - math.fsum(chances), 0.0))
    return chances
