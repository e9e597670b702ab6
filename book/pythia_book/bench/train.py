"""Measures the speed of a training step in several implementations.

All have fp32 master weights and the same AdamW and clipping settings:

- ours: the `Trainer` in each mode of `Execution`;
- plain: our model definition with PyTorch's own operations, eager or under `torch.compile`;
- transformers: GPT-NeoX as users of `transformers` train it, in fp32 or under bf16 autocast;
- products, on a CPU only: nothing but the matrix products that every implementation needs.

All read the same real text. Implementations that fit into memory together take turns, so that
changes in the clock rate affect all. A dry run has tiny models on the CPU; its numbers mean
nothing.

On a GPU, an update has 2M tokens, as in Pythia, in micro-batches. Each implementation uses the
largest micro-batch that fits: a power of two of rows, at most `TOKENS` tokens. Updates of 1 and of
ACCUMULATE micro-batches are timed alternately. Their difference gives the time of one micro-batch;
the rest of the small update is clipping and the optimizer. The speed of a whole update is computed
from these two times.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import multiprocessing
import os
import re
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pythia_book.bench import cost_model
from pythia_book.bench.kernels import (
    OUT_OF_MEMORY,
    check_gpu_usable,
    machine_with_rates,
    reason,
)
from pythia_book.bench.rows import SKIPPED, Row, require_cuda, speed_range
from pythia_core import hf
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import ConfigError, DataError, FetchError, one_of
from pythia_core.kernels import FAST, PLAIN, Ops, dispatch
from pythia_core.kernels.cross_entropy import CHUNK_ELEMENTS
from pythia_core.kernels.gelu import bias_gelu_reference
from pythia_core.kernels.layer_norm import layer_norm_pair_reference
from pythia_core.model import GPTNeoX
from pythia_core.suite import OFFICIAL_SIZES, scale_named
from pythia_core.training import memory
from pythia_core.training.execution import Execution
from pythia_core.training.metrics import flops_per_token
from pythia_core.training.optimizer import is_decayed
from pythia_core.training.precision import best_precision
from pythia_core.training.train import LAG
from pythia_core.training.trainer import DTYPES, PendingUpdate, Trainer
from pythia_core.util.files import cached_file, results_dir
from pythia_core.util.machine import cpu_flags, keep_freed_memory
from pythia_core.util.workers import exit_with_parent

# --- implementations -------------------------------------------------------------------------

Step = Callable[[np.ndarray], Any]
"""A function that makes one update on rows of S+1 tokens."""
LEARNING_RATE = 1e-4
SAVED_BYTES = {"compile": (34, 8), "eager": (60, 14)}
"""Maps each mode to (a, b), counted by hand. For the backward pass, a baseline saves about
a * width bytes per token and layer, and b * vocabulary bytes per token for the loss. The search for
a batch size starts from this estimate."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of a training step.

    Attributes:
        family: "ours", "plain", "transformers" or "products".
        mode: for "ours", a mode of Execution; for the other families, "eager" or "compile".
        attention: the attention implementation of `transformers`, "sdpa" or "eager".
        recompute, deterministic: options of Execution; used only for "ours".
        compiled_formulas: for "ours", whether LayerNorm and GELU are compiled by torch instead of
            using our Triton kernels.
    """

    family: str
    mode: str = "eager"
    precision: str = "bf16"
    attention: str = "sdpa"
    recompute: bool = False
    deterministic: bool = True
    compiled_formulas: bool = False

    @property
    def label(self) -> str:
        """The name without the precision, e.g. "ours graph, recompute"."""
        options = ["sdpa"] * (self.family == "transformers" and self.attention == "sdpa")
        options += ["recompute"] * self.recompute
        options += ["nondeterministic"] * (not self.deterministic)
        options += ["compiled norms and GELU"] * self.compiled_formulas
        return ", ".join([f"{self.family} {self.mode}", *options])

    @property
    def name(self) -> str:
        """The name, e.g. "ours graph, recompute, bf16"."""
        return f"{self.label}, {self.precision}"

    @property
    def columns(self) -> Row:
        """The columns of a row that describe the implementation.

        The column `family` is "ours" only for our code as users get it.
        """
        as_shipped = self.deterministic and not self.compiled_formulas
        return {
            "implementation": self.name,
            "label": self.label,
            "family": self.family if as_shipped else f"{self.family}, modified",
            "mode": self.mode,
            "precision": self.precision,
        }

    @property
    def execution(self) -> Execution:
        """The execution settings of a `Trainer`, for "ours"."""
        return Execution(self.mode, self.recompute, self.deterministic)

    def activation_bytes(self, model: ModelConfig, tokens: int) -> int:
        """Estimate the bytes that a micro-batch needs beyond weights and optimizer state."""
        if self.family == "ours":
            per_token = memory.activation_bytes_per_token(model, self.execution, self.precision)
        else:
            widths, vocabularies = SAVED_BYTES[self.mode]
            per_token = widths * model.d_model * model.n_layers + vocabularies * model.vocab_size
        return memory.RESERVE + tokens * per_token

    def resident_bytes(self, model: ModelConfig, tokens: int) -> int:
        """Estimate the bytes kept between updates: training state, and memory of CUDA graphs.

        One graph serves updates of 1 and of ACCUMULATE micro-batches.
        """
        graphs = self.activation_bytes(model, tokens) if self.mode == "graph" else 0
        return memory.state_bytes(model, self.precision) + graphs

    def transient_bytes(self, model: ModelConfig, tokens: int) -> int:
        """Estimate the bytes that an update needs beyond `resident_bytes`."""
        return 0 if self.mode == "graph" else self.activation_bytes(model, tokens)

    def make(self, config: RunConfig, device: torch.device) -> Step:
        """Initialize a model; return a function that makes one update of the model."""
        train = replace(config.train, precision=self.precision)
        config = replace(config, train=train)
        if self.family == "ours":
            ops = _with_compiled_formulas() if self.compiled_formulas else FAST
            return _our_step(config, device, self.execution, ops)
        if self.family == "products":
            return _products_step(config, device)
        model, forward = (_plain if self.family == "plain" else self._transformers)(
            config, device, self.mode == "compile"
        )
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=LEARNING_RATE,
            betas=(train.beta1, train.beta2),
            weight_decay=train.weight_decay,
            fused=True,
        )
        return partial(_update, config, device, model, optimizer, forward)

    def _transformers(self, config: RunConfig, device: torch.device, compiled: bool) -> Baseline:
        """Make GPT-NeoX as users of `transformers` do, but with a faster form of the same GELU."""
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        settings = {**hf.hf_config(config.model), "use_cache": False}
        if config.model.gelu == "tanh":
            settings["hidden_act"] = "gelu_pytorch_tanh"
        with torch.device(device):
            settings = GPTNeoXConfig(**settings, attn_implementation=self.attention)
            model = GPTNeoXForCausalLM(settings).train()
        run = torch.compile(model, dynamic=False) if compiled else model

        def forward(rows: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                return run(input_ids=rows[:, :-1], labels=rows[:, :-1]).loss

        return model, forward


Baseline = tuple[nn.Module, Callable[[Tensor], Tensor]]
"""A model, and a function that computes the loss of the model on rows."""
BASELINE = Implementation("plain", "compile")
"""The baseline that our kernels must beat on a GPU."""
GRAPH = Implementation("ours", "graph")
ROUNDS_ON_GPU = (
    (
        GRAPH,
        BASELINE,
        Implementation("transformers"),
        Implementation("ours"),
        Implementation("ours", "graph", deterministic=False),
    ),
    (
        Implementation("ours", "graph", compiled_formulas=True),
        Implementation("ours", "graph", recompute=True),
        Implementation("plain"),
    ),
    (Implementation("transformers", "compile"), Implementation("ours", "compile")),
)
"""Groups of implementations. A group is measured at every size before the next group starts. The
first group is the main comparison, with the price of deterministic kernels. The second measures the
costs of options, and whether two Triton kernels gain anything over their compiled formulas. The
third adds the other compiled models."""
PROFILED = (GRAPH, BASELINE)
"""The implementations whose time on a GPU is divided among the parts of a step."""


def implementations_on_cpu(
    precisions: Sequence[str], compiled: Sequence[str]
) -> tuple[Implementation, ...]:
    """Return the implementations to measure on a CPU, in each precision.

    Args:
        compiled: precisions in which to include torch.compile; compiling takes half a minute.
    """
    return tuple(
        implementation
        for precision in precisions
        for implementation in (
            Implementation("ours", precision=precision),
            Implementation("transformers", "eager", precision, "eager"),
            Implementation("transformers", "eager", precision),
            *[Implementation("transformers", "compile", precision)] * (precision in compiled),
            Implementation("products", precision=precision),
        )
    )


def _init(name: str, p: Tensor, _: torch.Generator) -> None:
    """Initialize a parameter on its own device, because a CPU would take too long for 2.8b."""
    if is_decayed(name):
        p.normal_(0.0, 0.02)
    else:
        p.fill_(0.0 if name.endswith("bias") else 1.0)


def _with_compiled_formulas() -> Ops:
    """Return our operations, with two formulas compiled by torch instead of written in Triton."""
    pair = torch.compile(layer_norm_pair_reference, dynamic=False)
    bias_gelu = torch.compile(bias_gelu_reference, dynamic=False)
    return replace(
        FAST,
        layer_norm_pair=pair,
        bias_gelu=lambda x, bias, form, bias_c=None: bias_gelu(x, bias, form),
    )


def _our_step(config: RunConfig, device: torch.device, execution: Execution, ops: Ops) -> Step:
    """Create a trainer past learning-rate warm-up; return a function that launches one update."""
    with torch.device(device):
        trainer = Trainer(config, device, execution, partial(GPTNeoX, ops=ops, init=_init))
    trainer.step = config.train.steps // 10
    return partial(_launch, trainer, deque(), LAG[device.type])


def _launch(trainer: Trainer, in_flight: deque[PendingUpdate], lag: int, batch: np.ndarray) -> None:
    """Launch an update, then wait until at most `lag` updates are in flight."""
    in_flight.append(trainer.launch(batch))
    while len(in_flight) > lag:
        in_flight.popleft().result()


def _products_step(config: RunConfig, device: torch.device) -> Step:
    """Return a function that does the matrix products of an update, forward and backward.

    The products inside attention are left out: their number depends on the implementation.
    """
    model, dtype = config.model, DTYPES[config.train.precision]
    d, n = model.d_model, config.train.batch_size * config.data.seq_len
    chunk = min(n, CHUNK_ELEMENTS // model.vocab_size)
    shapes = [(n, d, 3 * d), (n, d, d), (n, d, model.d_ff), (n, model.d_ff, d)] * model.n_layers
    shapes += [(min(chunk, n - start), d, model.vocab_size) for start in range(0, n, chunk)]

    maps = {}
    for rows, inner, outer in set(shapes):
        sizes = ((rows, inner), (outer, inner), (rows, outer))
        factors = [torch.randn(size, device=device).to(dtype) for size in sizes]
        maps[rows, inner, outer] = factors, [torch.empty_like(factor) for factor in factors]

    def step(batch: np.ndarray) -> None:
        for shape in shapes:
            (x, weight, dy), (dx, dweight, y) = maps[shape]  # memory is reused
            torch.mm(x, weight.t(), out=y)
            torch.mm(dy, weight, out=dx)
            torch.mm(dy.t(), x, out=dweight)

    return step


def _plain(config: RunConfig, device: torch.device, compiled: bool) -> Baseline:
    """Create our model with PyTorch's own operations, and its loss function."""
    with torch.device(device):
        model = GPTNeoX(config.model, PLAIN, _init)
        model.init_weights(0)
    if config.train.precision == "bf16":
        model.compute_dtype = torch.bfloat16
    return model, torch.compile(model.loss, dynamic=False) if compiled else model.loss


