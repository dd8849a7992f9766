"""Where requests come from: readers, length distributions, arrival processes -> `Trace`.

| module | what |
|---|---|
| `workloads.workload` | `WorkloadConfig`, `build`, `generate`, `source_names` |
| `workloads.read` | `read_trace`, `format_names` |
| `workloads.describe` | `describe`, `plot_histogram` |
| `workloads.write` | `write_plain` |
| `workloads.exports` | `write_as`, `form_names`: what other simulators read |
| `workloads.fetch` | `fetch`, `dataset_names`, `datasets` |
| `workloads.formats` | one file a trace format; adding one registers it |
| `workloads.lengths` | one YAML a fitted distribution; adding one registers it |

Sources of lengths from outside register in the entry-point group `bucketsim.workloads`; an entry
is a function (generator, n) -> (input lengths, output lengths). The names below are imported on
first use, so that the command line starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workloads.read import read_trace
    from workloads.workload import WorkloadConfig, build, generate, source_names
    from workloads.write import write_plain

__all__ = ["WorkloadConfig", "build", "generate", "read_trace", "source_names", "write_plain"]

_ELSEWHERE = {"read_trace": "read", "write_plain": "write"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"workloads.{_ELSEWHERE.get(name, 'workload')}"), name)
