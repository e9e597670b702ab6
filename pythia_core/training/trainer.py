"""Make one update of a run, and keep the state of training between two updates.

`MicroStep` adds the gradient of a micro-batch to the parameters' `.grad` and the loss to a sum, in
one of the modes of pythia_core.training.execution. In the mode "graph", `prepare` records a CUDA
graph for every shape of rows. Recording overwrites the gradient and the sum, so zero both
afterwards.

`Trainer.launch` enqueues an update and returns a `PendingUpdate`, whose result is read later. Loss,
gradient norm and clipping factor stay on the device, so host and device do not wait for each other.
If a value is not finite, the device skips this update and every later one until the result is read.
So the weights are always those of the last good step. In fp16, every result is read at once,
because the next learning rate and loss scale depend on it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pythia_core.config import ModelConfig, RunConfig
from pythia_core.data.order import batch_hash
from pythia_core.errors import DataError, TrainingError
from pythia_core.model import GPTNeoX, LayerNorm, Rotary
from pythia_core.training.checkpoint import sha256_tensors
from pythia_core.training.distributed import ALONE, World
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.loss_scale import LossScale
from pythia_core.training.memory import largest_micro_batch
from pythia_core.training.optimizer import FlatAdamW, FlatParameters, clip_factor
from pythia_core.training.schedule import learning_rate
from pythia_core.training.sharding import SavedState, ShardedAdamW, ShardedParameters
from pythia_core.util.machine import training_numerics

# --- one micro-batch -------------------------------------------------------------------------

Replay = Callable[[], object]
WARM_UP = 3
"""Passes before recording, which do lazy initialization and autotuning."""


class MicroStep:
    """A callable that adds the loss and gradient of a micro-batch to running sums.

    Args:
        total: 0-dim fp64 sum of the losses.
        scale: 0-dim loss scale; None means 1.
        capture: records a function, and returns a function that replays the recording on the same
            memory; default: `capture_cuda`.
    """

    def __init__(
        self,
        model: GPTNeoX,
        execution: Execution,
        total: Tensor,
        scale: Tensor | None = None,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        model.recompute = execution.recompute
        self._model, self._total, self._scale = model, total, scale
        self._loss = model.loss
        if execution.mode == "compile":
            self._loss = torch.compile(model.loss, dynamic=False)
        self._weight = torch.ones((), device=total.device)
        self._capture = capture or capture_cuda
        self._graphs: dict[torch.Size, tuple[Tensor, Replay, Rotary]] | None = (
            {} if execution.mode == "graph" else None
        )

    def prepare(self, parts: Sequence[Tensor]) -> None:
        """Build rotary tables and, in mode "graph", record a CUDA graph for every new shape.

        `parts` are the micro-batches (n, S+1). Recording overwrites the gradient and the loss sum.

        Raises:
            TrainingError: the step cannot be recorded.
            torch.OutOfMemoryError: the device has too little memory.
        """
        for rows in parts:
            # built here, outside the compiled or recorded function; a graph keeps reading them
            tables = self._model.rotary(rows.shape[1] - 1, rows.device)
            if self._graphs is not None and rows.shape not in self._graphs:
                fixed = rows.clone()
                repeat = self._capture(partial(self._run, fixed))
                self._graphs[rows.shape] = fixed, repeat, tables

    def __call__(self, rows: Tensor, n_rows: int) -> None:
        """Add the loss and gradient of `rows` (n, S+1), a part of a batch of `n_rows` rows."""
        self._weight.fill_(len(rows) / n_rows)
        if self._graphs is None:
            self._run(rows)
            return
        fixed, repeat, _ = self._graphs[rows.shape]
        fixed.copy_(rows)
        repeat()

    def _run(self, rows: Tensor) -> None:
        """Run the forward and backward passes on `rows`; `_weight` scales their mean loss."""
        loss = self._loss(rows) * self._weight
        self._total.add_(loss.detach())
        (loss if self._scale is None else loss * self._scale).backward()


def capture_cuda(function: Replay) -> Replay:
    """Record `function`, which must not synchronize, as a CUDA graph; return the graph's replay.

    Raises:
        TrainingError: the function cannot be recorded. torch's allocator may then be unusable.
        torch.OutOfMemoryError: the device has too little memory.
    """
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # "thread_local": a checkpoint may be written by another thread meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            function()
    except RuntimeError as error:
        raise recording_error(error) from error
    finally:
        torch.cuda.set_stream(current)  # torch does not, if the recording fails
    return graph.replay


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a GPU's memory was full, for which CUDA's libraries have no error class."""
    full = re.search("CUDA (driver )?error: out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and full is not None
    )


