"""The `speculative` section: what it means, what it costs in memory, what is refused."""

import numpy as np
import pytest

from sim.core.acceptance import Traced
from sim.core.drafting import ByGoodput
from sim.costs.speculative import DraftHead, DraftModel, NgramLookup, SpeculativeCost
from sim.study.build import build, settings
from sim.study.config import resolve
from sim.study.run import replicate, requests_of
from sim.types import BadInput

CLUSTER = {"gpu": "h100", "count": 1, "model": "llama-3.1-8b"}
SMALL = {"model": "llama-68m", "profile": "roofline"}


def experiment(speculative, policy="continuous", cluster=(), engine=(), num_requests=10):
    return resolve(
        {
            "cluster": CLUSTER | dict(cluster),
            "policy": policy,
            "workload": {
                "source": "sharegpt",
                "num_requests": num_requests,
                "arrivals": {"process": "poisson", "rate": 4},
            },
            "engine": dict(engine),
            "speculative": speculative,
        },
        "test.yaml",
    )


def section(method="eagle", k=3, **keys):
    return {"method": method, "num_speculative_tokens": k, **keys}


def drafting(**keys):
    return section("draft_model", **SMALL | keys)


def built(speculative, **sections):
    chosen = experiment(speculative, **sections)
    return build(chosen, chosen.policies[0])


def speculation(speculative, seed=0):
    chosen = experiment(speculative)
    policy = build(chosen, chosen.policies[0]).policy
    how = settings(chosen, policy, requests_of(chosen, 0), 0, None, seed)
    return how.speculation


# -- what it means ---------------------------------------------------------------------------------


def test_without_the_section_nothing_changes():
    chosen = experiment(None)
    assert chosen.speculative is None
    assert "speculative" not in chosen.resolved()
    assert speculation(None) is None
    assert build(chosen, chosen.policies[0]).specs[0].cost.verify(1, 0).base_fs > 0


def test_resolved_says_it_all_and_can_be_read_again():
    chosen = experiment(section(k=5, control="goodput"))
    data = chosen.resolved()
    assert data["speculative"]["num_speculative_tokens"] == 5
    assert data["speculative"]["acceptance"]["model"] == "published"
    assert resolve(data, "again").speculative == chosen.speculative
    assert chosen.origin("speculative.method") == "test.yaml"
    assert chosen.origin("speculative.window") == "default"


def test_prices_are_those_of_the_method():
    for data, kind in (
        (section(), DraftHead),
        (section("medusa"), DraftHead),
        (section("ngram"), NgramLookup),
        (drafting(), DraftModel),
    ):
        cost = built(data).specs[0].cost
        assert isinstance(cost, SpeculativeCost)
        assert isinstance(cost.drafter, kind)
        assert not cost.apart
    apart = built(drafting(placement="pool", draft_gpu="rtx-4090", network_ms=2)).specs[0].cost
    assert (apart.apart, apart.network_fs) == (True, 2 * 10**12)
    head = built(section(head_step_ms=0.5, head_row_ms=0.01, head_kv_token_ms=0)).specs[0].cost
    assert (head.drafter.step_fs, head.drafter.row_fs) == (5 * 10**11, 10**10)


def test_overhead_is_added_where_peak_figures_leave_it_out():
    assert built(drafting()).specs[0].cost.drafter.overhead_fs == 3 * 10**11
    assert built(drafting(step_overhead_ms=0)).specs[0].cost.drafter.overhead_fs == 0
    own = drafting(model="llama-3.1-8b", profile="auto")
    assert built(own, engine={"num_gpu_blocks": 2000}).specs[0].cost.drafter.overhead_fs == 0


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (None, [3, 3, 3, 3, 3, 3]),
        ({"1-16": 3, "64-128": 2, "256-4096": 0}, [3, 3, 3, 2, 2, 0]),
        ({"256-4096": 0, "1": 1}, [1, 1, 1, 1, 1, 0]),
        ({"256-4096": 0, 1: 1}, [1, 1, 1, 1, 1, 0]),  # as YAML reads it
    ],
)
def test_table_by_batch_as_vllm_reads_it(ranges, expected):
    found = speculation(section(num_speculative_tokens_per_batch_size=ranges))
    assert [found.k_by_batch(b) for b in (1, 16, 63, 64, 255, 5000)] == expected[:5] + expected[5:]


def test_goodput_is_made_for_each_instance():
    found = speculation(section(control="goodput", window=20, prior_rate=0.5))
    control = found.new_control(built(section()).specs[0].cost)
    assert isinstance(control, ByGoodput)
    assert (control.window, control.rate) == (20, 0.5)


