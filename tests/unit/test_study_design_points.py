import numpy as np
import pytest
import yaml

from sim.study.sweeps.config import Range, sweep_config
from sim.study.sweeps.points import points, saltelli_design
from sim.types import BadInput

BASE = {
    "cluster": {"gpu": "a100-40gb", "count": 4, "model": "llama-2-13b"},
    "policy": {"name": "bucketserve", "theta": 0.5},
    "workload": {"source": "alpaca", "num_requests": 10},
}


def swept(text, base=None, saltelli=False):
    """Return the values of the points of a `sweep` section."""
    return [p.values for p in planned(text, base, saltelli)]


def planned(text, base=None, saltelli=False):
    section = sweep_config(yaml.safe_load(text), lambda key: "f.yaml")
    return list(points(BASE | (base or {}), section, "f.yaml", saltelli))


# -- grids --------------------------------------------------------------------------------------


def test_lists_make_a_grid_and_the_last_key_turns_fastest():
    assert swept("{run.seed: [1, 2], slo.scale: [3, 4]}") == [
        {"run.seed": 1, "slo.scale": 3}, {"run.seed": 1, "slo.scale": 4},
        {"run.seed": 2, "slo.scale": 3}, {"run.seed": 2, "slo.scale": 4},
    ]  # fmt: skip


def test_values_reach_the_config_and_leave_the_base_alone():
    (point,) = planned("{policy.theta: [0.7]}")
    assert point.data["policy"] == {"name": "bucketserve", "theta": 0.7}
    assert BASE["policy"]["theta"] == 0.5


def test_nested_keys_are_dotted_ones():
    assert swept("{run: {seed: [1]}, slo: {scale: [2]}}") == [{"run.seed": 1, "slo.scale": 2}]


def test_zipped_keys_go_together():
    lists = "run.seed: [1, 2], engine.block_size: [8], slo.scale: [3, 4]"
    text = f"{{{lists}, zip: [[slo.scale, run.seed]]}}"
    assert [(v["run.seed"], v["slo.scale"]) for v in swept(text)] == [(1, 3), (2, 4)]


def test_a_parameter_applies_to_the_policies_that_have_it():
    found = swept("{policy.name: [bucketserve, static], policy.theta: [0.2, 0.3]}")
    assert found == [
        {"policy.name": "bucketserve", "policy.theta": 0.2},
        {"policy.name": "bucketserve", "policy.theta": 0.3},
        {"policy.name": "static"},
    ]


def test_a_named_parameter_applies_to_that_policy_only():
    text = "{policy.static.max_batch_size: [2, 4], run.seed: [1]}"
    base = {"policy": ["continuous", "static", {"name": "static", "label": "other"}]}
    assert [p.data["policy"] for p in planned(text, base)] == [
        {"name": "continuous"},
        {"name": "static", "max_batch_size": 2},
        {"name": "static", "max_batch_size": 4},
        {"name": "static", "label": "other", "max_batch_size": 2},
        {"name": "static", "label": "other", "max_batch_size": 4},
    ]


def test_the_parameters_of_the_config_follow_the_name():
    found = planned("{policy.name: [static, bucketserve]}")
    assert [p.data["policy"] for p in found] == [
        {"name": "static"}, {"name": "bucketserve", "theta": 0.5},
    ]  # fmt: skip


def test_policies_may_be_whole_sections():
    found = planned("{policy: [static, {name: continuous, scheduler: v0}]}")
    assert [p.data["policy"]["name"] for p in found] == ["static", "continuous"]


def test_a_policy_zipped_with_its_rates():
    text = (
        "{policy.name: [static, static, continuous], workload.arrivals.rate: [1, 2, 9],"
        " zip: [[policy.name, workload.arrivals.rate]]}"
    )
    found = [(v["policy.name"], v["workload.arrivals.rate"]) for v in swept(text)]
    assert found == [("static", 1), ("static", 2), ("continuous", 9)]


# -- ranges -------------------------------------------------------------------------------------

RANGES = "policy.theta: {low: 0.1, high: 0.9}, slo.scale: {low: 1, high: 100, log: true}"