def _update(
    config: RunConfig,
    device: torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[Tensor], Tensor],
    batch: np.ndarray,
) -> None:
    """Make one update of a baseline on rows (batch, S+1), without waiting for the device."""
    rows = torch.from_numpy(batch.astype(np.int64))
    if device.type == "cuda":
        rows = rows.pin_memory()
    rows = rows.to(device, non_blocking=True)
    optimizer.zero_grad(set_to_none=True)
    for part in rows.split(config.train.micro_batch or len(rows)):
        (forward(part) * (len(part) / len(rows))).backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
    optimizer.step()


# --- jobs ------------------------------------------------------------------------------------

SEQ_LEN = cost_model.SEQ_LEN
TOKENS = {"narrow": 1 << 16, "wide": 1 << 15}
"""Maximum tokens per micro-batch, enough to keep an H100 busy. "narrow" models have a width of up
to 256."""
ACCUMULATE = 8
"""Micro-batches of the larger of the two updates that are timed on a GPU."""
MEMORY_FRACTION = 0.95
"""A micro-batch is doubled if the doubled one is expected to need at most this fraction of the
device's memory."""
WARM_UP = 3
ROUNDS = {"cpu": 10, "cuda": 3}
MIN_UPDATES = {"cpu": {1: 2}, "cuda": {1: 3, ACCUMULATE: 1}}
"""Minimum updates per round, by their number of micro-batches. ROUNDS rounds have at least 20 timed
updates on a CPU, and 33 timed micro-batches on a GPU."""
START_SECONDS = 6.0
"""Seconds to initialize a model on a GPU and to warm up [guess]."""
COMPILE_SECONDS_PER_LAYER, FORMULA_SECONDS = 3.5, 20.0
"""Seconds that torch.compile takes for a layer of a model, and for the formulas [guesses]."""
ASSUMED_FLOP_PER_S = 4e14
"""Speed that `seconds_needed` assumes [guess]."""
COMPILE_SECONDS = 300
"""Maximum number of seconds that torch.compile may take for one size on a CPU."""


