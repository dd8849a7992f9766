"""What `capacity --placement` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sim.cli.show import notices, say, show_columns, show_json

if TYPE_CHECKING:
    from sim.study.capacity.placement import Candidate, Found, Layout, Placement

NAMED = 4
"""Skipped layouts that are named with a reason they share."""


def show_placement(found: Found, json: bool) -> None:
    """Print what a search found."""
    notices(found.notes)
    if json:
        show_json(_content(found))
        return
    _say_skipped(found)
    _show_candidates(found)
    if found.placement is not None:
        _show_placement(found, found.placement)


def _content(found: Found) -> dict[str, Any]:
    """Return what `--json` prints."""
    candidates = [asdict(c) | {"gpus": c.gpus} for c in found.candidates]
    for candidate in candidates:
        candidate["goodput_per_gpu_per_s"] = candidate.pop("goodput_per_gpu")
    chosen = found.placement
    return {
        **asdict(found.search),
        "candidates": candidates,
        "num_skipped": len(found.skipped),
        "skipped": [asdict(s) for s in found.skipped],
        "placement": None if chosen is None else asdict(chosen) | {"gpus": chosen.gpus},
        "attainment_at_rate": None if found.check is None else asdict(found.check),
        "notes": list(found.notes),
    }


def _say_skipped(found: Found) -> None:
    by_reason: dict[str, list[str]] = {}
    for skipped in found.skipped:
        by_reason.setdefault(skipped.reason, []).append(skipped.layout)
    for reason, layouts in by_reason.items():
        some = ", ".join(layouts[:NAMED]) + (", …" if len(layouts) > NAMED else "")
        say(f"skipped {len(layouts)} ({some}): {reason}")


def _show_candidates(found: Found) -> None:
    candidates = found.candidates
    show_columns(
        {
            "judged": [c.phase for c in candidates],
            "prefill": [_cell(c.prefill) for c in candidates],
            "decode": [_cell(c.decode) for c in candidates],
            "GPUs": [c.gpus for c in candidates],
            "req/s per GPU": [_goodput(c) for c in candidates],
            "": ["chosen" if _is_chosen(c, found.placement) else None for c in candidates],
        }
    )


def _cell(layout: Layout | None) -> str:
    return "ideal" if layout is None else str(layout)


def _goodput(candidate: Candidate) -> str:
    if not candidate.goodput_per_gpu:
        return "none"
    return (">= " if candidate.at_bound else "") + f"{candidate.goodput_per_gpu:g}"


def _is_chosen(candidate: Candidate, placement: Placement | None) -> bool:
    if placement is None:
        return False
    return candidate.prefill in (None, placement.prefill) and candidate.decode in (
        None,
        placement.decode,
    )


def _show_placement(found: Found, placement: Placement) -> None:
    search, check = found.search, found.check
    print(
        f"placement for {search.rate_per_s:g} requests/s: {placement.prefill_instances} x prefill "
        f"{placement.prefill}, {placement.decode_instances} x decode {placement.decode}, "
        f"{placement.gpus} GPUs"
    )
    if check is not None:
        print(
            f"its attainment there: {check.total:.1%} (TTFT {check.ttft:.1%}, "
            f"TPOT {check.tpot:.1%}), target {search.attainment:.1%}"
        )
