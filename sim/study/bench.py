"""How fast the simulator is: `python -m sim.study.bench [--quick]`, or `make bench`.

Only `simulate()` is timed, in processor time, with the logs and counters on: the fastest of three,
one for the largest size. The unit is a bare SimPy timeout measured in the same process. Each case
has a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.core.simulation import simulate
from sim.core.yardstick import bare_timeout_s
from sim.study.build import build, settings
from sim.study.config import Experiment, resolve
from sim.study.files import output_folder, write_json
from sim.study.output import peak_rss_bytes
from sim.study.run import requests_of, saturation_rate

POLICIES: dict[str, dict[str, Any]] = {
    "static": {"name": "static"},
    "continuous v1": {"name": "continuous", "scheduler": "v1"},
    "continuous v0": {"name": "continuous", "scheduler": "v0"},
}
"""Measured at every load and size; the other policies at 90 % only."""

SPLIT = ("distserve", "bucketserve", "bucketserve-optimal", "deadline-batch", "splitwise")
"""Those that move KV caches."""

AHEAD = "continuous v1, ahead"
AHEAD_ENGINE = {
    "async_scheduling": True,
    "scheduler_reserve_full_isl": True,
    "null_block": True,
    "enable_prefix_caching": True,
}
"""vLLM V1 as of 0.19: steps formed one ahead, prefixes kept; at 90 % only."""

RESCUES = "ascendra, bounds"
RESCUES_SLO = {"ttft_ms": 1000, "tpot_ms": 150}
RESCUES_INSTANCES = 3
"""Alone and without bounds Ascendra moves nobody: here it does. Messages pass, no KV."""

SPECULATES = "continuous v1, speculating"
SPECULATION = {"method": "eagle", "num_speculative_tokens": 3}
"""Three drafted tokens a round, at 90 % only."""

OTHERS = (
    *("sarathi", "orca", "uellm", "smdp", "cosine", "ascendra", RESCUES, AHEAD, SPECULATES),
    *SPLIT,
)

LOADS = (0.5, 0.9, 1.2)
SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 4_000, 16_000)
ONCE_FROM = 1_000_000
"""Requests from which a case is run once instead of three times."""

FUSING = ((1, 0.5), (16, 0.5), (16, 0.9))
"""(instances, load) at which fused and single steps are compared."""

TIMEOUT_BARS = {"static": 8, "continuous v1": 22, "continuous v0": 22}
OTHER_BAR, SPLIT_BAR, SPECULATIVE_BAR = 30, 40, 60
"""Bare SimPy timeouts a request at 90 % of saturation, at most."""

MAX_CPU_S, MAX_RSS_MB, MAX_OVERLOAD, MIN_FUSING = 30.0, 1000.0, 1.5, 2.0
OTHER_MAX_RSS_MB, AHEAD_MAX_RSS_MB = 2000.0, 1500.0
"""Peak memory of a run of the largest size, at most, and its time for the first policies."""

CLUSTER = {"gpu": "a100-80gb", "model": "opt-13b"}
MAX_MODEL_LEN = 2048
US_PER_S = 1e6

Case = dict[str, Any]


def main() -> int:
    """Run the benchmark; print a table and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m sim.study.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--out", type=Path, default=Path("results/out/bench.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(json.loads(options.case))))
        return 0
    output_folder(options.out.parent)
    found = benchmark(QUICK_SIZES if options.quick else SIZES)
    found["bars"] = bars(found)
    write_json(options.out, found)
    _print(found)
    print(f"wrote {options.out}")
    return 0


def benchmark(sizes: Sequence[int]) -> dict[str, Any]:
    """Return all measurements."""
    rates = {
        label: saturation_rate(experiment({"policy": label, "load": 1.0, "n": 1, "rate": 1.0}))
        for label in (*POLICIES, *OTHERS)
    }
    cases = []
    for case in _cases(sizes, rates):
        print(f"{case['policy']}, load {case['load']:g}, {case['n']:,} requests", file=sys.stderr)
        cases.append(_measured_apart(case))
    fusing = [
        _fusing(
            {"policy": label, "load": load, "n": sizes[0], "rate": rates[label], "instances": n}
        )
        for label in POLICIES
        for n, load in FUSING
    ]
    return {
        "machine": platform.machine(),
        "processor": platform.processor(),
        "python": platform.python_version(),
        "cluster": CLUSTER,
        "saturation_per_s": rates,
        "cases": cases,
        "growth_exponents": _growth(cases),
        "fusing": fusing,
    }