@dataclass(frozen=True)
class Job:
    """A comparison of several implementations at one model size."""

    size: str
    implementations: tuple[Implementation, ...]
    kind: str = "cuda"
    rows: int = 0
    """Rows per update on a CPU, or per micro-batch on a GPU; 0: as many as fit into memory."""
    seq_len: int = SEQ_LEN
    dry_run: bool = False
    rounds: int = 3
    seconds: float = 1.0
    """Minimum duration of a round."""
    deadline: float = float("inf")
    """The time.time() value after which no measurement starts."""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16), repr=False)

    @property
    def device(self) -> torch.device:
        """The device to measure; the CPU in a dry run."""
        return torch.device("cpu" if self.dry_run else self.kind)

    @property
    def model(self) -> ModelConfig:
        """The config of the model; a tiny model in a dry run."""
        if self.dry_run:
            return ModelConfig(1, 16, 2, 128, max_seq_len=self.seq_len)
        if self.kind == "cpu":
            return scale_named("laptop").run(self.size).model
        return OFFICIAL_SIZES[self.size].model(max_seq_len=self.seq_len)

    @property
    def columns(self) -> Row:
        """The columns of a row that describe the job."""
        rows = cost_model.UPDATE_TOKENS // self.seq_len if self.kind == "cuda" else self.rows
        return {"kind": "train", "size": self.size, "rows": rows, "seq_len": self.seq_len}

    @property
    def micro_batch_counts(self) -> tuple[int, ...]:
        """How many micro-batches the timed updates have."""
        return tuple(MIN_UPDATES[self.kind])

    def config(self, rows: int) -> RunConfig:
        """Return the config of a training run with `rows` rows per micro-batch."""
        batch = rows * max(self.micro_batch_counts)
        train = TrainConfig(100_000, batch, lr_max=LEARNING_RATE, micro_batch=rows)
        return RunConfig(self.model, DataConfig(seq_len=self.seq_len), train)

    def batches(self, rows: int, n: int = 4) -> list[np.ndarray]:
        """Cut the text, repeated if too short, into `n` batches of `rows` rows of S+1 tokens."""
        shape = (n, rows, self.seq_len + 1)
        return list(np.resize(self.tokens, int(np.prod(shape))).reshape(shape))


