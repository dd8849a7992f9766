"""Run the points of a grid on a device and keep what they took.

On a GPU each point is run `WARM_UP` times and then at least `MIN_RUNS` times, cheap ones more
often, and the median counts. A CPU is shared with others, and its speed changes within seconds. So
there the points are visited in turns, `VISIT_RUNS` runs at a time, until the time is over, and what
a point takes is told from how fast the machine was at each of its visits (`calibrate.speed`).

The rows are on the disk as points finish, so an interrupted measurement goes on where it was; what
is lost is the point under way, and on a CPU the points with fewer than `MIN_RUNS` runs are measured
anew. A point that runs out of memory is marked and the rest goes on.
"""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Protocol

from calibrate.plan import MIN_RUNS, WARM_UP, Pace, Setting
from calibrate.points import Key, Point
from calibrate.runs import Timing, timed, timed_by_visits, unmeasured
from calibrate.samples import Sample, SampleWriter, read_samples
from sim.study.files import output_folder, write_json, written_aside
from sim.types import BadInput

SAMPLES = "samples.csv"
"""Name of the measurement file in its folder; `samples.json` beside it says where it comes from."""

MAX_RUNS = 40
"""Runs of a cheap point."""

CHEAP_S = 0.15
"""A point is run more than `MIN_RUNS` times while its runs took less than this, seconds."""

VISIT_RUNS = 2
"""Runs of a visit on a CPU; the faster one counts, for the first may find the caches cold."""

FIRST_SHARE = 1 / 8
"""Share of the budget in which a CPU visits points for the first time. The rest of it is for about
seven visits more: a single one may be a tenth off, the median of ten is within a few percent."""

FIRST_POINTS = 32
"""Points of each path that are visited in any case: enough for a fit."""

Progress = Callable[[int, int | None], None] | None


class Rig(Protocol):
    """The device, model and engine that points run on."""

    setting: Setting
    shared: bool
    """Whether others change the device's speed (CPU): points are visited in turns."""

    def about(self) -> dict[str, object]:
        """Return what the JSON beside the samples says of device, versions, model and engine."""

    def run(self, point: Point) -> Timing:
        """Run one forward pass of a point, its caches as the point says."""

    def clear(self) -> None:
        """Give back the pages of the last point."""

    def free(self) -> None:
        """Give the device back the memory that is kept for reuse."""

    def reset_peak(self) -> None:
        """Start to watch the peak of memory."""

    def peak_bytes(self) -> int | None:
        """Return the peak since then, where it is known."""

    def clock_and_power(self) -> tuple[float | None, float | None]:
        """Return the SM clock (MHz) and the power (W), where they are known."""


@dataclass(frozen=True)
class Outcome:
    """What a call of `measure` did.

    Attributes:
        planned: points of the grid.
        ok: points measured, earlier calls included.
        oom: points that ran out of memory, likewise.
        refused: points that cannot fit, likewise.
        skipped_for_time: points there was no time for.
        kept: points that earlier calls had finished.
        again: points visited more than once.
        seconds: duration of this call.
        notes: what a user should know.
    """

    planned: int
    ok: int
    oom: int
    refused: int
    skipped_for_time: int
    kept: int
    again: int
    seconds: float
    notes: tuple[str, ...]


