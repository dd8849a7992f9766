"""Types shared by all packages: requests, plans, views, the policy contract, traces."""

from sim.types.costs import FOREVER, CostModel, DecodePiece, DecodeTerms
from sim.types.drafting import DrafterRules, OneDrafter, Shares
from sim.types.errors import BadInput, Deadlock, PlanError, SimulationError
from sim.types.monitor import InstanceSample, Snapshot
from sim.types.plans import Decode, Mixed, Plan, Preemption, Prefill, RunToCompletion, Wait
from sim.types.policy import Cluster, ClusterInfo, Policy, Pool, Router
from sim.types.prefix import PrefixCache, Prospect
from sim.types.queues import ByKey, Fifo, WaitQueue
from sim.types.request import Request
from sim.types.trace import Trace
from sim.types.units import FS_PER_S, N, to_fs, to_fs_ceil, to_s
from sim.types.view import View

__all__ = [
    "FOREVER",
    "FS_PER_S",
    "BadInput",
    "ByKey",
    "Cluster",
    "ClusterInfo",
    "CostModel",
    "Deadlock",
    "Decode",
    "DecodePiece",
    "DecodeTerms",
    "DrafterRules",
    "Fifo",
    "InstanceSample",
    "Mixed",
    "N",
    "OneDrafter",
    "Plan",
    "PlanError",
    "Policy",
    "Pool",
    "Preemption",
    "Prefill",
    "PrefixCache",
    "Prospect",
    "Request",
    "Router",
    "RunToCompletion",
    "Shares",
    "SimulationError",
    "Snapshot",
    "Trace",
    "View",
    "Wait",
    "WaitQueue",
    "to_fs",
    "to_fs_ceil",
    "to_s",
]