def most_rows(job: Job) -> int:
    """Return the largest micro-batch to try, in rows: `job.rows` or, if unset, TOKENS tokens.

    Without a GPU, the default is 2 rows.
    """
    if job.rows or job.device.type != "cuda":
        return job.rows or 2
    return max(1, TOKENS["narrow" if job.model.d_model <= 256 else "wide"] // job.seq_len)


def estimated_rows(implementation: Implementation, job: Job, total_bytes: float) -> int:
    """Return the largest micro-batch, a power of two of rows, estimated to fit `total_bytes`.

    At least one row is returned. If the job sets the micro-batch, that number is returned.
    """
    rows, model = most_rows(job), job.model
    if job.rows or job.device.type != "cuda":
        return rows

    def need(rows: int) -> int:
        tokens = rows * job.seq_len
        resident = implementation.resident_bytes(model, tokens)
        return resident + implementation.transient_bytes(model, tokens)

    while rows > 1 and need(rows) > total_bytes:
        rows //= 2
    return rows


def seconds_needed(implementation: Implementation, job: Job, rows: int) -> float:
    """Estimate the seconds to compile, warm up and time an implementation on a GPU."""
    compiling = COMPILE_SECONDS_PER_LAYER * job.model.n_layers * (implementation.mode == "compile")
    compiling += FORMULA_SECONDS * implementation.compiled_formulas
    per_round = sum(n * least for n, least in MIN_UPDATES[job.kind].items())
    micro_batches = WARM_UP + max(job.micro_batch_counts) + job.rounds * per_round
    tokens = micro_batches * rows * job.seq_len
    timing = tokens * flops_per_token(job.model, job.seq_len) / ASSUMED_FLOP_PER_S
    return START_SECONDS + compiling + max(timing, job.rounds * job.seconds)


def groups(job: Job, rows: dict[str, int], total_bytes: float) -> list[list[Implementation]]:
    """Divide the implementations, in order, into groups that should fit into `total_bytes`.

    `rows` maps the name of each implementation to the rows of its micro-batch.
    """
    model = job.model
    result: list[list[Implementation]] = []
    total_resident = peak = 0
    for implementation in job.implementations:
        tokens = rows[implementation.name] * job.seq_len
        resident = implementation.resident_bytes(model, tokens)
        transient = implementation.transient_bytes(model, tokens)
        if not result or total_resident + resident + max(peak, transient) > total_bytes:
            result.append([])
            total_resident = peak = 0
        result[-1].append(implementation)
        total_resident, peak = total_resident + resident, max(peak, transient)
    return result


# --- measuring -------------------------------------------------------------------------------


@dataclass
class _WarmedUp:
    """An implementation that has been warmed up, and its timings."""

    implementation: Implementation
    step: Step
    rows: int
    """Rows per micro-batch."""
    batches: dict[int, list[np.ndarray]]
    """Maps each number of micro-batches per update to batches of this size."""
    n_updates: dict[int, int]
    """Maps each number of micro-batches per update to the number of such updates per round."""
    round_seconds: float
    """Expected duration of a round."""
    peak_bytes: int
    bytes_if_doubled: int
    """Device memory that twice the rows should need; 0 on a CPU."""
    seconds: list[dict[int, float]] = field(default_factory=list)
    """For each finished round, maps micro-batches per update to the seconds of an update."""
    profile: dict[str, float] = field(default_factory=dict)
    """The result of `profile`, or {} if there is none."""


def measure(job: Job) -> Iterator[Row]:
    """Measure a job; yield a row for every implementation as soon as it is measured.

    An implementation that runs out of memory in a group of several is measured again alone, with
    fewer rows if necessary.

    Raises:
        PythiaError: a failure made the GPU unusable for this process.
    """
    device = job.device
    if time.time() > job.deadline:
        yield from failures(job, job.implementations, SKIPPED)
        return
    stance = "force_eager" if job.dry_run else "default"
    with torch.compiler.set_stance(stance), _warnings() as warnings:
        total = _total_bytes(device)
        rows = {i.name: estimated_rows(i, job, total) for i in job.implementations}
        waiting = groups(job, rows, total)
        while waiting:
            group = waiting.pop(0)
            columns = job.columns | {"warnings": warnings}
            columns["alternates_with"] = [i.name for i in group]
            out_of_memory = []
            for row in _measure_group(job, rows, group):
                if row.get("failed", "").startswith(OUT_OF_MEMORY) and len(group) > 1:
                    out_of_memory.append(row["implementation"])
                    rows[row["implementation"]] = row.get("micro_rows", job.rows)
                else:
                    yield columns | row
            waiting += [[i] for i in group if i.name in out_of_memory]  # try each alone
            torch.compiler.reset()
            _release(device)


def _measure_group(
    job: Job, rows: dict[str, int], group: Sequence[Implementation]
) -> Iterator[Row]:
    """Warm up the implementations of a group, then time them in turns; yield columns for each.

    On a GPU, the results so far are yielded after every round, too. `rows` maps the name of each
    implementation to the micro-batch to try first.
    """
    ready: list[_WarmedUp] = []
    for implementation in group:
        first = rows[implementation.name]
        ahead = job.rounds * sum(entry.round_seconds for entry in ready)
        if time.time() + seconds_needed(implementation, job, first) + ahead > job.deadline:
            yield implementation.columns | {"failed": SKIPPED}
            continue
        entry, tried, problem = _warm_up_largest(implementation, job, first, alone=len(group) == 1)
        if entry:
            ready.append(entry)
            continue
        yield implementation.columns | _micro_rows(job, tried) | {"failed": problem}
        check_gpu_usable(f"{implementation.name} at {job.size}")
        _release(job.device)
    for _ in range(job.rounds):
        for entry in list(ready):
            if entry.seconds and time.time() + entry.round_seconds > job.deadline:
                continue
            problem = ""
            try:
                entry.seconds.append(
                    {
                        n: _seconds(entry.step, batches, entry.n_updates[n], job.device)
                        for n, batches in entry.batches.items()
                    }
                )
            except Exception as error:
                problem = reason(error)
            if problem:  # outside except, where the error would keep the memory alive
                ready.remove(entry)
                failure = _micro_rows(job, entry.rows) | {"failed": problem}
                yield entry.implementation.columns | failure
                check_gpu_usable(f"{entry.implementation.name} at {job.size}")
            elif job.kind == "cuda":  # kept if the process is killed
                yield entry.implementation.columns | _result(entry, job) | {"partial": True}
    for entry in filter(lambda entry: entry.seconds, ready):
        if entry.implementation in PROFILED and time.time() < job.deadline:
            with contextlib.suppress(RuntimeError):  # a driver may refuse to be traced
                entry.profile = profile(entry.step, entry.batches[1][0], job.device)
        yield entry.implementation.columns | _result(entry, job)


PART_OF_KERNEL = {
    "attention": "flash|fmha|attention|sdpa",
    "products": "gemm|nvjet|cutlass|cublas|xmma|addmm|aten::mm",
    "loss": "cross_entropy|log_softmax|nll_loss",
    "optimizer": "adam",
}
"""Maps parts of a step to patterns of the names of their kernels; the first match counts."""


def part_of(kernel: str) -> str:
    """Return the part that a kernel belongs to: a key of PART_OF_KERNEL, or "elementwise"."""
    matches = (part for part, names in PART_OF_KERNEL.items() if re.search(names, kernel.lower()))
    return next(matches, "elementwise")


def profile(step: Step, batch: np.ndarray, device: torch.device) -> dict[str, float]:
    """Time an update on `batch`, which is one micro-batch; return the milliseconds of each part.

    The parts are those of `part_of`, and "idle", when the device does nothing. On a CPU, operations
    are counted instead of kernels.
    """
    cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    _seconds(step, [batch], 1, device)
    with torch.profiler.profile(activities=[activity.CUDA if cuda else activity.CPU]) as recorded:
        total = 1e3 * _seconds(step, [batch], 1, device)
    parts = dict.fromkeys((*PART_OF_KERNEL, "elementwise"), 0.0)
    for event in recorded.key_averages():
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        parts[part_of(event.key)] += microseconds / 1e3
    return {**parts, "idle": max(0.0, total - sum(parts.values()))}


def _micro_rows(job: Job, rows: int) -> Row:
    """Return the column with the rows per micro-batch; {} for a CPU."""
    return {"micro_rows": rows} if job.kind == "cuda" else {}


def _warm_up_largest(
    implementation: Implementation, job: Job, first: int, alone: bool
) -> tuple[_WarmedUp | None, int, str]:
    """Warm up an implementation with the largest micro-batch that fits.

    The micro-batch is doubled, up to `most_rows`, as long as the measured memory leaves room for
    twice as many rows. If the device runs out of memory, and nothing else occupies it, the
    micro-batch is halved. A micro-batch that the job sets is not changed.

    Args:
        first: rows of the first micro-batch to try.

    Returns:
        The implementation, or None if it failed; the rows of the last micro-batch; why it failed.
    """
    rows, most, total = first, most_rows(job), _total_bytes(job.device)
    while True:
        entry, problem = None, ""
        ours = implementation.family == "ours"  # a slower torch operation would be timed instead
        try:
            if implementation.mode == "compile" and job.device.type == "cpu" and not job.dry_run:
                _in_time(partial(_compile, implementation, job, rows))
            with dispatch.no_fallback() if ours else contextlib.nullcontext():
                entry = _warm_up(implementation, job, rows)
        except Exception as error:  # e.g. out of memory: a result too
            problem = reason(error)
        if entry:
            if 2 * rows > most or entry.bytes_if_doubled > MEMORY_FRACTION * total:
                return entry, rows, ""
            rows *= 2
        elif not problem.startswith(OUT_OF_MEMORY):
            return None, rows, problem
        elif job.rows or rows == 1 or not alone:
            condition = "even with one row" if rows == 1 else f"with {rows} rows"
            detail = problem.removeprefix(OUT_OF_MEMORY).lstrip(": ")
            return None, rows, f"{OUT_OF_MEMORY} {condition} of {job.seq_len:,} tokens: {detail}"
        else:
            rows //= 2
            most = rows
            check_gpu_usable(f"{implementation.name} at {job.size}")
        entry = None
        _release(job.device)


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Yield a list that collects pythia_core's warnings, e.g. about a slow fallback."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("pythia_core")
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)