def mean(data, seed=0):
    acceptance = speculation(data, seed).acceptance
    return sum(float(acceptance.accepted(i, 500).mean()) for i in range(200)) / 200


def test_acceptance_is_what_was_asked_for(tmp_path):
    def of(**keys):
        return mean(section(acceptance={"request_sd": 0, **keys}))

    assert of(model="geometric", rate=0.5) == pytest.approx(0.875, abs=0.01)
    assert of(model="positions", rates=[1, 0]) == 1
    assert of(data="gsm8k") == pytest.approx(0.67 + 0.67 * 0.65 + 0.67 * 0.65 * 0.64, abs=0.01)
    lookup = section("ngram", acceptance={"request_sd": 0})
    assert mean(lookup) == pytest.approx(0.13 + 0.13 * 0.77 + 0.13 * 0.77 * 0.82, abs=0.01)
    path = tmp_path / "lengths.txt"
    path.write_text("2 2 2\n\n2, 2, 2, 2\n")
    traced = section(acceptance={"model": "trace", "file": str(path)})
    assert isinstance(speculation(traced).acceptance, Traced)
    assert mean(traced) == 2


def test_seeds_are_those_of_the_replication():
    data = section(acceptance={"model": "geometric", "rate": 0.5})
    assert mean(data, 1) == mean(data, 1) != mean(data, 2)


# -- memory ----------------------------------------------------------------------------------------


def test_a_drafter_takes_room_from_the_kv_cache():
    plain = built(None).specs[0]
    kv = plain.kv_token_bytes * 16
    head = (4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)) * 2  # one layer, fp16
    expected = (plain.total_blocks * kv - head) // (kv + kv // 32)
    assert built(section()).specs[0].total_blocks == expected
    assert built(section("ngram")).specs[0].total_blocks == plain.total_blocks
    small = built(drafting()).specs[0].total_blocks
    weights, own = 68_034_816 * 2, 2 * 2 * 12 * 64 * 2 * 16
    assert small == (plain.total_blocks * kv - weights) // (kv + own)
    for data in (drafting(placement="pool"), drafting(k=0), section(k=0)):
        assert built(data).specs[0].total_blocks == plain.total_blocks
    given = built(section(), engine={"num_gpu_blocks": 3000})
    assert given.specs[0].total_blocks == 3000


def test_a_draft_on_one_of_two_gpus_counts_on_both():
    def blocks(**keys):
        pools = [{"instances": 1, "tp": 2}]
        return built(drafting(**keys), cluster={"count": 2, "pools": pools}).specs[0].total_blocks

    assert blocks(draft_tensor_parallel_size=1) < blocks(draft_tensor_parallel_size=2) == blocks()


def test_readers_are_told():
    notes = built(drafting(placement="pool", draft_gpu="rtx-4090")).notes
    assert "draft times of llama-68m are peak figures, not measured" in notes
    assert "the drafters' GPUs (1 x rtx-4090 an instance) are in no count of GPUs" in notes
    assert "drafts of llama-68m are taken to be accepted as those of an EAGLE head" in notes
    other = "llama-68m drafts with a vocabulary of 32000 tokens, llama-3.1-8b has 128256"
    assert any(note.startswith(other) for note in notes)
    alike = drafting(model="llama-3.2-1b", acceptance={"model": "geometric", "rate": 0.7})
    assert not [note for note in built(alike).notes if "vocabulary" in note or "EAGLE" in note]


def test_the_size_that_is_told_is_what_the_drafter_leaves():
    for data in (None, section(), drafting()):
        setup = built(data)
        (told,) = [note for note in setup.notes if note.startswith("num_gpu_blocks ")]
        assert told.split()[1] == str(setup.specs[0].total_blocks)


