"""Errata: numbers follow from their sources, offline; a switch changes one field only."""

from __future__ import annotations

import html
import os
import re
import shutil
import socket
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pythia_book.published import results
from pythia_book.published.tables import TASKS
from pythia_book.stats import mean_over
from pythia_book.studies.errata import catalog, evidence, figures, study
from pythia_book.studies.errata.evidence import Evidence
from pythia_book.studies.errata.params import (
    GELU_AFTER_TRAINING,
    LABELS,
    SWITCHES,
    Params,
    run_configs,
)
from pythia_book.studies.suite.read_counts import pile_reads
from pythia_book.study import Measurements
from pythia_book.verdicts import judge
from score_files import as_csv

from pythia_core.__main__ import main
from pythia_core.config import config_dict, config_differences
from pythia_core.data.order import RowOrder
from pythia_core.errors import ConfigError
from pythia_core.suite import OFFICIAL_SIZES, suite_configs


@pytest.fixture(scope="module")
def all_evidence() -> dict[str, Evidence]:
    """All evidence except released scores, computed without a network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("evidence must not need a network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        return {erratum.name: erratum.compute() for erratum in catalog.ERRATA}


# --- the list --------------------------------------------------------------------------------


def test_every_erratum_is_complete() -> None:
    names = [e.name for e in catalog.ERRATA]
    assert len(set(names)) == len(names)
    for e in catalog.ERRATA:
        assert re.fullmatch(r"[a-z0-9.-]+", e.name)
        assert e.links and all(link.startswith("https://") for link in e.links)
        assert not e.title.endswith(".")
        for text in (e.claim, e.matters, e.switch):
            assert text.endswith("."), text
    assert {e.status for e in catalog.ERRATA} == set(catalog.STATUSES)
    assert {e.measured for e in catalog.ERRATA} - {""} == set(SWITCHES)


def test_numbers_of_the_evidence(all_evidence: dict[str, Evidence]) -> None:
    values: dict[str, object] = {}
    for each in all_evidence.values():
        assert not values.keys() & each.values.keys(), "names must be unique"
        values |= each.values
        assert each.text.endswith(".")
    expected = {
        "floor_step": 115_139,
        "floor_percent": 80.517,
        "read_0_joint_percent": 7.6,
        "read_1_joint_percent": 39.9,
        "read_2_joint_percent": 52.5,
        "rows_read_percent": 72.4,
        "dedupe_bands": 1,
        "dedupe_hashes": 10,
        "caught_at_087_percent": 100 * 0.87**10,
        "std_6_9b": 0.02,
        "std_6_9b_output": 0.0025,
        "std_12b": 0.02,
        "std_12b_output": 0.002357,
        "init_times": 2.0239,
        "init_output_times": 2.56,
        "std_12b_small": (2 / (5 * 5120)) ** 0.5,
        "std_12b_wang": 2 / (36 * 5120**0.5),
        "gelu_gap": 4.73e-4,
        "decayed_embeddings": 2,
        "undecayed_tensors": 50,
        "vocab_usable": 50_277,
        "vocab_padded_1": 50_304,
        "vocab_padded_2": 50_432,
        "vocab_padded_4": 50_688,
        "inner_percent_70m": 26.9,
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=4e-3, abs=1e-12), name
    padded = {values[f"vocab_padded_{ranks}"] for ranks in (1, 2, 4)}
    assert padded == {size.vocab_size for size in OFFICIAL_SIZES.values()}  # of config.json


def test_what_is_calculated_is_quoted(all_evidence: dict[str, Evidence]) -> None:
    for e in catalog.ERRATA:
        quoted = {name for _, name, *_ in Formatter().parse(e.evidence) if name}
        assert quoted == all_evidence[e.name].values.keys()
        assert bool(e.released) == (e.name in evidence.RELEASED)


def test_the_counted_reads_agree_with_those_of_an_order() -> None:
    """The formula behind the epoch boundary, against a toy corpus in the order of the code."""
    sizes = np.random.default_rng(0).lognormal(4, 1, 3000).astype(int)
    numbers = evidence.epoch_boundary()
    for policy in ("joint", "separate"):
        order = RowOrder(sizes, 64, epochs=2, policy=policy)
        n_rows = round(numbers["rows_read_percent"] / 100 * order.n_rows)
        counts, _ = order.read_counts(n_rows, block=n_rows)
        toy = 100 * np.bincount(counts, minlength=3)[:3] / len(counts)
        formula = [100 * share for share in pile_reads("deduplicated", policy)[:3]]
        assert toy.tolist() == pytest.approx(formula, abs=1)


def test_bands_are_those_that_datasketch_chooses() -> None:
    lsh = pytest.importorskip("datasketch.lsh", reason="datasketch is not installed")
    for similarity, hashes in ((0.87, 10), (0.5, 10), (0.8, 128)):
        theirs = lsh._optimal_param(similarity, hashes, 0.5, 0.5)
        assert evidence.datasketch_bands(similarity, hashes) == theirs


def test_missing_released_scores_are_reported(all_evidence: dict[str, Evidence]) -> None:
    names = {e.name for e in catalog.ERRATA if e.released}
    assert names == {"first-update", "swap-scores", "tasks", "evals-2.8b", "winobias-prompt"}
    for name, each in all_evidence.items():
        assert ("PYTHIA_PUBLISHED_DIR" in each.released) == (name in names)


def scores(folder: Path, wsc: float, unlike: bool = False) -> results.Published:
    """Made-up released scores; at step 3,000 both 2.8b models have the same ones.

    Args:
        unlike: whether the deduplicated 1b model has at step 1 the scores of step 2, not of step 0.
    """
    as_csv(folder)
    rows = [
        (model, deduped, shots, task, step, "acc",
         wsc if task == "wsc" else 0.6 + 0.01 * deduped * (model != "2.8b" or step > 3000), 0.01)
        for model in ("1b", "2.8b") for deduped in (0, 1) for shots in (0, 5)
        for step in (3000, 143_000) for task in TASKS if model != "2.8b" or task != "wsc"
    ]  # fmt: skip
    rows += [
        ("1b", deduped, 0, "piqa", step, "acc", value, 0.01)
        for deduped, other in ((0, 0.51), (1, 0.52))
        for step, value in ((0, 0.5), (1, other if unlike and deduped else 0.5), (2, other))
    ]
    columns = ["model", "deduped", "shots", "task", "step", "metric", "value", "stderr"]
    frame = pd.DataFrame(rows, columns=columns)
    for shots, name in ((0, "zero"), (5, "five")):
        frame[frame.shots == shots].to_csv(folder / f"evals_{name}_shot.csv", index=False)
    return results.load(folder)


@pytest.mark.parametrize(("wsc", "flat"), [(38 / 104, "wsc"), (0.6, "wsc"), (0.7, "none")])
def test_released_scores_are_compared(wsc: float, flat: str, tmp_path: Path) -> None:
    """The guess at WSC is its more frequent answer, right in 66 of 104 items."""
    released = scores(tmp_path, wsc)
    text = of_scores("tasks", released)
    assert f"Tasks without such a model: {flat}." in text
    assert ("100 % of all 5-shot" in text) == (wsc < 0.5)
    text = of_scores("evals-2.8b", released)
    assert text.count("at 1 step (3,000)") == 2
    assert text.endswith("all other sizes together, at no step.")
    assert "410m 60.0, 7 % swap 61.0" in of_scores("swap-scores", released)
    assert "410m 30.0 / 20.0, 410m 7 % swap 25.0 / 21.0" in of_scores("winobias-prompt", released)


@pytest.mark.parametrize(("unlike", "same"), [(False, 2), (True, 1)])
def test_scores_can_contradict_equal_first_steps(unlike: bool, same: int, tmp_path: Path) -> None:
    text = of_scores("first-update", scores(tmp_path, 0.6, unlike))
    assert f"Of 2 models, {same} have the same zero-shot scores at step 1 as at step 0" in text
    assert f"{2 - same} have the same scores at step 1 as at step 2" in text


def of_scores(name: str, released: results.Published) -> str:
    return catalog.erratum_named(name).compute(released).released


def test_the_real_released_scores() -> None:
    if not os.environ.get(results.VARIABLE):
        pytest.skip("needs the released numbers: set PYTHIA_PUBLISHED_DIR (see the README)")
    released = results.find()
    text = of_scores("tasks", released)
    assert "Tasks without such a model: wsc, logiqa." in text
    assert "6 of 16 models are above guessing on LogiQA; the highest has 30.6 %" in text
    text = of_scores("evals-2.8b", released)
    assert "zero-shot, at 10 steps (2 to 1,000);" in text
    assert "five-shot, at 4 steps (13,000 to 43,000);" in text
    assert "together, at no step." in text
    text = of_scores("first-update", released)
    assert "Of 16 models, 16 have the same" in text and "0 have the same" in text
    text = of_scores("winobias-prompt", released)
    assert '"refers_to"' in text and "410m 3.7 / 3.9, 410m 7 % swap 28.3 / 26.7" in text
    assert "6.9b 51.7 / 32.0, 6.9b 7 % swap 51.5 / 31.6" in text
    assert "is 1.7 to 7.6 times that" in text and "with the other prompt, 1.0 to 1.2 times" in text
    text = of_scores("swap-scores", released)
    assert "is -0.2 points; one below -7.5" in " ".join(text.split())


# --- page and command line -------------------------------------------------------------------


def partial_result(evidence: dict[str, Evidence], **values: object) -> SimpleNamespace:
    """The parts of a study's result that the list needs."""
    changes = {f"{name}_loss_change": "not measured" for name in study.LABELS}
    facts = {"evidence": {name: each.values for name, each in evidence.items()}}
    values = {"size": "7k", **changes, **values}
    return SimpleNamespace(measured=Measurements({}, facts), released={}, values=values)


