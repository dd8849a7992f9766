"""Running the points: statistics, memory, time, interruption. On a fake device and clock."""

import json
import os
import sys
from dataclasses import dataclass

import pytest

from calibrate.measure import MAX_RUNS, SAMPLES, VISIT_RUNS, measure
from calibrate.plan import MIN_RUNS, WARM_UP, Pace, Setting, plan
from calibrate.points import Limits, Point, grid
from calibrate.samples import read_samples
from sim.costs.catalogue import gpu_named, model_named
from sim.types import BadInput

LIMITS = Limits(max_length=2048, num_blocks=2048, block_size=16, step_tokens=1024, sequences=64)
POINTS = grid(LIMITS, (False, True), lambda point: 1.0)[:24]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


@dataclass(frozen=True)
class FakeTiming:
    device_ms: float
    wall_ms: float


class FakeRig:
    """A device whose steps take `step_ms` times a factor that differs by run; 3 in a spell."""

    def __init__(
        self,
        shared=True,
        step_ms=10.0,
        factors=(1.0,),
        memory_bytes=10**9,
        spell_s=(0.0, 0.0),
    ):
        self.setting = Setting(
            model_named("tiny-llama"), gpu_named("cpu"), "fp32", memory_bytes, 2048, 16
        )
        self.shared = shared
        self.step_ms = step_ms
        self.factors = factors
        self.spell_s = spell_s
        self.now_s = 0.0
        self.calls = []
        self.cleared = self.freed = 0
        self.fail = {}
        self.device = "fake"

    def clock(self):
        return self.now_s

    def about(self):
        return {"model": "tiny-llama", "device": self.device, "dtype": "fp32", "block_size": 16}

    def run(self, point):
        error = self.fail.get(point)
        if error is not None:
            raise error
        factor = self.factors[len(self.calls) % len(self.factors)]
        if self.spell_s[0] <= self.now_s < self.spell_s[1]:
            factor *= 3.0
        self.calls.append(point)
        self.now_s += self.step_ms * factor / 1e3
        return FakeTiming(self.step_ms * factor, self.step_ms * factor + 1.0)

    def clear(self):
        self.cleared += 1

    def free(self):
        assert sys.exc_info() == (None, None, None)  # an error would hold on to tensors
        self.freed += 1

    def reset_peak(self):
        pass

    def peak_bytes(self):
        return 123

    def clock_and_power(self):
        return 1500.0, None


def run(rig, folder, points=POINTS, budget_s=1000.0, **more):
    return measure(rig, points, folder, budget_s, clock=rig.clock, **more)


def rows(folder):
    found, complaints = read_samples(folder / SAMPLES)
    assert not complaints
    return found


def description(folder):
    return json.loads((folder / SAMPLES).with_suffix(".json").read_text())


# -- statistics ---------------------------------------------------------------------------------


def test_a_row_says_what_was_run(tmp_path):
    point = Point("mixed", True, ((100, 0), (50, 0)), (64, 32))
    run(FakeRig(shared=False, step_ms=200.0), tmp_path, [point])
    [row] = rows(tmp_path)
    assert row.key == point.key
    assert row.status == "ok"
    assert (row.chunks, row.new_tokens, row.quad_tokens) == (2, 200, 20000)
    assert (row.batch, row.kv_tokens, row.step_tokens) == (2, 128, 202)
    assert (row.device_ms, row.wall_ms, row.peak_bytes) == (200.0, 201.0, 123)
    assert (row.sm_clock_mhz, row.power_w) == (1500.0, None)


def test_warm_up_runs_do_not_count(tmp_path):
    """Costly points are run no more often than they must."""
    factors = (9.0,) * WARM_UP + (1.0,) * MIN_RUNS
    rig = FakeRig(shared=False, step_ms=200.0, factors=factors)
    run(rig, tmp_path, POINTS[:1])
    assert len(rig.calls) == WARM_UP + MIN_RUNS
    [row] = rows(tmp_path)
    assert row.runs == MIN_RUNS
    assert (row.device_ms, row.spread_frac) == (200.0, 0.0)


def test_cheap_points_are_run_more_often(tmp_path):
    rig = FakeRig(shared=False, step_ms=0.01)
    run(rig, tmp_path, POINTS[:1])
    assert rows(tmp_path)[0].runs == MAX_RUNS


def test_the_median_counts_on_a_gpu(tmp_path):
    rig = FakeRig(shared=False, step_ms=200.0, factors=(1.0, 2.0, 3.0))
    run(rig, tmp_path, POINTS[:1], budget_s=1e5)
    [row] = rows(tmp_path)
    assert (row.device_ms, row.wall_ms, row.fastest_ms) == (400.0, 401.0, 201.0)
    assert row.spread_frac == pytest.approx(2 * 200 / 401)


