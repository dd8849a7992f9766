"""One YAML is one experiment: a file for each section, and `experiment` for all of them."""

from sim.study.config.cluster import ClusterConfig, LinkConfig, PoolConfig
from sim.study.config.engine import EngineConfig
from sim.study.config.experiment import (
    ABOUT,
    COMMAND_LINE,
    KEYS,
    REQUIRED,
    Experiment,
    Origins,
    PolicyChoice,
    load_config,
    more_policies,
    overridden,
    policy_choices,
    read_config,
    resolve,
    set_key,
)
from sim.study.config.failures import FailuresConfig
from sim.study.config.power import NOTHING_ASKED, PowerConfig
from sim.study.config.run import RunConfig
from sim.study.config.section import Section
from sim.study.config.slo import SloBounds, SloConfig
from sim.study.config.speculative import SpeculativeConfig

__all__ = [
    "ABOUT",
    "COMMAND_LINE",
    "KEYS",
    "NOTHING_ASKED",
    "REQUIRED",
    "ClusterConfig",
    "EngineConfig",
    "Experiment",
    "FailuresConfig",
    "LinkConfig",
    "Origins",
    "PolicyChoice",
    "PoolConfig",
    "PowerConfig",
    "RunConfig",
    "Section",
    "SloBounds",
    "SloConfig",
    "SpeculativeConfig",
    "load_config",
    "more_policies",
    "overridden",
    "policy_choices",
    "read_config",
    "resolve",
    "set_key",
]
