"""The settings of a run, as frozen dataclasses that reject invalid values.

Every setting that changes results is a field here, and thus part of a run's identity. All other
settings, such as folders and progress bars, are arguments of functions.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pythia_core.errors import ConfigError, one_of, raise_all

GELUS = ("tanh", "erf")
INITS = ("small_wang", "normal_scaled", "like_6.9b")
LR_FORMS = ("neox", "paper")
"""Learning-rate schedules (pythia_core.training.schedule)."""
PRECISIONS = ("fp32", "bf16", "fp16")
EPOCH_POLICIES = ("joint", "separate", "rows")
PRONOUN_SWAPS = ("masculine_to_feminine", "feminine_to_masculine")
SWAPS = (*PRONOUN_SWAPS, "prepositions")
"""Names of the word swaps (pythia_core.data.pronouns). "prepositions" is a placebo swap."""
SHUFFLE, REPLACE = "shuffle_genders", "replace_text"
TRANSFORMS = (*SWAPS, SHUFFLE, REPLACE)
"""Names of the changes that an intervention can make (pythia_core.data.interventions)."""
DEDUP_RECIPES = ("none", "exact", "jaccard-0.87", "eleutherai-0.87")
"""Recipes for removing duplicate training documents (pythia_core.data.dedup)."""
DOMAINS = (
    "books",
    "scripture",
    "dictionary",
    "news",
    "speech",
    "encyclopedic",
    "biographies",
    "legal",
    "biomedical",
)
"""Domains of the pocket Pile (pythia_book.corpora), in the order in which they are read.

The domains are listed here, not in the book, because they are the default of a DataConfig field and
so part of every run's identity."""
LARGE_DOMAINS = (*DOMAINS, "webster", "jargon", "countries", "aws", "google", "code")
PLANTED_DOMAINS = ("copies", "equations", "occupations", "canaries")
"""Domains of planted text, added to the corpora "miniature" and "large"; each can be left out."""
CONTROL_DOMAINS = {"occupations_flat": "occupations"}
"""Maps each control domain to the planted domain that the control domain replaces."""
ALTERNATIVES = CONTROL_DOMAINS | {"copies_pile": "copies"}
"""Maps each domain that is used only on request to the planted domain that it replaces."""
LABORATORY_DOMAINS = ("grammar", "repeats")
"""Domains of the corpus "laboratory"."""
DOMAINS_OF = {
    "pocket-pile": DOMAINS,
    "miniature": (*DOMAINS, *PLANTED_DOMAINS, *ALTERNATIVES),
    "large": (*LARGE_DOMAINS, *PLANTED_DOMAINS, *ALTERNATIVES),
    "laboratory": LABORATORY_DOMAINS,
}
"""Maps each corpus that the book registers to its domains."""


def default_domains(corpus: str) -> tuple[str, ...]:
    """Return the domains of a corpus, without ALTERNATIVES; DOMAINS for an unlisted corpus."""
    domains = DOMAINS_OF.get(corpus, DOMAINS)
    return tuple(domain for domain in domains if domain not in ALTERNATIVES)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a GPT-NeoX model (paper section 2.1; GPT-NeoX v1.0)."""

    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int
    """Rows of the embedding matrix: the vocabulary, and padding rows that are never targets."""
    max_seq_len: int = 2048
    rotary_fraction: float = 0.25
    rotary_base: float = 10_000.0
    parallel_residual: bool = True
    gelu: str = "tanh"
    """"tanh" or "erf". Pythia was trained with "tanh" (a fused bias-GELU), but the configs on the
    hub declare "erf"."""
    init: str = "small_wang"
    """Rule for the initial weights (see pythia_core.model.pythia_init). The released models have
    "small_wang" (14M to 2.8B) or "normal_scaled" (6.9B and 12B). "like_6.9b" is for small
    models."""
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("n_layers", "d_model", "n_heads", "vocab_size", "max_seq_len")
            if getattr(self, name) < 1
        ]
        if not problems and self.d_model % self.n_heads:
            problems.append(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}; choose a divisor "
                "of d_model"
            )
        elif not problems and 0 <= self.rotary_fraction <= 1 and self.rotary_dims % 2:
            problems.append(
                f"rotary_fraction={self.rotary_fraction} gives {self.rotary_dims} rotary dims in "
                f"a head of {self.head_dim} dims; choose a fraction that gives an even number"
            )
        if not 0 <= self.rotary_fraction <= 1:
            problems.append(f"rotary_fraction must be in [0, 1], got {self.rotary_fraction}")
        if self.gelu not in GELUS:
            problems.append(one_of(self.gelu, GELUS, "gelu"))
        if self.init not in INITS:
            problems.append(one_of(self.init, INITS, "init"))
        raise_all(ConfigError, problems, "ModelConfig")

    @property
    def head_dim(self) -> int:
        """The width of an attention head."""
        return self.d_model // self.n_heads

    @property
    def rotary_dims(self) -> int:
        """The number of leading dims of each query and key head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def d_ff(self) -> int:
        """The number of hidden units of the MLP."""
        return 4 * self.d_model

    @property
    def n_params_non_embedding(self) -> int:
        """The number of parameters outside the two vocabulary matrices: L(12d^2 + 13d) + 2d."""
        d = self.d_model
        return self.n_layers * (12 * d * d + 13 * d) + 2 * d

    @property
    def n_params(self) -> int:
        """The number of all parameters, embedding and unembedding included."""
        return self.n_params_non_embedding + 2 * self.vocab_size * self.d_model


