"""Measured serving runs against their simulation.

| module | what |
|---|---|
| `measured` | what a result file says: requests, arrivals, measured latencies |
| `bench_file` | results of `vllm bench serve --save-detailed` |
| `run_table` | plain CSV with measured latencies; prompt blocks beside it |
| `engine_file` | engine settings from YAML, a one-row CSV or the server's log |
| `replay` | the same requests through the simulator |
| `errors` | simulated against measured: tables, load bands, per-request errors |
| `fit` | host and API constants from named rows of a run |
| `offsets` | how far the profile alone is off per step |
| `ablation` | what each cost term and engine feature is worth |
| `cases` | the runs of the fidelity page: read, fitted, judged, taken apart |
| `output` | the JSON object, the folder, the engine file |
"""
