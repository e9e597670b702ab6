"""Predictions for official shapes add up to the published costs, and scale gpu fits its limits."""

from __future__ import annotations

import itertools

import pytest
from pythia_book import budget
from pythia_book.studies import registry
from pythia_book.studies.errata import params as errata
from pythia_book.studies.registry import STUDIES, runs_of
from pythia_book.studies.seeds import params as seeds

from pythia_core.__main__ import main
from pythia_core.errors import ConfigError
from pythia_core.suite import GPU_SIZES, OFFICIAL_SIZES, scale_named, size_name


def test_the_gpu_sizes_have_official_shapes_and_ascend() -> None:
    sizes = list(GPU_SIZES.values())
    shape = {(s.n_layers, s.d_model, s.n_heads, s.lr_max) for s in sizes}
    for name in ("14m", "31m", "70m", "160m"):
        s = OFFICIAL_SIZES[name]
        assert (s.n_layers, s.d_model, s.n_heads, s.lr_max) in shape, name
    params = [s.model(8192).n_params_non_embedding for s in sizes]
    assert len(sizes) == 8 and params == sorted(params)
    assert all(1.3 < b / a < 2.4 for a, b in itertools.pairwise(params))
    for s, n in zip(sizes, params, strict=True):
        assert float(s.name[:-1]) * 1e6 == pytest.approx(n, rel=0.07)
        assert s.model(8192).head_dim in (32, 64)
    rates = [s.lr_max for s in sizes]
    assert rates == sorted(rates, reverse=True)


def test_scale_gpu_fits_half_an_hour_and_the_disk() -> None:
    scale = scale_named("gpu")
    assert scale.steps % 143 == 0 and [scale.fork_step(i) for i in (113, 133)] == [791, 931]
    sizes, studies = budget.sizes_table("gpu"), budget.studies_table("gpu")
    assert list(sizes["size"]) == list(scale.sizes)
    assert sizes.tokens_per_s.is_monotonic_decreasing
    assert studies.runs.sum() == len(registry.all_runs("gpu"))
    assert all(registry.params_of(study).MEASURING for study in STUDIES)
    spent = studies[["training_s", "writing_s", "measuring_s"]].sum()
    assert spent.sum() < 30 * 60
    assert spent.training_s < 16 * 60, "not all of it: predictions are rough"
    assert studies.kept_gb.sum() < 56, "of a disk of 64 GiB"
    assert "min in total" in budget.report("gpu")
    for scale in ("smoke", "laptop"):
        with pytest.raises(ConfigError, match=r"heads of 16 dims, only for 32, 64"):
            budget.report(scale)


def test_the_command_offers_the_scale_that_it_can_predict(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["budget", "--scale", "laptop"])
    assert "invalid choice: 'laptop' (choose from" in capsys.readouterr().err
    assert main(["budget"]) == 0 and "scale gpu on" in capsys.readouterr().out
    assert main(["budget", "--scale", "gpu-short", "--studies", "seeds,errata"]) == 0
    table = capsys.readouterr().out
    assert "scale gpu-short on" in table and "seeds " in table and "errata " in table
    assert "suite " not in table and "total_s" in table and "non_embedding" not in table
    assert main(["budget", "--studies", "seed"]) == 1
    assert "Did you mean 'seeds'" in capsys.readouterr().err


def test_each_half_of_scale_gpu_short_takes_less_than_eight_minutes() -> None:
    first = ("gender_bias", "seeds")
    second = tuple(study for study in STUDIES if study not in first)
    for studies in (first, second):
        table = budget.studies_table("gpu-short", studies)
        assert list(table.study) == list(studies)
        parts = table[["training_s", "writing_s", "measuring_s"]].sum(axis=1)
        assert table.total_s.tolist() == pytest.approx(parts.tolist())
        assert table.total_s.sum() < 450, "each study also takes seconds to start"
        assert table.kept_gb.sum() < 32, "fits a disk in memory"
    assert budget.studies_table("gpu-short", ("gender_bias",)).total_s.sum() < 300


@pytest.mark.parametrize("scale", ["smoke", "laptop", "gpu-short", "gpu"])
@pytest.mark.parametrize("study", STUDIES)
def test_every_study_accepts_every_scale(study: str, scale: str) -> None:
    runs = runs_of(study, scale)
    assert runs and len(set(runs)) == len(runs)
    for run in runs:
        model, data = run.model, run.data
        assert model.max_seq_len == data.seq_len and model.vocab_size % 128 == 0
        assert data.corpus == "laboratory" or size_name(model) in scale_named(scale).sizes
        kept = registry.keep(scale, run)
        assert kept is None or run.train.steps in kept.weights, "the end is always kept"
    assert errata.Params(scale).size_list and seeds.Params(scale).neighbor_size
