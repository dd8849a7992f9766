"""Real against simulated: errors per figure, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

METRICS = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2E latency"}
PERCENTILES = {"p50": 50, "p90": 90}
MS_PER_S = 1e3

REAL, SIMULATED, REPEATED, LONGER = "real", "simulated", "repeated", "longer"
LONGER_FRAC = 0.01
"""By which the steps of the simulated run `LONGER` are longer."""

ABOUT_COLUMNS = (
    "Error: simulated / real - 1. Real again: the real run repeated, against the first. "
    f"+{LONGER_FRAC:.0%}: what the simulated figure does when every step is longer by "
    f"{LONGER_FRAC:.0%} of the mean step; an error of that size is no more than an error of the "
    f"steps by {LONGER_FRAC:.0%}."
)

MEAN_BAR, TAIL_BAR, OVER_BAR = 0.03, 0.07, 0.05
"""Largest errors: mean TPOT and E2E, TTFT and p90, and all that counts at 100 %."""


@dataclass(frozen=True)
class Difference:
    """A figure of one policy at one load on both sides.

    Attributes:
        policy: its name.
        load: share of the saturation rate.
        figure: `mean_ttft_ms` and so on, `request_throughput`.
        real: on the device.
        simulated: by the simulator.
        repeated: on the device once more; NaN where that was not done.
        longer: by the simulator, every step longer by `LONGER_FRAC` of the mean step. Where a batch
            must end before it can admit, a figure can move by far more than the steps did.
    """

    policy: str
    load: float
    figure: str
    real: float
    simulated: float
    repeated: float
    longer: float

    @property
    def error(self) -> float:
        """Simulated against real, a fraction."""
        return self.simulated / self.real - 1

    @property
    def spread(self) -> float:
        """Repeated against real, a fraction: what the device itself varies by."""
        return self.repeated / self.real - 1

    @property
    def response(self) -> float:
        """What longer steps do to the simulated figure, a fraction."""
        return self.longer / self.simulated - 1

    @property
    def bar(self) -> float | None:
        """Largest error allowed, a fraction; None where the figure is only printed."""
        of_means = self.figure in ("mean_tpot_ms", "mean_e2el_ms")
        if self.load >= 1:
            return OVER_BAR if of_means or self.figure == "request_throughput" else None
        if of_means:
            return MEAN_BAR
        return TAIL_BAR if self.figure == "mean_ttft_ms" or "p90" in self.figure else None


def latencies_ms(rows: pd.DataFrame) -> pd.DataFrame:
    """Return TTFT, TPOT and E2E of finished requests, milliseconds (columns of `METRICS`)."""
    done = rows[rows["status"] == "finished"]
    e2e = done["finish_s"] - done["arrival_s"]
    ttft = done["first_token_s"] - done["arrival_s"]
    gaps = (done["emitted_tokens"] - 1).where(done["emitted_tokens"] > 1)
    columns = {"ttft": ttft, "tpot": (e2e - ttft) / gaps, "e2el": e2e}
    return pd.DataFrame(columns) * MS_PER_S


def figures(rows: pd.DataFrame) -> dict[str, float]:
    """Return the figures that are compared: `mean_ttft_ms` and so on, `request_throughput`."""
    found = {}
    latencies = latencies_ms(rows)
    for metric in METRICS:
        values = latencies[metric].dropna().to_numpy()
        found[f"mean_{metric}_ms"] = float(np.mean(values))
        for name, rank in PERCENTILES.items():
            found[f"{name}_{metric}_ms"] = float(np.percentile(values, rank))
    done = rows[rows["status"] == "finished"]
    found["request_throughput"] = len(done) / float(done["finish_s"].max())
    return found


def same_requests(real: pd.DataFrame, simulated: pd.DataFrame) -> bool:
    """Whether both sides served the same requests to the same end."""
    keys = ["request_id", "arrival_s", "input_len", "output_len", "emitted_tokens", "status"]
    return real[keys].reset_index(drop=True).equals(simulated[keys].reset_index(drop=True))


def compare(table: pd.DataFrame) -> list[Difference]:
    """Return the figures of both sides for every policy and load.

    Args:
        table: `requests.parquet` of a replay: the columns of a record and `policy load side`.
    """
    found = []
    cases = table[["policy", "load"]].drop_duplicates()
    for policy, load in zip(cases["policy"].tolist(), cases["load"].tolist(), strict=True):
        runs = table[(table["policy"] == policy) & (table["load"] == load)]
        sides = [runs[runs["side"] == side] for side in (REAL, SIMULATED, REPEATED, LONGER)]
        columns = [figures(rows) if len(rows) else {} for rows in sides]
        found += [
            Difference(policy, load, name, *(column.get(name, np.nan) for column in columns))
            for name in columns[0]
        ]
    return found


def markdown(found: Sequence[Difference], about: Sequence[str]) -> str:
    """Return `diff.md`: what was replayed, then one table per policy and load."""
    lines = ["# Real against simulated", "", *about, "", ABOUT_COLUMNS]
    case = None
    for row in found:
        if (row.policy, row.load) != case:
            case = (row.policy, row.load)
            lines += ["", f"## {row.policy} at {row.load:.0%} of the saturation rate", ""]
            head = f"| figure | real | simulated | error | bar | real again | +{LONGER_FRAC:.0%} |"
            lines += [head, "|---|" + "--:|" * 6]
        verdict = "" if row.bar is None else "met" if abs(row.error) <= row.bar else "MISSED"
        bar = "" if row.bar is None else f"{verdict}, {row.bar:.0%}"
        again, response = (
            "" if np.isnan(share) else f"{share:+.1%}" for share in (row.spread, row.response)
        )
        lines.append(
            f"| {row.figure} | {row.real:.4g} | {row.simulated:.4g} | {row.error:+.1%} "
            f"| {bar} | {again} | {response} |"
        )
    return "\n".join(lines) + "\n"
