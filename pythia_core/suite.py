"""The model sizes, the book-wide setting `scale`, and the suite of sixteen runs.

The official sizes have the shapes and learning rates of the released configs (EleutherAI/pythia,
models/*/*.yml), even where the paper's table differs. For example, the learning rate of 1B is
2.5e-4 in its config and 3.0e-4 in the table.

The suite trains eight sizes on two corpora each, as Pythia does. Models of one size start from the
same weights. Models on one corpus read the same batches in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pythia_core.config import (
    DOMAINS,
    LARGE_DOMAINS,
    PLANTED_DOMAINS,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from pythia_core.errors import ConfigError, one_of, raise_all
from pythia_core.training.precision import best_precision
from pythia_core.training.schedule import linear_step

T = TypeVar("T")

# --- sizes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A model size."""

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    lr_max: float
    vocab_size: int | None = None
    """Padded size of the vocabulary; None except for the official sizes."""
    init: str = "small_wang"

    def model(self, vocab_size: int | None = None, **overrides: Any) -> ModelConfig:
        """Return the ModelConfig of this size; raise ConfigError if a field is missing or invalid.

        Args:
            vocab_size: needed if the size has no vocabulary of its own, otherwise ignored.
            overrides: fields of ModelConfig to set or replace.
        """
        vocab = self.vocab_size or vocab_size
        if vocab is None:
            raise ConfigError(
                f"the size {self.name!r} has no fixed vocabulary; pass a vocab_size, e.g. 4096"
            )
        shape = {"n_layers": self.n_layers, "d_model": self.d_model, "n_heads": self.n_heads}
        return ModelConfig(**{**shape, "vocab_size": vocab, "init": self.init, **overrides})


OFFICIAL_SIZES = {
    size.name: size
    for size in (
        # name, layers, width, heads, peak LR, padded vocabulary, init
        Size("14m", 6, 128, 4, 1.0e-3, 50_304),
        Size("31m", 6, 256, 8, 1.0e-3, 50_304),
        Size("70m", 6, 512, 8, 1.0e-3, 50_304),
        Size("160m", 12, 768, 12, 6.0e-4, 50_304),
        Size("410m", 24, 1024, 16, 3.0e-4, 50_304),
        Size("1b", 16, 2048, 8, 2.5e-4, 50_304),
        Size("1.4b", 24, 2048, 16, 2.0e-4, 50_304),
        Size("2.8b", 32, 2560, 32, 1.6e-4, 50_304),
        Size("6.9b", 32, 4096, 32, 1.2e-4, 50_432, "normal_scaled"),
        Size("12b", 36, 5120, 40, 1.2e-4, 50_688, "normal_scaled"),
    )
}
"""The ten official sizes, named by their number of parameters in *total*, as on the hub."""

LAPTOP_SIZES = {
    size.name: size
    for size in (
        Size("7k", 2, 16, 1, 4.0e-2),
        Size("13k", 4, 16, 1, 4.0e-2),
        Size("25k", 2, 32, 2, 4.0e-2),
        Size("38k", 3, 32, 2, 2.0e-2),
        Size("85k", 3, 48, 3, 2.0e-2),
        Size("150k", 3, 64, 4, 1.0e-2),
        Size("310k", 4, 80, 5, 1.0e-2),
        Size("600k", 4, 112, 7, 5.0e-3),
    )
}
"""Eight sizes for two cores, named by their number of *non-embedding* parameters. All heads have 16
dims. Of several peak learning rates tried, each size has the one with the lowest held-out loss
(`bench learning-rates`; table on the page Method)."""

GPU_SIZES = {
    size.name: size
    for size in (
        Size("1.2m", 6, 128, 4, 1.0e-3),  # shape and rate of the official 14M
        Size("2.7m", 6, 192, 6, 1.0e-3),
        Size("4.7m", 6, 256, 8, 1.0e-3),  # the official 31M
        Size("7.4m", 6, 320, 5, 1.0e-3),
        Size("11m", 6, 384, 6, 1.0e-3),
        Size("19m", 6, 512, 8, 1.0e-3),  # the official 70M
        Size("39m", 8, 640, 10, 7.8e-4),
        Size("85m", 12, 768, 12, 6.0e-4),  # the official 160M
    )
}
"""Eight sizes for one large GPU, named by their number of *non-embedding* parameters: the four
smallest official shapes and four in between. Heads have 32 or 64 dims. Peak learning rates follow
the official ones: 1e-3 up to 18.9 M parameters, 6e-4 at 85 M, log-linear in between."""

