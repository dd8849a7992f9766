"""Keys that change nothing: what is told is true, the rest matters, and no key is missed."""

from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

import pytest
from pydantic import BaseModel

import policies
from policies.parts.disaggregated import Disaggregated
from sim.study.build import build
from sim.study.config import (
    ClusterConfig,
    EngineConfig,
    PowerConfig,
    SloConfig,
    SpeculativeConfig,
    resolve,
    set_key,
)
from sim.study.idle_keys import OURS, RESERVES, RULES
from sim.study.presets import names
from sim.study.run import replicate
from sim.types import BadInput, Policy
from workloads import WorkloadConfig

SECTIONS = {
    "cluster": ClusterConfig,
    "workload": WorkloadConfig,
    "slo": SloConfig,
    "engine": EngineConfig,
    "speculative": SpeculativeConfig,
    "power": PowerConfig,
}

HEEDED = {
    # what there is, and which requests come when
    *("cluster.gpu", "cluster.count", "cluster.model", "cluster.pools"),
    *("workload.source", "workload.mixture", "workload.num_requests", "workload.duration_s"),
    *("workload.max_model_len", "workload.max_output_len", "workload.arrivals"),
    *("workload.shared_prefix.tokens", "workload.shared_prefix.share"),
    # classes of the summary
    *("workload.priorities", "workload.tasks", "slo.by"),
    *("slo.ttft_ms", "slo.tpot_ms", "slo.e2e_ms", "slo.abort_after_s"),
    # every step, every instance
    *("engine.block_size", "engine.num_gpu_blocks", "engine.null_block", "engine.max_model_len"),
    *("engine.async_scheduling", "engine.ttft_clock", "engine.api_latency_ms"),
    *("engine.host_step_ms", "engine.host_seq_ms", "engine.host_prefill_ms"),
    *("engine.first_step_ms", "engine.min_step_ms", "engine.preset"),
    *("engine.failures.mtbf_s", "engine.failures.repair_s"),
    # the same results by definition
    *("engine.fuse_steps", "engine.loop"),
    # a run shows it (a notice says so of caching)
    *("engine.padding", "engine.enable_prefix_caching", "engine.cascade_attention"),
    # refused where they do not apply (or with the keys above)
    *("speculative.method", "speculative.num_speculative_tokens"),
    *("speculative.acceptance.model", "speculative.acceptance.rate"),
    *("speculative.acceptance.rates", "speculative.acceptance.file"),
    *(f"speculative.pool.{key}" for key in ("drafters", "domains", "worst_rate", "best_rate")),
    *(f"speculative.pool.{key}" for key in ("off_domain", "fusion_gain", "step_ms")),
    *(f"speculative.pool.{key}" for key in ("request_ms", "hop_ms", "overlap")),
    *("power.model", "power.gpu", "power.host_w_per_gpu", "power.carbon_g_per_kwh"),
    "power.price_per_kwh",
}
"""Keys that no rule names."""


