"""Benchmark items: their prompts, errors in the user's files, and the items in the wheels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pythia_book.tasks.benchmarks import (
    ALL_TASKS,
    N_EXAMPLES,
    TASKS,
    GenerationTask,
    bare_words,
    load_items,
    task_named,
)
from task_items import ITEMS, WINOBIAS, fake_items

from pythia_core.errors import DataError

MORE_TASKS = {name: task for name, task in ALL_TASKS.items() if name not in TASKS}


def write(folder: Path, task: str, n: int = 24) -> Path:
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in fake_items(task, n)), "utf-8")
    return path


def test_prompts_are_as_written_by_hand() -> None:
    prompt = {name: task.prompt(ITEMS[name]) for name, task in TASKS.items()}
    assert prompt["piqa"].contexts[0] == "Question: Boil water\nAnswer:"
    assert prompt["piqa"].continuations == (" Use a pot.", " Use a hat.")
    assert prompt["arc_easy"].gold == 1
    assert prompt["arc_easy"].lengths == (4, 5, 4)
    assert prompt["sciq"].contexts[0] == "Ice floats.\nQuestion: What floats?\nAnswer:"
    assert (prompt["sciq"].gold, prompt["sciq"].continuations[3]) == (3, " ice")
    assert prompt["winogrande"].contexts == ("Ann met Eve, but Ann", "Ann met Eve, but Eve")
    assert prompt["winogrande"].continuations == (" left.", " left.")
    assert prompt["winogrande"].gold == 1
    assert prompt["hellaswag"].contexts[0] == "Cooking: A man cuts bread. He"
    assert prompt["hellaswag"].continuations[0] == " eats it. Done"
    assert prompt["lambada_openai"].continuations == (" garden",)
    assert prompt["lambada_openai"].solved == "She opened the door and saw the  garden"


@pytest.mark.parametrize("task", TASKS)
def test_items_are_read_from_a_folder(task: str, tmp_path: Path) -> None:
    path = write(tmp_path, task)
    items, examples = load_items(task, 5, tmp_path)
    assert (len(items), len(examples)) == (5, N_EXAMPLES)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(reversed(lines)))
    assert load_items(task, 5, tmp_path) == (items, examples)  # sorted by hash
    more, _ = load_items(task, 8, tmp_path)
    assert more[:5] == items
    assert not [item for item in more if item in examples]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a JSON object"),
        ("[1]", "a JSON object was expected"),
        ('{"goal": "x"}', "missing fields: label, sol1, sol2"),
        ('{"goal": "x", "sol1": "", "sol2": "b", "label": 0}', "a text is empty"),
        ('{"goal": "x", "sol1": "a", "sol2": "b", "label": 7}', "no answer number 7"),
        ('{"goal": "x", "sol1": 3, "sol2": "b", "label": 0}', "not an item of piqa"),
    ],
)
def test_a_broken_line_is_reported_with_its_number(line: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, "piqa")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], line, *lines[6:]]))
    with pytest.raises(DataError, match=rf"piqa\.jsonl:7:? .*{words}"):
        load_items("piqa", 5, tmp_path)


def test_items_are_read_strictly_as_utf_8(tmp_path: Path) -> None:
    path = write(tmp_path, "piqa")
    items, raw = load_items("piqa", 5, tmp_path), path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))
    assert load_items("piqa", 5, tmp_path) == items
    first = {"goal": "caf\u00e9", "sol1": "a", "sol2": "b", "label": 0}
    line = json.dumps(first, ensure_ascii=False)
    for text, words in (
        (line.encode("latin-1"), r"piqa\.jsonl:1: this text is not UTF-8 \(byte 0xe9 at offset 13"),
        (line.encode("utf-16"), r"piqa\.jsonl:1: this text is not UTF-8"),
        (line.replace("caf", "\\ud83d").encode(), r"piqa\.jsonl:1 .*surrogates not allowed"),
        (line.replace('"sol1"', '"goal"').encode(), r"piqa\.jsonl:1: .*'goal' appears twice"),
        (b"[" * 100_000, r"piqa\.jsonl:1: this line is not a JSON object"),
    ):
        path.write_bytes(text + b"\n" + raw)
        with pytest.raises(DataError, match=words):
            load_items("piqa", 5, tmp_path)


def test_unknown_tasks_and_missing_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown task 'pica'.*Did you mean 'piqa'"):
        task_named("pica")
    with pytest.raises(
        DataError, match=r"the items of sciq are missing, because .*sciq\.jsonl does not exist"
    ):
        load_items("sciq", 5, tmp_path)
    write(tmp_path, "sciq", N_EXAMPLES)
    with pytest.raises(DataError, match=r"has only 16 items of sciq; more than 16 are needed"):
        load_items("sciq", 5, tmp_path)


@pytest.mark.wheels
def test_every_item_of_the_wheels_is_valid() -> None:
    counts = {task: len(load_items(task, 100_000)[0]) + N_EXAMPLES for task in TASKS}
    assert counts["piqa"] == 1838
    assert counts["winogrande"] == 1267
    assert counts["lambada_openai"] == 5151  # 5,153 with two duplicates
    assert (counts["arc_easy"], counts["arc_challenge"]) == (570, 299)
    assert (counts["sciq"], counts["hellaswag"]) == (1000, 10_042)


# --- the tasks beyond the seven: generated answers, pairs, items from the user ---------------


def test_prompts_of_more_tasks_are_as_written_by_hand() -> None:
    prompt = {name: task.prompt(ITEMS[name]) for name, task in MORE_TASKS.items()}
    assert prompt["crows_pairs_english"].contexts == ("", "")
    assert prompt["crows_pairs_english"].continuations[0] == "Old people are slow."
    choice = prompt["winobias_mc"]
    assert choice.contexts[0].startswith("The driver met the nurse, because _ was lost.\n")
    assert choice.continuations[choice.gold] == " she"
    assert prompt["winobias_em"].contexts == (
        'The driver met the nurse, because she was lost.\nHere, what does "she" stand for?',
        'What does "she" refer to in the following sentence?\n'
        "The driver met the nurse, because she was lost.",
        'The driver met the nurse, because he was lost.\nHere, what does "he" stand for?',
        'What does "he" refer to in the following sentence?\n'
        "The driver met the nurse, because he was lost.",
    )
    assert prompt["wsc"].contexts[0] == (
        "Passage: Bob paid for Charlie's tea. *He* is grateful, and didn't\"forget\"it.\n"
        'Question: In the passage above, does the pronoun "*He*" refer to "*Charlie*"?\nAnswer:'
    )
    assert (prompt["wsc"].continuations, prompt["wsc"].gold) == ((" no", " yes"), 1)
    assert prompt["logiqa"].contexts[0] == (
        "Passage: All cats purr.\nQuestion: Which follows?\nChoices:\nA. Dogs purr.\n"
        "B. Some cats bark.\nC. Tom, a cat, purrs.\nD. None.\nAnswer:"
    )
    assert prompt["logiqa"].gold == 2
    assert prompt["arithmetic"].contexts == ("Q:What is 12 plus 7? A:",)
    assert prompt["arithmetic"].solved == "Q:What is 12 plus 7? A: 19"
    assert prompt["triviaqa"].solved == "Q: What is wet? \n A: Water"
    times = task_named("arithmetic").prompt(ITEMS["arithmetic"] | {"operation": "*"})
    assert times.contexts == ("Q:What is 12 times 7? A:",)


def test_a_reflexive_is_blanked_with_its_pronoun() -> None:
    item = WINOBIAS | {
        "sentence_pro": "The cook saw that she hurt herself.",
        "sentence_anti": "The cook saw that he hurt himself.",
    }
    context = task_named("winobias_mc").prompt(item).contexts[0]
    assert context.startswith("The cook saw that _ hurt _.\n")


@pytest.mark.parametrize(
    ("task", "text", "read"),
    [
        ("arithmetic", " 19.\n", "19"),
        ("arithmetic", " it is 1234567", "12345"),
        ("arithmetic", " nineteen", ""),
        ("triviaqa", " The Sea! ", "the sea"),
        ("winobias_em", "The nurse.", "the nurse"),
    ],
)
def test_the_compared_part_of_an_answer(task: str, text: str, read: str) -> None:
    assert MORE_TASKS[task].answer(text) == read
    assert bare_words(" A, b; c ") == "a b c"


def test_metrics_weight_every_question() -> None:
    metrics = MORE_TASKS["winobias_em"].metrics
    assert sum(metrics["em"].values()) == 1 and sum(metrics["net"].values()) == 0
    for task in MORE_TASKS.values():
        if isinstance(task, GenerationTask):
            n_questions = len(task.prompt(ITEMS[task.name]).contexts)
            assert {q for w in task.metrics.values() for q in w} == set(range(n_questions))


def test_tasks_are_found_by_name() -> None:
    assert len(TASKS) == 7
    assert len(ALL_TASKS) >= 10
    assert all(task.name == name for name, task in ALL_TASKS.items())
    with pytest.raises(DataError, match=r"unknown task 'crows_pairs'.*Did you mean 'crows_pairs_e"):
        task_named("crows_pairs")


@pytest.mark.parametrize("task", MORE_TASKS)
def test_items_of_more_tasks_are_read_from_a_folder(task: str, tmp_path: Path) -> None:
    path = tmp_path / f"{task}.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in fake_items(task, 24)), "utf-8")
    items, examples = load_items(task, 5, tmp_path)
    assert (len(items), len(examples)) == (5, task_named(task).n_examples)
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match=rf"{task}\.jsonl:25 is not an item of {task}: missing"):
        load_items(task, 5, tmp_path)


@pytest.mark.wheels
def test_every_item_of_more_tasks_is_valid() -> None:
    available = [name for name, task in MORE_TASKS.items() if task.source]
    counts = {task: len(load_items(task, 100_000)[0]) for task in available}
    assert counts["crows_pairs_english_gender"] == 127
    assert 1000 < counts["crows_pairs_english"] < 1508  # smaller than the original
    assert counts["winobias_mc"] == counts["winobias_em"] == 761
    assert counts["arithmetic"] > 1000
    assert counts["triviaqa"] == 7993 - 16
    for item in load_items("arithmetic", 100_000)[0]:
        first, second = item["first"], item["second"]
        assert item["answer"] == (first + second if item["operation"] == "+" else first * second)
    for item in load_items("winobias_mc", 100_000)[0]:
        assert "_" in task_named("winobias_mc").prompt(item).contexts[0]


@pytest.mark.parametrize("task", ["wsc", "logiqa"])
def test_items_that_no_package_has_must_be_supplied(task: str) -> None:
    with pytest.raises(DataError, match=rf"{task}\.jsonl as --items.*lm_eval --tasks {task}"):
        load_items(task, 5)
