"""The page on the released models says what the configs say."""

from __future__ import annotations

import re
import shlex

import pytest
from places import ROOT
from pythia_book.pages import real_suite
from pythia_book.released.pile import tokenizer_at
from pythia_book.released.recipe import HARDWARE
from pythia_book.tasks.benchmarks import ALL_TASKS, load_items, task_named
from pythia_book.tasks.metrics import ScoredTask, build

from pythia_core.__main__ import parser
from pythia_core.evaluation import scoring
from pythia_core.suite import OFFICIAL_SIZES

PAGE = (ROOT / "book" / "real_suite.md").read_text("utf-8")


@pytest.mark.parametrize("name", OFFICIAL_SIZES)
def test_the_padding_rule_gives_the_released_vocabularies(name: str) -> None:
    padded = real_suite.padded_vocabulary(HARDWARE[name].tensor_parallel)
    assert padded == OFFICIAL_SIZES[name].vocab_size


def test_the_training_facts() -> None:
    frame = real_suite.fidelity_table().set_index("size")
    assert list(frame.index) == list(OFFICIAL_SIZES)
    assert frame.precision.value_counts().to_dict() == {"fp16": 9, "bf16": 1}
    assert set(frame.index[frame.init == "normal_scaled"]) == {"6.9b", "12b"}
    assert frame.head_dim.to_dict()["2.8b"] == 80 and frame.head_dim.to_dict()["1b"] == 256


def test_sizes_follow_from_the_parameters() -> None:
    frame = real_suite.reading_table().set_index("size")
    assert frame.stored["70m"] == 2 * 70_426_624
    assert frame.memory["12b"] == 4 * 11_846_072_320
    assert real_suite.reading().frame["One checkpoint"].tolist()[2] == "141\N{NO-BREAK SPACE}MB"


def test_the_page_shows_every_table_and_commands_that_parse() -> None:
    drawn = re.findall(r"^```\{drawing\} real_suite\.(\w+)$", PAGE, flags=re.MULTILINE)
    assert sorted(drawn) == ["commands", "fidelity", "forks", "reading"]
    for name in set(drawn) - {"commands"}:
        assert len(getattr(real_suite, name)().frame) == len(OFFICIAL_SIZES)
    commands = re.findall(r"^python -m pythia_core (.+?)(?: +#.*)?$", PAGE, flags=re.MULTILINE)
    assert len(commands) >= 15
    for line in [*commands, *real_suite.commands_table().command]:
        parser().parse_args(shlex.split(line))


def test_commands_download_the_sum_of_their_parts() -> None:
    """The sum of what is fetched, worked out here from sizes that the hub and the paper state."""
    frame = real_suite.commands_table().set_index("command")
    assert (frame.memory[frame.fetched > 0] > 0).all() and (frame.seconds >= 0).all()
    (fork,) = (row for row in frame.itertuples() if row.Index.startswith("continue "))
    assert fork.fetched == 2 * 70_426_624 + 2 * 10_000 * 1024 * 2049 * 2
    # matrices and unembedding; scores of attention, causal
    per_token = 6 * (6 * 12 * 512**2 + 50_304 * 512) + 6 * 6 * 512 * 2049
    assert fork.seconds == pytest.approx(2 * per_token * 10_000 * 2**21 / (0.4 * 989e12))
    (every,) = (row for row in frame.itertuples() if "--steps all" in row.Index)
    assert every.fetched == 154 * 2 * 70_426_624
    assert real_suite.commands().frame.iloc[0].tolist()[1:] == ["hashes only", "little", "seconds"]
    forks = real_suite.forks_table().set_index("size")
    assert forks.rows["12b"] == forks.rows["14m"] and not forks.fits["6.9b"]


@pytest.mark.wheels
@pytest.mark.parametrize("task", ["arc_easy", "winobias_mc", "arithmetic"])
def test_tokens_of_tasks_are_those_of_the_items(task: str) -> None:
    tokenizer = tokenizer_at("neox-20b")
    built = build(task, *load_items(task, 10**9), task_named(task).shots, tokenizer, 2048)
    if isinstance(built, ScoredTask):
        tokens = sum(b.ids.size for b in scoring.pack(built.requests, 2048).batches)
    else:
        tokens = sum(map(len, built.prompts)) + len(built.prompts) * task_named(task).max_new
    assert tokens == real_suite.TASK_TOKENS[task]


def test_every_built_in_task_is_counted() -> None:
    there = {name for name, task in ALL_TASKS.items() if task.source}
    assert set(real_suite.TASK_TOKENS) == there
