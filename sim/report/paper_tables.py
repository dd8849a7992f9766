"""Tables of the studies around the paper: rows as CSV and Parquet, cells of Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.study.files import write_text, written_aside
from sim.study.paper.units import Checks
from sim.study.statistics.stats import Interval

Row = Mapping[str, Any]
NONE = "-"


def write_tables(folder: Path, name: str, rows: Sequence[Row]) -> list[Path]:
    """Write rows as `NAME.csv` and `NAME.parquet`; the same rows give the same bytes.

    Args:
        folder: where.
        name: of the files.
        rows: at least one; all have the same keys; NaN is an empty cell.
    """
    table, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    write_text(table, text.getvalue())
    with written_aside(parquet) as aside:
        aside.write_bytes(_parquet(rows))
    return [table, parquet]


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    table = pa.table({key: [row[key] for row in rows] for key in rows[0]})
    sink = io.BytesIO()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(sink, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def cells(name: str, interval: Interval) -> dict[str, float]:
    """Return the columns of a mean with its interval."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first column is left-aligned, the others right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]


def mean_text(interval: Interval, least: str = "") -> str:
    """Return a mean with its interval in three digits.

    Args:
        interval: what to say.
        least: put before it, where it is a lower bound.
    """
    if math.isnan(interval.mean):
        return NONE
    mean = f"{least}{_short(interval.mean)}"
    if math.isnan(interval.low):
        return mean
    return f"{mean} [{_short(max(interval.low, 0.0))}, {_short(interval.high)}]"


def percent_text(interval: Interval, least: str = "") -> str:
    """Return a difference in per cent with its interval."""
    if math.isnan(interval.mean):
        return NONE
    mean = f"{least}{_signed(interval.mean)} %"
    if math.isnan(interval.low):
        return mean
    return f"{mean} [{_signed(interval.low)}, {_signed(interval.high)}]"


def share_text(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:g} %"


def seeds_text(n: int) -> str:
    """Return what means and intervals are of."""
    if n == 1:
        return "One seed, no intervals"
    return f"Means of {n} seeds with 95 % intervals (Student t)"


def checks_text(found: Checks) -> str:
    """Return what a reader must know about searches."""
    said = [f"{found.searches:,} searches"]
    if found.uneven:
        said.append(f"in {found.uneven} there is more than one crossing")
    if found.growing:
        said.append(
            f"at the rate found the queue still grew to the end in {found.growing} of the "
            f"{found.looked} looked at, where longer runs would give less"
        )
    return f"{'; '.join(said)}."


def _short(value: float) -> str:
    """Return a number in three digits, whole from 100 on."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"


def _signed(value: float) -> str:
    """Return a signed number, one decimal below 10; never -0."""
    digits = 0 if abs(value) >= 9.95 else 1
    text = f"{value:+.{digits}f}"
    return text[1:] if not text.strip("+-0.") else text
