"""From when to when latencies are counted: by the client's watch or by the engine's.

The engine's clock starts when the scheduler sees a request (`queued_s`): at its arrival if the
engine is idle, else when it next takes note of arrivals. The client's starts at the arrival, and
tokenising and HTTP come on top (`engine.api_latency_ms`), which do not keep the engine busy. Both
end with the tokens, so that TPOT is the same by either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MS_PER_S = 1e3
CLIENT, ENGINE = "client", "engine"


@dataclass(frozen=True)
class Clock:
    """Whose watch, and what the client adds.

    Attributes:
        name: `client` or `engine`.
        api_latency_ms: time of a request outside the engine; 0 by the engine's clock.
    """

    name: str = CLIENT
    api_latency_ms: float = 0.0

    @classmethod
    def of(cls, engine: Mapping[str, Any]) -> Clock:
        """Return the clock of an `engine` section; older ones do not name it."""
        name = engine.get("ttft_clock", CLIENT)
        return cls(name, engine.get("api_latency_ms", 0.0) if name == CLIENT else 0.0)

    @property
    def since(self) -> str:
        """The column of the times that latencies count from."""
        return "queued_s" if self.name == ENGINE else "arrival_s"

    def latencies_ms(self, columns: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        """Return TTFT and E2E of all rows of request columns, shape (requests,); NaN: never."""
        ttft_ms = (columns["first_token_s"] - columns[self.since]) * MS_PER_S
        e2e_ms = (columns["finish_s"] - columns[self.since]) * MS_PER_S
        if self.api_latency_ms:
            return ttft_ms + self.api_latency_ms, e2e_ms + self.api_latency_ms
        return ttft_ms, e2e_ms


BY_CLIENT = Clock()
