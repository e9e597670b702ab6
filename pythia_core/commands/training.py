"""The commands `prepare` and `train`, which lead from raw text to a trained run."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_core.commands import (
    COUNT,
    AddCommand,
    nonblank,
    positive_number,
    seed_number,
    share_under_torchrun,
    trained_scales,
    whole_number,
)
from pythia_core.commands.workers import add_worker_options, check_worker_options, run_workers
from pythia_core.config import DEDUP_RECIPES, PRECISIONS, SWAPS, RunConfig, default_domains
from pythia_core.errors import ConfigError, count_of
from pythia_core.suite import OFFICIAL_SIZES, SIZES, Scale, scale_named
from pythia_core.training.execution import MODES, VARIABLE, Execution
from pythia_core.training.schedule import PAPER_FORKS
from pythia_core.util.files import cache_dir, check_cache, check_results, results_dir

if TYPE_CHECKING:
    from pythia_core.training.distributed import World


PREPARE_EXAMPLES = """\
examples:
  python -m pythia_core prepare                          the corpus of scale laptop, in memory
  python -m pythia_core prepare --corpus my_texts --dedup jaccard-0.87 --on local
                                                         one worker per core, with bounded memory
  python -m pythia_core prepare --corpus my_texts --on slurm --cpus 64 --partition cpu
  srun --ntasks 64 python -m pythia_core prepare --corpus my_texts --stages
