"""`bucketsim compare` over every policy: one table with intervals and one picture in a minute."""

import json
import math
import os
import subprocess
import sys
import time

import pytest

import policies

BAR_S = 60.0
REPLICATIONS = 5

# The mixture and its lengths as recommended by the planning study (section 7); 3 requests per
# second are within what every policy with a continuous engine serves.
CONFIG = f"""
cluster: {{gpu: a100-40gb, count: 4, model: llama-2-13b}}
policy: [continuous]
workload:
  source: mixed
  num_requests: 2000
  max_model_len: 4096
  max_output_len: 512
  arrivals: {{process: poisson, rate: 3}}
slo: {{ttft_ms: 1000, tpot_ms: 200}}
run: {{replications: {REPLICATIONS}}}
"""


@pytest.mark.slow
@pytest.mark.alone
def test_all_policies_in_one_comparison(tmp_path, record_property):
    config, out = tmp_path / "all.yaml", tmp_path / "out"
    config.write_text(CONFIG)
    names = policies.names()
    command = [sys.executable, "-m", "sim.cli", "compare", str(config), "--jobs", "2"]
    begin = time.perf_counter()
    done = subprocess.run(
        [*command, "--policies", ",".join(names), "--out", str(out)],
        env=os.environ | {"COLUMNS": "250"},
        capture_output=True,
        text=True,
        timeout=4 * BAR_S,
        check=False,
    )
    wall_s = time.perf_counter() - begin
    record_property(
        "evidence",
        f"compare over all {len(names)} policies, {REPLICATIONS} x 2,000 requests of 80:20, 4x "
        f"A100-40GB, Llama-2-13B: {wall_s:.1f} s wall on 2 processes (bar {BAR_S:g} s)",
    )
    assert done.returncode == 0, done.stderr
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((out / "comparison.json").read_text())
    assert list(content["policies"]) == names
    for name, summary in content["policies"].items():
        assert name in done.stdout
        assert summary["n_replications"] == REPLICATIONS
        rate = summary["request_throughput"]
        low, high = summary["request_throughput_ci_low"], summary["request_throughput_ci_high"]
        assert math.isfinite(low), name
        assert low < rate < high, name
    assert f"n={REPLICATIONS} replications" in done.stdout
    assert wall_s < BAR_S
