"""Run the proofs and write results/reference/evidence.md (`make evidence`).

Each test that proves a line of the project's promises records it with
`record_property("evidence", "line: figure")`; this script runs them all, the benchmark and the
mutations, and writes one table. What was skipped is written as "not run", never as passed.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "results" / "reference" / "evidence.md"
Row = tuple[str, str, str, str]


def main() -> int:
    """Run everything; return 1 if anything failed. A stage that is cut loses only itself."""
    stages = {"benchmark": _benchmark, "mutations": _mutations, "tests": _tests}
    done: dict[str, list[Row]] = {
        name: [(f"the {name} stage", "make evidence", "", "not run")] for name in stages
    }
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    for name, stage in stages.items():
        done[name] = stage()
        rows = [row for found in done.values() for row in found]
        TARGET.write_text(_page(rows))
    failed = sum(row[3] == "FAILED" for row in rows)
    print(f"wrote {TARGET.relative_to(ROOT)}: {len(rows)} lines, {failed} failed")
    return 1 if failed else 0


def _tests() -> list[Row]:
    command = [sys.executable, "-m", "pytest", "-m", "not gpu"]
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "evidence.jsonl"
        status = subprocess.run([*command, "--evidence", str(record)], cwd=ROOT, check=False)
        lines = record.read_text().splitlines() if record.exists() else []
    shown = 'pytest -m "not gpu"'
    rows = [_test_row(json.loads(line), shown) for line in lines]
    outcome = "passed" if status.returncode == 0 else "FAILED"
    return [("all tests, fast and slow", shown, f"exit status {status.returncode}", outcome), *rows]


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


def _page(rows: list[Row]) -> str:
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    head = (
        "# Evidence\n\n"
        f"Written by `make evidence` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at revision "
        f"{revision}, Python {platform.python_version()}, {platform.machine()}, a shared machine "
        "with 2 cores: ratios hold, absolute times vary by some 10 %.\n\n"
        "| line | command | figure | outcome |\n|---|---|---|---|\n"
    )
    body = "".join(f"| {' | '.join(_escaped(cell) for cell in row)} |\n" for row in rows)
    return head + body


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
