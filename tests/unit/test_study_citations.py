"""What is cited, and what a policy says about itself."""

import re
from typing import get_args

import pytest

import policies
from policies.base import Config, Policy, Pool
from sim.costs.catalogue import models
from sim.costs.library import list_profiles
from sim.costs.power import PowerModel
from sim.study.bibliography import BIBTEX, ENTRIES, MARKS, cited_in, marks
from sim.study.citations import DATA_SETS, DRAFTING, MODELS, POWER, _of_data, _used
from sim.study.config import SpeculativeConfig
from sim.study.policy_facts import policy_facts, section, short_reference
from workloads.lengths.tables import table_names
from workloads.read import format_names


def test_every_entry_is_whole():
    assert len(ENTRIES) == BIBTEX.count("\n@")
    for key, entry in ENTRIES.items():
        assert entry.count("{") == entry.count("}"), key
        assert entry.isascii(), key
        assert re.search(r"^  title = ", entry, re.M), key
        assert entry.count("\n@") == 0, key


def test_identifiers_are_found_in_an_entry():
    assert marks("liu1973scheduling") == ("liu1973scheduling", "10.1145/321738.321743")
    assert marks("yu2022orca")[1] == "https://www.usenix.org/conference/osdi22/presentation/yu"
    assert set(MARKS) <= set(ENTRIES)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("Zhong et al., OSDI 2024, arXiv:2401.09670.", ["zhong2024distserve"]),
        ("doi:10.1145/3600006.3613165; vLLM documentation", ["kwon2023vllm"]),
        ("arXiv:2507.17120 and Jagadish et al., VLDB 1998",
         ["zheng2025bucketserve", "jagadish1998histograms"]),
        ("LLMServe/DistServe, simdistserve/estimators", ["zhong2024distserve"]),
        ("this project", []),
    ],
)  # fmt: skip
def test_entries_are_meant_by_their_identifiers(text, keys):
    assert cited_in(text) == keys


@pytest.mark.parametrize(
    ("name", "key"),
    [("static", "yu2022orca"), ("orca", "yu2022orca"), ("continuous", "kwon2023vllm"),
     ("sarathi", "agrawal2024sarathi"), ("splitwise", "patel2024splitwise"),
     ("distserve", "zhong2024distserve"), ("bucketserve", "zheng2025bucketserve"),
     ("bucketserve-optimal", "jagadish1998histograms"), ("uellm", "he2024uellm"),
     ("deadline-batch", "liu1973scheduling"), ("cosine", "gao2025cosine")],
)  # fmt: skip
def test_policies_cite_their_papers(name, key):
    assert key in cited_in(section(policies.load(name), "Reference"))


def test_all_that_is_shipped_has_an_entry():
    for model in models():
        assert [k for start, k in MODELS.items() if model.startswith(start)], model
    for profile in list_profiles():
        assert cited_in(profile.source), profile.name
    for name in table_names():
        assert _of_data(name, "auto"), name
    named = [*DATA_SETS.values(), *POWER.values(), *DRAFTING.values()]
    assert set(MODELS.values()) | {k for keys in named for k in keys} <= set(ENTRIES)
    assert set(format_names()) - set(DATA_SETS) <= {"plain", "vllm"}


@pytest.mark.parametrize(
    ("name", "format", "keys"),
    [
        ("traces/AzureLLMInferenceTrace_conv.csv", "auto",
         ["patel2024splitwise", "stojkovic2025dynamollm"]),
        ("azure2023-conv.csv", "auto", ["patel2024splitwise"]),
        ("azure2024-code.csv.gz", "azure", ["stojkovic2025dynamollm"]),
        ("BurstGPT_1.csv", "auto", ["wang2025burstgpt"]),
        ("t.jsonl", "mooncake", ["qin2025mooncake"]),
        ("alpaca/mine.csv", "plain", []),  # a folder is no data set
    ],
)  # fmt: skip
def test_files_are_cited_by_format_or_name(name, format, keys):
    assert _of_data(name, format) == keys


BARE = {"policy": [], "cluster": {"model": "opt-13b"}, "about": {}, "workload": {}}


def test_drafts_and_attention_are_cited():
    drafts = {"method": "eagle", "num_speculative_tokens": 3, "control": "goodput"}
    engine = {"attention": "fitted", "cascade_attention": True}
    found = dict(_used(BARE | {"speculative": drafts, "engine": engine}))
    assert found["drafts by eagle"] == ["li2024eagle", "liu2026illusion", "liu2024smartspec"]
    assert found["attention fitted"] == ["ye2025flashinfer"]
    assert {key for keys in found.values() for key in keys} <= set(ENTRIES)
    assert set(DRAFTING) == set(get_args(SpeculativeConfig.model_fields["method"].annotation))
    plain = _used(BARE | {"engine": {"attention": "fitted"}})
    assert not [thing for thing, _ in plain if thing.startswith(("drafts", "attention"))]


def test_power_is_cited_if_asked_for_or_counted():
    config = BARE
    assert not any(thing.startswith("power") for thing, _ in _used(config))
    assert dict(_used(config, energy=True))["power model logistic"] == list(POWER["logistic"])
    mfu = dict(_used(config | {"power": {"model": "mfu"}}, energy=True))
    assert mfu["power model mfu"] == list(POWER["mfu"])
    asked = dict(_used(config | {"power": {"model": "logistic"}}))
    assert asked["power model logistic"] == ["patel2024splitwise", "vllmsemanticrouter"]
    assert set(POWER) == set(get_args(PowerModel))


class NeedsMore(Config):
    must: int


class Made(Policy):
    """Do nothing.

    Assumes: the weather,
    and more.

    Reference: Doe et al., "A; B (C)", VENUE 2020 (its baseline); code x/y.
    """

    Config = Config

    def __init__(self, config):
        pass

    def plan(self, view):
        return None

    def pools(self, cluster):
        return [Pool("prefill", 1), Pool("decode", cluster.gpus - 2), Pool("decode", 1)]


def test_facts_are_read_from_class_and_docstring():
    facts = policy_facts(Made)
    assert facts.what == "Do nothing."
    assert facts.roles == "prefill+decode"
    assert facts.assumes == "the weather, and more."
    assert short_reference(facts.reference) == "Doe et al., VENUE 2020"
    assert policy_facts(type("Told", (Made,), {"assumes": "bounds", "__doc__": ""})) == (
        policy_facts(Made).__class__("", "prefill+decode", "bounds", "")
    )
    assert policy_facts(type("Open", (Made,), {"Config": NeedsMore})).roles == ""


@pytest.mark.parametrize("name", policies.names())
def test_every_policy_can_be_listed(name):
    facts = policy_facts(policies.load(name))
    assert facts.what
    assert facts.roles
