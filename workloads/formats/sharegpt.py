"""ShareGPT conversations, filtered as vLLM's benchmarks do.

A JSON array of objects with `conversations`, a list of turns with `value`. The first turn is the
prompt, the second the output. Left out and counted: fewer than two turns; prompt or output under 4
tokens; prompt over 1,024 tokens; both together over 2,048. Special tokens count on both sides, and
the order stays that of the file (vLLM shuffles).
https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered;
https://github.com/vllm-project/vllm, `vllm/benchmarks/datasets`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workloads.formats.base import Column, Format, Piece, Source, bad

MIN_TOKENS = 4
MAX_PROMPT_TOKENS = 1_024
MAX_TOTAL_TOKENS = 2_048


def _read(source: Source) -> Iterator[Piece]:
    for all_rows, entries in source.entries():
        turns = [_first_turns(source, *one) for one in zip(all_rows, entries, strict=True)]
        kept = [(row, *pair) for row, pair in zip(all_rows, turns, strict=True) if pair]
        prompts = source.count_tokens([prompt for _, prompt, _ in kept], special_tokens=True)
        outputs = source.count_tokens([output for _, _, output in kept], special_tokens=True)
        fit = [
            (row, i, o)
            for (row, _, _), i, o in zip(kept, prompts, outputs, strict=True)
            if min(i, o) >= MIN_TOKENS and i <= MAX_PROMPT_TOKENS and i + o <= MAX_TOTAL_TOKENS
        ]
        columns = {
            "input_len": Column("prompt tokens", [i for _, i, _ in fit]),
            "output_len": Column("output tokens", [o for _, _, o in fit]),
        }
        dropped = {"turns": len(entries) - len(kept), "length": len(kept) - len(fit)}
        yield Piece([row for row, _, _ in fit], columns, dropped)


def _first_turns(source: Source, row: int, entry: dict[str, Any]) -> tuple[str, str] | None:
    turns = entry.get("conversations", [])
    if not isinstance(turns, list):
        raise bad(source.path, "conversations is not a list of turns", row)
    if len(turns) < 2:
        return None
    prompt, output = (t.get("value") if isinstance(t, dict) else None for t in turns[:2])
    if not isinstance(prompt, str) or not isinstance(output, str):
        raise bad(source.path, "a turn of conversations has no text 'value'", row)
    return prompt, output


FORMAT = Format("sharegpt", ("json",), [("conversations",)], _read)
