"""Evidence from what was released: code, checkpoints and scores of Pythia.

Released scores are read where a copy of them is (pythia_book.published.results). What they say is
kept in `Evidence.released`, apart from what is computed here, because it is shown and never
recorded; without a copy that says how to get one. Nothing here needs a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pythia_book.published.results import HOW_TO_GET
from pythia_book.published.tables import TASKS, released_benchmarks
from pythia_book.studies.errata.evidence import Evidence
from pythia_core.training.schedule import LOG_STEPS, OFFICIAL_STEPS, checkpoint_steps

if TYPE_CHECKING:
    from pythia_book.published.results import Published

NO_SCORES = f"The released scores are not here: {HOW_TO_GET}.".replace("`", "")
Z = 1.959964
"""Standard errors on either side of a 95 % interval."""


def swap_code(released: Published | None) -> Evidence:
    """The public function's two steps on a sentence, and the released scores of the twins."""
    words = {"he": "she", "his": "her", "him": "her"}
    sentence = "he said that his work had made him what he was".split(" ")
    built = [words.get(word, word) for word in sentence]
    returned = list(sentence)  # the code then tokenizes the string it began with

    def changed(text: list[str]) -> int:
        return sum(a != b for a, b in zip(sentence, text, strict=True))

    text = (
        f"A sentence with {changed(built)} masculine pronouns: the string that the code builds has "
        f"{changed(built)} of them changed, what it returns {changed(returned)}."
    )
    values = {"swap_built": changed(built), "swap_returned": changed(returned)}
    if released is None:
        return Evidence(text, values, NO_SCORES)
    crows = released.crows_gender()
    late = crows[crows.step >= 134_000]
    means = 100 * late.groupby(["model", "intervention"]).value.mean()
    error = 100 * float(late.stderr.mean())
    arms = {"none": "", "swap_last_7pct": "7 % swap", "swap_last_21pct": "21 % swap"}
    parts = [
        f"{model} " + ", ".join(f"{label} {means[model, arm]:.1f}".strip()
                                for arm, label in arms.items() if (model, arm) in means)
        for model in dict.fromkeys(late.model)
    ]  # fmt: skip
    words_ = (
        "Released, CrowS-Pairs gender, percent of stereotyped choices from step 134,000 on: "
        f"{'; '.join(parts)}; the standard error of one score is {error:.1f}."
    )
    return Evidence(text, values, words_)


_ONE, _TWO = "main", "another file"
REPORTED = {
    **dict.fromkeys((*LOG_STEPS, *range(1000, 53_001, 1000)), _ONE),
    **dict.fromkeys(
        [1000 * k for k in (55, 60, 65, 70, 80, 90, 100, 103, 110, 120, 130, 140)], _ONE
    ),
    **dict.fromkeys([1000 * k for k in (54, 56, 57, 58, 59, 61, 62, 63, 64, 143)], _TWO),
}
"""Step -> the file its branch serves, where several serve one (an issue of EleutherAI/pythia)."""


def repeated_checkpoints() -> Evidence:
    """This library's audit on a made-up set that repeats as was reported, and on a sound one."""
    import torch

    from pythia_core.training.checkpoint import repeated, sha256_tensors

    steps = checkpoint_steps(OFFICIAL_STEPS)

    def hashes(served: dict[int, str]) -> dict[int, str]:
        number = {_ONE: -1.0, _TWO: -2.0}
        weights = {s: torch.tensor([number.get(served.get(s, ""), float(s))]) for s in steps}
        return {s: sha256_tensors({"weight": w}) for s, w in weights.items()}

    groups = sorted((len(g) for g in repeated(hashes(REPORTED))), reverse=True)
    sound = len(repeated(hashes({})))
    own = len(steps) - sum(groups)
    return Evidence(
        f"{len(steps)} made-up checkpoints that repeat as was reported for the 2.8B model: "
        f"comparing hashes finds {len(groups)} groups of equal ones, of "
        f"{' and '.join(map(str, groups))} steps, {sum(groups)} in all; {own} are their own. On a "
        f"sound set it finds {sound}.",
        {"repeated_steps": sum(groups), "repeated_own": own, "repeated_groups": len(groups)},
    )


GUESSING = dict.fromkeys(TASKS, 0.25) | {
    "lambada_openai": 0.0, "piqa": 0.5, "winogrande": 0.5, "wsc": 0.5,
}  # fmt: skip
"""What guessing scores: one over the number of answers."""


def tasks(released: Published | None) -> Evidence:
    """Whether any released model is above guessing with its interval, task by task."""
    text = (
        "A task says nothing here if no model of any size, at the end of training and zero-shot, "
        "has its 95 % interval above guessing: "
        + ", ".join(f"{task} {100 * GUESSING[task]:.0f} %" for task in TASKS)
        + "."
    )
    if released is None or released.benchmarks.empty:
        return Evidence(text, {}, NO_SCORES)
    rows = released.benchmarks
    acc = rows[(rows.metric == "acc") & rows.task.isin(TASKS)]
    final = acc[(acc.shots == 0) & (acc.step == OFFICIAL_STEPS)]
    above = final[final.value - Z * final.stderr > final.task.map(GUESSING)]
    n = above.groupby("task").size().reindex(TASKS, fill_value=0)
    flat = [task for task in TASKS if not n[task]]
    wsc = acc[acc.task == "wsc"]
    stuck = 100 * (wsc.value.sub(38 / 104).abs() < 1e-5).groupby(wsc.shots).mean()
    words = (
        f"Models above guessing, of {final.groupby('task').size().max()}: "
        + ", ".join(f"{task} {n[task]}" for task in TASKS)
        + f". At guessing for all sizes: {', '.join(flat) or 'none'}. WSC is exactly 38 of 104 "
        "(one answer given always) in "
        + ", ".join(f"{share:.0f} % of all {shots}-shot scores" for shots, share in stuck.items())
        + "."
    )
    return Evidence(text, {}, words)


def two_eight_b(released: Published | None) -> Evidence:
    """Steps at which all released scores of a model and its deduplicated twin are equal."""
    text = (
        "The released scores of the two 2.8B models are compared step by step, all tasks and "
        "metrics, and so are those of the other sizes. Steps 0 and 1 may be equal: twins start "
        "from the same weights."
    )
    raw = released_benchmarks(released.path) if released is not None else None
    if raw is None or raw.empty:
        return Evidence(text, {}, NO_SCORES)
    raw = raw.assign(deduped=raw.deduped.astype(bool))
    keys = ["model", "shots", "step"]
    wide = raw.pivot_table(index=[*keys, "task", "metric"], columns="deduped", values="value")
    wide = wide.dropna()
    same = (wide[False] == wide[True]).groupby(level=keys).all().reset_index(name="same")
    same = same[same.same & (same.step > 1)]

    def listed(steps: Iterable[int]) -> str:
        ordered = sorted(steps)
        return f"{len(ordered)} steps ({ordered[0]:,} to {ordered[-1]:,})" if ordered else "no step"

    mine = same[same.model == "2.8b"]
    words = (
        f"2.8B, equal in every score: zero-shot at {listed(mine[mine.shots == 0].step)}, five-shot "
        f"at {listed(mine[mine.shots == 5].step)}. All other sizes together: "
        f"{listed(same[same.model != '2.8b'].step)}."
    )
    return Evidence(text, {}, words)
