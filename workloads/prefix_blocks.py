"""Shared prefixes beside a trace: a file of block ids, and prefixes drawn for one without.

The file is a CSV with `request` (number of the request in the trace: its `request` column, or its
row from 0) and `block_ids` (integers joined by `;`): the leading prompt blocks that other requests
have too, equal ids meaning equal prefixes up to that block. What follows them is nobody else's, and
a request that shares no block needs no row. A column `run` tells several runs apart.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sim.types import Trace
from workloads.base import MAX_TOKENS, Config, Field, Limits, bad
from workloads.streams import table_frames

NEEDS = ("request", "block_ids")
Blocks = dict[int, tuple[int, ...]]
"""Request -> ids of its leading blocks."""


class SharedPrefix(Config):
    """Prefixes that requests are given, on top of the prompt drawn (as `vllm bench serve` does)."""

    groups: int = Field(1, ge=1, le=MAX_TOKENS, description="different prefixes; each is as likely")
    tokens: int = Field(ge=1, le=MAX_TOKENS, description="length of a prefix [tokens]")
    share: float = Field(1.0, gt=0, le=1, description="share of the requests that have one")


def read_prefix_blocks(path: str | Path, run: str | None = None) -> Blocks:
    """Read the block ids of each request.

    Args:
        path: a CSV, gzipped or not.
        run: the run to take; None: the only one.

    Raises:
        BadInput: one line with file and row.
    """
    path = Path(path)
    found: Blocks = {}
    runs: dict[str, int] = {}
    for frame in table_frames(path, Limits()):
        for name in NEEDS:
            if name not in frame:
                raise bad(path, f"lacks {name}; has {', '.join(map(str, frame.columns))}")
        names = frame["run"] if "run" in frame else [""] * len(frame)
        cells = zip(frame.index, names, frame["request"], frame["block_ids"], strict=True)
        for row, name, request, ids in cells:
            if run is not None and str(name) != run:
                continue
            runs.setdefault(str(name), row)
            if len(runs) > 1:
                raise bad(path, f"has several runs ({', '.join(runs)}); keep the rows of one", row)
            number = _whole(request)
            blocks = [_whole(part) for part in str(ids).removesuffix(".0").split(";")]
            if number < 0 or min(blocks) < 0:
                shown = f"request {request}, block_ids {str(ids)[:40]}"
                raise bad(path, f"{shown}: expected whole numbers, ids joined by ;", row)
            if number in found:
                raise bad(path, f"request {number} has two rows", row)
            found[number] = tuple(blocks)
    if not found:
        raise bad(path, "no requests")
    return found


def _whole(value: object) -> int:
    """Return a whole number, -1 for what is none."""
    text = str(value).removesuffix(".0")
    return int(text) if text.isdecimal() and len(text) < 20 else -1


def with_shared_prefix(
    trace: Trace, prefix: SharedPrefix, max_model_len: int | None, rng: np.random.Generator
) -> Trace:
    """Return the trace with a prefix put before some prompts; what is too long is cut behind."""
    n = len(trace)
    group = rng.integers(prefix.groups, size=n)
    group = np.where(rng.random(n) < prefix.share, group, -1)
    wanted = trace.input_len + np.where(group >= 0, prefix.tokens, 0)
    length = wanted
    if max_model_len is not None:
        length = np.minimum(wanted, max_model_len - trace.output_len)
    cut = int(np.count_nonzero(length < wanted))
    return replace(
        trace,
        input_len=length,
        prefix_group=group,
        prefix_len=np.where(group >= 0, np.minimum(prefix.tokens, length), 0),
        notes={**trace.notes, "truncated": trace.notes.get("truncated", 0) + cut},
    )
