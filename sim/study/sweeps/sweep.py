"""Sweeps: many points of one experiment, each task's result a shard of its own.

The folder of a sweep: `config.yaml` (as given, with its `sweep` section), `sweep.json` (the points
and the tasks of each), `shards/` (`shards.py`), `failed.json` and `timing.json`. A task has
a shard, or an entry in `failed.json`, or was not reached; another start with `resume` runs the last
two only.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sim import __version__
from sim.study.build import build
from sim.study.config import ABOUT, Experiment, Origins, overridden, read_config, resolve
from sim.study.files import output_folder, write_json, write_text
from sim.study.output import peak_rss_bytes
from sim.study.policy_facts import own_file
from sim.study.provenance import git_revision
from sim.study.run import check_workload
from sim.study.sweeps.backends import Backend
from sim.study.sweeps.config import SECTION, SweepConfig, sweep_config
from sim.study.sweeps.points import POLICY, POLICY_NAME, Point, points
from sim.study.sweeps.shards import (
    FOLDER,
    CorruptShard,
    Task,
    new_task,
    read_shard,
    set_aside,
    write_shard,
)
from sim.study.sweeps.task import ENGINE, OWN, TOKEN, Job, Outcome, file_hash, packages, shard_of
from sim.study.validation import shown
from sim.types import BadInput, SimulationError
from workloads.sources import is_file

MANIFEST = "sweep.json"
FAILED = "failed.json"
TIMING = "timing.json"
FIRST_AGAIN_S = 5.0
"""A first task that takes less is timed a second time, when everything is loaded."""

Progress = Callable[[int, int], None]
"""Called with tasks done and tasks in all."""


@dataclass(frozen=True)
class SweepPoint:
    """One point, its policy and its tasks.

    Attributes:
        label: of the policy.
        values: what it sets, by config key.
        cell: number of its policy and grid point.
        varied: the keys whose ranges apply to it.
        tasks: names of its tasks, one a replication.
        notes: what a reader must be told about its config.
    """

    label: str
    values: Mapping[str, Any]
    cell: int
    varied: tuple[str, ...]
    tasks: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A sweep whose every point was validated.

    Attributes:
        source: where the config comes from.
        data: the config with its `sweep` section, as plain data.
        config: that section.
        indices: whether it ends with Sobol indices.
        points: in their order.
        tasks: by name, in their order; points that come to the same share theirs.
    """

    source: str
    data: dict[str, Any]
    config: SweepConfig
    indices: bool
    points: tuple[SweepPoint, ...]
    tasks: dict[str, Task]


@dataclass
class Progressed:
    """How far a sweep came.

    Attributes:
        total: tasks in all.
        found: tasks that were finished before.
        unused: finished shards of other settings, or of an engine that was edited since.
        ran: tasks finished now.
        failed: error by name of the task.
        set_aside: corrupt shards that were renamed, and why.
        wall_s: time of this start, seconds.
        task_s: sum of the times of the tasks, seconds.
        worker_rss_bytes: largest memory of any worker.
    """

    total: int
    found: int = 0
    unused: int = 0
    ran: int = 0
    failed: dict[str, Outcome] = field(default_factory=dict)
    set_aside: dict[Path, str] = field(default_factory=dict)
    wall_s: float = 0.0
    task_s: float = 0.0
    worker_rss_bytes: int = 0


# -- planning -----------------------------------------------------------------------------------


def plan_sweep(path: Path, overrides: Iterable[str] = (), indices: bool = False) -> Sweep:
    """Read a config with a `sweep` section and validate every point of it.

    Args:
        path: a YAML file.
        overrides: `key.sub=value`.
        indices: choose the points for Sobol indices.

    Raises:
        BadInput: one line with file, key, value and what would be valid.
    """
    data = overridden(read_config(path), list(overrides))
    data.pop(ABOUT, None)
    return plan_data(data, str(path), indices)


