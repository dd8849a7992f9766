"""BurstGPT: a trace of GPT-3.5 and GPT-4 services.

CSV with `Timestamp` (seconds), `Request tokens`, `Response tokens` and others; newer releases have
more columns, so they are taken by name. Zero response tokens mean that the call failed: such rows
are dropped and counted. https://github.com/HPMLL/BurstGPT
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.formats.base import Format, Piece, Source, table_piece

FIELDS = {
    "arrival_s": ("Timestamp",),
    "input_len": ("Request tokens",),
    "output_len": ("Response tokens",),
}


def _read(source: Source) -> Iterator[Piece]:
    import pandas as pd

    for frame in source.tables(FIELDS):
        failed = pd.to_numeric(frame["Response tokens"], errors="coerce") == 0
        yield table_piece(frame[~failed], FIELDS, failed=int(failed.sum()))


FORMAT = Format("burstgpt", ("csv",), tuple(FIELDS.values()), _read)