def leaves(model, prefix):
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}"
        inner = field.annotation
        if get_origin(inner) in (Union, UnionType):
            inner = next((m for m in get_args(inner) if m is not type(None)), inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name != "arrivals":
            if name in ("input_len", "output_len"):
                yield key
            else:
                yield from leaves(inner, key)
        else:
            yield key


def test_every_key_has_a_rule_or_is_heeded_everywhere():
    known = {key for section, model in SECTIONS.items() for key in leaves(model, section)}
    ruled = {key for rule in RULES for key in rule.keys}
    covered = {key for key in known if any(f"{key}.".startswith(f"{of}.") for of in ruled)}
    assert known - covered == HEEDED & (known - covered)
    assert known - covered - HEEDED == set(), "say in idle_keys.RULES where the new key is heeded"
    assert HEEDED - known == set()
    for key in ruled:  # each is a key, or a section of keys
        assert any(f"{of}.".startswith(f"{key}.") for of in known), key


# -- what is told is true -----------------------------------------------------------------------

SPLIT = {
    "policy": "distserve",
    "cluster.pools": [{"role": "prefill", "instances": 2}, {"role": "decode", "instances": 2}],
}
TIGHT = {**SPLIT, "engine.num_gpu_blocks": 40, "workload.arrivals.rate": 200}
DRAFTS = {"speculative.method": "ngram", "speculative.num_speculative_tokens": 2}
GOODPUT = {
    "speculative.method": "eagle",
    "speculative.num_speculative_tokens": 8,
    "speculative.control": "goodput",
}
PREFIXES = {"engine.enable_prefix_caching": True}
GROUPS = {"workload.shared_prefix.tokens": 64, "workload.shared_prefix.groups": 3}
TRACE = {"workload.source": "t.csv", "workload.num_requests": None}
BLOCKS = {**TRACE, "workload.prefix_blocks": "b.csv"}
UELLM = {"policy": "uellm", "slo.e2e_ms": 9000}
OF_POOL = {
    "policy": "cosine",
    "speculative.method": "drafter_pool",
    "speculative.num_speculative_tokens": 2,
}

CASES = [
    (
        "cluster.profile",
        ("vllm", "distserve"),
        {"cluster.pools": [{"instances": 1, "profile": "auto"}]},
        {"cluster.pools": [{"instances": 1}, {"instances": 1, "profile": "auto"}]},
    ),
    ("cluster.link.latency_ms", (5, 50), {}, SPLIT),
    ("cluster.link.shared", (True, False), {}, {**TIGHT, "cluster.link.gb_per_s": 0.1}),
    (
        "cluster.link.shared",
        (True, False),
        {"policy": "distserve", "cluster.link.gb_per_s": 0.1},
        {**TIGHT, "cluster.link.gb_per_s": 0.1},
    ),
    ("cluster.link.overlap", (0.5, 0.9), {}, SPLIT),
    ("cluster.link.gb_per_s", (1, 10), {}, SPLIT),
    ("cluster.link.name", ("pcie", "ethernet"), {}, SPLIT),
    ("cluster.link.name", ("pcie", "ethernet"), {**SPLIT, "cluster.link.gb_per_s": 5}, SPLIT),
    ("workload.input_len", (9, 90), {"workload.source": "alpaca"}, {}),
    ("workload.output_len", (9, 90), {"workload.source": "alpaca"}, {}),
    (
        "workload.overlong",
        ("drop", "truncate"),
        {},
        {"workload.max_model_len": 200, "workload.source": "sharegpt"},
    ),
    ("workload.format", ("vidur", "azure"), {}, TRACE),
    ("workload.max_rows", (1, 99), {}, TRACE),
    ("workload.prefix_blocks", ("b.csv", "c.csv"), TRACE, {**TRACE, **PREFIXES}),
    ("workload.hash_block_tokens", (16, 32), BLOCKS, {**BLOCKS, **PREFIXES}),
    ("workload.shared_prefix.groups", (2, 9), GROUPS, {**GROUPS, **PREFIXES}),
    ("slo.scale", (2, 3), {}, {"slo.ttft_ms": 20, "workload.arrivals.rate": 80}),
    ("engine.attention", ("balanced", "fitted"), {"engine.async_scheduling": True}, {}),
    ("engine.attention_ctas_per_sm", (2, 4), {}, {"engine.attention": "ragged"}),
    ("engine.attention_plan_ms", (0.2, 0.4), {}, {"engine.attention": "balanced"}),
    (
        "engine.attention_plan_ms",
        (0.2, 0.4),
        {"engine.attention": "balanced", "engine.async_scheduling": True},
        {"engine.attention": "balanced"},
    ),
    (
        "engine.scheduler_reserve_full_isl",
        (True, False),
        {"policy": "sarathi"},
        {
            "policy": {"name": "continuous", "max_num_batched_tokens": 48, "max_num_seqs": 16},
            "engine.num_gpu_blocks": 24,
            "workload.arrivals.rate": 400,
        },
    ),
    ("engine.router", ("random", "shortest-queue"), {"cluster.count": 1}, {}),
    ("engine.router", ("random", "shortest-queue"), {"policy": "splitwise"}, {}),
    (
        "engine.prefix_routing.cache_threshold",
        (0.1, 1.0),
        GROUPS,
        {**GROUPS, "engine.router": "prefix"},
    ),
    ("engine.decode_router", ("random", "round-robin"), {}, SPLIT),
    ("engine.first_token", ("decode", "prefill"), {}, SPLIT),
    (
        "engine.pipeline",
        ("sequential", "interleaved"),
        {},
        {"cluster.pools": [{"instances": 1, "pp": 2}]},
    ),
    ("engine.predictor.name", ("oracle", "constant"), {}, UELLM),
    ("engine.predictor.accuracy", (0.1, 0.9), {**UELLM, "engine.predictor.name": "oracle"}, UELLM),
    (
        "engine.predictor.tokens",
        (2, 300),
        UELLM,
        {
            "policy": "splitwise",
            "engine.predictor.name": "constant",
            "engine.num_gpu_blocks": 60,
            "workload.arrivals.rate": 200,
        },
    ),
    ("engine.swap_space_gib", (0, 9), {"engine.num_gpu_blocks": 40}, TIGHT),
    ("engine.swap_gb_per_s", (1, 9), {"engine.num_gpu_blocks": 40}, TIGHT),
    ("engine.swap_gb_per_s", (1, 9), {**TIGHT, "engine.swap_space_gib": 0}, TIGHT),
    (
        "engine.oom_restart_s",
        (1, 60),
        {"engine.num_gpu_blocks": 40},
        {"policy": {"name": "static", "max_batch_size": 16}, "engine.num_gpu_blocks": 40},
    ),
    ("engine.gpu_memory_utilization", (0.7, 0.8), {"engine.num_gpu_blocks": 400}, {}),
    ("speculative.window", (2, 99), DRAFTS, GOODPUT),
    ("speculative.prior_rate", (0.01, 0.9), DRAFTS, GOODPUT),
    ("speculative.network_ms", (5, 9), DRAFTS, OF_POOL),
    (
        "speculative.draft_at_zero",
        (0.1, 0.5),
        DRAFTS,
        {**DRAFTS, "speculative.num_speculative_tokens_per_batch_size": {"1": 2, "2-256": 0}},
    ),
    (
        "speculative.acceptance.data",
        ("gsm8k", "cnn"),
        {**DRAFTS, "speculative.acceptance": {"model": "geometric", "rate": 0.5}},
        DRAFTS,
    ),
    (
        "speculative.acceptance.request_sd",
        (0.1, 3),
        {**DRAFTS, "speculative.acceptance": {"model": "trace", "file": "a.txt"}},
        DRAFTS,
    ),
    (
        "speculative.num_speculative_tokens_per_batch_size",
        ({"1-2": 0}, {"1": 0}),
        {**DRAFTS, "speculative.num_speculative_tokens": 0},
        None,
    ),
    (
        "speculative.draft_at_zero",
        (0.1, 0.5),
        {**DRAFTS, "speculative.num_speculative_tokens": 0},
        None,
    ),
    ("speculative.profile", ("roofline", "nobody"), DRAFTS, None),
    ("power.cap_w", (500, 600), {}, None),
    ("power.cap_w", (150, 300), None, {}),
    ("workload.tokenizer", ("x", "y"), {}, None),
]


def experiment(*settings):
    data = {"policy": "continuous"}
    base = {
        "cluster.gpu": "a100-80gb",
        "cluster.count": 4,
        "cluster.model": "opt-13b",
        "cluster.profile": "roofline",
        "workload.source": "uniform",
        "workload.input_len": {"low": 20, "high": 220},
        "workload.output_len": {"low": 5, "high": 60},
        "workload.num_requests": 40,
        "workload.arrivals": {"process": "poisson", "rate": 40},
    }
    for given in (base, *settings):
        for key, value in given.items():
            if key == "policy":
                data["policy"] = value
            else:
                set_key(data, key, value)
    if data["workload"]["source"] not in ("uniform",):
        for key in ("input_len", "output_len"):
            if not any(f"workload.{key}" in given for given in settings):
                data["workload"].pop(key)
    return resolve(data, "c.yaml")


def outcome(chosen):
    """Everything a run comes to; what is wrong with the config, if that is found out."""
    try:
        found = replicate(chosen, chosen.policies[0], 0)
    except BadInput as error:
        return str(error)
    columns = {name: values.tolist() for name, values in found.record.requests.items()}
    return repr((columns, found.summary, found.record.instances, found.record.swaps))


def about(chosen, key):
    """The lines that tell of a key."""
    notes = build(chosen, chosen.policies[0]).notes
    return [note for note in notes if "no effect: " in note and key in note]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{at / 9},{100 + at},9\n" for at in range(12))
    (tmp_path / "t.csv").write_text("arrived_at_s,prompt_tokens,output_tokens\n" + rows)
    for name, first in (("b.csv", 1), ("c.csv", 5)):
        ids = "".join(f"{at},{first};{2 + at % first}\n" for at in range(12))
        (tmp_path / name).write_text("request,block_ids\n" + ids)
    (tmp_path / "a.txt").write_text("1 2 0 1\n2 2 1 0\n")


@pytest.mark.parametrize(("key", "values", "idle", "heeded"), CASES)
def test_what_is_told_changes_nothing_and_what_is_not_does(files, key, values, idle, heeded):
    section = ".".join(key.split(".")[:2])
    if idle is not None:
        one, other = (experiment(idle, {key: value}) for value in values)
        told = about(one, section)
        assert len(told) == 1, build(one, one.policies[0]).notes
        assert outcome(one) == outcome(other)
    if heeded is not None:
        one, other = (experiment(heeded, {key: value}) for value in values)
        assert about(one, section) == about(other, section) == []
        assert outcome(one) != outcome(other)


# -- who set what -------------------------------------------------------------------------------


def test_keys_are_told_together_with_their_reason():
    keys = {"speculative.window": 5, "speculative.prior_rate": 0.2}
    (line,) = about(experiment(DRAFTS, keys), "speculative")
    assert line == (
        "speculative.window 5, speculative.prior_rate 0.2 have no effect: only for control: goodput"
    )
    (line,) = about(experiment({"engine.predictor.accuracy": 0.5}), "engine")
    assert line == "engine.predictor has no effect: the policy asks for no predicted lengths"


def test_a_default_that_is_written_out_is_not_told():
    assert not about(experiment({"engine.attention_plan_ms": 0.1}), "engine")
    whole = experiment().resolved()
    written = resolve(whole, "c.yaml")
    assert not about(written, "")


@pytest.mark.parametrize("preset", names())
def test_what_a_preset_sets_is_not_told(preset):
    chosen = experiment({"engine.preset": preset, "policy": "sarathi"})
    assert not about(chosen, "engine")
    assert not about(resolve(chosen.resolved(), "written.yaml"), "engine")
    also = experiment({"engine.preset": preset, "policy": "sarathi", "engine.swap_space_gib": 7})
    assert len(about(also, "engine")) == 1


def test_policies_of_others_may_read_anything(monkeypatch):
    sarathi = policies.load("sarathi")
    keys = {"engine.scheduler_reserve_full_isl": True, "engine.oom_restart_s": 3}
    chosen = experiment({"policy": "sarathi"}, keys)
    assert len(about(chosen, "engine")) == 2
    monkeypatch.setattr(sarathi, "__module__", "elsewhere")
    assert not about(chosen, "engine")


def test_what_our_policies_read_is_as_the_rules_have_it():
    folder = Path(policies.__file__).parent
    text = {path: path.read_text() for path in folder.rglob("*.py")}
    reserve = [path.stem for path, content in text.items() if "view.reserve_full_isl" in content]
    assert tuple(reserve) == RESERVES
    assert not any("cluster.router" in content for content in text.values())
    assert not any("decode_router" in content for content in text.values())
    for name in policies.names():
        policy, own = policies.load(name), text[folder / f"{name.replace('-', '_')}.py"]
        assert policy.__module__.startswith(f"{OURS}.")
        # who has a `victim` of its own swaps it out, or says in `swap` whether it does
        assert policy.victim in (Policy.victim, Disaggregated.victim) or "self.swap" in own
