"""What a reader of any output must be told, as one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.core.records import RunRecord
from sim.study.statistics.stability import BACKLOGGED, OVERLOADED

_OF_TRACE = {
    "dropped": "rows of the workload were dropped",
    "truncated": "prompts were cut to max_model_len",
    "outputs_capped": "outputs were cut to max_output_len",
    "sorted": "arrivals were out of order and have been sorted",
}
_OF_RUN = {
    "oom_events": "out-of-memory events: batches were lost and run again",
    "failures": "failures of instances: their requests were put back and served again",
    "extrapolated_steps": "steps were priced outside the profile's fitted range",
    "policy_below_bands": "arrivals came at a load below all bands and got the lowest's table",
    "policy_above_bands": "arrivals came at a load above all bands and got the highest's table",
}
_OF_STATUS = {
    "rejected": "requests were rejected: longer than max_model_len or than the memory holds",
    "unfinished": "requests had not finished at the horizon",
    "aborted": "requests were given up by their client",
}


def notices(
    setup_notes: Iterable[str],
    trace_notes: Sequence[dict[str, Any]],
    records: Sequence[RunRecord],
    same_requests: bool,
    saturation: str,
) -> tuple[str, ...]:
    """Return the notices of a study; counts are sums over its replications.

    Args:
        setup_notes: about profiles and memory.
        trace_notes: counters of each replication's workload.
        records: of each replication.
        same_requests: whether all replications ran the same requests.
        saturation: verdict of the study.
    """
    over = f" (over {len(records)} replications)" if len(records) > 1 else ""
    lines = list(setup_notes)
    lines += trace_notices(trace_notes, over)
    for key, text in _OF_RUN.items():
        lines += _counted(sum(r.counters.get(key, 0) for r in records), text, over)
    for status, text in _OF_STATUS.items():
        count = sum(int((r.requests["status"] == status).sum()) for r in records)
        lines += _counted(count, text, over)
    if all("prefix_recovered_tokens" in r.counters for r in records):
        found = sum(int(r.requests["cached_tokens"].sum()) for r in records)
        if not found + sum(r.counters["prefix_recovered_tokens"] for r in records):
            lines.append(
                "prefix caching found nothing: no prefix is shared in time, or the policy pads its "
                "prompts or runs static batches, which are computed whole"
            )
    if same_requests:
        lines.append(
            "every replication ran the same requests: the intervals do not show how other "
            "requests would do"
        )
    if saturation == OVERLOADED:
        lines.append("overloaded: the queue grows to the end, latencies depend on the run's length")
    if saturation == BACKLOGGED:
        lines.append(
            "backlogged: the queue persists for much of a run, intervals of latencies may be too "
            "narrow to be trusted; ask for longer runs (workload.num_requests or duration_s)"
        )
    return tuple(dict.fromkeys(lines))


def warmup_notices(cuts_s: Sequence[float], unsettled: int) -> tuple[str, ...]:
    """Return what MSER-5 cut from the replications, and in how many it found no steady state."""
    low, high = min(cuts_s), max(cuts_s)
    span = f"{low:.4g} s" if low == high else f"{low:.4g} to {high:.4g} s"
    lines = [f"warm-up by MSER-5: requests that arrive in the first {span} are not counted"]
    if unsettled:
        lines.append(
            f"MSER-5 would cut more than half of {unsettled} of {len(cuts_s)} replications (no "
            "steady state, or too few requests to see one) and cut half of each; ask for longer "
            "runs (workload.num_requests or duration_s)"
        )
    return tuple(lines)


def batch_notices(batch_means: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return which batch means of a single run (`statistics.batch_means`) are not independent."""
    failed = [key for key, found in batch_means.items() if not found["independent"]]
    if not failed:
        return ()
    return (
        f"one run: batch means of {', '.join(failed)} are correlated, their intervals are too "
        "narrow; ask for a longer run (workload.num_requests or duration_s) or replications",
    )


def trace_notices(notes: Sequence[dict[str, Any]], over: str = "") -> list[str]:
    """Return what readers and generators of workloads counted."""
    counts = {key: sum(n.get(key, 0) for n in notes) for key in _OF_TRACE}
    return [line for key, text in _OF_TRACE.items() for line in _counted(counts[key], text, over)]


def _counted(count: int, text: str, over: str) -> list[str]:
    return [f"{count} {text}{over}"] if count else []
