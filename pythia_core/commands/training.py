"""`prepare`, `train` and `verify`: from raw text to a run whose every file matches its hash."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pythia_core.commands import RUN, AddCommand, trained_scales
from pythia_core.config import PRECISIONS, SWAPS, RunConfig
from pythia_core.errors import CheckpointError, ConfigError, PythiaError
from pythia_core.execution import MODES, VARIABLE, Execution
from pythia_core.scales import OFFICIAL_SIZES, SIZES


def add(command: AddCommand) -> None:
    """Add these commands to the parser."""
    p = command("prepare", _prepare, "fetch the corpus, train the tokenizer, lay out the rows")
    p.add_argument("--scale", default="laptop", choices=trained_scales())

    p = command("train", _train, "train a run, or find it if it exists")
    p.add_argument("size", help=f"one of {', '.join(s for s in SIZES if s not in OFFICIAL_SIZES)}")
    p.add_argument("--scale", default="laptop", help=f"one of {', '.join(trained_scales())}")
    p.add_argument("--steps", type=int, help="number of updates (default: the scale's)")
    p.add_argument("--batch-size", type=int, help="rows per update (default: the scale's)")
    p.add_argument("--micro-batch", type=int, help="rows per forward/backward (default: all)")
    p.add_argument("--lr", type=float, help="peak learning rate (default: the size's)")
    p.add_argument("--precision", choices=PRECISIONS, help="default: bf16 where hardware has it")
    p.add_argument(
        "--execution",
        help=f"{', '.join(MODES)}, each also with +recompute, which saves memory; graph is for "
        f"CUDA devices (default: the variable {VARIABLE}, or eager)",
    )
    p.add_argument("--order-seed", type=int, default=1234)
    p.add_argument("--weight-seed", type=int, default=1234)
    p.add_argument("--swap", choices=SWAPS, help="train a fork whose data is swapped from --start")
    p.add_argument("--start", type=int, help="first swapped update (default: the last 7 %%)")
    p.add_argument("--stop", type=int, help="first update no longer swapped (default: the end)")

    p = command("verify", _verify, "check a run against its hashes, or audit a published model")
    p.add_argument(
        "run",
        metavar="RUN",
        help=f"{RUN}; or, to audit its checkpoints, a folder of stepN folders or a repository, "
        "e.g. EleutherAI/pythia-70m",
    )


def _prepare(args: argparse.Namespace) -> None:
    from pythia_core.prepare import prepare
    from pythia_core.scales import scale_named

    data = prepare(scale_named(args.scale).data)
    print(json.dumps(data.manifest, indent=1))
    print(f"{data.rows.n_rows:,} rows of {data.config.seq_len + 1} tokens in {data.folder}")


def _run_config(args: argparse.Namespace) -> RunConfig:
    from dataclasses import replace

    from pythia_core.metrics import best_precision
    from pythia_core.scales import scale_named

    scale = scale_named(args.scale)
    if args.steps is not None:
        scale = replace(scale, steps=args.steps)
    if args.batch_size is not None:
        scale = replace(scale, batch_size=args.batch_size)
    overrides: dict[str, Any] = {"precision": args.precision or best_precision()}
    if args.lr is not None:
        overrides["lr_max"] = args.lr
    if args.micro_batch is not None:
        overrides["micro_batch"] = args.micro_batch
    config = scale.run(args.size, args.order_seed, args.weight_seed, **overrides)
    if not args.swap and (args.start is not None or args.stop is not None):
        raise ConfigError("--start and --stop say when a swap happens; name it with --swap")
    if args.swap:
        start = scale.fork_step(133) if args.start is None else args.start
        config = config.fork(args.swap, start, args.stop)
    return config


def _train(args: argparse.Namespace) -> None:
    from pythia_core.runs import find_or_train

    execution = Execution.named(args.execution) if args.execution else None
    run = find_or_train(_run_config(args), execution=execution)
    last = run.metrics()[-1]
    print(
        f"run {run.id}: {len(run.steps)} checkpoints, last loss {last['loss']:.4f}, "
        f"{run.seconds:.0f} s of training\nweights sha256 {run.final_sha256}\n{run.folder}"
    )


def _verify(args: argparse.Namespace) -> None:
    from pythia_core.hub import is_published

    if is_published(args.run):
        return _verify_published(args.run)
    from pythia_core.checkpoint import duplicates, load_checkpoint, saved_steps, step_folder
    from pythia_core.order import batch_hash
    from pythia_core.runs import find_run

    run = find_run(args.run)
    first, last, due = run.updates.start, run.updates.stop, run.due
    logged = [row["step"] for row in run.metrics()]
    saved = saved_steps(run.checkpoints)  # of a large run not all with their weights
    if run.finished and (saved != due or logged != list(range(first + 1, last + 1))):
        missing = sorted(set(due) - set(saved))
        raise CheckpointError(
            f"run {run.id} is finished but {len(missing)} of its {len(due)} checkpoints "
            f"({missing[:5]} …) or rows of its log are missing; delete the run's folder and ask "
            "for it again"
        )
    for step in run.steps:
        load_checkpoint(step_folder(run.checkpoints, step))
    for row in run.metrics():
        if row["batch_hash"] != batch_hash(run.batch(row["step"] - 1)):
            raise PythiaError(f"the batch of update {row['step'] - 1} is not what was trained on")
    print(
        f"run {run.id}: {len(run.steps)} checkpoints match their hashes, "
        f"{len(run.metrics())} batches match the log"
    )
    for steps in duplicates(run.checkpoints):
        known = " (expected: the first update runs at learning rate 0)" if steps == [0, 1] else ""
        print(f"equal weights at steps {', '.join(map(str, steps))}{known}")


def _verify_published(source: str) -> None:
    from pythia_core.audit import audit

    found = audit(source)
    print(found.report())
    if defects := found.defects():
        raise CheckpointError(f"{source}: {len(defects)} defects, listed above")
