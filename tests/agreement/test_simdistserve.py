"""Our `distserve`, with a transfer that takes no time, forms simdistserve's batches.

Switches, differences and what this run does not reach: `runs.py`.
"""

import numpy as np
import pytest
from peers import needs_peers, table
from runs import DECODE_TOKENS, PREFILL_TOKENS, errors, simdistserve, simdistserve_batches

pytestmark = needs_peers

BAR = 0.1
"""Percent, TTFT and E2E of every request."""
RUN = "simdistserve_distserve_q2_n1000"
COLUMNS = ("prefill_bs", "prefill_tokens", "decode_bs", "decode_ctx_sum")


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "step-by-step"])
def test_every_batch_and_time_is_simdistserves(fuse, record_property):
    record = simdistserve(fuse)
    iterations = table(f"{RUN}_iterations")
    for worker in (0, 1):
        theirs = iterations[iterations.worker_id == worker]
        ours = simdistserve_batches(record, worker)
        for name in COLUMNS:
            np.testing.assert_array_equal(ours[name], theirs[name].to_numpy(), err_msg=name)
        for name in ("start_ms", "duration_ms"):  # recorded with four decimals
            np.testing.assert_allclose(ours[name], theirs[name].to_numpy(), rtol=0, atol=2e-4)
    off = errors(record, table(f"{RUN}_requests"))
    if fuse:
        figure = f"all {len(iterations)} batches equal; TTFT {off['ttft']}; E2E {off['e2e']}"
        record_property("evidence", f"agreement with simdistserve: {figure}")
    assert max(error.most for error in off.values()) <= BAR


def test_what_this_run_does_not_reach():
    """No batch is cut at a cap: that simdistserve's decode batch rotates is not seen."""
    iterations = table(f"{RUN}_iterations")
    assert iterations.prefill_tokens.max() < PREFILL_TOKENS
    assert (iterations.decode_ctx_sum + iterations.decode_bs).max() < DECODE_TOKENS
