"""Adds the commands `study`, `record`, `redraw` and `errata`."""

from __future__ import annotations

import argparse
import sys

from pythia_book.commands import utf8_text
from pythia_book.notebooks import STOP_NOTE
from pythia_core.commands import AddCommand, nonblank
from pythia_core.suite import SCALES


def add(command: AddCommand) -> None:
    """Add `study`, `record`, `redraw` and `errata` to the command line."""
    p = command(
        "study", _study, "run the notebooks of studies, unless their results are up to date"
    )
    p.set_defaults(resume_note=STOP_NOTE)
    p.add_argument(
        "studies",
        nargs="*",
        metavar="STUDY",
        help="name of a notebook, e.g. gender_bias (default: all)",
    )
    p.add_argument("--scale", help=f"one of {', '.join(SCALES)} (default: the notebook's)")
    p.add_argument(
        "-p",
        "--parameter",
        action="append",
        type=utf8_text,
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of the notebook, for one study only; repeatable",
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
    p.add_argument(
        "name",
        nargs="?",
        type=nonblank,
        metavar="NAME",
        help="erratum to explain (default: list all)",
    )


def _study(args: argparse.Namespace) -> None:
    """Run studies unless their results are up to date; print the paths of their notebooks."""
    from pythia_book import notebooks
    from pythia_book.papermill_engine import run_study
    from pythia_core.errors import ConfigError

    if len(args.studies) != 1:
        if args.parameter:
            raise ConfigError("-p needs exactly one study")
        return _studies(args)
    (study,) = args.studies
    notebook = notebooks.read_notebook(notebooks.notebook_path(study))
    parameters = notebooks.parse_parameters(args.parameter, notebooks.parameters_of(notebook))
    path, ran = run_study(study, args.scale, parameters, args.force)
    print(f"{path}" if ran else f"{path} is up to date (--force runs it again)")


def _studies(args: argparse.Namespace) -> None:
    """Run several studies, or all; say beforehand what is to do, and the time that each took.

    A study that fails does not stop the others; at the end, one error names all that failed.
    """
    import time

    from pythia_book.notebooks import notebooks_dir
    from pythia_book.papermill_engine import run_study
    from pythia_book.plan import overview, plans
    from pythia_book.records import duration_text
    from pythia_book.studies.registry import STUDIES
    from pythia_core.errors import PythiaError, raise_all

    known = {path.stem for path in notebooks_dir().glob("*.ipynb")}
    in_order = [study for study in STUDIES if study in known]  # they share models
    studies = list(dict.fromkeys(args.studies)) or [*in_order, *sorted(known - {*in_order})]
    print(overview(plans(studies, args.scale, args.force)), flush=True)
    problems, started = [], time.monotonic()
    for number, study in enumerate(studies, start=1):
        start = time.monotonic()
        try:
            _, ran = run_study(study, args.scale, force=args.force)
        except PythiaError as error:
            problems.append(f"{study}: {error}")
            print(f"error: {problems[-1]}", file=sys.stderr, flush=True)
            continue
        took = f"finished in {duration_text(time.monotonic() - start)}" if ran else "up to date"
        print(f"== {study}: {took} ({number} of {len(studies)})", flush=True)
    raise_all(PythiaError, problems, f"{len(problems)} of {len(studies)} studies failed")
    print(f"== All studies are finished, after {duration_text(time.monotonic() - started)}")


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
