"""From the shards of a figure to the table that is drawn: a row for each mean, with its interval.

Columns: `panel` and `series` (what belongs together), `x`, `category` (its name, where x only
counts), `y` with its Student-t interval `low` to `high`, and `n`, the replications. Everything is
in the unit of the axis. Ratios and crossings are formed in each replication: the policies saw the
same requests.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sim.study.files import written_aside
from sim.study.paper.recipes import Figure
from sim.study.statistics.stats import student_t
from sim.study.sweeps.shards import CorruptShard, read_shard
from sim.study.sweeps.sweep import SweepPoint
from sim.types import BadInput

ALL, RATIO, CROSSING, MARKS = "all", "ratio", "crossing", "marks"
OURS = "bucketserve"
"""The policy that ratios are formed of."""
BREAKDOWN = ("bucketing", "queue", "prefill", "decode")
MS_PER_S = 1e3
FINGERPRINT = b"bucketsim"

Shard = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A mean over replications.

    Attributes:
        panel: of the figure.
        series: what is joined by a line, or has one colour.
        x: where.
        category: its name, where x only counts.
        y: the mean.
        low: lower end of its 95 % interval; NaN with one replication.
        high: upper end.
        n: replications.
    """

    panel: str
    series: str
    x: float
    category: str
    y: float
    low: float
    high: float
    n: int


def figure_rows(figure: Figure, folder: Path) -> list[Row]:
    """Return the table of a figure.

    Args:
        figure: what to make.
        folder: with the shards of its tasks.

    Raises:
        BadInput: a shard is missing or corrupt.
    """
    from sim.study.paper import figure_models

    drawn = {
        "curve": _curve,
        "offline": _offline,
        "bars": _bars,
        "breakdown": _breakdown,
        "overhead": _overhead,
        "histogram": figure_models.histogram,
        "utilisation": figure_models.utilisation,
    }
    return list(drawn[figure.recipe.draw](figure, folder))


def shards_of(figure: Figure, point: SweepPoint, folder: Path) -> list[Shard]:
    """Return the shards of a point, by replication.

    Raises:
        BadInput: one is missing or corrupt.
    """
    found: list[Shard] = []
    for name in point.tasks:
        try:
            found.append(read_shard(folder, name))
        except (FileNotFoundError, CorruptShard) as error:
            what = "missing" if isinstance(error, FileNotFoundError) else f"corrupt ({error})"
            raise BadInput(
                f"figure {figure.name}: shard {folder}/shards/{name}.parquet is {what}; "
                f"`bucketsim figures {figure.name}` makes it again"
            ) from None
    return found


def mean_row(panel: str, series: str, x: float, values: Sequence[float], category: str = "") -> Row:
    """Return the row of a value that every replication has."""
    found = student_t(list(values))
    return Row(panel, series, float(x), category, found.mean, found.low, found.high, found.n)


# -- kinds --------------------------------------------------------------------------------------


def _curve(figure: Figure, folder: Path) -> Iterator[Row]:
    recipe = figure.recipe
    along: dict[str, list[tuple[float, list[float]]]] = {}
    for point in figure.points:
        shards, x = shards_of(figure, point, folder), _x(figure, point)
        values = [_number(shard, recipe.y.figure) * recipe.y.factor for shard in shards]
        along.setdefault(point.label, []).append((x, values))
        yield mean_row(ALL, point.label, x, values)
        for name in recipe.classes:
            of = [_of_class(shard, name, recipe.y.figure) * recipe.y.factor for shard in shards]
            yield mean_row(name, point.label, x, of)
    if recipe.target is not None:
        yield from _crossings(along, recipe.target)
    else:
        last = max(points[-1][0] for points in along.values())
        yield from _ratios({series: points[-1][1] for series, points in along.items()}, last)


def _crossings(
    along: Mapping[str, Sequence[tuple[float, list[float]]]], target: float
) -> Iterator[Row]:
    """Yield where each series falls below the target, and the ratios of ours to the others."""
    found = {}
    for series, points in along.items():
        count = len(points[0][1])
        at = [falls_below([(x, values[i]) for x, values in points], target) for i in range(count)]
        found[series] = at
        yield mean_row(CROSSING, series, target, at)
    yield from _ratios(found, target)


def _ratios(found: Mapping[str, Sequence[float]], x: float) -> Iterator[Row]:
    if OURS not in found:
        return
    for series, values in found.items():
        if series != OURS:
            pairs = zip(found[OURS], values, strict=True)
            yield mean_row(RATIO, series, x, [a / b if b else math.nan for a, b in pairs])


def falls_below(points: Sequence[tuple[float, float]], target: float) -> float:
    """Return the x > 0 at which a curve first falls below a level; NaN if there is none.

    Between two points it is straight over the logarithm of x.
    """
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 >= target > y1:
            share = (y0 - target) / (y0 - y1)
            return float(x0 * (x1 / x0) ** share)
        if y0 < target:
            break
    return math.nan


