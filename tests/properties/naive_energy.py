"""Energy by walking through the steps of each instance one by one, in plain Python."""

import math
from collections import defaultdict

H100 = {"idle": 75, "phase": (700, 380), "logistic": (700, 300, 600, 1.0, 4.2), "mfu": (75, 700)}
H100 |= {"memory": 225, "compute": 638, "limit": 700}
"""The table of spec/neighbours.md section 6, typed again."""


def watts(model, chunk, batch, mfu, memory_use):
    if model == "mfu":
        low, high = H100["mfu"]
        return low + (high - low) * min(1, mfu / 0.45) ** 0.7
    if model == "roofline":
        busy = H100["compute"] * min(1, mfu / 0.45) ** 0.7
        return min(H100["limit"], H100["idle"] + H100["memory"] * memory_use + busy)
    if model == "phase":
        prompt, decode = H100["phase"]
    else:
        prompt, low, high, k, middle = H100["logistic"]
        if batch:
            decode = low + (high - low) / (1 + math.exp(-k * (math.log2(batch) - middle)))
    if not batch:
        return prompt
    share = min(1, chunk / 512)
    return share * prompt + (1 - share) * decode


def energy_j(record, duration_s, model, work, busy_gpus=1, gpus=1):
    """Return the joules of the GPUs: by phase, and of the gaps between steps.

    Args:
        record: of a run, fused or not.
        duration_s: of the run, seconds.
        model: of power.
        work: FLOPs and bytes of a step, and the peaks.
        busy_gpus: of each instance.
        gpus: of each instance.
    """
    found = defaultdict(float)
    for instance in range(len(record.instances)):
        free_s = 0.0
        down = sorted((o.start_s, o.end_s) for o in record.outages if o.instance == instance)
        rows = record.steps[record.steps["instance"] == instance].tolist()
        names = record.steps.dtype.names
        for row in sorted((dict(zip(names, r, strict=True)) for r in rows), key=_start):
            found["idle"] += gpus * H100["idle"] * _up_s(free_s, row["start_s"], down)
            seconds = 0.0
            for k in range(row["n_steps"]):
                step_s = (row["first_fs"] + k * row["increment_fs"]) / 1e15
                batch = row["decode_requests"]
                flops, moved = work.of(
                    row["prefill_requests"],
                    row["padded_tokens"],
                    batch,
                    row["kv_tokens"] + k * batch,
                )
                drawn = watts(
                    model,
                    row["padded_tokens"],
                    batch,
                    flops / (step_s * work.peak),
                    moved / (step_s * work.bandwidth),
                )
                phase = ("prefill", "decode", "mixed", "prefill", "decode")[row["kind"]]
                found[phase] += busy_gpus * drawn * step_s
                seconds += step_s
            found["idle"] += (gpus - busy_gpus) * H100["idle"] * seconds
            free_s = row["start_s"] + seconds
        found["idle"] += gpus * H100["idle"] * _up_s(free_s, duration_s, down)
    return found


def _start(row):
    return row["start_s"]


def _up_s(start_s, end_s, down):
    """Return how much of an interval lies in no outage."""
    lost = sum(max(min(end_s, b) - max(start_s, a), 0.0) for a, b in down)
    return max(end_s - start_s, 0.0) - lost


class Work:
    """What a step computes and moves, with made-up numbers."""

    peak, bandwidth = 3e5, 4e4
    token, row, pair, weight, kv = 1000.0, 50.0, 3.0, 2000.0, 7.0

    def of(self, prompts, chunk, batch, cached):
        looks = batch + cached if batch else 0
        for _ in range(prompts):
            length = chunk / prompts
            looks += length * (length + 1) / 2
        flops = (chunk + batch) * self.token + (prompts + batch) * self.row + looks * self.pair
        return flops, self.weight + (cached + chunk + batch) * self.kv
