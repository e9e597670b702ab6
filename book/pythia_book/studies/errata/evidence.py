"""Evidence for what is said about Pythia, computed from this library and from released results.

A function here computes what a page and the command line then show
(pythia_book.studies.errata.catalogue): it runs schedules, orders, optimizers and initialisations in
a second or two, without a network. Released scores are read where a copy of them is
(pythia_book.published.results); what they say is kept in `Evidence.released`, apart from what is
computed here, because it is shown and never recorded. What an error costs takes training and is in
studies.errata.study.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.published.results import HOW_TO_GET
from pythia_book.published.tables import TASKS, released_benchmarks
from pythia_book.studies.suite.reading import OFFICIAL, pile_reads
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.data.dedup import RECIPES, s_curve
from pythia_core.data.order import RowOrder
from pythia_core.errors import ConfigError
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.schedule import LOG_STEPS, OFFICIAL_STEPS, checkpoint_steps, learning_rate

if TYPE_CHECKING:
    from pythia_book.published.results import Published


TINY = RunConfig(
    ModelConfig(n_layers=2, d_model=16, n_heads=2, vocab_size=128, max_seq_len=16),
    DataConfig(seq_len=16),
    TrainConfig(steps=100, batch_size=4, lr_max=1e-2),
)


@dataclass(frozen=True)
class Evidence:
    """What a computation shows, in words and as numbers."""

    text: str
    values: dict[str, Any] = field(default_factory=dict)
    """For prose and tests, by names that are unique over all evidence."""
    released: str = ""
    """What the released scores add, or that they are not here; never recorded."""


# --- optimisation ----------------------------------------------------------------------------


def lr_floor() -> Evidence:
    """Every learning rate of the official run is computed; the first at the floor is looked up."""
    rates = {
        form: [
            learning_rate(step, OFFICIAL_STEPS, 1.0, 0.1, form=form)
            for step in range(OFFICIAL_STEPS)
        ]
        for form in ("neox", "paper")
    }
    warm = OFFICIAL_STEPS // 100
    floor = next(step for step in range(warm, OFFICIAL_STEPS) if rates["neox"][step] == 0.1)
    flat = all(rate == 0.1 for rate in rates["neox"][floor:])
    means = {form: 100 * sum(values) / OFFICIAL_STEPS for form, values in rates.items()}
    percent, paper = 100 * floor / OFFICIAL_STEPS, 100 * rates["paper"][floor]
    return Evidence(
        f"Of {OFFICIAL_STEPS:,} updates, update {floor:,} ({percent:.1f} % of the run) is the "
        f"first at a tenth of the peak, and {'all' if flat else 'not all'} later ones stay there. "
        f"The cosine that is usually drawn is at {paper:.1f} % of the peak then and reaches a "
        f"tenth at the end. Mean rate of the run: {means['neox']:.1f} % of the peak against "
        f"{means['paper']:.1f} %.",
        {"floor_step": floor, "floor_percent": percent, "floor_paper_percent": paper,
         "mean_lr_neox_percent": means["neox"], "mean_lr_paper_percent": means["paper"]},
    )  # fmt: skip


def first_update() -> Evidence:
    """Two updates of a tiny model, its weights compared bit by bit, with and without the shift."""
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
    n = len(before)
    (first, second), other = rates[True], rates[False][0]
    return Evidence(
        f"A model of {n} tensors, two updates on random rows. Learning rates {first:g} and "
        f"{second:g}: after the first update {equal[True][0]} of {n} tensors are those of step 0 "
        f"bit for bit, after the second {equal[True][1]}. With the switch the first update runs at "
        f"{other:g}, and {equal[False][0]} are left.",
        {"first_lr": first, "first_equal_tensors": equal[True][0], "first_tensors": n,
         "first_equal_tensors_with_switch": equal[False][0]},
    )  # fmt: skip


def adamw() -> Evidence:
    """The groups of the real 70M model, and one update with a gradient of zero."""
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
    shrunk = 1 - flat.flat[: flat.n_decayed].mean().item() / 0.5
    moved = (flat.flat[flat.n_decayed :] - 0.5).abs().max().item()
    adam = 0.5 - plain.mean().item()
    return Evidence(
        f"Of the 70M model's {len(named)} tensors {len(decayed)} are decayed, {len(embeddings)} of "
        f"them the embedding and the unembedding ({100 * share:.0f} % of all decayed parameters); "
        f"{len(named) - len(decayed)}, biases and LayerNorms, are not. One update at learning "
        f"rate {lr:g} with decay {decay:g} and a gradient of zero: decayed weights shrink by "
        f"{100 * shrunk:.2f} % (rate times decay), the others move by {moved:g}. Adam with the "
        f"decay inside the gradient moves a weight of 0.5 by {adam:.4f}: the whole rate.",
        {"decayed_tensors": len(decayed), "undecayed_tensors": len(named) - len(decayed),
         "decayed_embeddings": len(embeddings), "decay_percent": 100 * shrunk,
         "adam_l2_step": adam},
    )  # fmt: skip


def one_b() -> Evidence:
    """The peak rates of the sizes around 1B."""
    near = {name: OFFICIAL_SIZES[name].lr_max for name in ("410m", "1b", "1.4b")}
    table, used = 3.0e-4, near["1b"]
    rates = ", ".join(f"{name} {rate:.1e}" for name, rate in near.items())
    return Evidence(
        f"Peak rates in the configs: {rates}. The table says {table:.1e} for 1B: "
        f"{100 * (table / used - 1):.0f} % more than was used.",
        {"lr_1b": used, "lr_1b_table_percent_more": 100 * (table / used - 1)},
    )


# --- model -----------------------------------------------------------------------------------


def initialisation() -> Evidence:
    """The initialisation of 6.9B and 12B under both rules, sampled by the model's own code."""
    values, parts = {}, []
    for name in ("6.9b", "12b"):
        config = OFFICIAL_SIZES[name].model()
        key = name.replace(".", "_")
        inner, output = sampled_std(config)
        other = sampled_std(replace(config, init="small_wang"))
        values |= {f"std_{key}": inner, f"std_{key}_output": output,
                   f"std_{key}_small": other[0], f"std_{key}_wang": other[1]}  # fmt: skip
        parts.append(
            f"{name}: {inner:.4f} and {output:.5f} (attention output and second MLP matrix) as "
            f"trained; {other[0]:.4f} and {other[1]:.5f} by the rule of the other sizes"
        )
    return Evidence(f"Standard deviations of initial weights. {'; '.join(parts)}.", values)