def plan_data(data: dict[str, Any], source: str, indices: bool = False) -> Sweep:
    """Validate every point of a sweep given as plain data (see `plan_sweep`).

    Args:
        data: a config with a `sweep` section.
        source: where it comes from, for error messages.
        indices: choose the points for Sobol indices.
    """
    if SECTION not in data:
        example = f"{SECTION}: {{workload.arrivals.rate: [2, 4, 8]}}"
        raise BadInput(f"{source}: {SECTION} is missing: what to vary, for example {example}")
    section = sweep_config(data[SECTION], Origins(source).where)
    if indices and section.options.method != "sobol":
        raise BadInput(
            f"{source}: --indices needs {SECTION}.method: sobol, {SECTION}.n and ranges "
            f"{{low: …, high: …}}, got method: {section.options.method}"
        )
    base = {key: value for key, value in data.items() if key != SECTION}
    tasks: dict[str, Task] = {}
    planned = tuple(_planned(p, source, tasks) for p in points(base, section, source, indices))
    if not planned:
        raise BadInput(f"{source}: {SECTION}: no combination of these values is a point")
    return Sweep(source, data, section, indices, planned, tasks)


def _planned(point: Point, source: str, tasks: dict[str, Task]) -> SweepPoint:
    """Validate a point, add its tasks to `tasks`, and return what is kept of it."""
    try:
        experiment = resolve(point.data, source, swept=point.values)
        notes = build(experiment, experiment.policies[0]).notes
        check_workload(experiment)
    except BadInput as error:
        raise BadInput(f"{error} (at the point {_shown(point)})") from None
    config = experiment.resolved()
    replications = config["run"].pop("replications")
    files = {path: file_hash(path) for path in result_files(experiment)}
    names = []
    for replication in range(replications):
        task = new_task(config, replication, point.values, files)
        names.append(tasks.setdefault(task.name, task).name)
    label = experiment.policies[0].label
    return SweepPoint(label, point.values, point.cell, point.varied, tuple(names), notes)


def _shown(point: Point) -> str:
    """Return what tells a point from the others, in a line."""
    policy = {key: point.data[POLICY].get(key) for key in ("label", "name")}
    label = policy["label"] or policy["name"]
    values = {key: value for key, value in point.values.items() if key != POLICY_NAME}
    return ", ".join([str(label), *(f"{key} {shown(value)}" for key, value in values.items())])


def result_files(experiment: Experiment) -> list[str]:
    """Return what decides the result beside the config.

    The files it names, `policy:NAME` for a policy from outside, and the engine.
    """
    workload = experiment.workload
    named = [workload.source, *(workload.mixture or {})]
    found = [name for name in named if is_file(name)]
    cluster = experiment.cluster
    profiles = [cluster.profile, *(pool.profile for pool in cluster.pools or ())]
    found += [name for name in profiles if name is not None and Path(name).is_file()]
    names = [choice.name for choice in experiment.policies]
    return [ENGINE, *found, *(f"{OWN}{name}" for name in names if own_file(name) is not None)]


def first_task_s(sweep: Sweep) -> float:
    """Return how long the first task takes, in seconds of wall time.

    Raises:
        BadInput: it cannot be simulated.
        SimulationError: it fails.
    """
    task = next(iter(sweep.tasks.values()))
    job = _job(sweep, Path("."), "")
    took = _timed(job, task)
    return _timed(job, task) if took < FIRST_AGAIN_S else took


def _timed(job: Job, task: Task) -> float:
    began = time.perf_counter()
    shard_of(job, task)
    return time.perf_counter() - began


# -- running ------------------------------------------------------------------------------------


def run_sweep(
    sweep: Sweep,
    folder: Path,
    backend: Backend,
    resume: bool = False,
    progress: Progress | None = None,
) -> Progressed:
    """Run the tasks of a sweep that have no shard yet.

    Args:
        sweep: what to run.
        folder: where its shards go.
        backend: where its tasks run.
        resume: go on in a folder that has shards.
        progress: told how far it is.

    Raises:
        BadInput: the folder has shards and `resume` was not asked for, or another version wrote
            them.
        SimulationError: a shard cannot be written, or the cluster is gone.
    """
    began = time.perf_counter()
    there = _prepare(sweep, folder, resume)
    done = Progressed(len(sweep.tasks), unused=len(there - sweep.tasks.keys()))
    left = _unfinished(sweep, folder, done)
    job = _job(sweep, folder, uuid.uuid4().hex)
    write_text(folder / TOKEN, job.token)
    _tell(progress, done)
    try:
        for outcome in backend.outcomes(job, left):
            _take(outcome, folder, done)
            _tell(progress, done)
    finally:
        done.wall_s = time.perf_counter() - began
        (folder / TOKEN).unlink(missing_ok=True)
        # On a full disk, what is on its way says so better.
        with suppress(BadInput):
            _write_failed(sweep, folder, done)
            _write_timing(folder, done)
    return done


