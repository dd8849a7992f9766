"""The plain format: what `convert` and `generate` write.

CSV or Parquet with `arrived_at_s` or `arrival_s` (seconds; empty: the workload's `arrivals` supply
them), `prompt_tokens` or `input_len`, `output_tokens` or `output_len`, and optionally `priority`,
`task`, `source`, `prefix_group`, `shared_prefix_tokens` or `prefix_len` (of a group's first request
it may be 0 or empty), `block_hashes` (integers joined by `;`: one for each `hash_block_tokens`, by
default 16, of the prompt from its start; what follows is nobody else's) and `request` (a number,
only for `workload.prefix_blocks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from workloads.formats.base import Column, Format, Piece, Source, table_piece

NEEDS = {
    "input_len": ("prompt_tokens", "input_len"),
    "output_len": ("output_tokens", "output_len"),
}
FIELDS = {
    "arrival_s": ("arrived_at_s", "arrival_s"),
    **NEEDS,
    "priority": ("priority",),
    "task": ("task",),
    "source": ("source",),
    "prefix_group": ("prefix_group",),
    "prefix_len": ("shared_prefix_tokens", "prefix_len"),
    "block_hashes": ("block_hashes",),
    "hash_block_tokens": ("hash_block_tokens",),
    "request": ("request",),
}


def _read(source: Source) -> Iterator[Piece]:
    for frame in source.tables(FIELDS):
        piece = table_piece(frame, FIELDS)
        hashes = piece.columns.get("block_hashes")
        if hashes is not None:
            lists = Column(hashes.name, [_integers(cell) for cell in hashes.values])
            piece = replace(piece, columns={**piece.columns, "block_hashes": lists})
        yield piece


def _integers(cell: Any) -> list[Any]:
    """Return the integers of one cell; what is none stays text and is rejected later."""
    if cell != cell:
        return []
    parts = str(cell).removesuffix(".0").split(";")  # one id a row, one row empty: floats
    return [int(part) if part.isdecimal() and len(part) < 20 else part for part in parts]


FORMAT = Format("plain", ("csv", "parquet"), tuple(NEEDS.values()), _read)
