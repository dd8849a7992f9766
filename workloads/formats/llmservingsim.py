"""Workloads of LLMServingSim.

JSON lines with `input_toks`, `output_toks`, `arrival_time_ns`. Agentic sessions (`sub_requests`)
depend on their own completions, which a trace cannot say: a file with one is refused.
https://github.com/casys-kaist/LLMServingSim, `workloads/README.md`
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.formats.base import Format, Piece, Source, bad, entry_columns

FIELDS = {
    "arrival_s": "arrival_time_ns",
    "input_len": "input_toks",
    "output_len": "output_toks",
}


def _read(source: Source) -> Iterator[Piece]:
    for rows, entries in source.entries():
        for row, entry in zip(rows, entries, strict=True):
            if "sub_requests" in entry:
                message = "an agentic session (sub_requests); only flat requests can be replayed"
                raise bad(source.path, message, row)
        yield Piece(rows, entry_columns(entries, FIELDS))


FORMAT = Format(
    "llmservingsim",
    ("json",),
    [("input_toks", "sub_requests"), ("output_toks", "sub_requests"), ("arrival_time_ns",)],
    _read,
    ticks_per_s=10**9,
)
