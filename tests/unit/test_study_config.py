import pytest
import yaml

from sim.study.config import COMMAND_LINE, load_config
from sim.types import BadInput

MINIMAL = """
cluster: {gpu: a100-40gb, count: 4, model: llama-2-13b}
policy: {name: static, max_batch_size: 4}
workload:
  source: sharegpt
  num_requests: 10
  arrivals: {process: poisson, rate: 8}
"""


@pytest.fixture
def load(tmp_path):
    def load(*overrides, text=MINIMAL):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return load


def test_three_sections_are_enough(load):
    config = load()
    assert [(p.name, p.label, p.params.max_batch_size) for p in config.policies] == [
        ("static", "static", 4)
    ]
    assert (config.run.replications, config.engine.fuse_steps) == (5, True)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["policy=continuous"], [("continuous", "continuous")]),
        (["policy=[static, continuous]"], [("static", "static"), ("continuous", "continuous")]),
        (
            ["policy=[continuous]", "policy.0.scheduler=v0", "policy.0.label=old"],
            [("continuous", "old")],
        ),
        (["policy=continuous", "policy.scheduler=v0"], [("continuous", "continuous")]),
    ],
)
def test_policies_are_a_name_a_mapping_or_a_list(load, overrides, wanted):
    assert [(p.name, p.label) for p in load(*overrides).policies] == wanted


def test_overrides_are_yaml_and_the_last_wins(load):
    config = load(
        "run.seed=3", "run.seed=4", "slo={ttft_ms: 5}", "slo.scale=2", "engine.num_gpu_blocks=null"
    )
    assert config.run.seed == 4
    assert config.slo.bounds().ttft_ms == 10
    assert config.engine.num_gpu_blocks is None


def test_every_value_knows_where_it_came_from(load, tmp_path):
    config = load(
        "run.seed=1", "policy.padded=false", "workload.arrivals={process: constant, rate: 1}"
    )
    file = str(tmp_path / "config.yaml")
    origins = {
        "cluster.gpu": file,
        "cluster.profile": "default",
        "policy.0.name": file,
        "policy.0.max_batch_size": file,
        "policy.0.padded": COMMAND_LINE,
        "policy.0.release": "default",
        "workload.source": file,
        "workload.arrivals.rate": COMMAND_LINE,
        "run.seed": COMMAND_LINE,
        "engine.router": "default",
    }
    assert {key: config.origin(key) for key in origins} == origins


