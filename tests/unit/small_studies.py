"""A small ablation, a small frontier and the paper set that they start from."""

import yaml

from sim.study.paper.recipes import read_paper_set

PAPER = {
    "policies": ["bucketserve"],
    "set": {
        "cluster": {
            "gpu": "a100-40gb",
            "count": 4,
            "model": "llama-2-13b",
            "pools": [
                {"role": "prefill", "instances": 1, "tp": 2},
                {"role": "decode", "instances": 1, "tp": 2},
            ],
        },
        "workload": {
            "source": "mixed",
            "mixture": {"alpaca": 0.8, "longbench": 0.2},
            "max_model_len": 4096,
            "arrivals": {"process": "poisson", "rate": 8},
            "duration_s": 200,
        },
        "slo": {"ttft_ms": 250, "tpot_ms": 100, "scale": 2},
        "engine": {"padding": "policy"},
        "run": {"seed": 0},
    },
    "by_policy": {"bucketserve": {"policy.theta": 0.5}},
    "padding_free": {"set": {"engine.padding": "none"}},
}
COMMON = {
    "seeds": 2,
    "set": {"workload.duration_s": None, "workload.num_requests": 24},
    "search": {"start_per_s": 4, "least_per_s": 0.5, "most_per_s": 16, "width": 0.25},
    "classes": {"alpaca": "short", "longbench": "long"},
}
ABLATION = COMMON | {
    "title": "An ablation",
    "offline": {
        "workload.num_requests": 24,
        "workload.arrivals": {"process": "all-at-once"},
    },
    "attainment": 0.8,
    "bare": {"bucketserve": {"policy.max_buckets": 1, "policy.max_batch_size": 4}},
    "components": {
        "buckets": {
            "midpoint": {
                "what": "buckets",
                "set": {"bucketserve": {"policy.max_buckets": 8, "policy.nmax_length": 2}},
            }
        },
        "batch": {
            "memory": {
                "what": "memory batches",
                "set": {"bucketserve": {"policy.max_batch_size": None}},
            },
            "two": {"what": "pairs", "set": {"bucketserve": {"policy.max_batch_size": 2}}},
        },
    },
    "settings": {"paper": {"what": "one bound"}},
    "variants": [
        {"label": "nothing", "policy": "bucketserve", "has": {}},
        {"label": "buckets", "policy": "bucketserve", "has": {"buckets": "midpoint"}},
        {"label": "memory", "policy": "bucketserve", "has": {"batch": "memory"}},
        {"label": "two", "policy": "bucketserve", "has": {"batch": "two"}},
        {
            "label": "both",
            "policy": "bucketserve",
            "has": {"buckets": "midpoint", "batch": "memory"},
        },
    ],
    "highlights": ["both"],
}
FRONTIER = COMMON | {
    "title": "A frontier",
    "scales": [2, 8],
    "attainments": [0.8],
    "baseline": "bucketserve",
    "layouts": {"mixed": [{"role": "mixed", "instances": 4, "tp": 1}]},
    "left_out": {"uellm": "too slow for a test"},
    "never_pad": ["continuous"],
    "lines": [{"policy": "continuous", "label": "vLLM-like"}],
}


def write(folder, **studies):
    """Write studies as NAME.yaml, beside the paper set; return the folder."""
    (folder / "_paper.yaml").write_text(yaml.safe_dump(PAPER, sort_keys=False))
    for name, study in studies.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


def base(folder):
    """Return the paper set of a folder."""
    return read_paper_set(folder)