@pytest.mark.parametrize("erratum", catalog.ERRATA, ids=lambda e: e.name)
def test_the_command_prints_what_the_page_shows(
    erratum: catalog.Erratum,
    all_evidence: dict[str, Evidence],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    page = html.unescape(figures.Errata(partial_result(all_evidence))._repr_html_())
    assert main(["errata", erratum.name]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(erratum.title)
    for heading, text in erratum.sections(all_evidence[erratum.name]).items():
        assert text in page, heading
        assert text in printed, heading
    assert all(f'href="{url}"' in page and url in printed for url in erratum.links)


def test_the_command_lists_them_and_refuses_others(capsys: pytest.CaptureFixture) -> None:
    assert main(["errata"]) == 0
    listed = capsys.readouterr().out
    assert all(e.name in listed and e.title in listed for e in catalog.ERRATA)
    assert main(["errata", "lr-flor"]) == 1
    message = capsys.readouterr().err
    assert "unknown erratum 'lr-flor'; accepted: lr-floor" in message
    assert "Did you mean 'lr-floor'?" in message


def test_the_list_escapes_and_says_what_was_measured(all_evidence: dict[str, Evidence]) -> None:
    change = {"value": 0.5, "low": 0.25, "high": 0.75}
    result = partial_result(
        all_evidence, gelu_loss_change=change, gelu_loss_percent=12.0, n_seeds=2
    )
    hostile = all_evidence["vocabulary"].values | {"vocab_spaces": "<script>alert(1)</script>"}
    result.measured.facts["evidence"]["vocabulary"] = hostile
    page = figures.Errata(result)._repr_html_().replace("\N{NO-BREAK SPACE}", " ")
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "exact GELU in training, 0.50 [0.25, 0.75] nats per token (12 %)." in page
    assert page.count("measured by: python -m pythia_core study errata") == len(SWITCHES) - 1


# --- the study -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"switches": "gelu,rotary"}, "unknown switch 'rotary'; accepted: lr_form, first_update"),
        ({"switches": "lr_from"}, "Did you mean 'lr_form'"),
        ({"sizes": "7k,13k"}, "trains models of only one size"),
        ({"sizes": "7m"}, "unknown size"),
        ({"seeds": 0}, "seeds must be"),
    ],
)
def test_bad_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Params(**params)


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_a_switch_run_differs_from_the_suite_in_one_field(scale: str) -> None:
    params = Params(scale, seeds=2)
    configs = run_configs(params)
    (size,) = params.size_list
    assert {seed for _, seed in configs} == {1234, 1}
    for seed in (1234, 1):
        suite = suite_configs(scale, [size], seed=seed)
        for arm in ("standard", "deduplicated"):
            assert configs[arm, seed] == suite[size, arm]
        for name, switch in SWITCHES.items():
            both = config_dict(configs[switch.arm, seed]), config_dict(configs[name, seed])
            lines = config_differences(*both)
            assert [line.split(":")[0] for line in lines] == [f"{switch.part}.{name}"]


