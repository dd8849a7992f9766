"""Reading a sweep: a row for each task, means and intervals for each point, SQL over the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.study.notices import by_point, of_study
from sim.study.statistics.stats import aggregate
from sim.study.sweeps.shards import CorruptShard, Told, read_told
from sim.study.sweeps.sweep import MANIFEST
from sim.types import BadInput

if TYPE_CHECKING:
    import pandas as pd

TABLE = "results"
"""What the rows are called in SQL."""

ABOUT_THE_TASK = ("policy", "label", "replication", "seed", "classes")

Row = dict[str, Any]


@dataclass(frozen=True)
class SweepResults:
    """The finished tasks of a sweep.

    Attributes:
        folder: of the sweep.
        manifest: content of its `sweep.json`.
        rows: of the finished tasks, by name.
        told: what they have to tell beside, by name.
    """

    folder: Path
    manifest: Mapping[str, Any]
    rows: Mapping[str, Row]
    told: Mapping[str, Told]

    @property
    def points(self) -> Sequence[Mapping[str, Any]]:
        """The points of the sweep, as in `sweep.json`."""
        points: Sequence[Mapping[str, Any]] = self.manifest["points"]
        return points

    @property
    def keys(self) -> list[str]:
        """The config keys that vary."""
        return list(self.manifest["keys"])

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks in their order."""
        return list(dict.fromkeys(name for point in self.points for name in point["tasks"]))


def read_results(folder: Path) -> SweepResults:
    """Read the shards of a sweep's tasks.

    Raises:
        BadInput: there is no sweep, no finished task, a corrupt shard or one of another version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}: not a sweep's folder") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}") from None
    rows: dict[str, Row] = {}
    told: dict[str, Told] = {}
    found = SweepResults(folder, manifest, rows, told)
    for name in found.tasks:
        try:
            rows[name], kept = read_told(folder, name)
            if kept is not None:
                told[name] = kept
        except FileNotFoundError:
            continue
        except CorruptShard as error:
            raise BadInput(
                f"folder {folder}: shard {name} is corrupt ({error}); `bucketsim sweep … --resume` "
                "sets it aside and runs its task again"
            ) from None
    if not rows:
        raise BadInput(f"folder {folder}: no task of the sweep is finished yet")
    return found


def load_table(folder: Path) -> pd.DataFrame:
    """Return a row for each finished task, in the order of the sweep (see `sim.study.load`)."""
    import pandas as pd

    found = read_results(folder)
    front = ["policy", "label", *found.keys, "replication", "seed"]
    columns = list(dict.fromkeys([*front, *(key for row in found.rows.values() for key in row)]))
    return pd.DataFrame.from_records(list(found.rows.values()), columns=columns)


def point_summaries(found: SweepResults) -> list[Row]:
    """Return means and intervals over the replications of each point that has a finished one."""
    summaries = []
    for point in found.points:
        rows = [found.rows[name] for name in point["tasks"] if name in found.rows]
        if not rows:
            continue
        left_out = {*ABOUT_THE_TASK, *found.keys}
        figures = [{k: v for k, v in row.items() if k not in left_out} for row in rows]
        about = {"policy": rows[0]["policy"], "label": point["label"], "values": point["values"]}
        summaries.append(about | aggregate(figures))
    return summaries


def sweep_notices(found: SweepResults, summaries: Sequence[Row]) -> tuple[str, ...]:
    """Return what a reader must be told of a sweep, each line with the points it is about.

    Args:
        found: the finished tasks.
        summaries: their `point_summaries`.
    """
    finished = [p for p in found.points if any(name in found.rows for name in p["tasks"])]
    tallies = []
    for point, summary in zip(finished, summaries, strict=True):
        told = [found.told[name] for name in point["tasks"] if name in found.told]
        same = len(told) > 1 and len({of.requests for of in told}) == 1
        of_runs = of_study([dict(of.tally) for of in told], same, summary["saturation"])
        tallies.append(dict.fromkeys(point.get("notes", ()), 0) | of_runs)
    return by_point(tallies)


def query(folder: Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return column names and rows of a query over `results`, the rows of `load_table`.

    Raises:
        BadInput: duckdb is not installed, or refuses the query.
    """
    try:
        import duckdb
    except ImportError:
        raise BadInput("--sql: duckdb is not installed; pip install 'bucketsim[sql]'") from None
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

    table = pa.Table.from_pandas(load_table(folder), preserve_index=False)
    with duckdb.connect() as connection:
        connection.register(TABLE, table)
        try:
            answer = connection.execute(sql)
            names = [column[0] for column in answer.description or []]
            return names, answer.fetchall()
        except duckdb.Error as error:
            raise BadInput(f"--sql: {' '.join(str(error).split())}") from None
