"""Results of `vllm bench serve --save-result --save-detailed`.

One JSON object: lists of one item a request (`input_lens output_lens ttfts itls errors`, seconds;
newer versions add `start_times`, on the client's clock) beside totals. What a request took is
`ttft + sum(itls)`, as the benchmark computes it. Without `start_times` the arrivals are drawn again
the way the benchmark draws them.
https://github.com/vllm-project/vllm, `vllm/benchmarks/serve.py`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sim.study.fidelity.measured import MS_PER_S, RECONSTRUCTED, Floats, Measured, latencies_ms
from sim.types import BadInput, Trace
from workloads.base import Limits
from workloads.streams import opened

LISTS = ("input_lens", "output_lens", "ttfts", "itls")
HINTS = {
    "model_id": "model",
    "tensor_parallel_size": "tensor_parallel_size",
    "gpu": "device_name",
    "device_name": "device_name",
    "vllm_version": "vllm_version",
}
"""Keys of the result (`--metadata` adds such) -> what an engine file calls them."""

DEFAULT_SEED = 0
"""Of `vllm bench serve`, which does not write its seed into the result."""


def read_bench(path: Path, seed: int | None = None) -> Measured:
    """Read one result; requests that failed are left out and counted.

    Args:
        path: the file.
        seed: of the benchmark (`--seed`), for redrawn arrivals; None: its default.

    Raises:
        BadInput: not such a result, or lists that do not fit each other.
    """
    result = _result(path)
    lists = _lists(path, result)
    n = len(lists["input_lens"])
    ok = _succeeded(result, lists)
    count = int(ok.sum())
    if not count:
        raise BadInput(f"{path}: all {n} requests failed; nothing to compare")
    ttft_ms = np.array([float(x) for x in lists["ttfts"]])[ok] * MS_PER_S
    itl_s = np.array([math.fsum(gaps) for gaps in lists["itls"]])[ok]
    inputs, outputs = (np.array(lists[key], np.int64)[ok] for key in LISTS[:2])
    notes = [] if count == n else [f"{n - count} failed requests left out: the load was higher"]
    arrival_s, kind = _arrivals(path, result, ok, DEFAULT_SEED if seed is None else seed)
    concurrency = int(result.get("max_concurrency") or 0)
    if kind == "reconstructed":
        notes.append(RECONSTRUCTED)
        if concurrency and not math.isinf(_rate(path, result)):
            notes.append(f"max_concurrency {concurrency} is not modelled beside a finite rate")
    order = np.argsort(arrival_s, kind="stable")
    latency = latencies_ms(ttft_ms, ttft_ms + itl_s * MS_PER_S, outputs)
    return Measured(
        path=path,
        name=path.name.split(".")[0],
        trace=Trace(
            inputs[order],
            outputs[order],
            arrival_s[order],
            sources=("measured",),
            notes={"read": n, "dropped": n - count},
        ),
        latency_ms={key: values[order] for key, values in latency.items()},
        arrivals=kind,  # type: ignore[arg-type]
        concurrency=concurrency if kind == "closed" else None,
        hints={known: result[key] for key, known in HINTS.items() if result.get(key)},
        clock="client",
        notes=tuple(notes),
    )


def redrawn_arrivals(n: int, rate: float, burstiness: float, seed: int) -> Floats:
    """Return arrivals as `vllm bench serve` draws them, seconds from the first, shape (n,).

    Gamma gaps of shape `burstiness` and mean 1/rate, the sum scaled to n/rate. The benchmark seeds
    numpy once and may have drawn prompts from the same stream: the process is right, the single
    times need not be.
    """
    if math.isinf(rate):
        return np.zeros(n)
    stream = np.random.RandomState(seed)
    if math.isinf(burstiness):
        gaps = np.full(n, 1.0 / rate)
    else:
        gaps = stream.gamma(shape=burstiness, scale=1.0 / (rate * burstiness), size=n)
    times = np.cumsum(gaps)
    times *= n / rate / times[-1]
    arrivals: Floats = times - times[0]
    return arrivals


def _result(path: Path) -> dict[str, Any]:
    with opened(path, Limits()) as stream:
        text = stream.read().decode("utf-8-sig", "replace")
    try:
        result = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{path}: not one JSON object: {' '.join(str(error).split())}") from None
    if not isinstance(result, dict):
        raise BadInput(f"{path}: expected one JSON object (one result), got a {_kind(result)}")
    return result


def _lists(path: Path, result: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the lists of one item a request, checked."""
    if not any(key in result for key in ("request_throughput", "total_input_tokens", *LISTS)):
        raise BadInput(
            f"{path}: no field 'ttfts', not a result of vllm bench serve; has "
            f"{', '.join(list(map(str, result))[:8]) or 'nothing'}"
        )
    missing = [key for key in LISTS if not isinstance(result.get(key), list)]
    if missing:
        raise BadInput(
            f"{path}: no list '{missing[0]}': run vllm bench serve again with --save-detailed"
        )
    n = len(result[LISTS[0]])
    for key in (*LISTS, "start_times", "errors"):
        values = result.get(key)
        if values is not None and (not isinstance(values, list) or len(values) != n):
            size = len(values) if isinstance(values, list) else _kind(values)
            raise BadInput(f"{path}: '{key}' has {size} items, 'input_lens' has {n}")
    if not n:
        raise BadInput(f"{path}: 'input_lens' is empty: no requests")
    lists = {key: result[key] for key in LISTS}
    for key in LISTS:
        for row, value in enumerate(lists[key], 1):
            _check(path, key, row, value)
    return lists


