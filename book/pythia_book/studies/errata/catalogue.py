"""What everyone gets wrong about Pythia: claims as they are told, what is so, and the evidence.

Each erratum names how sure it is. "certain": it stands in the released configs, in the training
code (GPT-NeoX v1.0) or in released files, or is computed here. "likely": it follows from these and
its authors have not said so. "remembered": reported by others or from memory, not looked up again.
Evidence is computed when asked for (errata.evidence); what an error costs on our
models is measured by errata.study, through the field of a config that `measured` names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pythia_book.studies.errata import evidence
from pythia_book.studies.errata.evidence import Evidence
from pythia_core.errors import ConfigError, one_of

if TYPE_CHECKING:
    from pythia_book.published.results import Published

CERTAINTIES = ("certain", "likely", "remembered")


@dataclass(frozen=True)
class Erratum:
    """One thing that is told otherwise than it is."""

    name: str
    """For the command line: a-z, 0-9, - and full stops."""
    title: str
    """What is so, in a line."""
    told: str
    """The claim as it is commonly told."""
    source: str
    """Where what is so can be seen."""
    certainty: str
    evidence: Callable[..., Evidence]
    matters: str
    switch: str
    """What reproduces or mends it with this library."""
    measured: str = ""
    """Field of a config whose effect studies.errata measures; empty: none."""
    from_released: bool = False
    """Whether the evidence takes the released scores."""

    def compute(self, released: Published | None = None) -> Evidence:
        """The evidence as of now; `released`: the released scores, where they are there."""
        return self.evidence(released) if self.from_released else self.evidence()

    def sections(self, evidence: Evidence, effect: str = "") -> dict[str, str]:
        """What a page and the command line show of it, heading by heading.

        Args:
            effect: what was measured of its switch, in words.
        """
        if self.measured and not effect:
            effect = "What it costs is measured by: python -m pythia_core study errata"
        return {
            "Told": self.told,
            "Evidence": f"{evidence.text} {evidence.released}".strip(),
            "Certainty": f"{self.certainty}: {self.source}",
            "Matters": f"{self.matters} {effect}".strip(),
            "Switch": self.switch,
        }


ERRATA = (
    Erratum(
        "lr-floor",
        "The learning rate is flat for the last fifth of training",
        "The learning rate follows a cosine that decays to 10 % of its peak at the end.",
        "learning_rates.py of the training code, the configs' min_lr",
        "certain",
        evidence.lr_floor,
        "Every curve has a constant-rate tail; the 7 % gender intervention lies wholly in it, "
        "the 21 % one nearly.",
        'TrainConfig(lr_form="paper") trains the textbook cosine; "neox" is what was run.',
        measured="lr_form",
    ),
    Erratum(
        "first-update",
        "Step 0 and step 1 are the same weights",
        "Step 1 is the model after its first update.",
        "the training code's scheduler; equal released weights and scores of both steps",
        "certain",
        evidence.first_update,
        "The checkpoint of step 1 says nothing, and the schedule runs one update late.",
        "TrainConfig(first_update_at_lr_zero=False) shifts the schedule by one update.",
        measured="first_update_at_lr_zero",
    ),
    Erratum(
        "epoch-boundary",
        "The deduplicated run has no epoch boundary",
        "The deduplicated models begin their second epoch near step 98,000, two thirds through.",
        "gpt2_dataset.py of the training code; the order itself was not checked against the files",
        "likely",
        evidence.epoch_boundary,
        "Comparisons of before and after the second epoch compare nothing but the length of "
        "training.",
        'DataConfig(epoch_policy="separate") reads one epoch after the other; "joint" is what was '
        "run.",
        measured="epoch_policy",
    ),
    Erratum(
        "initialisation",
        "6.9B and 12B began from another initialisation than the other sizes",
        "All sizes share one recipe and differ in nothing but their shape.",
        "the configs: those two name no rule, so that the library's defaults apply",
        "certain",
        evidence.initialisation,
        "A comparison of sizes across 2.8B also compares initialisations.",
        'ModelConfig(init="normal_scaled") is that of 6.9B and 12B, "small_wang" the others\'.',
        measured="init",
    ),
    Erratum(
        "gelu",
        "Training used the tanh form of GELU, the converted models declare the exact one",
        "Pythia uses GELU.",
        "the training code's fused bias-GELU; the converted models' config.json",
        "certain",
        evidence.gelu,
        "Logits of the converted models differ from those of training in the last digits.",
        'ModelConfig(gelu="erf") is the exact form, "tanh" what training used.',
        measured="gelu",
    ),
    Erratum(
        "adamw",
        '"Adam" is AdamW, with decay on both embeddings and none on biases and LayerNorms',
        "The models were trained with Adam and weight decay 0.1.",
        "the training code's groups; that the fused optimizers decouple the decay by default is "
        "remembered",
        "likely",
        evidence.adamw,
        "Who re-trains with Adam and the decay in the gradient, or decays all, trains another "
        "model; not measured.",
        "pythia_core.training.optimizer builds these groups; TrainConfig(weight_decay=0) turns "
        "the decay off.",
    ),
    Erratum(
        "swap-code",
        "The public code of the gender intervention, as last pushed, swaps nothing",
        "The public code replaces masculine by feminine pronouns in the last part of training.",
        "the branch new-intervention of GPT-NeoX; whether it made the released models is not "
        "documented",
        "likely",
        evidence.swap_code,
        "The released scores of the twins show no effect; our gender study uses a swap that swaps.",
        'RunConfig.fork("masculine_to_feminine", start); the run\'s ledger lists every changed '
        "token.",
        from_released=True,
    ),
    Erratum(
        "repeated-checkpoints",
        "86 of the 154 branches of the 2.8B model serve weights of the end of training",
        "Every model has 154 checkpoints on the hub.",
        "an issue of EleutherAI/pythia that lists the files' hashes; not looked up again",
        "remembered",
        evidence.repeated_checkpoints,
        "Any study of the 2.8B model over training compares the end with itself for most steps.",
        "python -m pythia_core verify RUN names checkpoints with equal weights; so does "
        "checkpoint.repeated for hashes of your own.",
    ),
    Erratum(
        "threshold",
        'Deduplication "at 0.87" finds a quarter of the pairs at 0.87',
        "Documents with a similarity of 0.87 or more were removed from the deduplicated Pile.",
        "EleutherAI/pile_dedupe, most likely the code: 10 permutations, which make one band of ten",
        "likely",
        evidence.threshold,
        "Much near-duplication is left in the deduplicated Pile, and some dissimilar pairs are "
        "gone; the deduplication study counts both on our text.",
        'DataConfig(dedup="eleutherai-0.87") is that recipe; "jaccard-0.87" is what it is called.',
    ),
    Erratum(
        "configs",
        "Two of the published configs cannot be run as they stand",
        "The configs in the repository are those the models were trained with.",
        "models/12B of EleutherAI/pythia: a missing comma, layers and heads exchanged",
        "certain",
        evidence.configs,
        "Nobody can have trained 12B from these files; the shapes of the released weights count.",
        'scales.OFFICIAL_SIZES["12b"] has the released shape; ModelConfig refuses the other.',
    ),
    Erratum(
        "vocabulary",
        "There are five vocabulary sizes, and the models have three different ones",
        "Pythia has a vocabulary of 50,257 (or 50,254, 50,277, 50,304 …) tokens.",
        "the tokenizer's file, the padding rule of the training code",
        "certain",
        evidence.vocabulary,
        "Logits of different sizes have different widths; rows past the usable ids are never a "
        "target.",
        "Size.vocab_size has the rows of each size; ModelConfig(vocab_size=...) sets others.",
    ),
    Erratum(
        "tasks",
        "Two of the eight benchmarks say nothing about any released model",
        "The suite is compared on eight benchmarks.",
        "released scores",
        "certain",
        evidence.tasks,
        "Means over all eight tasks hold an eighth or two of noise; our means leave WSC out.",
        "studies.published_scaling.INFORMATIVE names the tasks that our means use.",
        from_released=True,
    ),
    Erratum(
        "evals-2.8b",
        "Some released scores of the 2.8B model are those of its deduplicated twin",
        "The repository has the scores of every model at every step.",
        "released scores, compared with each other",
        "certain",
        evidence.two_eight_b,
        "The two 2.8B models seem to learn alike early on; our reader leaves these rows out and "
        "lists them.",
        "Published.benchmarks is without them, Published.left_out lists them.",
        from_released=True,
    ),
    Erratum(
        "lr-1b",
        "The 1B model's peak learning rate is 2.5e-4",
        "The peak learning rate of 1B is 3.0e-4, as the table in the paper and the README says.",
        "the config of 1B",
        "certain",
        evidence.one_b,
        "Who takes rates from the table trains another 1B.",
        'scales.OFFICIAL_SIZES["1b"].lr_max; TrainConfig(lr_max=...) sets another.',
    ),
    Erratum(
        "names",
        "Sizes are named by all parameters, and the small models are mostly embeddings",
        "Pythia-70M has 70 million parameters to compute with.",
        "parameter counts of the released weights",
        "certain",
        evidence.names,
        "Scaling plots over the names bend at the small end; ours count what is not an embedding.",
        "ModelConfig.n_params and n_params_non_embedding give both counts.",
    ),
)


def erratum_named(name: str) -> Erratum:
    """Look an erratum up.

    Raises:
        ConfigError: unknown name; lists the accepted ones.
    """
    found = {erratum.name: erratum for erratum in ERRATA}
    if name not in found:
        raise ConfigError(one_of(name, found, "erratum"))
    return found[name]


def listing() -> str:
    """Names, certainties and titles, a line each."""
    return "\n".join(f"{e.name:22} {e.certainty:11} {e.title}" for e in ERRATA)


def explained(erratum: Erratum, released: Published | None = None) -> str:
    """One erratum as text, its evidence computed now."""
    lines = [erratum.title]
    for heading, text in erratum.sections(erratum.compute(released)).items():
        lines.append(f"\n{heading}: {text}")
    return "\n".join(lines)