def _compile(implementation: Implementation, job: Job, rows: int) -> None:
    """Make one update, which fills torch's cache of compiled code on disk."""
    implementation.make(job.config(rows), job.device)(job.batches(rows, 1)[0])


def _in_own_group(function: Callable[[], object], threads: int, parent: int) -> None:
    """Call a function in a new process group, which dies when the process `parent` has ended."""
    os.setsid()
    exit_with_parent(parent, lambda: os.killpg(0, signal.SIGKILL))
    torch.set_num_threads(threads)
    function()


def _in_time(function: Callable[[], object], seconds: float = COMPILE_SECONDS) -> None:
    """Call a picklable function in a child process, and kill the process tree when time is up.

    An error in the child is not raised, because the caller compiles next and gets the same error.

    Raises:
        TimeoutError: the time is up.
    """
    arguments = (function, torch.get_num_threads(), os.getpid())
    child = multiprocessing.get_context("spawn").Process(target=_in_own_group, args=arguments)
    child.start()
    try:
        child.join(seconds)
        late = child.is_alive()
    finally:  # also on Ctrl-C
        with contextlib.suppress(ProcessLookupError):  # it may not have made its group yet
            os.killpg(child.pid or 0, signal.SIGKILL)
        child.kill()
        child.join()
    if late:
        raise TimeoutError(f"torch.compile was stopped after {seconds / 60:.3g} minutes")


