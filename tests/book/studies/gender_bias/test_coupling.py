"""Coupling of forks with their controls: the estimator, the rule, released and measured scores."""

from __future__ import annotations

import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from gender_fakes import fake_find_or_train, fake_items
from pythia_book.published.results import Published
from pythia_book.studies.gender_bias import coupling, figures
from pythia_book.studies.gender_bias import params as gender
from pythia_book.studies.gender_bias.claims import coupling_claims
from pythia_book.studies.gender_bias.params import ARMS, CONTROL, PLACEBO, WINDOWS, Params
from pythia_book.style import FIGURE_TYPE
from pythia_book.verdicts import FAILS, HOLDS, NOT_RESOLVED, NOT_TESTABLE, judge

from pythia_core.config import PRONOUN_SWAPS
from pythia_core.training.schedule import checkpoint_steps

LAPTOP = Params("laptop", "25k,150k", seeds=2)


def noise(rng: np.random.Generator, n: int, rho: float, walk: bool) -> np.ndarray:
    """Two series float[2, n] on a trend; their noise correlates with `rho`."""
    series = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).T
    return (series.cumsum(1) if walk else series) + 0.3 * np.arange(n)


@pytest.mark.parametrize("walk", [False, True], ids=["scatter", "random walk"])
@pytest.mark.parametrize("n", [10, 30])
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_intervals_cover_the_correlation_of_the_noise(n: int, rho: float, walk: bool) -> None:
    rng = np.random.default_rng([n, int(walk)])
    found = [coupling.correlation(*noise(rng, n, rho, walk)) for _ in range(500)]
    assert np.mean([e.low <= rho <= e.high for e in found]) >= 0.93
    middle = math.tanh(np.mean([coupling.fisher_z(e.value) for e in found]))
    assert middle == pytest.approx(rho, abs=0.07)


def test_scatter_about_a_trend_has_the_autocorrelation_that_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    scatter = [coupling.autocorrelation(*noise(rng, 200, 0.5, False)) for _ in range(20)]
    assert np.mean(scatter) == pytest.approx(-0.5, abs=0.03)
    assert coupling.INFLATION == 1 + 2 * 0.5**2


def test_short_and_constant_series_have_no_correlation_and_equal_ones_a_finite_z() -> None:
    ramp = np.random.default_rng(1).normal(size=10)
    assert coupling.correlation(ramp[:8], ramp[:8]) is None
    assert coupling.correlation(np.ones(10), ramp) is None
    assert coupling.correlation(ramp, 2 * np.arange(10) + ramp).value == pytest.approx(1)
    assert coupling.fisher_z(1.0) == -coupling.fisher_z(-1.0) == pytest.approx(7.25, abs=0.01)


# --- runs ------------------------------------------------------------------------------------


def test_both_swaps_and_a_placebo_are_followed() -> None:
    params = Params("laptop", "25k,150k,600k", seeds=3)
    cells = params.coupled_cells()
    assert len(cells) == 2 * 2 * 4 and {size for size, *_ in cells} == {"25k", "150k"}
    assert {arm for *_, arm in cells} == {CONTROL, *coupling.KIND_OF}
    placebo = params.config("25k", 0, "placebo_21")
    assert placebo.parent == params.config("25k", 0, CONTROL)
    assert placebo.intervention.transform == PLACEBO
    assert PLACEBO not in PRONOUN_SWAPS
    compared = coupling.steps("laptop", 21)
    assert len(compared) == 30 and len(coupling.steps("laptop", 7)) == 10 and compared[-1] == 572
    assert set(compared) <= set(checkpoint_steps(572)), "small runs keep all checkpoints"
    assert {params.config(*cell) for cell in cells} <= set(gender.runs(params))
    assert Params("paper").coupled_cells() == Params("gpu").coupled_cells() == []


