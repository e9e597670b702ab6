"""Continues training from a local or released checkpoint, with or without a pronoun swap.

The paper's interventions (section 3.1) start at step 133,000 with the optimizer state, and read
the original batches. No optimizer state was released for the paper's forks, as far as we know. So a
continuation of released weights restarts Adam, and `Rewarm` sets the learning rate. With a saved
optimizer state, a continuation is exact, as if training had never stopped.

Every swap has a control. The control starts in the same way but reads unchanged batches, so swap
and control differ only in the data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pythia_book.released.continuation.data import RowSwap, TokenFileData, swap_row
from pythia_book.released.continuation.start import Start, check_rows, find_source, published_train
from pythia_core.config import (
    InterventionConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    config_dict,
    run_config_from_dict,
)
from pythia_core.data.interventions import Ledger
from pythia_core.data.prepare import Batches
from pythia_core.errors import CheckpointError, ConfigError, DataError, one_of
from pythia_core.training.checkpoint import sha256_tensors
from pythia_core.training.completion import check_file, write_done
from pythia_core.training.distributed import ALONE, World, check_memory, plan_state
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.metrics import MetricsLog, read_metrics
from pythia_core.training.runs import (
    DIFFERENT,
    Run,
    claim_folder,
    code_identity,
    find_folder,
    find_run,
    read_identity,
)
from pythia_core.training.schedule import PAPER_FORKS, checkpoint_steps, linear_steps
from pythia_core.training.train import Saving, train
from pythia_core.training.train import Start as TrainingStart
from pythia_core.training.trainer import Trainer, update_lr
from pythia_core.util.files import cached_file, is_intact, json_object, results_dir, write_json
from pythia_core.util.machine import device_info

# --- how a continuation begins ---------------------------------------------------------------

RULES = ("linear", "none", "constant")


@dataclass(frozen=True)
class Rewarm:
    """The learning rate of a run that starts without an optimizer state.

    - "linear": the scheduled rate times i / `updates` in update i, as long as i < `updates`.
    - "none": the scheduled rate.
    - "constant": the scheduled rate of the first update, in all updates.
    """

    rule: str = "linear"
    """One of RULES."""
    updates: int = 0
    """Number of updates in which "linear" raises the rate; 0 means 1 % of the run, rounded up."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(one_of(self.rule, RULES, "re-warming rule"))
        if self.updates < 0:
            raise ConfigError(
                "the number of re-warming updates (--rewarm-updates) must be at least 0, got "
                f"{self.updates}"
            )
        if self.updates and self.rule != "linear":
            raise ConfigError(
                "only the re-warming rule 'linear' takes a number of updates (--rewarm-updates); "
                f"got {self.updates} updates with the rule {self.rule!r} (--rewarm)"
            )


@dataclass(frozen=True)
class Continuation:
    """The settings of a continued run, apart from its weights, data, model and schedule."""

    start: int
    stop: int
    """The step at which the run ends."""
    adam_from: int
    """The step at which Adam's moments were zero; below `start` if the moments were kept."""
    rule: str
    rewarm_updates: int
    """Number of updates in which "linear" raises the learning rate from 0."""
    swap: str = ""

    @property
    def arm(self) -> str:
        """The name of the pronoun swap, or "control" if there is no swap."""
        return self.swap or "control"

    def lr(self, config: RunConfig, step: int) -> float:
        """Return the learning rate of the update from `step` to `step + 1`."""
        if self.rule == "constant":
            return update_lr(config, self.adam_from)
        lr = update_lr(config, step)
        warmed = step - self.adam_from
        return lr * warmed / self.rewarm_updates if warmed < self.rewarm_updates else lr

    def described(self) -> str:
        """Return a phrase that says how the run starts."""
        if self.adam_from != self.start:
            return f"exact continuation from the weights and optimizer state of step {self.start}"
        rate = {
            "linear": f"re-warmed from 0 in {self.rewarm_updates} updates",
            "none": "as scheduled, without re-warming",
            "constant": f"constant, as scheduled for step {self.start}",
        }[self.rule]
        return (
            f"continuation from only the weights of step {self.start}: Adam's moments start at "
            f"zero, and the learning rate is {rate}"
        )


