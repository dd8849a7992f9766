"""The deliberate bugs that `make mutate` plants in costs and studies."""

from __future__ import annotations

from mutations import Mutation

BUILD_UNIT = "tests/unit/test_study_build.py"
NOTICES_UNIT = "tests/unit/test_study_notices.py"
IDLE_UNIT = "tests/unit/test_study_idle_keys.py"
SWEEP_E2E = "tests/e2e/test_cli_sweep.py"
ENERGY_UNIT = "tests/unit/test_study_energy.py"
METRICS_UNIT = "tests/unit/test_study_metrics.py"
POWER_UNIT = "tests/unit/test_costs_power.py"
PRESETS_UNIT = "tests/unit/test_study_presets.py"

STUDIES = (
    Mutation(
        "null block is used",
        "sim/study/build.py",
        "costs.num_gpu_blocks - engine.null_block",
        "costs.num_gpu_blocks",
        (BUILD_UNIT,),
    ),
    Mutation(
        "the engine's clock starts at the arrival",
        "sim/study/statistics/clock.py",
        'return "queued_s" if self.name == ENGINE else "arrival_s"',
        'return "arrival_s"',
        (METRICS_UNIT,),
    ),
    Mutation(
        "API time is in the TTFT only",
        "sim/study/statistics/clock.py",
        "return ttft_ms + self.api_latency_ms, e2e_ms + self.api_latency_ms",
        "return ttft_ms + self.api_latency_ms, e2e_ms",
        (METRICS_UNIT,),
    ),
    Mutation(
        "host time on top counts no sequences",
        "sim/costs/model.py",
        "_fs(host.seq_ms + extra.seq_ms)",
        "_fs(host.seq_ms)",
        ("tests/unit/test_costs_model.py",),
    ),
    Mutation(
        "a preset wins over the config",
        "sim/study/presets.py",
        "if key not in section}",
        "if True}",
        (PRESETS_UNIT,),
    ),
    Mutation(
        "an A100 gets the batches of larger GPUs",
        "sim/study/presets.py",
        " and NOT_LARGE not in gpu",
        "",
        (PRESETS_UNIT,),
    ),
    Mutation(
        "energy: busy GPUs idle as well",
        "sim/study/statistics/energy.py",
        "instance.gpus * up_s - instance.busy_gpus * busy_s",
        "instance.gpus * up_s",
        (ENERGY_UNIT,),
    ),
    Mutation(
        "energy: the cache does not grow within a span",
        "sim/study/statistics/energy.py",
        "moved[row] + k * (batch * instance.kv_token_bytes)[row]",
        "moved[row]",
        (ENERGY_UNIT,),
    ),
    Mutation(
        "energy: an instance that is down draws idle power",
        "sim/study/statistics/energy.py",
        "up_s = max(duration_s - float(down_s), 0.0)",
        "up_s = duration_s",
        (ENERGY_UNIT,),
    ),
    Mutation(
        "a power cap slows no mixed step",
        "sim/costs/capped.py",
        "if demand_mw <= self.cap_mw:",
        "if demand_mw <= self.cap_mw or batch:",
        (POWER_UNIT,),
    ),
    Mutation(
        "a policy for mixed instances is given split pools",
        "sim/study/build.py",
        'if split and set(roles_of(policy)) <= {"mixed"}:',
        "if not split:",
        (BUILD_UNIT,),
    ),
    Mutation(
        "one run that finds no prefix speaks for all",
        "sim/study/notices.py",
        "all(t in of for of in tallies)",
        "any(t in of for of in tallies)",
        (NOTICES_UNIT,),
    ),
    Mutation(
        "a notice counts all points",
        "sim/study/notices.py",
        "({len(about)} of {len(tallies)} {what})",
        "({len(tallies)} of {len(tallies)} {what})",
        (NOTICES_UNIT,),
    ),
    Mutation(
        "points are not laid out before a sweep",
        "sim/study/sweeps/sweep.py",
        "notes = build(experiment, experiment.policies[0]).notes",
        "notes: tuple[str, ...] = ()",
        (SWEEP_E2E,),
    ),
    Mutation(
        "what a preset sets is told to have no effect",
        "sim/study/idle_keys.py",
        "return of_section in sets and sets[of_section] == value",
        "return False",
        (IDLE_UNIT,),
    ),
    Mutation(
        "the plan of attention counts though it is hidden",
        "sim/study/idle_keys.py",
        'case.engine.attention == "balanced" and not case.engine.async_scheduling',
        'case.engine.attention == "balanced"',
        (IDLE_UNIT,),
    ),
)
