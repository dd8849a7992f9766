"""Result files of `vllm bench serve --save-result --save-detailed`.

One JSON object whose lists `input_lens`, `output_lens`, `start_times` and `errors` hold one item a
request. Requests that failed (an error text, or no output tokens) are dropped and counted; a file
without `start_times` has lengths only.
https://github.com/vllm-project/vllm, `vllm/benchmarks/serve.py`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workloads.formats.base import Column, Format, Piece, Source, bad

KEYS = {"input_len": "input_lens", "output_len": "output_lens", "arrival_s": "start_times"}


def _read(source: Source) -> Iterator[Piece]:
    for _, entries in source.entries():
        if len(entries) > 1:
            raise bad(source.path, f"{len(entries)} results in one file; split it, one a file")
        for entry in entries:
            yield _piece(source, entry)


def _piece(source: Source, entry: dict[str, Any]) -> Piece:
    lists = {field: entry[key] for field, key in KEYS.items() if entry.get(key) is not None}
    for field in ("input_len", "output_len"):
        if not isinstance(lists.get(field), list):
            message = f"no list {KEYS[field]!r}: rerun vllm bench serve with --save-detailed"
            raise bad(source.path, message)
    n = len(lists["input_len"])
    errors = entry.get("errors") or [""] * n
    for name, values in [*((KEYS[field], lists[field]) for field in lists), ("errors", errors)]:
        if not isinstance(values, list) or len(values) != n:
            raise bad(source.path, f"{name!r} is not a list of {n} items, as 'input_lens' is")
    ok = [i for i in range(n) if not errors[i] and lists["output_len"][i] != 0]
    columns = {
        field: Column(KEYS[field], [values[i] for i in ok]) for field, values in lists.items()
    }
    return Piece([i + 1 for i in ok], columns, {"failed": n - len(ok)})


FORMAT = Format(
    "vllm",
    ("json",),
    [("input_lens", "total_input_tokens"), ("request_throughput",)],
    _read,
    absolute=True,
)
