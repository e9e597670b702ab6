"""Compute the numbers in the evidence for errata, from this library or from released scores.

Each function in COMPUTED or RELEASED returns the numbers for one erratum of catalogue.toml. It
takes a second or two and needs no network. Functions in RELEASED read the tables of
`released_tables`. Effects that need training are measured by errata.study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.published.results import HOW_TO_GET
from pythia_book.published.tables import CHANCE, TASKS
from pythia_book.stats import Z_95
from pythia_book.studies.suite.read_counts import OFFICIAL, pile_reads
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.data.dedup import RECIPES, s_curve
from pythia_core.data.order import RowOrder
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.schedule import OFFICIAL_STEPS, learning_rate

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.study import Tables

TINY = RunConfig(
    ModelConfig(n_layers=2, d_model=16, n_heads=2, vocab_size=128, max_seq_len=16),
    DataConfig(seq_len=16),
    TrainConfig(steps=100, batch_size=4, lr_max=1e-2),
)
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


# --- optimisation ----------------------------------------------------------------------------


def lr_floor() -> Values:
    """Compare the learning rate of the training code ("neox") with that of the paper ("paper").

    - `n_updates`: the number of updates of a run.
    - `floor_step`: the first step at which the code's rate is a tenth of the peak rate.
    - `floor_percent`: `floor_step` in percent of `n_updates`.
    - `at_floor`: "all" if the code's rate is a tenth at all later steps too, else "not all".
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
    warm = OFFICIAL_STEPS // 100
    floor = next(step for step in range(warm, OFFICIAL_STEPS) if rates["neox"][step] == 0.1)
    return {
        "n_updates": OFFICIAL_STEPS,
        "floor_step": floor,
        "floor_percent": 100 * floor / OFFICIAL_STEPS,
        "at_floor": "all" if all(rate == 0.1 for rate in rates["neox"][floor:]) else "not all",
        "floor_paper_percent": 100 * rates["paper"][floor],
        **{f"mean_lr_{form}_percent": 100 * sum(v) / OFFICIAL_STEPS for form, v in rates.items()},
    }


def first_update() -> Values:
    """Count the tensors of a tiny model that keep their initial values in the first two updates.

    The result has the number of tensors and, for each update, its learning rate and the number of
    tensors still unchanged. The first learning rate is 0, except in the run whose keys end in
    `_with_switch`.
    """
    import torch

    from pythia_core.training.trainer import Trainer

    batches = np.random.default_rng(0).integers(128, size=(2, 4, 17))
    equal, rates = {}, {}
    for at_zero in (True, False):
        train = replace(TINY.train, first_update_at_lr_zero=at_zero)
        trainer = Trainer(replace(TINY, train=train), torch.device("cpu"))
        before = {name: p.clone() for name, p in trainer.weights().items()}
        rates[at_zero], equal[at_zero] = [], []
        for batch in batches:
            rates[at_zero].append(trainer.update(batch)[1])
            after = trainer.weights()
            equal[at_zero].append(sum(torch.equal(before[n], after[n]) for n in before))
    return {
        "first_tensors": len(before),
        "first_lr": rates[True][0],
        "second_lr": rates[True][1],
        "first_equal_tensors": equal[True][0],
        "second_equal_tensors": equal[True][1],
        "first_lr_with_switch": rates[False][0],
        "first_equal_tensors_with_switch": equal[False][0],
    }


def adamw() -> Values:
    """Count the tensors of the 70M model that weight decay changes, and compare AdamW with Adam.

    Each optimizer takes one step from weights of 0.5 with gradients of 0, so only weight decay
    acts. `decay_percent` is the percentage by which AdamW shrinks the decayed weights.
    `undecayed_step` and `adam_l2_step` are the changes of AdamW's other weights, and of all weights
    under Adam with an L2 penalty.
    """
    import torch

    from pythia_core.model import GPTNeoX
    from pythia_core.training.optimizer import FlatAdamW, FlatParameters, is_decayed

    with torch.device("meta"):
        named = dict(GPTNeoX(OFFICIAL_SIZES["70m"].model()).named_parameters())
    decayed = [name for name in named if is_decayed(name)]
    embeddings = [name for name in decayed if name.startswith("embed")]
    share = sum(named[n].numel() for n in embeddings) / sum(named[n].numel() for n in decayed)

    flat = FlatParameters(GPTNeoX(TINY.model), torch.float32)
    flat.flat.fill_(0.5)
    plain = torch.nn.Parameter(flat.flat.clone())
    plain.grad = torch.zeros_like(plain)
    lr, decay = 0.01, TINY.train.weight_decay
    FlatAdamW(flat, TINY.train).step(lr, 1)
    torch.optim.Adam([plain], lr, weight_decay=decay).step()
    return {
        "optimizer_tensors": len(named),
        "decayed_tensors": len(decayed),
        "undecayed_tensors": len(named) - len(decayed),
        "decayed_embeddings": len(embeddings),
        "decayed_embeddings_percent": 100 * share,
        "decay_lr": lr,
        "decay": decay,
        "decay_percent": 100 * (1 - flat.flat[: flat.n_decayed].mean().item() / 0.5),
        "undecayed_step": (flat.flat[flat.n_decayed :] - 0.5).abs().max().item(),
        "adam_l2_step": 0.5 - plain.mean().item(),
    }


