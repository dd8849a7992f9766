"""Studies: experiment configs, replicated runs, comparisons, statistics, output folders."""
