"""The figures of one replication, with the keys of vLLM's benchmark.

Definitions (design section 7, style section 4):

* *Window*: from `warmup_s` (the config's, or found by MSER-5) to the last arrival, or to the
  horizon. Requests count when they arrive in it. When all requests arrive at once it ends with the
  run.
* TTFT: arrival to first token. TPOT: (E2E - TTFT)/(output_len - 1), undefined for one token. ITL:
  every gap between two tokens of a request. E2E: arrival to last token. TTFT and E2E are the
  client's or the engine's (`sim.study.statistics.clock`). All over requests that finished;
  quantiles of ITL are order statistics, the others interpolate as `numpy.percentile`.
* SLO attainment: share of the requests of the window that finished within every bound; a request
  of one token meets any TPOT bound. NaN when no bound is set.
* `duration completed failed rejected unfinished aborted`, token totals, `request_throughput`,
  `output_throughput` and `total_token_throughput` are about the whole run, as in vLLM; `failed` is
  all that did not finish. `steady_request_throughput` and `steady_output_throughput` count only
  completions inside the window: with a drained run, the whole-run figures are diluted by its tail.
  `request_goodput` is the part of the former that met every bound.
* `gpu_busy_frac`: time in steps over instances * duration; `_prefill` is the part in steps that
  hold prompt tokens, `_decode` the rest. `kv_usage`: tokens cached over tokens that fit, by time.
* `effective_requests`: independent requests that the mean TTFT is worth (`stability`).
* `classes`: counts, attainments, TTFT and TPOT by source, task, priority and prompt length
  (`sim.study.statistics.classes`).
* Figures of the phases: `sim.study.statistics.phases`. Energy: `sim.study.statistics.energy`.
* With `engine.enable_prefix_caching`, over the whole run: `prefix_cache_queries` and
  `prefix_cache_hits` (prompt tokens looked up when a request is first admitted, and those of them
  found, as vLLM counts), `prefix_cache_hit_rate`, and `prefix_cache_hit_rate_preempted` (of what
  preempted requests had to cover again).
* With `speculative`: `sim.study.statistics.speculation`.
* `mfu`: FLOPs of the tokens served (each once: no padding, no recomputation, no finished rows) over
  peak FLOPs * duration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.core.records import (
    DECODE,
    STATIC_DECODE,
    STATIC_PREFILL,
    RunRecord,
)
from sim.study.config import SloConfig
from sim.study.statistics.classes import Bools, ClassFigures, Outcomes, class_figures
from sim.study.statistics.clock import BY_CLIENT, Clock
from sim.study.statistics.downtime import downtime_figures
from sim.study.statistics.energy import ClusterPower, energy_figures
from sim.study.statistics.moments import moments, run_moments
from sim.study.statistics.phases import phase_figures
from sim.study.statistics.runs import Floats, Runs
from sim.study.statistics.speculation import speculation_figures
from sim.study.statistics.stability import effective_requests, verdict
from sim.types import FS_PER_S, CostModel

MS_PER_S = 1e3

RATE_SLICES = 400
"""Slices of the window in which completions are counted for batch means."""

Summary = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    """What a summary needs to know besides the records.

    Attributes:
        slo: the bounds.
        warmup_s: requests that arrive earlier do not count.
        horizon_s: when the run was stopped; None: drained.
        gpus: GPUs in use.
        peak_flops_per_s: of all GPUs in use.
        flops_per_token: outside attention.
        attention_flops_per_pair: of a query token with a key token.
        clock: whose TTFT and E2E.
        unfloored: step times of each instance without `engine.min_step_ms`; none: there is none.
        power: what energy is counted by; None: unknown.
    """

    slo: SloConfig
    warmup_s: float = 0.0
    horizon_s: float | None = None
    gpus: int = 1
    peak_flops_per_s: float = float("nan")
    flops_per_token: float = float("nan")
    attention_flops_per_pair: float = float("nan")
    unfloored: Sequence[CostModel] = ()
    clock: Clock = BY_CLIENT
    power: ClusterPower | None = None


def summarise(record: RunRecord, frame: Frame) -> Summary:
    """Return all figures of a replication; NaN where one is undefined."""
    requests = _Requests(record.requests, frame)
    steps = _Steps(record)
    duration = frame.horizon_s or max(steps.end_s, requests.last_arrival_s)
    start, end = _window(requests, duration)
    summary = requests.totals(duration)
    summary |= requests.window(start, end)
    latencies = requests.latencies_ms(start)
    summary |= moments("ttft", latencies["ttft"]) | moments("tpot", latencies["tpot"])
    summary |= run_moments("itl", itl_runs(record, start))
    summary |= moments("e2el", latencies["e2el"])
    summary |= steps.figures(duration)
    summary |= phase_figures(record, frame, start, duration, steps.duration_s)
    flops = frame.peak_flops_per_s * duration or np.nan
    summary["mfu"] = requests.served_flops() / flops
    summary |= speculation_figures(record, summary["mfu"], frame.flops_per_token / flops)
    summary |= _prefix_figures(record)
    summary["preemptions"] = int(requests.column("preemptions").sum())
    summary["oom_events"] = record.counters["oom_events"]
    summary |= downtime_figures(record, duration)
    summary |= energy_figures(record, frame.power, duration, steps.duration_s, summary)
    summary["saturation"] = verdict(record.requests, start, end, frame.slo.abort_after_s)
    summary["effective_requests"] = effective_requests(latencies["ttft"])
    summary["warmup_s"] = frame.warmup_s
    for key in ("request_goodput", "output_throughput"):
        summary[f"{key}_per_gpu"] = summary[key] / frame.gpus
    summary["classes"] = requests.classes(start, end)
    return summary


def _prefix_figures(record: RunRecord) -> Summary:
    """Return what prefix caching did in the whole run; nothing where it is off."""
    counters, columns = record.counters, record.requests
    if "prefix_recomputed_tokens" not in counters:
        return {}
    queries = int(columns["input_len"][~np.isnan(columns["prefill_start_s"])].sum())
    hits = int(columns["cached_tokens"].sum())
    again, recovered = (counters[f"prefix_{key}_tokens"] for key in ("recomputed", "recovered"))
    return {
        "prefix_cache_queries": queries,
        "prefix_cache_hits": hits,
        "prefix_cache_hit_rate": hits / queries if queries else np.nan,
        "prefix_cache_hit_rate_preempted": recovered / again if again else np.nan,
    }


def steady_series(record: RunRecord, frame: Frame) -> dict[str, Floats]:
    """Return, for figures that are means over the window, the values in the order of time.

    Latencies and attainments have a value for each request, rates one for each of `RATE_SLICES`
    slices of the window.
    """
    requests = _Requests(record.requests, frame)
    duration = frame.horizon_s or max(_Steps(record).end_s, requests.last_arrival_s)
    return requests.series(*_window(requests, duration))


def _window(requests: _Requests, duration: float) -> tuple[float, float]:
    """Return start and end of the window in seconds."""
    frame = requests.frame
    start, end = frame.warmup_s, frame.horizon_s or requests.last_arrival_s
    return start, end if end > start else duration


class _Requests:
    """The request columns, and what is computed from them alone."""

    def __init__(self, columns: Mapping[str, NDArray[Any]], frame: Frame) -> None:
        self.columns = columns
        self.frame = frame
        self.arrival = columns["arrival_s"]
        self.finished: Bools = columns["status"] == "finished"
        self.ttft_ms, self.e2e_ms = frame.clock.latencies_ms(columns)
        gaps = columns["emitted_tokens"] - 1
        span = self.e2e_ms - self.ttft_ms
        self.tpot_ms = np.divide(span, gaps, out=np.full(len(gaps), np.nan), where=gaps > 0)
        self.last_arrival_s = float(self.arrival.max()) if len(self.arrival) else 0.0
        self.met = self._attained()

    def column(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def totals(self, duration: float) -> Summary:
        """Return the figures of the whole run."""
        status, done = self.columns["status"], self.finished
        prompt = int(self.columns["input_len"][done].sum())
        output = int(self.columns["emitted_tokens"][done].sum())
        per_s = 1 / duration if duration else np.nan
        completed = int(done.sum())
        return {
            "duration": duration,
            "completed": completed,
            "failed": len(done) - completed,
            "rejected": int((status == "rejected").sum()),
            "unfinished": int((status == "unfinished").sum()),
            "aborted": int((status == "aborted").sum()),
            "total_input_tokens": prompt,
            "total_output_tokens": output,
            "request_throughput": completed * per_s,
            "output_throughput": output * per_s,
            "total_token_throughput": (prompt + output) * per_s,
        }

    def window(self, start: float, end: float) -> Summary:
        """Return the figures of the requests that arrive, or finish, in the window."""
        seconds = end - start if end > start else np.nan
        arrived = self._arrived(start, end)
        finish = self.columns["finish_s"]
        left = self.finished & (finish >= start) & (finish <= end)
        tokens = self.columns["emitted_tokens"][left].sum()
        met = self.met["slo_attainment"]
        return {
            "offered_rate": arrived.sum() / seconds,
            "steady_request_throughput": left.sum() / seconds,
            "steady_output_throughput": tokens / seconds,
            "request_goodput": np.nan if met is None else (met & left).sum() / seconds,
            **{key: _share(met, arrived) for key, met in self.met.items()},
        }

    def series(self, start: float, end: float) -> dict[str, Floats]:
        """Return the values of the window that its means are taken of."""
        arrived = self._arrived(start, end)
        latencies = self.latencies_ms(start)
        series = {f"mean_{name}_ms": latencies[name] for name in ("ttft", "tpot", "e2el")}
        shares = {key: met for key, met in self.met.items() if met is not None}
        series |= {key: met[arrived].astype(np.float64) for key, met in shares.items()}
        finish, tokens = self.columns["finish_s"], self.columns["emitted_tokens"]
        edges = np.linspace(start, end, RATE_SLICES + 1)

        def rate(of: Bools, weights: Floats | None = None) -> Floats:
            counts = np.histogram(finish[of], edges, weights=weights)[0]
            return counts * (RATE_SLICES / (end - start))

        if end > start and self.finished.sum() >= RATE_SLICES:
            series["steady_request_throughput"] = rate(self.finished)
            series["steady_output_throughput"] = rate(self.finished, tokens[self.finished])
            if "slo_attainment" in shares:
                series["request_goodput"] = rate(shares["slo_attainment"])
        return series

    def classes(self, start: float, end: float) -> ClassFigures:
        """Return the figures of each class of the requests that arrive in the window."""
        arrived = self._arrived(start, end)
        outcomes = Outcomes(arrived, self.finished, self.ttft_ms, self.tpot_ms, self.met)
        return class_figures(self.columns, outcomes)

    def latencies_ms(self, start: float) -> dict[str, Floats]:
        """Return the latencies of the finished requests of the window."""
        counted = self.finished & (self.arrival >= start)
        several = counted & (self.columns["emitted_tokens"] > 1)
        return {
            "ttft": self.ttft_ms[counted],
            "tpot": self.tpot_ms[several],
            "e2el": self.e2e_ms[counted],
        }

    def served_flops(self) -> float:
        """Return the operations of every token processed once; cached ones are not."""
        served = self.columns["emitted_tokens"] > 0
        prompts = self.columns["input_len"][served].astype(np.float64)
        decodes = self.columns["emitted_tokens"][served] - 1.0
        cached = self.columns["cached_tokens"][served].astype(np.float64)
        tokens = prompts + decodes
        # Token number j looks at j keys, itself included.
        pairs = tokens * (tokens + 1) / 2 - cached * (cached + 1) / 2
        frame = self.frame
        flops = (tokens - cached).sum() * frame.flops_per_token
        flops += pairs.sum() * frame.attention_flops_per_pair
        return float(flops)

    def _arrived(self, start: float, end: float) -> Bools:
        within: Bools = (self.arrival >= start) & (self.arrival <= end)
        return within

    def _attained(self) -> dict[str, Bools | None]:
        """Return who met every bound, the TTFT bound, the TPOT bound; None without a bound."""
        bounds = {name: self._bound(name) for name in ("ttft_ms", "tpot_ms", "e2e_ms")}
        values = {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms, "e2e_ms": self.e2e_ms}
        met = {
            name: self.finished & ~(values[name] > bound)
            for name, bound in bounds.items()
            if bound is not None
        }
        every = np.logical_and.reduce(list(met.values())) if met else None
        return {
            "slo_attainment": every,
            "slo_attainment_ttft": met.get("ttft_ms"),
            "slo_attainment_tpot": met.get("tpot_ms"),
        }

    def _bound(self, name: str) -> Floats | None:
        """Return the bound of each request (infinite where its class has none)."""
        slo, source = self.frame.slo, self.columns["source"]
        bound = np.full(len(source), np.inf)
        for cls in (None, *slo.by):
            value = getattr(slo.bounds(cls), name)
            mine = slice(None) if cls is None else source == cls
            bound[mine] = np.inf if value is None else value
        return bound if np.isfinite(bound).any() else None


class _Steps:
    """The step log as float columns in seconds."""

    def __init__(self, record: RunRecord) -> None:
        rows = record.steps
        self.rows = rows
        self.count = rows["n_steps"].astype(np.float64)
        self.first_s = rows["first_fs"] / FS_PER_S
        self.increment_s = rows["increment_fs"] / FS_PER_S
        self.duration_s = span_seconds(rows)
        self.end_s = float((rows["start_s"] + self.duration_s).max()) if len(rows) else 0.0
        self.instances = len(record.instances)
        sizes = [int(i["total_blocks"]) * int(i["block_size"]) for i in record.instances]  # type: ignore[call-overload]
        self.capacity = np.array(sizes, np.float64)

    def figures(self, duration: float) -> Summary:
        """Return how busy, how full and how padded the instances were."""
        time = self.instances * duration or np.nan
        decoding = np.isin(self.rows["kind"], (DECODE, STATIC_DECODE))
        busy = float(self.duration_s.sum()) / time
        decode = float(self.duration_s[decoding].sum()) / time
        padded = int(self.rows["padded_tokens"].sum(dtype=np.int64))
        useful = int(self.rows["prefill_tokens"].sum(dtype=np.int64))
        usage = self._kv_usage(time)
        return {
            "gpu_busy_frac": busy,
            "gpu_busy_frac_prefill": busy - decode,
            "gpu_busy_frac_decode": decode,
            "padding_waste": 1 - useful / padded if padded else float("nan"),
            "kv_usage_mean": usage.mean(),
            "kv_usage_p99": usage.quantile(0.99),
        }

    def _kv_usage(self, time: float) -> Runs:
        """Return the share of the KV cache in use, weighted by time.

        A step holds the tokens cached before it and those it is writing: its prompt tokens (with
        their padding in a static batch) and one token for every decoding row.
        """
        rows = self.rows
        capacity = self.capacity[rows["instance"]]
        static = rows["kind"] == STATIC_PREFILL
        prompts = np.where(static, rows["padded_tokens"], rows["prefill_tokens"])
        decodes = rows["decode_requests"]
        busy = Runs(
            (rows["kv_tokens"] + prompts + decodes) / capacity,
            decodes / capacity,
            self.count,
            self.first_s,
            self.increment_s,
        )
        idle = max(time - float(self.duration_s.sum()), 0.0)
        return Runs.joined([busy, Runs.of(np.zeros(1), idle)])


def span_seconds(steps: NDArray[np.void]) -> Floats:
    """Return how long each span of a step log lasts, in seconds."""
    n = steps["n_steps"].astype(np.float64)
    seconds: Floats = n * (steps["first_fs"] / FS_PER_S)
    return seconds + steps["increment_fs"] / FS_PER_S * (n * (n - 1) / 2)


def itl_runs(record: RunRecord, start_s: float = 0.0) -> Runs:
    """Return every gap between two tokens, in milliseconds.

    With a warm-up, spans that start in it are left out (gaps outside spans carry no time and stay).
    """
    steps = record.steps
    steps = steps[(steps["emitting"] > 0) & (steps["start_s"] >= start_s)]
    first = steps["first_fs"] / FS_PER_S * MS_PER_S
    increment = steps["increment_fs"] / FS_PER_S * MS_PER_S
    emitting = steps["emitting"].astype(np.float64)
    count = steps["n_steps"].astype(np.float64)
    # Gaps of a span's first step that are longer than the step, or described elsewhere.
    apart = steps["veterans"] + steps["odd"]
    split = apart > 0
    head = split.astype(np.float64)
    lead = steps["lead_fs"] / FS_PER_S * MS_PER_S
    zero = np.zeros(len(steps))
    parts = [
        Runs(first + head * increment, increment, count - head, emitting, zero),
        Runs.of(first[split], (emitting - apart)[split]),
        Runs.of((first + lead)[split], steps["veterans"][split].astype(np.float64)),
        Runs.of(record.gaps_s * MS_PER_S),
    ]
    return Runs.joined(parts)


def _share(met: Bools | None, of: Bools) -> float:
    if met is None or not of.any():
        return float("nan")
    return float((met & of).sum() / of.sum())
