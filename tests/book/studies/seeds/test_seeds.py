"""The seeds study: runs share weights and batches, claims can fail, gaps are shown."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pythia_book import records, seed_spread
from pythia_book.studies.seeds import figures
from pythia_book.studies.seeds import study as seeds
from pythia_book.studies.seeds.claims import map_agreement
from pythia_book.studies.seeds.pairs import QUANTITIES
from pythia_book.studies.seeds.params import BOTH, KINDS, LARGEST, ORDER, WEIGHTS, Params
from pythia_book.studies.seeds.tables import ITEMS, MEASURES
from pythia_book.study import Measurements, Result, name_of
from pythia_book.verdicts import judge
from tiny_runs import remove_hashes

from pythia_core.errors import CheckpointError, ConfigError
from pythia_core.suite import suite_configs
from pythia_core.training.checkpoint import drop_weights
from pythia_core.training.runs import find_or_train_all, verify

FEW = {"seeds": 3, "apart_seeds": 3, "largest_seeds": 2}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seeds": 1}, r"seeds must be a whole number in 2\.\.100, got 1"),
        ({"apart_seeds": 2}, r"apart_seeds must be a whole number in 3\.\.100, got 2"),
        ({"sizes": "7k"}, "must be two sizes"),
        ({"sizes": "7m,9m"}, "unknown size"),
        ({"scale": "huge"}, "scale"),
    ],
)
def test_bad_parameters_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Params(**given)


def test_the_two_sizes_and_their_neighbor() -> None:
    params = Params()
    assert (params.size, params.largest_size, params.neighbor_size) == ("25k", "600k", "38k")
    assert Params(sizes="310k,600k").neighbor_size == "600k"
    assert Params(sizes="70m,160m").neighbor_size == "160m"
    assert Params("gpu-short").largest_size in Params("gpu").size_list


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_runs_differ_from_the_suite_s_in_seeds_alone(scale: str) -> None:
    params = Params(scale, seeds=10, apart_seeds=10, largest_seeds=3)
    for size in params.size_list:
        (suite,) = suite_configs(scale, [size], ["standard"]).values()
        assert params.config((size, 1234, 1234)) == suite
    assert len(params.cells) == len(set(params.cells)) == 10 + 9 + 9 + 3
    for kind in KINDS:
        orders, weights = ({cell[i] for cell in params.members(kind)} for i in (1, 2))
        n = len(params.members(kind))
        assert len(orders) == (1 if kind == WEIGHTS else n)
        assert len(weights) == (1 if kind == ORDER else n)


# --- claims on planted numbers ---------------------------------------------------------------

N = 60
FACTS = {"neighbour_loss": 4.0, "gaps": 0, "descent_bound": 6.0, "tested_up_to": 64}


def planted(params: Params, items: float = 0.001, share: float = 0.1, **sd: float) -> Measurements:
    """Scores at the end, with a planted spread of the loss for each kind of run (default 0.02)."""
    rng = np.random.default_rng(1)
    rows = rng.normal(5, 1, N)
    arrays = {
        name_of("mean", measure, *cell): np.full(len(params.steps), np.nan)
        for measure in MEASURES
        for cell in params.cells
    }
    for kind in (LARGEST, BOTH, ORDER, WEIGHTS):
        members = params.members(kind)
        for cell, z in zip(members, np.linspace(-1, 1, len(members)), strict=True):
            loss = rows + sd.get(kind, 0.02) * z + rng.normal(0, items, N)
            feminine = 0.3 + share * z + rng.normal(0, 0.01, N)
            right = rng.random(N) < 0.5
            for measure, values in zip(ITEMS, (loss, right, feminine), strict=True):
                arrays[name_of("items", measure, *cell)] = values.astype(ITEMS[measure])
                arrays[name_of("mean", measure, *cell)][-1] = values.mean()
            arrays[name_of("mean", "memorized", *cell)][-1] = 0.1 + 0.01 * z
    score = {"sound": 300.0, "decoupled": 0.5}
    for pair in ("sound", "decoupled"):
        for quantity in QUANTITIES:
            arrays[name_of(quantity, pair)] = np.full(len(params.weight_steps), score[pair])
    return Measurements(arrays, FACTS)


CLAIMS = {
    "order": "comparably",
    "states": "same states",
    "size": "of 25k",
    "sizes": "right order",
    "gender": "feminine share",
    "decoupled": "another run's initial weights",
    "scores": "scores of seed 0",
}
"""Name -> words of a claim."""


def verdicts(
    params: Params, measured: Measurements, released: dict[str, pd.DataFrame] | None = None
) -> dict[str, str]:
    _, _, claims = seeds.analyze(params, measured, released or {})
    return {
        name: (row["ours"] or row["released"])["verdict"]
        for name, words in CLAIMS.items()
        for row in judge(claims)
        if words in row["claim"]
    }


def test_claims_hold_or_fail_with_the_data() -> None:
    params = Params("smoke", seeds=10, apart_seeds=10, largest_seeds=10)
    assert verdicts(params, planted(params, largest=0.002)) == {
        "order": "not resolved",  # ten seeds cannot show that two spreads are comparable
        "states": "not testable here",
        "size": "holds",
        "sizes": "holds",
        "gender": "holds",
        "decoupled": "holds",
        "scores": "not testable here",
    }
    other = planted(params, share=0.0, items=2.0, order=5, weights=0.01, both=50.0, largest=900.0)
    found = verdicts(params, other)
    assert found["order"] == "contradicted" and found["size"] == "does not hold"
    assert found["sizes"] == "does not hold" and found["gender"] == "not resolved"
    many = Params("smoke", seeds=3, apart_seeds=40)
    assert verdicts(many, planted(many))["order"] == "reproduced"


def test_groups_with_different_means_are_told() -> None:
    params = Params("smoke", seeds=6, apart_seeds=6)
    measured = planted(params)
    _, numbers, _ = seeds.analyze(params, measured, {})
    assert numbers["loss_means_p"] > 0.05 and numbers["association_means_p"] is None
    level, sd = numbers["loss_mean_both"], numbers["loss_sd_all"]
    for cell in params.members(ORDER)[1:]:  # the first run is that of all groups
        measured.arrays[name_of("mean", "loss", *cell)][-1] += 1.0
    _, numbers, _ = seeds.analyze(params, measured, {})
    assert numbers["loss_means_p"] < 1e-6 and numbers["other_means_p"] > 0.05
    assert numbers["loss_means_apart"] == pytest.approx(1, abs=0.05)
    assert numbers["loss_mean_both"] == level and numbers["loss_sd_all"] > 5 * sd
    assert numbers["loss_gap_all"] == pytest.approx(numbers["loss_gap"] + 5 / 16, abs=0.05)


def test_a_note_says_what_the_first_bound_would_have_found() -> None:
    params = Params("smoke", seeds=3, apart_seeds=10)
    for order, words in ((0.02, "would have called"), (0.2, "would not have called")):
        _, _, claims = seeds.analyze(params, planted(params, order=order), {})
        assert words in claims[0].ours.note


def test_a_decoupled_pair_that_looks_sound_fails_the_check() -> None:
    params = Params("smoke", **FEW)
    for pair, score in (("sound", 2.0), ("decoupled", 7.0)):
        measured = planted(params)
        measured.arrays[name_of("descent", pair)][-1] = score
        assert verdicts(params, measured)["decoupled"] == "does not hold"


def test_missing_measurements_leave_claims_untested() -> None:
    params = Params("smoke", **FEW)
    measured = planted(params)
    for name in measured.arrays:
        if name.startswith("mean/loss"):
            measured.arrays[name][:] = np.nan
    lost = {name: a for name, a in measured.arrays.items() if not name.startswith("items/")}
    lost |= {name: np.full_like(a, np.nan) for name, a in lost.items() if "descent" in name}
    found = verdicts(params, Measurements(lost, FACTS | {"neighbour_loss": None}))
    assert set(found.values()) == {"not testable here"}


def test_without_runs_of_the_largest_size_there_is_one_spread() -> None:
    params = Params("smoke")
    tables, values, _ = seeds.analyze(params, planted(params), {})
    assert set(tables["spreads"].kind) == {ORDER, WEIGHTS, BOTH, seed_spread.POOLED}
    assert values["loss_sd_largest"] is None and values["loss_ratio_size"] is None
    assert verdicts(params, planted(params))["size"] == "not testable here"
    result = Result("seeds", params, tables, values, [], planted(params), {}, 0.0)
    for draw in (figures.curves, figures.spreads, figures.apart):
        assert "<svg" in draw(result).svg


def test_other_studies_read_the_spread_of_both_sizes() -> None:
    params = Params("smoke", **FEW)
    tables, _, _ = seeds.analyze(params, planted(params), {})
    spread = seed_spread.of_single_runs(tables["spreads"])
    assert tuple(spread["size"].unique()) == params.size_list
    assert seed_spread.spread_at(spread, "loss", params.size_list[1], [100.0])[0] > 0
    assert set(seed_spread.SHARES) == {m for m, about in MEASURES.items() if about.factor == 100}


def maps(noise: float = 0.0) -> dict[str, pd.DataFrame]:
    """Training maps of ten runs; one of the eight stable ones differs at one of four steps."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(10):
        for step, state in ((0, 0), (13_000, 0), (23_000, 1), (63_000, 1), (143_000, 2)):
            late = seed == 6 and step == 63_000
            score = step / 1e5
            again = score + noise * rng.normal() if seed == 0 else np.nan
            rows.append((seed, seed in (3, 4), step, state + late, score, again))
    names = ["seed", "outlier", "step", "state", "score", "score_410m"]
    return {"training_maps": pd.DataFrame(rows, columns=names)}