class ContinuedTrainer(Trainer):
    """A trainer that starts at a step other than 0, with the learning rate of a Continuation."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        execution: Execution = EAGER,
        *,
        continuation: Continuation,
        world: World = ALONE,
    ) -> None:
        super().__init__(config, device, execution, world=world)
        self.continuation = continuation

    def lr(self) -> float:
        """Return the learning rate of the next update."""
        return self.continuation.lr(self.config, self.updates_made)

    @property
    def moments_age(self) -> int:
        """The number of updates since Adam started with zero moments."""
        return self.updates_made - self.continuation.adam_from


# --- the run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Continued(Run):
    """A continued run on disk, from step `continuation.start`."""

    continuation: Continuation

    def __reduce__(self) -> tuple:
        return Continued, (self.folder, self.config, self.data, self.continuation)

    @property
    def updates(self) -> range:
        """The run's updates: update k leads from step k to step k + 1."""
        return range(self.continuation.start, self.continuation.stop)

    @property
    def scheduled_steps(self) -> list[int]:
        """The steps at which weights are saved: as in a full run, and the first and last step."""
        scheduled = checkpoint_steps(self.config.train.steps)
        inside = {s for s in scheduled if self.continuation.start <= s <= self.continuation.stop}
        return sorted(inside | {self.continuation.start, self.continuation.stop})

    @cached_property
    def ledger(self) -> Ledger | RowSwap | None:
        """The pronoun swap of this run, a RowSwap for rows in token files; None for a control."""
        if not self.continuation.swap:
            return None
        window = InterventionConfig(
            self.continuation.swap, self.continuation.start, self.continuation.stop
        )
        return self.data.changes(window, self.config.train.batch_size, self.folder)

    @property
    def tokens_changed(self) -> int:
        """The number of tokens that the swap changed; 0 for a control."""
        logged = sum(line["tokens_changed"] for line in self.swaps)
        return logged or super().tokens_changed

    @property
    def place(self) -> dict[str, Any]:
        """The content of place.json: the config, and the places of source, rows and control."""
        return _read_place(self.folder)

    @property
    def swaps(self) -> list[dict[str, Any]]:
        """The log of a swap in token files, one `swap_row` per update; empty for any other run."""
        check_file(self.folder, "swaps.jsonl")
        return read_metrics(self.folder / "swaps.jsonl")

    @property
    def control(self) -> Run:
        """The run that starts in the same way but reads unchanged batches.

        A run without a swap is its own control. If a control would only repeat the local run from
        which this run starts, then that local run is the control.
        """
        if not self.continuation.swap:
            return self
        if self.place["control"]:
            return find_run(self.place["control"])
        identity = read_identity(self.folder)
        identity["continued"]["swap"] = ""
        unchanged = replace(self.continuation, swap="")
        folder, _ = _place(self.config.model, unchanged, identity)
        return Continued(folder, replace(self.config, intervention=None), self.data, unchanged)

    def batch(self, step: int) -> np.ndarray:
        """Return the swapped rows int[batch_size, S+1] of the update from `step` to `step + 1`.

        Raises a DataError if the run does not have this update.
        """
        if step not in self.updates:
            raise DataError(
                f"run {self.id} has the updates {self.updates[0]}..{self.updates[-1]}, but not the "
                f"requested update {step}"
            )
        size = self.config.train.batch_size
        batch = self.data.batch(step, size)
        return batch if self.ledger is None else self.ledger.apply(batch, step * size)

    def _training_batches(self, logged: bool) -> Callable[[int], np.ndarray]:
        """Return a function like `batch`; if `logged`, log swaps of token files in swaps.jsonl."""
        if not logged or self.ledger is None or self.ledger.recorded:
            return self.batch
        swap, size = self.ledger, self.config.train.batch_size
        logs: list[MetricsLog] = []

        def batch(step: int) -> np.ndarray:
            rows = self.data.batch(step, size)
            changes = swap.ledger(rows, step * size)
            if not logs:  # drops the lines of updates that were lost in a crash
                logs.append(MetricsLog(self.folder / "swaps.jsonl", step))
            logs[0].write(swap_row(step + 1, changes, rows.shape[1]))
            return changes.apply(rows, step * size)

        return batch


# --- continuing ------------------------------------------------------------------------------


