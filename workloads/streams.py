"""Trace files as streams: bytes (gzip or not), table frames, JSON entries; all within limits."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from workloads.base import Limits, bad

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.parsers import TextFileReader

CHUNK_ROWS = 50_000
MAX_LINE_BYTES = 16 << 20
"""Longest line of a table: a file without line ends must not be buffered whole."""


class CountedReader(io.RawIOBase):
    """Bytes of a file after decompression; stops at the size limit and at endless lines."""

    def __init__(
        self, inner: BinaryIO, path: Path, max_bytes: int, max_line_bytes: int | None = None
    ) -> None:
        self._inner = inner
        self._path = path
        self._max_bytes = max_bytes
        self._max_line_bytes = max_line_bytes
        self._count = 0
        self._line_bytes = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` and return the number of bytes read."""
        try:
            data = self._inner.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise bad(self._path, f"truncated or corrupt gzip after {self._count} bytes") from error
        self._count += len(data)
        if self._count > self._max_bytes:
            raise bad(self._path, f"more than {self._max_bytes} bytes decompressed (the limit)")
        if self._max_line_bytes is not None:
            end = data.rfind(b"\n")
            self._line_bytes = len(data) - end - 1 if end >= 0 else self._line_bytes + len(data)
            if self._line_bytes > self._max_line_bytes:
                raise bad(self._path, f"a line longer than {self._max_line_bytes} bytes")
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def opened(path: Path, limits: Limits, max_line_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open a file, decompressed if its first bytes say gzip."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise bad(path, f"cannot read: {error.strerror or error}") from error
    with file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        inner = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
        reader = CountedReader(inner, path, limits.max_bytes, max_line_bytes)
        yield cast(BinaryIO, io.BufferedReader(reader, 1 << 18))


def table_header(path: Path, limits: Limits) -> list[str]:
    """Return the column names in the first line of a CSV file."""
    with opened(path, limits) as stream:
        line = stream.readline(1 << 16)
    try:
        text = line.decode("utf-8-sig")
        return [name.strip() for name in next(csv.reader([text]), [])]
    except UnicodeDecodeError as error:
        raise bad(path, "not UTF-8", row=1) from error
    except csv.Error as error:
        raise bad(path, f"malformed CSV: {error}", row=1) from error


def table_frames(path: Path, limits: Limits) -> Iterator[pd.DataFrame]:
    """Yield a CSV file in frames whose index is the row number (the header is row 1)."""
    import pandas as pd

    with opened(path, limits, MAX_LINE_BYTES) as stream:
        try:
            reader = pd.read_csv(
                stream,
                chunksize=CHUNK_ROWS,
                index_col=False,
                skipinitialspace=True,
                skip_blank_lines=False,
                low_memory=False,
            )
            while (frame := _next_frame(reader)) is not None:
                frame.columns = frame.columns.str.strip()
                frame.index = frame.index + 2
                yield frame
        except UnicodeDecodeError as error:
            raise bad(path, "not UTF-8", row=_first_undecodable(path, limits)) from error
        except pd.errors.ParserWarning as error:
            raise bad(path, "more fields than the header has", row=2) from error
        except pd.errors.ParserError as error:
            reason = str(error).removeprefix("Error tokenizing data. C error: ")
            raise bad(path, f"malformed CSV: {reason}") from error


def _next_frame(reader: TextFileReader) -> pd.DataFrame | None:
    """Return the next frame; fields that would be lost are an error, not a warning."""
    from pandas.errors import ParserWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)
        return next(reader, None)


def _first_undecodable(path: Path, limits: Limits) -> int:
    with opened(path, limits) as stream:
        for row, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return row
    return row


def parquet_columns(path: Path) -> list[str]:
    """Return the column names of a Parquet file."""
    with _parquet(path) as file:
        return list(file.schema_arrow.names)


def parquet_frames(path: Path, limits: Limits, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Yield some columns of a Parquet file in frames whose index is the row number, from 1."""
    with _parquet(path) as file:
        if file.metadata.num_rows > limits.max_rows:
            raise over_rows(path, limits)
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > limits.max_bytes:
            raise bad(path, f"more than {limits.max_bytes} bytes decompressed (the limit)")
        first = 1
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=columns):
            frame = batch.to_pandas()
            frame.index = frame.index + first
            first += len(frame)
            yield frame


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise bad(path, f"not a readable Parquet file: {error}") from error


def over_rows(path: Path, limits: Limits) -> Exception:
    """Return the error for a file with too many rows."""
    return bad(path, f"more than {limits.max_rows} rows (the limit; --max-rows raises it)")