def recording_error(error: RuntimeError) -> Exception:
    """Return the error to raise if recording a CUDA graph raises `error`."""
    text = str(error).strip().split("\n")[0]
    if is_out_of_memory(error):
        return torch.OutOfMemoryError(text)
    return TrainingError(
        f"the training step could not be recorded as a CUDA graph ({text}). Run again with "
        "PYTHIA_EXECUTION=eager, which gives the same results"
    )


# --- one update ------------------------------------------------------------------------------

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

State = dict[str, dict[str, Tensor]]


def update_lr(config: RunConfig, step: int) -> float:
    """Return the learning rate of the update that leads from `step` to `step + 1`."""
    t = config.train
    update = step if t.first_update_at_lr_zero else step + 1
    lr_min = t.lr_max * t.lr_min_ratio
    return learning_rate(update, t.steps, t.lr_max, lr_min, t.warmup_fraction, t.lr_form)


@dataclass
class PendingUpdate:
    """An update that was launched and may not have finished.

    Attributes:
        step: the step before the update.
        loss_scale: None except in fp16.
        batch: the rows of token ids, (batch_size, S+1).
        skipped: whether the update left the weights unchanged; known after `result`.
    """

    trainer: Trainer
    step: int
    lr: float
    loss_scale: float | None
    batch: np.ndarray
    _numbers: Tensor
    _arrived: torch.cuda.Event | None
    _result: tuple[float, float, float] | None = field(default=None, init=False)
    skipped: bool = field(default=False, init=False)

    def result(self) -> tuple[float, float, float]:
        """Wait for the update; return its loss, learning rate and gradient norm.

        Raises:
            TrainingError: the loss or gradient is not finite and, in fp16, the loss scale is at its
                minimum. Weights and step are as before this update, even if later updates were
                launched.
        """
        if self._result is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            loss, norm, skipped = self._numbers.tolist()
            self.skipped = bool(skipped)
            if self.skipped or self.loss_scale is not None:
                self.trainer._react(self, loss, norm)
            self._result = loss, self.lr, norm
        return self._result


