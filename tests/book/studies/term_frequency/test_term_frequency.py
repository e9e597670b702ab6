"""The term-frequency study: a planted effect is found, none where there is none; gaps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pythia_book.corpora import equations
from pythia_book.published.results import load
from pythia_book.published.tables import arithmetic_table
from pythia_book.studies.term_frequency import figures as draw
from pythia_book.studies.term_frequency import study, tables
from pythia_book.studies.term_frequency.arithmetic import ArithmeticMeasurement, questions
from pythia_book.studies.term_frequency.claims import claims as study_claims

from pythia_core.errors import ConfigError

NATURAL = {n: 4000 // (n + 1) for n in equations.FIRST}
SIZES, STEPS = ("7k", "25k"), [100, 572]
PARAMS = study.Params(sizes="7k,25k", bootstrap=300)
ASKED = questions()
SUMS = {
    0: ArithmeticMeasurement(tuple(ASKED), (), 0, 128),
    4: ArithmeticMeasurement(tuple(q for q in ASKED if q.held_out), (), 4, 128),
}


def frequency() -> pd.DataFrame:
    weight = equations.weights(NATURAL)
    chosen = {coin: {a for a, _ in equations.pairs(NATURAL, coin)} for coin in tables.COINS}
    rows = [
        {"number": n, "natural": NATURAL[n], "boosted": n in chosen["boost"],
         "placebo": n in chosen["placebo"], "step": step,
         "in_sums": int(weight[n] * step / 572), "everywhere": int(weight[n])}
        for step in STEPS for n in equations.FIRST
    ]  # fmt: skip
    return pd.DataFrame(rows)


def scores(effect: float, seed: int = 0) -> tables.NumberScores:
    """Answers whose probability of being right rises by `effect` per tenfold frequency."""
    rng = np.random.default_rng(seed)
    weight = equations.weights(NATURAL)
    found = {}
    for size in SIZES:
        for step in STEPS:
            for measurement in SUMS.values():
                times = np.array([weight[q.first] for q in measurement.questions])
                slope = effect * (size == "25k") * step / 572
                p = np.clip(0.3 + slope * (np.log10(times + 1) - 2), 0.02, 0.98)
                right = rng.random(len(p)) < p
                found[size, step, measurement.name] = {
                    "exact": right,
                    "logprob": (np.log(p) + rng.normal(0, 0.1, len(p))).astype(np.float32),
                }
                if not measurement.shots:
                    found[size, step, measurement.name]["choice"] = rng.random(len(p)) < p
    return tables.NumberScores(found, SUMS)


def all_tables(scored: tables.NumberScores) -> dict[str, pd.DataFrame]:
    times = frequency()
    return {
        "frequency": times,
        "gaps": tables.gaps_table(scored, times, SIZES, STEPS, 300),
        "experiment": tables.experiment_table(scored, times, NATURAL, SIZES, STEPS[-1], 300),
        "definitions": pd.DataFrame(columns=["size", "step", "read", "group", "value", "n"]),
    }


def verdicts(effect: float) -> dict[str, str]:
    scored = scores(effect)
    claims = study_claims(PARAMS, scored, all_tables(scored), STEPS)
    return {claim["claim"].split("(")[0].strip() + claim["claim"][-30:]: claim["verdict"]
            for claim in claims}  # fmt: skip


def by_start(found: dict[str, str], start: str) -> set[str]:
    return {verdict for claim, verdict in found.items() if claim.startswith(start)}


def test_a_planted_effect_of_frequency_is_found() -> None:
    found = verdicts(0.2)
    assert by_start(found, "Frequent operands are added better") == {"reproduced"}
    assert by_start(found, "A number that is made more frequent becomes easier") == {"holds"}
    assert by_start(found, "The gap is wider in larger models") == {"reproduced"}
    assert by_start(found, "The gap widens over training") == {"reproduced"}
    assert by_start(found, "The placebo coin") == {"holds"}


def test_without_a_planted_effect_none_is_found() -> None:
    found = verdicts(0.0)
    assert by_start(found, "Frequent operands are added better") == {"no effect"}
    assert by_start(found, "A number that is made more frequent becomes easier") == {"no effect"}
    assert by_start(found, "Words that are frequent") == {"not testable here"}


def test_the_false_positive_rate_of_the_experiment_is_nominal() -> None:
    """If frequency has no effect, about one interval in twenty excludes zero."""
    times, excluded, n = frequency(), 0, 150
    for seed in range(n):
        table = tables.experiment_table(scores(0.0, seed), times, NATURAL, ("25k",), 572, 300)
        row = table[(table.coin == "boost") & (table.shots == 0) & (table.measure == "choice")]
        excluded += not row.low.iloc[0] <= 0 <= row.high.iloc[0]
    assert 0.01 <= excluded / n <= 0.11


def test_a_checkpoint_that_was_not_measured_is_a_gap() -> None:
    scored = scores(0.2)
    del scored.measured["25k", 572, SUMS[4].name]
    frames = all_tables(scored)
    present = frames["gaps"].groupby(["size", "step", "shots"]).size()
    assert ("25k", 572, 4) not in present and ("25k", 572, 0) in present
    claims = study_claims(PARAMS, scored, frames, STEPS)
    assert {c["verdict"] for c in claims if "Solved" in c["claim"]} == {"not testable here"}
    assert (
        "not measured"
        in draw.gaps_table(
            study.Result("term_frequency", PARAMS, frames, {}, [], [], 0.0)
        )._repr_html_()
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arm": "both"}, "unknown arm 'both'.*standard, deduplicated"),
        ({"shots": "0,x"}, "shots='0,x': give numbers in 0..64"),
        ({"shots": "-1"}, "shots='-1'"),
        ({"bootstrap": 3}, "bootstrap must be a whole number in 100"),
        ({"sizes": "9q"}, "unknown size '9q'"),
    ],
)
def test_bad_parameters_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study.Params(**given)


def test_zero_shot_is_always_asked() -> None:
    assert study.Params(shots="4").shot_list == (0, 4)
    assert study.Params("smoke").shot_list == (0, 2)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> study.Result:
    params = study.Params("smoke", "7k", bootstrap=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_RESULTS", str(tmp_path_factory.mktemp("results")))
        return study.run(params, progress=False)


@pytest.mark.wheels
def test_counts_match_the_rows_that_were_read(smoke: study.Result) -> None:
    (run,) = smoke.runs
    rows = run.data.rows.rows(0, run.config.train.steps * run.config.train.batch_size)[:, :-1]
    text = [run.data.tokenizer.decode(row.tolist()) for row in rows]
    table = smoke.tables["frequency"]
    last = table[table.step == table.step.max()].set_index("number")
    for number in (2, 7, 10):
        assert last.in_sums[number] == sum(t.count(f"What is {number} plus") for t in text)
    assert last.in_sums.sum() > 20
    assert (run.folder / "evaluations" / "terms.parquet").is_file()


@pytest.mark.wheels
def test_shots_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"shots=16: .* the model reads 64; use at most"):
        study.run(study.Params("smoke", "7k", shots="16"), progress=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.wheels
def test_every_figure_can_be_drawn(smoke: study.Result) -> None:
    for make in (draw.by_frequency, draw.over_training, draw.experiment, draw.definitions,
                 draw.released):  # fmt: skip
        assert "<svg" in make(smoke).svg
    assert "no dictionary" in draw.definitions(smoke).svg


# --- the released numbers --------------------------------------------------------------------


def test_released_accuracies_match_their_source() -> None:
    if not os.environ.get("PYTHIA_PUBLISHED_DIR"):
        pytest.skip("needs the released numbers: set PYTHIA_PUBLISHED_DIR (see the README)")
    published_dir = Path(os.environ["PYTHIA_PUBLISHED_DIR"])
    table = arithmetic_table(load(published_dir).path)
    assert len(table) == 42_000 and set(table.shots) == {0, 2, 4, 8, 16}
    mean = table[(table.operation == "addition") & (table.shots == 16)]
    mean = mean.groupby(["model", "step"]).value.mean()
    assert mean["12b", 143_000] == pytest.approx(0.8738, abs=1e-4)
    assert mean["6.9b", 143_000] < mean["2.8b", 143_000]  # as released
    archive = published_dir / "evals_raw.tar.xz"
    if archive.is_file():
        again = arithmetic_table(load(archive).path)
        keys = ["model", "operation", "shots", "step", "number"]
        one, two = (t.sort_values(keys, ignore_index=True) for t in (table, again))
        pd.testing.assert_frame_equal(one, two, check_dtype=False)


def test_without_released_numbers_there_is_an_empty_table() -> None:
    assert arithmetic_table(None).empty
    result = study.Result(
        "term_frequency", PARAMS, all_tables(scores(0.1)), {}, [], [], 0.0, arithmetic_table(None)
    )
    assert "no released numbers" in draw.released(result).svg
