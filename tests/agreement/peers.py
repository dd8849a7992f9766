"""What other simulators did with the same 1,000 requests: `../shared/data/peers`.

microsoft/vidur at 7d47513 and `simdistserve` of LLMServe/DistServe at 82831f1. The rows stay where
they are; nothing here copies them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.types import Trace

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "peers"
needs_peers = pytest.mark.skipif(not FOLDER.is_dir(), reason="../shared/data/peers is not here")


@cache
def table(name: str) -> pd.DataFrame:
    """Return one of the files."""
    return pd.read_csv(FOLDER / f"{name}.csv.gz")


def requests(more_tokens: int = 0) -> Trace:
    """Return the requests, with `more_tokens` output tokens each on top."""
    rows = table("conv2k_n1000_q2.0")
    return Trace(
        rows.num_prefill_tokens.to_numpy(np.int64),
        rows.num_decode_tokens.to_numpy(np.int64) + more_tokens,
        rows.arrived_at.to_numpy(np.float64),
    )
