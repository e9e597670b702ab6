"""Every parameter of every study is checked before anything runs, at every scale."""

from __future__ import annotations

import importlib
import math
import pkgutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pythia_book import notebooks, papermill_engine, studies
from pythia_book.study import LIMITS

from pythia_core.errors import ConfigError
from pythia_core.suite import SCALES

STUDIES = sorted(each.name for each in pkgutil.iter_modules(studies.__path__) if each.ispkg)
LISTS = {
    "sizes": "7k",
    "arms": "tied",
    "switches": "gelu",
    "tasks": "piqa",
    "shots": "2",
    "epochs": "1",
    "steps": "first",
}
"""Parameters that are comma-separated lists, with a valid entry."""
NEEDED = {("phases", "paper"): {"source": "EleutherAI/pythia-70m", "data": "pile-standard"}}
"""Parameters without a default that suits the scale."""


@pytest.fixture(autouse=True)
def precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the measurement of the faster precision."""
    monkeypatch.setenv("PYTHIA_PRECISION", "fp32")


def params_module(study: str) -> Any:
    return importlib.import_module(f"pythia_book.studies.{study}.params")


def limits(study: str) -> dict[str, tuple[int, int]]:
    return LIMITS | params_module(study).Params.WHOLE


def names(study: str) -> list[str]:
    return [field.name for field in fields(params_module(study).Params)]


CASES = [(study, name) for study in STUDIES for name in names(study)]
SCALES_OF = {
    study: [
        name
        for name, scale in SCALES.items()
        if params_module(study).Params.PUBLISHED or not scale.published
    ]
    for study in STUDIES
}


def bad_values(study: str, name: str) -> list[Any]:
    """Return values that no study accepts, with what must be named of each."""
    if name in limits(study):
        low, high = limits(study)[name]
        return [low - 1, high + 1, 10**30, -(10**30), True, 1.5, math.nan, math.inf, "3", None, [1]]
    bad: list[Any] = [None, 3, True, math.nan, [LISTS.get(name, "x")], b"x"]
    if name in LISTS:
        entry = LISTS[name]
        bad += [
            ",",
            " ,, ",
            "no such",
            f"{entry},no such",
            f"{entry},{entry}",
            "9" * 5000,
            "²",
            "é",
        ]
    if name in ("shots", "epochs"):
        bad += ["-1", "1.5", "nan", "1e3", "0x1", "99999", "0,,1", "1,,2", "1,2,"]
    if (study, name) == ("phases", "steps"):
        bad += ["0,,1", "first,,last"]
    if name == "scale":
        bad += ["", "labtop", "LAPTOP", "laptop ", "laptop,gpu"]
    if name == "arm":
        bad += ["", "both", "Standard", "standard,deduplicated"]
    return bad


def refusal(study: str, at: str, **values: Any) -> str:
    """Return the message of the error that refuses these values at a scale."""
    given = NEEDED.get((study, at), {}) | {"scale": at} | values
    with pytest.raises(ConfigError) as error:
        params_module(study).Params(**given)
    return str(error.value)


@pytest.mark.parametrize(("study", "name"), CASES)
def test_bad_values_are_refused_with_their_name_the_value_and_what_is_accepted(
    study: str, name: str
) -> None:
    for scale in SCALES_OF[study]:
        for value in bad_values(study, name):
            message = refusal(study, scale, **{name: value})
            entries = {repr(value), *(repr(part.strip()) for part in str(value).split(","))}
            where = (study, scale, name, value, message)
            assert name in message, where
            assert any(entry in message for entry in entries), where
            accepted = ("must be", "accepted:", "to use all", "each once", "write e.g.", "once;")
            assert any(words in message for words in accepted), where


@pytest.mark.parametrize("study", STUDIES)
def test_every_scale_either_has_defaults_or_says_what_is_missing(study: str) -> None:
    module = params_module(study)
    for scale in SCALES_OF[study]:
        params = module.Params(**NEEDED.get((study, scale), {}) | {"scale": scale})
        if hasattr(module, "runs") and not SCALES[scale].published:
            assert module.runs(params)
    for scale in {*SCALES} - {*SCALES_OF[study]}:
        message = refusal(study, scale)
        assert "scale must be one of smoke, laptop" in message and "'paper'" in message


@pytest.mark.parametrize("study", STUDIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_value_causes_an_error_of_another_kind(study: str, data: st.DataObject) -> None:
    anything = st.one_of(
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.text(max_size=12),
        st.text("0123456789,-. ", max_size=12),
        st.lists(st.sampled_from([*LISTS.values(), "all", "last", "0", "25k"])).map(",".join),
    )
    module, scale = params_module(study), data.draw(st.sampled_from([*SCALES]))
    chosen = data.draw(st.sets(st.sampled_from(names(study))))
    values = {name: data.draw(anything) for name in sorted(chosen)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_PRECISION", "fp32")
        try:
            params = module.Params(**{"scale": scale} | values)
        except ConfigError as error:
            assert str(error).startswith("parameters")
            return
        if hasattr(module, "runs") and not SCALES[params.scale].published:
            assert module.runs(params)


@pytest.mark.parametrize(
    ("study", "values", "words"),
    [
        ("phases", {"steps": "0,all"}, "steps must be"),
        ("phases", {"batches": 3}, "batches applies only to --scale paper"),
        ("memorization", {"window": 1_000_000}, "window=1000000 is more than the 128 rows"),
        ("memorization", {"context": 64, "continuation": 1}, "at most the 64 tokens"),
        ("memorization", {"seed": 2, "seeds": 3}, "seed=2 is also one of the further seeds"),
        ("gender_bias", {"crossed_seeds": 1}, "crossed_seeds=1 needs at least three sizes"),
        ("repetition", {"epochs": "1,3"}, "must divide the number of steps"),
        ("repetition", {"epochs": "1,2", "steps": 7}, "must divide the number of steps"),
        ("errata", {"sizes": "7k,25k"}, "only one size"),
        ("seeds", {"sizes": "7k,25k,85k"}, "sizes must be two sizes"),
    ],
)
def test_values_that_do_not_go_together_are_refused(
    study: str, values: dict[str, Any], words: str
) -> None:
    assert words in refusal(study, "smoke", **values)


def test_at_the_scale_paper_sizes_are_those_of_released_models() -> None:
    message = refusal("gender_bias", "paper", sizes="7k")
    assert "unknown size of a released model '7k'; accepted: 14m, 31m, 70m" in message


def test_all_bad_values_are_reported_together() -> None:
    message = refusal("scaling", "smoke", seed=-1, limit=2, tasks=3)
    assert all(name in message for name in ("seed must", "limit must", "tasks must"))
    message = refusal("scaling", "smoke", sizes="x", tasks="y")
    assert "unknown size 'x'" in message and "unknown task 'y'" in message


@pytest.mark.parametrize("study", STUDIES)
def test_a_bad_value_stops_the_command_before_the_notebook_starts(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.setattr(papermill_engine, "execute", lambda *_, **__: pytest.fail("it started"))
    parameters = notebooks.parameters_of(notebooks.read_notebook(notebooks.notebook_path(study)))
    assert [*parameters] == names(study), "every parameter of the notebook is one of Params"
    for name in parameters:
        value = bad_values(study, name)[0]
        with pytest.raises(ConfigError, match=name):
            papermill_engine.run_study(study, parameters={name: value}, progress=False)
    assert not [*tmp_path.iterdir()]
