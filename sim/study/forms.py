"""The same runs in every form of the core: `python -m sim.study.forms`, part of `make bench`.

Forms are measured in turns, each in processes of its own, and the fastest turn counts: on a shared
machine neighbours slow some turns, never all of one form. The unit is a bare timeout of interpreted
stock SimPy in the same process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sim.core.simulation import simulate
from sim.core.yardstick import bare_timeout_s
from sim.form import core_form
from sim.study.bench import SPLIT, experiment
from sim.study.build import build, settings
from sim.study.files import output_folder, write_json
from sim.study.output import peak_rss_bytes
from sim.study.run import requests_of, saturation_rate
from sim.types import BadInput, Policy

ROOT = Path(__file__).parent.parent.parent
SITE = Path("build/compiled/site")
"""Where `make compiled` puts the compiled packages."""

FORMS = {
    "interpreted, stock SimPy": (False, "simpy", False),
    "interpreted, fast loop": (False, "fast", False),
    "compiled core, interpreted policy, stock SimPy": (True, "simpy", True),
    "all compiled, fast loop": (True, "fast", False),
}
"""Name: (whether the core is compiled, event loop, whether the policy is a user's plain file)."""

CASES = ("continuous v1", "continuous v0", "distserve")
LOAD = 0.9
REQUESTS, ROUNDS = 10_000, 5
LARGE = 1_000_000
CALIBRATE = 50_000
"""Timeouts that the unit is measured with."""

BARS = {
    "compiled core, interpreted policy, stock SimPy": (12, 20),
    "all compiled, fast loop": (8, 12),
}
"""Bare SimPy timeouts a request, at most: without and with a transfer."""

Found = dict[str, Any]


def main() -> int:
    """Measure and print a Markdown table; write JSON."""
    parser = argparse.ArgumentParser(prog="python -m sim.study.forms", description=__doc__)
    parser.add_argument("--site", type=Path, default=SITE, help="folder of the compiled packages")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each form")
    parser.add_argument("--large", action="store_true", help="a million requests as well, once")
    parser.add_argument("--out", type=Path, default=Path("results/out/forms.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(json.loads(options.case))))
        return 0
    output_folder(options.out.parent)
    rows = measure_forms(options.site.resolve(), options.rounds, options.large)
    write_json(options.out, {"rows": rows})
    print(table(rows))
    print(f"wrote {options.out}")
    return 0


def measure_forms(site: Path, rounds: int, large: bool = False) -> list[Found]:
    """Return one row for each form that is there and each case.

    Args:
        site: folder of the compiled packages; without it only the interpreted forms are measured.
        rounds: turns of each form.
        large: measure a million requests of the first case as well, once.
    """
    there = {name: form for name, form in FORMS.items() if not form[0] or site.exists()}
    rates = {
        label: saturation_rate(experiment({"policy": label, "load": 1.0, "n": 1, "rate": 1.0}))
        for label in CASES
    }
    best: dict[tuple[str, str, int], Found] = {}
    sizes = [(label, REQUESTS) for label in CASES] * rounds
    sizes += [(CASES[0], LARGE)] if large else []
    for label, n in sizes:
        for name, (compiled, loop, interpreted) in there.items():
            case = {"policy": label, "load": LOAD, "n": n, "rate": rates[label], "form": name}
            case |= {"loop": loop, "compiled": compiled}
            case["policy_file"] = str(_file(label)) if interpreted else None
            found = _measured_apart(case, site if compiled else ROOT)
            key = (label, name, n)
            if key not in best or found["timeouts_per_request"] < _timeouts(best[key]):
                best[key] = found
    return sorted(best.values(), key=lambda r: (r["n"], CASES.index(r["policy"])))


def measure(case: Found) -> Found:
    """Time one case in this process."""
    if (core_form() == "compiled") != case["compiled"]:
        raise BadInput(f"{case['form']} is to be measured, the core is {core_form()}")
    chosen = experiment(case)
    trace = requests_of(chosen, 0)
    seconds, units = [], []
    for _ in range(3 if case["n"] <= REQUESTS else 1):
        units.append(bare_timeout_s(CALIBRATE))
        setup = build(chosen, chosen.policies[0])
        policy = setup.policy
        if case["policy_file"] is not None:
            policy = from_file(Path(case["policy_file"]))(chosen.policies[0].params)
        options = settings(chosen, policy, trace, 0)
        options.loop = case["loop"]
        began = time.process_time()
        simulate(trace, policy, setup.specs, options)
        seconds.append(time.process_time() - began)
    units.append(bare_timeout_s(CALIBRATE))
    n, best = case["n"], min(seconds)
    return case | {
        "cpu_s": best,
        "us_per_request": best / n * 1e6,
        "timeouts_per_request": best / n / min(units),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _file(label: str) -> Path:
    """Return the source of the policy of a case."""
    return ROOT / "policies" / f"{label.split()[0].replace('-', '_')}.py"


def from_file(path: Path) -> Any:
    """Return the policy class in a source file: interpreted, as a user's policy is."""
    spec = importlib.util.spec_from_file_location(f"from_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path}: no policy file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Policy) and value.name:
            return value
    raise BadInput(f"{path}: no class marked with @policy in it")


def table(rows: list[Found]) -> str:
    """Return the rows as a Markdown table; the gain is against the first form of the same case."""
    lines = [
        "| policy | requests | form | us a request | timeouts a request | gain | bar | peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        of_case = [r for r in rows if (r["policy"], r["n"]) == (row["policy"], row["n"])]
        gain = _timeouts(of_case[0]) / _timeouts(row)
        bars = BARS.get(row["form"])
        bar = "" if bars is None else f"<= {bars[row['policy'] in SPLIT]}"
        lines.append(
            f"| {row['policy']} | {row['n']:,} | {row['form']} | {row['us_per_request']:.1f} "
            f"| {_timeouts(row):.1f} | {gain:.2f} | {bar} | {row['peak_rss_bytes'] / 1e6:,.0f} MB |"
        )
    return "\n".join(lines)


def _timeouts(row: Found) -> float:
    return float(row["timeouts_per_request"])


def _measured_apart(case: Found, root: Path) -> Found:
    """Time a case in a process of its own, with the packages in `root`."""
    command = [sys.executable, "-P", "-m", "sim.study.forms", "--case", json.dumps(case)]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(f"{case['form']} failed: {done.stderr.splitlines()[-1]}")
    measured: Found = json.loads(done.stdout)
    return measured


if __name__ == "__main__":
    sys.exit(main())
