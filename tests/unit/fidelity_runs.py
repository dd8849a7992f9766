"""Measured runs made by the simulator itself: what was put in is known."""

import csv

import numpy as np

from sim.study.fidelity.engine_file import typed_settings
from sim.study.fidelity.measured import read_measured
from sim.study.fidelity.replay import experiment_of, replay

BASE = ("cluster.gpu=a100-80gb", "cluster.model=llama-2-7b", "policy.max_num_seqs=16")
NAMES = ("arrived_at_s", "prompt_tokens", "output_tokens", "ttft_ms", "latency_ms")


def blank_run(path, n=60, rate=3.0, seed=0):
    """Write requests with latencies that stand for nothing."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    rows = [
        (f"{at:.6f}", int(rng.integers(20, 900)), int(rng.integers(1, 120)), 1.0, 2.0)
        for at in arrival
    ]
    write(path, rows)
    return path


def write(path, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([NAMES, *rows])


def experiment(measured, *overrides):
    return experiment_of(measured, typed_settings(BASE), overrides)


def served(path, *overrides, **how):
    """Write a run as the simulator serves it, and read it again."""
    blank = read_measured(blank_run(path, **how))
    made = replay(blank, experiment(blank, *overrides))
    trace = blank.trace
    columns = (
        blank.arrival_s.tolist(),
        trace.input_len.tolist(),
        trace.output_len.tolist(),
        made.latency_ms["ttft"].tolist(),
        made.latency_ms["e2el"].tolist(),
    )
    write(path, list(zip(*columns, strict=True)))
    return read_measured(path)
