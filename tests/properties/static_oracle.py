"""Run-to-completion batches once more, row by row and step by step."""

from __future__ import annotations

import numpy as np
from audit import StaticPlan

from sim.core.records import STATIC_DECODE, STATIC_PREFILL
from sim.core.spec import InstanceSpec

Step = tuple[int, int, int]
"""Rows charged, KV tokens before the step, rows that emit a token they keep."""


def steps_of(
    batch: StaticPlan,
    spec: InstanceSpec,
    output_len: list[int],
    stopped: bool = False,
    killed_after: int | None = None,
) -> list[Step] | None:
    """Return the decode steps of a batch; None if not even its prefill fits.

    With `stopped` the run ends before a crash could take any tokens; `killed_after` so many steps
    the tokens of rows that have not left by then are lost.
    """
    cap = batch.plan.max_new_tokens or max(output_len)
    left = [min(output_len[i], cap) - 1 for i in batch.ids]
    skip, each = batch.plan.finished_rows == "skip", batch.plan.release == "each"

    def fits(steps: int) -> bool:
        """Finished rows keep their blocks, and go on growing while they are computed."""
        size, blocks = spec.block_size, 0
        for tokens, own in zip(batch.lens, left, strict=True):
            blocks += -(-(tokens + (min(steps, own) if skip else steps)) // size)
        return blocks <= batch.free_blocks

    if not fits(0) or 0 < spec.max_step_tokens < sum(batch.lens):
        return None
    last = 0
    while last < max(left) and fits(last + 1):
        last += 1
    crashes = last < max(left) and not stopped
    steps = []
    for k in range(last):
        rows = [i for i, own in enumerate(left) if own > k or not skip]
        emitting = [i for i, own in enumerate(left) if own > k]
        if crashes or killed_after is not None:  # what has not left by then is lost
            end = last if killed_after is None else killed_after
            emitting = [i for i in emitting if each and left[i] <= end]
        steps.append((len(rows), sum(batch.lens[i] + k for i in rows), len(emitting)))
    return steps


def check_static(
    batches: list[StaticPlan],
    specs: list[InstanceSpec],
    output_len: list[int],
    steps: dict[str, np.ndarray],
    stopped: bool,
    failures: list[tuple[int, float]],
) -> int:
    """Compare all batches with the expanded step log; return how many failures have killed.

    With `stopped` a horizon may have cut the last batch of each instance; `failures` are pairs of
    an instance and when it failed.
    """
    killed = 0
    for instance, spec in enumerate(specs):
        mine = steps["instance"] == instance
        found, starts_s = _found({name: values[mine] for name, values in steps.items()})
        expected: list[Step | str] = []
        own = [b for b in batches if b.instance == instance]
        for at, batch in enumerate(own):
            before, of_batch = len(expected), steps_of(batch, spec, output_len)
            if of_batch is not None:
                expected += ["prefill", *of_batch]
            next_s = own[at + 1].start_s if at + 1 < len(own) else float("inf")
            fails = [t for i, t in failures if i == instance and batch.start_s <= t < next_s]
            if fails:
                ran = sum(1 for start_s in starts_s[before:] if start_s < fails[0])
                if ran < len(expected) - before:
                    cut = steps_of(batch, spec, output_len, killed_after=max(ran - 1, 0)) or []
                    expected = [*expected[:before], *["prefill", *cut][:ran]]
                    killed += 1
                continue
            if stopped and len(found) < len(expected):
                cut = steps_of(batch, spec, output_len, stopped=True) or []
                expected = [*expected[:before], "prefill", *cut][: len(found)]
        assert found == expected
    return killed


def _found(steps: dict[str, np.ndarray]) -> tuple[list[Step | str], list[float]]:
    columns = [steps[name].tolist() for name in ("decode_requests", "kv_tokens", "emitting")]
    found: list[Step | str] = []
    starts_s: list[float] = []
    for at, kind in enumerate(steps["kind"].tolist()):
        if kind == STATIC_PREFILL:
            found.append("prefill")
        elif kind == STATIC_DECODE:
            found.append((columns[0][at], columns[1][at], columns[2][at]))
        if len(found) > len(starts_s):
            starts_s.append(float(steps["start_s"][at]))
    return found, starts_s
