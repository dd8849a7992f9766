"""Prints a digest of a few runs: the same bytes in every process (I7)."""

import hashlib

from scenarios import policy_names, scenario

from sim.core.records import RunRecord
from sim.core.simulation import simulate

SEEDS = range(10)


def digest(record: RunRecord) -> str:
    """Return a hash over everything a run leaves behind."""
    state = hashlib.sha256()
    for name, values in record.requests.items():
        state.update(name.encode() + values.tobytes())
    state.update(record.steps.tobytes() + record.gaps_s.tobytes())
    state.update(repr((record.swaps, record.counters, record.instances)).encode())
    return state.hexdigest()


if __name__ == "__main__":
    for policy in policy_names():
        for seed in SEEDS:
            case = scenario(seed, policy)
            record = simulate(case.trace, case.new_policy(), case.specs, case.settings())
            print(policy, seed, digest(record))
