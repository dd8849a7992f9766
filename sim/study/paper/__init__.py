"""The reproduction of a paper: its numbers, recipes of its figures, and the rule of verdicts."""
