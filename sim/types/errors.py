"""The errors a user can meet. The command line maps them to exit statuses."""


class BadInput(ValueError):
    """Something the user gave is wrong: exit status 2.

    The message is one line: what is wrong, where (file and row, or key), the offending value and
    what would be valid.
    """


class SimulationError(RuntimeError):
    """The simulation itself failed: exit status 1."""


class PlanError(SimulationError):
    """A policy returned a plan that breaks the contract (design section 4)."""


class Deadlock(SimulationError):
    """Requests wait, nothing runs, and the policy asks for nothing."""
