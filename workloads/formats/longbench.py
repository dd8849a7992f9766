"""LongBench samples, all 21 tasks.

JSON lines with `context`, `input`, `answers` (a list) and `dataset` (the task). LongBench wraps
context and input in a prompt template of the task; of a template only its length matters here, so
the prompt has the tokens of the context, of the input and of the task's template. Those were
counted with a 32k SentencePiece vocabulary; other tokenizers differ by a few tokens in prompts of
thousands. The output is the longest reference answer.
https://github.com/THUDM/LongBench
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workloads.base import unknown
from workloads.formats.base import Column, Format, Piece, Source, bad, texts_of

TEMPLATE_TOKENS = {
    "2wikimqa": 68,
    "dureader": 47,
    "gov_report": 43,
    "hotpotqa": 68,
    "lcc": 15,
    "lsht": 23,
    "multi_news": 43,
    "multifieldqa_en": 46,
    "multifieldqa_zh": 65,
    "musique": 68,
    "narrativeqa": 91,
    "passage_count": 110,
    "passage_retrieval_en": 78,
    "passage_retrieval_zh": 98,
    "qasper": 169,
    "qmsum": 60,
    "repobench-p": 15,
    "samsum": 21,
    "trec": 19,
    "triviaqa": 32,
    "vcsum": 45,
}
"""Task -> tokens of its template without context and input (`../shared/data`, longbench)."""


def _read(source: Source) -> Iterator[Piece]:
    for rows, entries in source.entries():
        parsed = [_parse(source, *one) for one in zip(rows, entries, strict=True)]
        contexts = source.count_tokens([c for c, _, _, _ in parsed], special_tokens=True)
        inputs = source.count_tokens([i for _, i, _, _ in parsed], special_tokens=False)
        prompts = [
            context + given + template
            for context, given, (*_, template) in zip(contexts, inputs, parsed, strict=True)
        ]
        outputs = [
            max(source.count_tokens(answers, special_tokens=False)) for _, _, answers, _ in parsed
        ]
        columns = {
            "input_len": Column("prompt tokens", prompts),
            "output_len": Column("answer tokens", outputs),
        }
        yield Piece(rows, columns)


def _parse(source: Source, row: int, entry: dict[str, Any]) -> tuple[str, str, list[str], int]:
    context, given, task = texts_of(source, row, entry, ("context", "input", "dataset"))
    task = task.removesuffix("_e")  # the length-balanced subset LongBench-E has the same tasks
    if task not in TEMPLATE_TOKENS:
        raise unknown(f"{source.path}: row {row}", "dataset", task, TEMPLATE_TOKENS)
    answers = entry["answers"]
    if not isinstance(answers, list) or not answers or {type(a) for a in answers} != {str}:
        raise bad(source.path, "answers is not a list of texts", row)
    return context, given, answers, TEMPLATE_TOKENS[task]


FORMAT = Format(
    "longbench", ("json",), [("context",), ("input",), ("answers",), ("dataset",)], _read
)
