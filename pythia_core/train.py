"""The training loop, top to bottom: one function that a reader can follow line by line.

Everything that varies with the step is a pure function of it (batch, learning rate, what to save),
so the only state is the weights, the Adam moments and the step number; resumption is bit-exact on
the same kind of machine and library versions. Nothing is random after the initialisation. On a CPU
a run uses one thread, so that its bits do not depend on the cores; several runs use several cores.

Not here: finding or naming runs (pythia_core.runs), which data (prepare, intervene).
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pythia_core.checkpoint import (
    newest_loadable,
    prune,
    save_checkpoint,
    sha256_tensors,
    sweep_temporaries,
)
from pythia_core.config import RunConfig
from pythia_core.errors import CheckpointError, DataError, TrainingError
from pythia_core.execution import EAGER, Execution
from pythia_core.metrics import MetricsLog, device_info, keep_freed_memory
from pythia_core.model import GPTNeoX, LayerNorm
from pythia_core.optim import FlatParameters, make_optimizer
from pythia_core.order import batch_hash
from pythia_core.parallel import one_thread
from pythia_core.progress import bar as progress_bar
from pythia_core.schedule import checkpoint_steps, learning_rate

TRAJECTORY_VERSION = 2
"""Part of every run's identity: raise it when a change alters what a run computes."""
STATE_EVERY_SECONDS = 2.0
"""A crash loses about this much work, or more where saving takes long:"""
STATE_SHARE = 0.02
"""share of the time that saving states may take."""
LOCK_SECONDS = 3.0
"""How long to wait for another process to let go of a run."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

State = dict[str, dict[str, Tensor]]


def update_lr(config: RunConfig, step: int) -> float:
    """Learning rate of the update that leads from step `step` to `step + 1`."""
    t = config.train
    update = step if t.first_update_at_lr_zero else step + 1
    lr_min = t.lr_max * t.lr_min_ratio
    return learning_rate(update, t.steps, t.lr_max, lr_min, t.warmup_fraction, t.lr_form)


class Trainer:
    """A model with its optimizer: the state of a run between two updates."""

    def __init__(
        self, config: RunConfig, device: torch.device, execution: Execution = EAGER
    ) -> None:
        execution.check(device.type)
        self.config, self.device, self.execution, self.step = config, device, execution, 0
        self.model = GPTNeoX(config.model)
        self.model.init_weights(config.train.weight_seed)
        self.model.to(device)
        self.flat = FlatParameters(self.model, DTYPES[config.train.precision])
        self.optimizer = make_optimizer(self.flat, config.train)
        for group in (self.flat.decayed, self.flat.undecayed):
            self.optimizer.state[group] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(group),
                "exp_avg_sq": torch.zeros_like(group),
            }

    def update(self, batch: np.ndarray) -> tuple[float, float, float]:
        """One optimizer step on rows of S+1 tokens (batch, S+1); returns loss, lr, gradient norm.

        Raises:
            TrainingError: loss or gradient is not finite; the weights are left untouched.
            DataError: no rows, or an id that the model has no embedding for.
        """
        vocab_size = self.config.model.vocab_size
        if not batch.size or batch.min() < 0 or batch.max() >= vocab_size:
            seen = f"ids {batch.min()}..{batch.max()}" if batch.size else "no rows"
            raise DataError(
                f"the batch of update {self.step} has {seen}; the model's vocabulary is "
                f"0..{vocab_size - 1}: data and model do not belong together"
            )
        rows = torch.from_numpy(batch.astype(np.int64)).to(self.device)
        micro = self.config.train.micro_batch or len(rows)
        self.flat.grad.zero_()
        loss = 0.0
        for part in rows.split(micro):
            part_loss = self.model.loss(part) * (len(part) / len(rows))
            part_loss.backward()
            loss += part_loss.item()
        grad_norm = self.flat.clip(self.config.train.grad_clip)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"loss {loss}, gradient norm {grad_norm} at update {self.step} (batch "
                f"{batch_hash(batch)}): the optimizer was not stepped, the weights are those of "
                f"step {self.step}. Try a lower lr_max (now {self.config.train.lr_max}) or fp32."
            )
        lr = self.lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.flat.refresh_copies()
        self.step += 1
        return loss, lr, grad_norm

    def lr(self) -> float:
        """Learning rate of the next update."""
        return update_lr(self.config, self.step)

    def weights(self) -> dict[str, Tensor]:
        """The tensors that the next forward reads: fp32, in bf16 runs bf16 but for LayerNorms."""
        dtype = DTYPES[self.config.train.precision]
        norms = {n for n, m in self.model.named_modules() if isinstance(m, LayerNorm)}
        return {
            name: p.detach() if name.rsplit(".", 1)[0] in norms else p.detach().to(dtype)
            for name, p in self.model.named_parameters()
        }

    def state(self) -> State:
        """Everything that exact resumption needs, by tensor name."""
        groups = (self.flat.decayed, self.flat.undecayed)
        moments = {
            key: torch.cat([self.optimizer.state[g][key] for g in groups])
            for key in ("exp_avg", "exp_avg_sq")
        }
        masters = {name: p.detach() for name, p in self.model.named_parameters()}
        return {"model": masters, "optimizer": moments}

    def load_state(self, step: int, state: State) -> None:
        """Put a saved `state()` back.

        Raises:
            CheckpointError: tensors of another architecture.
        """
        parameters = dict(self.model.named_parameters())
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        theirs = {name: tuple(t.shape) for name, t in state.get("model", {}).items()}
        if shapes != theirs:
            names = sorted(shapes.keys() | theirs.keys())
            differing = [n for n in names if shapes.get(n) != theirs.get(n)]
            raise CheckpointError(
                f"the state of step {step} is of another architecture: {', '.join(differing[:4])} …"
            )
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(state["model"][name])
        n_decayed = self.flat.decayed.numel()
        for key in ("exp_avg", "exp_avg_sq"):
            flat = state["optimizer"][key].to(self.device)
            self.optimizer.state[self.flat.decayed][key].copy_(flat[:n_decayed])
            self.optimizer.state[self.flat.undecayed][key].copy_(flat[n_decayed:])
        for group in self.optimizer.state.values():
            group["step"].fill_(step)
        self.flat.refresh_copies()
        self.step = step


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the lock vanishes with it, however it ends.

    A worker whose parent was killed holds it for a moment longer, so one is patient.
    """
    patience = time.monotonic() + LOCK_SECONDS
    with open(folder / ".lock", "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > patience:
                    raise TrainingError(
                        f"{folder} is being trained by another process; wait for it or stop it"
                    ) from error
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM arrived; a second one acts at once."""
    arrived: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        arrived.append(number)
        signal.signal(number, previous[number])

    with contextlib.suppress(ValueError):  # not the main thread: keep the default handling
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    config: RunConfig,
    batch_at: Callable[[int], np.ndarray],
    folder: Path,
    *,
    initial: tuple[int, State] | None = None,
    keep_states: frozenset[int] = frozenset(),
    first_saved_step: int = 0,
    stop_at: int | None = None,
    also_save: frozenset[int] = frozenset(),
    make_trainer: Callable[[RunConfig, torch.device], Trainer] = Trainer,
    progress: bool = True,
    label: str = "train",
    device: torch.device | None = None,
) -> str:
    """Train a run to its end (or to `stop_at`), from its newest state if it has one.

    Args:
        batch_at: step -> (batch_size, S+1) token ids, a pure function.
        folder: the run's own; gets checkpoints/, states/ and metrics.jsonl.
        initial: step and state to start from when the folder has none (a fork's branching point).
        keep_states: steps whose full state is never pruned.
        first_saved_step: scheduled checkpoints before it are not written (they are the parent's).
        stop_at: last step to reach in this call; the state there is kept.
        also_save: further steps whose weights are written.
        make_trainer: of a run whose optimizer is another one (pythia_core.continued).

    Returns:
        sha256 of the fp32 weights at the step reached.

    Raises:
        TrainingError: a non-finite loss, no space left, or another process on the same run.
        KeyboardInterrupt: after SIGINT or SIGTERM, once the state is saved; call again to go on.
    """
    keep_freed_memory()
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":  # on CPUs every operation used here is deterministic already
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    checkpoints, states = folder / "checkpoints", folder / "states"
    for path in (checkpoints, states):
        path.mkdir(parents=True, exist_ok=True)
    end = config.train.steps if stop_at is None else stop_at
    keep = set(keep_states) | {end, config.train.steps}
    scheduled = {s for s in checkpoint_steps(config.train.steps) if s >= first_saved_step}
    scheduled |= also_save

    with one_thread(), _locked(folder), _stop_requests() as stop_requested:
        sweep_temporaries(checkpoints)
        sweep_temporaries(states)
        trainer = make_trainer(config, device)
        saved = newest_loadable(states, at_most=end)
        if saved:
            trainer.load_state(saved[0], {k: saved[1][k] for k in ("model", "optimizer")})
            if saved[2].get("machine") != device_info():
                warnings.warn(
                    f"step {saved[0]} was saved on another machine or under other versions; the "
                    "run goes on, but perhaps not bit-identically",
                    stacklevel=2,
                )
        elif initial:
            trainer.load_state(*initial)
        log = MetricsLog(folder / "metrics.jsonl", trainer.step)

        def save_state() -> float:
            """Returns when the next one is due."""
            started = time.monotonic()
            log.sync()  # the log is never behind the state
            save_checkpoint(states, trainer.step, trainer.state(), {"machine": device_info()})
            prune(states, keep)
            now = time.monotonic()
            return now + max(STATE_EVERY_SECONDS, (now - started) / STATE_SHARE)

        def save_weights() -> None:
            if not torch.isfinite(trainer.flat.flat).all():
                raise TrainingError(
                    f"the update to step {trainer.step} made weights that are not finite; nothing "
                    f"of it was saved. Try a lower lr_max (now {config.train.lr_max})."
                )
            save_checkpoint(checkpoints, trainer.step, {"model": trainer.weights()}, {})

        tokens = config.train.batch_size * config.data.seq_len
        bar = progress_bar(
            progress, total=end, initial=trainer.step, desc=label, unit="step", leave=None
        )
        try:
            if trainer.step in scheduled:
                save_weights()
            due = time.monotonic() + STATE_EVERY_SECONDS
            while trainer.step < end:
                started = time.perf_counter()
                batch = batch_at(trainer.step)
                loss, lr, grad_norm = trainer.update(batch)
                rate = tokens / (time.perf_counter() - started)
                log.write(
                    {
                        "step": trainer.step,
                        "loss": loss,
                        "lr": lr,
                        "grad_norm": grad_norm,
                        "batch_hash": batch_hash(batch),
                        "tokens_per_s": round(rate),
                    }
                )
                bar.set_postfix_str(f"loss {loss:.3f}, {rate / 1e3:.1f}k tokens/s", refresh=False)
                bar.update()
                if trainer.step in scheduled:
                    save_weights()
                if trainer.step in keep or time.monotonic() > due or stop_requested():
                    due = save_state()
                if stop_requested():
                    raise KeyboardInterrupt(f"stopped after saving step {trainer.step}")
        finally:
            bar.close()
            log.close()
        return sha256_tensors(trainer.state()["model"])