class Trainer:
    """A model with its optimizer: the state of a run between two updates.

    Args:
        make_model: returns a model, e.g. with other operations or initial weights.
        world: the processes that share every batch, and perhaps the state. If the state is
            sharded, updates run in mode "eager" instead of "graph", which gives the same bits.

    Attributes:
        flat: the parameters, of which this process has all (FlatParameters) or a part.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        execution: Execution = EAGER,
        make_model: Callable[[ModelConfig], GPTNeoX] = GPTNeoX,
        world: World = ALONE,
    ) -> None:
        execution.check(device.type)
        if world.sharded and execution.mode == "graph":
            execution = replace(execution, mode="eager")
        self.world = world
        self.config, self.device, self.execution, self.step = config, device, execution, 0
        self._kernels: Callable[[], contextlib.AbstractContextManager[None]] = (
            partial(training_numerics, execution.deterministic)
            if device.type == "cuda"
            else contextlib.nullcontext
        )
        self._make_parameters(make_model)
        self.scaler = LossScale() if config.train.precision == "fp16" else None
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._failed = torch.zeros((), dtype=torch.bool, device=device)
        self._scale = torch.ones((), device=device)
        scale = self._scale if self.scaler else None
        self._micro = MicroStep(self.model, execution, self._total, scale)
        self._copies: list[torch.cuda.Event] = []

    def _make_parameters(self, make_model: Callable[[ModelConfig], GPTNeoX]) -> None:
        """Make the model, its parameters and their optimizer, whole or sharded."""
        config, dtype = self.config, DTYPES[self.config.train.precision]
        self.flat: FlatParameters | ShardedParameters
        self.optimizer: FlatAdamW | ShardedAdamW
        if self.world.sharded:
            with self.world.exchanging():
                parts = ShardedParameters(make_model, config, dtype, self.world, self.device)
            self.model, self.flat = parts.model, parts
            self.optimizer = ShardedAdamW(parts, config.train)
            return
        self.model = make_model(config.model)
        self.model.init_weights(config.train.weight_seed)
        self.model.to(self.device)
        self.flat = FlatParameters(self.model, dtype)
        half = config.train.precision != "fp32"
        if self.device.type == "cuda" and half and self.execution.mode != "compile":
            # torch.compile neither traces a gradient that is added to a buffer nor `out_dtype`
            self.flat.add_gradients_in_backward(self.model)
        self.optimizer = FlatAdamW(self.flat, config.train)

    def update(self, batch: np.ndarray) -> tuple[float, float, float]:
        """Make one optimizer step on rows of token ids, (batch, S+1).

        Returns:
            The mean loss in nats, the learning rate, and the norm of the gradient before clipping.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are left untouched.
            DataError: the batch has no rows, or a token id is outside the model's vocabulary.
        """
        return self.launch(batch).result()

    def launch(self, batch: np.ndarray) -> PendingUpdate:
        """Launch an update without waiting for it; `PendingUpdate.result` waits.

        Raises:
            TrainingError: memory ran out (the message recommends a micro-batch size), or another
                process died (distributed.ProcessDied).
            DataError: the batch has no rows, or a token id is outside the model's vocabulary.
        """
        with self._kernels(), self.world.exchanging():
            return self._launch(batch)

    def _launch(self, batch: np.ndarray) -> PendingUpdate:
        """Launch an update, with only the CUDA kernels that the caller has allowed."""
        rows = self.world.share_of(self._on_device(batch))
        parts = rows.split(self.config.train.micro_batch or len(rows))
        if self.scaler:
            self._scale.fill_(self.scaler.scale)
        try:
            self._micro.prepare(parts)
            self.flat.zero_grad_()
            self._total.zero_()
            for part in parts:
                self._micro(part, len(batch))
        except torch.OutOfMemoryError as error:
            raise TrainingError(self._out_of_memory(len(parts[0]))) from error
        self.flat.sum_gradients_(self.world, self._total)
        norm = self.flat.norm()
        finite = torch.isfinite(self._total + norm)
        if self.scaler:
            skip, norm = ~finite, norm / self._scale
            factor = clip_factor(norm, self.config.train.grad_clip) / self._scale
        else:
            skip = self._failed.logical_or_(~finite)
            factor = clip_factor(norm, self.config.train.grad_clip)
        while self._copies:
            torch.cuda.current_stream().wait_event(self._copies.pop())
        lr = self.lr()
        self.optimizer.step(lr, self.moments_age + 1, factor, skip)
        numbers = torch.stack([self._total, norm.double(), skip.double()])
        arrived = None
        if self.device.type == "cuda":
            numbers = torch.empty(3, dtype=torch.float64, pin_memory=True).copy_(
                numbers, non_blocking=True
            )
            arrived = torch.cuda.Event()
            arrived.record()
        scale = self.scaler.scale if self.scaler else None
        pending = PendingUpdate(self, self.step, lr, scale, batch, numbers, arrived)
        self.step += 1
        if self.scaler:
            pending.result()
        return pending

    def wait_for_copy(self, copied: torch.cuda.Event | None) -> None:
        """Make the next update wait for the event `copied`, if there is one."""
        if copied is not None:
            self._copies.append(copied)

    def _on_device(self, batch: np.ndarray) -> Tensor:
        """Check the token ids of a batch, and copy them to the device as int64."""
        vocab_size = self.config.model.vocab_size
        if not batch.size or batch.min() < 0 or batch.max() >= vocab_size:
            problem = (
                f"ids {batch.min()}..{batch.max()}, but the model's vocabulary is "
                f"0..{vocab_size - 1}; use data that was made with the model's tokenizer"
                if batch.size
                else "no rows"
            )
            raise DataError(f"the batch of update {self.step} has {problem}")
        rows = torch.from_numpy(batch.astype(np.int64))
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True)

    def _out_of_memory(self, micro_batch: int) -> str:
        """Return the message of an out-of-memory error, with the micro-batch that should fit."""
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
        fits = largest_micro_batch(
            self.config.model,
            self.config.data.seq_len,
            free,
            self.execution,
            self.config.train.precision,
            self.world.shards,
        )
        advice = (
            f"micro_batch={fits} should fit." if fits else "Not even one row is expected to fit."
        )
        more = "" if self.execution.recompute else " recompute=True needs less memory."
        return (
            f"out of memory: {micro_batch} rows of {self.config.data.seq_len} tokens at a time do "
            f"not fit in the {free / 2**30:.1f} GiB that this process can use on the device. "
            f"{advice}{more} The weights are those of step {self.step}."
        )

    def _react(self, pending: PendingUpdate, loss: float, norm: float) -> None:
        """In fp16, adapt the loss scale. Otherwise, raise an error for the non-finite update."""
        try:
            if self.scaler:
                self.scaler.update(pending.skipped)
                return
            raise TrainingError(
                f"update {pending.step} is not finite: its loss is {loss}, its gradient norm is "
                f"{norm}, and its batch has the hash {batch_hash(pending.batch)}. The update was "
                f"not applied, so the weights are those of step {pending.step}. Try a lower "
                f"lr_max (now {self.config.train.lr_max}) or the precision fp32."
            )
        except TrainingError:
            self.step = min(self.step, pending.step)
            self._failed.zero_()
            raise

    @property
    def updates_made(self) -> int:
        """The number of updates that were not skipped, which determines the learning rate."""
        return self.step - (self.scaler.skipped if self.scaler else 0)

    @property
    def moments_age(self) -> int:
        """The number of updates that Adam's moments include."""
        return self.updates_made

    def lr(self) -> float:
        """Return the learning rate of the next update."""
        return update_lr(self.config, self.updates_made)

    def weights(self) -> dict[str, Tensor]:
        """Map the name of each parameter to its weights as the forward pass reads them.

        LayerNorms are in fp32, all other weights in the compute dtype. The tensors are not copies,
        so the next update changes them. If the state is sharded, all processes must call this; the
        first one gets copies on the host, the others nothing.
        """
        if isinstance(self.flat, ShardedParameters):
            gathered = self.flat.gathered(rounded=True)
            return {name: whole.cpu() for name, whole in gathered if self.world.is_rank_zero}
        norms = {n for n, m in self.model.named_modules() if isinstance(m, LayerNorm)}
        rounded = {n: c for n, c in self.flat.copies.items() if n.rsplit(".", 1)[0] not in norms}
        return {n: rounded.get(n, p).detach() for n, p in self.model.named_parameters()}

    def weights_sha256(self) -> str:
        """Return the sha256 of the fp32 weights; of a sharded state, only in the first process."""
        if isinstance(self.flat, ShardedParameters):
            gathered = self.flat.gathered(rounded=False)
            return sha256_tensors({n: t.cpu() for n, t in gathered if self.world.is_rank_zero})
        return sha256_tensors(self.state()["model"])

    def state(self) -> State:
        """Return all tensors that exact resumption needs, as {file stem: {name: tensor}}.

        The stems are "model", "optimizer" and, in fp16, "scaler". The tensors of the model and the
        optimizer are not copies, so the next update changes them. If the state is sharded, these
        are the files that this process saves (pythia_core.training.sharding).
        """
        state: State
        if isinstance(self.optimizer, ShardedAdamW):
            state = self.optimizer.state(self.world)
        else:
            state = {
                "model": {name: p.detach() for name, p in self.model.named_parameters()},
                "optimizer": {
                    "exp_avg": self.optimizer.exp_avg,
                    "exp_avg_sq": self.optimizer.exp_avg_sq,
                },
            }
        if self.scaler and self.world.is_rank_zero:
            values: dict[str, Any] = asdict(self.scaler)
            state["scaler"] = {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
        return state

    def load_state(self, step: int, state: State) -> None:
        """Set the model and the optimizer to a saved `state`, and the trainer's step to `step`.

        The state may have been saved by any number of processes, sharded or not.

        Raises:
            CheckpointError: the tensors belong to another architecture.
        """
        if isinstance(self.optimizer, ShardedAdamW):
            self.optimizer.load(state)
        else:
            parameters = dict(self.model.named_parameters())
            shapes = {name: p.shape for name, p in parameters.items()}
            whole = SavedState(state, shapes).unsharded()
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(whole["model"][name])
                self.optimizer.exp_avg.copy_(whole["optimizer"]["exp_avg"])
                self.optimizer.exp_avg_sq.copy_(whole["optimizer"]["exp_avg_sq"])
        if self.scaler and "scaler" in state:  # absent if training starts from weights alone
            saved = {key: value.item() for key, value in state["scaler"].items()}
            counts = {k: int(v) for k, v in saved.items() if k != "scale"}
            self.scaler = LossScale(saved["scale"], **counts)
        self.flat.refresh_copies()
        self.step = step
