"""Adds the commands `study`, `record`, `redraw` and `errata`."""

from __future__ import annotations

import argparse

from pythia_book.commands import utf8
from pythia_book.notebooks import STOP_NOTE
from pythia_core.commands import AddCommand
from pythia_core.suite import SCALES


def add(command: AddCommand) -> None:
    """Add `study`, `record`, `redraw` and `errata` to the command line."""
    p = command("study", _study, "run a study's notebook, unless its results are up to date")
    p.set_defaults(resume_note=STOP_NOTE)
    p.add_argument("study", metavar="STUDY", help="name of a notebook, e.g. gender_bias")
    p.add_argument("--scale", help=f"one of {', '.join(SCALES)} (default: the notebook's)")
    p.add_argument(
        "-p",
        "--parameter",
        action="append",
        type=utf8,
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of the notebook; repeatable",
    )
    p.add_argument("--force", action="store_true", help="run even if the results are up to date")

    p = command("record", _record, "copy a reviewed local run into book/recorded, to be committed")
    p.add_argument("study", metavar="STUDY", help="name of a notebook that has run")
    p.add_argument("--scale", default="laptop", help="scale of the run (default: laptop)")
    p.add_argument("--force", action="store_true", help="record even if the code was not committed")

    p = command("redraw", _redraw, "update verdicts, figures and prose of finished runs")
    p.add_argument("studies", nargs="*", metavar="STUDY", help="names of notebooks (default: all)")
    p.add_argument("--scale", help="only runs of this scale (default: all)")

    p = command("errata", _errata, "common misstatements about Pythia, with the evidence")
    p.add_argument("name", nargs="?", metavar="NAME", help="erratum to explain (default: list all)")


def _study(args: argparse.Namespace) -> None:
    """Run a study unless its results are up to date; print the path of its notebook."""
    from pythia_book import notebooks
    from pythia_book.papermill_engine import run_study

    notebook = notebooks.read_notebook(notebooks.notebook_path(args.study))
    parameters = notebooks.parse_parameters(args.parameter, notebooks.parameters_of(notebook))
    path, ran = run_study(args.study, args.scale, parameters, args.force)
    print(f"{path}" if ran else f"{path} is up to date (--force runs it again)")


def _record(args: argparse.Namespace) -> None:
    """Copy a local run into book/recorded, and print the folder of the copy."""
    from pythia_book.recording import record_run

    folder = record_run(args.study, args.scale, args.force)
    print(f"recorded in {folder}; review and commit it")


def _redraw(args: argparse.Namespace) -> None:
    """Redraw finished runs of studies, and print what has changed."""
    from pythia_book.redraw import redraw
    from pythia_core.errors import DataError, raise_all

    done = redraw(args.studies, args.scale)
    for run in done:
        if not run.problem:
            print(f"{run.name}: {'redrawn' if run.changes else 'nothing has changed'}")
        for line in run.changes:
            print(f"  {line}")
    problems = [f"{run.name}: {run.problem}" for run in done if run.problem]
    raise_all(DataError, problems, "redraw")


def _errata(args: argparse.Namespace) -> None:
    """Print the evidence on a misstatement about Pythia or, without a name, list all of them."""
    from pythia_book.published.results import find
    from pythia_book.studies.errata.catalogue import erratum_named, erratum_text, listing

    print(erratum_text(erratum_named(args.name), find()) if args.name else listing())
