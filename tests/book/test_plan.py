"""What a study says before it begins: the models to train, and how long it may take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pythia_book import notebooks, plan, records
from pythia_book.commands import studies as command
from pythia_book.plan import Finished, overview, plan_of, plans, start_message
from pythia_book.studies.gender_bias.params import Params

from pythia_core.config import config_dict
from pythia_core.errors import ConfigError, PythiaError
from pythia_core.training.execution import EAGER
from pythia_core.training.runs import code_identity, run_flops
from pythia_core.util.files import project_root, write_json

RECORDED = project_root() / "book" / "recorded" / "gender_bias" / "laptop"
NONE = Finished({})


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two cores, training in fp32, and an empty results folder, returned."""
    monkeypatch.setenv("PYTHIA_PRECISION", "fp32")
    monkeypatch.setenv("PYTHIA_WORKERS", "2")
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    return tmp_path


def defaults(study: str = "gender_bias", **values: Any) -> dict[str, Any]:
    notebook = notebooks.read_notebook(notebooks.notebook_path(study))
    return notebooks.validate_parameters(notebook, values)


def finish(folder: Path, config: Any, seconds: float, code: dict | None = None) -> None:
    """Write what a finished run has: its identity, its log and done.json."""
    folder.mkdir(parents=True)
    identity = {"config": config_dict(config), "data": "", "code": code or code_identity(EAGER)}
    write_json(folder / "identity.json", identity)
    tokens = config.train.batch_size * config.data.seq_len
    row = {"step": 1, "tokens_per_s": tokens / seconds}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    write_json(folder / "done.json", {"final_sha256": ""})


def test_the_estimate_is_for_the_given_parameters_not_for_the_recorded_ones() -> None:
    record = records.read_record(RECORDED)
    few, all_of_it = (plan_of("gender_bias", values, NONE) for values in (
        defaults(), defaults(**{k: v for k, v in record["parameters"].items() if k != "scale"})
    ))  # fmt: skip
    assert (few.models, len(few.missing)) == (22, 22) and all_of_it.models == len(record["runs"])
    whole = record["duration_s"] + record["training_s"] / 2
    assert all_of_it.seconds == pytest.approx(whole)
    runs = Params().cells(), Params(**record["parameters"]).cells()
    own, recorded = (
        sum(map(run_flops, {p.config(*c) for c in cells}))
        for p, cells in zip((Params(), Params(**record["parameters"])), runs, strict=True)
    )
    expected = record["duration_s"] * 22 / len(record["runs"])
    expected += record["training_s"] * own / recorded / 2
    assert few.seconds == pytest.approx(expected) and few.seconds < whole / 4
    assert few.source == f"the recorded run ({records.device_text(record)})"


def test_models_that_exist_are_not_counted_and_give_the_speed_of_this_machine(
    machine: Path,
) -> None:
    params = Params()
    configs = list({params.config(*cell): None for cell in params.cells()})
    for number, config in enumerate(configs[:3]):
        finish(machine / "runs" / f"run-{number}", config, seconds=60)
    finish(machine / "runs" / "other code", configs[3], 1, {"trajectory": 0})
    for damaged in ("identity.json", "metrics.jsonl"):
        finish(machine / "runs" / damaged, configs[4 if damaged == "identity.json" else 5], 1)
        (machine / "runs" / damaged / damaged).write_text("{\n\n")
    planned = plan_of("gender_bias", defaults())
    assert planned.models == 22 and len(planned.missing) == 22 - 4
    assert planned.source == "models trained here"
    rate = 180 / sum(map(run_flops, configs[:3]))
    record = records.read_record(RECORDED)
    expected = record["duration_s"] * 22 / len(record["runs"])
    expected += rate * sum(map(run_flops, planned.missing)) / 2
    assert planned.seconds == pytest.approx(expected)


def test_before_the_first_model_the_estimate_is_not_off_by_a_factor_of_three() -> None:
    """The seconds are those of an Intel Xeon with two cores (LOG.md, all studies from nothing)."""
    for study, took in {"suite": 13 * 60 + 42, "ablations": 150}.items():
        planned = plan_of(study, defaults(study), NONE)
        assert planned.source.startswith("the recorded run (")
        assert planned.seconds and took / 3 < planned.seconds < took * 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12, "12 s"), (120, "2 min"), (299, "4 min 59 s"), (1321, "22 min"), (4630, "1 h 17 min")],
)
def test_a_long_estimate_is_in_minutes(seconds: float, text: str) -> None:
    assert plan.Plan("suite", seconds=seconds).text() == f"about {text}"