def test_roofline_is_of_the_drafts_too():
    rough = built(drafting(profile="auto"), cluster={"profile": "roofline"})
    assert "draft times of llama-68m are peak figures, not measured" in rough.notes


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (section(acceptance={"model": "geometric", "rate": 1.2}), "or equal to 1, got 1.2"),
        (section(acceptance={"model": "positions", "rates": [0.5, -0.1]}), "equal to 0, got -0.1"),
        (section(acceptance={"model": "geometric"}), "model: geometric needs rate"),
        (section(acceptance={"rate": 0.5}), "rate is of model: geometric, got model: published"),
        (section("draft_model"), "num_speculative_tokens 3 needs a draft profile: `model`"),
        (section("draft_model", model="llama-68m"), "speculative: no profile for llama-68m"),
        (section("draft_model", model="llama-68m"), "speculative.profile: roofline for the drafts"),
        (section("draft_model", model="nano"), "unknown model 'nano'"),
        (drafting(placement="pool", draft_gpu="abacus"), "unknown GPU 'abacus'"),
        (section("lookahead"), "'ngram' or 'drafter_pool', got 'lookahead'"),
        (section(k=99), "less than or equal to 64, got 99"),
        (section(model="llama-68m"), "model is of method: draft_model, got method: eagle"),
        (section("ngram", head_step_ms=1), "head_step_ms is of method: eagle, medusa"),
        (section(head_step_ms=1), "head_step_ms, head_row_ms, head_kv_token_ms go together"),
        (section(placement="pool"), "placement: pool is of method: draft_model, got eagle"),
        (drafting(draft_gpu="h200"), "draft_gpu is of placement: pool"),
        (drafting(draft_tensor_parallel_size=2), "draft_tensor_parallel_size 2: valid: 1, 1"),
        (drafting(model="llama-2-70b"), "llama-2-70b with 138.0 GB of weights leaves no KV block"),
        (section(num_speculative_tokens_per_batch_size={"x": 1}), "range 'x': expected FIRST-LAST"),
        (section(num_speculative_tokens_per_batch_size={"2-4": 1}), "'2-4': ranges begin at 1"),
        (section(num_speculative_tokens_per_batch_size={"1-4": 4}), "'1-4': 4 tokens; valid: 0 to"),
        (section(num_speculative_tokens_per_batch_size={"1-9": 1, "9": 0}), "do not overlap"),
        (section(pool={"drafters": 2}), "pool is of method: drafter_pool, got method: eagle"),
        (section("drafter_pool", pool={"best_rate": 2}), "less than or equal to 1, got 2"),
        (section("drafter_pool", acceptance={"data": "cnn"}), "drafter_pool has its own; valid"),
        (section(tokens=3), "unknown key 'speculative.tokens'"),
        ({"num_speculative_tokens": 3}, "speculative.method is missing"),
        (section(acceptance={"model": "trace", "file": "gone"}), "gone: cannot be read: No such"),
    ],
)  # fmt: skip
def test_bad_input(data, said):
    with pytest.raises(BadInput) as error:
        speculation(data)
    assert said in str(error.value)
    assert str(error.value).startswith("test.yaml: ")
    assert "speculative" in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_lengths(tmp_path):
    path = tmp_path / "lengths.txt"
    for text, said in (("1 2\n1 x\n", "line 2: '1 x': expected whole numbers"), ("", "no lengths")):
        path.write_text(text)
        with pytest.raises(BadInput, match=said):
            speculation(section(acceptance={"model": "trace", "file": str(path)}))


@pytest.mark.parametrize(
    "policy",
    ["static", "uellm", {"name": "smdp", "applies_to": "static"}],
    ids=["static", "uellm", "smdp"],
)
def test_static_batches_draft_nothing(policy):
    with pytest.raises(BadInput, match=r"runs static batches, which draft no tokens; valid: pol"):
        built(section(), policy=policy)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"async_scheduling": True}, "engine.async_scheduling true: a step's number of tokens"),
        ({"min_step_ms": 5}, "engine.min_step_ms 5: a floor of plain steps"),
        ({"attention": "ragged"}, "engine.attention: ragged: rounds with `speculative` are priced"),
        (
            {"cascade_attention": True, "enable_prefix_caching": True},
            "engine.cascade_attention: true: rounds with `speculative` are priced by sums",
        ),
    ],
)
def test_engines_it_does_not_go_with(engine, said):
    with pytest.raises(BadInput) as error:
        built(section(), engine=engine)
    assert f"test.yaml: {said}" in str(error.value)


# -- runs ------------------------------------------------------------------------------------------


def figures(speculative, concurrency=8, num_requests=40, engine=()):
    chosen = experiment(speculative, engine=engine, num_requests=num_requests)
    closed = {"arrivals": {"process": "closed", "concurrency": concurrency}}
    data = chosen.resolved()
    data["workload"] |= closed
    again = resolve(data, "test.yaml")
    return replicate(again, again.policies[0], 0).summary


