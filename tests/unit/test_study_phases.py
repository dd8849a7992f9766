"""Figures of the phases: by hand."""

import pytest
from test_study_metrics import record

from sim.study.config import SloConfig
from sim.study.statistics.metrics import Frame, summarise
from sim.types import CostModel, DecodePiece, to_fs


class Fast(CostModel):
    """Decode steps of 0.1 s and 0.01 s a cached token, prompt steps of 0.25 s."""

    def decode(self, batch):
        return DecodePiece(to_fs(0.1), to_fs(0.01))

    def step(self, chunks, new, context, quad, batch, kv):
        return to_fs(0.25)

    def extrapolates(self, new, batch):
        return False


def of(**frame):
    return summarise(record(), Frame(slo=SloConfig(), **frame))


def test_the_time_of_a_request_is_cut_at_the_ends_of_its_prefill():
    found = of()
    # Waiting 0, 0.5, 0 s; prompt 1, 1, 0.5 s; then 4, 1, 0 s.
    assert found["mean_queue_ms"] == pytest.approx(500 / 3)
    assert found["mean_prefill_ms"] == pytest.approx(2500 / 3)
    assert found["mean_decode_ms"] == pytest.approx(5000 / 3)
    total = sum(found[f"mean_{name}_ms"] for name in ("queue", "prefill", "decode"))
    assert total == pytest.approx(found["mean_e2el_ms"])


def test_phases_share_the_busy_time_of_a_mixed_instance():
    found = of()
    assert found["phase_busy_prefill"] == found["gpu_busy_frac_prefill"]
    assert found["phase_busy_decode"] == found["gpu_busy_frac_decode"]


def test_useful_operations_of_a_phase():
    found = of(peak_flops_per_s=100.0, flops_per_token=2.0, attention_flops_per_pair=0.0)
    # 60 prompt tokens in 2.5 s, 3 + 1 further tokens in 3 s of steps.
    assert found["phase_mfu_prefill"] == pytest.approx(120 / 250)
    assert found["phase_mfu_decode"] == pytest.approx(8 / 300)


def test_a_floor_leaves_the_gpu_idle_in_a_step():
    assert of()["gpu_kernel_frac"] == of()["gpu_busy_frac"]
    busy = of(unfloored=(Fast(),))
    # Three prompt steps of 0.25 s; decodes 0.1 + 0.01 * (20, 51, 22) s.
    assert busy["gpu_kernel_frac"] * busy["duration"] == pytest.approx(0.75 + 0.3 + 0.93)


def test_rows_of_a_batch_and_operations():
    found = of()
    assert found["mean_batch_rows"] == 1.0
    assert found["bucketing_operations"] == 0
