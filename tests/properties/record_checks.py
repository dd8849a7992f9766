"""What must hold of a finished run: invariants, equality of two runs, and the cases it reached."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from audit import Audit, audited
from knotted import decode_price
from scenarios import Scenario, policy_class
from static_oracle import check_static

from sim.core.failures import Failures
from sim.core.instance import Instance
from sim.core.records import DECODE, KINDS, STATIC_DECODE, RunRecord
from sim.core.simulation import Simulation, simulate
from sim.core.speculation import SpeculativeInstance
from sim.types import Request, to_fs
from sim.types.request import BRIDGED

TOLERANCE_S = 1e-9
"""Of times that went through a float twice; everything else is compared exactly."""

FREE_FS = 10**6
"""Femtoseconds that late floats may not resolve: a step and the next may start together."""

COLUMNS = (
    "instance",
    "kind",
    "duration_fs",
    "kv_tokens",
    "prefill_requests",
    "prefill_tokens",
    "padded_tokens",
    "decode_requests",
    "emitting",
    "veterans",
    "lead_fs",
    "odd",
    "queue_len",
    "extrapolated",
)
"""Of expanded steps, compared exactly."""

CASES = (
    "preempted by recompute",
    "preempted by swap",
    "a prefix hit",
    "a hit after a preemption",
    "swap space full",
    "out of memory",
    "rejected",
    "aborted",
    "unfinished at the horizon",
    "an arrival in mid-span",
    "an arrival at a step's end",
    "two instances' steps end together",
    "two arrivals at once",
    "a one-token output",
    "a prompt of exactly one block",
    "a chunked prompt",
    "a victim for growth",
    "a span of many steps",
    "steps beyond the fitted range",
    "a priced step after changes",
    "a priced KV copy",
    "a decode pool that is full",
    "a pulled request joins",
    "a failure",
    "a failure at an arrival",
    "two failures at once",
    "put back waiting",
    "put back prefilling",
    "put back decoding",
    "put back paused",
    "put back swapped",
    "put back bridged",
    "put back ready",
    "put back in transfer",
    "put back with its first token",
    "a static batch that is killed",
    "held, for nothing is up",
    "parked, for no decode instance is up",
    "one queue of all instances",
    "one queue, an instance is down",
    "preempted, and taken by another instance",
    "a waiting request moves",
)
"""What the generators must reach (design section 10)."""


STATES = (
    *("put back waiting", "put back prefilling", "put back decoding", "put back paused"),
    *("put back swapped", "put back bridged", "put back ready"),
)
"""By state of a request."""


@dataclass
class Run:
    """One audited run.

    Attributes:
        scenario: what was run.
        record: what came out.
        sim: the simulation, at its end.
        audit: what the policy saw.
    """

    scenario: Scenario
    record: RunRecord
    sim: Simulation
    audit: Audit


def run(case: Scenario, fuse: bool = True) -> Run:
    """Run a scenario under audit."""
    settings = case.settings(fuse)
    audit = Audit(settings)
    policy = case.new_policy(audited(policy_class(case.policy), audit))
    sim = Simulation(case.trace, policy, case.specs, settings)
    if sim.failures is not None:
        _watch(sim.failures, audit)
    return Run(case, sim.run(), sim, audit)


def recorded(case: Scenario) -> RunRecord:
    """Run a scenario without an audit, where two runs are compared."""
    return simulate(case.trace, case.new_policy(), case.specs, case.settings())


def _watch(failures: Failures, audit: Audit) -> None:
    """Note what failures meet."""
    put_back, entry, route_parked = failures._put_back, failures.entry, failures._route_parked

    def seen_put_back(request: Request, now: int) -> None:
        moving = request.transfer_start_fs >= 0 > request.transfer_end_fs
        in_transfer = request.state == BRIDGED and moving
        audit.labels["put back in transfer" if in_transfer else STATES[request.state]] += 1
        put_back(request, now)
        audit.labels["put back with its first token"] += request.first_token_fs >= 0

    def seen_entry(request: Request) -> Instance | None:
        found = entry(request)
        audit.labels["held, for nothing is up"] += found is None
        return found

    def seen_route_parked(now: int) -> None:
        for instance in failures.sim.instances:
            parked = [r for r in instance.bridge.values() if r.source == instance.id]
            audit.labels["parked, for no decode instance is up"] += len(parked)
        route_parked(now)

    failures._put_back = seen_put_back  # type: ignore[method-assign]
    failures.entry = seen_entry  # type: ignore[method-assign]
    failures._route_parked = seen_route_parked  # type: ignore[method-assign]


# -- steps ----------------------------------------------------------------------------------------


def row_ends_fs(steps: np.ndarray) -> np.ndarray:
    """Return how long each row of the step log lasts, in femtoseconds."""
    n = steps["n_steps"].astype(np.int64)
    return n * steps["first_fs"] + steps["increment_fs"] * (n * (n - 1) // 2)


def expand(steps: np.ndarray) -> dict[str, np.ndarray]:
    """Return single steps, by instance and start: `start_s` and `COLUMNS`."""
    counts = steps["n_steps"].astype(np.int64)
    row = np.repeat(np.arange(len(steps)), counts)
    k = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = {name: steps[name][row] for name in COLUMNS if name != "duration_fs"}
    first, increment = steps["first_fs"][row], steps["increment_fs"][row]
    columns["duration_fs"] = first + k * increment
    offset = k * first + increment * (k * (k - 1) // 2)
    columns["start_s"] = steps["start_s"][row] + offset / 1e15
    columns["kv_tokens"] = columns["kv_tokens"] + k * columns["decode_requests"]
    for name in ("veterans", "lead_fs", "odd"):
        columns[name] = np.where(k == 0, columns[name], 0)
    order = np.lexsort((columns["start_s"], columns["instance"]))
    return {name: values[order] for name, values in columns.items()}


def assert_same(a: RunRecord, b: RunRecord) -> None:
    """Two runs have identical records (I8)."""
    assert a.requests.keys() == b.requests.keys()
    for name, x in a.requests.items():
        y = b.requests[name]
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert a.counters == b.counters
    assert a.swaps == b.swaps
    assert a.end_s == b.end_s
    assert a.outages == b.outages
    np.testing.assert_array_equal(a.gaps_s, b.gaps_s)
    x_steps, y_steps = expand(a.steps), expand(b.steps)
    for name in COLUMNS:
        np.testing.assert_array_equal(x_steps[name], y_steps[name], err_msg=name)
    np.testing.assert_allclose(
        x_steps["start_s"], y_steps["start_s"], rtol=0, atol=TOLERANCE_S, err_msg="start_s"
    )


# -- invariants -----------------------------------------------------------------------------------


def check(done: Run) -> None:
    """I1 to I5, I9 and I12 on the records, and that the parts of the records agree."""
    _check_everyone_is_somewhere(done)
    _check_order_of_times(done)
    _check_tokens(done)
    _check_steps(done)
    _check_static(done)
    _check_counters(done)
    _check_outages(done)
    if done.scenario.options["horizon_s"] is None:
        _check_all_gone(done)


def _check_everyone_is_somewhere(done: Run) -> None:
    """I1: arrivals = finished + rejected + aborted + unfinished, each request once."""
    ids = done.record.requests["request_id"]
    trace, options = done.scenario.trace, done.scenario.options
    assert len(np.unique(ids)) == len(ids)
    status = Counter(done.record.requests["status"].tolist())
    assert set(status) <= {"finished", "rejected", "aborted", "unfinished"}
    horizon_s = options["horizon_s"]
    if horizon_s is None:
        assert ids.tolist() == list(range(len(trace)))
        assert not status["unfinished"]
    elif "concurrency" not in options and trace.arrival_s is not None:
        arrived = [to_fs(t) < to_fs(horizon_s) for t in trace.arrival_s.tolist()]
        assert ids.tolist() == np.flatnonzero(arrived).tolist()
    assert status["aborted"] == 0 or options["abort_after_s"] is not None


def _check_order_of_times(done: Run) -> None:
    """I3; a time that did not happen is NaN, and all later ones with it."""
    columns = done.record.requests
    names = ("arrival_s", "prefill_start_s", "prefill_end_s", "first_token_s", "finish_s")
    times = [columns[name] for name in names]
    for earlier, later in pairwise(times):
        assert not (np.isnan(earlier) & ~np.isnan(later)).any()
        assert not (earlier > later).any()
    if not _free_prefill(done):
        assert not (times[1] >= times[2]).any(), "a prefill takes no time"
    finished = columns["status"] == "finished"
    assert (finished == ~np.isnan(times[-1])).all()
    assert np.isnan(times[1][columns["status"] == "rejected"]).all()
    moved = columns["transfer_start_s"]
    assert not (columns["prefill_end_s"] > moved).any()
    assert not (moved > columns["transfer_end_s"]).any()
    served = ~np.isnan(columns["first_token_s"])
    assert (columns["prefill_instance"][served] >= 0).all()


def _free_prefill(done: Run) -> bool:
    return any(spec.cost.step(1, 1, 1, 1, 0, 0) <= FREE_FS for spec in done.scenario.specs)


def _check_tokens(done: Run) -> None:
    """I4, and the inter-token gaps: how many, and how long all together."""
    columns, steps = done.record.requests, done.record.steps
    emitted, finished = columns["emitted_tokens"], columns["status"] == "finished"
    capped = getattr(done.scenario.config, "generation_cap", "none") != "none"
    assert capped or (emitted[finished] == columns["output_len"][finished]).all()
    assert (emitted <= columns["output_len"]).all()
    assert (emitted[columns["status"] == "rejected"] == 0).all()
    emitting = steps["emitting"].astype(np.int64)
    gaps = (steps["n_steps"] * emitting).sum() - steps["odd"].sum() + len(done.record.gaps_s)
    gaps += done.record.counters.get("accepted_tokens", 0)  # come with the token before
    assert gaps == np.maximum(emitted - 1, 0).sum()
    if not finished.all():
        return
    # Python integers: sums over all requests can pass 2**63 femtoseconds.
    gaps_fs = row_ends_fs(steps).astype(object) * emitting
    gaps_fs += steps["veterans"].astype(object) * steps["lead_fs"]
    gaps_fs -= steps["odd"].astype(object) * steps["first_fs"]
    total_s = sum(gaps_fs.tolist()) / 1e15 + done.record.gaps_s.sum()
    spans_s = (columns["finish_s"] - columns["first_token_s"]).sum()
    late = bool((steps["kind"] == STATIC_DECODE).any())  # results may leave after the last token
    assert total_s <= spans_s + TOLERANCE_S
    assert late or abs(total_s - spans_s) <= TOLERANCE_S


def _check_steps(done: Run) -> None:
    """I5 and I12: steps of an instance follow each other, and cost what the cost model says."""
    steps, horizon_s = done.record.steps, done.scenario.options["horizon_s"]
    assert (steps["n_steps"] >= 1).all()
    assert (steps["first_fs"] >= 1).all()
    ends_s = steps["start_s"] + row_ends_fs(steps) / 1e15
    if horizon_s is not None:
        assert (ends_s <= horizon_s + TOLERANCE_S).all()
    for instance in range(len(done.scenario.specs)):
        mine = steps["instance"] == instance
        assert (steps["start_s"][mine][1:] >= ends_s[mine][:-1] - TOLERANCE_S).all()
    entries = [dict(zip(steps.dtype.names or (), row, strict=True)) for row in steps.tolist()]
    free_s: dict[int, float] = {}
    for entry, end_s in zip(entries, ends_s.tolist(), strict=True):
        since_s, free_s[entry["instance"]] = free_s.get(entry["instance"], 0.0), end_s
        expected_fs = done.audit.prices.get((entry["instance"], entry["start_s"]))
        if entry["kind"] == STATIC_DECODE:
            _check_static_price(done, entry)
        elif _free_prefill(done):
            continue
        elif expected_fs is not None:
            assert entry["first_fs"] == expected_fs, KINDS[entry["kind"]]
            done.audit.labels["a priced step"] += 1
        elif entry["kind"] == DECODE:
            _check_price_after_changes(done, entry, since_s)


def _check_static(done: Run) -> None:
    """Static batches hold, charge and lose what a row-by-row account says."""
    scenario, stopped = done.scenario, done.scenario.options["horizon_s"] is not None
    outputs, steps = scenario.trace.output_len.tolist(), expand(done.record.steps)
    failed = [(o.instance, o.start_s) for o in done.record.outages]
    killed = check_static(done.audit.batches, scenario.specs, outputs, steps, stopped, failed)
    done.audit.labels["a static batch that is killed"] += killed


def _check_static_price(done: Run, entry: dict[str, Any]) -> None:
    """First and last step of a static span cost what their batch and KV tokens cost."""
    cost = done.scenario.specs[entry["instance"]].cost
    batch, kv, later = entry["decode_requests"], entry["kv_tokens"], entry["n_steps"] - 1
    assert entry["first_fs"] == decode_price(cost, batch, kv)
    last_fs = entry["first_fs"] + later * entry["increment_fs"]
    assert last_fs == decode_price(cost, batch, kv + later * batch)


def _check_price_after_changes(done: Run, entry: dict[str, Any], since_s: float) -> None:
    """A decode step after evictions and the like: the KV copies made then, and the decodes.

    The copies were made since the step before, at `since_s`, or the last repair. `kv_tokens` counts
    paused and half-prefilled requests too, so it bounds what the batch holds.
    """
    instance = done.sim.instances[entry["instance"]]
    cost, batch = instance.cost, entry["decode_requests"]
    if isinstance(instance, SpeculativeInstance) and instance.control is not None:
        return  # its K has changed since; step by step each of these steps has its own plan
    copied_s = 0.0
    for outage in done.record.outages:
        if outage.instance == entry["instance"] and outage.end_s <= entry["start_s"]:
            since_s = max(since_s, outage.end_s)
    for start_s, duration_s, where, *_ in done.record.swaps:
        late_s = entry["start_s"] + copied_s + TOLERANCE_S
        if where == entry["instance"] and since_s - TOLERANCE_S < start_s < late_s:
            copied_s += duration_s
    held = entry["kv_tokens"]
    lowest = 0 if done.audit.labels["a partial prompt"] else held
    prices = [decode_price(cost, batch, kv) / 1e15 for kv in range(lowest, held + 1)]
    wanted_s = entry["first_fs"] / 1e15 - copied_s
    assert min(abs(price - wanted_s) for price in prices) < TOLERANCE_S
    done.audit.labels["a priced step after changes"] += 1
    done.audit.labels["a priced KV copy"] += copied_s > 0


def _check_counters(done: Run) -> None:
    columns, counters = done.record.requests, done.record.counters
    evictions = counters["preemptions_recompute"] + counters["preemptions_swap"]
    assert evictions == columns["preemptions"].sum()
    assert counters["swap_out_blocks"] >= counters["swap_in_blocks"]
    outs = [s for s in done.record.swaps if s[5] == "out"]
    assert len(outs) == counters["preemptions_swap"]
    copies = [s[1] for s in done.record.swaps]
    blocks = [s[4] for s in done.record.swaps]
    per_block = {spec.swap_s_per_block for spec in done.scenario.specs}
    np.testing.assert_allclose(copies, [per_block.copy().pop() * b for b in blocks], rtol=1e-12)
    hit, served = columns["cached_tokens"], columns["status"] == "finished"
    assert (hit >= 0).all()
    assert (hit < columns["input_len"]).all()
    assert done.scenario.options["enable_prefix_caching"] or not hit.any()
    prompts = (columns["input_len"] - hit)[served].sum()
    prompts -= counters.get("prefix_recovered_tokens", 0)
    assert done.record.steps["prefill_tokens"].sum() >= prompts


def _check_outages(done: Run) -> None:
    """No step runs on an instance that is down; every request put back is counted."""
    record = done.record
    ends_s = record.steps["start_s"] + row_ends_fs(record.steps) / 1e15
    for outage in record.outages:
        assert outage.end_s >= outage.start_s
        assert outage.lost_s >= 0
        mine = record.steps["instance"] == outage.instance
        before = ends_s[mine] <= outage.start_s + TOLERANCE_S
        after = record.steps["start_s"][mine] >= outage.end_s - TOLERANCE_S
        assert (before | after).all()
    put_back = sum(outage.requests for outage in record.outages)
    retries = record.requests["retries"].sum()
    assert retries >= put_back
    assert record.counters["oom_events"] or retries == put_back
    assert record.counters["failures"] == len(record.outages)


def _check_all_gone(done: Run) -> None:
    """A run that drained leaves every instance as it was."""
    assert done.sim.failures is None or not done.sim.failures.held
    for instance in done.sim.instances:
        assert instance.free_blocks == instance.total_blocks
        assert instance.free_swap_blocks == instance.total_swap_blocks
        places = (instance.running, instance.swapped, instance.prefilling, instance.paused)
        places += (instance.bridge, instance.in_transfer, instance.ready)
        assert not any(places)
        assert instance.held_blocks == instance.ready_blocks == 0
        assert len(instance.waiting) == instance.num_waiting == 0
        assert instance.num_decoding == instance.kv_tokens == instance.partial_tokens == 0
        assert instance.outstanding == instance.outstanding_tokens == 0
        assert not any(instance.phases)


# -- cases ----------------------------------------------------------------------------------------


def labels(done: Run) -> Counter[str]:
    """Return which of `CASES` a fused run reached."""
    record, columns = done.record, done.record.requests
    found = Counter({k: v for k, v in done.audit.labels.items() if v})
    counters = record.counters
    found["preempted by recompute"] += counters["preemptions_recompute"]
    found["preempted by swap"] += counters["preemptions_swap"]
    both = counters["preemptions_recompute"] and counters["preemptions_swap"]
    found["swap space full"] += bool(both)
    found["out of memory"] += counters["oom_events"]
    status = Counter(columns["status"].tolist())
    found["rejected"] += status["rejected"]
    found["a prefix hit"] += (columns["cached_tokens"] > 0).sum()
    found["a hit after a preemption"] += counters.get("prefix_recovered_tokens", 0)
    found["aborted"] += status["aborted"]
    found["unfinished at the horizon"] += status["unfinished"]
    served = ~np.isnan(columns["first_token_s"])
    found["a one-token output"] += (served & (columns["output_len"] == 1)).sum()
    exactly = columns["input_len"] == done.scenario.specs[0].block_size
    found["a prompt of exactly one block"] += (served & exactly).sum()
    found["a span of many steps"] += (record.steps["n_steps"] > 1).sum()
    found["steps beyond the fitted range"] += counters["extrapolated_steps"]
    found.update(_coincidences(done))
    fails = [outage.start_s for outage in record.outages]
    found["a failure"] += len(fails)
    found["a failure at an arrival"] += len(set(fails) & set(columns["arrival_s"].tolist()))
    found["two failures at once"] += len(fails) - len(set(fails))
    if done.sim.shared is not None and not done.scenario.split:
        evicted = (columns["preemptions"] > 0) & (columns["retries"] == 0)
        moved = columns["decode_instance"] != columns["prefill_instance"]
        moved &= columns["decode_instance"] >= 0
        found["preempted, and taken by another instance"] += (evicted & moved).sum()
    return +found


def _coincidences(done: Run) -> Counter[str]:
    steps = done.record.steps
    arrivals = done.record.requests["arrival_s"].tolist()
    homes = done.record.requests["prefill_instance"].tolist()
    starts, ends = steps["start_s"], steps["start_s"] + row_ends_fs(steps) / 1e15
    long = steps["n_steps"] > 1
    found: Counter[str] = Counter()
    found["two arrivals at once"] = len(arrivals) - len(set(arrivals))
    by_end: dict[float, set[int]] = {}
    for instance, end in zip(steps["instance"].tolist(), ends.tolist(), strict=True):
        by_end.setdefault(end, set()).add(instance)
    found["two instances' steps end together"] = sum(len(s) > 1 for s in by_end.values())
    for arrival, home in zip(arrivals, homes, strict=True):
        found["an arrival at a step's end"] += home in by_end.get(arrival, ())
        inside = long & (steps["instance"] == home) & (starts < arrival) & (arrival < ends)
        found["an arrival in mid-span"] += bool(inside.any())
    return found
