"""The deliberate bugs of `make mutate` can be planted: a changed line does not end that run."""

from pathlib import Path

from mutations import ENGINE
from policy_mutations import POLICIES
from study_mutations import STUDIES

ROOT = Path(__file__).parents[1]


def test_every_mutation_finds_its_line_and_its_tests():
    for mutation in (*ENGINE, *POLICIES, *STUDIES):
        text = (ROOT / mutation.path).read_text(encoding="utf-8")
        assert text.count(mutation.old) == 1, mutation.name
        assert mutation.new != mutation.old, mutation.name
        for test in mutation.tests:
            assert (ROOT / test.partition("::")[0]).is_file(), mutation.name
