"""What padding costs, measured and modelled, from samples of a known engine."""

from dataclasses import replace

import pytest

from calibrate.padding import padding_costs, padding_lines
from calibrate.points import Point
from calibrate.runs import unmeasured
from sim.costs.catalogue import model_named
from sim.costs.model import StepCost
from sim.costs.profile import AttentionRow, Profile, Terms, TokenCurve, TokenLine


def cost(token_ms):
    """Steps of 1 ms and `token_ms` a token, nothing else."""
    terms = Terms(
        layers=1,
        dense=TokenCurve(lines=(TokenLine(base_ms=1.0, token_ms=token_ms),)),
        decode_attention=(AttentionRow(),),
    )
    return StepCost(
        Profile(
            name="p", gpu="cpu", model="tiny-llama", tp=1, dtype="fp32", engine="e",
            basis="measured", source="s", derivation="d", terms=terms,
        ),
        model_named("tiny-llama"),
    )  # fmt: skip


def sample(padded, chunks, wall_ms, status="ok"):
    point = Point("prefill", padded, tuple((n, 0) for n in chunks))
    times = {"device_ms": wall_ms, "wall_ms": wall_ms} if status == "ok" else {}
    return replace(unmeasured(point, "refused"), status=status, **times)


def test_the_same_batch_on_both_paths():
    # 10 + 40 tokens, padded 80: one profile prices 1 + 0.1 * 80 = 9 ms against 6 ms; the padded one
    # 1 + 0.2 * 80 = 17 ms.
    samples = [
        sample(False, (10, 40), 5.0),
        sample(True, (10, 40), 10.0),
        sample(False, (20, 20), 5.0),  # equal prompts: nothing is padded
        sample(True, (20, 20), 5.0),
        sample(False, (5, 6), 1.0),  # measured on one path only
        sample(False, (1, 64), 1.0),
        sample(True, (1, 64), 0.0, "oom"),
    ]
    (found,) = padding_costs(samples, {False: cost(0.1), True: cost(0.2)})
    assert found.lengths == "10+40"
    assert found.waste == pytest.approx(30 / 80)
    assert found.measured == pytest.approx(2.0)
    assert found.modelled == pytest.approx(17 / 6)
    assert found.by_tokens == pytest.approx(9 / 6)
    lines = padding_lines([found])
    assert lines[-1].split() == ["10+40", "38%", "2.00", "2.83", "1.50"]
    assert padding_lines([]) == []
