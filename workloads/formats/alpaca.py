"""Stanford Alpaca instructions.

A JSON array of objects with `instruction`, `input` (may be empty) and `output`. The prompt is the
instruction and, on a new line, the input, without Alpaca's own template (36-38 tokens more).
Entries without output are dropped and counted. The prompt counts special tokens, the output not.
https://github.com/tatsu-lab/stanford_alpaca
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.formats.base import Column, Format, Piece, Source, texts_of

KEYS = ("instruction", "input", "output")


def _read(source: Source) -> Iterator[Piece]:
    for all_rows, entries in source.entries():
        texts = [texts_of(source, *one, KEYS) for one in zip(all_rows, entries, strict=True)]
        kept = [i for i, (_, _, output) in enumerate(texts) if output.strip()]
        prompts = ["\n".join(filter(None, texts[i][:2])) for i in kept]
        outputs = [texts[i][2] for i in kept]
        columns = {
            "input_len": Column("prompt tokens", source.count_tokens(prompts, special_tokens=True)),
            "output_len": Column("output tokens", source.count_tokens(outputs, False)),
        }
        dropped = {"no_output": len(entries) - len(kept)}
        yield Piece([all_rows[i] for i in kept], columns, dropped)


FORMAT = Format("alpaca", ("json",), [(key,) for key in KEYS], _read)