def find_or_continue(
    source: Path | str,
    step: int,
    steps: int,
    batches: TokenFileData | None = None,
    intervention: str | None = None,
    *,
    revision: str = "",
    train_config: TrainConfig | None = None,
    rewarm: Rewarm | None = None,
    state: str = "auto",
    progress: bool = True,
    world: World = ALONE,
) -> Continued:
    """Find, resume or train the run that continues a checkpoint for `steps` updates.

    With an intervention, its control (`Continued.control`) is found or trained first.

    Args:
        source: a local run (folder or id), a published model (its folder, or a folder with one
            subfolder per revision), or a repository on the hub.
        step: the step of the checkpoint.
        batches: rows in training order; update k reads rows [k B, (k + 1) B) with batch size B.
            None: the rows of the source, which must be a local run.
        intervention: a pronoun swap (config.SWAPS), applied in every update; None for a control.
        revision: the revision of a published model; default: f"step{step}".
        train_config: batch size, schedule and optimizer; default: as in the source.
        rewarm: default: Rewarm(). Allowed only if there is no optimizer state.
        state: which optimizer state to use, as in `Source.start`.
        world: the processes that train together; all of them must call this function.

    Raises:
        ConfigError, DataError, CheckpointError, FetchError: settings, rows or source are invalid;
            raised before any training.
        TrainingError: see pythia_core.training.train.
    """
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    with world.rank_zero_first():  # the others find what it has downloaded and decided
        start = find_source(source).start(step, revision, state)
        settings = steps, batches, train_config, rewarm, world
        swapped = locate_continued(start, intervention or "", *settings)
        arms = [swapped]
        if intervention and not swapped.place["control"]:
            arms.insert(0, locate_continued(start, "", *settings))
    for run in arms:
        world.check_same(run.folder.name, "the run to train", DIFFERENT)
        if not world.from_rank_zero(run.finished):
            _train(run, start, progress, world)
    return swapped


def locate_continued(
    start: Start,
    swap: str,
    steps: int,
    batches: TokenFileData | None,
    train_config: TrainConfig | None = None,
    rewarm: Rewarm | None = None,
    world: World = ALONE,
) -> Continued:
    """Check a continued run, write its identity.json and place.json, and return the run.

    Args:
        swap: a pronoun swap (config.SWAPS); "" for a control.
        steps, batches, train_config, rewarm, world: as for `find_or_continue`.

    Raises:
        ConfigError, DataError: the settings or the rows are invalid.
    """
    data: Batches | None = batches if batches is not None else start.run and start.run.data
    if data is None:
        raise ConfigError(
            "a published model comes without training data; pass the rows to train on as `batches`"
        )
    continuation = _continuation(start, steps, swap, rewarm)
    if train_config is None and start.run is not None:
        train_config = start.run.config.train
    train_config = train_config or published_train(start.model, data.rows.seq_len)
    config = RunConfig(start.model, data.config, train_config)
    if "dedup" in start.label:
        config = replace(config, data=replace(data.config, dedup="eleutherai-0.87"))
    if swap and continuation.stop <= train_config.steps:  # the config records it
        window = InterventionConfig(swap, continuation.start, continuation.stop)
        config = replace(config, intervention=window)
    execution = Execution.from_environment()
    identity = {
        "continued": asdict(continuation),
        "weights": sha256_tensors(start.weights),
        "moments": sha256_tensors(start.moments) if start.moments else "",
        "model": config_dict(start.model),
        "train": config_dict(train_config),
        "data": data.identity(start.step, continuation.stop, train_config.batch_size, swap),
        "code": code_identity(execution, plan_state(world, config, execution)),
    }
    check_rows(start, data, train_config.batch_size)
    folder, identity = _place(start.model, continuation, identity)
    run = _name_of(start.run) if start.run is not None else None
    forks = _is_its_control(start, data, continuation, train_config)
    place = {
        "source": start.label,
        "published": start.published,
        "revision": start.revision,
        "run": run,
        "control": run if forks else None,
        "rows": asdict(batches) if batches is not None else None,
        "config": config_dict(config),
    }
    claim_folder(folder, identity)
    # always rewritten, because the rows may have moved
    cached_file(folder / "place.json", lambda path: write_json(path, place), rewrite=True)
    return Continued(folder, config, data, continuation)


def _is_its_control(
    start: Start, data: Batches, continuation: Continuation, config: TrainConfig
) -> bool:
    """Whether a control would only repeat the local run that saved `start`, bit for bit."""
    run = start.run
    if run is None or start.moments is None or run.ledger is not None:
        return False
    same = data is run.data and config == run.config.train
    return same and run.finished and continuation.stop == run.updates.stop


