"""What a simulated cluster is made of: plain values, filled in by `sim.study`."""

from __future__ import annotations

from sim.types import CostModel, N


class InstanceSpec:
    """What an instance is made of.

    Args:
        cost: prices its steps.
        total_blocks: KV blocks of `block_size` tokens.
        role: `mixed`, `prefill` or `decode`.
        max_model_len: longest prompt + output it serves, in tokens.
        total_swap_blocks: blocks of host memory that swapped requests may fill.
        swap_s_per_block: seconds to copy one block between GPU and host, one way.
        max_step_tokens: prompt tokens of a static batch whose activations fit; 0: any number.
        gpu: name, for reports.
        tp: tensor-parallel degree, for reports.
    """

    def __init__(
        self,
        cost: CostModel,
        total_blocks: N,
        block_size: N = 16,
        role: str = "mixed",
        max_model_len: N = 1 << 40,
        total_swap_blocks: N = 0,
        swap_s_per_block: float = 0.0,
        max_step_tokens: N = 0,
        gpu: str = "",
        tp: N = 1,
    ) -> None:
        self.cost = cost
        self.total_blocks = total_blocks
        self.block_size = block_size
        self.role = role
        self.max_model_len = max_model_len
        self.total_swap_blocks = total_swap_blocks
        self.swap_s_per_block = swap_s_per_block
        self.max_step_tokens = max_step_tokens
        self.gpu = gpu
        self.tp = tp


class Settings:
    """How the engine runs.

    Args:
        fuse_steps: one event for many equal-batch decode steps; False runs step by step with
            identical records.
        padding: `none` (padding-free engine), `batch` (every prompt batch padded) or `policy`
            (as the plan says).
        router: name of the router.
        router_seed: seed of its random choices.
        abort_after_s: the client gives up so many seconds after arrival; None never.
        horizon_s: stop at this simulated time; None runs until all requests have left.
        oom_restart_s: how long an instance is away after an out-of-memory event.
        concurrency: closed loop: requests in flight; None means open arrivals.
        think_s: closed loop: pause between a request's end and the next one's arrival.
    """

    def __init__(
        self,
        fuse_steps: bool = True,
        padding: str = "policy",
        router: str = "round-robin",
        router_seed: int = 0,
        abort_after_s: float | None = None,
        horizon_s: float | None = None,
        oom_restart_s: float = 30.0,
        concurrency: N | None = None,
        think_s: float = 0.0,
    ) -> None:
        self.fuse_steps = fuse_steps
        self.padding = padding
        self.router = router
        self.router_seed = router_seed
        self.abort_after_s = abort_after_s
        self.horizon_s = horizon_s
        self.oom_restart_s = oom_restart_s
        self.concurrency = concurrency
        self.think_s = think_s

    def padded(self, wanted: bool) -> bool:
        """Whether a prompt batch is padded on this engine."""
        return wanted if self.padding == "policy" else self.padding == "batch"