def test_the_training_maps_are_shown_without_a_verdict() -> None:
    e = map_agreement(maps()["training_maps"])
    assert e.value == pytest.approx(100 * (21 + 7 * 0.75) / 28)  # 28 pairs of eight runs
    assert e.low < e.value < e.high <= 100
    params = Params("smoke", **FEW)
    assert verdicts(params, planted(params), maps())["scores"] == "holds"
    assert verdicts(params, planted(params), maps(2.0))["scores"] == "does not hold"
    assert verdicts(params, planted(params), maps())["states"] == "not testable here"


# --- the whole -------------------------------------------------------------------------------


def weights_hash(run) -> str:
    state = run.model(0).state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in state)).hexdigest()


@pytest.mark.wheels
def test_runs_share_weights_and_batches_and_a_lost_checkpoint_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    monkeypatch.setattr(records, "recorded_folder", lambda study: None)
    params = Params("smoke", **FEW)
    own = find_or_train_all(suite_configs("smoke", ["7k"], ["standard"]), progress=False)
    done = own["7k", "standard"].folder / "done.json"
    trained = done.stat().st_mtime_ns
    result = seeds.run(params, progress=False)
    runs = dict(zip(params.cells, result.measured.runs, strict=False))
    assert len(runs) == 9 and own["7k", "standard"].id in {run.id for run in runs.values()}
    assert done.stat().st_mtime_ns == trained, "the suite's run was trained again"

    initial, batches = defaultdict(set), defaultdict(set)
    for (size, order, weights), run in runs.items():
        initial[size, weights].add(weights_hash(run))
        batches[order].add(tuple(row["batch_hash"] for row in run.metrics()))
    for shared in (initial, batches):
        assert all(len(hashes) == 1 for hashes in shared.values()), "one seed gave different runs"
        assert len(set().union(*shared.values())) == len(shared), "two seeds gave the same run"
    assert len({run.final_sha256 for run in runs.values()}) == len(runs)

    tables = result.tables
    first = tables["spreads"].query("step == 1 and measure == 'loss'").set_index("kind").sd
    assert first[ORDER] == 0 < first[WEIGHTS], "order mattered before the first update"
    assert result.values["gaps"] == 0
    at_end = tables["levels"].query("percent == 100")
    assert at_end.value.notna().all() and set(at_end.measure) == set(MEASURES)
    pairs = tables["pairs"].set_index(["pair", "quantity", "step"]).value
    assert pairs["sound", "own", 1] == 0 == pairs["decoupled", "between", 1]
    assert pairs["decoupled", "own", 1] == pytest.approx(1, abs=0.01)
    assert pairs["decoupled", "loss", 1] == 0 != pairs["sound", "loss", 1]
    assert result.values["sound_descent"] > 50 and result.values["decoupled_descent"] < 6
    names = ("curves", "spreads", "apart", "decoupled")
    svgs = {name: getattr(figures, name)(result).svg for name in names}
    assert svgs["spreads"] == figures.spreads(result).svg, "the SVG is not reproducible"
    assert len(figures.single_table(result).frame) == 2 * len(MEASURES)
    assert "no released numbers" in figures.training_maps(result).svg
    values = result.values | {"map_agreement": {"value": 90.0, "low": 80.0, "high": 100.0}}
    drawn = figures.training_maps(replace(result, released=maps(), values=values))
    assert drawn.description.endswith("90 % of checkpoints")

    again = seeds.run(params, progress=False)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)
    lost = runs["7k", 1, 1234]  # a checkpoint lost since is a gap, the rest is unaffected
    shutil.rmtree(lost.folder / "evaluations")
    shutil.rmtree(lost.checkpoints / "step-000016")
    again = seeds.run(params, progress=False)
    assert again.values["gaps"] > 0
    ends = again.tables["spreads"].query("percent == 100 and measure == 'loss'").set_index("kind").n
    assert ends.to_dict() == {ORDER: 2, WEIGHTS: 3, BOTH: 3, LARGEST: 2, seed_spread.POOLED: 6}
    for name in names:
        assert "<svg" in getattr(figures, name)(again).svg

    swapped = runs["7k", 2, 1234]  # a step from a run of other initial weights is found
    remove_hashes(swapped)  # with them, it is found without looking at its weights
    shutil.rmtree(swapped.states)
    folder = swapped.checkpoints / "step-000008"
    lines = verify(swapped)
    assert any(line.startswith("found to continue from step 0") for line in lines)
    assert not any("could not be tested" in line for line in lines)
    shutil.rmtree(folder)
    shutil.copytree(runs["7k", 1234, 1].checkpoints / "step-000008", folder)
    with pytest.raises(CheckpointError, match=r"step 8 .* does not continue from its step 0"):
        verify(swapped)
    bare = runs["7k", 1, 1]  # without weights of step 0, no step is said to continue from it
    drop_weights(bare.checkpoints / "step-000000")
    lines = verify(bare)
    assert any("could not be tested for continuing" in line for line in lines)
    assert not any(line.startswith("found to continue from step 0") for line in lines)