def _continuation(start: Start, steps: int, swap: str, rewarm: Rewarm | None) -> Continuation:
    """Return a run's settings; raise a ConfigError for `rewarm` if there is a saved state."""
    stop = start.step + steps
    if start.moments is None:
        rewarm = rewarm or Rewarm()
        updates = rewarm.updates or (-(-steps // 100) if rewarm.rule == "linear" else 0)
        return Continuation(start.step, stop, start.step, rewarm.rule, updates, swap)
    if rewarm is not None:
        raise ConfigError(
            f"{start.label} has an optimizer state (step {start.step}), so the learning rate "
            "cannot be re-warmed. Omit the re-warming rule (--rewarm), or set state (--state) to "
            "'weights' to continue from the weights alone"
        )
    assert start.run is not None  # only a local run keeps its optimizer state
    earlier = read_identity(start.run.folder).get("continued")
    if earlier:  # keeps its rule
        return replace(Continuation(**earlier), start=start.step, stop=stop, swap=swap)
    return Continuation(start.step, stop, 0, "none", 0, swap)


def _name_of(run: Run) -> str:
    """Return the name by which `find_run` finds a run, even if the folder of results is moved."""
    runs = results_dir() / "runs"
    return run.folder.name if run.folder.resolve().parent == runs.resolve() else str(run.folder)


def _read_place(folder: Path) -> dict[str, Any]:
    """Read place.json; raise a CheckpointError if it was changed or damaged."""
    path = folder / "place.json"
    if not is_intact(path):
        raise CheckpointError(
            f"{path} is missing or damaged; repeat the `continue` command of this run, which "
            "rewrites the file"
        )
    return json_object(path.read_bytes())


def _place(
    model: ModelConfig, continuation: Continuation, identity: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a continued run and its identity; see `runs.find_folder`."""
    role = f"{continuation.arm}-{continuation.start}-{continuation.stop}"
    return find_folder(f"L{model.n_layers}-d{model.d_model}-continued-{role}", identity)


def _train(run: Continued, start: Start, progress: bool, world: World) -> None:
    """Train a continued run to its end, and record that the run is finished."""
    execution = Execution.from_environment()
    world = plan_state(world, run.config, execution)
    with world.rank_zero_first():
        check_memory(world, run.config, execution)
        _ = run.ledger  # the first process writes it
    count = sum(t.numel() for t in start.weights.values())
    zero = torch.zeros(1).expand(count)
    moments = start.moments or {"exp_avg": zero, "exp_avg_sq": zero}

    def finish(sha256: str) -> None:
        """Record that the run is finished."""
        entries = {"final_sha256": sha256, "machine": device_info(), "processes": world.size}
        write_done(run.folder, entries)

    with Prefetch(
        run._training_batches(logged=world.is_rank_zero), run.continuation.stop
    ) as batches:
        train(
            run.config,
            batches,
            run.folder,
            start=TrainingStart(start.step, {"model": start.weights, "optimizer": moments}),
            stop_at=run.continuation.stop,
            saving=Saving(
                weights=frozenset(run.scheduled_steps),
                states=linear_steps(PAPER_FORKS, run.config.train.steps),
            ),
            make_trainer=functools.partial(ContinuedTrainer, continuation=run.continuation),
            progress=progress,
            label=f"continuing {start.label} from step {run.updates.start}, {run.continuation.arm}",
            execution=execution,
            world=world,
            finish=finish,
        )


def open_continued(folder: Path) -> Continued:
    """Open a continued run by its folder.

    Raises a CheckpointError if the folder is not a continued run, or the data are missing.
    """
    try:
        identity = read_identity(folder)
        place = _read_place(folder)
        continuation = Continuation(**identity["continued"])
        config = run_config_from_dict(place["config"])
        if any(config_dict(config)[part] != identity[part] for part in ("model", "train")):
            raise ValueError("place.json and identity.json have different settings")
        files = place["rows"]
        data: Batches = TokenFileData(**files) if files else find_run(place["run"]).data
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder} is not a continued run: {error!r}") from error
    return Continued(folder, config, data, continuation)


# --- prefetch --------------------------------------------------------------------------------

DEPTH = 4
"""Number of batches to prefetch; a batch of the pre-shuffled Pile has 4.2 MB."""


class Prefetch:
    """Calls `batch_at` for ascending steps, and reads the next `depth` batches in a thread.

    No batch from step `stop` on is read in advance. If a batch cannot be read, the error is raised
    when this batch is requested. The end of a `with` block ends the thread.
    """

    def __init__(
        self, batch_at: Callable[[int], np.ndarray], stop: int, depth: int = DEPTH
    ) -> None:
        self._batch_at, self._stop, self._depth = batch_at, stop, depth
        self._batches: dict[int, Future[np.ndarray]] = {}
        self._reader = ThreadPoolExecutor(1, "prefetch")  # one thread keeps the order of reads

    def __call__(self, step: int) -> np.ndarray:
        """Return the batch of the update from `step` to `step + 1`."""
        for later in range(step, min(step + 1 + self._depth, max(self._stop, step + 1))):
            if later not in self._batches:
                self._batches[later] = self._reader.submit(self._batch_at, later)
        return self._batches.pop(step).result()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
