"""`sweep` and `results`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.show import Interrupted, notices, progress, say, show_columns, show_json
from sim.cli.study import Config, Json, Overrides

if TYPE_CHECKING:
    from sim.study.sweeps.backends import Backend
    from sim.study.sweeps.results import SweepResults
    from sim.study.sweeps.sweep import Progressed, Sweep

SHOWN_POINTS = 50
"""Points that a sweep prints at its end; `results` prints all."""

SHOWN_FAILURES = 10

WIDE = 0.1
"""Half an interval of a Sobol index from which the reader is told how to narrow it."""


class BackendName(StrEnum):
    """Where tasks run."""

    LOCAL = "local"
    RAY = "ray"
    DASK = "dask"


def sweep(
    config: Config,
    overrides: Overrides = None,
    backend: Annotated[
        BackendName, typer.Option("--backend", help="Where tasks run.")
    ] = BackendName.LOCAL,
    address: Annotated[
        str | None, typer.Option("--address", help="Of the Ray or Dask cluster, HOST:PORT.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes; default: one a processor.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the tasks and how long they would take.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Run what has no result yet, in the same folder.")
    ] = False,
    indices: Annotated[
        bool, typer.Option("--indices", help="Sobol indices: which parameter matters.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: CONFIG's name with -sweep.")
    ] = None,
    json: Json = False,
) -> None:
    """Run the points of the config's sweep section; each task's result is a file of its own."""
    from sim.study.sweeps.backends import open_backend
    from sim.study.sweeps.sweep import plan_sweep

    planned = plan_sweep(config, overrides or (), indices)
    workers = open_backend(backend.value, address, jobs)
    try:
        if dry_run:
            _dry_run(planned, workers.workers, json)
        else:
            _sweep(planned, out or Path(f"{config.stem}-sweep"), workers, resume, json)
    finally:
        workers.close()


def results(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What sweep wrote.")],
    sql: Annotated[
        str | None, typer.Option("--sql", help="A query over the table `results`.")
    ] = None,
    json: Json = False,
) -> None:
    """Print the points of a sweep, or the answer to a query over its tasks."""
    if sql is not None:
        _query(folder, sql, json)
        return
    from sim.study.sweeps.results import point_summaries, read_results, sweep_notices

    found = read_results(folder)
    _say_missing(found)
    summaries = point_summaries(found)
    told = sweep_notices(found, summaries)
    notices(told)
    if json:
        content = {"folder": str(folder), "keys": found.keys, "points": summaries}
        show_json(content | {"notes": told})
    else:
        _show_points(found.keys, summaries)


def _sweep(planned: Sweep, folder: Path, workers: Backend, resume: bool, json: bool) -> None:
    from sim.study.files import output_folder
    from sim.study.sweeps.sweep import run_sweep

    output_folder(folder)
    say(f"{len(planned.tasks)} tasks, {workers.workers} at a time, into {folder}")
    try:
        with progress("sweeping", rate=True) as update:
            done = run_sweep(planned, folder, workers, resume, update)
    except KeyboardInterrupt:
        raise Interrupted(f"what is finished is in {folder}, --resume goes on") from None
    _report(planned, folder, done, json)


# -- output -------------------------------------------------------------------------------------


def _dry_run(planned: Sweep, workers: int, json: bool) -> None:
    from sim.study.notices import by_point
    from sim.study.sweeps.sweep import first_task_s

    notices(by_point([dict.fromkeys(point.notes, 0) for point in planned.points]))
    first_s = first_task_s(planned)
    estimate_s = first_s * len(planned.tasks) / min(workers, len(planned.tasks))
    tasks = list(planned.tasks.values())
    label = {name: point.label for point in planned.points for name in point.tasks}
    if json:
        listed = [
            {"task": t.name, "label": label[t.name], "replication": t.replication}
            | {"values": t.values}
            for t in tasks
        ]
        show_json({"tasks": listed, "first_task_s": first_s, "estimated_s": estimate_s})
        return
    columns: dict[str, Sequence[object]] = {
        "task": [task.name for task in tasks],
        "policy": [label[task.name] for task in tasks],
    }
    for key in dict.fromkeys(key for task in tasks for key in task.values):
        columns[key] = [task.values.get(key, "") for task in tasks]
    columns["replication"] = [task.replication for task in tasks]
    show_columns(columns)
    print(
        f"{len(tasks)} tasks, the first took {first_s:.2g} s: about {_duration(estimate_s)} with "
        f"{workers} at a time"
    )


def _report(planned: Sweep, folder: Path, done: Progressed, json: bool) -> None:
    """Print what became of a sweep, and its points; raise if tasks failed."""
    from sim.study.sweeps.sweep import failures
    from sim.types.errors import BadInput, SimulationError

    for path, why in done.set_aside.items():
        say(f"note: corrupt shard set aside as {path} and run again: {why}")
    if done.unused:
        say(
            f"note: {done.unused} finished shards in {folder} are of other settings, or of an "
            "engine or policies that were edited since: not used"
        )
    say(
        f"{done.ran} tasks run in {_duration(done.wall_s)}, {done.found} found finished, "
        f"{len(done.failed)} failed; results in {folder}"
    )
    failed = failures(planned, done)
    _say_failed(failed)
    fault = BadInput if all(of.refused for of in done.failed.values()) else SimulationError
    if len(failed) == done.total:
        raise fault(f"all {done.total} tasks failed; see {folder}/failed.json")
    counts = {"tasks": done.total, "run": done.ran, "found": done.found, "failed": failed}
    _show_finished(folder, counts, planned.indices and not failed, json)
    if failed:
        raise fault(
            f"{len(failed)} of {done.total} tasks failed (listed in {folder}/failed.json); "
            "--resume runs them again"
        )


def _show_finished(folder: Path, counts: Mapping[str, Any], indices: bool, json: bool) -> None:
    """Print the points of a sweep and, if asked for, their indices."""
    from sim.study.sweeps.indices import write_indices
    from sim.study.sweeps.results import point_summaries, read_results, sweep_notices

    found = read_results(folder)
    cells = write_indices(found) if indices else []
    summaries = point_summaries(found)
    told = sweep_notices(found, summaries)
    notices(told)
    if json:
        content = {"folder": str(folder), **counts, "keys": found.keys, "notes": told}
        show_json({**content, "points": summaries, "indices": cells})
    else:
        _show_points(found.keys, summaries[:SHOWN_POINTS])
        if len(summaries) > SHOWN_POINTS:
            print(f"… {len(summaries)} points; all: bucketsim results {folder}")
        _show_indices(cells)
    if indices:
        _draw(folder)


def _say_failed(failed: Sequence[Mapping[str, Any]]) -> None:
    for task in failed[:SHOWN_FAILURES]:
        values = "".join(f", {key} {value}" for key, value in task["values"].items())
        say(
            f"failed: {task['task']} ({task['label']}{values}, replication "
            f"{task['replication']}): {task['error']}"
        )
    if len(failed) > SHOWN_FAILURES:
        say(f"failed: … {len(failed)} in all")


def _say_missing(found: SweepResults) -> None:
    missing = len(found.tasks) - len(found.rows)
    if missing:
        say(f"note: {missing} of {len(found.tasks)} tasks have no result yet; sweep --resume")


def _show_points(keys: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> None:
    from sim.report.sweeps import point_columns

    show_columns(point_columns(keys, summaries))


def _show_indices(cells: Sequence[Mapping[str, Any]]) -> None:
    from sim.report.sweeps import index_columns
    from sim.study.sweeps.indices import widest_half

    if not cells:
        return
    show_columns(index_columns(cells))
    half = widest_half(cells)
    if half > WIDE:
        say(f"note: the widest interval of an index is ± {half:.2f}; a larger sweep.n narrows it")


def _draw(folder: Path) -> None:
    from sim.report.indices import draw_indices

    picture = draw_indices(folder)
    if picture is None:
        say("note: no figure depends on the swept parameters: no indices")
    else:
        say(f"picture: {picture}")


def _query(folder: Path, sql: str, json: bool) -> None:
    from sim.study.sweeps.results import query

    names, rows = query(folder, sql)
    if json:
        show_json({"columns": names, "rows": [list(row) for row in rows]})
    else:
        show_columns({name: [row[at] for row in rows] for at, name in enumerate(names)})


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