@dataclass(frozen=True)
class DataConfig:
    """The settings that, together with the bytes of the corpus, determine every training row."""

    corpus: str = "pocket-pile"
    """One of:
    - the path of a .jsonl or .txt file, or of a folder of such files;
    - "hf:NAME", a Hugging Face dataset;
    - a registered corpus. The book registers "pocket-pile", "miniature" (a sample of the pocket
      Pile, with planted text), "large" (the pocket Pile, more text, and planted text) and
      "laboratory" (a made-up language)."""
    domains: tuple[str, ...] = DOMAINS
    """Parts of a registered corpus to read; ignored for files and Hugging Face datasets."""
    tokenizer: str = "bpe-4096"
    """"bpe-N" (a byte-level BPE with N entries, trained on the corpus), "neox-20b", or the path of
    a tokenizer.json."""
    seq_len: int = 128
    epochs: int = 1
    """How often each document (with the policy "rows": each row) is read."""
    epoch_policy: str = "joint"
    """How several epochs are shuffled. "joint": all epochs together, as in GPT-NeoX v1.0.
    "separate": each epoch on its own. "rows": the first `unique_rows` rows are read `epochs`
    times."""
    unique_rows: int = 0
    """Number of rows that the policy "rows" repeats; 0 for the other policies."""
    order_seed: int = 1234
    heldout_fraction: float = 0.01
    """Share of the documents that is held out from training; a hash of the text selects them."""
    dedup: str = "none"
    """One of DEDUP_RECIPES. Tokenizer and held-out documents are the same for all recipes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        problems = []
        if self.seq_len < 2:
            problems.append(f"seq_len must be at least 2, got {self.seq_len}")
        if self.epochs < 1:
            problems.append(f"epochs must be at least 1, got {self.epochs}")
        if self.epoch_policy not in EPOCH_POLICIES:
            problems.append(one_of(self.epoch_policy, EPOCH_POLICIES, "epoch_policy"))
        if self.unique_rows < 0 or (self.unique_rows > 0) != (self.epoch_policy == "rows"):
            problems.append(
                f"unique_rows={self.unique_rows} with epoch_policy={self.epoch_policy!r}: "
                'unique_rows must be positive if epoch_policy is "rows", and 0 otherwise'
            )
        if not 0 <= self.heldout_fraction < 1:
            problems.append(f"heldout_fraction must be in [0, 1), got {self.heldout_fraction}")
        if not 0 <= self.order_seed < 2**32:
            problems.append(f"order_seed must be in 0..2^32-1, got {self.order_seed}")
        if self.dedup not in DEDUP_RECIPES:
            problems.append(one_of(self.dedup, DEDUP_RECIPES, "dedup recipe"))
        if accepted := DOMAINS_OF.get(self.corpus):
            if not self.domains:
                problems.append(f"domains is empty; accepted: {', '.join(accepted)}")
            problems += [one_of(d, accepted, "domain") for d in self.domains if d not in accepted]
            problems += [
                f"domains has both {domain!r} and its alternative {other!r}; use one of them"
                for other, domain in ALTERNATIVES.items()
                if {other, domain} <= set(self.domains)
            ]
        if self.tokenizer.startswith("bpe-"):
            size = self.tokenizer.removeprefix("bpe-")
            if not re.fullmatch("[1-9][0-9]{2,4}", size) or not 260 <= int(size) <= 65_500:
                problems.append(
                    f"tokenizer {self.tokenizer!r} is not possible: in a name bpe-N, N must be a "
                    "whole number in 260..65500, in the digits 0-9 and without a leading zero"
                )
        raise_all(ConfigError, problems, "DataConfig")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of the optimization. The defaults are those of Pythia's configs."""

    steps: int
    batch_size: int
    """Rows per update; 1,024 for the released models."""
    lr_max: float
    lr_min_ratio: float = 0.1
    lr_form: str = "neox"
    warmup_fraction: float = 0.01
    first_update_at_lr_zero: bool = True
    """True, as for the released models: update 0 has learning rate 0, so the weights of steps 0 and
    1 are equal. False: update k uses the learning rate of update k + 1."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    weight_seed: int = 1234
    precision: str = "fp32"
    """"fp32", "bf16" or "fp16". The master weights are in fp32; matrix products use a copy in bf16
    or fp16. With "fp16", the loss is scaled dynamically (pythia_core.training.loss_scale), as for
    all released models but 1B."""
    micro_batch: int = 0
    """Rows per forward and backward pass; 0 for the whole batch. Affects rounding."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("steps", "batch_size")
            if getattr(self, name) < 1
        ]
        if self.micro_batch < 0 or (self.micro_batch and self.batch_size % self.micro_batch):
            problems.append(
                f"micro_batch={self.micro_batch} does not divide batch_size={self.batch_size}; "
                "choose a divisor of batch_size, or 0 for the whole batch"
            )
        if not 0 < self.lr_max < math.inf:
            problems.append(f"lr_max must be positive and finite, got {self.lr_max}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("eps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                problems.append(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.weight_seed < 2**63:
            problems.append(f"weight_seed must be in 0..2^63-1, got {self.weight_seed}")
        if not 0 <= self.lr_min_ratio <= 1:
            problems.append(f"lr_min_ratio must be in [0, 1], got {self.lr_min_ratio}")
        if not 0 <= self.warmup_fraction < 1:
            problems.append(f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}")
        if not self.grad_clip > 0:
            problems.append(f"grad_clip must be positive, got {self.grad_clip}")
        if self.lr_form not in LR_FORMS:
            problems.append(one_of(self.lr_form, LR_FORMS, "lr_form"))
        if self.precision not in PRECISIONS:
            problems.append(one_of(self.precision, PRECISIONS, "precision"))
        raise_all(ConfigError, problems, "TrainConfig")


@dataclass(frozen=True)
class InterventionConfig:
    """A change to the training data of the updates [start, stop)."""

    transform: str
    """One of TRANSFORMS."""
    start: int
    stop: int
    domains: tuple[str, ...] = ()
    """The domains whose documents are changed; empty: all documents."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        problems = []
        if self.transform not in TRANSFORMS:
            problems.append(one_of(self.transform, TRANSFORMS, "transform"))
        if self.transform == REPLACE and not self.domains:
            problems.append(f"{REPLACE} needs domains whose text is to be replaced, got none")
        if not 0 <= self.start < self.stop:
            problems.append(
                "start must be at least 0 and less than stop, "
                f"got start={self.start}, stop={self.stop}"
            )
        raise_all(ConfigError, problems, "InterventionConfig")


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run. A run with an intervention is a fork; make its config with `fork`."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    intervention: InterventionConfig | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.data.seq_len > self.model.max_seq_len:
            problems.append(
                f"seq_len={self.data.seq_len} exceeds max_seq_len={self.model.max_seq_len}; lower "
                "seq_len or raise max_seq_len"
            )
        if self.intervention and self.intervention.stop > self.train.steps:
            problems.append(
                f"the intervention has stop={self.intervention.stop}, but the last step of the "
                f"run is {self.train.steps}; lower stop"
            )
        raise_all(ConfigError, problems, "RunConfig")

    @property
    def parent(self) -> RunConfig | None:
        """The config of a fork's control run; None for a run from scratch."""
        return replace(self, intervention=None) if self.intervention else None

    @property
    def updates(self) -> range:
        """The updates of this run; a fork begins at its `start`. Update k leads to step k + 1."""
        return range(self.intervention.start if self.intervention else 0, self.train.steps)

    def fork(
        self,
        transform: str,
        start: int,
        stop: int | None = None,
        domains: tuple[str, ...] = (),
    ) -> RunConfig:
        """Return the config of a fork, which branches off at `start` and reads changed text.

        Args:
            transform: one of TRANSFORMS.
            stop: first update that reads the original text again; default: the end of the run.
            domains: the domains whose documents are changed; empty: all documents.

        Raises:
            ConfigError: this run is a fork, or an argument is invalid.
        """
        if self.intervention:
            raise ConfigError(
                "this run is a fork (it has an intervention), and a fork cannot be forked; fork "
                "its control run instead"
            )
        end = self.train.steps if stop is None else stop
        window = InterventionConfig(transform, start, end, domains)
        return replace(self, intervention=window)


def config_dict(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to plain JSON types."""
    return json.loads(json.dumps(asdict(config)))


def stable_hash(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON, which is the same on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def run_config_from_dict(values: dict[str, Any]) -> RunConfig:
    """Rebuild a RunConfig from the result of `config_dict`; raise ConfigError for invalid input."""

    def build(kind: type, part: Any, where: str) -> Any:
        """Make a config of class `kind` from `part`, which error messages call `where`."""
        if not isinstance(part, dict):
            raise ConfigError(
                f'the entry "{where}" must be a JSON object, got {type(part).__name__}'
            )
        names = {f.name for f in fields(kind)}
        problems = [one_of(key, sorted(names), f"key in {where}") for key in part.keys() - names]
        try:
            raise_all(ConfigError, problems, where)
            return kind(**part)
        except TypeError as error:
            raise ConfigError(f"{where}: {error}") from error

    window = values.get("intervention")
    return RunConfig(
        model=build(ModelConfig, values.get("model"), "model"),
        data=build(DataConfig, values.get("data"), "data"),
        train=build(TrainConfig, values.get("train"), "train"),
        intervention=build(InterventionConfig, window, "intervention") if window else None,
    )


def config_differences(
    first: dict[str, Any], second: dict[str, Any], prefix: str = ""
) -> list[str]:
    """List the differences between two config dicts, each as "PREFIXkey: first != second"."""
    lines = []
    for key in sorted(first.keys() | second.keys()):
        a, b = first.get(key, "<absent>"), second.get(key, "<absent>")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += config_differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} != {b!r}")
    return lines
