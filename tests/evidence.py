"""Run the proofs and write results/reference/evidence.md (`make evidence`).

Each test that proves a line of the project's promises records it with
`record_property("evidence", "line: figure")`; this script runs them all, the benchmark and the
mutations, and writes one table. What was skipped is written as "not run", never as passed.

Stages can be run one at a time (`python tests/evidence.py benchmark`); the page then keeps what the
others found last and says at which revision each of them ran.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "results" / "reference" / "evidence.md"
KEPT = ROOT / "results" / "out" / "evidence"
"""What each stage found last."""

Row = tuple[str, str, str, str]


def main() -> int:
    """Run the stages named, or all; return 1 if anything failed. A cut loses one stage."""
    chosen = sys.argv[1:] or list(STAGES)
    unknown = [name for name in chosen if name not in STAGES]
    if unknown:
        raise SystemExit(f"no stage {unknown[0]!r}; valid: {', '.join(STAGES)}")
    KEPT.mkdir(parents=True, exist_ok=True)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        found = {"revision": _revision(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
        rows = STAGES[name]()
        (KEPT / f"{name}.json").write_text(json.dumps({**found, "rows": rows}))
        stages = _kept()
        TARGET.write_text(_page(stages))
    rows = [row for stage in stages.values() for row in stage["rows"]]
    failed = sum(row[3] == "FAILED" for row in rows)
    print(f"wrote {TARGET.relative_to(ROOT)}: {len(rows)} lines, {failed} failed")
    return 1 if failed else 0


def _kept() -> dict[str, dict[str, Any]]:
    """Return what every stage found last."""
    stages = {}
    for name in STAGES:
        path = KEPT / f"{name}.json"
        never = {"revision": "none", "date": "never", "rows": []}
        never["rows"] = [(f"the {name} stage", "make evidence", "", "not run")]
        stages[name] = json.loads(path.read_text()) if path.exists() else never
    return stages


def _tests() -> list[Row]:
    return _selected("not gpu and not alone", "-n", "2", "--dist", "worksteal")


def _timing() -> list[Row]:
    return _selected("alone")


def _selected(marks: str, *options: str) -> list[Row]:
    """Run tests; return whether all passed, and what they recorded."""
    command = [sys.executable, "-m", "pytest", "-m", marks, *options]
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "evidence.jsonl"
        status = subprocess.run([*command, "--evidence", str(record)], cwd=ROOT, check=False)
        lines = record.read_text().splitlines() if record.exists() else []
    shown = f'pytest -m "{marks}"'
    outcome = "passed" if status.returncode == 0 else "FAILED"
    rows = [_test_row(json.loads(line), shown) for line in lines]
    return [("all of these tests", shown, f"exit status {status.returncode}", outcome), *rows]


def _test_row(entry: dict[str, str], command: str) -> Row:
    line, _, figure = entry["evidence"].partition(": ")
    outcome = {"passed": "passed", "failed": "FAILED", "skipped": "not run"}[entry["outcome"]]
    return (line, f"{command} {entry['test']}", figure, outcome)


def _benchmark() -> list[Row]:
    subprocess.run([sys.executable, "-m", "sim.study.bench"], cwd=ROOT, check=True)
    report = json.loads((ROOT / "results" / "out" / "bench.json").read_text())
    rows: list[Row] = []
    for bar in report["bars"]:
        outcome = "passed" if bar["met"] else "FAILED"
        rows.append((bar["line"], "make bench", bar["figure"], outcome))
    return rows


def _mutations() -> list[Row]:
    command = [sys.executable, "tests/mutate.py"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no output"
    outcome = "passed" if done.returncode == 0 else "FAILED"
    return [("every deliberate bug is caught", "make mutate", last, outcome)]


def _revision() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _page(stages: dict[str, dict[str, Any]]) -> str:
    head = (
        f"# Evidence\n\nWritten by `make evidence`, Python {platform.python_version()}, "
        f"{platform.machine()}, a shared machine with 2 cores: ratios hold, absolute times vary "
        "by some 10 %.\n"
    )
    for name, stage in stages.items():
        head += f"\n## {name}, {stage['date']}, revision {stage['revision']}\n\n"
        head += "| line | command | figure | outcome |\n|---|---|---|---|\n"
        for row in stage["rows"]:
            head += f"| {' | '.join(_escaped(cell) for cell in row)} |\n"
    return head


STAGES = {
    "benchmark": _benchmark,
    "timing": _timing,
    "tests": _tests,
    "mutations": _mutations,
}


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