def _offline(figure: Figure, folder: Path) -> Iterator[Row]:
    by_x: dict[float, dict[str, list[float]]] = {}
    for point in figure.points:
        shards, x = shards_of(figure, point, folder), _x(figure, point)
        values = [_number(shard, figure.recipe.y.figure) for shard in shards]
        by_x.setdefault(x, {})[point.label] = values
        yield mean_row(ALL, point.label, x, [v * figure.recipe.y.factor for v in values])
    for x, found in by_x.items():
        yield from _ratios(found, x)


def _bars(figure: Figure, folder: Path) -> Iterator[Row]:
    factor = figure.recipe.y.factor
    for point in figure.points:
        shards = shards_of(figure, point, folder)
        for at, (key, name) in enumerate(figure.recipe.groups.items()):
            values = [_number(shard, key) * factor for shard in shards]
            yield mean_row(ALL, point.label, at, values, name)


def _breakdown(figure: Figure, folder: Path) -> Iterator[Row]:
    """Yield the shares of a request's time; the charge of a batch counts for each of its rows."""
    for point in figure.points:
        shards, x = shards_of(figure, point, folder), _x(figure, point)
        parts: list[dict[str, float]] = []
        for name, shard in zip(point.tasks, shards, strict=True):
            each_s = overhead_s(figure, name, shard) / max(int(shard["completed"]), 1)
            part = {key: float(shard[f"mean_{key}_ms"]) / MS_PER_S for key in BREAKDOWN[1:]}
            part["bucketing"] = each_s * float(shard["mean_batch_rows"])
            part["prefill"] -= part["bucketing"]  # the charge is part of the step
            parts.append(part)
        for key in BREAKDOWN:
            shares = [part[key] / sum(part.values()) for part in parts]
            yield mean_row(ALL, key, x, [share * figure.recipe.y.factor for share in shares])
        yield mean_row(MARKS, "seconds", x, [sum(part.values()) for part in parts])


def _overhead(figure: Figure, folder: Path) -> Iterator[Row]:
    for point in figure.points:
        shards, x = shards_of(figure, point, folder), _x(figure, point)
        charged = [overhead_s(figure, n, s) for n, s in zip(point.tasks, shards, strict=True)]
        yield mean_row(ALL, point.label, x, charged)
        lasted = [float(shard["duration"]) for shard in shards]
        yield mean_row(MARKS, "duration", x, lasted)
        counted = [float(shard["bucketing_operations"]) for shard in shards]
        yield mean_row(MARKS, "operations", x, counted)


def overhead_s(figure: Figure, task: str, shard: Shard) -> float:
    """Return the seconds charged for bucketing in a run."""
    policy = json.loads(figure.tasks[task].config)["policy"][0]
    return float(shard["bucketing_operations"]) * float(policy["overhead_us_per_op"]) * 1e-6


def _x(figure: Figure, point: SweepPoint) -> float:
    key = None if figure.recipe.x is None else figure.recipe.x.key
    if key is None or key not in point.values:
        valid = ", ".join(point.values)
        raise BadInput(f"{figure.source}: x.key: {key!r} does not vary; valid: {valid}")
    return float(point.values[key])


def _number(shard: Shard, key: str | None) -> float:
    if key is None or key not in shard:
        valid = ", ".join(k for k, v in shard.items() if isinstance(v, float))
        raise BadInput(f"figure {key!r} is not in the summary of a run; valid: {valid}")
    return float(shard[key])


def _of_class(shard: Shard, name: str, key: str | None) -> float:
    classes = json.loads(shard["classes"])["source"]
    if name not in classes:
        raise BadInput(f"classes: no class {name!r} in the workload; valid: {', '.join(classes)}")
    value = classes[name].get(key or "")
    return math.nan if value is None else float(value)


# -- files --------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Sequence[Row], fingerprint: str) -> None:
    """Write a figure's table; the same rows give the same bytes."""
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema())
    sink = io.BytesIO()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(sink, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({FINGERPRINT: fingerprint})
    with written_aside(path) as aside:
        aside.write_bytes(sink.getvalue())


def read_rows(path: Path) -> tuple[list[Row], str] | None:
    """Return a figure's table and what it was made from; None: there is no intact one."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            made_from = file.metadata.metadata[FINGERPRINT].decode()
            return [Row(**row) for row in file.read(use_threads=False).to_pylist()], made_from
    except Exception:  # a damaged file can make its readers fail in any way; it is made again
        return None


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"panel": pa.string(), "series": pa.string(), "category": pa.string(), "n": pa.int64()}
    fields = ("panel", "series", "x", "category", "y", "low", "high", "n")
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in fields])