SIZES = {**LAPTOP_SIZES, **GPU_SIZES, **OFFICIAL_SIZES}


def size_named(name: str) -> Size:
    """Return the size with this name; raise ConfigError if there is none."""
    if name not in SIZES:
        raise ConfigError(one_of(name, SIZES, "size"))
    return SIZES[name]


def nominal_parameters(size: str) -> float:
    """Return the number of parameters that the name of a size states, e.g. 1.4e9 for "1.4b".

    The names of the official sizes count all parameters; other names leave out embeddings.
    """
    return float(size[:-1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[size[-1]]


def size_of(model: ModelConfig, sizes: Mapping[str, Size] = SIZES) -> Size | None:
    """Return the first size with the model's layers, width and heads; None if there is none."""
    shape = (model.n_layers, model.d_model, model.n_heads)
    matches = (s for s in sizes.values() if (s.n_layers, s.d_model, s.n_heads) == shape)
    return next(matches, None)


def size_name(model: ModelConfig) -> str:
    """Return the name of a model's size, or "LAYERSxWIDTHxHEADS" ("2x16x2") if no size fits."""
    size = size_of(model)
    return size.name if size else f"{model.n_layers}x{model.d_model}x{model.n_heads}"


# --- scales ----------------------------------------------------------------------------------


DEDUP = "jaccard-0.87"
"""Recipe for the suite's deduplicated corpus; 0.87 is the paper's similarity threshold."""


@dataclass(frozen=True)
class Scale:
    """A value of the setting `scale`: the updates, batch size, data and model sizes of a study."""

    name: str
    machine: str
    """The machine that the scale is for, and how long studies take there."""
    steps: int
    batch_size: int
    data: DataConfig = field(default_factory=DataConfig)
    sizes: tuple[str, ...] = ()
    """Sizes of the suite."""
    published: bool = False
    """Whether studies use the released models instead of training from scratch."""
    based_on: str = ""
    """The larger scale whose defaults studies use; "": none."""

    def default_in(self, table: Mapping[str, T], default: T) -> T:
        """Return the entry for this scale or for the one it is based on, or else `default`."""
        return table.get(self.name, table.get(self.based_on, default))

    def size_list(self, text: str, default: str = "") -> tuple[str, ...]:
        """Parse a comma-separated list of sizes; return their names, the smallest size first.

        Args:
            text: the list; if empty, `default` is used.
            default: another list; if empty, all sizes of the scale are used.

        Raises:
            ConfigError: a size is unknown or repeated, or the list has only commas.
        """
        names = [name.strip() for name in (text or default).split(",") if name.strip()]
        if (text or default) and not names:
            raise ConfigError(
                f"there are no sizes in the list {text!r}; write e.g. {','.join(self.sizes[-2:])}"
            )
        names = names or list(self.sizes)
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ConfigError(
                f"the list of sizes {text or default!r} has {', '.join(sorted(repeated))} more "
                "than once; name each size once"
            )
        sizes = [size_named(name) for name in names]
        return tuple(s.name for s in sorted(sizes, key=lambda s: s.n_layers * s.d_model**2))

    def run(
        self,
        size: str,
        order_seed: int = 1234,
        weight_seed: int = 1234,
        deduplicated: bool = False,
        **train: Any,
    ) -> RunConfig:
        """Return the config of a control run (one without intervention) at this scale.

        As in Pythia, the deduplicated corpus is read about one and a half times, so its training
        order has two epochs. The vocabulary is padded to a multiple of 128, as in GPT-NeoX.

        Args:
            train: fields of TrainConfig to set or replace.

        Raises:
            ConfigError: a size is unknown, a value is invalid, or the scale trains no control runs.
        """
        if self.published:
            raise ConfigError(
                f"at the scale {self.name!r}, no model is trained from scratch; choose another "
                "scale, or a study of the released models"
            )
        shape = size_named(size)
        vocab = 50_304
        if self.data.tokenizer.startswith("bpe-"):
            vocab = -(-int(self.data.tokenizer.removeprefix("bpe-")) // 128) * 128
        model = shape.model(vocab, max_seq_len=self.data.seq_len)
        data = replace(self.data, dedup=DEDUP, epochs=2) if deduplicated else self.data
        return RunConfig(
            model=model,
            data=replace(data, order_seed=order_seed),
            train=TrainConfig(
                **{
                    "steps": self.steps,
                    "batch_size": self.batch_size,
                    "lr_max": shape.lr_max,
                    "weight_seed": weight_seed,
                    **train,
                }
            ),
        )

    def fork_step(self, index: int) -> int:
        """Return the step at the same fraction of a run as the official step 1000 * `index`."""
        return linear_step(index, self.steps)


_GPU = Scale(
    "gpu",
    "one large GPU: minutes per study (predicted)",
    steps=1001,
    batch_size=128,
    data=DataConfig("large", (*LARGE_DOMAINS, *PLANTED_DOMAINS), tokenizer="bpe-8192", seq_len=512),
    sizes=tuple(GPU_SIZES),
)

SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            "2 cores: tests, seconds per notebook",
            steps=16,
            batch_size=8,
            data=DataConfig(
                "miniature",
                ("biographies", *PLANTED_DOMAINS),
                tokenizer="bpe-1536",  # a smaller one would split the made-up nouns
                seq_len=64,
                heldout_fraction=0.1,
            ),
            sizes=("7k", "25k"),
        ),
        Scale(
            "laptop",
            "2 cores, no GPU: minutes per study with default parameters",
            steps=572,
            batch_size=32,
            data=DataConfig("miniature", (*DOMAINS, *PLANTED_DOMAINS), heldout_fraction=0.1),
            sizes=tuple(LAPTOP_SIZES),
        ),
        replace(  # the same text and updates, so tokens and models are those of `gpu`
            _GPU,
            name="gpu-short",
            machine="one large GPU: a quarter of an hour for the studies of its models (predicted)",
            sizes=("1.2m", "4.7m", "11m", "19m"),  # as many as fit; `budget` predicts the time
            based_on="gpu",
        ),
        _GPU,
        Scale(
            "paper",
            "a large GPU: days per size; needs the released models and data",
            steps=143_000,
            batch_size=1024,
            data=DataConfig(tokenizer="neox-20b", seq_len=2048),
            sizes=("70m", "410m", "1.4b"),
            published=True,
        ),
    )
}