def _check(path: Path, key: str, row: int, value: Any) -> None:
    """Refuse an item that is no length, or no time."""
    if key == "itls":
        good = isinstance(value, list) and all(_number(gap) for gap in value)
        wanted = "a list of seconds, 0 or more"
    elif key == "ttfts":
        good, wanted = _number(value), "seconds, 0 or more"
    else:
        good, wanted = type(value) is int and value >= 0, "a whole number, 0 or more"
    if not good:
        raise BadInput(f"{path}: '{key}' item {row} is {value!r:.40}; expected {wanted}")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _succeeded(
    result: Mapping[str, Any], lists: Mapping[str, list[Any]]
) -> np.typing.NDArray[np.bool_]:
    errors = result.get("errors") or [""] * len(lists["input_lens"])
    rows = zip(errors, lists["input_lens"], lists["output_lens"], lists["ttfts"], strict=True)
    return np.array([not e and i > 0 and o > 0 and t > 0 for e, i, o, t in rows])


def _arrivals(
    path: Path, result: Mapping[str, Any], ok: np.typing.NDArray[np.bool_], seed: int
) -> tuple[Floats, str]:
    """Return arrivals of the requests that count, and where they come from."""
    starts = result.get("start_times")
    if starts is not None:
        for row, start in enumerate(starts, 1):
            if type(start) not in (int, float) or not math.isfinite(start):
                raise BadInput(f"{path}: 'start_times' item {row} is {start!r:.40}; not a time")
        times = np.array(starts, np.float64)[ok]
        return times - times.min(), "measured"
    rate = _rate(path, result)
    if math.isinf(rate) and result.get("max_concurrency"):
        return np.zeros(int(ok.sum())), "closed"
    burstiness = _positive(path, result, "burstiness", 1.0)
    arrivals = redrawn_arrivals(len(ok), rate, burstiness, seed)[ok]
    return arrivals - arrivals.min(), "reconstructed"


def _rate(path: Path, result: Mapping[str, Any]) -> float:
    if result.get("request_rate") is None:
        raise BadInput(
            f"{path}: neither 'start_times' nor 'request_rate': arrivals cannot be known; run a "
            "newer vllm bench serve with --save-detailed"
        )
    return _positive(path, result, "request_rate", math.inf)


def _positive(path: Path, result: Mapping[str, Any], key: str, default: float) -> float:
    value = result.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0:
        raise BadInput(f"{path}: '{key}' is {value!r:.40}; expected a number above 0, or inf")
    return number


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return {"str": "text", "NoneType": "null"}.get(kind, kind)
