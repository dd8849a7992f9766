"""Shards: one Parquet file with one row for each task of a sweep.

A row holds the policy, the replication, the swept values and every figure of the replication; the
figures of the classes are JSON text in the column `classes`. The metadata holds the resolved
config, the versions and what the task has to tell. A shard is named by the hash of what it is the
result of, is written aside and renamed, and has no time in it: the same task gives the same bytes
on any machine.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sim import __version__
from sim.study.files import plain, written_aside
from sim.study.statistics.metrics import Summary
from sim.types import BadInput

FOLDER = "shards"
SCHEMA = 2
"""Of the rows and metadata; raised when a reader of the old ones would go wrong."""
METADATA = b"bucketsim"
SET_ASIDE = ".corrupt"
HASH_CHARS = 32
IDENTITY = ("replication", "values", "files")
"""Of a task, besides its config."""


@dataclass(frozen=True)
class Task:
    """One replication of one policy at one point.

    Attributes:
        config: the resolved config with this policy only, JSON.
        replication: number of the replication.
        values: what the point sets, by config key.
        files: SHA-256 of the files that the config names, by path.
        name: hash of all of these; the shard is `NAME.parquet`.
    """

    config: str
    replication: int
    values: Mapping[str, Any]
    files: Mapping[str, str]
    name: str


@dataclass(frozen=True)
class Told:
    """What a task has to tell beside its figures.

    Attributes:
        tally: text -> how often (`sim.study.notices`).
        requests: equal for equal requests.
    """

    tally: Mapping[str, int]
    requests: str


class CorruptShard(Exception):
    """A shard that cannot be read or is not what its name says."""


def new_task(
    config: Mapping[str, Any], replication: int, values: Mapping[str, Any], files: Mapping[str, str]
) -> Task:
    """Return the task of a resolved config with one policy."""
    text = _compact(config)
    return Task(text, replication, values, files, _name(text, replication, values, files))


def shard_path(folder: Path, name: str) -> Path:
    """Return where the shard of a task is in the folder of its sweep."""
    return folder / FOLDER / f"{name}.parquet"


def shard_bytes(task: Task, summary: Summary, told: Told) -> bytes:
    """Return the content of a task's shard."""
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    row = _row(task, summary)
    table = pa.table({key: [value] for key, value in row.items()})
    about = {
        "version": __version__,
        "schema": SCHEMA,
        "config": json.loads(task.config),
        "replication": task.replication,
        "values": task.values,
        "files": task.files,
        "row": _hash(row),
        "told": asdict(told),
        "told_hash": _hash(asdict(told)),
    }
    sink = io.BytesIO()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(sink, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA: _compact(about)})
    return sink.getvalue()


def write_shard(folder: Path, name: str, content: bytes) -> None:
    """Write a shard to the folder of its sweep; it is there complete or not at all.

    Raises:
        BadInput: the disk is full, or the folder cannot be written to.
    """
    with written_aside(shard_path(folder, name)) as aside:
        aside.write_bytes(content)


def read_shard(folder: Path, name: str) -> dict[str, Any]:
    """Return the row of a shard.

    Raises:
        CorruptShard: it cannot be read, or is not the result of the task it is named after.
        BadInput: another version wrote it.
        FileNotFoundError: it is not there.
    """
    return read_told(folder, name)[0]


def read_told(folder: Path, name: str) -> tuple[dict[str, Any], Told | None]:
    """Return the row of a shard, and what its task has to tell; None: it was not kept.

    Raises:
        CorruptShard: it cannot be read, or is not the result of the task it is named after.
        BadInput: another version wrote it.
        FileNotFoundError: it is not there.
    """
    path = shard_path(folder, name)
    try:
        about, rows = _read(path)
        told = about.get("told")
        version, schema = about["version"], about["schema"]
        found = _name(_compact(about["config"]), *(about[key] for key in IDENTITY))
        intact = len(rows) == 1 and _hash(rows[0]) == about["row"]
        intact = intact and about.get("told_hash") == (None if told is None else _hash(told))
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can make its readers fail in any way
        raise CorruptShard(" ".join(str(error).split())) from None
    if (version, schema) != (__version__, SCHEMA):
        raise BadInput(
            f"shard {path}: written by bucketsim {version} (shards of format {schema}), this is "
            f"{__version__} (format {SCHEMA}): use that version, or sweep into another --out"
        )
    if found != name:
        raise CorruptShard("not the result of the task it is named after")
    if not intact:
        raise CorruptShard("its figures are not those that were written")
    return rows[0], None if told is None else Told(told["tally"], told["requests"])


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the metadata and the rows of a file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows = file.read(use_threads=False).to_pylist()
        return json.loads(file.metadata.metadata[METADATA]), rows


def set_aside(folder: Path, name: str) -> Path:
    """Rename a corrupt shard, and return its new place."""
    path = shard_path(folder, name)
    return path.replace(path.with_name(path.name + SET_ASIDE))


def _row(task: Task, summary: Summary) -> dict[str, Any]:
    config = json.loads(task.config)
    (choice,) = config["policy"]
    figures = plain({key: value for key, value in summary.items() if key != "classes"})
    nothing = {key: float("nan") for key, value in figures.items() if value is None}
    return {
        "policy": choice["name"],
        "label": choice["label"],
        "replication": task.replication,
        "seed": config["run"]["seed"],
        **{key: _cell(value) for key, value in task.values.items()},
        **figures,
        **nothing,
        "classes": _compact(plain(summary["classes"])),
    }


def _cell(value: Any) -> Any:
    """Return a swept value as a table takes it; a whole section is JSON text."""
    return _compact(value) if isinstance(value, Mapping | list) else value


def _compact(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def _name(
    config: str, replication: int, values: Mapping[str, Any], files: Mapping[str, str]
) -> str:
    return _hash([config, replication, values, files])


def _hash(data: Any) -> str:
    return hashlib.sha256(_compact(data).encode()).hexdigest()[:HASH_CHARS]
