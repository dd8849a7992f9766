"""Settings shared by all tests."""

from hypothesis import settings

# Derandomized: the same examples on every machine, in every run. Nothing is kept between runs.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