def sampled_std(config: ModelConfig) -> tuple[float, float]:
    """Standard deviations of an inner and of an output matrix, from the model's own initialisation.

    Two tensors stand in for all: the whole of 12B would not fit most machines.
    """
    import torch

    from pythia_core.model import pythia_init

    names = ("layers.0.mlp.dense_h_to_4h.weight", "layers.0.mlp.dense_4h_to_h.weight")
    tensors = {name: torch.empty(1_000_000) for name in names}
    init, generator = pythia_init(config), torch.Generator().manual_seed(1234)
    for name, tensor in tensors.items():
        init(name, tensor, generator)
    return tensors[names[0]].std().item(), tensors[names[1]].std().item()


def gelu() -> Evidence:
    """Both forms over a fine grid, and over every half-precision number from -8 to 8."""
    import torch

    from pythia_core.kernels.gelu import gelu_reference

    def gap(x: torch.Tensor) -> torch.Tensor:
        return (gelu_reference(x, "tanh") - gelu_reference(x, "erf")).abs()

    grid = torch.linspace(-8, 8, 1_600_001, dtype=torch.float64)
    gaps = gap(grid)
    largest, where = gaps.max().item(), abs(grid[gaps.argmax()].item())
    halves = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite() & (halves.abs() <= 8) & (halves.abs() >= 2**-4)].double()
    both = [gelu_reference(halves, form).half() for form in ("tanh", "erf")]
    differ = 100 * (both[0] != both[1]).double().mean().item()
    return Evidence(
        f"The two forms differ by at most {largest:.2e}, at |x| = {where:.2f}. Of the half-"
        f"precision numbers with 1/16 <= |x| <= 8, {differ:.0f} % get another result.",
        {"gelu_gap": largest, "gelu_where": where, "gelu_half_percent": differ},
    )


def configs() -> Evidence:
    """What a parser and this library's own checks say to the two files for 12B."""
    text = '{"attention-config": [[["flash"], 36]]\n "bias-gelu-fusion": true}'
    try:
        json.loads(text)
        comma = "is read"
    except ValueError as error:
        comma = f"is refused: {error}"
    shape = OFFICIAL_SIZES["12b"].model()
    try:
        replace(shape, n_layers=40, n_heads=36)
        swapped = "is accepted"
    except ConfigError as error:
        swapped = f"is refused: {error}"
    deeper = replace(shape, n_layers=40).n_params
    return Evidence(
        f"Two entries of pythia-12b.yml with no comma between them: the text {comma}. "
        f"pythia-12b-deduped.yml, 40 layers and 36 heads at width {shape.d_model:,}: the shape "
        f"{swapped}. An older version of the file, 40 and 40, can be run and gives "
        f"{deeper / 1e9:.2f}B parameters; the released model has {shape.n_params / 1e9:.2f}B "
        f"({shape.n_layers} layers, {shape.n_heads} heads).",
        {"config_comma": comma, "config_swapped": swapped, "config_deeper_params": deeper,
         "config_released_params": shape.n_params},
    )  # fmt: skip


