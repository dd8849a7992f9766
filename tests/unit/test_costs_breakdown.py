"""A step's time by term."""

import pytest

from sim.cli import main
from sim.costs.breakdown import TERMS, examples_of, parts_of, step_ms
from sim.costs.catalogue import model_named
from sim.costs.library import find_profile
from sim.costs.model import StepCost
from sim.types import BadInput

NAMES = (
    "llama-3.1-8b_rtx-pro-6000_tp2_vllm-operators",
    "opt-13b_a100-80gb_tp1_vllm",
    "opt-13b_a100-80gb_tp2_distserve",
)


@pytest.fixture(params=NAMES)
def profile(request):
    model, gpu, tp, *_ = request.param.split("_")
    return find_profile(model, gpu, int(tp[2:]), name=request.param)


def test_the_parts_are_the_whole(profile):
    cost = StepCost(profile, model_named(profile.model))
    for example in examples_of(profile):
        parts = parts_of(profile, example)
        assert tuple(parts.ms) == TERMS
        assert parts.total_ms == pytest.approx(step_ms(cost, example), rel=1e-6)
        assert (parts.ms["prefill attention"] > 0) <= (example.prompt_tokens > 0)
        assert (parts.ms["decode attention"] > 0) == (example.batch > 0)


def test_every_part_is_its_own():
    profile = find_profile("llama-3.1-8b", "rtx-pro-6000", 2)
    decode, mixed = (parts_of(profile, examples_of(profile)[at]) for at in (2, 7))
    assert decode.ms["all-reduce"] > 0
    assert decode.ms["host"] == pytest.approx(0, abs=1e-9)
    gamma = profile.terms.gamma
    assert mixed.ms["decode attention"] == pytest.approx(gamma * decode.ms["decode attention"])


def test_what_starting_the_kernels_adds_is_the_hosts():
    profile = find_profile("llama-3.1-8b", "rtx-pro-6000", 2)
    bound = profile.terms.model_copy(update={"launch_ms": 1000.0})
    prompt = next(each for each in examples_of(profile) if each.prompt_tokens)
    free = parts_of(profile, prompt)
    parts = parts_of(profile.model_copy(update={"terms": bound}), prompt)
    assert parts.total_ms == pytest.approx(1000 + free.ms["host"])
    for name in ("dense", "prefill attention", "all-reduce"):
        assert parts.ms[name] == free.ms[name]


def test_profiles_shows_terms_errors_and_a_picture(tmp_path, capsys):
    picture = tmp_path / "p.png"
    assert main(["profiles", NAMES[0], "--picture", str(picture)]) == 0
    out, err = capsys.readouterr()
    for word in ("source:", "fitted_range:", "decode, batch 32", "all-reduce", "held-out error"):
        assert word in out
    assert "p.png and p.pdf" in err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "p.pdf").is_file()
    assert main(["profiles", NAMES[2]]) == 0
    assert "not published" in capsys.readouterr().out


def test_a_picture_needs_a_name(capsys):
    assert main(["profiles", "--picture", "x.png"]) == 2
    assert "--picture goes with the NAME" in capsys.readouterr().err
    with pytest.raises(BadInput):
        find_profile("opt-13b", "h200", 3)
