"""Azure LLM inference traces of 2023 and 2024.

CSV with `TIMESTAMP` (date and time, with up to 7 decimals, with or without offset),
`ContextTokens`, `GeneratedTokens`.
https://github.com/Azure/AzurePublicDataset, `AzureLLMInferenceDataset2023.md` and `…2024.md`
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.formats.base import Format, Piece, Source, bad, table_piece

FIELDS = {
    "arrival_s": ("TIMESTAMP",),
    "input_len": ("ContextTokens",),
    "output_len": ("GeneratedTokens",),
}


def _read(source: Source) -> Iterator[Piece]:
    import pandas as pd

    origin: pd.Timestamp | None = None
    for frame in source.tables(FIELDS):
        stamps = frame["TIMESTAMP"]
        times = pd.to_datetime(stamps, format="ISO8601", utc=True, errors="coerce")
        wrong = times.isna() & frame.notna().any(axis=1)
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            message = f"TIMESTAMP is {str(stamps.iloc[at])[:40]!r}; expected a date and time"
            raise bad(source.path, message, int(frame.index[at]))
        # Counted from the first row: seconds since 1970 would leave too few bits for the fraction.
        origin = origin or next(iter(times.dropna()), None)
        if origin is not None:
            frame = frame.assign(TIMESTAMP=(times - origin).dt.total_seconds())
        yield table_piece(frame, FIELDS)


FORMAT = Format("azure", ("csv",), tuple(FIELDS.values()), _read, absolute=True)
