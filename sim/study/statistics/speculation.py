"""How much was drafted and accepted: the keys of `vllm bench serve`; none without it.

`spec_decode_num_drafts`: rounds of a request that had drafted tokens; `spec_decode_draft_tokens`
and `spec_decode_accepted_tokens` in them; `spec_decode_acceptance_rate`: the latter over the
former, in per cent as vLLM gives it; `spec_decode_acceptance_length`: tokens a round emits, the
target's own included. All over the whole run.

`mfu` counts tokens that were served, so rejected drafts are no use there.
`spec_decode_mfu_verified` counts what the target computed for drafted tokens too, accepted or not
(their attention left out); what the drafter computes is in neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.core.records import RunRecord


def speculation_figures(record: RunRecord, mfu: float, rejected_mfu: float) -> dict[str, Any]:
    """Return the figures of a run; nothing where it did not speculate.

    Args:
        record: the run.
        mfu: of the tokens served.
        rejected_mfu: what one token more would have added to it.
    """
    counters = record.counters
    if "spec_rounds" not in counters:
        return {}
    rounds, drafted = counters["spec_rounds"], counters["draft_tokens"]
    accepted = counters["accepted_tokens"]
    return {
        "spec_decode_num_drafts": rounds,
        "spec_decode_draft_tokens": drafted,
        "spec_decode_accepted_tokens": accepted,
        "spec_decode_acceptance_rate": 100 * accepted / drafted if drafted else np.nan,
        "spec_decode_acceptance_length": 1 + accepted / rounds if rounds else np.nan,
        "spec_decode_mfu_verified": mfu + (drafted - accepted) * rejected_mfu,
    }
