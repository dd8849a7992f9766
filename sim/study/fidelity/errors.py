"""Simulated against measured: figures, load bands, errors of single requests.

* A figure's error is simulated / measured - 1.
* MAPE: mean over requests of |simulated / measured - 1|; only where arrivals were measured.
* Load band of a request: how many others were in the system when it arrived, in the measured run
  (`in_flight`). Edges 4, 16, 64, 256 and the seats of the engine: from there on no seat was free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.study.config import SloBounds
from sim.study.fidelity.measured import METRICS, Floats, in_flight
from sim.study.fidelity.replay import Replayed

Bools = NDArray[np.bool_]

STATISTICS = ("mean", "p50", "p90", "p99")
BAND_EDGES = (4, 16, 64, 256)
ALL = "all"
FEW = 10
"""Requests below which a band has no percentiles worth a line."""


@dataclass(frozen=True)
class Figure:
    """One figure on both sides.

    Attributes:
        band: load band, `all` for the run.
        metric: `ttft`, `tpot`, `e2el`, `throughput`, `slo`.
        statistic: `mean`, `p50`, `p90`, `p99`, or what is counted.
        unit: of both values.
        requests: that it is of.
        measured: in the real run.
        simulated: by the simulator.
        mape: per-request error, a fraction (of `mean` rows with paired requests), else NaN.
    """

    band: str
    metric: str
    statistic: str
    unit: str
    requests: int
    measured: float
    simulated: float
    mape: float = float("nan")

    @property
    def error(self) -> float:
        """Simulated against measured: a fraction; of shares the difference."""
        if self.unit == "share":
            return self.simulated - self.measured
        return self.simulated / self.measured - 1 if self.measured else float("nan")

    def row(self) -> dict[str, Any]:
        """Return the figure as a row of a table."""
        return {**asdict(self), "error": self.error}


@dataclass(frozen=True)
class Band:
    """Requests that met a similar load.

    Attributes:
        name: what tables call it.
        members: which requests, shape (n,).
    """

    name: str
    members: Bools


def figures(replayed: Replayed) -> list[Figure]:
    """Return every figure that is compared: of the run, then of each band."""
    measured = replayed.measured
    served = ~np.isnan(replayed.latency_ms["e2el"])
    found = _latencies(replayed, ALL, served)
    found += _throughput(replayed, served)
    found += _attainment(replayed, served)
    if measured.paired:
        for band in bands(replayed):
            found += _latencies(replayed, band.name, served & band.members)
    return found


def bands(replayed: Replayed) -> list[Band]:
    """Return the load bands that hold requests; their names say the bounds."""
    measured = replayed.measured
    others = in_flight(measured.arrival_s, measured.latency_ms["e2el"])
    seats = seats_of(replayed)
    edges = sorted({0, *BAND_EDGES, *([seats] if seats else [])})
    found = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        members = others >= low
        if high is not None:
            members &= others < high
        if members.any():
            name = f"{low}-{high - 1}" if high is not None else f"{low} or more"
            taken = seats is not None and low >= seats
            found.append(Band(f"{name} in flight" + (", no free seat" if taken else ""), members))
    return found


def seats_of(replayed: Replayed) -> int | None:
    """Return how many requests the engine runs at a time, over all instances; None: no limit."""
    limit = getattr(replayed.experiment.policies[0].params, "max_num_seqs", None)
    return None if limit is None else limit * len(replayed.setup.instances)


def of(found: Sequence[Figure], metric: str, statistic: str, band: str = ALL) -> Figure:
    """Return one figure."""
    return next(f for f in found if (f.band, f.metric, f.statistic) == (band, metric, statistic))


def mape(simulated: Floats, measured: Floats) -> float:
    """Return the mean of |simulated / measured - 1| over requests where both are known."""
    known = ~(np.isnan(simulated) | np.isnan(measured)) & (measured > 0)
    if not known.any():
        return float("nan")
    return float(np.abs(simulated[known] / measured[known] - 1).mean())


def _latencies(replayed: Replayed, band: str, members: Bools) -> list[Figure]:
    found = []
    for metric in METRICS:
        real = replayed.measured.latency_ms[metric][members]
        mine = replayed.latency_ms[metric][members]
        known = ~(np.isnan(real) | np.isnan(mine))
        if not known.any():
            continue
        count = int(known.sum())
        single = mape(mine, real) if replayed.measured.paired else float("nan")
        for statistic in STATISTICS:
            if statistic != "mean" and count < FEW:
                continue
            pair = _statistic(statistic, real[known]), _statistic(statistic, mine[known])
            error = single if statistic == "mean" else float("nan")
            found.append(Figure(band, metric, statistic, "ms", count, *pair, error))
    return found


def _statistic(name: str, values: Floats) -> float:
    if name == "mean":
        return float(values.mean())
    return float(np.percentile(values, float(name[1:])))


def _throughput(replayed: Replayed, served: Bools) -> list[Figure]:
    """Return completions and output tokens per second of the whole run."""
    tokens = replayed.measured.trace.output_len
    n = len(tokens)
    real_s, mine_s = replayed.measured.duration_s, replayed.duration_s
    done, out = int(served.sum()), int(tokens[served].sum())
    return [
        Figure(ALL, "throughput", "requests", "req/s", n, n / real_s, done / mine_s),
        Figure(
            ALL, "throughput", "output tokens", "tok/s", n, int(tokens.sum()) / real_s, out / mine_s
        ),
    ]


def _attainment(replayed: Replayed, served: Bools) -> list[Figure]:
    """Return the shares of requests that meet the bounds: each alone, and all together."""
    bounds = replayed.experiment.slo.bounds()
    n = len(served)
    met = {
        side: _met(bounds, latency)
        for side, latency in (("r", replayed.measured.latency_ms), ("m", replayed.latency_ms))
    }
    return [
        Figure(
            ALL, "slo", name, "share", n, float(met["r"][name].mean()), float(met["m"][name].mean())
        )
        for name in met["r"]
    ]


def _met(bounds: SloBounds, latency_ms: Mapping[str, Floats]) -> dict[str, Bools]:
    """Return who meets each bound that is set; a TPOT that is not defined does."""
    served = ~np.isnan(latency_ms["e2el"])
    keys = {"ttft": bounds.ttft_ms, "tpot": bounds.tpot_ms, "e2el": bounds.e2e_ms}
    found = {
        METRICS[key]: served & ~(latency_ms[key] > bound)
        for key, bound in keys.items()
        if bound is not None
    }
    if found:
        found[ALL] = np.logical_and.reduce(list(found.values()))
    return found
