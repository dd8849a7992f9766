"""What a format file needs: the file as a `Source`, and the record `Format`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.base import BadInput, Limits, bad
from workloads.json_stream import json_entries
from workloads.pieces import Column, Piece
from workloads.streams import opened, parquet_columns, parquet_frames, table_frames, table_header
from workloads.tokens import TokenCounter

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BadInput", "Column", "Entries", "Fields", "Format", "Piece", "Source", "bad"]

Fields = Mapping[str, tuple[str, ...]]
"""Field of `Trace` -> the names its column may have in the file."""

Entries = tuple[list[int], list[dict[str, Any]]]
"""Row numbers and JSON objects."""

BATCH_ENTRIES = 1_000


class Source:
    """A trace file as a format sees it.

    Args:
        path: the file.
        limits: when to refuse it.
        tokenizer: file or name, for formats that hold text.
    """

    def __init__(self, path: Path, limits: Limits, tokenizer: str | None = None) -> None:
        self.path = path
        self._limits = limits
        self._tokenizer = tokenizer

    @cached_property
    def kind(self) -> str:
        """`parquet`, `json` (an array, lines or one object) or `csv`, by the first bytes."""
        with opened(self.path, self._limits) as stream:
            start = stream.read(1 << 12).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start:
            raise bad(self.path, "the file is empty")
        if start.startswith(b"PAR1"):
            return "parquet"
        return "json" if start[:1] in b"[{" else "csv"

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Column names of a table, keys of the first JSON object."""
        if self.kind == "parquet":
            return tuple(parquet_columns(self.path))
        if self.kind == "csv":
            return tuple(table_header(self.path, self._limits))
        for _, entry in json_entries(self.path, self._limits):
            return tuple(entry)
        raise bad(self.path, "no entries")

    def tables(self, fields: Fields) -> Iterator[pd.DataFrame]:
        """Yield frames, indexed by row number, that hold at least the columns of `fields`."""
        if self.kind == "parquet":
            columns = [column for _, column in present(fields, self.keys)]
            yield from parquet_frames(self.path, self._limits, columns)
        else:
            yield from table_frames(self.path, self._limits)

    def entries(self) -> Iterator[Entries]:
        """Yield JSON objects with their row numbers, some at a time."""
        rows: list[int] = []
        entries: list[dict[str, Any]] = []
        for row, entry in json_entries(self.path, self._limits):
            rows.append(row)
            entries.append(entry)
            if len(rows) == BATCH_ENTRIES:
                yield rows, entries
                rows, entries = [], []
        yield rows, entries

    @cached_property
    def count_tokens(self) -> TokenCounter:
        """The tokenizer, loaded when a format first asks for it."""
        return TokenCounter(self.path, self._tokenizer)


@dataclass(frozen=True)
class Format:
    """One trace format.

    Attributes:
        name: what the user calls it.
        kinds: kinds of file it comes as.
        needs: the file has at least one key of each group.
        read: yields the file in pieces.
        ticks_per_s: unit of its arrival times.
        absolute: whether arrival times count from an arbitrary origin, so that the first becomes 0.
        hash_block_tokens: tokens of a block that has an id.
        whole_hashes: whether the ids cover the whole prompt.
    """

    name: str
    kinds: tuple[str, ...]
    needs: Sequence[tuple[str, ...]]
    read: Callable[[Source], Iterator[Piece]]
    ticks_per_s: float = 1.0
    absolute: bool = False
    hash_block_tokens: int = 16
    whole_hashes: bool = False

    def missing(self, source: Source) -> list[str]:
        """Return the needed keys the file lacks."""
        keys = set(source.keys)
        return ["|".join(group) for group in self.needs if keys.isdisjoint(group)]


def present(fields: Fields, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return (field, column) for the fields the file has."""
    return [
        (field, next(name for name in names if name in keys))
        for field, names in fields.items()
        if not set(names).isdisjoint(keys)
    ]


def table_piece(frame: pd.DataFrame, fields: Fields, **dropped: int) -> Piece:
    """Return the piece for a frame; blank lines are left out and counted."""
    blank = frame.isna().all(axis=1)
    frame = frame[~blank]
    columns = {
        field: Column(name, frame[name]) for field, name in present(fields, list(frame.columns))
    }
    rows = frame.index.to_numpy()
    return Piece(rows, columns, {**dropped, "blank": int(blank.sum())})


def table_format(name: str, needs: Fields, optional: Fields | None = None) -> Format:
    """Return the format of a table whose columns are taken as they are."""
    fields = {**needs, **(optional or {})}

    def read(source: Source) -> Iterator[Piece]:
        for frame in source.tables(fields):
            yield table_piece(frame, fields)

    return Format(name, ("csv",), tuple(needs.values()), read)


def entry_columns(
    entries: Sequence[Mapping[str, Any]], fields: Mapping[str, str]
) -> dict[str, Column]:
    """Return the columns of JSON objects; `fields` maps a field of `Trace` to a key."""
    return {
        field: Column(key, [entry.get(key) for entry in entries]) for field, key in fields.items()
    }


def texts_of(
    source: Source, row: int, entry: Mapping[str, Any], keys: Sequence[str]
) -> tuple[str, ...]:
    """Return the texts under `keys` of one JSON object."""
    for key in keys:
        if not isinstance(entry.get(key), str):
            raise bad(source.path, f"no text {key!r}", row)
    return tuple(entry[key] for key in keys)
