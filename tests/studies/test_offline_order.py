"""Offline padded throughput of the bucketing rules, and how near they come to no padding at all.

1,000 requests of the built-in 80:20 mixture wait at t = 0; Llama-2-13B on 4x A100-40GB, TP2 prefill
and TP2 decode; seeds 0 to 9; `nmax_length: up`. "@1024" is read as section 7 of the planning study
has it: the prompt is cut so that prompt + output <= 1,024, outputs at 512 (section 0).

The study expects one bucket < literal < to_fixpoint < DP K=8 <= padding-free. Measured, requests/s
and paired differences with 95 % intervals, padding waste in brackets:

    one bucket 12.8 (80 %), literal 25.7 (56 %), to_fixpoint 34.4 (23 %), DP K=8 40.8 (5 %)
    literal - one bucket   12.9 [12.1, 13.8]
    fixpoint - literal      8.7 [7.3, 10.1]
    DP K=8 - fixpoint       6.4 [5.2, 7.6]
    padding-free - DP K=8   0.01 [-0.39, 0.40], the same policy without padding

The last pair is a tie (0.18 [-0.08, 0.43] over seeds 0 to 59). Its cause: DP leaves 5 % of the
prefill tokens as padding, which delays the end of the last prefill by 0.5 s of 15.6 s [0.3, 0.7];
but the run ends 9 s later, with the last decode, and the request that ends it was prefilled in
mid-run. With the decode side taken out (outputs cut to 2 tokens, `PREFILL_BOUND`) every pair is
strict: padding-free - DP is 0.94 [0.84, 1.04] of 63.7 requests/s.

For the same reason "padding-free" alone is no ceiling at this job size; the order of service counts
more. One padding-free bucket, first come first served, prefills everything 1.3 s [0.8, 1.8] earlier
than DP and yet serves 3.7 [2.7, 4.6] requests/s less: the request that ends the run (some 20 of
1,000 emit 300 tokens or more) was prefilled 6 s later. Shortest prompts first, padding-free and
with a budget of 4,096 tokens, is 2.3 [1.1, 3.6] ahead of DP: that request comes in the first 2 s.
"""

from itertools import pairwise

import pytest

from sim.study.config import resolve
from sim.study.run import compare
from sim.study.statistics.stats import student_t

SEEDS = range(10)
UP = {"name": "bucketserve", "nmax_length": "up"}
DP = {"name": "bucketserve-optimal", "num_buckets": 8}
POLICIES = {
    "one bucket": UP | {"max_buckets": 1},
    "literal": UP,
    "to_fixpoint": UP | {"to_fixpoint": True},
    "DP K=8": DP,
    "padding-free": DP | {"padded": False},
    "padding-free FCFS": UP | {"max_buckets": 1, "padded": False},
    "padding-free SJF": UP
    | {"max_buckets": 1, "padded": False, "order": "sjf", "max_batch_tokens": 4096},
}
ORDER = list(POLICIES)[:5]
FULL, PREFILL_BOUND = 512, 2


def offline(max_output_len):
    """Run all policies; return label -> key -> one value a seed."""
    keys = ("throughput", "waste", "last_prefill_s", "prefill_of_last_s")
    found = {label: {key: [] for key in keys} for label in POLICIES}
    for seed in SEEDS:
        experiment = resolve(
            {
                "cluster": {"gpu": "a100-40gb", "count": 4, "model": "llama-2-13b"},
                "policy": [{**policy, "label": label} for label, policy in POLICIES.items()],
                "workload": {
                    "source": "mixed",
                    "num_requests": 1000,
                    "max_model_len": 1024,
                    "max_output_len": max_output_len,
                    "arrivals": {"process": "all-at-once"},
                },
                "run": {"seed": seed, "replications": 1},
            },
            "test",
        )
        for result in compare(experiment).results:
            [only] = result.replications
            assert [(i["role"], i["tp"]) for i in only.record.instances] == [
                ("prefill", 2),
                ("decode", 2),
            ]
            assert only.summary["completed"] == 1000
            rows = found[result.choice.label]
            rows["throughput"].append(only.summary["request_throughput"])
            rows["waste"].append(only.summary["padding_waste"])
            ends, finish = (only.record.requests[key] for key in ("prefill_end_s", "finish_s"))
            rows["last_prefill_s"].append(ends.max())
            rows["prefill_of_last_s"].append(ends[finish.argmax()])
    return found


def gain(found, of, over, key="throughput"):
    """Return the paired difference, `of` minus `over`, with its interval."""
    pairs = zip(found[of][key], found[over][key], strict=True)
    return student_t([mine - base for mine, base in pairs])


def shown(interval):
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


@pytest.fixture(scope="module", params=[FULL, PREFILL_BOUND], ids=["full", "prefill-bound"])
def study(request):
    return request.param, offline(request.param)


def note(record_property, max_output_len, line, figure):
    what = "offline padded 80:20 @1024, TP2+TP2"
    if max_output_len == PREFILL_BOUND:
        what += ", outputs cut to 2"
    print(f"{what}, {line}: {figure}")
    record_property("evidence", f"{what}, {line}: {figure}")


@pytest.mark.slow
def test_order_of_the_bucketing_rules(study, record_property):
    max_output_len, found = study
    for label in POLICIES:
        rate = student_t(found[label]["throughput"])
        waste = student_t(found[label]["waste"])
        figure = f"{shown(rate)} requests/s, padding {waste.mean:.1%}, n={rate.n}"
        note(record_property, max_output_len, label, figure)
    for worse, better in pairwise(ORDER):
        difference = gain(found, better, worse)
        figure = f"{shown(difference)} requests/s, paired, n={difference.n}"
        note(record_property, max_output_len, f"{better} - {worse}", figure)
        if better != "padding-free" or max_output_len == PREFILL_BOUND:
            assert difference.low > 0, (worse, better)
        else:  # see the module: a tie; to within 2 % the same throughput
            most = 0.02 * student_t(found[better]["throughput"]).mean
            assert -most <= difference.low <= 0 <= difference.high <= most


@pytest.mark.slow
def test_why_the_last_pair_is_a_tie(study, record_property):
    max_output_len, found = study
    saved = gain(found, "DP K=8", "padding-free", "last_prefill_s")
    figure = f"{shown(saved)} s of {student_t(found['DP K=8']['last_prefill_s']).mean:.1f} s"
    note(record_property, max_output_len, "last prefill ends earlier without padding", figure)
    assert saved.low > 0


@pytest.mark.slow
def test_order_of_service_counts_more_than_the_last_padding(study, record_property):
    max_output_len, found = study
    for label in ("padding-free FCFS", "padding-free SJF"):
        ahead = gain(found, label, "DP K=8")
        earlier = gain(found, "DP K=8", label, "last_prefill_s")
        sooner = gain(found, "DP K=8", label, "prefill_of_last_s")
        figure = (
            f"{shown(ahead)} requests/s, last prefill {shown(earlier)} s earlier, "
            f"prefill of the request that ends the run {shown(sooner)} s earlier"
        )
        note(record_property, max_output_len, f"{label} - DP K=8", figure)
        if max_output_len == FULL:  # who prefills that request earlier is ahead
            assert ahead.low > 0 if sooner.low > 0 else ahead.high < 0
            assert sooner.low > 0 or sooner.high < 0
        elif label == "padding-free FCFS":  # nothing decodes: earlier prefills are all there is
            assert earlier.low > 0
            assert ahead.low > 0