def test_a_cpu_visits_points_in_turns(tmp_path):
    """Until the time is over, or each has its most runs; every turn in another order."""
    rig = FakeRig(step_ms=200.0)
    outcome = run(rig, tmp_path, POINTS[:6])
    assert (outcome.ok, outcome.again) == (6, 6)
    assert {row.runs for row in rows(tmp_path)} == {MAX_RUNS}
    visits = rig.calls[::VISIT_RUNS]
    assert visits == rig.calls[1::VISIT_RUNS]
    turns = [visits[at : at + 6] for at in range(0, len(visits), 6)]
    assert turns[0] == POINTS[:6]
    assert all(set(turn) == set(turns[0]) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 10


@pytest.mark.parametrize("slow_s", [(0.0, 12.0), (20.0, 40.0), (5.0, 1e9)])
def test_a_slow_spell_changes_nothing_on_a_cpu(tmp_path, slow_s):
    """30 s: a fast moment that some points never see would spoil the fastest run of each."""
    outcome = run(FakeRig(step_ms=200.0, spell_s=slow_s), tmp_path, POINTS[:12], budget_s=60.0)
    assert outcome.ok == 12
    times = [row.wall_ms for row in rows(tmp_path)]
    assert max(times) <= 1.01 * min(times)
    assert len((tmp_path / SAMPLES).read_text().splitlines()) == 1 + 12


def test_points_enough_for_a_fit_come_first(tmp_path, monkeypatch):
    """A first visit takes 0.4 s: ten in the first eighth of the time, or as many as a fit needs."""
    for first_points, ok in ((1, 10), (6, 12)):
        monkeypatch.setattr("calibrate.measure.FIRST_POINTS", first_points)
        rig = FakeRig(step_ms=200.0)
        outcome = run(rig, tmp_path / str(ok), budget_s=32.0)
        assert rig.now_s <= 33.0
        assert abs(outcome.ok - ok) <= 1
        assert min(row.runs for row in rows(tmp_path / str(ok))) >= MIN_RUNS


def test_a_gpu_measures_once(tmp_path):
    rig = FakeRig(shared=False, step_ms=200.0)
    outcome = run(rig, tmp_path, POINTS[:3])
    assert outcome.again == 0
    assert len(rig.calls) == 3 * (WARM_UP + MIN_RUNS)


# -- memory -------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_marks_the_point_and_goes_on(tmp_path, error):
    rig = FakeRig(shared=False)
    rig.fail[POINTS[1]] = error
    outcome = run(rig, tmp_path, POINTS[:3])
    assert (outcome.ok, outcome.oom) == (2, 1)
    assert [row.status for row in rows(tmp_path)] == ["ok", "oom", "ok"]
    assert rows(tmp_path)[1].device_ms is None
    assert rig.cleared >= 3
    assert rig.freed == 1


def test_out_of_memory_in_a_second_measurement_keeps_the_first(tmp_path):
    class Full(FakeRig):
        def run(self, point):
            if point == POINTS[1] and self.calls.count(point) > MIN_RUNS:
                raise MemoryError
            return super().run(point)

    outcome = run(Full(step_ms=200.0), tmp_path, POINTS[:3], budget_s=60.0)
    assert (outcome.ok, outcome.oom) == (3, 0)
    assert [row.status for row in rows(tmp_path)] == ["ok"] * 3


def test_other_errors_are_not_hidden(tmp_path):
    rig = FakeRig()
    rig.fail[POINTS[1]] = RuntimeError("bad kernel")
    with pytest.raises(RuntimeError, match="bad kernel"):
        run(rig, tmp_path, POINTS[:3])
    assert len(rows(tmp_path)) == 1


def test_points_that_cannot_fit_are_refused_with_their_reason(tmp_path):
    blocks = Point("decode", False, decodes=(2000,) * 256)
    long = Point("prefill", False, ((2000, 100),))
    large = Point("prefill", True, ((1024, 0),) * 16)
    outcome = run(FakeRig(memory_bytes=200_000_000), tmp_path, [blocks, long, large, POINTS[0]])
    assert (outcome.refused, outcome.ok) == (3, 1)
    assert [row.status for row in rows(tmp_path)] == ["refused"] * 3 + ["ok"]
    assert outcome.notes == (
        "1 points refused: more KV blocks than there are",
        "1 points refused: longer than the model's longest sequence",
        "1 points refused: more memory than there is",
    )


# -- time and interruption ----------------------------------------------------------------------


def test_stops_when_the_time_is_over(tmp_path):
    """24 points of 12 runs of 200 ms are 57.6 s; the pace is learnt from the first ones."""
    rig = FakeRig(shared=False, step_ms=200.0)
    outcome = run(rig, tmp_path, budget_s=24.0)
    assert rig.now_s <= 25.0
    assert 8 <= outcome.ok <= 10
    assert outcome.ok + outcome.skipped_for_time == len(POINTS)
    assert [row.key for row in rows(tmp_path)][:4] == [point.key for point in POINTS[:4]]


def test_an_interrupted_run_goes_on_and_loses_no_finished_point(tmp_path):
    rig = FakeRig(shared=False)
    rig.fail[POINTS[5]] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(rig, tmp_path)
    before = {row.key: row for row in rows(tmp_path)}
    assert list(before) == [point.key for point in POINTS[:5]]
    assert description(tmp_path)["points"]["ok"] == 5
    later = FakeRig(shared=False)
    outcome = run(later, tmp_path)
    assert (outcome.kept, outcome.ok) == (5, len(POINTS))
    assert not set(later.calls) & set(POINTS[:5]), "nothing is measured anew"
    after = {row.key: row for row in rows(tmp_path)}
    assert {key: after[key] for key in before} == before
    assert set(after) == {point.key for point in POINTS}


class Interrupted(FakeRig):
    """Interrupted at the run of a point that comes after so many of it."""

    def __init__(self, runs, **more):
        super().__init__(**more)
        self.runs = runs

    def run(self, point):
        if point == POINTS[1] and self.calls.count(point) >= self.runs:
            raise KeyboardInterrupt
        return super().run(point)


@pytest.mark.parametrize(("runs", "kept"), [(4, 0), (MIN_RUNS, 3)])
def test_an_interrupted_cpu_keeps_points_with_runs_enough(tmp_path, runs, kept):
    """The others are there, too, for a fit; the next call measures them anew."""
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(runs, step_ms=200.0, factors=(1.0, 1.1, 1.2)), tmp_path, POINTS[:3])
    before = {row.key: row for row in rows(tmp_path)}
    assert set(before) == {point.key for point in POINTS[:3]}
    final = {key for key, row in before.items() if row.runs >= MIN_RUNS}
    assert (len(final) > 0) == (kept > 0)
    later = FakeRig(step_ms=200.0)
    outcome = run(later, tmp_path, POINTS[:4])
    assert (outcome.kept, outcome.ok) == (len(final), 4)
    assert {point.key for point in later.calls}.isdisjoint(final)
    after = {row.key: row for row in rows(tmp_path)}
    assert {key: after[key] for key in final} == {key: before[key] for key in final}
    assert all(row.runs >= MIN_RUNS for row in after.values())
    assert len((tmp_path / SAMPLES).read_text().splitlines()) == 1 + 4