def test_summary_counts_what_was_drafted():
    plain = figures(None)
    assert not [key for key in plain if key.startswith("spec_decode")]
    found = figures(section(acceptance={"model": "geometric", "rate": 0.6, "request_sd": 0}))
    rounds, drafted, accepted = (
        found[f"spec_decode_{key}"] for key in ("num_drafts", "draft_tokens", "accepted_tokens")
    )
    assert drafted == 3 * rounds
    assert found["spec_decode_acceptance_rate"] == 100 * accepted / drafted
    length = found["spec_decode_acceptance_length"]
    assert length == 1 + accepted / rounds == pytest.approx(2.176, rel=0.02)
    for key in ("completed", "total_output_tokens"):
        assert found[key] == plain[key]
    assert found["mean_tpot_ms"] < 0.75 * plain["mean_tpot_ms"]
    assert found["mfu"] > plain["mfu"]  # the same tokens in less time
    more = found["spec_decode_mfu_verified"] / found["mfu"] - 1
    served = found["total_output_tokens"] + found["total_input_tokens"] - found["completed"]
    assert more == pytest.approx((drafted - accepted) / served, rel=0.1)  # but for attention


def test_no_drafts_is_no_speculation():
    plain, none = figures(None), figures(section(k=0))
    for key, value in plain.items():
        if key not in ("classes",):
            assert none[key] == pytest.approx(value, nan_ok=True), key
    assert none["spec_decode_num_drafts"] == none["spec_decode_draft_tokens"] == 0
    assert none["spec_decode_mfu_verified"] == none["mfu"]


def test_goodput_gives_up_where_nothing_is_gained():
    def drafted(concurrency):
        data = section("ngram", 5, control="goodput", window=8)
        found = figures(data, concurrency, 3 * concurrency)
        return found["spec_decode_draft_tokens"] / found["total_output_tokens"]

    few, many = drafted(1), drafted(256)
    assert few > 0.5
    assert many < few / 4


def test_the_same_texts_are_as_easy_for_every_policy():
    data = section(acceptance={"model": "geometric", "rate": 0.6})
    one, two = (figures(data, concurrency=many)["spec_decode_accepted_tokens"] for many in (1, 16))
    assert one == two


@pytest.mark.parametrize(
    ("policy", "keys"),
    [
        ("cosine", {}),
        ({"name": "cosine", "adapt": "ladder", "drafters_per_request": 0}, {"k": 8}),
        (
            "cosine",
            {
                "k": 8,
                "control": "goodput",
                "pool": {"overlap": False, "drafters": 3, "hop_ms": 0, "step_ms": 0.2},
            },
        ),
        ("continuous", {}),
    ],
    ids=["table", "ladder", "goodput", "no rules"],
)
def test_a_pool_of_drafters_fused_and_step_by_step(policy, keys):
    records = []
    for fuse in (True, False):
        data = section("drafter_pool", **keys)
        chosen = experiment(data, policy, engine={"fuse_steps": fuse}, num_requests=30)
        records.append(replicate(chosen, chosen.policies[0], 0).record)
    fused, single = records
    for name, column in fused.requests.items():
        assert (column == single.requests[name]).all() or (
            name.endswith("_s") and np.array_equal(column, single.requests[name], equal_nan=True)
        ), name
    assert fused.counters == single.counters
    assert fused.counters["accepted_tokens"]


def test_cooperation_is_told_how_many_there_are():
    found = {}
    for width in (1, 4):
        data, policy = section("drafter_pool"), {"name": "cosine", "drafters_per_request": width}
        setup = built(data, policy=policy)
        found[width] = setup.specs[0].cost.verify(8, 3).at(0)
        assert any("16 drafters, their acceptance and their times are assumed" in note
                   for note in setup.notes)  # fmt: skip
    assert found[1] < found[4]


def test_the_limit_on_candidates_cuts_k():
    def of(policy, **keys):
        chosen = experiment(section("drafter_pool", k=6, **keys), policy)
        setup = build(chosen, chosen.policies[0])
        found = settings(chosen, setup.policy, requests_of(chosen, 0), 0).speculation
        return [found.k_by_batch(batch) for batch in (1, 10, 11, 16, 32, 33, 500)]

    assert of("cosine") == [6, 6, 5, 4, 2, 1, 1]  # 4 x 16 tokens for each drafter of a request
    ranges = {"num_speculative_tokens_per_batch_size": {"1-15": 6, "16-32": 3, "33-99": 0}}
    assert of("cosine", **ranges) == [6, 6, 5, 3, 2, 0, 0]
    assert of("continuous") == of({"name": "cosine", "candidates": 0}) == [6] * 7
    assert of({"name": "cosine", "candidates": 10**12}) == [6] * 7, "and takes no time"
