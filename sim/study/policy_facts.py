"""What a policy says about itself: its class and its docstring."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

import policies
from sim.types import ClusterInfo, Policy

EXAMPLE_GPUS = 4
"""GPUs of the cluster whose default layout tells the roles."""


@dataclass(frozen=True)
class PolicyFacts:
    """One policy.

    Attributes:
        what: what it does, in one line.
        roles: of its instances, by default on four GPUs; "" if it has no defaults.
        assumes: what it takes as known.
        reference: where it comes from.
    """

    what: str
    roles: str
    assumes: str
    reference: str


def policy_facts(policy: type[Policy]) -> PolicyFacts:
    """Return what a policy says about itself."""
    return PolicyFacts(
        what=docstring(policy).split("\n", 1)[0],
        roles=_roles(policy),
        assumes=getattr(policy, "assumes", "") or section(policy, "Assumes"),
        reference=section(policy, "Reference"),
    )


def own_file(name: str) -> str | None:
    """Return the file of a policy from outside; None: it is one of the folder `policies`."""
    policy = policies.load(name)
    if policy.__module__.partition(".")[0] == policies.__name__:
        return None
    return inspect.getsourcefile(policy) or inspect.getfile(policy)


def docstring(policy: type[Policy]) -> str:
    """Return the docstring, indentation removed."""
    return inspect.cleandoc(policy.__doc__ or "")


def section(policy: type[Policy], title: str) -> str:
    """Return the paragraph of the docstring that begins with `title:`, in one line; "" if none."""
    found = re.search(rf"^{title}:(.*?)(?:\n\s*\n|\Z)", docstring(policy), re.M | re.S)
    return " ".join(found[1].split()) if found else ""


def short_reference(reference: str) -> str:
    """Return a reference without titles, remarks and what follows the first source."""
    first = re.split(r"; | \(|\. BibTeX", re.sub(r' "[^"]*",?', "", reference), maxsplit=1)[0]
    return first.rstrip(".")


def _roles(policy: type[Policy]) -> str:
    make: Any = policy
    try:
        config = policy.Config()
    except ValidationError:  # a parameter without a default
        return ""
    return "+".join(roles_of(make(config)))


def roles_of(policy: Policy) -> dict[str, None]:
    """Return the roles of the instances that a policy lays out on four GPUs, in its order."""
    return dict.fromkeys(pool.role for pool in policy.pools(ClusterInfo(EXAMPLE_GPUS, 1)))