"""


def add(command: AddCommand) -> None:
    """Declare the commands `prepare` and `train`."""
    p = command(
        "prepare",
        _prepare,
        "download a corpus, train a tokenizer on it and tokenize it",
        epilog=PREPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(resume_note="finished parts are saved")
    text = "prepare the corpus of this scale (default: laptop)"
    p.add_argument("--scale", default="laptop", choices=trained_scales(), help=text)
    _add_data_options(p)
    text = (
        "prepare in stages of many tasks, with bounded memory; all processes started with the "
        "same options, on any machines that share a cache, divide the tasks among themselves"
    )
    p.add_argument("--stages", action="store_true", help=text)
    add_worker_options(
        p, "prepare in stages, in workers on this machine or in Slurm jobs", gpus=False
    )

    p = command(
        "train",
        _train,
        "train a model, or reuse the run if it exists",
        epilog="Several GPUs, even across nodes that share a results folder, split each batch if "
        "torchrun starts one process per GPU: torchrun --nproc-per-node 8 -m pythia_core train "
        "SIZE ... A run started with a different number of processes is reused or, if unfinished, "
        "resumed.",
    )
    p.set_defaults(resume_note="training so far is saved")
    share_under_torchrun(p)
    option = p.add_argument
    sizes = ", ".join(size for size in SIZES if size not in OFFICIAL_SIZES)
    option(
        "size",
        metavar="SIZE",
        type=nonblank,
        help=f"size of the model: {sizes}, or an official size, 14m to 12b",
    )
    scales = ", ".join(trained_scales())
    text = f"amount of training and data: {scales} (default: laptop)"
    option("--scale", default="laptop", type=nonblank, help=text)
    _add_data_options(p)
    option("--steps", **COUNT, help="number of updates (default: the scale's)")
    text = "rows per update (default: the scale's)"
    option("--batch-size", type=whole_number, metavar="ROWS", help=text)
    text = "rows per forward/backward pass (default: the whole batch)"
    option("--micro-batch", type=whole_number, metavar="ROWS", help=text)
    option(
        "--lr",
        type=positive_number,
        metavar="RATE",
        help="peak learning rate (default: the size's)",
    )
    text = "training precision (default: the faster of fp32 and bf16 on this machine)"
    option("--precision", choices=PRECISIONS, help=text)
    option(
        "--execution",
        type=nonblank,
        help=f"how updates run: {', '.join(MODES)}, each optionally with +recompute, which saves "
        f"memory; graph needs a CUDA device (default: {VARIABLE} if set, else graph on a CUDA "
        "device and eager on a CPU)",
    )
    text = "seed of the data order (default: 1234)"
    option("--order-seed", type=seed_number, default=1234, metavar="SEED", help=text)
    text = "seed of the initial weights (default: 1234)"
    option("--weight-seed", type=whole_number, default=1234, metavar="SEED", help=text)
    text = "train a fork: a run that swaps these words in the updates from --start up to, but not "
    text += "including, --stop"
    option("--swap", choices=SWAPS, help=text)
    text = "first update with swapped words (default: swap in the last 7 %% of the updates)"
    # torchrun takes --start for its own --start-method, even after the name of the module
    option("--start", "--start-step", type=whole_number, metavar="STEP", help=text)
    text = "first update that reads the original text again (default: swap until the run's end)"
    option("--stop", type=whole_number, metavar="STEP", help=text)


DATA_OPTIONS = {
    "corpus": "--corpus",
    "tokenizer": "--tokenizer",
    "epochs": "--epochs",
    "heldout_fraction": "--heldout",
    "dedup": "--dedup",
    "seq_len": "--seq-len",
}
"""Maps fields of DataConfig to the options that set them."""


def _add_data_options(p: argparse.ArgumentParser) -> None:
    """Add the options --corpus, --tokenizer, --epochs, --heldout, --dedup and --seq-len."""
    p.add_argument(
        "--corpus",
        metavar="PATH",
        type=nonblank,
        help="the text: a file or folder of .jsonl/.txt (also .gz or .zst) or .parquet, or a URL "
        "of one (s3://..., hf://datasets/...); a dataset of the hub, hf:NAME; or the name of a "
        "registered corpus (default: the scale's)",
    )
    p.add_argument(
        "--tokenizer",
        type=nonblank,
        help="bpe-N (trained on the corpus), neox-20b or a tokenizer.json (default: the scale's)",
    )
    text = "passes over the text (default: the scale's)"
    p.add_argument("--epochs", **COUNT, help=text)
    p.add_argument(
        "--heldout",
        type=float,
        metavar="SHARE",
        dest="heldout_fraction",
        help="fraction of the documents to hold out from training (default: the scale's)",
    )
    text = "recipe for removing duplicate documents (default: the scale's)"
    p.add_argument("--dedup", choices=DEDUP_RECIPES, help=text)
    text = "tokens per row (default: the scale's; 2,048 for the released models)"
    p.add_argument("--seq-len", **COUNT, help=text)


def _scale(args: argparse.Namespace) -> Scale:
    """Return the scale that `--scale` names, with the user's data options; paths are absolute.

    With `--corpus`, the domains are those of `default_domains` for that corpus.
    """
    scale = scale_named(args.scale)
    changes = {
        name: getattr(args, name) for name in DATA_OPTIONS if getattr(args, name) is not None
    }
    if name := args.tokenizer:
        known = name == "neox-20b" or name.startswith("bpe-")
        changes["tokenizer"] = _absolute("--tokenizer", name, known)
    if args.corpus:  # the scale's domains belong to its own corpus
        changes["corpus"] = _corpus(args.corpus)
        changes["domains"] = default_domains(changes["corpus"])
    return replace(scale, data=replace(scale.data, **changes))


def _corpus(name: str) -> str:
    """Return what `--corpus` names, with an absolute path. Errors: as in `_absolute`."""
    from pythia_core.data.corpus import is_registered
    from pythia_core.data.user_files import is_dataset, is_url

    if is_url(name):
        return name
    if is_dataset(name):  # the name of a dataset, or the path of its folder
        folder, colon, part = name.removeprefix("hf:").partition(":")
        return f"hf:{os.path.abspath(folder)}{colon}{part}" if os.path.isdir(folder) else name
    return _absolute("--corpus", name, is_registered(name))


def _absolute(option: str, name: str, known: bool) -> str:
    """Return the value of an option as an absolute path; a `known` name remains as it is.

    So the run can be opened from any folder, and the same text always gives the same run.

    Raises:
        ConfigError: the name is known, and is also that of a file or folder.
    """
    if known and os.path.lexists(name):
        raise ConfigError(
            f"{option} {name} has two meanings: the library's own {name}, and "
            f"{Path(name).absolute()}. Pass ./{name} for the second; for the first, run the "
            "command in another folder"
        )
    return name if known else os.path.abspath(os.path.expanduser(name))


def _prepare(args: argparse.Namespace) -> None:
    """Prepare the data, then print the manifest, the number of rows and the folder."""
    from pythia_core.data.manifest import has_manifest
    from pythia_core.data.prepare import prepare, rows_folder

    in_workers = check_worker_options(args)
    check_cache()
    config = _scale(args).data
    if in_workers and not has_manifest(rows_folder(config)):
        words = ["prepare", "--stages", "--scale", args.scale]
        for name, option in DATA_OPTIONS.items():
            if getattr(args, name) is not None:
                words.append(f"{option}={getattr(config, name)}")
        run_workers(args, words, cache_dir() / "workers")
    data = prepare(config, staged=in_workers or args.stages)
    print(json.dumps(data.manifest, indent=1))
    print(f"{data.rows.n_rows:,} rows of {data.config.seq_len + 1} tokens in {data.folder}")


def _run_config(args: argparse.Namespace) -> RunConfig:
    """Return the config for the arguments of `train`; raise ConfigError if they are invalid."""
    from pythia_core.training.precision import best_precision

    scale = _scale(args)
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
        raise ConfigError(
            f"--start and --stop need the option --swap with one of {', '.join(SWAPS)}"
        )
    if args.swap:
        start = scale.fork_step(PAPER_FORKS[1]) if args.start is None else args.start
        config = config.fork(args.swap, start, args.stop)
    return config


def _train(args: argparse.Namespace) -> None:
    """Train the run or find it, in all processes that torchrun started; then print its results."""
    from pythia_core.training.distributed import run_together

    run_together(lambda world: _train_in(world, args), args.shard)


def _train_in(world: World, args: argparse.Namespace) -> None:
    """Train the run or find it, then print its results and its folder."""
    from pythia_core.training.runs import find_or_train

    execution = Execution.parse(args.execution) if args.execution else None
    with world.rank_zero_first():
        check_results(results_dir())
        check_cache()  # before the precision is measured, which is stored there
        config = _run_config(args)
    run = find_or_train(config, execution=execution, world=world)
    if not world.is_rank_zero:
        return
    last = run.metrics()[-1]
    print(
        f"run {run.id}: {count_of(len(run.steps), 'checkpoint')}, last loss {last['loss']:.4f}, "
        f"{run.seconds:.0f} s of training\nweights sha256 {run.final_sha256}\n{run.folder}"
    )