def _warm_up(implementation: Implementation, job: Job, rows: int) -> _WarmedUp:
    """Make warm-up updates, which compile and allocate; choose the number of updates per round."""
    device = job.device
    _release(device)  # so that the memory that torch reserves is what this implementation needs
    before, reserved_before = _allocated(device)
    step = implementation.make(job.config(rows), device)
    _allocated(device)  # resets the peaks, which construction raised
    batches = {n: job.batches(n * rows) for n in job.micro_batch_counts}
    n_updates, round_seconds = {}, 0.0
    for n in job.micro_batch_counts:
        # the first update with more micro-batches has nothing to warm up but a graph
        first = WARM_UP - 1 if n == 1 else int(implementation.mode == "graph")
        _seconds(step, batches[n], first, device)
        seconds = _seconds(step, batches[n], 1, device)
        enough = round(job.seconds / len(job.micro_batch_counts) / max(seconds, 1e-6))
        n_updates[n] = max(MIN_UPDATES[job.kind][n], enough)
        round_seconds += n_updates[n] * seconds
    peak = doubled = 0
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() - before
        reserved = torch.cuda.max_memory_reserved() - reserved_before  # with memory of graphs
        doubled = 2 * reserved - memory.state_bytes(job.model, implementation.precision)
    return _WarmedUp(implementation, step, rows, batches, n_updates, round_seconds, peak, doubled)


def _seconds(step: Step, batches: list[np.ndarray], n: int, device: torch.device) -> float:
    """Make n updates and wait for the device at the end; return the seconds per update."""
    _wait(device)
    started = time.perf_counter()
    for number in range(n):
        step(batches[number % len(batches)])
    _wait(device)
    return (time.perf_counter() - started) / max(n, 1)


def _wait(device: torch.device) -> None:
    """Wait until a GPU has finished its work; do nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _allocated(device: torch.device) -> tuple[int, int]:
    """Return the bytes in use by tensors and those that torch reserves on a GPU; reset the peaks.

    On a CPU, both are 0.
    """
    if device.type != "cuda":
        return 0, 0
    _wait(device)
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def _total_bytes(device: torch.device) -> float:
    """Return the memory of a GPU in bytes. On a CPU, assume a GPU with 80 GB."""
    return torch.cuda.mem_get_info()[1] if device.type == "cuda" else 80e9


def _release(device: torch.device) -> None:
    """Free the memory of objects that are no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _result(entry: _WarmedUp, job: Job) -> Row:
    """Return the columns of a row for the speed and memory of an implementation.

    On a GPU, `ms` is the time of an update of UPDATE_TOKENS tokens, `ms_micro` the time of one
    micro-batch, and `ms_optimizer` the rest of the update. `profile` (see the function of this
    name) is measured on an update with one micro-batch.
    """
    tokens = entry.rows * job.seq_len
    updates = [seconds[1] for seconds in entry.seconds]
    cuda = job.device.type == "cuda"
    row = _micro_rows(job, entry.rows)
    if job.kind == "cuda":
        micros = [(s[ACCUMULATE] - s[1]) / (ACCUMULATE - 1) for s in entry.seconds]
        rests = [update - micro for update, micro in zip(updates, micros, strict=True)]
        number = cost_model.UPDATE_TOKENS / tokens
        updates = [number * micro + rest for micro, rest in zip(micros, rests, strict=True)]
        row["profile"] = entry.profile
        row["ms_micro"] = 1e3 * statistics.median(micros)
        row["ms_optimizer"] = 1e3 * statistics.median(rests)
        tokens = cost_model.UPDATE_TOKENS
    median = statistics.median(updates)
    flops = tokens / median * flops_per_token(job.model, job.seq_len)
    peak = cost_model.peak_tflops(torch.cuda.get_device_name()) if cuda else None
    return row | {
        "tokens_per_update": tokens,
        "tokens_per_s": tokens / median,
        "ms": 1e3 * median,
        "ms_low": 1e3 * min(updates),
        "ms_high": 1e3 * max(updates),
        "steps_timed": sum(entry.n_updates.values()) * len(entry.seconds),
        "tflops": flops / 1e12,
        "mfu": flops / (peak * 1e12) if peak else None,
        "peak_bytes": entry.peak_bytes if cuda else None,
    }


