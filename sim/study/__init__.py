"""Studies: experiment configs, replicated runs, comparisons, sweeps, statistics, output folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load(folder: str | Path) -> pd.DataFrame:
    """Return the results of a sweep: a row for each finished task, in the order of the sweep.

    Columns: `policy label`, the config keys that vary, `replication seed`, the figures of
    `summary.json`, and `classes` (JSON text: grouping -> class -> key -> figure).

    Raises:
        BadInput: there is no sweep, no finished task, a corrupt shard or one of another version.
    """
    from sim.study.sweeps.results import load_table

    return load_table(Path(folder))
