"""Computes the numbers in the evidence for errata.

Each function in COMPUTED or RELEASED returns the numbers for one erratum of catalog.toml, and
needs no network. Functions in COMPUTED only calculate what a source implies: they test nothing.
Functions in RELEASED compare scores in the tables of `released_tables`, and could contradict the
erratum. Effects that need training are measured by errata.study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pythia_book.published.results import HOW_TO_GET
from pythia_book.published.tables import CHANCE, TASKS
from pythia_book.stats import Z_95
from pythia_book.studies.suite.read_counts import OFFICIAL, pile_reads
from pythia_core.data.dedup import s_curve
from pythia_core.errors import count_of
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.schedule import OFFICIAL_STEPS, learning_rate, lr_floor_step

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.study import Tables

NO_SCORES = f"No released numbers: {HOW_TO_GET}.".replace("`", "")

Values = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """The evidence for an erratum, in words and as numbers."""

    text: str
    values: Values = field(default_factory=dict)
    """Numbers by name, for prose and tests; no two errata share a name."""
    released: str = ""
    """What the released scores show, or a note that they are missing."""


# --- arithmetic on what the sources say ------------------------------------------------------


def lr_floor() -> Values:
    """Compare the learning rate of the training code ("neox") with that of the paper ("paper").

    - `n_updates`: the number of updates of a run.
    - `floor_step`: the first update after the warm-up whose rate is a tenth of the peak rate.
    - `floor_percent`: `floor_step` in percent of `n_updates`.
    - `floor_paper_percent`: the paper's rate at `floor_step`, in percent of the peak rate.
    - `mean_lr_neox_percent`, `mean_lr_paper_percent`: the mean rates, in percent of the peak rate.
    """
    rates = {
        form: [
            learning_rate(step, OFFICIAL_STEPS, 1.0, 0.1, form=form)
            for step in range(OFFICIAL_STEPS)
        ]
        for form in ("neox", "paper")
    }
    floor = lr_floor_step(OFFICIAL_STEPS)
    return {
        "n_updates": OFFICIAL_STEPS,
        "floor_step": floor,
        "floor_percent": 100 * floor / OFFICIAL_STEPS,
        "floor_paper_percent": 100 * rates["paper"][floor],
        **{f"mean_lr_{form}_percent": 100 * sum(v) / OFFICIAL_STEPS for form, v in rates.items()},
    }


def epoch_boundary() -> Values:
    """Compute how much of two copies of the deduplicated Pile is read, and how often.

    - `rows_read_percent`: the percentage of rows that the run reads.
    - `read_TIMES_POLICY_percent`: the percentage of tokens read 0, 1 or 2 times. Under the policy
      "joint" both copies are shuffled together; "separate" reads one copy after the other, and
      every token at least once.
    """
    rows, tokens = OFFICIAL_STEPS * OFFICIAL["batch"], int(OFFICIAL["deduplicated"])
    return {"rows_read_percent": 100 * rows / ((2 * tokens - 1) // OFFICIAL["seq_len"])} | {
        f"read_{times}_{policy}_percent": 100 * share
        for policy, least in (("joint", 0), ("separate", 1))
        for times, share in enumerate(pile_reads("deduplicated", policy)[least:3], least)
    }


def initialization() -> Values:
    """Compute the standard deviations of initial weights at the shapes of 6.9B and 12B.

    - `std_SIZE`, `std_SIZE_output`: of most matrices and of output maps, by the code's default.
    - `std_SIZE_small`, `std_SIZE_wang`: the same by the rule for smaller sizes.
    - `init_times`, `init_output_times`: for 6.9B, the default divided by the other rule.
    """
    from pythia_core.model import init_deviations

    values = {}
    for name in ("6.9b", "12b"):
        shape = OFFICIAL_SIZES[name].d_model, OFFICIAL_SIZES[name].n_layers
        used, usual = (init_deviations(rule, *shape) for rule in ("normal_scaled", "small_wang"))
        parts = zip(("", "_output", "_small", "_wang"), used + usual, strict=True)
        values |= {f"std_{_key(name)}{part}": std for part, std in parts}
    return values | {
        "init_times": values["std_6_9b"] / values["std_6_9b_small"],
        "init_output_times": values["std_6_9b_output"] / values["std_6_9b_wang"],
    }


def gelu() -> Values:
    """Compute how the two forms of GELU (tanh and erf) differ, with torch's own functions.

    - `gelu_gap`: the largest absolute difference.
    - `gelu_where`: the |x| at which the difference is largest.
    - `gelu_half_percent`: the percentage of fp16 values x with 1/16 <= |x| <= 8 at which the two
      forms have different fp16 results.
    """
    import torch
    from torch.nn.functional import gelu as torch_gelu

    grid = torch.linspace(-8, 8, 1_600_001, dtype=torch.float64)
    gaps = (torch_gelu(grid, approximate="tanh") - torch_gelu(grid)).abs()
    halves = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite() & (halves.abs() <= 8) & (halves.abs() >= 2**-4)].double()
    tanh, erf = (torch_gelu(halves, approximate=form).half() for form in ("tanh", "none"))
    return {
        "gelu_gap": gaps.max().item(),
        "gelu_where": abs(grid[gaps.argmax()].item()),
        "gelu_half_percent": 100 * (tanh != erf).double().mean().item(),
    }


def adamw() -> Values:
    """Count the tensors of the 70M model with and without weight decay, as their names decide."""
    import torch

    from pythia_core.model import GPTNeoX
    from pythia_core.training.optimizer import is_decayed

    with torch.device("meta"):
        named = dict(GPTNeoX(OFFICIAL_SIZES["70m"].model()).named_parameters())
    decayed = [name for name in named if is_decayed(name)]
    embeddings = [name for name in decayed if name.startswith("embed")]
    share = sum(named[n].numel() for n in embeddings) / sum(named[n].numel() for n in decayed)
    return {
        "decayed_tensors": len(decayed),
        "undecayed_tensors": len(named) - len(decayed),
        "decayed_embeddings": len(embeddings),
        "decayed_embeddings_percent": 100 * share,
    }


def threshold() -> Values:
    """Compute the probability, in percent, that the hashes find a pair of similar documents.

    - `dedupe_bands`, `dedupe_hashes`: the bands, and the hashes in each, that datasketch chooses.
    - `caught_at_095_percent` etc.: at Jaccard similarity 0.95.
    """
    bands, hashes = datasketch_bands(0.87, 10)
    return {"dedupe_bands": bands, "dedupe_hashes": hashes} | {
        f"caught_at_0{hundredths}_percent": 100 * float(s_curve(hundredths / 100, bands, hashes))
        for hundredths in (95, 87, 80, 70)
    }


def datasketch_bands(similarity: float, hashes: int) -> tuple[int, int]:
    """Return the bands, and the hashes in each, that `MinHashLSH(similarity, hashes)` uses.

    datasketch takes the pair for which the areas of false positives (below `similarity`) and of
    false negatives (above it) have the smallest sum (`_optimal_param` in its lsh.py).
    """
    from scipy.integrate import quad

    def error(bands: int, each: int) -> float:
        false_positives = quad(s_curve, 0, similarity, args=(bands, each))[0]
        true_positives = quad(s_curve, similarity, 1, args=(bands, each))[0]
        return false_positives + 1 - similarity - true_positives

    pairs = [(b, r) for b in range(1, hashes + 1) for r in range(1, hashes // b + 1)]
    return min(pairs, key=lambda pair: error(*pair))


def vocabulary() -> Values:
    """Compute the padded vocabulary sizes.

    - `vocab_entries`: the number of tokens in the tokenizer's vocabulary.
    - `vocab_spaces`: the number of added tokens, which are runs of spaces.
    - `vocab_usable`: `vocab_entries` plus `vocab_spaces`.
    - `vocab_padded_R`: the padded size for R = 1, 2 or 4 tensor-parallel ranks.
    """
    entries, spaces = 50_254, 23
    usable = entries + spaces
    return {
        "vocab_entries": entries,
        "vocab_spaces": spaces,
        "vocab_usable": usable,
        **{f"vocab_padded_{r}": -(-usable // (128 * r)) * 128 * r for r in (1, 2, 4)},
    }


def names() -> Values:
    """Count the parameters of some official sizes, e.g. 70m.

    - `million_70m` etc.: all parameters, in millions.
    - `inner_percent_70m` etc.: the percentage of parameters outside the embeddings.
    """
    values = {}
    for name in ("14m", "70m", "160m", "1.4b", "12b"):
        model = OFFICIAL_SIZES[name].model()
        values[f"million_{_key(name)}"] = model.n_params / 1e6
        values[f"inner_percent_{_key(name)}"] = 100 * model.n_params_non_embedding / model.n_params
    return values


def _key(size: str) -> str:
    """Replace the dot in a size such as "6.9b" by "_", for use in a key."""
    return size.replace(".", "_")


# --- released scores -------------------------------------------------------------------------

LATE = 134_000
"""Means over the end of training start at this step. The shorter swap has begun by then."""
ANSWERS = 104
"""The number of items of WSC. Always giving the same answer is right on 38 or on 66 of them."""


def released_tables(released: Published) -> Tables:
    """Return the released scores that the errata cite, as tables.

    - `twins`: `model`, `intervention`, `percent`, `stderr`. CrowS-Pairs for gender, in percent,
      mean over the steps from LATE on.
    - `final`: `task`, `metric`, `model`, `deduped`, `value`, `stderr`. Zero-shot scores after
      training, as fractions.
    - `winobias`: `prompt`, `model`, `intervention`, `pro`, `anti`. Exact matches on pro- and
      anti-stereotypical items of type 1, in percent, mean over the steps from LATE on.
    - `wsc`: `shots`, `stuck`. The fraction of all released WSC scores that are exactly 38 of 104.
    - `compared`: see `equal_scores`.
    - `early`: see `equal_steps`.
    """
    crows = released.crows_gender()
    late = crows[crows.step >= LATE].assign(
        percent=lambda f: 100 * f.value, stderr=lambda f: 100 * f.stderr
    )
    twins = late.groupby(["model", "intervention"], sort=False)[["percent", "stderr"]].mean()
    rows = released.benchmarks
    rows = rows[rows.task.isin(TASKS)]
    final = rows[
        (rows.shots == 0) & (rows.step == OFFICIAL_STEPS) & rows.metric.isin(("acc", "acc_norm"))
    ]
    wsc = rows[(rows.metric == "acc") & (rows.task == "wsc")]
    stuck = (wsc.value.sub(38 / ANSWERS).abs() < 1e-5).groupby(wsc.shots).mean()
    compared = equal_scores(released.released_benchmarks)
    table = released.table
    em = table[(table.suite == "v1") & (table.metric == "em") & (table.step >= LATE)]
    em = em[em.task.isin([f"wino_bias_type1_{side}" for side in ("pro", "anti")])]
    winobias = em.assign(side=em.task.str.rsplit("_").str[-1], value=100 * em.value).pivot_table(
        index=["prompt", "model", "intervention"], columns="side", values="value", sort=False
    )
    return {
        "winobias": winobias.reindex(columns=["pro", "anti"]).reset_index(),
        "twins": twins.reset_index(),
        "final": final[["task", "metric", "model", "deduped", "value", "stderr"]],
        "wsc": stuck.rename("stuck").reset_index(),
        "compared": compared,
        "early": equal_steps(released.released_benchmarks),
    }


def equal_scores(raw: pd.DataFrame | None) -> pd.DataFrame:
    """Compare the scores of standard and deduplicated models of the same size.

    - `model`: the size.
    - `shots`, `step`: steps from 2 on.
    - `equal`: whether the two models agree in every score that both have.
    """
    import pandas as pd

    keys = ["model", "shots", "step"]
    if raw is None or raw.empty:
        return pd.DataFrame(columns=[*keys, "equal"])
    raw = raw.assign(deduped=raw.deduped.astype(bool))
    wide = raw.pivot_table(index=[*keys, "task", "metric"], columns="deduped", values="value")
    wide = wide.dropna()
    equal = (wide[False] == wide[True]).groupby(level=keys).all().reset_index(name="equal")
    return equal[equal.step > 1].reset_index(drop=True)


def equal_steps(raw: pd.DataFrame | None) -> pd.DataFrame:
    """Compare the zero-shot scores of each model at step 1 with those at steps 0 and 2.

    - `model`, `deduped`
    - `other`: 0 or 2, the step that is compared with step 1.
    - `scores`, `equal`: the number of scores that both steps have, and how many of them are equal.
    """
    import pandas as pd

    keys = ["model", "deduped"]
    columns = [*keys, "other", "scores", "equal"]
    if raw is None or raw.empty:
        return pd.DataFrame(columns=columns)
    early = raw[(raw.shots == 0) & raw.step.isin((0, 1, 2))]
    wide = early.pivot_table(index=[*keys, "task", "metric"], columns="step", values="value")
    frames = [
        pair.set_axis(["a", "b"], axis=1)
        .assign(equal=lambda f: f.a == f.b)
        .groupby(level=keys)
        .equal.agg(scores="size", equal="sum")
        .reset_index()
        .assign(other=other)
        for other in (0, 2)
        if {1, other} <= set(wide.columns)
        for pair in [wide[[1, other]].dropna()]
    ]
    return pd.concat(frames)[columns] if frames else pd.DataFrame(columns=columns)


def released_first_update(tables: Tables) -> Values | None:
    """Count the models whose zero-shot scores at step 1 all equal those at another step.

    - `n_models_early`: the number of models compared.
    - `n_scores`: the smallest number of scores compared for one of them.
    - `same_as_0`, `same_as_2`: the number of models with equal scores at steps 1 and 0, or 1 and 2.

    The result is None without scores.
    """
    early = tables["early"]
    if early.empty:
        return None
    same = early[early["equal"] == early.scores].groupby("other").size()
    return {
        "n_models_early": early.groupby("other").size().max(),
        "n_scores": early.scores.min(),
        **{f"same_as_{step}": same.get(step, 0) for step in (0, 2)},
    }


ARM_NAMES = {"none": "", "swap_last_7pct": "7 % swap", "swap_last_21pct": "21 % swap"}


def released_winobias(tables: Tables) -> Values | None:
    """Return WinoBias accuracies with and without the swap; None without released scores.

    - `prompts`: a text with the accuracies in percent, on pro- and anti-stereotypical sentences.
    - `least_ratio`, `most_ratio`: the range of the swapped models' accuracies, relative to their
      baselines, by the prompt "refers_to".
    - `least_other`, `most_other`: the same by the other prompt.
    """
    rows = tables["winobias"]
    if rows.empty:
        return None
    parts = []
    for prompt, of_prompt in rows.groupby("prompt", sort=True):
        cells = [
            f"{row.model} {ARM_NAMES[row.intervention]}".strip()
            + f" {row.pro:.1f} / {row.anti:.1f}"
            for row in of_prompt.itertuples()
        ]
        parts.append(f'"{prompt}": {", ".join(cells)}')
    sides = rows.set_index(["prompt", "model", "intervention"])[["pro", "anti"]]
    baselines = sides.xs("none", level="intervention")
    swapped = sides.drop("none", level="intervention").reset_index("intervention", drop=True)
    ratios = swapped / baselines.reindex(swapped.index)
    refers_to = ratios.index.get_level_values("prompt") == "refers_to"
    numbers: Values = {"prompts": "; ".join(parts)}
    for name, chosen in (("ratio", ratios[refers_to]), ("other", ratios[~refers_to])):
        numbers |= {f"least_{name}": chosen.min().min(), f"most_{name}": chosen.max().max()}
    return numbers


def released_twins(tables: Tables) -> Values | None:
    """List the gender scores on CrowS-Pairs with and without the pronoun swap; None without scores.

    - `twins`: the scores in percent, as text.
    - `error`: their mean standard error, in points.
    - `least_change`: the lowest change from a control, in points.
    - `needed`: the change below which a fall would be significant if the models shared no items.
    """
    rows = tables["twins"]
    if rows.empty:
        return None
    means = rows.set_index(["model", "intervention"]).percent
    twins = [
        f"{model} " + ", ".join(f"{label} {means[model, arm]:.1f}".strip()
                                for arm, label in ARM_NAMES.items() if (model, arm) in means)
        for model in dict.fromkeys(rows.model)
    ]  # fmt: skip
    controls = means.xs("none", level="intervention")
    changes = means.drop("none", level="intervention").sub(controls, level="model")
    error = float(rows.stderr.mean())
    return {
        "twins": "; ".join(twins),
        "error": error,
        "least_change": float(changes.min()),
        "needed": -Z_95 * math.sqrt(2) * error,
    }


def guessing(task: str) -> float:
    """Return the accuracy of guessing on a task, as a fraction.

    For WSC, guessing means always giving the answer that is right more often.
    """
    return 66 / ANSWERS if task == "wsc" else CHANCE[task] / 100


def released_tasks(tables: Tables) -> Values | None:
    """Count, for each task, the released models that are better than guessing; None without scores.

    A model is better than guessing if its 95 % interval after training lies above guessing.

    - `n_models`: the number of released models.
    - `above`: for each task, the number of models that are better than guessing, as text.
    - `flat`: the tasks on which no model is better than guessing, as text.
    - `stuck`: the percentage of WSC scores that are exactly 38 of 104, as text.
    - `logiqa_norm`: the number of models that are better than guessing on LogiQA by acc_norm.
    - `logiqa_norm_most`: the highest acc_norm on LogiQA, in percent.
    """
    final = tables["final"]
    if final.empty:
        return None
    above = final[final.value - Z_95 * final.stderr > final.task.map(guessing)]
    n = above[above.metric == "acc"].groupby("task").size().reindex(TASKS, fill_value=0)
    norm = final[(final.metric == "acc_norm") & (final.task == "logiqa")]
    stuck = tables["wsc"].itertuples()
    return {
        "n_models": final[final.metric == "acc"].groupby("task").size().max(),
        "above": ", ".join(f"{task} {n[task]}" for task in TASKS),
        "flat": ", ".join(task for task in TASKS if not n[task]) or "none",
        "stuck": ", ".join(f"{100 * row.stuck:.0f} % of all {row.shots}-shot scores"
                           for row in stuck),
        "logiqa_norm": int(((above.metric == "acc_norm") & (above.task == "logiqa")).sum()),
        "logiqa_norm_most": 100 * float(norm.value.max()) if len(norm) else float("nan"),
    }  # fmt: skip


def released_2_8b(tables: Tables) -> Values | None:
    """Count the steps at which standard and deduplicated twins agree in every score.

    `zero_shot` and `five_shot` are for 2.8B, `others` for all other sizes. Each value is a text:
    the number of these steps, the first and the last one. The result is None without scores.
    """
    compared = tables["compared"]
    if compared.empty:
        return None
    equal = compared[compared["equal"].astype(bool)]

    def summarized(steps: Iterable[int]) -> str:
        """Return the number of steps, the first step and the last step as text."""
        ordered = sorted(steps)
        if not ordered:
            return "no step"
        span = f" to {ordered[-1]:,}" if len(ordered) > 1 else ""
        return f"{count_of(len(ordered), 'step')} ({ordered[0]:,}{span})"

    equal_2_8b = equal[equal.model == "2.8b"]
    return {
        "zero_shot": summarized(equal_2_8b[equal_2_8b.shots == 0].step),
        "five_shot": summarized(equal_2_8b[equal_2_8b.shots == 5].step),
        "others": summarized(equal[equal.model != "2.8b"].step),
    }


COMPUTED: dict[str, Callable[[], Values]] = {
    "lr-floor": lr_floor,
    "epoch-boundary": epoch_boundary,
    "initialisation": initialization,
    "gelu": gelu,
    "adamw": adamw,
    "threshold": threshold,
    "vocabulary": vocabulary,
    "names": names,
}
RELEASED: dict[str, Callable[[Tables], Values | None]] = {
    "first-update": released_first_update,
    "swap-scores": released_twins,
    "winobias-prompt": released_winobias,
    "tasks": released_tasks,
    "evals-2.8b": released_2_8b,
}
