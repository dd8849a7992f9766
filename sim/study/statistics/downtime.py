"""What failures of instances cost a run."""

from __future__ import annotations

from typing import Any

from sim.core.records import RunRecord


def downtime_figures(record: RunRecord, duration: float) -> dict[str, Any]:
    """Return `failures` (of engines) and `downtime_frac`, the share of instance time spent down."""
    down_s = sum(max(min(o.end_s, duration) - o.start_s, 0.0) for o in record.outages)
    time_s = len(record.instances) * duration
    return {
        "failures": record.counters.get("failures", 0),
        "downtime_frac": down_s / time_s if time_s else 0.0,
    }
