"""Settings shared by all tests, and the record that `make evidence` reads."""

import json
from pathlib import Path

from hypothesis import settings

# Derandomized: the same examples on every machine, in every run. Nothing is kept between runs.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--evidence", help="append what tests record as evidence to this file")


def pytest_configure(config):
    path = config.getoption("--evidence")
    if path and not hasattr(config, "workerinput"):  # the process that hears of all tests
        config.pluginmanager.register(Evidence(Path(path)))


class Evidence:
    """Writes one JSON line for every `record_property("evidence", "line: figure")` of a test."""

    def __init__(self, path):
        self.path = path

    def pytest_runtest_logreport(self, report):
        found = [text for name, text in report.user_properties if name == "evidence"]
        if report.when != "call" and not report.skipped:
            return
        with self.path.open("a") as file:
            for text in found:
                entry = {"test": report.nodeid, "evidence": text, "outcome": report.outcome}
                file.write(json.dumps(entry) + "\n")