def failures(job: Job, implementations: Sequence[Implementation], reason: str) -> Iterator[Row]:
    """Yield a row for each implementation, with the reason why it was not measured."""
    for implementation in implementations:
        yield job.columns | implementation.columns | {"failed": reason}


# --- the text --------------------------------------------------------------------------------

TEXT_ROWS = 512
DATA = DataConfig("miniature", tokenizer="neox-20b", seq_len=SEQ_LEN)
"""The text to train on in GPU measurements: the miniature corpus with Pythia's tokenizer."""


def text_file() -> Path:
    """Return the path of a small file with the tokens of `DATA`, to copy to an offline machine."""
    return results_dir() / "bench" / "tokens.npy"


def text_tokens(progress: bool = True) -> np.ndarray:
    """Return the tokens of a real text, uint16[tokens], prepared once and saved in `text_file`.

    Raises:
        FetchError: the corpus or the tokenizer is not available.
        DataError: `text_file` is damaged.
    """
    from pythia_core.data.prepare import prepare

    def write(path: Path) -> None:
        try:
            rows = prepare(DATA, progress).rows
        except FetchError as error:
            raise FetchError(
                f"{error}\nIf this machine has no network access, run `python -m pythia_core bench "
                f"train --device cuda --dry-run` on a machine with network access, and copy the "
                f"file results/bench/{text_file().name} from there to {text_file()} on this machine"
            ) from error
        tokens = np.asarray(rows.rows(0, min(rows.n_rows, TEXT_ROWS))).astype(np.uint16).ravel()
        with open(path, "wb") as file:
            np.save(file, tokens)

    path = cached_file(text_file(), write)
    try:
        tokens = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); delete the file and run again") from error
    if tokens.dtype != np.uint16 or tokens.ndim != 1 or len(tokens) <= SEQ_LEN:
        raise DataError(
            f"{path} has dtype {tokens.dtype} and shape {tokens.shape}, but must have dtype uint16 "
            f"and one dimension, longer than {SEQ_LEN}; delete the file and run again"
        )
    return tokens


# --- running ---------------------------------------------------------------------------------

ORDER = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "14m", "31m")
"""The sizes that are measured on a GPU, most useful first."""


