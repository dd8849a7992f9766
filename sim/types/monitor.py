"""What the monitor publishes."""

from __future__ import annotations

from collections.abc import Sequence

from sim.types.units import N


class InstanceSample:
    """State of one instance when the monitor looked."""

    def __init__(
        self,
        id: N,
        role: str,
        free_blocks: N,
        total_blocks: N,
        num_waiting: N,
        waiting_tokens: N,
        num_running: N,
    ) -> None:
        self.id = id
        self.role = role
        self.free_blocks = free_blocks
        self.total_blocks = total_blocks
        self.num_waiting = num_waiting
        self.waiting_tokens = waiting_tokens
        self.num_running = num_running


class Snapshot:
    """All instances that are up at one time.

    Args:
        time_s: when it was taken (it arrives later, by the monitor's delay).
        instances: one sample each of those that are up.
        arrival_rate_per_s: arrivals in the last period, per second.
        mean_input_len: mean prompt length of those, tokens; 0 when there were none.
    """

    def __init__(
        self,
        time_s: float,
        instances: Sequence[InstanceSample],
        arrival_rate_per_s: float,
        mean_input_len: float,
    ) -> None:
        self.time_s = time_s
        self.instances = instances
        self.arrival_rate_per_s = arrival_rate_per_s
        self.mean_input_len = mean_input_len