@pytest.mark.parametrize("method", ["lhs", "sobol"])
def test_ranges_are_filled_evenly(method):
    found = swept(f"{{{RANGES}, method: {method}, n: 64}}")
    theta = np.array([v["policy.theta"] for v in found])
    scale = np.array([v["slo.scale"] for v in found])
    # One point in each of 64 strata of each key: what a random draw does not give.
    assert sorted((theta - 0.1) // (0.8 / 64)) == list(range(64))
    assert sorted(np.log(scale) // (np.log(100) / 64)) == list(range(64))
    assert found == swept(f"{{{RANGES}, method: {method}, n: 64}}")
    assert found != swept(f"{{{RANGES}, method: {method}, n: 64, seed: 1}}")


def test_policies_see_the_same_values_of_what_they_share():
    text = f"{{{RANGES}, policy.name: [bucketserve, static], method: lhs, n: 4}}"
    found = swept(text)
    assert [v["slo.scale"] for v in found[:4]] == [v["slo.scale"] for v in found[4:]]
    assert ["policy.theta" in v for v in found] == [True] * 4 + [False] * 4


def test_whole_numbers_are_equally_likely():
    counts = np.bincount([Range(low=1, high=4, integer=True).at(u / 1000) for u in range(1001)])
    assert list(counts) == [0, 250, 250, 250, 251]


def test_a_saltelli_design_changes_one_column_at_a_time():
    a, b = np.zeros((2, 3)), np.ones((2, 3))
    design = saltelli_design(a, b).reshape(5, 2, 3)
    assert design.sum(axis=(1, 2)).tolist() == [0, 6, 2, 2, 2]
    assert [int(block[0].argmax()) for block in design[2:]] == [0, 1, 2]


def test_a_saltelli_design_has_the_columns_of_the_policy():
    text = f"{{{RANGES}, policy.name: [bucketserve, static], method: sobol, n: 4}}"
    found = planned(text, saltelli=True)
    assert [p.cell for p in found] == [0] * 16 + [1] * 12
    assert found[-1].varied == ("slo.scale",)
    a, b, mixed = (found[i].values for i in (0, 4, 8))
    assert mixed == {**a, "policy.theta": b["policy.theta"]}


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{policy.thetta: [1]}", "unknown key 'policy.thetta'; did you mean 'theta'?"),
        ("{policy.static.theta: [1]}", "unknown key 'policy.static.theta'"),
        ("{polcy.theta: [1]}", "unknown key 'sweep.polcy'; did you mean 'policy'?"),
        ("{metod: lhs, run.seed: [1]}", "unknown key 'sweep.metod'; did you mean 'method'?"),
        ("{policy.name: [sttic]}", "unknown policy 'sttic'; did you mean 'static'?"),
        ("{run.seed: []}", "sweep.run.seed: the list is empty: there are no points"),
        ("{}", "sweep: expected keys and what they take"),
        ("{method: grid}", "no key to vary"),
        ("{run.seed: 4}", "expected a list of values or a range {low: …, high: …}, got 4"),
        ("{run.seed: {low: 1, high: 4}}", "a range needs sweep.method: lhs or sobol"),
        ("{run.seed: [1], method: lhs, n: 4}", "lhs fills ranges {low: …, high: …}, there is none"),
        ("{slo.scale: {low: 1, high: 4}, method: lhs}", "n goes with method: lhs or sobol"),
        ("{slo.scale: {low: 1, high: 4}, method: sobol, n: 5}", "need a power of 2, for example 4"),
        ("{slo.scale: {low: 4, high: 1}, method: lhs, n: 5}", "low 4 is not below high 1"),
        ("{slo.scale: {low: 0, high: 1, log: true}, method: lhs, n: 5}", "log: low 0 is not above"),
        ("{slo.scale: {low: 1, hgh: 2}, method: lhs, n: 5}", "did you mean 'high'?"),
        ("{run.seed: [1], zip: [[run.sed]]}", "unknown key 'sweep.zip: run.sed'"),
        ("{run.seed: [1], slo.scale: [1, 2], zip: [[run.seed, slo.scale]]}", "run.seed has 1"),
        ("{run.seed: [1], zip: [[run.seed], [run.seed]]}", "'run.seed' twice"),
    ],
)
def test_bad_sections_are_one_line(text, message):
    with pytest.raises(BadInput) as error:
        swept(text)
    assert message in str(error.value)
    assert str(error.value).startswith("f.yaml: ")
    assert "\n" not in str(error.value)


def test_a_parameter_of_the_config_that_no_policy_has():
    with pytest.raises(BadInput, match=r"unknown key 'policy.thetta'; did you mean 'theta'"):
        swept("{policy.name: [bucketserve]}", {"policy": {"name": "bucketserve", "thetta": 1}})
