"""What each phase of a run took: of a request's time, of the GPUs' time, of their operations.

* `mean_queue_ms`, `mean_prefill_ms`, `mean_decode_ms`: arrival to the first prompt step, that to
  the end of the prompt, that to the last token; over the requests of the window that finished.
* `phase_busy_prefill`, `phase_busy_decode`: time in steps of the phase over the time of the
  instances that can run it (a pool of its role, or mixed ones).
* `phase_mfu_prefill`, `phase_mfu_decode`: FLOPs of the tokens served, each once, over the peak of
  those instances in the steps of the phase.
* `gpu_kernel_frac`: as `gpu_busy_frac`, each step for as long as it would last without the engine's
  `min_step_ms`: a step of a host-bound engine keeps the GPU busy for a part of its time only.
* `bucketing_operations`: what the policy counted (`Policy.operation_counts`), 0 for most policies;
  `mean_batch_rows`: requests in the prompt step that a request is in, on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.core.records import DECODE, STATIC_DECODE, RunRecord
from sim.types import FS_PER_S, CostModel

if TYPE_CHECKING:
    from sim.study.statistics.metrics import Frame

Floats = NDArray[np.float64]

MS_PER_S = 1e3
OPERATION = "policy_"
"""What the counters of a policy begin with."""


def phase_figures(
    record: RunRecord, frame: Frame, start_s: float, duration_s: float, span_s: Floats
) -> dict[str, Any]:
    """Return the figures of a replication; NaN where one is undefined.

    Args:
        record: the run.
        frame: its warm-up, peaks and operations.
        start_s: of the window, seconds.
        duration_s: of the run, seconds.
        span_s: how long each row of the step log lasts, seconds.
    """
    decoding = np.isin(record.steps["kind"], (DECODE, STATIC_DECODE))
    figures = _request_times(record, start_s)
    for phase, of_phase in (("prefill", ~decoding), ("decode", decoding)):
        able = _share(record, phase) * duration_s
        busy = float(span_s[of_phase].sum()) / len(record.instances)
        figures[f"phase_busy_{phase}"] = busy / (able or np.nan)
    figures |= _useful(record, frame, span_s, decoding)
    kernel = _kernel_s(record, frame.unfloored, span_s, decoding)
    figures["gpu_kernel_frac"] = float(kernel.sum()) / (
        len(record.instances) * duration_s or np.nan
    )
    counted = {k: n for k, n in record.counters.items() if k.startswith(OPERATION)}
    figures["bucketing_operations"] = sum(counted.values())
    rows = record.steps["prefill_requests"].astype(np.float64)
    figures["mean_batch_rows"] = float((rows**2).sum() / (rows.sum() or np.nan))
    return figures


def _request_times(record: RunRecord, start_s: float) -> dict[str, float]:
    rows: dict[str, NDArray[Any]] = record.requests
    counted = (rows["status"] == "finished") & (rows["arrival_s"] >= start_s)
    ends = [rows[k][counted] for k in ("arrival_s", "prefill_start_s", "prefill_end_s", "finish_s")]
    found = {}
    for name, begin, end in zip(("queue", "prefill", "decode"), ends, ends[1:], strict=False):
        spent = (end - begin) * MS_PER_S
        found[f"mean_{name}_ms"] = float(spent.mean()) if len(spent) else float("nan")
    return found


def _share(record: RunRecord, phase: str) -> float:
    """Return the share of the instances that can run a phase."""
    able = [i.get("role", "mixed") in (phase, "mixed") for i in record.instances]
    return sum(able) / len(able)


def _useful(
    record: RunRecord, frame: Frame, span_s: Floats, decoding: NDArray[np.bool_]
) -> dict[str, float]:
    """Return useful FLOPs of each phase over the peak of the GPUs in its steps."""
    rows: dict[str, NDArray[Any]] = record.requests
    served = rows["emitted_tokens"] > 0
    prompt = rows["input_len"][served].astype(np.float64)
    whole = prompt + rows["emitted_tokens"][served] - 1.0
    pairs = prompt * (prompt + 1) / 2, whole * (whole + 1) / 2
    tokens = float(prompt.sum()), float((whole - prompt).sum())
    looks = float(pairs[0].sum()), float((pairs[1] - pairs[0]).sum())
    gpus = np.array([float(str(i.get("tp", 1))) for i in record.instances])
    peak = frame.peak_flops_per_s * gpus / gpus.sum()
    found = {}
    for at, (phase, of_phase) in enumerate((("prefill", ~decoding), ("decode", decoding))):
        done = tokens[at] * frame.flops_per_token + looks[at] * frame.attention_flops_per_pair
        could = float((span_s * peak[record.steps["instance"]])[of_phase].sum())
        found[f"phase_mfu_{phase}"] = done / (could or np.nan)
    return found


def _kernel_s(
    record: RunRecord, unfloored: Sequence[CostModel], span_s: Floats, decoding: NDArray[np.bool_]
) -> Floats:
    """Return how long the GPU works in each row of the step log, seconds.

    Prompts of one step count as equally long; the pieces of a decode line beyond the first (a knot
    of the profile) are left out.
    """
    if not unfloored:
        return span_s
    steps = record.steps
    kernel_s = span_s.copy()
    for instance, costs in enumerate(unfloored):
        mine = steps["instance"] == instance
        for batch in np.unique(steps["decode_requests"][mine & decoding]):
            at = mine & decoding & (steps["decode_requests"] == batch)
            piece = costs.decode(int(batch))
            n, kv = steps["n_steps"][at].astype(np.float64), steps["kv_tokens"][at]
            mean_kv = kv + batch * (n - 1) / 2
            kernel_s[at] = n * (piece.base_fs + piece.slope_fs * mean_kv) / FS_PER_S
        for at in np.flatnonzero(mine & ~decoding):
            rows, tokens = int(steps["prefill_requests"][at]), int(steps["padded_tokens"][at])
            quad = tokens * tokens // max(rows, 1)
            kernel_s[at] = costs.step(max(rows, 1), tokens, tokens, quad, 0, 0) / FS_PER_S
    return np.minimum(kernel_s, span_s)
