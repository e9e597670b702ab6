"""Claims about released numbers follow from them; without them nothing is claimed."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pythia_book.published import figures, results
from pythia_book.published.scaling import COLUMNS, published_deduplication, published_scaling
from pythia_book.published.tables import MODELS, TASKS

FOLDER = os.environ.get(results.VARIABLE, "")
DRAWINGS = ("benchmarks_over_training", "benchmarks_by_size", "batch_size", "lambada_decline")
RESULT = SimpleNamespace(study="scaling", scale="laptop", parameters={"scale": "laptop"})


def released(slope: float = 0.1, gain: float = 0.0, stderr: float = 0.005) -> SimpleNamespace:
    """Released numbers in which accuracy rises by `slope` per size and by `gain` with dedup."""
    rows = [
        (model, deduped, shots, task, step, "acc", 0.2 + slope * i + gain * deduped, stderr)
        for i, model in enumerate(MODELS)
        for deduped in (False, True)
        for shots in (0, 5)
        for task in TASKS
        for step in (93_000, 143_000)
    ]
    names = ["model", "deduped", "shots", "task", "step", "metric", "value", "stderr"]
    empty = pd.DataFrame(
        columns=["family", "model", "n_params", "task", "metric", "value", "stderr", "shots",
                 "batch_tokens", "tokens", "step"]
    )  # fmt: skip
    benchmarks = pd.DataFrame(rows, columns=names)
    return SimpleNamespace(benchmarks=benchmarks, baselines=empty, batch_size=empty, left_out=empty)


def baselines(family: str, names: tuple[str, ...], values: dict[str, float]) -> pd.DataFrame:
    """Final scores of other models, the same for all of them."""
    return pd.DataFrame(
        [
            {"family": family, "model": name, "n_params": 1e9, "task": task, "metric": "acc",
             "value": value, "stderr": 0.005}
            for name in names
            for task, value in values.items()
        ]
    )  # fmt: skip


def verdicts(numbers: SimpleNamespace) -> list[str]:
    return [claim["verdict"] for claim in published_scaling(numbers).claims]


def test_verdicts_follow_the_numbers() -> None:
    assert verdicts(released())[0] == "reproduced"
    assert verdicts(released(slope=-0.01))[0] == "not reproduced"
    assert verdicts(released(slope=0.0))[0] == "no effect"
    assert verdicts(released())[1] == "does not hold"  # nothing declines
    assert verdicts(released())[2] == "reproduced"
    assert verdicts(released(gain=0.05))[2] == "not reproduced"
    assert verdicts(released())[3:] == ["not testable here"] * 3


@pytest.mark.parametrize(
    ("lead", "verdict"),
    [(-0.05, "reproduced"), (0.01, "reproduced"), (0.02, "not testable here"),
     (0.05, "not reproduced")],
)  # fmt: skip
def test_a_cost_below_two_points_counts_as_none(lead: float, verdict: str) -> None:
    numbers = released(slope=0)
    numbers.baselines = baselines("opt", ("opt-1.3b", "opt-2.7b"), {t: 0.2 + lead for t in TASKS})
    assert verdicts(numbers)[4] == verdict


def test_bloom_is_worse_on_some_tasks_only() -> None:
    numbers = released(slope=0)
    for worse, verdict in (
        (TASKS[:3], "reproduced"), (TASKS, "not reproduced"), ((), "not reproduced"),
    ):  # fmt: skip
        values = {task: 0.1 if task in worse else 0.2 for task in TASKS}
        numbers.baselines = baselines("bloom", ("bloom-1b7", "bloom-3b"), values)
        assert verdicts(numbers)[5] == verdict


def test_full_batches_are_compared_at_equal_tokens() -> None:
    numbers = released(slope=0)
    last = 143_000 * 2048 * 1024
    small = [
        {"model": "70m", "batch_tokens": 2**18, "shots": 5, "task": task, "step": step,
         "tokens": step * 2**18, "metric": "acc", "value": value, "stderr": 0.005}
        for step, value in ((last // 2**19, 0.9), (last // 2**18, 0.25))
        for task in TASKS
    ]  # fmt: skip
    numbers.batch_size = pd.DataFrame(small)
    claim = published_scaling(numbers).claims[3]
    assert claim["verdict"] == "not reproduced"
    assert claim["published"].startswith("70m -5.0 [")


def test_means_need_every_task() -> None:
    numbers = released()
    rows = numbers.benchmarks
    gone = (rows.model == "1b") & (rows.task == "piqa") & (rows.step == 93_000)
    numbers.benchmarks = rows[~gone]
    means = published_scaling(numbers).tables["means"]
    assert len(means) == 8 * 2 * 2 * 2 - 4
    np.testing.assert_allclose(means.high - means.value, 1.959964 * 0.005 / np.sqrt(7))


def test_a_late_decline_of_the_smallest_is_found() -> None:
    numbers = released()
    rows = numbers.benchmarks
    small = rows.model.isin(["70m", "160m"]) & (rows.task == "lambada_openai")
    rows.loc[small & (rows.step == 143_000), "value"] -= 0.08
    assert verdicts(numbers)[1] == "holds"
    rows.loc[(rows.model == "12b") & (rows.step == 143_000), "value"] -= 0.08
    assert verdicts(numbers)[1] == "does not hold"


def test_the_difference_of_twins_by_hand() -> None:
    frame = published_deduplication(released(gain=0.02))
    assert len(frame) == 8 * 2 * 2
    np.testing.assert_allclose(frame.value, 2)
    error = 1.959964 * 100 * np.sqrt(2 * 0.005**2 / 7)
    np.testing.assert_allclose(frame.high - frame.value, error)


@pytest.mark.parametrize("numbers", [None, released(), "empty"])
def test_every_figure_can_be_drawn(numbers) -> None:
    if numbers == "empty":
        numbers = SimpleNamespace(benchmarks=pd.DataFrame())
    found = published_scaling(numbers)
    for name, columns in COLUMNS.items():
        assert list(found.tables[name].columns) == columns
    for draw in DRAWINGS:
        drawing = getattr(figures, draw)(found, RESULT)
        assert drawing.svg == getattr(figures, draw)(found, RESULT).svg
    if numbers is None or not hasattr(numbers, "baselines"):
        assert {c["verdict"] for c in found.claims} == {"not testable here"}
        assert "PYTHIA_PUBLISHED_DIR" in found.claims[0]["published"]


@pytest.mark.skipif(
    not (Path(FOLDER) / "evals_zero_shot.csv").is_file(),
    reason=f"{results.VARIABLE} names no folder with the tables",
)
def test_the_verdicts_on_the_released_numbers() -> None:
    numbers = results.load(FOLDER)
    found = published_scaling(numbers)
    assert [c["verdict"] for c in found.claims] == [
        "reproduced", "holds", "reproduced", "not reproduced", "reproduced", "reproduced",
    ]  # fmt: skip
    assert "70m-deduped 0.261 at 23,000 to 0.192" in found.claims[1]["published"]
    assert "160m-deduped 0.398 at 93,000 to 0.342" in found.claims[1]["published"]
    batch = found.tables["batch"]
    last = batch[batch.tokens == batch.tokens.max()].groupby("model", sort=False).value
    for model, small, full in (
        ("70m", 0.392, 0.368), ("160m", 0.443, 0.423), ("410m", 0.499, 0.489),
        ("1b", 0.519, 0.514), ("1.4b", 0.538, 0.540),
    ):  # fmt: skip
        assert last.first()[model] == pytest.approx(small, abs=6e-4)
        assert last.last()[model] == pytest.approx(full, abs=6e-4)
    twins = published_deduplication(numbers).set_index(["shots", "step", "model"]).value
    expected = [-0.06, -0.19, 0.01, 0.55, 0.57, -0.10, 0.73, 1.06]
    np.testing.assert_allclose(twins[0, 143_000].loc[list(MODELS)], expected, atol=0.006)
    means = published_deduplication(numbers).groupby(["shots", "step"]).value.mean().round(2)
    assert means.to_dict() == {
        (0, 93_000): 0.70, (0, 143_000): 0.32, (5, 93_000): 0.50, (5, 143_000): 0.39,
    }  # fmt: skip
    final = found.tables["final"].set_index(["name", "task"]).value
    assert final["70m", "lambada_openai"] == pytest.approx(0.184553, abs=1e-5)
    assert final["12b-deduped", "sciq"] == pytest.approx(0.929, abs=5e-4)
    assert final["opt-6.7b", "piqa"] == pytest.approx(0.763, abs=5e-4)
