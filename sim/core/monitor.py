"""The monitor: samples all instances every period and tells the policy, after a delay."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import simpy

from sim.core.loop import MONITOR, new_timer
from sim.types import FS_PER_S, N, Policy, to_fs
from sim.types.monitor import InstanceSample, Snapshot

if TYPE_CHECKING:
    from sim.core.instance import Instance
    from sim.core.simulation import Simulation


class Monitor:
    """Publishes a `Snapshot` every `policy.monitor_period_s`, `monitor_delay_s` late.

    Sampling reads state as of the last step that has ended, computed from the span under way: it
    ends no span. It stops when nothing is outstanding and no request is to come.
    """

    def __init__(
        self,
        sim: Simulation,
        env: simpy.Environment,
        policy: Policy,
    ) -> None:
        self.sim = sim
        self.policy = policy
        self.period_fs = to_fs(sim.monitor_period_s)
        self.delay_fs = to_fs(sim.monitor_delay_s)
        self.sampler = new_timer(env, self.sample, MONITOR)
        self.messenger = new_timer(env, self.deliver, MONITOR)
        self.on_its_way: deque[tuple[int, Snapshot]] = deque()
        self.arrived: N = 0
        """Requests that have arrived since the last sample."""
        self.arrived_tokens: N = 0

    def start(self) -> None:
        """Sample at time 0 and then every period."""
        self.sampler.at(0)

    def sample(self, now: int) -> None:
        """Take a sample and send it."""
        samples = [self._sample_of(i, now) for i in self.sim.instances if i.up]
        mean = self.arrived_tokens / self.arrived if self.arrived else 0.0
        rate = self.arrived / (self.period_fs / FS_PER_S)
        self.on_its_way.append((now + self.delay_fs, Snapshot(now / FS_PER_S, samples, rate, mean)))
        self.messenger.at(now + self.delay_fs)
        self.arrived = self.arrived_tokens = 0
        if self.sim.expects_work():
            self.sampler.at(now + self.period_fs)

    def deliver(self, now: int) -> None:
        """Hand the oldest snapshot to the policy."""
        _, snapshot = self.on_its_way.popleft()
        self.policy.on_monitor(snapshot)

    def _sample_of(self, instance: Instance, now: int) -> InstanceSample:
        steps = instance.steps_ended(now)
        return InstanceSample(
            instance.id,
            instance.role,
            instance.free_blocks - instance.growth_over(steps),
            instance.total_blocks,
            instance.num_waiting,
            instance.waiting.tokens,
            len(instance.running),
        )