def scale_named(name: str) -> Scale:
    """Return the scale with this name; raise ConfigError if there is none."""
    if name not in SCALES:
        raise ConfigError(one_of(name, SCALES, "scale"))
    return SCALES[name]


# --- the suite -------------------------------------------------------------------------------

DATA_ARMS = ("standard", "deduplicated")
SUITE_SEED = 1234
"""The seed of both weights and data order of the suite, as for the released models."""

Cell = tuple[str, str]
"""A run of the suite, as (size, data arm). The data arm is one of the corpora in DATA_ARMS."""


def suite_configs(
    scale: str, sizes: Sequence[str], arms: Sequence[str] = DATA_ARMS, seed: int = SUITE_SEED
) -> dict[Cell, RunConfig]:
    """Map each pair (size, data arm) to the config of its run.

    Args:
        arms: names in DATA_ARMS.
        seed: seed of both weights and data order, as in Pythia.

    Raises:
        ConfigError: unknown scale, size or arm.
    """
    unknown = [one_of(arm, DATA_ARMS, "arm") for arm in arms if arm not in DATA_ARMS]
    raise_all(ConfigError, unknown, "suite")
    precision = best_precision()
    return {
        (size, arm): scale_named(scale).run(
            size, seed, seed, deduplicated=arm == "deduplicated", precision=precision
        )
        for size in sizes
        for arm in arms
    }
