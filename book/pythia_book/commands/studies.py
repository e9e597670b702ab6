"""`study`, `record` and `errata`: run a study, record a run, explain an erratum."""

from __future__ import annotations

import argparse

from pythia_book.notebooks import STOP_NOTE
from pythia_core.commands import AddCommand
from pythia_core.suite import SCALES


def add(command: AddCommand) -> None:
    p = command("study", _study, "run a study's notebook, unless its results are up to date")
    p.set_defaults(kept=STOP_NOTE)
    p.add_argument("study", metavar="STUDY", help="name of a notebook, e.g. gender_bias")
    p.add_argument("--scale", help=f"one of {', '.join(SCALES)} (default: the notebook's)")
    p.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter; repeatable",
    )
    p.add_argument("--force", action="store_true", help="run even if it is up to date")

    p = command("record", _record, "copy a reviewed local run into book/recorded, to be committed")
    p.add_argument("study", metavar="STUDY", help="name of a notebook that has run")
    p.add_argument("--scale", default="laptop", help="scale of the run (default: laptop)")

    p = command("errata", _errata, "common misstatements about Pythia, with the evidence")
    p.add_argument("name", nargs="?", metavar="NAME", help="erratum to explain (default: list all)")


def _study(args: argparse.Namespace) -> None:
    from pythia_book.notebooks import parse_parameters
    from pythia_book.papermill_engine import run_study

    path, ran = run_study(args.study, args.scale, parse_parameters(args.parameter), args.force)
    print(f"{path}" if ran else f"{path} is up to date (--force runs it again)")


def _record(args: argparse.Namespace) -> None:
    from pythia_book.site_runs import record_run

    print(f"recorded in {record_run(args.study, args.scale)}; review and commit it")


def _errata(args: argparse.Namespace) -> None:
    from pythia_book.published.results import find
    from pythia_book.studies.errata.catalogue import erratum_named, erratum_text, listing

    print(erratum_text(erratum_named(args.name), find()) if args.name else listing())