def test_only_the_selected_switches_are_trained() -> None:
    configs = run_configs(Params("smoke", switches="gelu", seeds=2))
    assert {name for name, _ in configs} == {"standard", "gelu"} and len(configs) == 4


N_SEEDS = 5


def planted(change: float, n_seeds: int = N_SEEDS) -> Measurements:
    """Controls with a loss of about 5 on 400 rows, and runs whose loss is `change` percent higher.

    The change has a standard deviation over seeds of 0.2 percent. Of 1,000 rows, they memorize 6 to
    8 less than the control of the same seed.
    """
    rng = np.random.default_rng(0)
    control = rng.normal(5, 1, 400) + rng.normal(0, 0.05, (n_seeds, 1))
    noise = rng.normal(0, 0.2, (n_seeds, 1))
    changed = control * (1 + (change + noise - noise.mean()) / 100)
    arrays = {"loss/standard/16": control, "loss/init/16": changed}
    facts = {
        "evidence": {name: compute() for name, compute in evidence.COMPUTED.items()},
        "memorized": {
            "standard": [[9 + 5 * seed, 1000] for seed in range(n_seeds)],
            "init": [[2 + 5 * seed + (seed + 1) % 3 - 1, 1000] for seed in range(n_seeds)],
        },
        "gaps": 0,
    }
    return Measurements({name: a.astype(np.float32) for name, a in arrays.items()}, facts)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0.0, "holds"), (0.5, "holds"), (3.0, "does not hold"), (-3.0, "does not hold"),
     (1.05, "not resolved")],
)  # fmt: skip
def test_verdicts_follow_the_planted_change(change: float, verdict: str) -> None:
    params = Params("smoke", switches="init", seeds=N_SEEDS)
    tables, values, made = study.analyze(params, planted(change), {})
    (init,) = judge(made)
    assert init["ours"]["verdict"] == verdict
    assert init["kind"] == "premise" and init["ours"]["df"] == N_SEEDS - 1
    assert init["ours"]["value"] == pytest.approx(change, abs=0.02)
    assert init["ours"]["units"] == "5 seeds"
    assert "rows memorized 1.22 % instead of 1.90 %" in init["ours"]["note"]
    lost = mean_over([-0.7, -0.6, -0.8, -0.7, -0.6]).interval()  # paired, seeds cancel
    assert values["init_memorized_change"] == pytest.approx(lost)
    assert values["memorized_differing"] == LABELS["init"]
    assert values["init_loss_percent"]["value"] == pytest.approx(init["ours"]["value"])
    assert values["seed_sd_percent"] == pytest.approx(1, abs=0.6)
    columns = ["variant", "control", "share", "value", "low", "high", "n"]
    assert list(tables["memorized"].columns) == columns


