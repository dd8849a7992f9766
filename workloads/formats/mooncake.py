"""Mooncake traces.

JSON lines with `timestamp` (milliseconds), `input_length`, `output_length` and `hash_ids`: one id
for each 512 tokens of the prompt, equal ids meaning equal prefixes up to that block.
https://github.com/kvcache-ai/Mooncake, `FAST25-release/traces`
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.formats.base import Format, Piece, Source, entry_columns

FIELDS = {
    "arrival_s": "timestamp",
    "input_len": "input_length",
    "output_len": "output_length",
    "block_hashes": "hash_ids",
}


def _read(source: Source) -> Iterator[Piece]:
    for rows, entries in source.entries():
        yield Piece(rows, entry_columns(entries, FIELDS))


FORMAT = Format(
    "mooncake",
    ("json",),
    [(key,) for key in FIELDS.values()],
    _read,
    ticks_per_s=1_000,
    hash_block_tokens=512,
    whole_hashes=True,
)
