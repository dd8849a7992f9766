"""Vidur request traces.

CSV with `arrived_at` (seconds), `num_prefill_tokens`, `num_decode_tokens`; files of lengths only
have no `arrived_at`. https://github.com/microsoft/vidur, `data/processed_traces`.
"""

from workloads.formats.base import table_format

FORMAT = table_format(
    "vidur",
    needs={"input_len": ("num_prefill_tokens",), "output_len": ("num_decode_tokens",)},
    optional={"arrival_s": ("arrived_at",)},
)
