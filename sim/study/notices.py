"""What a reader of any output must be told, as one line each.

A *tally* is what one run has to tell: text -> how often it happened, 0 for what is not counted and
holds of a study if it holds of all its runs. Tallies are added up over replications; of a sweep,
every text is told once, with the number of points that it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.core.records import RunRecord
from sim.study.statistics.stability import BACKLOGGED, OVERLOADED

Tally = dict[str, int]

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


_OF_PREFIXES = (
    "prefix caching found nothing: no prefix is shared in time, or the policy pads its prompts or "
    "runs static batches, which are computed whole"
)
_OF_VERDICT = {
    OVERLOADED: "overloaded: the queue grows to the end, latencies depend on the run's length",
    BACKLOGGED: "backlogged: the queue persists for much of a run, intervals of latencies may be "
    "too narrow to be trusted; ask for longer runs (workload.num_requests or duration_s)",
}
_SAME_REQUESTS = (
    "every replication ran the same requests: the intervals do not show how other requests would do"
)

UNSETTLED = "replications in which MSER-5 found no steady state: it cut half of each"
"""Told of sweeps; of a study `warmup_notices` says more."""


def tally(trace_notes: Mapping[str, Any], record: RunRecord) -> Tally:
    """Return what one run has to tell.

    Args:
        trace_notes: counters of its workload.
        record: its rows and counters.
    """
    status = record.requests["status"]
    counts = {text: int(trace_notes.get(key, 0)) for key, text in _OF_TRACE.items()}
    counts |= {text: record.counters.get(key, 0) for key, text in _OF_RUN.items()}
    counts |= {text: int((status == name).sum()) for name, text in _OF_STATUS.items()}
    told = {text: count for text, count in counts.items() if count}
    recovered = record.counters.get("prefix_recovered_tokens")
    if recovered is not None and not recovered + int(record.requests["cached_tokens"].sum()):
        told[_OF_PREFIXES] = 0
    return told


def added(tallies: Sequence[Tally]) -> Tally:
    """Return the tally of several runs of one study, in the order of a run's."""
    order = (*_OF_TRACE.values(), *_OF_RUN.values(), *_OF_STATUS.values(), _OF_PREFIXES)
    texts = dict.fromkeys((*order, *(text for of in tallies for text in of)))
    total = {text: sum(of.get(text, 0) for of in tallies) for text in texts}
    return {t: n for t, n in total.items() if n or (tallies and all(t in of for of in tallies))}


def of_study(tallies: Sequence[Tally], same_requests: bool, saturation: str) -> Tally:
    """Return the tally of a study.

    Args:
        tallies: of each replication.
        same_requests: whether all replications ran the same requests.
        saturation: verdict of the study.
    """
    told = added(tallies)
    if same_requests:
        told[_SAME_REQUESTS] = 0
    if saturation in _OF_VERDICT:
        told[_OF_VERDICT[saturation]] = 0
    return told


def notices(
    setup_notes: Iterable[str], tallies: Sequence[Tally], same_requests: bool, saturation: str
) -> tuple[str, ...]:
    """Return the notices of a study; counts are sums over its replications.

    Args:
        setup_notes: about the config, profiles and memory.
        tallies: of each replication.
        same_requests: whether all replications ran the same requests.
        saturation: verdict of the study.
    """
    lines = lines_of(of_study(tallies, same_requests, saturation), len(tallies))
    return tuple(dict.fromkeys((*setup_notes, *lines)))


def lines_of(told: Tally, replications: int) -> list[str]:
    """Return the lines of a tally that was added up over so many replications."""
    over = f" (over {replications} replications)" if replications > 1 else ""
    return [f"{count} {text}{over}" if count else text for text, count in told.items()]


def by_point(tallies: Sequence[Tally], what: str = "points") -> tuple[str, ...]:
    """Return each text once, with the number of points (or whatever `what` says) it is about."""
    lines = []
    for text in dict.fromkeys(text for of in tallies for text in of):
        about = [of[text] for of in tallies if text in of]
        line = f"{sum(about)} {text}" if sum(about) else text
        lines.append(f"{line} ({len(about)} of {len(tallies)} {what})")
    return tuple(lines)


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


def trace_notices(notes: Mapping[str, Any]) -> list[str]:
    """Return what readers and generators of workloads counted."""
    return [f"{notes[key]} {text}" for key, text in _OF_TRACE.items() if notes.get(key)]
