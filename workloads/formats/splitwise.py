"""Traces of splitwise-sim.

CSV with `request_id, request_type, application_id, arrival_timestamp` (seconds), `batch_size`,
`prompt_size`, `token_size` (output tokens). https://github.com/Mutinifni/splitwise-sim, `traces`.
"""

from workloads.formats.base import table_format

FORMAT = table_format(
    "splitwise",
    needs={
        "arrival_s": ("arrival_timestamp",),
        "input_len": ("prompt_size",),
        "output_len": ("token_size",),
    },
)
