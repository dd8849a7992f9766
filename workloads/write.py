"""Write a trace in the plain format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.types import Trace
from workloads.base import Ints, bad

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".csv.gz", ".parquet")


def write_plain(trace: Trace, path: str | Path) -> None:
    """Write a trace as CSV, gzipped CSV or Parquet, by the suffix of `path`.

    Reading it back gives equal columns; equal traces give equal bytes. The file appears when it is
    complete.

    Raises:
        BadInput: another suffix, or a place that cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise bad(path, f"cannot tell the format; valid suffixes: {', '.join(SUFFIXES)}")
    frame = _frame(trace)
    with written_aside(path) as part:
        if path.suffix == ".parquet":
            frame.to_parquet(part, index=False)
        elif path.suffix == ".gz":
            # No time stamp inside, so that equal traces give equal bytes.
            frame.to_csv(part, index=False, compression={"method": "gzip", "mtime": 1})
        else:
            frame.to_csv(part, index=False)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path` if all went well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise bad(path, f"cannot write: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _frame(trace: Trace) -> pd.DataFrame:
    import pandas as pd

    n = len(trace)
    arrival = np.full(n, np.nan) if trace.arrival_s is None else trace.arrival_s
    hashes = trace.block_hashes
    columns: dict[str, Any] = {
        "arrived_at_s": arrival,
        "prompt_tokens": trace.input_len,
        "output_tokens": trace.output_len,
        "priority": trace.priority,
        "task": _named(trace.task, trace.tasks),
        "source": _named(trace.source, trace.sources),
        "prefix_group": trace.prefix_group,
        "shared_prefix_tokens": trace.prefix_len,
        "hash_block_tokens": None if hashes is None else trace.hash_block_tokens,
        "block_hashes": None if hashes is None else [";".join(map(str, ids)) for ids in hashes],
    }
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def _named(codes: Ints | None, names: tuple[str, ...]) -> Any:
    return None if codes is None else np.array(names, dtype=object)[codes]
