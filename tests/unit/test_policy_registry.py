"""One file is one policy: found by listing the folder, imported when asked for."""

import subprocess
import sys

import pytest

import policies
from policies.base import Config, Policy
from sim.types import BadInput, ClusterInfo


def test_the_built_in_policies_are_listed():
    assert {"continuous", "static"} <= set(policies.names())
    assert "base" not in policies.names()
    assert policies.names() == sorted(policies.names())


@pytest.mark.parametrize("name", policies.names())
def test_every_policy_keeps_the_form(name: str):
    cls = policies.load(name)
    assert issubclass(cls, Policy)
    assert cls.name == name
    assert issubclass(cls.Config, Config)
    assert cls.Config.model_config["frozen"]
    assert cls.Config.model_config["extra"] == "forbid"
    for field, info in cls.Config.model_fields.items():
        assert info.description, f"{name}.{field} has no description"
    for word in ("Decision rule", "Deviations", "Complexity", "Reference"):
        assert word in (cls.__doc__ or ""), f"{name} does not state: {word}"


def test_an_unknown_policy_names_the_near_and_the_valid_ones():
    with pytest.raises(BadInput, match=r"'continous'; did you mean 'continuous'\?.*static"):
        policies.load("continous")
    with pytest.raises(BadInput, match="unknown policy 'xyz'; valid: "):
        policies.load("xyz")


def test_listing_imports_no_policy():
    code = (
        "import sys, policies; policies.names(); "
        "sys.exit('policies.static' in sys.modules or 'pydantic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_layout_is_as_many_mixed_instances_as_fit():
    policy = policies.load("static")(policies.load("static").Config())
    (pool,) = policy.pools(ClusterInfo(gpus=8, min_tp=2))
    assert (pool.role, pool.instances, pool.tp, pool.pp, pool.gpu) == ("mixed", 4, 2, 1, None)


class Outside:
    """An entry point of another package."""

    name = "outside"

    def load(self) -> type[Policy]:
        return policies.load("static")


def test_policies_of_other_packages_come_by_entry_point(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policies, "entry_points", lambda group: [Outside()])
    assert "outside" in policies.names()
    assert policies.load("outside") is policies.load("static")


def test_a_file_that_marks_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policies, "_NOT_POLICIES", {"__init__"})
    with pytest.raises(BadInput, match=r"policies/base.py marks no class with @policy\('base'\)"):
        policies.load("base")
