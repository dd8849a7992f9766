"""Queueing formulas, and the simulator set up as the queues they are about.

Batch size 1, a constant decode step, a free prefill (one femtosecond): a request with n output
tokens is served for n-1 steps, because the prefill emits the first token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from policies import load
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace

Floats = NDArray[np.float64]

STEP_S = 0.01
REPLICATIONS = 20
WARM_UP = 0.1
"""Share of the requests dropped at the start."""
SERVERS: dict[str, dict[str, Any]] = {
    "static": {"max_batch_size": 1},
    "continuous": {"max_num_seqs": 1},
}
"""Two policies that are a single server each."""


# -- formulas -------------------------------------------------------------------------------------


def pollaczek_khinchine(rate: float, mean_s: float, square_s2: float) -> float:
    """Return the mean wait in an M/G/1 queue.

    Args:
        rate: arrivals per second.
        mean_s: mean service time.
        square_s2: mean of the squared service time.
    """
    return rate * square_s2 / (2 * (1 - rate * mean_s))


def erlang_arrivals(rate: float, service_s: float, stages: int) -> float:
    """Return the mean wait in an E_k/D/1 queue, fed every `stages`-th of `rate` arrivals a second.

    Spitzer: E[W] = sum over n of E[(n*D - T_n)+]/n, where T_n, the time of n arrivals, is Gamma of
    shape k*n; E[(a - T)+] = a*F(k*n) - k*n/rate*F(k*n + 1) with the Gamma distribution function F.
    """
    n = np.arange(1, 20_001, dtype=np.float64)
    shape, a = stages * n, n * service_s
    below = special.gammainc(shape, rate * a)
    return float(((a * below - shape / rate * special.gammainc(shape + 1, rate * a)) / n).sum())


def erlang_c(rate: float, mean_s: float, servers: int) -> float:
    """Return the mean wait in an M/M/c queue: the chance to wait (Erlang C), and then how long."""
    load = rate * mean_s
    waits = load**servers / math.factorial(servers) * servers / (servers - load)
    chance = waits / (sum(load**k / math.factorial(k) for k in range(servers)) + waits)
    return chance * mean_s / (servers - load)


# -- workloads ------------------------------------------------------------------------------------


def fixed(rng: np.random.Generator, count: int, steps: int) -> NDArray[np.int64]:
    """Return `count` times the output length of `steps` decode steps."""
    return np.full(count, steps + 1)


def geometric(rng: np.random.Generator, count: int, steps: int) -> NDArray[np.int64]:
    """Return output lengths with geometrically many decode steps, `steps` on average."""
    return 1 + rng.geometric(1 / steps, count)


LENGTHS = {"fixed": fixed, "geometric": geometric}


def service_moments(lengths: str, steps: int) -> tuple[float, float]:
    """Return mean and mean square of the service time, in seconds."""
    mean = steps * STEP_S
    if lengths == "fixed":
        return mean, mean**2
    p = 1 / steps
    return mean, ((1 - p) / p**2 + 1 / p**2) * STEP_S**2


def poisson_trace(seed: int, lengths: str, rate: float, count: int, steps: int) -> Trace:
    """Return Poisson arrivals of one-token prompts."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, count))
    return Trace(np.ones(count, np.int64), LENGTHS[lengths](rng, count, steps), arrival_s)


# -- measuring ------------------------------------------------------------------------------------


def waits(
    trace: Trace,
    policy: str,
    instances: int = 1,
    router: str = "round-robin",
    seed: int = 0,
    **config: Any,
) -> Floats:
    """Return how long each request waits for its prefill, in seconds."""
    return served(trace, policy, instances, router, seed, **config)[0]


def served(
    trace: Trace, policy: str, instances: int, router: str, seed: int = 0, **config: Any
) -> tuple[Floats, NDArray[np.int64]]:
    """Return how long each request waits, in seconds, and the instance that serves it."""
    cls = load(policy)
    cost = AffineCost(decode_base_s=STEP_S)
    specs = [InstanceSpec(cost, 1000) for _ in range(instances)]
    made = cls(cls.Config(**SERVERS[policy], **config))  # type: ignore[call-arg]
    record = simulate(trace, made, specs, Settings(router=router, router_seed=seed))
    assert (record.requests["status"] == "finished").all()
    waited: Floats = record.requests["prefill_start_s"] - record.requests["arrival_s"]
    return waited, record.requests["prefill_instance"].astype(np.int64)


def after_warm_up(values: Floats) -> float:
    """Return the mean without the first requests."""
    return float(values[int(WARM_UP * len(values)) :].mean())


def interval(means: Sequence[float], level: float = 0.99) -> tuple[float, float]:
    """Return the Student-t interval of the mean of independent replications."""
    count = len(means)
    middle, spread = float(np.mean(means)), float(np.std(means, ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * spread
    return middle - half, middle + half