def _key(size: str) -> str:
    """Replace the dot in a size such as "6.9b" by "_", for use in a key."""
    return size.replace(".", "_")


# --- model -----------------------------------------------------------------------------------


def initialisation() -> Values:
    """Compare the rule for the initial weights of 6.9B and 12B with the rule for smaller sizes.

    The values are standard deviations in an MLP's first and second matrix, for 6.9B and 12B:

    - `std_SIZE`, `std_SIZE_output`: first and second matrix, by the rule for 6.9B and 12B.
    - `std_SIZE_small`, `std_SIZE_wang`: first and second matrix, by the rule for smaller sizes.
    - `init_times`, `init_output_times`: for 6.9B, the first rule's value divided by the second
      rule's.
    """
    from pythia_core.model import init_deviations

    values = {}
    for name in ("6.9b", "12b"):
        config = OFFICIAL_SIZES[name].model()
        trained, others = sampled_std(config), sampled_std(replace(config, init="small_wang"))
        parts = zip(("", "_output", "_small", "_wang"), trained + others, strict=True)
        values |= {f"std_{_key(name)}{part}": std for part, std in parts}
    shape = OFFICIAL_SIZES["6.9b"].d_model, OFFICIAL_SIZES["6.9b"].n_layers
    rules = (init_deviations(rule, *shape) for rule in ("normal_scaled", "small_wang"))
    times = [used / usual for used, usual in zip(*rules, strict=True)]
    return values | {"init_times": times[0], "init_output_times": times[1]}


def sampled_std(config: ModelConfig) -> tuple[float, float]:
    """Sample the standard deviations of the initial weights in an MLP's first and second matrix."""
    import torch

    from pythia_core.model import pythia_init

    names = ("layers.0.mlp.dense_h_to_4h.weight", "layers.0.mlp.dense_4h_to_h.weight")
    tensors = {name: torch.empty(1_000_000) for name in names}
    init, generator = pythia_init(config), torch.Generator().manual_seed(1234)
    for name, tensor in tensors.items():
        init(name, tensor, generator)
    return tensors[names[0]].std().item(), tensors[names[1]].std().item()


def gelu() -> Values:
    """Measure how the two forms of GELU (tanh and erf) differ.

    - `gelu_gap`: the largest absolute difference.
    - `gelu_where`: the |x| at which the difference is largest.
    - `gelu_half_percent`: the percentage of fp16 values x with 1/16 <= |x| <= 8 at which the two
      forms have different fp16 results.
    """
    import torch

    from pythia_core.kernels.gelu import gelu_reference

    grid = torch.linspace(-8, 8, 1_600_001, dtype=torch.float64)
    gaps = (gelu_reference(grid, "tanh") - gelu_reference(grid, "erf")).abs()
    halves = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite() & (halves.abs() <= 8) & (halves.abs() >= 2**-4)].double()
    tanh, erf = (gelu_reference(halves, form).half() for form in ("tanh", "erf"))
    return {
        "gelu_gap": gaps.max().item(),
        "gelu_where": abs(grid[gaps.argmax()].item()),
        "gelu_half_percent": 100 * (tanh != erf).double().mean().item(),
    }