def test_a_corrupt_line_is_named_and_measured_again(tmp_path):
    run(FakeRig(shared=False), tmp_path, POINTS[:3])
    path = tmp_path / SAMPLES
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:20], lines[3]]))  # and no last newline
    outcome = run(FakeRig(shared=False), tmp_path, POINTS[:3])
    assert outcome.kept == 2
    assert outcome.ok == 3
    assert f"{path}:3:" in outcome.notes[0]
    assert len(read_samples(path)[0]) == 3


def test_a_folder_of_another_device_is_refused(tmp_path):
    run(FakeRig(shared=False), tmp_path, POINTS[:1])
    rig = FakeRig(shared=False)
    rig.device = "another"
    with pytest.raises(BadInput, match="device 'fake', not 'another'; choose another --out"):
        run(rig, tmp_path, POINTS[:2])


def test_a_broken_description_is_named(tmp_path):
    run(FakeRig(shared=False), tmp_path, POINTS[:1])
    (tmp_path / SAMPLES).with_suffix(".json").write_text("{}")
    with pytest.raises(BadInput, match=r"samples\.json: not the description"):
        run(FakeRig(shared=False), tmp_path, POINTS[:2])


def test_the_description_stands_beside_the_samples(tmp_path):
    rig = FakeRig(shared=False)
    rig.fail[POINTS[1]] = MemoryError()
    run(rig, tmp_path, POINTS[:3])
    about = description(tmp_path)
    assert about["device"] == "fake"
    assert about["samples"] == SAMPLES
    assert about["started"] <= about["finished"]
    assert about["points"] == {
        "planned": 3, "ok": 2, "oom": 1, "refused": 0, "skipped_for_time": 0, "kept": 0,
        "again": 0,
    }  # fmt: skip


def test_progress_counts_points(tmp_path):
    seen = []
    run(FakeRig(shared=False), tmp_path, POINTS[:3], update=lambda *a: seen.append(a))
    assert seen == [(0, 3), (1, 3), (2, 3)]


# -- plans --------------------------------------------------------------------------------------


def test_a_plan_counts_points_minutes_and_memory():
    setting = FakeRig(memory_bytes=10**9).setting
    large = Point("prefill", True, ((1024, 0),) * 64)
    groups = {(g.phase, g.padded): g for g in plan([*POINTS, large], setting)}
    assert sum(g.points for g in groups.values()) == len(POINTS)
    assert groups["prefill", True].refused == 1
    assert all(g.minutes > 0 and g.most_bytes > 16e6 for g in groups.values())


def test_the_pace_follows_what_points_took():
    pace = Pace(FakeRig().setting)
    decode, prefill = POINTS[1], POINTS[0]
    planned_s = pace.seconds(decode)
    pace.learn(decode, 3 * planned_s)
    assert pace.seconds(decode) == pytest.approx(3 * planned_s)
    untouched_s = Pace(FakeRig().setting).seconds(prefill)
    assert pace.seconds(prefill) == pytest.approx(3 * untouched_s), "no point of its own yet"
    pace.learn(prefill, untouched_s)
    assert pace.seconds(prefill) == pytest.approx(untouched_s)
