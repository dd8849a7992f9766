"""Run the points of a grid on a device and keep what they took.

Each point is run `WARM_UP` times and then at least `MIN_RUNS` times, cheap ones more often. On a
GPU the median counts. On a CPU the fastest run counts, because other work on the machine only adds
time. Slow spells of a shared machine last longer than the runs of a point: the smallest point is
run beside every other one to tell them, and up to half of the time goes into measuring again what
was measured in one.

The rows are on the disk as points finish, so an interrupted measurement goes on where it was; what
is lost is the point under way. A point that runs out of memory is marked and the rest goes on.
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
from typing import Protocol

from calibrate.plan import MIN_RUNS, WARM_UP, Pace, Setting
from calibrate.points import Key, Point
from calibrate.runs import Timing, timed, unmeasured
from calibrate.samples import Sample, SampleWriter, read_samples
from sim.study.files import output_folder, write_json, written_aside
from sim.types import BadInput

SAMPLES = "samples.csv"
"""Name of the measurement file in its folder; `samples.json` beside it says where it comes from."""

MAX_RUNS = 40
"""Runs of a cheap point."""

CHEAP_S = 0.15
"""A point is run more than `MIN_RUNS` times while its runs took less than this, seconds."""

AGAIN_RUNS = 4
"""Least runs of a point that is measured again."""

FIRST_SHARE = 0.55
"""Share of the budget after which a CPU measures slow points again before it goes on."""

FIRST_POINTS = 32
"""Points of each path that come before any is measured again: enough for a fit."""

REFERENCE_RUNS = 4
"""Runs of the smallest point beside every other one; the fastest counts."""

MOST_ROUNDS = 4
"""How often a point is measured again: a machine may never be as fast as it once was."""

SLOW = 1.08
"""A point was measured in a slow spell if the smallest one took this much longer than at best."""

Progress = Callable[[int, int | None], None] | None


class Rig(Protocol):
    """The device, model and engine that points run on."""

    setting: Setting
    fastest_counts: bool
    """Whether the fastest run is kept (CPU) or the median (GPU)."""

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
        again: points measured a second time.
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
    if outcome.again:
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
        self.statuses: dict[Key, str] = {row.key: row.status for row in rows}
        self.kept = len(self.statuses)
        self.runs: dict[Point, list[Timing]] = {}
        self.reference_ms: dict[Point, float] = {}
        """Of each point measured: what the smallest point took beside it, at best."""
        self.speed_ms = 0.0
        """What the smallest point took last."""
        self.refusals: Counter[str] = Counter()
        self.again = 0

    def run(self, update: Progress) -> None:
        """Measure while there is time."""
        if self.rig.fastest_counts:
            paths = len({point.padded for point in self.points})
            self._measure_new(self.points[: FIRST_POINTS * paths], self.budget_s, update)
            self._measure_new(self.points, FIRST_SHARE * self.budget_s, update)
            self._measure_slow(update)
        self._measure_new(self.points, self.budget_s, update)

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

    def _measure_slow(self, update: Progress) -> None:
        """Measure points of slow spells again, the slowest first, in a few rounds at most."""
        for _ in range(MOST_ROUNDS):
            slow = self._slow()
            for seen, point in enumerate(slow):
                if update is not None:
                    update(seen, len(slow))
                if self._fits(point, self.budget_s):
                    self._measure(point)
                    self.again += 1

    def _slow(self) -> list[Point]:
        limit_ms = SLOW * min(self.reference_ms.values(), default=0.0)
        slow = [point for point, ms in self.reference_ms.items() if ms > limit_ms]
        return sorted(slow, key=lambda point: -self.reference_ms[point])

    def outcome(self, complaints: Sequence[str]) -> Outcome:
        """Return what was done."""
        statuses = Counter(self.statuses.values())
        return Outcome(
            planned=len(self.points),
            ok=statuses["ok"],
            oom=statuses["oom"],
            refused=statuses["refused"],
            skipped_for_time=sum(point.key not in self.statuses for point in self.points),
            kept=self.kept,
            again=self.again,
            seconds=self.clock() - self.started_s,
            notes=(*complaints, *(f"{n} points refused: {w}" for w, n in self.refusals.items())),
        )

    def _fits(self, point: Point, end_s: float) -> bool:
        spent_s = self.clock() - self.started_s
        return spent_s + self.pace.seconds(point, self._runs(point)) <= end_s

    def _runs(self, point: Point) -> int:
        return AGAIN_RUNS if point in self.runs else MIN_RUNS

    def _measure(self, point: Point) -> None:
        started_s, runs, ran_out = self.clock(), self._runs(point), False
        before_ms = self.speed_ms or self._reference()
        try:
            row: Sample | None = self._measured(point)
        except Exception as error:
            if not out_of_memory(error):
                raise
            row = None if point in self.runs else unmeasured(point, "oom")
            ran_out = True
        if ran_out:  # not before the error is gone: its traceback holds the tensors of the step
            self.rig.free()
        self.rig.clear()
        self.speed_ms = self._reference()
        self._note_spell(point, min(before_ms, self.speed_ms))
        self.pace.learn(point, self.clock() - started_s, runs)
        if row is not None:
            self._write(row)

    def _reference(self) -> float:
        """Return how long the smallest point takes now, milliseconds; 0 on a GPU, not run there."""
        if not self.rig.fastest_counts:
            return 0.0
        times = [self.rig.run(self.points[0]).wall_ms for _ in range(REFERENCE_RUNS)]
        self.rig.clear()
        return min(times)

    def _note_spell(self, point: Point, reference_ms: float) -> None:
        if point in self.runs:
            earlier_ms = self.reference_ms.get(point, reference_ms)
            self.reference_ms[point] = min(earlier_ms, reference_ms)

    def _measured(self, point: Point) -> Sample:
        """Run a point; its row covers its earlier runs, too."""
        rig = self.rig
        rig.reset_peak()
        with _no_collection():
            for _ in range(1 if rig.fastest_counts else WARM_UP):
                rig.run(point)
            least = self._runs(point)
            new: list[Timing] = []
            started_s = self.clock()
            while len(new) < least or (len(new) < MAX_RUNS and self.clock() - started_s < CHEAP_S):
                new.append(rig.run(point))
        sm_clock_mhz, power_w = rig.clock_and_power()
        runs = self.runs[point] = [*self.runs.get(point, ()), *new]
        return replace(
            timed(point, runs, rig.fastest_counts),
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
    """Write the file anew without the rows of the first round that a second one replaced."""
    rows, _ = read_samples(path)
    with written_aside(path) as aside, SampleWriter(aside) as writer:
        for row in rows:
            writer.append(row)