def measure(
    rig: Rig,
    points: Sequence[Point],
    folder: Path,
    budget_s: float,
    update: Progress = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measure what is not yet measured of `points`, best first, until the time is over.

    Args:
        rig: what they run on.
        points: the grid, most informative first.
        folder: holds `samples.csv` and `samples.json`; goes on where an earlier call stopped.
        budget_s: seconds this call may take.
        update: called with (points seen, of all).
        clock: seconds, for tests.

    Raises:
        BadInput: the folder holds measurements of something else.
    """
    path = output_folder(folder) / SAMPLES
    beside = path.with_suffix(".json")
    about = rig.about()
    _check_same(beside, about)
    about |= {"samples": path.name, "started": _now(), "budget_minutes": budget_s / 60}
    rows, complaints = read_samples(path) if path.exists() else ([], [])
    with SampleWriter(path) as writer:
        campaign = _Campaign(rig, points, rows, writer, clock, budget_s)
        write_json(beside, about | _progress(campaign.outcome(complaints), None))
        try:
            campaign.run(update)
        finally:
            rig.clear()
            outcome = campaign.outcome(complaints)
            write_json(beside, about | _progress(outcome, _now()))
    if outcome.again or len(rows) > len(campaign.kept):
        _drop_superseded(path)
    return outcome


class _Campaign:
    """One call of `measure`: its clock, its rows and what is left to do."""

    def __init__(
        self,
        rig: Rig,
        points: Sequence[Point],
        rows: Sequence[Sample],
        writer: SampleWriter,
        clock: Callable[[], float],
        budget_s: float,
    ) -> None:
        self.rig = rig
        self.points = points
        self.writer = writer
        self.clock = clock
        self.started_s = clock()
        self.budget_s = budget_s
        self.pace = Pace(rig.setting)
        self.kept = {row.key: row.status for row in rows if self._is_final(row)}
        self.statuses: dict[Key, str] = dict(self.kept)
        self.visits: list[tuple[Point, list[Timing]]] = []
        """On a CPU, in order of time."""
        self.peaks: dict[Point, int | None] = {}
        self.refusals: Counter[str] = Counter()
        self.again = 0

    def run(self, update: Progress) -> None:
        """Measure while there is time."""
        if not self.rig.shared:
            self._measure_new(self.points, self.budget_s, update)
            return
        try:
            paths = len({point.padded for point in self.points})
            self._measure_new(self.points[: FIRST_POINTS * paths], self.budget_s, update)
            self._measure_new(self.points, FIRST_SHARE * self.budget_s, update)
            self._visit_again(update)
        finally:
            self._write_visited()

    def _is_final(self, row: Sample) -> bool:
        """Whether a row of an earlier call stays as it is."""
        return row.status != "ok" or not self.rig.shared or row.runs >= MIN_RUNS

    def _measure_new(self, points: Sequence[Point], end_s: float, update: Progress) -> None:
        """Measure those of `points` that are new, until `end_s`."""
        for seen, point in enumerate(points):
            if update is not None:
                update(seen, len(self.points))
            if point.key in self.statuses:
                continue
            reason = self.rig.setting.refusal(point)
            if reason is not None:
                self.refusals[reason] += 1
                self._write(unmeasured(point, "refused"))
            elif self._fits(point, end_s):
                self._measure(point)

    def _visit_again(self, update: Progress) -> None:
        """Visit the points of this call in turns, each time in another order, while there is time.

        Another order, so that a point does not always follow the same one.
        """
        visited = [point for point, _ in self.visits]
        for turn in range(1, MAX_RUNS // VISIT_RUNS):
            Random(turn).shuffle(visited)
            for seen, point in enumerate(visited):
                if update is not None:
                    update(seen, len(visited))
                if self._fits(point, self.budget_s):
                    self._measure(point)
                    self.again += turn == 1

    def outcome(self, complaints: Sequence[str]) -> Outcome:
        """Return what was done."""
        statuses = Counter(self.statuses.values())
        return Outcome(
            planned=len(self.points),
            ok=statuses["ok"],
            oom=statuses["oom"],
            refused=statuses["refused"],
            skipped_for_time=sum(point.key not in self.statuses for point in self.points),
            kept=len(self.kept),
            again=self.again,
            seconds=self.clock() - self.started_s,
            notes=(*complaints, *(f"{n} points refused: {w}" for w, n in self.refusals.items())),
        )

    def _fits(self, point: Point, end_s: float) -> bool:
        spent_s = self.clock() - self.started_s
        return spent_s + self.pace.seconds(point, self._least_runs) <= end_s

    @property
    def _least_runs(self) -> int:
        return VISIT_RUNS if self.rig.shared else MIN_RUNS

    def _measure(self, point: Point) -> None:
        started_s, ran_out = self.clock(), False
        try:
            row: Sample | None = self._visited(point) if self.rig.shared else self._measured(point)
        except Exception as error:
            if not out_of_memory(error):
                raise
            row = None if point.key in self.statuses else unmeasured(point, "oom")
            ran_out = True
        if ran_out:  # not before the error is gone: its traceback holds the tensors of the step
            self.rig.free()
        self.rig.clear()
        self.pace.learn(point, self.clock() - started_s, self._least_runs)
        if row is not None:
            self._write(row)

    def _visited(self, point: Point) -> Sample | None:
        """Run a point a few times; return its row at the first visit, which later ones improve."""
        self.rig.reset_peak()
        with _no_collection():
            runs = [self.rig.run(point) for _ in range(VISIT_RUNS)]
        self.peaks.setdefault(point, self.rig.peak_bytes())
        self.visits.append((point, runs))
        if point.key in self.statuses:
            return None
        return replace(timed_by_visits([(point, runs)])[point], peak_bytes=self.peaks[point])

    def _write_visited(self) -> None:
        """Write the rows of all points that were visited, at the speed the machine mostly had."""
        for point, row in timed_by_visits(self.visits).items():
            self._write(replace(row, peak_bytes=self.peaks[point]))

    def _measured(self, point: Point) -> Sample:
        """Run a point on a GPU and return its row."""
        rig = self.rig
        rig.reset_peak()
        with _no_collection():
            for _ in range(WARM_UP):
                rig.run(point)
            runs: list[Timing] = []
            started_s = self.clock()
            while len(runs) < MIN_RUNS or (
                len(runs) < MAX_RUNS and self.clock() - started_s < CHEAP_S
            ):
                runs.append(rig.run(point))
        sm_clock_mhz, power_w = rig.clock_and_power()
        return replace(
            timed(point, runs),
            peak_bytes=rig.peak_bytes(),
            sm_clock_mhz=sm_clock_mhz,
            power_w=power_w,
        )

    def _write(self, row: Sample) -> None:
        self.writer.append(row)
        self.statuses[row.key] = row.status


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, or KV blocks, ran out."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's; this file does not import torch
        or "can't allocate memory" in str(error)
        or "out of memory" in str(error)  # CUDA's own, as where a graph is made
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed runs."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _check_same(path: Path, about: Mapping[str, object]) -> None:
    """Refuse to mix measurements of two models or devices in one file."""
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in SAME if before[key] != about[key]]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: not the description of a measurement; remove it") from None
    if changed:
        key = changed[0]
        raise BadInput(
            f"{path.parent}: holds measurements with {key} '{before[key]}', not '{about[key]}'; "
            "choose another --out"
        )


SAME = ("model", "device", "dtype", "block_size")
"""What must be equal for a measurement to go on in a folder."""


def _progress(outcome: Outcome, finished: str | None) -> dict[str, object]:
    """Return what the description says of the points; `finished` is None while it runs."""
    return {
        "finished": finished,
        "seconds": round(outcome.seconds, 1),
        "warm_up_runs": WARM_UP,
        "least_runs": MIN_RUNS,
        "points": {k: v for k, v in asdict(outcome).items() if k not in ("seconds", "notes")},
        "notes": list(outcome.notes),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _drop_superseded(path: Path) -> None:
    """Write the file anew without the rows that later ones replaced."""
    rows, _ = read_samples(path)
    with written_aside(path) as aside, SampleWriter(aside) as writer:
        for row in rows:
            writer.append(row)