def test_the_resolved_config_can_be_run_again(load):
    config = load("slo.by={sharegpt: {ttft_ms: 3}}", "cluster.pools=[{instances: 2}]")
    again = load(text=yaml.safe_dump({**config.resolved(), "about": {"anything": 1}}))
    assert again.resolved() == config.resolved()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["workload.num_request=3"], "'workload.num_request'; did you mean 'num_requests'? valid:"),
        (["workload.arrivals.rat=3"], "unknown key 'workload.arrivals.rat'; did you mean 'rate'?"),
        (["workload.arrivals.rate=-1"], "workload.arrivals.rate: Input should be greater than 0"),
        (["workload.arrivals.rate=.nan"], "workload.arrivals.rate: Input should be a finite"),
        (
            ["workload.arrivals.process=poison"],
            "workload.arrivals.process: unknown 'poison'; did you mean 'poisson'? valid: poisson, ",
        ),
        (
            ["workload.arrivals={rate: 3}"],
            "command line: workload.arrivals.process is missing; valid",
        ),
        (["workload.rate=5"], "'workload.rate'; did you mean 'workload.arrivals.rate'? valid: "),
        (["gpu=h100"], "unknown key 'gpu'; did you mean 'cluster.gpu'? valid: cluster, policy"),
        (["engine.max_num_seqs=4"], "did you mean 'policy.max_num_seqs'? valid: padding"),
        (["policy.name=orca"], "max_batch_size'; valid: max_num_seqs, max_len; policy=orca drops"),
        (["cluster.count=two"], "cluster.count: Input should be a valid integer"),
        (["cluster.count=3000000000"], "cluster.count: Input should be less than or equal to 1"),
        (["engine.host_seq_ms=1e308"], "host_seq_ms: Input should be at most 1e+15, got '1e308'"),
        (
            ["slo.scale=1e308"],
            "slo.scale: Input should be less than or equal to 1000000, got '1e308'",
        ),
        (["cluster.count=null"], "cluster.count: Input should be a valid integer"),
        (["cluster=5"], "cluster: Input should be a valid dictionary"),
        (["cluster=null"], "cluster is missing; needed: cluster, policy, workload"),
        (["cluster={gpu: h100, count: 1}"], "command line: cluster.model is missing"),
        (["cluster.pools=[{instances: 1, typ: 3}]"], "'cluster.pools.0.typ'; did you mean 'tp'?"),
        (["cluster.pools=[{instances: 0}]"], "cluster.pools.0.instances: Input should be"),
        (["policy=statik"], "unknown policy 'statik'; did you mean 'static'? valid: ascendra"),
        (["policy.fill_timeout_s=1e400"], "policy.fill_timeout_s: Input should be at most 1e+15"),
        (["policy.thet=1"], "unknown key 'policy.thet'; valid: max_batch_size"),
        (["policy=[static, static]"], "two are called 'static'; give each its own `label`"),
        (["policy.label=../x"], "policy.label: '../x' cannot name a folder"),
        (["policy=[]"], "policy: the list is empty; valid: ascendra"),
        (["policy=[5]"], "policy.0: expected a name or a mapping with `name`, got 5"),
        (["slo.ttft=5"], "unknown key 'slo.ttft'; did you mean 'ttft_ms'?"),
        (["slo.by.code.ttft=5"], "unknown key 'slo.by.code.ttft'; did you mean 'ttft_ms'?"),
        (["engine.router=rr"], "engine.router: unknown router; valid: round-robin, random"),
        (["engine.padding=yes"], "engine.padding: Input should be 'none', 'batch' or 'policy'"),
        (["run.stop=horizon"], "stop: horizon and horizon_s go together"),
        (["run.stop=horizon", "run.horizon_s=5", "run.warmup_s=5"], "is not below horizon_s 5.0"),
        (["sweep.run.seed=[1, 2]"], "sweep: only `bucketsim sweep` and `tune` take it"),
        (["polcy.x=1"], "unknown key 'polcy'; did you mean 'policy'?"),
        (["seed"], "override 'seed': expected key.sub=value"),
        (["run..seed=1"], "expected key.sub=value"),
        (["run.seed=[1"], "override 'run.seed=[1': line 1, column 3"),
        (["cluster.gpu.x=1"], "there is no 'x' in 'a100-40gb'"),
        (["policy=[static]", "policy.3.x=1"], "'3' is not an index below 1"),
    ],
)
def test_bad_values_give_one_line_with_key_and_choices(load, overrides, said):
    with pytest.raises(BadInput) as error:
        load(*overrides)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "config.yaml: expected a mapping with cluster, policy, workload, got None"),
        ("[1, 2]", "expected a mapping"),
        ("a: [1", "config.yaml: line 1, column 6"),
        ("a: 1\na: 2", "key 'a' twice"),
        ("a: &x [1]\nb: *x", "line 2, column 4 aliases (*name) are not supported"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: \x00", "not YAML"),
        (MINIMAL.replace("8}", "-8}"), "config.yaml: workload.arrivals.rate: Input should be"),
    ],
)
def test_bad_files_give_one_line_with_the_file(load, text, said):
    with pytest.raises(BadInput) as error:
        load(text=text)
    assert said in str(error.value)
    assert "config.yaml" in str(error.value)


def test_a_key_that_file_and_command_line_both_leave_out_is_missing_in_the_file(load):
    text = MINIMAL.replace("gpu: a100-40gb, ", "")
    assert text != MINIMAL
    with pytest.raises(BadInput, match=r"config\.yaml: cluster\.gpu is missing"):
        load("cluster.count=2", text=text)


def test_files_that_cannot_be_read(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    for path, said in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "directory"),
        (binary, "not UTF-8 text"),
    ):
        with pytest.raises(BadInput, match=said):
            load_config(path)


def test_no_key_is_both_a_policys_and_the_engines():
    import policies
    from sim.study.config import EngineConfig

    for name in policies.names():
        assert not set(policies.load(name).Config.model_fields) & set(EngineConfig.model_fields)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            ["engine={enable_prefix_caching: true, padding: batch}"],
            "enable_prefix_caching: true and padding: batch exclude each other",
        ),
        (["engine.decode_router=prefix"], "prefix is for router only"),
        (["engine.prefix_routing.cache_threshold=2"], "engine.prefix_routing.cache_threshold"),
    ],
)
def test_prefix_caching_refuses_what_cannot_be(load, overrides, wanted):
    with pytest.raises(BadInput, match=wanted) as caught:
        load(*overrides)
    assert "\n" not in str(caught.value)


def test_prefix_caching_is_off_unless_asked_for(load):
    assert load().engine.enable_prefix_caching is False
    config = load("engine={enable_prefix_caching: true, router: prefix}")
    assert config.engine.prefix_routing.cache_threshold == 0.3
