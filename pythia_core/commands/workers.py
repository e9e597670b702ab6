"""The options of commands that start workers on this machine or as Slurm jobs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pythia_core.commands import COUNT, nonblank
from pythia_core.errors import ConfigError, count_of
from pythia_core.util.launch import MINUTES, Slurm, on_slurm, on_this_machine
from pythia_core.util.machine import visible_devices
from pythia_core.util.workers import n_workers


def add_worker_options(p: argparse.ArgumentParser, text: str, gpus: bool = True) -> None:
    """Add the options that say where workers run.

    Args:
        text: what the workers do, for the help of `--on`.
        gpus: whether workers may have a GPU each.
    """
    option = p.add_argument_group("workers").add_argument
    option("--on", choices=("local", "slurm"), help=text)
    if gpus:
        text = "number of workers with a GPU each (default with --on local: all GPUs)"
        option("--gpus", **COUNT, help=text)
        text = (
            "number of workers with a core each; cannot be combined with --gpus (default without a "
            "GPU: all cores)"
        )
    else:
        text = "number of workers, with a core each (default with --on local: all cores)"
    option("--cpus", **COUNT, help=text)
    option("--partition", type=nonblank, help="partition of the Slurm jobs")
    text = (
        "time limit of a job in minutes (default: %(default)s); a job that reaches it saves its "
        "work and is requeued"
    )
    option("--minutes", **COUNT | {"default": MINUTES}, help=text)
    text = "further option of sbatch, e.g. account=abc, mem=32G or cpus-per-task=8; repeatable"
    option(
        "--sbatch",
        action="append",
        type=_name_and_value,
        default=[],
        metavar="NAME=VALUE",
        help=text,
    )


def check_worker_options(args: argparse.Namespace) -> bool:
    """Return whether `--on` was given.

    Raises:
        ConfigError: an option is missing, or does not fit the others.
    """
    gpus, count = getattr(args, "gpus", None), _count_options(args)
    if args.on is None and (gpus is not None or args.cpus is not None):
        raise ConfigError(f"{count} sets the number of workers; add --on local or --on slurm")
    if args.on != "slurm" and (args.partition or args.sbatch or args.minutes != MINUTES):
        raise ConfigError("--partition, --minutes and --sbatch need --on slurm")
    for name, value in (("gpus", gpus), ("cpus", args.cpus), ("minutes", args.minutes)):
        if value == 0:
            raise ConfigError(f"--{name} must be at least 1, got 0")
    if gpus and args.cpus:
        raise ConfigError(f"--gpus {gpus} and --cpus {args.cpus} were both given; choose one")
    if args.on == "slurm" and not (gpus or args.cpus):
        raise ConfigError(f"--on slurm needs {count}, the number of workers")
    if args.on == "local" and gpus and gpus > (available := len(visible_devices())):
        raise ConfigError(
            f"--gpus {gpus}: this machine has {count_of(available, 'GPU')}; use fewer, or --cpus N"
        )
    return args.on is not None


def run_workers(
    args: argparse.Namespace, words: Sequence[str], folder: Path, count: int | None = None
) -> list[Path]:
    """Run `python -m pythia_core WORDS` in the workers that the options ask for; return their logs.

    Args:
        folder: for the logs.
        count: number of workers (default: what the options say).

    Raises:
        ConfigError, MissingDependencyError: see `on_slurm`.
        PythiaError: all workers have failed.
    """
    gpus = getattr(args, "gpus", None)
    if args.on == "slurm":
        slurm = Slurm(bool(gpus), args.partition or "", args.minutes, dict(args.sbatch))
        return on_slurm(words, count or gpus or args.cpus, folder, slurm)
    devices = visible_devices()[:gpus] if hasattr(args, "gpus") and not args.cpus else []
    return on_this_machine(
        words, count or len(devices) or args.cpus or n_workers(), folder, devices
    )


def _count_options(args: argparse.Namespace) -> str:
    return "--gpus N or --cpus N" if hasattr(args, "gpus") else "--cpus N"


def _name_and_value(word: str) -> tuple[str, str]:
    """Split NAME=VALUE.

    Raises:
        argparse.ArgumentTypeError: there is no "=" or no name.
    """
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE such as account=abc, got {word!r}")
    return name.lstrip("-"), value