def bars(found: dict[str, Any]) -> list[Case]:
    """Hold the measurements against the project's bars: line, figure, whether it is met."""
    rows: list[Case] = []
    for label in dict.fromkeys(c["policy"] for c in found["cases"]):
        rows += _policy_bars(label, [c for c in found["cases"] if c["policy"] == label])
    for growth in found["growth_exponents"]:
        if growth["load"] == LOADS[1]:
            exponent = growth["exponent"]
            line = f"{growth['policy']} at 90 %: growth exponent in 0.95-1.05"
            rows.append(_bar(line, f"{exponent:.3f}", 0.95 <= exponent <= 1.05))
    for case in found["fusing"]:
        if case["load"] == LOADS[0]:
            line = f"fusing, {case['policy']}, {case['instances']} instances at 50 %: ratio >= 2"
            rows.append(_bar(line, f"{case['ratio']:.2f}", case["ratio"] >= MIN_FUSING))
    return rows


def _policy_bars(label: str, cases: list[Case]) -> list[Case]:
    moves = label in (*SPLIT, AHEAD, RESCUES)
    limit = TIMEOUT_BARS.get(label, SPLIT_BAR if moves else OTHER_BAR)
    if label == SPECULATES:
        limit = SPECULATIVE_BAR
    at_90, over = ([c for c in cases if c["load"] == load] for load in LOADS[1:])
    timeouts = [c["timeouts_per_request"] for c in at_90]
    shown = " / ".join(f"{t:.1f}" for t in timeouts)
    rows = [_bar(f"{label} at 90 %: timeouts a request <= {limit}", shown, max(timeouts) <= limit)]
    largest = at_90[-1]
    size, mb = f"{largest['n']:,} requests", largest["peak_rss_bytes"] / 1e6
    if largest["n"] >= ONCE_FROM:
        within = mb < (AHEAD_MAX_RSS_MB if label == AHEAD else OTHER_MAX_RSS_MB)
        if label in TIMEOUT_BARS:
            within = largest["cpu_s"] < MAX_CPU_S and mb < MAX_RSS_MB
        rows.append(
            _bar(f"{label} at 90 %: {size}", f"{largest['cpu_s']:.1f} s CPU, {mb:,.0f} MB", within)
        )
    if label in SPLIT:
        events = max(c["events_per_request"] for c in at_90)
        rows.append(_bar(f"{label}: events a request <= 8", f"{events:.1f}", events <= 8))
    if over:
        pairs = zip(over, at_90, strict=True)
        slower = max(a["us_per_request"] / b["us_per_request"] for a, b in pairs)
        line = f"{label} at 120 %: <= 1.5 x the 90 % run"
        rows.append(_bar(line, f"{slower:.2f}", slower <= MAX_OVERLOAD))
    return rows


def _bar(line: str, figure: str, met: bool) -> Case:
    return {"line": line, "figure": figure, "met": met}


def experiment(case: Case) -> Experiment:
    """Return the experiment of a case."""
    instances, label = case.get("instances", 1), str(case["policy"])
    engine = AHEAD_ENGINE if label == AHEAD else {}
    plain = {AHEAD: "continuous v1", SPECULATES: "continuous v1", RESCUES: "ascendra"}
    name = plain.get(label, label)
    return resolve(
        {
            "cluster": {**CLUSTER, "count": instances * (2 if label in SPLIT else 1)},
            "policy": POLICIES.get(name, {"name": name}),
            "workload": {
                "source": "sharegpt",
                "num_requests": case["n"],
                "max_model_len": MAX_MODEL_LEN,
                "arrivals": {
                    "process": "poisson",
                    "rate": case["rate"] * case["load"] * instances,
                },
            },
            "slo": RESCUES_SLO if label == RESCUES else {},
            "engine": {"fuse_steps": case.get("fuse", True), **engine},
            **({"speculative": SPECULATION} if label == SPECULATES else {}),
        },
        "benchmark",
    )