def _tell(progress: Progress | None, done: Progressed) -> None:
    if progress is not None:
        progress(done.found + done.ran + len(done.failed), done.total)


def _job(sweep: Sweep, folder: Path, token: str) -> Job:
    return Job(str(folder.absolute()), str(Path.cwd()), sweep.source, token, packages())


def _prepare(sweep: Sweep, folder: Path, resume: bool) -> set[str]:
    """Write what the folder is about; return the names of the shards that are there."""
    shards = output_folder(output_folder(folder) / FOLDER)
    finished = {path.stem for path in shards.glob("*.parquet")}
    if finished and not resume:
        raise BadInput(
            f"folder {folder}: has {len(finished)} finished shards; go on with --resume, or give "
            "another --out"
        )
    for part in shards.glob(".*.part"):
        part.unlink(missing_ok=True)
    about = {ABOUT: {"bucketsim": __version__, "git_revision": git_revision()}}
    text = yaml.safe_dump(sweep.data | about, sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", text)
    write_json(folder / MANIFEST, manifest(sweep))
    return finished


def manifest(sweep: Sweep) -> dict[str, Any]:
    """Return the content of `sweep.json`."""
    return {
        "bucketsim": __version__,
        "keys": list(dict.fromkeys(key for point in sweep.points for key in point.values)),
        "indices": sweep.indices,
        "n": sweep.config.options.n,
        "points": [
            {
                "label": point.label,
                "values": point.values,
                "cell": point.cell,
                "varied": point.varied,
                "tasks": point.tasks,
                "notes": point.notes,
            }
            for point in sweep.points
        ],
    }


def _unfinished(sweep: Sweep, folder: Path, done: Progressed) -> list[Task]:
    """Return the tasks without a good shard; corrupt shards are set aside."""
    left = []
    for task in sweep.tasks.values():
        try:
            read_shard(folder, task.name)
        except FileNotFoundError:
            left.append(task)
        except CorruptShard as error:
            done.set_aside[set_aside(folder, task.name)] = str(error)
            left.append(task)
    done.found = done.total - len(left)
    return left


def _take(outcome: Outcome, folder: Path, done: Progressed) -> None:
    """Count an outcome; write the shard if the worker could not see the folder."""
    done.task_s += outcome.wall_s
    done.worker_rss_bytes = max(done.worker_rss_bytes, outcome.peak_rss_bytes)
    unwritten = outcome.unwritten
    if outcome.content is not None:
        try:
            write_shard(folder, outcome.name, outcome.content)
        except BadInput as error:
            unwritten = str(error)
    if unwritten is not None:
        raise SimulationError(
            f"{unwritten}; {done.found + done.ran} of {done.total} shards are finished and intact: "
            "make room and go on with --resume"
        )
    if outcome.error is None:
        done.ran += 1
    else:
        done.failed[outcome.name] = outcome


def _write_failed(sweep: Sweep, folder: Path, done: Progressed) -> None:
    """Write `failed.json`; without failures there is none."""
    path = folder / FAILED
    if not done.failed:
        path.unlink(missing_ok=True)
        return
    write_json(path, {"failed": failures(sweep, done)})


def failures(sweep: Sweep, done: Progressed) -> list[dict[str, Any]]:
    """Return what failed, in the order of the tasks."""
    found = []
    for name, task in sweep.tasks.items():
        outcome = done.failed.get(name)
        if outcome is not None:
            label = json.loads(task.config)["policy"][0]["label"]
            found.append(
                {
                    "task": name,
                    "label": label,
                    "values": task.values,
                    "replication": task.replication,
                    "error": outcome.error,
                    "traceback": outcome.trace,
                }
            )
    return found


def _write_timing(folder: Path, done: Progressed) -> None:
    timing = {
        "tasks": done.ran + len(done.failed),
        "wall_s": done.wall_s,
        "task_s": done.task_s,
        "worker_peak_rss_bytes": done.worker_rss_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    write_json(folder / TIMING, timing)
