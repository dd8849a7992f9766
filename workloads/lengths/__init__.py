"""Length distributions: parametric ones, and tables fitted to real traces (one YAML each).

Adding `workloads/lengths/foo.yaml` (written by `python -m workloads.fit_lengths`) registers `foo`.
"""