def bench_train(
    sizes: Sequence[str] = (),
    device: str = "cpu",
    dry_run: bool = False,
    precisions: Sequence[str] = (),
    compiled: Sequence[str] | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    budget: float = 0.0,
    rows: int = 0,
    rates_from: Path | None = None,
    progress: bool = True,
) -> Iterator[Row]:
    """Measure training steps; yield a row for the machine, then a row for each measurement.

    Args:
        sizes: on a CPU, sizes of the scale `laptop`; on a GPU, names in ORDER (default: all).
        device: "cpu" or "cuda".
        dry_run: instead of a GPU, measure tiny models on the CPU.
        precisions: precisions to measure on a CPU (default: fp32, and bf16 if the processor has
            instructions for it); a GPU is always measured in bf16.
        compiled: on a CPU, the precisions in which to measure torch.compile too (default: all).
        rounds: rounds per implementation (default: ROUNDS).
        seconds: minimum duration of a round (default: 1 on a GPU, 0 on a CPU).
        budget: on a GPU, seconds after which measurements should have ended; 0: no limit.
        rows: rows of every micro-batch on a GPU (default: as many as fit).
        rates_from: result file that may have the rates of this GPU (see `machine_with_rates`).

    Raises:
        ConfigError: no CUDA device (outside a dry run), an unknown size, or a number out of range.
        PythiaError: after some rows, if a failure made the GPU unusable for this process.
        FetchError: the text is not available (see `text_tokens`).
        DataError: the text is damaged.
    """
    cuda = device == "cuda"
    accepted = ORDER if cuda else scale_named("laptop").sizes
    for size in sizes:
        if size not in accepted:
            raise ConfigError(one_of(size, accepted, "size"))
    rounds = ROUNDS[device] if rounds is None else rounds
    seconds = (1.0 if cuda else 0.0) if seconds is None else seconds
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    if seconds < 0:
        raise ConfigError(f"seconds must not be negative, got {seconds}")
    most = cost_model.UPDATE_TOKENS // SEQ_LEN
    if rows < 0 or rows > most or rows & (rows - 1):
        raise ConfigError(
            f"a micro-batch must be a power of two of rows, at most {most:,}, so that it divides "
            f"an update of {most:,} rows; got {rows}"
        )
    if cuda and not dry_run:
        require_cuda("bench train --device cuda")
    deadline = time.time() + budget if budget else float("inf")
    shared = Job(
        "", (), device, rows, dry_run=dry_run, rounds=rounds, seconds=0 if dry_run else seconds,
        deadline=deadline,
    )  # fmt: skip
    if cuda:
        tokens = text_tokens(progress) % (128 if dry_run else 50_304)
        shared = replace(shared, tokens=tokens, seq_len=16 if dry_run else SEQ_LEN)
        dtypes, rounds_of = (torch.bfloat16,), ROUNDS_ON_GPU
    else:
        from pythia_core.data.prepare import prepare

        keep_freed_memory()
        scale = scale_named("laptop")
        data = prepare(scale.data, progress)
        batches = [data.batch(step, scale.batch_size) for step in range(8)]
        shared = replace(shared, rows=scale.batch_size, seq_len=scale.data.seq_len)
        shared = replace(shared, tokens=np.concatenate(batches).ravel())
        dtypes = (torch.float32, torch.bfloat16)
        precisions = precisions or ("fp32", "bf16")[: 1 + ("bf16" in cpu_flags())]
        rounds_of = (
            implementations_on_cpu(precisions, precisions if compiled is None else compiled),
        )
    machine = machine_with_rates(
        shared.device, dtypes, 0.0 if dry_run else 0.5, dry_run, rates_from if cuda else None
    )
    machine["transformers"] = importlib.metadata.version("transformers")
    yield machine if cuda else machine | {"precision": best_precision()}
    for implementations in rounds_of:
        for size in sorted(sizes or accepted, key=accepted.index):
            for row in measure(replace(shared, size=size, implementations=implementations)):
                if "tflops" in row:
                    rate = machine["matmul_tflop_per_s"][row["precision"]]
                    row["matmul_share"] = row["tflops"] / rate
                yield row | {"dry_run": dry_run}


# --- the README's table ----------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows of `bench_train` on a CPU as the table in the README.

    A ratio is our speed divided by the fastest speed of `transformers`. Ratios in the precision
    that the machine trains in are bold. The last column is the ratio if our update took only the
    time of the matrix products.
    """
    machine = rows[0]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    rates = ", ".join(f"{1e3 * v:.0f} {name}" for name, v in machine["matmul_tflop_per_s"].items())
    lines = [
        f"{machine['device']}, {threads}, torch {machine['torch']}; trains in "
        f"{machine['precision']}. Measured matrix products, GFLOP/s: {rates}. FLOP: 6 x (matrix "
        f"parameters + unembedding) + causal attention, no recompute. "
        f"{rows[1]['rows'] * rows[1]['seq_len']:,} tokens per step. Last column: the ratio if our "
        "step were nothing but the products of its linear maps and unembedding, measured alone; "
        "the column before it has our speed as a share of the products' speed. Speeds are medians, "
        "with the slowest and the fastest round.",
        "",
        "| size | precision | ours, tokens/s | GFLOP/s | `transformers`' fastest, tokens/s "
        "| ratio | of products' speed | products alone |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    timed = [row for row in rows[1:] if "ms" in row]
    for ours in (row for row in timed if row["family"] == "ours"):
        of_size = [row for row in rows[1:] if row["size"] == ours["size"]]
        theirs = [row for row in of_size if row["family"] == "transformers"]
        measured = [row for row in theirs if "ms" in row]
        floor = [
            row["tokens_per_s"]
            for row in timed
            if (row["family"], row["size"]) == ("products", ours["size"])
            and row["precision"] == ours["precision"]
        ]
        if not measured:
            continue
        fastest = max(measured, key=lambda row: row["tokens_per_s"])
        name = fastest["implementation"].removeprefix("transformers ")
        missing = "; ".join(
            f"no {row['implementation'].removeprefix('transformers ')}: {row['failed']}"
            for row in theirs
            if "failed" in row
        )
        ratio = f"{ours['tokens_per_s'] / fastest['tokens_per_s']:.2f}x"
        ratio = f"**{ratio}**" if ours["precision"] == machine["precision"] else ratio
        possible = f"{floor[0] / fastest['tokens_per_s']:.2f}x" if floor else ""
        share = f"{ours['tokens_per_s'] / floor[0]:.0%}" if floor else ""
        speeds = [
            "{:,.0f} [{:,.0f}, {:,.0f}]".format(row["tokens_per_s"], *speed_range(row))
            for row in (ours, fastest)
        ]
        lines.append(
            f"| {ours['size']} | {ours['precision']} | {speeds[0]} | {1e3 * ours['tflops']:,.1f} "
            f"| {speeds[1]} ({name}{'; ' * bool(missing)}{missing}) "
            f"| {ratio} | {share} | {possible} |"
        )
    return "\n".join(lines)
