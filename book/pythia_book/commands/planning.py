"""`budget` and `bundle`: what a scale costs on another machine, and everything it needs there."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from pythia_book.commands import file_to_write
from pythia_core.commands import AddCommand
from pythia_core.errors import ConfigError


def add(command: AddCommand) -> None:
    """Add these commands to the parser."""
    p = command("budget", _budget, "predict what a scale costs on one H100: time, FLOP, disk")
    p.add_argument("--scale", default="gpu", choices=["gpu"], help="the only one meant for a GPU")

    p = command("bundle", _bundle, "pack everything that an offline machine needs to run studies")
    p.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="archive to write, .tar or .tar.xz (smaller, but slow to make)",
    )
    p.add_argument("--scale", default="gpu", help="the scale that will be run (default: gpu)")
    p.add_argument("--studies", default="", help="comma-separated list (default: all)")
    p.add_argument("--parcels", type=int, metavar="MIB", help="split OUT into parts of at most MIB")
    packages = p.add_argument_group("Python packages that the offline machine lacks")
    packages.add_argument("--wheels", action="store_true", help="fetch them with pip and add them")
    packages.add_argument(
        "--packages", default="", help="which, comma-separated list (default: a few)"
    )
    packages.add_argument("--python", default="", help="its Python, e.g. 3.12 (default: as here)")
    packages.add_argument("--platform", default="", help="e.g. manylinux_2_28_x86_64")


def _budget(args: argparse.Namespace) -> None:
    from pythia_book.budget import report

    print(report(args.scale))


def _bundle(args: argparse.Namespace) -> None:
    """Make the archive and print what is in it.

    Raises:
        ConfigError, FetchError, DataError: as pythia_book.bundle.make_bundle.
    """
    from pythia_book.bundle import (
        PACKAGES,
        TOP,
        check_request,
        fetched_packages,
        make_bundle,
        split,
    )
    from pythia_book.studies.registry import STUDIES

    if not args.wheels and (args.packages or args.python or args.platform):
        raise ConfigError("--packages, --python and --platform say what to fetch: add --wheels")
    studies = tuple(filter(None, args.studies.split(","))) or STUDIES
    names = tuple(filter(None, args.packages.split(","))) or PACKAGES
    parcel = None if args.parcels is None else args.parcels << 20
    check_request(args.out, args.scale, studies, parcel)
    file_to_write("OUT", args.out)
    with contextlib.ExitStack() as stack:
        folder = None
        if args.wheels:
            folder = stack.enter_context(fetched_packages(names, args.python, args.platform))
        bundle = make_bundle(args.out, args.scale, studies, folder)
    size = args.out.stat().st_size
    for kind, n in sorted(bundle.sizes().items(), key=lambda pair: -pair[1]):
        print(f"{n / 1e6:9.1f} MB  {kind}")
    print(f"{size / 1e6:9.1f} MB  {args.out}, sha256 {bundle.sha256}")
    join = ""
    if parcel is not None:
        pieces = split(args.out, parcel)
        print(f"in {len(pieces)} parcels, {pieces[0].name} to {pieces[-1].name}")
        join = f"cat {args.out.name}.* > {args.out.name} && "
    print(f"there: {join}tar xf {args.out.name} && {TOP}/run.sh; then copy {TOP}/records back")
