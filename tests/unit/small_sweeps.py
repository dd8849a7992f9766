"""A small sweep, and what tests want to know about its folder."""

from sim.study.sweeps.backends import Local
from sim.study.sweeps.sweep import plan_sweep, run_sweep

CONFIG = """
cluster: {{gpu: a100-40gb, count: 2, model: llama-2-13b}}
policy: {{name: continuous}}
workload: {{source: alpaca, num_requests: {requests}, arrivals: {{process: poisson, rate: 5}}}}
slo: {{ttft_ms: 1000}}
run: {{replications: {replications}}}
sweep: {sweep}
"""


def write_config(folder, sweep="{run.seed: [1, 2, 3]}", requests=20, replications=1):
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(sweep=sweep, requests=requests, replications=replications))
    return path


def sweep_into(folder, config, resume=False, jobs=1, indices=False):
    """Run a sweep; return how it went."""
    return run_sweep(plan_sweep(config, indices=indices), folder, Local(jobs), resume)


def shards_of(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").glob("*"))}
