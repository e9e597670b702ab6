"""Adds the commands `budget`, which predicts costs on a GPU, and `bundle`, for offline machines."""

from __future__ import annotations

import argparse

from pythia_book.commands import file_to_write, names
from pythia_core.commands import AddCommand, nonblank, positive_number
from pythia_core.errors import ConfigError, one_of, raise_all


def add(command: AddCommand) -> None:
    """Add `budget` and `bundle` to the command line."""
    p = command("budget", _budget, "predict what a scale costs on one H100: time, FLOP, disk")
    text = "scale to predict (default: gpu)"
    p.add_argument("--scale", default="gpu", choices=["gpu", "gpu-short"], help=text)
    p.add_argument("--studies", type=names, default=(), help="comma-separated list (default: all)")

    p = command("bundle", _bundle, "pack everything that an offline machine needs to run studies")
    text = "archive to write, .tar or .tar.xz (smaller, but takes minutes)"
    p.add_argument("out", metavar="OUT", type=nonblank, help=text)
    p.add_argument(
        "--scale", default="gpu", type=nonblank, help="scale to run there (default: gpu)"
    )
    text = "comma-separated list (default: all that train runs)"
    p.add_argument("--studies", type=names, default=(), help=text)
    text = "refuse an archive larger than MB megabytes (default: no limit)"
    p.add_argument("--max-size", metavar="MB", type=positive_number, help=text)
    text = "also pack the wheels of papermill, ipykernel and their dependencies, for Python X.Y on "
    text += "Linux x86-64 (default: none)"
    p.add_argument("--wheels", metavar="X.Y", type=nonblank, help=text)


def _budget(args: argparse.Namespace) -> None:
    """Print the predicted cost of a scale."""
    from pythia_book.budget import report
    from pythia_book.studies.registry import STUDIES

    print(report(args.scale, _studies(args.studies, STUDIES)))


def _studies(chosen: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the chosen studies in the order of `known`; by default, all that have runs.

    Raises:
        ConfigError: a study is not in `known`.
    """
    from pythia_book.studies.registry import STUDIES

    raise_all(
        ConfigError, [one_of(n, known, "study") for n in chosen if n not in known], "--studies"
    )
    return tuple(name for name in known if name in (chosen or STUDIES))


def _bundle(args: argparse.Namespace) -> None:
    """Write a bundle, and print the bytes of each folder in it."""
    from pythia_book.bundle import TOP, make_bundle
    from pythia_book.studies.registry import ALL

    out = file_to_write("OUT", args.out)
    studies = _studies(args.studies, ALL)
    bundle = make_bundle(
        out, args.scale, studies, max_size=args.max_size, wheels_for=args.wheels or ""
    )
    for kind, size in bundle.sizes().items():
        print(f"{size / 1e6:9.1f} MB  {kind}")
    print(f"{out.stat().st_size / 1e6:9.1f} MB  {out}, sha256 {bundle.sha256}")
    print(f"on the other machine: tar xf {out.name} && {TOP}/run.sh; then copy {TOP}/records back")
