"""Defines the parameters of the phases study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams
from pythia_core.config import LABORATORY_DOMAINS, DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import scale_named, suite_configs
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep
from pythia_core.training.schedule import checkpoint_steps

STUDY = "phases"
MEASURING = MeasuringCost(heldout=26)
LABORATORY = DataConfig(
    "laboratory", LABORATORY_DOMAINS, tokenizer="bpe-384", seq_len=64, heldout_fraction=0.02
)
"""The text of the laboratory. The tokenizer has a token for each syllable."""
WIDTH, HEADS, RATE = 64, 4, 1e-2
WIDTH_GPU, RATE_GPU = 128, 5e-3
"""Width and peak learning rate at the scales for GPUs, where heads have at least 32 dims."""
LABORATORY_UPDATES, LABORATORY_BATCH, LABORATORY_WARMUP = 572, 64, 0.05
"""Learning rates and warm-up were chosen in pilot runs so that models of two layers learn to copy
about halfway through. The warm-up, longer than Pythia's, lets them learn it earlier."""
DEPTHS = (1, 2, 4, 8)
"""Numbers of layers that models of the laboratory can have."""
FIRST_SEED = 2000
"""First seed of the laboratory. Lower seeds were used to design the study."""


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the phases study."""

    seed: int = 1234
    bootstrap: int = 2000
    steps: str = "all"
    """Checkpoints to measure: "all", or a comma-separated list of steps, e.g. "first,512,last"."""
    source: str = ""
    """Released models to measure at the scale `paper`: comma-separated repositories or folders."""
    data: str = ""
    """The training rows of the released models: a name or folder, as for `inspect --data`."""
    batches: int = 16
    """Number of batches of `data` on which n-grams are counted."""
    layers: int = 2
    """Depth of the deepest models of the laboratory, which has all of DEPTHS up to this one."""
    seeds: int = 2
    """Number of models of each laboratory depth, with the seeds FIRST_SEED, FIRST_SEED + 1, ..."""

    PUBLISHED: ClassVar = True
    WHOLE: ClassVar = {"batches": (1, 143_000), "layers": (1, DEPTHS[-1]), "seeds": (1, 100)}
    DEFAULT_SIZES: ClassVar = {
        "smoke": "7k",
        "laptop": "25k,150k,600k",
        "gpu": "1.2m,4.7m,11m",
    }

    @property
    def released(self) -> bool:
        """Whether the study measures released models."""
        return scale_named(self.scale).published

    def check(self) -> None:
        """Raise ConfigError if released models or their data are missing or out of place, or if
        `steps` or `layers` is invalid.
        """
        if self.released and not (self.source and self.data):
            raise ConfigError(
                f"--scale {self.scale} requires source and data, got source={self.source!r} and "
                f"data={self.data!r}. Set source to released models, e.g. EleutherAI/pythia-70m "
                "or a folder with its steps. Set data to the rows on which these models were "
                "trained, e.g. pile-standard (read over the network) or a folder with its shards"
            )
        if self.released and self.sizes:
            raise ConfigError(
                f"sizes must be empty with --scale {self.scale}, where source names the models; "
                f"got {self.sizes!r}"
            )
        if not self.released and (self.source or self.data):
            raise ConfigError(
                "source and data are only for --scale paper. With --scale "
                f"{self.scale}, both must be empty, got source={self.source!r} and "
                f"data={self.data!r}"
            )
        if not self.released and self.batches != type(self).batches:
            raise ConfigError(
                f"batches applies only to --scale paper; with --scale {self.scale}, n-grams are "
                f"counted on all text, so leave it out (got batches={self.batches})"
            )
        saved = checkpoint_steps(scale_named(self.scale).steps)
        listed = [step.strip() for step in self.steps.split(",")]
        numbers = [step for step in listed if step not in ("first", "last")]
        if self.steps != "all" and (
            len(set(listed)) < len(listed) or not set(numbers) <= {str(step) for step in saved}
        ):
            raise ConfigError(
                f'steps must be "all", or a comma-separated list of different checkpoints at the '
                f'scale {self.scale}, e.g. "first,{saved[-2]},last"; got {self.steps!r}'
            )
        if self.layers not in DEPTHS:
            raise ConfigError(
                f"layers must be one of {', '.join(map(str, DEPTHS))}; got {self.layers}"
            )

    @property
    def depths(self) -> list[int]:
        """The depths of the models of the laboratory, ascending."""
        return [depth for depth in DEPTHS if depth <= self.layers]

    @property
    def size_list(self) -> tuple[str, ...]:
        """The model sizes, smallest first. At the scale `paper`, `source` sets the sizes."""
        if self.released and self.source:
            from pythia_book.studies.phases.released import released_models

            return tuple(released_models(self.source))
        return super().size_list


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses."""
    suite = suite_configs(params.scale, params.size_list, ("standard",), params.seed)
    return [*suite.values(), *laboratory_runs(params).values()]


def laboratory_runs(params: Params) -> dict[tuple[int, int], RunConfig]:
    """Map (layers, seed) to the config of each run of the laboratory; {} at the scale `paper`."""
    if params.released:
        return {}
    steps = min(scale_named(params.scale).steps, LABORATORY_UPDATES)
    on_cpu = params.scale in ("smoke", "laptop")
    width, rate = (WIDTH, RATE) if on_cpu else (WIDTH_GPU, RATE_GPU)
    vocab_size = int(LABORATORY.tokenizer.removeprefix("bpe-"))
    return {
        (layers, seed): RunConfig(
            ModelConfig(layers, width, HEADS, vocab_size, max_seq_len=LABORATORY.seq_len),
            replace(LABORATORY, order_seed=seed),
            TrainConfig(
                steps,
                LABORATORY_BATCH,
                rate,
                warmup_fraction=LABORATORY_WARMUP,
                weight_seed=seed,
                precision=best_precision(),
            ),
        )
        for layers in params.depths
        for seed in range(FIRST_SEED, FIRST_SEED + params.seeds)
    }


def laboratory_steps(run: RunConfig) -> list[int]:
    """Return the steps at which a run of the laboratory is measured: every second checkpoint."""
    return checkpoint_steps(run.train.steps)[::-2][::-1]


def keep(params: Params, run: RunConfig) -> Keep | None:
    """Return None (keep all) for the suite's runs, and what is measured for the laboratory's."""
    if run.data.corpus == LABORATORY.corpus:
        return Keep(frozenset(laboratory_steps(run)), prune_small=True)
    precision = run.train.precision  # compare at the precision of the machine that is planned for
    own = {replace(r, train=replace(r.train, precision=precision)) for r in runs(params)}
    return None if run in own else Keep()