def measure(case: Case) -> Case:
    """Time one case in this process."""
    chosen = experiment(case)
    trace = requests_of(chosen, 0)
    unit_s = bare_timeout_s()
    seconds = []
    for _ in range(1 if case["n"] >= ONCE_FROM else 3):
        setup = build(chosen, chosen.policies[0])
        began = time.process_time()
        record = simulate(
            trace, setup.policy, setup.specs, settings(chosen, setup.policy, trace, 0)
        )
        seconds.append(time.process_time() - began)
    unit_s = min(unit_s, bare_timeout_s())
    n, best = case["n"], min(seconds)
    return case | {
        "cpu_s": best,
        "requests_per_cpu_s": n / best,
        "us_per_request": best / n * US_PER_S,
        "timeout_us": unit_s * US_PER_S,
        "timeouts_per_request": best / n / unit_s,
        **{f"{key}_per_request": count / n for key, count in record.events.items()},
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _cases(sizes: Sequence[int], rates: dict[str, float]) -> Iterator[Case]:
    for label in POLICIES:
        for load in LOADS:
            for n in sizes:
                yield {"policy": label, "load": load, "n": n, "rate": rates[label]}
    for label in OTHERS:
        for n in sizes:
            case = {"policy": label, "load": LOADS[1], "n": n, "rate": rates[label]}
            yield case | ({"instances": RESCUES_INSTANCES} if label == RESCUES else {})


def _measured_apart(case: Case) -> Case:
    """Time a case in a process of its own."""
    command = [sys.executable, "-m", "sim.study.bench", "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmark case {case} failed: {done.stderr.splitlines()[-1]}")
    measured: Case = json.loads(done.stdout)
    return measured


def _fusing(case: Case) -> Case:
    """Compare fused with single steps."""
    fused, single = (_measured_apart(case | {"fuse": fuse}) for fuse in (True, False))
    return case | {
        "fused_us_per_request": fused["us_per_request"],
        "single_us_per_request": single["us_per_request"],
        "ratio": single["us_per_request"] / fused["us_per_request"],
    }


def _growth(cases: Sequence[Case]) -> list[Case]:
    """Fit time ~ n**exponent for each policy and load."""
    found = []
    for label in POLICIES:
        for load in LOADS:
            mine = [c for c in cases if c["policy"] == label and c["load"] == load]
            sizes, seconds = ([c[key] for c in mine] for key in ("n", "cpu_s"))
            exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
            found.append({"policy": label, "load": load, "exponent": exponent})
    return found


def _print(found: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=140, highlight=False)
    columns = ("policy", "load", "requests", "req/CPU s", "us/req", "timeouts/req", "events/req",
               "plans/req", "spans/req", "peak MB")  # fmt: skip
    table = Table(columns[0], box=SIMPLE_HEAD)
    for name in columns[1:]:
        table.add_column(name, justify="right")
    for c in found["cases"]:
        table.add_row(
            c["policy"],
            f"{c['load']:.0%}",
            f"{c['n']:,}",
            f"{c['requests_per_cpu_s']:,.0f}",
            f"{c['us_per_request']:.2f}",
            f"{c['timeouts_per_request']:.1f}",
            *[f"{c[f'{key}_per_request']:.2f}" for key in ("events", "plans", "spans")],
            f"{c['peak_rss_bytes'] / 1e6:,.0f}",
        )
    console.print(table)
    for row in found["growth_exponents"]:
        print(f"growth {row['policy']} at {row['load']:.0%}: n^{row['exponent']:.3f}")
    for row in found["fusing"]:
        where = f"{row['policy']}, {row['instances']} instances at {row['load']:.0%}"
        print(f"single steps / fused, {where}: {row['ratio']:.1f}")
    for row in found["bars"]:
        print(f"{'met' if row['met'] else 'MISSED':6}  {row['line']}: {row['figure']}")


if __name__ == "__main__":
    sys.exit(main())
