"""A tiny run that several processes train together, and torchrun to start them.

As a script: `torchrun ... together.py TASK FOLDER`, with a task of TASKS.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from places import ROOT

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.training.distributed import ALONE, World, run_together
from pythia_core.training.execution import Execution
from pythia_core.training.train import train

STEPS, ROWS, VOCABULARY = 12, 8, 97
"""Updates of the run, rows of its batches, and tokens of its model."""


def config(**changes) -> RunConfig:
    """Return the config of a run of three blocks, with some training settings replaced.

    No number of processes divides the vocabulary, so shards have different sizes.
    """
    settings = {"steps": STEPS, "batch_size": ROWS, "lr_max": 1e-2, "warmup_fraction": 0.1}
    return RunConfig(
        model=ModelConfig(n_layers=3, d_model=32, n_heads=2, vocab_size=VOCABULARY, max_seq_len=16),
        data=DataConfig(seq_len=16),
        train=TrainConfig(**{**settings, **changes}),
    )


def batch_at(step: int) -> np.ndarray:
    """Return random token ids as the batch of an update, uint16[8, 17], the same in every call."""
    return np.random.default_rng(step).integers(0, VOCABULARY, (ROWS, 17)).astype(np.uint16)


def train_tiny(
    folder: Path, world: World = ALONE, stop_at: int | None = None, again: bool = False, **changes
) -> str:
    """Train the run in a folder, perhaps with other settings; return the hash of its weights.

    Args:
        again: whether to compute activations again in the backward pass.
    """
    how = {"execution": Execution(recompute=again), "progress": False, "stop_at": stop_at}
    return train(config(**changes), batch_at, folder, world=world, **how)


# --- what the processes do -------------------------------------------------------------------


def both(world: World, folder: Path) -> None:
    """Train unsharded and sharded, with recomputation and micro-batches, and in half precision."""
    train_tiny(folder / "flat", world)
    sharded = replace(world, shards=world.size)
    train_tiny(folder / "sharded", sharded, again=True, micro_batch=1)
    for precision in ("bf16", "fp16"):
        for name, these in (("flat", world), ("sharded", sharded)):
            train_tiny(folder / f"{name}-{precision}", these, 4, precision=precision)


def part(world: World, folder: Path) -> None:
    """Train two thirds of the run; the processes of a node share a state."""
    train_tiny(folder, replace(world, shards=world.node_size), 8)


def start(world: World, folder: Path) -> None:
    """Train a third of the run, sharded over all processes."""
    train_tiny(folder, replace(world, shards=world.size), 4)


def apart(world: World, folder: Path) -> None:
    """Train in a folder that is another one in each process."""
    train_tiny(folder / str(world.rank), world)


def full(world: World, folder: Path) -> None:
    """Train sharded, while the second process cannot write its shard."""
    if world.rank:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))
    train_tiny(folder, replace(world, shards=world.size))


def long(world: World, folder: Path) -> None:
    """Train for too long to wait for the end."""
    train_tiny(folder, replace(world, shards=world.size), steps=100_000)


TASKS: dict[str, Callable[[World, Path], None]] = {
    task.__name__: task for task in (both, part, start, apart, full, long)
}

# --- starting them ---------------------------------------------------------------------------


def torchrun(words: Sequence[str], size: int, nodes: int = 1) -> list[subprocess.Popen]:
    """Start a command in `size` processes, split evenly over several torchruns as over nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--nnodes={nodes}", f"--nproc-per-node={size // nodes}", f"--master-port={port}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [*command, f"--node-rank={node}", *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            **pipes,
        )
        for node in range(nodes)
    ]


def together(task: str, folder: Path, size: int = 2, nodes: int = 1) -> list[tuple[int, str]]:
    """Run a task; return the exit code and the errors of each torchrun."""
    running = torchrun([__file__, task, str(folder)], size, nodes)
    said = [each.communicate(timeout=500) for each in running]
    return [(each.returncode, err) for each, (_, err) in zip(running, said, strict=True)]


if __name__ == "__main__":
    try:
        run_together(lambda world: TASKS[sys.argv[1]](world, Path(sys.argv[2])))
    except Exception as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(143)