def test_measuring_fakes_gives_one_number_a_step(tmp_path) -> None:
    params = Params("smoke", "7k")
    configs = {cell: params.config(*cell) for cell in params.coupled_cells()}
    runs = fake_find_or_train(tmp_path)(configs)
    arrays, facts = coupling.measure(params, runs, progress=False, items=fake_items())
    assert len(arrays) == 4 * len(coupling.MEASURES)
    again, _ = coupling.measure(params, runs, progress=False, items=fake_items())  # cached
    assert all(np.array_equal(again[name], values) for name, values in arrays.items())
    long, short = (len(coupling.steps("smoke", window)) for window in (21, 7))
    for name, values in arrays.items():
        assert len(values) == (short if name.endswith("_7") else long)
        assert np.isfinite(values).all()
    assert set(facts["coupling_shares"]) == set(coupling.KINDS) and facts["coupling_gaps"] == 0
    tables, values = coupling.analyze(params, arrays, facts, {})
    assert tables["coupling"].empty and values["coupling_swap"] is None  # too few checkpoints
    for row in judge(coupling_claims(tables["coupling"])):
        assert (row["released"] or row["ours"])["verdict"] == NOT_TESTABLE
    assert coupling.measure(Params("paper"), {}) == ({}, {})


# --- the rule --------------------------------------------------------------------------------


def arrays(rng: np.random.Generator, swap: float, placebo: float) -> dict[str, np.ndarray]:
    """Scores of LAPTOP's forks that follow their controls with these correlations."""
    made = {}
    steps = {window: coupling.steps("laptop", window) for window in WINDOWS}
    for measure in coupling.MEASURES:
        for size, seed, arm in LAPTOP.coupled_cells():
            if arm == CONTROL:
                control = made[f"coupling/{measure}/{size}/{seed}/control"] = rng.normal(size=30)
                continue
            followed = control[[steps[21].index(step) for step in steps[ARMS[arm].window]]]
            rho = {"swap": swap, "placebo": placebo}[coupling.KIND_OF[arm]]
            own = rng.normal(size=len(followed))
            fork = rho * followed + (1 - rho**2) ** 0.5 * own
            made[f"coupling/{measure}/{size}/{seed}/{arm}"] = fork
    return made


def published(rng: np.random.Generator, rho: float) -> dict[str, pd.DataFrame]:
    rows = []
    for model in ("70m", "410m", "1.4b", "6.9b"):
        for measure in coupling.MEASURES:
            pairs = zip(*noise(rng, 10, rho, walk=False), strict=True)
            for step, (control, swap) in enumerate(pairs, 134):
                rows.append((model, 7, measure, 1000 * step, control, swap))
    columns = ["model", "window", "measure", "step", "control", "swap"]
    return {"coupling_released": pd.DataFrame(rows, columns=columns)}


def test_coupling_is_compared_with_that_of_a_real_swap() -> None:
    verdicts = {}
    for name, released, ours in (
        ("more", 0.9999, 0.3),
        ("alike", 0.9, 0.9),
        ("less", 0.3, 0.9999),
    ):
        rng = np.random.default_rng(3)
        tables, values = coupling.analyze(
            LAPTOP, arrays(rng, ours, 0.99), {}, published(rng, released)
        )
        verdicts[name] = judge(coupling_claims(tables["coupling"]))[0]["released"]
        for means in ("coupling_released", "coupling_released_all"):
            assert values[means] == pytest.approx(released, abs=0.2)
        assert values["coupling_excess"]["value"] == verdicts[name]["value"]
    assert verdicts["more"]["verdict"] == FAILS
    assert verdicts["alike"]["verdict"] == NOT_RESOLVED
    assert verdicts["less"]["verdict"] == HOLDS
    assert "4 released models" in verdicts["less"]["units"], "none is left out"


def test_a_swap_that_decouples_more_than_its_placebo_is_found_and_an_equal_one_is_not() -> None:
    found = {0.3: 0, 0.9: 0}
    for trial in range(40):
        rng = np.random.default_rng(trial)
        for rho in found:
            tables, _ = coupling.analyze(LAPTOP, arrays(rng, rho, 0.9), {}, {})
            row = judge(coupling_claims(tables["coupling"]))[1]
            found[rho] += row["ours"]["verdict"] == "holds"
    assert found[0.3] >= 35 and found[0.9] <= 3