def test_shares_of_memorized_rows_that_vary_over_seeds_are_not_said_to_differ() -> None:
    measured = planted(0.0)
    more = [[9 + 5 * seed + gain, 1000] for seed, gain in enumerate((7, -6, 1, -5, 6))]
    measured.facts["memorized"]["init"] = more
    params = Params("smoke", switches="init", seeds=N_SEEDS)
    values = study.analyze(params, measured, {})[1]
    assert values["init_memorized_change"]["low"] < 0 < values["init_memorized_change"]["high"]
    assert values["memorized_differing"] == "none"
    measured.facts["memorized"] = dict.fromkeys(("standard", "init"), [[0, 1000]] * N_SEEDS)
    assert study.analyze(params, measured, {})[1]["memorized_differing"] == "none"


def test_one_seed_has_numbers_but_no_verdict() -> None:
    values, made = study.analyze(Params("smoke", switches="init"), planted(0.5, 1), {})[1:]
    (init,) = judge(made)
    assert init["ours"]["verdict"] == "not testable here"
    assert init["ours"]["reason"] == "a single unit has no interval"
    assert values["init_loss_percent"] == pytest.approx(0.5, abs=0.01)
    assert values["seed_sd_percent"] == values["memorized_differing"] == "not measured"
    assert values["init_memorized_change"] == pytest.approx(-0.7)


