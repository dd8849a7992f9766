"""Measurements of an engine whose coefficients are known: the form itself, noise on top."""

from dataclasses import replace

import numpy as np

from calibrate.samples import Sample
from calibrate.score import predicted_ms
from sim.costs.catalogue import model_named
from sim.costs.model import StepCost
from sim.costs.profile import Profile, Terms

MODEL = "llama-2-13b"

ABOUT = {
    "model": MODEL,
    "gpu": "h100",
    "dtype": "bf16",
    "device": "a made-up GPU",
    "torch": "2.11.0",
    "num_gpu_blocks": 3000,
    "block_size": 16,
    "kernel": "varlen",
}

TERMS = {
    "layers": 1,
    "host": {"step_ms": 0.8, "seq_ms": 0.01, "prefill_step_ms": 1.5},
    "dense": {"knots_tokens_ms": [(1, 9.0), (128, 10.0), (512, 17.0), (2048, 60.0), (8192, 240.0)]},
    "prefill_attention": {
        "read_token_ms": 4e-4, "base_ms": -0.4, "chunk_ms": 0.012, "quad_ms": 1.1e-6
    },
    "decode_attention": [
        {"seq_ms": 0.008, "kv_token_ms": 6e-4},
        {"from_batch": 2, "seq_ms": 0.008, "kv_token_ms": 3e-4}
    ],
    "gamma": 1.6,
}  # fmt: skip


def cost_of(terms):
    profile = Profile(
        name="truth", gpu="h100", model=MODEL, tp=1, dtype="bf16", engine="x", basis="measured",
        source="x", derivation="x", terms=Terms.model_validate(terms),
    )  # fmt: skip
    return StepCost(profile, model_named(MODEL))


def step(chunks=(), decodes=(), padded=False):
    """Return a sample without times: chunks (new, cached), decodes their cached tokens."""
    charged = chunks
    if padded and chunks:
        charged = [(max(n for n, _ in chunks), max(p for _, p in chunks))] * len(chunks)
    new = sum(n for n, _ in charged)
    kv = len(decodes) * max(decodes) if padded and decodes else sum(decodes)
    text = "+".join(f"{n}@{p}" for n, p in chunks) + ";d" + "+".join(map(str, decodes))
    phase = "mixed" if chunks and decodes else "prefill" if chunks else "decode"
    return Sample(
        phase, padded, text, len(chunks), new, sum(n + p for n, p in charged),
        sum(n * (n + 2 * p) for n, p in charged), len(decodes), kv, new + len(decodes),
        status="refused",
    )  # fmt: skip


def grid(padded=False):
    """Return steps like those of `measure`: short prompts, prefixes, decodes, mixed steps."""
    lengths, counts = [2**i for i in range(3, 13)], [2**i for i in range(9)]
    steps = [step([(size, 0)] * n, (), padded) for size in lengths for n in counts]
    steps += [step((), [c] * b, padded) for b in counts for c in (16, *lengths[2:9], 3000, 4000)]
    if not padded:
        pasts = (64, 256, 1024, 3072)
        steps += [step([(new, p)] * n) for n in (1, 4, 16) for new in lengths[1:8:2] for p in pasts]
    for cached in (0,) if padded else (0, 1024):
        steps += [
            step([(size, cached)], [c] * b, padded)
            for b in (1, 4, 16, 64, 256)
            for size in (32, 128, 512, 2048)
            for c in (64, 256, 1024)
        ]
    return [s for s in steps if s.step_tokens <= 8448 and s.kv_tokens <= 48_000]


def other_grid(padded=False):
    """Return steps between those of `grid`: other lengths, unequal ones, several chunks."""
    steps = [step([(size, 0)] * n, (), padded) for size in (12, 48, 200, 700) for n in (1, 3, 10)]
    steps += [step([(size, 0)] * 200, (), padded) for size in (9, 24, 40)]
    steps += [
        step([(100, 0), (900, 0), (30, 0)], (), padded),
        step([(3000, 0), (20, 0)], (), padded),
    ]
    steps += [step((), [c] * b, padded) for b in (1, 3, 6, 24, 100, 200) for c in (60, 240)]
    steps += [step((), [100, 900, 3000], padded), step((), [20] * 60 + [2000] * 4, padded)]
    steps += [
        step([(size, 0)], [c] * b, padded)
        for b in (2, 20, 120)
        for size in (50, 400)
        for c in (90, 350)
    ]
    steps += [step([(60, 0), (300, 0)], [500] * 30, padded)]
    return steps


def measured(terms, steps, noise=0.0, seed=0):
    """Return the steps with the times of `terms`; wall and device time share their noise."""
    cost, host_free = cost_of(terms), cost_of({**terms, "host": {}})
    factors = np.exp(noise * np.random.default_rng(seed).standard_normal(len(steps)))
    samples = []
    for s, factor in zip(steps, factors, strict=True):
        device = predicted_ms(host_free, s) * factor
        wall = device + predicted_ms(cost, s) - predicted_ms(host_free, s)
        samples.append(replace(s, status="ok", runs=10, device_ms=device, wall_ms=wall))
    return samples