def vocabulary() -> Evidence:
    """The padding rule applied to the tokenizer's entries, beside the sizes' embeddings."""
    entries, spaces = 50_254, 23
    usable = entries + spaces
    padded, parts = {}, []
    for ranks, names in ((1, "14M to 2.8B"), (2, "6.9B"), (4, "12B")):
        padded[ranks] = -(-usable // (128 * ranks)) * 128 * ranks
        parts.append(f"{padded[ranks]:,} with {ranks} of them ({names})")
    agree = {padded[1], padded[2], padded[4]} == {s.vocab_size for s in OFFICIAL_SIZES.values()}
    return Evidence(
        f"{entries:,} entries of the BPE and {spaces} runs of spaces make {usable:,} usable ids. "
        f"Padded to a multiple of 128 for each tensor-parallel rank: {', '.join(parts)}. These "
        f"{'are' if agree else 'ARE NOT'} the rows of the released embeddings; ids from {usable:,} "
        "on never occur in the text.",
        {"vocab_usable": usable, **{f"vocab_padded_{r}": rows for r, rows in padded.items()}},
    )


def names() -> Evidence:
    """Total and non-embedding parameters of every size."""
    models = {name: size.model() for name, size in OFFICIAL_SIZES.items()}
    share = {n: 100 * m.n_params_non_embedding / m.n_params for n, m in models.items()}
    parts = [
        f"{n}: {m.n_params / 1e6:,.0f}M parameters, {share[n]:.0f} % of them not embeddings"
        for n, m in models.items()
        if n in ("14m", "70m", "160m", "1.4b", "12b")
    ]
    return Evidence(
        f"{'; '.join(parts)}.",
        {f"inner_percent_{n.replace('.', '_')}": value for n, value in share.items()},
    )


# --- data ------------------------------------------------------------------------------------


def epoch_boundary() -> Evidence:
    """Binomial shares for the Pile, and the order code on a toy corpus, under both policies."""
    sizes = np.random.default_rng(0).lognormal(4, 1, 3000).astype(int)
    rows, tokens = OFFICIAL_STEPS * OFFICIAL["batch"], int(OFFICIAL["deduplicated"])
    read = rows / ((2 * tokens - 1) // OFFICIAL["seq_len"])
    values: dict[str, Any] = {"rows_read_percent": 100 * read}
    counted, early = {}, {}
    for policy in ("joint", "separate"):
        order = RowOrder(sizes, 64, epochs=2, policy=policy)
        n_rows = round(read * order.n_rows)
        counts, again = order.reads(n_rows, block=-(-n_rows // 2))
        counted[policy] = 100 * np.bincount(counts, minlength=3)[:3] / len(counts)
        early[policy] = 100 * again[0] / (-(-n_rows // 2) * 64)
        for times, share in enumerate(pile_reads("deduplicated", policy)[:3]):
            values[f"read_{times}_{policy}_percent"] = 100 * share
            values[f"toy_read_{times}_{policy}_percent"] = float(counted[policy][times])

    def shares(kind: str, policy: str) -> str:
        return " / ".join(f"{values[f'{kind}_{times}_{policy}_percent']:.1f}" for times in range(3))

    return Evidence(
        f"The run reads {100 * read:.1f} % of two shuffled copies. Percent of tokens read 0 / 1 / "
        f"2 times: {shares('read', 'joint')} by the sizes of the text, "
        f"{shares('toy_read', 'joint')} counted on a toy corpus of {len(sizes):,} documents; were "
        f"the epochs separate, {shares('read', 'separate')} and {shares('toy_read', 'separate')}. "
        f"Of what the first half of the toy run reads, {early['joint']:.0f} % was read before; "
        f"separate: {early['separate']:.0f} %.",
        values,
    )


def threshold() -> Evidence:
    """Probability that a pair is found, by the bands of both recipes."""
    found = {}
    for name in ("eleutherai-0.87", "jaccard-0.87"):
        bands = RECIPES[name].buckets, RECIPES[name].hashes_per_bucket
        found[name] = {s: 100 * float(s_curve(s, *bands)) for s in (0.95, 0.87, 0.80, 0.70)}
    ours = found["jaccard-0.87"][0.87]
    parts = ", ".join(f"{s:.2f}: {p:.1f} %" for s, p in found["eleutherai-0.87"].items())
    return Evidence(
        f"Ten hashes in one band find a pair of similarity J with probability J^10: {parts}. The "
        f"recipe jaccard-0.87 of this library looks at {ours:.1f} % of the pairs at 0.87, counts "
        "their similarity exactly, and drops what is below.",
        {"caught_at_087_percent": found["eleutherai-0.87"][0.87],
         "caught_at_095_percent": found["eleutherai-0.87"][0.95],
         "caught_at_070_percent": found["eleutherai-0.87"][0.70],
         "candidates_at_087_percent": ours},
    )  # fmt: skip


# --- from what was released ------------------------------------------------------------------

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