def test_reading_with_the_other_gelu_gets_no_verdict() -> None:
    measured = planted(0.0)
    measured.arrays["loss/gelu_read/16"] = measured.arrays["loss/standard/16"] + 1e-5
    made = study.analyze(Params("smoke", switches="gelu", seeds=N_SEEDS), measured, {})[2]
    row = {r["claim"].split(" changes")[0]: r["ours"] for r in judge(made)}
    test = row["Running the trained model with the exact GELU"]
    assert test["verdict"] == "not testable here" and "so close" in test["reason"]
    assert test["value"] == pytest.approx(2e-4, rel=0.1)


def test_what_was_not_measured_has_no_verdict() -> None:
    measured = planted(0.0)
    del measured.arrays["loss/init/16"]
    params = Params("smoke", switches="init", seeds=N_SEEDS)
    (row,) = judge(study.analyze(params, measured, {})[2])
    assert row["ours"]["verdict"] == "not testable here"
    assert row["ours"]["reason"] == "not measured"


@pytest.mark.wheels
def test_switches_are_compared_with_their_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_evidence: dict[str, Evidence]
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    (tmp_path / "released").mkdir()
    params = Params("smoke", switches="gelu,epoch_policy", seeds=2)
    released = scores(tmp_path / "released", 0.7)
    result = study.run(params, progress=False, published=released)
    effects = result.tables["effects"]
    assert set(effects.variant) == {"gelu", "epoch_policy", GELU_AFTER_TRAINING}
    last = effects[(effects.step == 16) & (effects.measure == "loss")].set_index("variant").value
    assert 0 < abs(last[GELU_AFTER_TRAINING]) < 1e-3 and 0 < abs(last["gelu"]) < 1e-2
    assert abs(last["epoch_policy"]) > abs(last["gelu"])
    assert result.measured.arrays["loss/gelu/16"].shape[0] == 2
    assert set(result.tables["memorized"].variant) == {"gelu", "epoch_policy"}
    assert result.values["gaps"] == 0
    assert result.values["lr_form_loss_change"] == "not measured"
    assert result.values["floor_step"] == 115_139
    assert "Models above guessing" in str(result.tables["errata"].released[11])
    again = study.analyze(params, result.measured, result.released)
    assert all(result.tables[name].equals(table) for name, table in again[0].items())
    assert judge(again[2]) == result.claims
    for drawing in (figures.effects, figures.schedule_and_passes):
        assert drawing(result).svg == drawing(result).svg
    assert len(figures.effects_table(result).frame) == 3
    assert len(result.claims) == 3

    control = next(r for r in result.measured.runs if r.config.data.epochs == 1)
    for (
        run
    ) in result.measured.runs:  # no cached results, and the last checkpoint of one run is lost
        shutil.rmtree(run.folder / "evaluations")
    shutil.rmtree(control.checkpoints / "step-000016")
    result = study.run(params, progress=False, published=released)
    assert result.values["gaps"] == 3  # its loss with both forms of GELU, its memorized rows
    lost = result.tables["effects"]
    remaining = effects[(effects.step < 16) | (effects.variant == "epoch_policy")]
    assert lost.equals(remaining.reset_index(drop=True)), (
        "measuring again must give the same numbers"
    )
    assert set(lost[lost.step == 16].variant) == {"epoch_policy"}
    verdicts = {c["claim"].split(" changes")[0]: c["ours"]["verdict"] for c in result.claims}
    assert verdicts["Training with the exact GELU"] == "not testable here"
    assert "not measured" in figures.effects(result).svg