def vocabulary() -> Values:
    """Compute the padded vocabulary sizes, and compare them with the released embeddings.

    - `vocab_entries`: the number of tokens in the tokenizer's vocabulary.
    - `vocab_spaces`: the number of added tokens, which are runs of spaces.
    - `vocab_usable`: `vocab_entries` plus `vocab_spaces`.
    - `vocab_padded_R`: the padded size for R = 1, 2 or 4 tensor-parallel ranks.
    - `vocab_agree`: "are" if the padded sizes equal the released sizes, else "ARE NOT".
    """
    entries, spaces = 50_254, 23
    usable = entries + spaces
    padded = {ranks: -(-usable // (128 * ranks)) * 128 * ranks for ranks in (1, 2, 4)}
    agree = set(padded.values()) == {size.vocab_size for size in OFFICIAL_SIZES.values()}
    return {
        "vocab_entries": entries,
        "vocab_spaces": spaces,
        "vocab_usable": usable,
        "vocab_agree": "are" if agree else "ARE NOT",
        **{f"vocab_padded_{ranks}": rows for ranks, rows in padded.items()},
    }


def names() -> Values:
    """Count the parameters of each official size, e.g. 70m.

    - `million_70m` etc.: all parameters, in millions.
    - `inner_percent_70m` etc.: the percentage of parameters outside the embeddings.
    """
    values = {}
    for name, size in OFFICIAL_SIZES.items():
        model = size.model()
        values[f"million_{_key(name)}"] = model.n_params / 1e6
        values[f"inner_percent_{_key(name)}"] = 100 * model.n_params_non_embedding / model.n_params
    return values


# --- data ------------------------------------------------------------------------------------


def epoch_boundary() -> Values:
    """Compute the percentage of tokens read 0, 1 or 2 times under each epoch policy.

    The policy "joint" shuffles the epochs together; "separate" reads one epoch after the other.
    Percentages of the deduplicated Pile come from a formula, those of a toy corpus (`toy_*`) from
    counting. `toy_reread_*`: of the tokens read in the first half of toy training, the percentage
    that had been read before.
    """
    sizes = np.random.default_rng(0).lognormal(4, 1, 3000).astype(int)
    rows, tokens = OFFICIAL_STEPS * OFFICIAL["batch"], int(OFFICIAL["deduplicated"])
    share_read = rows / ((2 * tokens - 1) // OFFICIAL["seq_len"])
    values = {"rows_read_percent": 100 * share_read, "toy_documents": len(sizes)}
    for policy in ("joint", "separate"):
        order = RowOrder(sizes, 64, epochs=2, policy=policy)
        n_rows = round(share_read * order.n_rows)
        counts, reread = order.read_counts(n_rows, block=-(-n_rows // 2))
        toy = 100 * np.bincount(counts, minlength=3)[:3] / len(counts)
        for times, share in enumerate(pile_reads("deduplicated", policy)[:3]):
            values[f"read_{times}_{policy}_percent"] = 100 * share
            values[f"toy_read_{times}_{policy}_percent"] = float(toy[times])
        values[f"toy_reread_{policy}_percent"] = float(100 * reread[0] / (-(-n_rows // 2) * 64))
    return values


def threshold() -> Values:
    """Compute the probability, in percent, that MinHash bands find a pair of similar documents.

    - `caught_at_095_percent` etc.: Jaccard similarity 0.95, recipe of the deduplicated Pile.
    - `candidates_at_087_percent`: Jaccard similarity 0.87, recipe jaccard-0.87.
    """

    def percent(recipe: str, similarity: float) -> float:
        """Return the percentage for `recipe` at this Jaccard similarity."""
        bands = RECIPES[recipe].buckets, RECIPES[recipe].hashes_per_bucket
        return 100 * float(s_curve(similarity, *bands))

    values = {
        f"caught_at_0{hundredths}_percent": percent("eleutherai-0.87", hundredths / 100)
        for hundredths in (95, 87, 80, 70)
    }
    return values | {"candidates_at_087_percent": percent("jaccard-0.87", 0.87)}


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


ARM_NAMES = {"none": "", "swap_last_7pct": "7 % swap", "swap_last_21pct": "21 % swap"}


def released_winobias(tables: Tables) -> Values | None:
    """Return the value `prompts`, a text that lists WinoBias accuracies with and without the swap.

    Accuracies are in percent, on pro- and anti-stereotypical sentences. The result is None without
    released scores.
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
    return {"prompts": "; ".join(parts)}


def released_twins(tables: Tables) -> Values | None:
    """List the gender scores on CrowS-Pairs with and without the pronoun swap; None without scores.

    - `twins`: the scores in percent, as text.
    - `error`: their mean standard error, in points.
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
    return {"twins": "; ".join(twins), "error": float(rows.stderr.mean())}


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
        return f"{len(ordered)} steps ({ordered[0]:,} to {ordered[-1]:,})" if ordered else "no step"

    equal_2_8b = equal[equal.model == "2.8b"]
    return {
        "zero_shot": summarized(equal_2_8b[equal_2_8b.shots == 0].step),
        "five_shot": summarized(equal_2_8b[equal_2_8b.shots == 5].step),
        "others": summarized(equal[equal.model != "2.8b"].step),
    }


COMPUTED: dict[str, Callable[[], Values]] = {
    "lr-floor": lr_floor,
    "first-update": first_update,
    "epoch-boundary": epoch_boundary,
    "initialisation": initialisation,
    "gelu": gelu,
    "adamw": adamw,
    "threshold": threshold,
    "vocabulary": vocabulary,
    "names": names,
}
RELEASED: dict[str, Callable[[Tables], Values | None]] = {
    "swap-scores": released_twins,
    "winobias-prompt": released_winobias,
    "tasks": released_tasks,
    "evals-2.8b": released_2_8b,
}
