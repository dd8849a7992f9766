import json

import numpy as np

from sim.report.timeline import write_timeline

INSTANCES = [{"id": 0, "role": "mixed", "gpu": "a100-40gb", "tp": 1}]
STEPS = {
    "instance": np.array([0, 0]),
    "start_s": np.array([0.0, 1.0]),
    "duration_s": np.array([1.0, 0.5]),
    "kind": np.array(["prefill", "decode"]),
    "n_steps": np.array([1, 10]),
    "prefill_requests": np.array([1, 0]),
    "prefill_tokens": np.array([30, 0]),
    "padded_tokens": np.array([30, 0]),
    "decode_requests": np.array([0, 1]),
    "kv_tokens": np.array([0, 30]),
    "queue_len": np.array([0, 1]),
}
REQUESTS = {
    "request_id": np.array([0, 1]),
    "arrival_s": np.array([0.0, 0.5]),
    "prefill_start_s": np.array([0.0, np.nan]),
    "first_token_s": np.array([1.0, np.nan]),
    "finish_s": np.array([1.5, np.nan]),
    "input_len": np.array([30, 5]),
    "output_len": np.array([11, 2]),
    "preemptions": np.array([0, 0]),
    "status": np.array(["finished", "rejected"]),
}
SWAPS = [(1.5, 0.25, 0, 0, 2, "out")]


def events(tmp_path):
    path = tmp_path / "timeline.json"
    write_timeline(path, INSTANCES, STEPS, SWAPS, REQUESTS)
    return json.loads(path.read_text())["traceEvents"]


def test_spans_are_slices_in_microseconds(tmp_path):
    slices = [e for e in events(tmp_path) if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"], e["tid"]) for e in slices] == [
        ("prefill", 0, 1e6, 0),
        ("decode", 1e6, 5e5, 0),
        ("swap out", 1.5e6, 2.5e5, 1),
    ]
    assert slices[1]["args"]["n_steps"] == 10
    assert slices[2]["args"] == {"request": 0, "blocks": 2}


def test_instances_are_named_processes(tmp_path):
    names = {(e["pid"], e["args"]["name"]) for e in events(tmp_path) if e["ph"] == "M"}
    assert (0, "instance 0 (mixed, a100-40gb tp 1)") in names
    assert (0, "KV copies") in names


def test_requests_are_nested_slices_that_close(tmp_path):
    open_slices = []
    seen = []
    for e in events(tmp_path):
        if e["ph"] == "b":
            open_slices.append(e["name"])
            seen.append((e["id"], e["name"], e["ts"]))
        elif e["ph"] == "e":
            assert e["name"] == open_slices.pop()
    assert open_slices == []
    assert seen == [
        (0, "request 0", 0),
        (0, "queued", 0),
        (0, "prefill", 0),
        (0, "decode", 1e6),
        (1, "request 1", 5e5),
    ]


def test_counters_show_queue_and_batch(tmp_path):
    counters = [e["args"] for e in events(tmp_path) if e["ph"] == "C"]
    assert counters == [{"waiting": 0, "in batch": 1}, {"waiting": 1, "in batch": 1}]