def test_the_last_run_here_comes_before_the_recorded_one(machine: Path) -> None:
    shutil.copytree(RECORDED, machine / "gender_bias" / "laptop")
    path = machine / "gender_bias" / "laptop" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"duration_s": 77}))
    planned = plan_of("gender_bias", defaults(), NONE)
    assert planned.last == 77 and planned.source == "the last run here"
    assert "22 of 22 models to train, about" in planned.text()
    assert planned.text().endswith("last time 1 min 17 s")


def test_a_study_says_at_its_start_what_it_will_take() -> None:
    first, what, source = start_message("gender_bias", defaults()).splitlines()
    assert first.startswith("== Running gender_bias at scale laptop; data, models")
    assert what.startswith("   22 of 22 models to train, about ")
    assert source.startswith("   (estimated from the recorded run (")
    smoke = start_message("gender_bias", defaults(scale="smoke"))
    assert len(smoke.splitlines()) == 1, "nothing is known"
    assert len(start_message("speed", defaults("speed")).splitlines()) == 3


def test_several_studies_share_their_models() -> None:
    suite, scaling, speed = plans(["suite", "scaling", "speed"], "laptop")
    assert (len(suite.missing), len(scaling.missing), speed.models) == (16, 0, 0)
    shown = overview([suite, scaling, speed])
    assert shown.startswith("== 3 of 3 studies to run, one after another; finished work is not")
    assert "   scaling  0 of 16 models to train, about" in shown
    assert "   16 models to train in all; about " in shown
    assert "   (estimated from the recorded run)" in shown
    up_to_date = plan.Plan("suite", 61.0, current=True)
    assert overview([up_to_date]).endswith("suite  up to date (took 1 min 1 s)")


def test_a_study_that_trains_models_of_its_own_is_estimated_by_their_size() -> None:
    record = records.read_record(RECORDED.parents[1] / "ablations" / "laptop")
    few, many = (plan_of("ablations", defaults("ablations", **given)) for given in (
        {}, {"sizes": record["parameters"]["sizes"], "seeds": 2 * record["parameters"]["seeds"]}
    ))  # fmt: skip
    assert few.seconds and many.seconds and few.seconds < 0.2 * record["duration_s"]
    assert many.seconds > record["training_s"] * 0.99, "twice the models, on two cores"
    assert few.models == 0 and few.text().startswith("about ")


def test_at_the_scale_paper_nothing_is_estimated() -> None:
    assert plan_of("gender_bias", defaults(scale="paper"), NONE).text() == "never run before"


def test_every_study_that_does_not_accept_the_scale_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)3 problems.*suite: .*'paper'.*speed: .*'paper'.*'x'"
    ):
        plans(["suite", "speed", "x"], "paper")


def arguments(*words: str) -> Any:
    import argparse

    top = argparse.ArgumentParser().add_subparsers()

    def add(name: str, function: Any, text: str, **settings: Any) -> argparse.ArgumentParser:
        parser = top.add_parser(name, **settings)
        parser.set_defaults(function=function)
        return parser

    command.add(add)
    return top.choices["study"].parse_args(words)


def test_all_studies_run_and_a_failure_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pythia_book import papermill_engine

    ran = []

    def run_study(study: str, *_: Any, **__: Any) -> tuple[Path, bool]:
        ran.append(study)
        if study == "phases":
            raise PythiaError("no network")
        return Path(study), study != "speed"

    monkeypatch.setattr(papermill_engine, "run_study", run_study)
    with pytest.raises(PythiaError, match=r"1 of 12 studies failed: phases: no network"):
        command._study(arguments("--scale", "smoke"))
    assert len(ran) == 12 and ran.index("suite") < ran.index("scaling")
    said = capsys.readouterr()
    assert said.out.startswith("== 12 of 12 studies to run")
    assert "== speed: up to date (12 of 12)" in said.out and "\r" not in said.out + said.err
    assert "== suite: finished in 0 s" in said.out and "error: phases: no network" in said.err
    with pytest.raises(ConfigError, match="-p needs exactly one study"):
        command._study(arguments("suite", "speed", "-p", "seed=1"))
