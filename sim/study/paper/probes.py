"""Probes: what the claims are about, measured under one setting, kept in a small file.

A file of `probes/` has a row for each quantity and replication, and is named by the hash of all
that decides it: paper set, recipes, changes, effort, replications, engine. Written aside and
renamed, so that an interrupted study goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim import __version__
from sim.study.files import output_folder, written_aside
from sim.study.paper.assumptions import Effort, Setting
from sim.study.paper.measures import Bench, figures_of, measured
from sim.study.paper.recipes import PaperSet, Recipe
from sim.study.provenance import engine_hash
from sim.study.tasks import calls
from sim.types import BadInput, SimulationError

FOLDER = "probes"
SCHEMA = 1
"""Of the rows and of how they are measured; raised when older files would be wrong."""
OVERRIDES = {"set", "by_policy"}
MEASURED = {"policies", "sweep", "target", "names"}
"""Of a recipe, what decides the runs; the rest is only drawn."""
REQUESTS = "requests simulated"
"""A row beside the quantities."""

Told = Callable[[int, int, float], None]
"""Called with probes done, probes in all and requests simulated by the latest."""


@dataclass(frozen=True)
class Probe:
    """What is measured under a setting.

    Attributes:
        setting: what is changed.
        names: quantities.
        seeds: replications.
        effort: of the searches; None: as the recipes say.
        base: the paper set.
        recipes: of the figures that the quantities come from.
    """

    setting: Setting
    names: tuple[str, ...]
    seeds: int
    effort: Effort | None
    base: PaperSet
    recipes: Mapping[str, Recipe]

    @property
    def name(self) -> str:
        """Hash of all that decides the result."""
        about = {
            "changes": [change.model_dump(mode="json") for change in self.setting.changes],
            "names": self.names,
            "seeds": self.seeds,
            "effort": None if self.effort is None else self.effort.model_dump(mode="json"),
            "base": self.base.model_dump(mode="json", include=OVERRIDES | {"padding_free"}),
            "recipes": {
                # What is only drawn does not decide.
                name: recipe.model_dump(mode="json", include=OVERRIDES | MEASURED)
                for name, recipe in self.recipes.items()
            },
            "made by": [__version__, engine_hash(), SCHEMA],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Probed:
    """What was measured under a setting.

    Attributes:
        setting: what was changed.
        values: by quantity, one a replication; NaN where it is undefined.
        requests: simulated.
        failures: why something could not be measured, by quantity.
    """

    setting: Setting
    values: Mapping[str, tuple[float, ...]]
    requests: float
    failures: Mapping[str, str]


def probe_all(
    probes: Sequence[Probe], folder: Path, jobs: int, told: Told | None = None
) -> list[Probed]:
    """Return what is measured under each setting; those with a file are read from it.

    Raises:
        BadInput: the folder cannot be written to.
    """
    output_folder(output_folder(folder) / FOLDER)
    found: dict[str, Probed] = {}
    left = []
    for probe in probes:
        known = _read(probe, folder)
        if known is None:
            left.append(probe)
        else:
            found[probe.name] = known
    if told is not None:
        told(len(found), len(probes), 0.0)
    for probe, requests in zip(
        left, calls(_measure, [(p, folder) for p in left], jobs), strict=True
    ):
        made = _read(probe, folder)
        if made is None:
            raise SimulationError(f"{folder}: the file of a probe that was just written is damaged")
        found[probe.name] = made
        if told is not None:
            told(len(found), len(probes), requests)
    return [found[probe.name] for probe in probes]


def new_probe(
    setting: Setting,
    names: tuple[str, ...],
    seeds: int,
    effort: Effort | None,
    base: PaperSet,
    recipes: Mapping[str, Recipe],
) -> Probe:
    """Return a probe with the recipes it needs only."""
    needed = {figure: recipes[figure] for figure in figures_of(names)}
    return Probe(setting, names, seeds, effort, base, needed)


# -- one probe ----------------------------------------------------------------------------------


def _measure(probe: Probe, folder: Path) -> float:
    """Measure, write the file, and return the requests simulated."""
    bench = Bench(probe.base, probe.recipes, probe.setting, probe.effort)
    rows = []
    for index in range(probe.seeds):
        bench.next(index)
        for name in probe.names:
            value, why = _one(bench, name)
            rows.append({"quantity": name, "replication": index, "value": value, "failure": why})
    rows.append(
        {"quantity": REQUESTS, "replication": 0, "value": float(bench.requests), "failure": ""}
    )
    with written_aside(_path(probe, folder)) as aside:
        aside.write_bytes(_bytes(rows))
    return float(bench.requests)


def _one(bench: Bench, name: str) -> tuple[float, str]:
    try:
        return measured(bench, name), ""
    except (BadInput, SimulationError) as error:  # a setting under which it cannot run
        return math.nan, str(error)


def _path(probe: Probe, folder: Path) -> Path:
    return folder / FOLDER / f"{probe.name}.parquet"


def _bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a table that has the same bytes for the same rows."""
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    kinds = {"replication": pa.int64(), "value": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    sink = io.BytesIO()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink, store_schema=False, **options)
    return sink.getvalue()


def _read(probe: Probe, folder: Path) -> Probed | None:
    """Return what the file of a probe holds; None: there is no intact one."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(_path(probe, folder)) as file:
            rows = file.read(use_threads=False).to_pylist()
    except Exception:  # a damaged file can make its readers fail in any way; it is made again
        return None
    of: dict[str, list[float]] = {}
    for row in rows:
        of.setdefault(row["quantity"], []).append(row["value"])
    requests = of.pop(REQUESTS, [math.nan])[0]
    if set(of) != set(probe.names) or any(len(v) != probe.seeds for v in of.values()):
        return None
    failures = {row["quantity"]: row["failure"] for row in rows if row["failure"]}
    return Probed(probe.setting, {k: tuple(v) for k, v in of.items()}, requests, failures)


def replications(probed: Probed) -> Iterator[dict[str, float]]:
    """Yield the quantities of each replication."""
    count = len(next(iter(probed.values.values())))
    for index in range(count):
        yield {name: values[index] for name, values in probed.values.items()}
