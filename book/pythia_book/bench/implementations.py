"""Who is measured: our training step in its modes, the same model in plain torch, `transformers`.

A contender is a function of a batch of rows that makes one update. All have fp32 masters, bf16
products, AdamW and clipping at the same settings:

- ours: the `Trainer` as it trains, by `Execution`;
- plain: our model definition on torch's own operations, eager or under `torch.compile`, with none
  of our kernels and none of our optimizer: what the compiler alone makes of the architecture;
- transformers: GPT-NeoX as a user of it would train, bf16 autocast and fused AdamW.

Weights are drawn on the device and mean nothing. Not here: timing (train_gpu).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pythia_core import hf
from pythia_core.config import ModelConfig, RunConfig
from pythia_core.kernels import PLAIN
from pythia_core.model import GPTNeoX
from pythia_core.training import memory
from pythia_core.training.execution import Execution
from pythia_core.training.optimizer import is_decayed
from pythia_core.training.train import LAG
from pythia_core.training.trainer import Pending, Trainer
from pythia_core.util.machine import deterministic

Step = Callable[[np.ndarray], Any]
"""One update on rows of S+1 tokens."""
LEARNING_RATE = 1e-4
RIVALS_KEEP = {"compile": (34, 8), "eager": (60, 14)}
"""Bytes a token that a rival's micro-step keeps: so many widths a layer, and vocabularies. Counted
by hand; a try decides."""


@dataclass(frozen=True)
class Contender:
    """One way of making an update.

    Attributes:
        who: "ours", "plain" or "transformers". mode: of Execution, or a rival's "eager", "compile".
    """

    who: str
    mode: str
    recompute: bool = False
    deterministic: bool = False

    @property
    def name(self) -> str:
        extra = ["recompute"] * self.recompute + ["deterministic"] * self.deterministic
        return ", ".join([f"{self.who} {self.mode}", *extra])

    @property
    def words(self) -> dict[str, Any]:
        """What a row says of it."""
        return {
            "contender": self.name,
            "who": self.who,
            "mode": self.mode,
            "recompute": self.recompute,
            "deterministic": self.deterministic,
        }

    @property
    def execution(self) -> Execution:
        return Execution(self.mode, self.recompute, self.deterministic)

    def activation_bytes(self, model: ModelConfig, tokens: int) -> int:
        """What a micro-batch of so many tokens takes beside the state, by estimate."""
        if self.who == "ours":
            return memory.RESERVE + tokens * memory.token_bytes(model, self.execution, "bf16")
        widths, vocabularies = RIVALS_KEEP[self.mode]
        per_token = widths * model.d_model * model.n_layers + vocabularies * model.vocab_size
        return memory.RESERVE + tokens * per_token

    def held_bytes(self, model: ModelConfig, tokens: int) -> int:
        """What of that, and of the state, stays while others compute: a CUDA graph owns the memory
        of its intermediate tensors between replays."""
        graph = self.activation_bytes(model, tokens) if self.mode == "graph" else 0
        return memory.state_bytes(model, "bf16") + graph

    def make(self, config: RunConfig, device: torch.device) -> Step:
        """The step of a freshly drawn model."""
        with self.turn(device):
            if self.who == "ours":
                return our_step(config, device, self.execution)
            if self.who == "plain":
                return plain_step(config, device, self.mode == "compile")
            return transformers_step(
                config, device, "sdpa", bf16=True, compiled=self.mode == "compile"
            )

    @contextlib.contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        """What has to hold in the process while this contender computes."""
        with deterministic(self.deterministic):
            yield


RIVAL = Contender("plain", "compile")
"""The one that the goal is about."""
FITTING = Contender("transformers", "eager")
"""The one that needs the most memory: what it fits, all fit."""
GRAPH = Contender("ours", "graph")
FIRST = (GRAPH, RIVAL, FITTING, Contender("ours", "eager"))
"""Measured for every size before anything else; one of them is compiled, which takes long."""
SECOND = (GRAPH, Contender("transformers", "compile"), Contender("ours", "compile"))
PRICES = (
    Contender("ours", "graph", deterministic=True),
    Contender("ours", "graph", recompute=True),
    Contender("ours", "eager", deterministic=True),
    Contender("plain", "eager"),
)
"""What determinism and recomputation cost, and what the compiler gains."""
CONTENDERS = {c.name: c for c in (*FIRST, *SECOND, *PRICES)}


# --- ours ------------------------------------------------------------------------------------


def _draw(name: str, p: Tensor, _: torch.Generator) -> None:
    """Weights that mean nothing, drawn on their device: 2.8 billion on a CPU take longer than
    measuring them."""
    if is_decayed(name):
        p.normal_(0.0, 0.02)
    else:
        p.fill_(0.0 if name.endswith("bias") else 1.0)


def our_step(config: RunConfig, device: torch.device, how: Execution) -> Step:
    """The update of our trainer, past the warm-up of the learning rate; launched and, some updates
    later, read, as `train` does."""
    with torch.device(device):
        trainer = Trainer(config, device, how, partial(GPTNeoX, init=_draw))
    trainer.step = config.train.steps // 10
    return partial(_launch, trainer, deque(), LAG[device.type])


def _launch(trainer: Trainer, in_flight: deque[Pending], lag: int, batch: np.ndarray) -> None:
    in_flight.append(trainer.launch(batch))
    while len(in_flight) > lag:
        in_flight.popleft().result()


# --- the same model in plain torch -----------------------------------------------------------


def plain_step(config: RunConfig, device: torch.device, compiled: bool) -> Step:
    """An update of our model on plain operations, with torch's own optimizer."""
    with torch.device(device):
        model = GPTNeoX(config.model, PLAIN, _draw)
        model.init_weights(0)
    model.compute_dtype = torch.bfloat16
    loss_of = torch.compile(model.loss) if compiled else model.loss
    optimizer = _adamw(config, model)

    def forward(rows: Tensor) -> Tensor:
        return loss_of(rows)

    return partial(_update, config, device, model, optimizer, forward)


# --- transformers ----------------------------------------------------------------------------


def transformers_step(
    config: RunConfig, device: torch.device, attention: str, bf16: bool, compiled: bool = False
) -> Step:
    """An update as a user of `transformers` would write it.

    Its fused form of the tanh GELU stands in for "gelu_new", which is the same in several passes.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    settings = {**hf.hf_config(config.model), "use_cache": False}
    if config.model.gelu == "tanh":
        settings["hidden_act"] = "gelu_pytorch_tanh"
    with torch.device(device):
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**settings, attn_implementation=attention))
    model.train()
    run = torch.compile(model) if compiled else model
    optimizer = _adamw(config, model)

    def forward(rows: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return run(input_ids=rows[:, :-1], labels=rows[:, :-1]).loss

    return partial(_update, config, device, model, optimizer, forward)


# --- what both rivals do ---------------------------------------------------------------------


def _adamw(config: RunConfig, model: nn.Module) -> torch.optim.AdamW:
    t = config.train
    betas = (t.beta1, t.beta2)
    return torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=betas, weight_decay=t.weight_decay, fused=True
    )


def _update(
    config: RunConfig,
    device: torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[Tensor], Tensor],
    batch: np.ndarray,
) -> None:
    """Forward and backward of every micro-batch, clipping, the optimizer; nothing is waited for."""
    rows = torch.from_numpy(batch.astype(np.int64)).to(device)
    optimizer.zero_grad(set_to_none=True)
    for part in rows.split(config.train.micro_batch or len(rows)):
        (forward(part) * (len(part) / len(rows))).backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
    optimizer.step()