def test_a_placebo_swaps_about_as_many_tokens_and_shifts_are_in_step_noise() -> None:
    rng = np.random.default_rng(4)
    made = arrays(rng, 0.9, 0.9)
    facts = {"coupling_shares": {"swap": 0.006, "placebo": 0.0058}}
    name = "coupling/crows/25k/0/swap_21"
    control = made["coupling/crows/25k/0/control"]
    made[name] = control + 3 * np.diff(control).std(ddof=1)
    tables, values = coupling.analyze(LAPTOP, made, facts, {})
    table = tables["coupling"]
    row = table[(table.model == "25k") & (table.seed == 0) & (table.measure == "crows")]
    row = row[(row.kind == "swap") & (row.window == 21)].iloc[0]
    assert row["shift"] == pytest.approx(3) and row.r == pytest.approx(1) and row.n == 29
    assert values["coupling_swap_share"] == pytest.approx(0.6)
    short = table[(table.kind == "swap") & (table.window == 7) & (table.measure == "crows")]
    assert values["coupling_swap_shift"] == short["shift"].abs().max(), "the tested window only"
    assert values["coupling_swap_crows"] == pytest.approx(math.tanh(short.z.mean()))
    made[name][5] = np.nan
    assert coupling.analyze(LAPTOP, made, facts, {})[0]["coupling"].n.min() == 9


# --- released numbers ------------------------------------------------------------------------


def test_released_scores_are_paired_at_common_steps() -> None:
    rows = []

    def add(arm: str, step: int, task: str, metric: str, value: float, prompt: str = "") -> None:
        keys = {"suite": "v1", "model": "70m", "intervention": arm, "step": step, "source": ""}
        scored = {"task": task, "prompt": prompt, "metric": metric, "value": value, "stderr": 0}
        rows.append(keys | scored)

    for arm, step in (("none", 1), ("none", 2), ("swap_last_7pct", 2), ("swap_last_7pct", 3)):
        add(arm, step, "lambada_openai", "ppl", math.e**step)
        for kind in ("type1_pro", "type1_anti", "type2_pro", "type2_anti"):
            value = 0.4 if kind.endswith("pro") else 0.1
            add(arm, step, f"wino_bias_{kind}", "em", value, "What does p stand for")
            add(arm, step, f"wino_bias_{kind}", "em", 9, "refers_to")
    add("none", 2, "crows_pairs_english_gender", "likelihood_difference", 1)
    again = rows[-1] | {"value": 7}

    def paired(rows: list[dict]) -> pd.DataFrame:
        return coupling.released(Published(pd.DataFrame(rows)))["coupling_released"]

    found = paired([*rows, again, rows[0] | {"suite": "v0"}]).set_index("measure")
    assert found.step.tolist() == [2, 2] and set(found.window) == {7}
    assert found.control["last_words"] == found.swap["last_words"] == pytest.approx(2)
    assert found.control["winobias"] == pytest.approx(0.3)
    one_less = [row for row in rows if row["task"] != "wino_bias_type2_pro"]
    assert "winobias" not in set(paired(one_less).measure)
    assert paired([row for row in rows if row["intervention"] == "none"]).empty


def test_the_figure_names_every_line_and_says_what_is_missing() -> None:
    rng = np.random.default_rng(5)
    for released in (published(rng, 0.9), {}):
        tables, *_ = coupling.analyze(LAPTOP, arrays(rng, 0.9, 0.9), {}, released)
        parameters = asdict(LAPTOP)
        result = SimpleNamespace(
            tables=tables, scale="laptop", study="gender_bias", parameters=parameters
        )
        drawn = figures.coupling(result)
        labels = [t.get_text() for t in drawn.figure.axes[0].get_yticklabels()]
        assert len(set(labels)) == len(labels) == (4 if released else 0) + 12
        assert "25k, prepositions, last 21 % r = " in drawn.description
        said = drawn._repr_mimebundle_()[FIGURE_TYPE]["note"]
        assert ("no released numbers" in said) == (not released)
