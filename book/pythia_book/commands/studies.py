"""Adds the commands `study`, `worker`, `record`, `redraw`, `pdf` and `errata`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from pythia_book.commands import utf8_text
from pythia_book.notebooks import STOP_NOTE
from pythia_core.commands import AddCommand, nonblank
from pythia_core.commands.workers import add_worker_options, check_worker_options, run_workers
from pythia_core.suite import SCALES

STUDY_EXAMPLES = """\
examples:
  python -m pythia_core study                             all studies, with all cores or GPUs here
  python -m pythia_core study suite --scale gpu --on slurm --gpus 8 --partition gpu
                                                          eight jobs train and measure, one GPU
                                                          each; the notebook runs in a last job
  python -m pythia_core study --on local --gpus 4         four of the GPUs here
"""
WORKER_EXAMPLES = """\
Start any number of workers, one for each GPU, on machines that share the folder of results
(PYTHIA_RESULTS). Each run and each measurement is done by one worker. If a worker dies, nothing is
lost: about a minute later, another one takes over its work. When all workers have finished, run
`study`: it finds their results and runs the notebooks.

examples:
  srun -N4 --ntasks-per-node=8 --gpus-per-task=1 python -m pythia_core worker suite --scale gpu
  for host in a b c; do ssh $host "cd $PWD && .venv/bin/python -m pythia_core worker" & done; wait
  CUDA_VISIBLE_DEVICES=3 python -m pythia_core worker gender_bias -p seeds=8
"""


def add(command: AddCommand) -> None:
    """Add `study`, `worker`, `record`, `redraw`, `pdf` and `errata` to the command line."""
    p = command(
        "study",
        _study,
        "run the notebooks of studies, unless their results are up to date",
        epilog=STUDY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(resume_note=STOP_NOTE)
    _add_selection(p)
    p.add_argument("--force", action="store_true", help="run even if the results are up to date")
    add_worker_options(p, "train and measure in workers on this machine or in Slurm jobs")

    p = command(
        "worker",
        _worker,
        "train and measure what studies need, without running notebooks; workers share the work",
        epilog=WORKER_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(resume_note=STOP_NOTE)
    _add_selection(p)

    p = command("record", _record, "copy a reviewed local run into book/recorded, to be committed")
    p.add_argument("study", metavar="STUDY", help="name of a notebook that has run")
    p.add_argument("--scale", default="laptop", help="scale of the run (default: laptop)")
    p.add_argument("--force", action="store_true", help="record even if the code was not committed")

    p = command("redraw", _redraw, "update verdicts, figures and prose of finished studies")
    p.add_argument("studies", nargs="*", metavar="STUDY", help="names of notebooks (default: all)")
    p.add_argument("--scale", help="redraw only runs at this scale (default: all)")

    p = command("pdf", _pdf, "print the built site to one PDF; without --out, the pages link to it")
    p.add_argument(
        "site", nargs="?", metavar="SITE", help="folder of the site (default: _build/html)"
    )
    p.add_argument("--out", metavar="FILE", help="file to write (default: SITE/pythia-book.pdf)")

    text = "list common misstatements about Pythia, or show the evidence for one"
    p = command("errata", _errata, text)
    p.add_argument(
        "name",
        nargs="?",
        type=nonblank,
        metavar="NAME",
        help="erratum to explain (default: list all)",
    )


def _add_selection(p: argparse.ArgumentParser) -> None:
    """Add the arguments that say which studies to run, and with which parameters."""
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
        help="set a parameter of the notebook (if only one STUDY is named); repeatable",
    )


def _study(args: argparse.Namespace) -> None:
    """Run studies unless their results are up to date; print the paths of their notebooks."""
    from pythia_book.papermill_engine import run_study

    if _work_elsewhere(args):
        return
    parameters = _parameters(args, args.studies)
    if len(args.studies) != 1:
        return _studies(args)
    (study,) = args.studies
    path, ran = run_study(study, args.scale, parameters, args.force)
    print(f"{path}" if ran else f"{path} is up to date (--force runs it again)")


def _work_elsewhere(args: argparse.Namespace) -> bool:
    """Run workers if `--on` asks for them; return whether the notebooks have also run, in a job.

    Raises:
        ConfigError: an option is missing or does not fit `--on`, or a value is not accepted.
    """
    from pythia_core.training import precision
    from pythia_core.util.files import check_results, results_dir

    if not check_worker_options(args):
        return False
    values = _values(args)  # errors come before anything is started
    folder = results_dir() / "workers"
    check_results(folder)
    chosen = ["--scale", args.scale] if args.scale else []
    chosen += [word for parameter in args.parameter for word in ("-p", parameter)]
    if args.on == "slurm" and args.cpus:
        # different processors could choose different precisions, so different runs
        os.environ[precision.VARIABLE] = precision.best_precision()
    run_workers(args, ["worker", *values, *chosen], folder)
    if args.on == "local":
        return False
    # in a job, too: a run belongs to a kind of device, and there may be another one here
    again = ["study", *args.studies, *chosen, *(["--force"] if args.force else [])]
    for log in run_workers(args, again, folder, count=1):
        lines = log.read_text(errors="replace").splitlines()
        print("\n".join(line for line in lines if not line.startswith("submitit ")))
    return True


def _values(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Map each study that workers share to the values of its parameters.

    Raises:
        ConfigError: see `worker.values_of`.
    """
    from pythia_book import worker

    studies = list(dict.fromkeys(args.studies)) or worker.shared_studies()
    return worker.values_of(studies, args.scale, _parameters(args, studies))


def _parameters(args: argparse.Namespace, studies: Sequence[str]) -> dict[str, Any]:
    """Return the parameters that `-p` gives.

    Raises:
        ConfigError: `-p` is used without exactly one study, or the study rejects a parameter.
    """
    from pythia_book import notebooks
    from pythia_core.errors import ConfigError

    if not args.parameter:
        return {}
    if len(studies) != 1:
        raise ConfigError(f"-p needs exactly one study, got {len(studies) or 'all'}")
    notebook = notebooks.read_notebook(notebooks.notebook_path(studies[0]))
    return notebooks.parse_parameters(args.parameter, notebooks.parameters_of(notebook))


def _worker(args: argparse.Namespace) -> None:
    """Train and measure whatever no other worker is doing, until nothing is left."""
    from pythia_book import worker
    from pythia_core.util.machine import DEVICES

    if device := worker.take_device():
        os.environ[DEVICES] = device
    worker.work(_values(args))


def _studies(args: argparse.Namespace) -> None:
    """Run several studies, or all; print a plan first, and the time that each study took.

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


def _pdf(args: argparse.Namespace) -> None:
    """Make a PDF of the site, and print its path."""
    from pathlib import Path

    from pythia_book.commands import file_to_write
    from pythia_book.site.pdf import write_pdf
    from pythia_book.site.staging import ROOT

    site = Path(args.site).expanduser() if args.site else ROOT / "_build" / "html"
    target = file_to_write("--out", args.out, (".pdf",)) if args.out else None
    print(write_pdf(site, target))


def _errata(args: argparse.Namespace) -> None:
    """Print the evidence on a misstatement about Pythia or, without a name, list all of them."""
    from pythia_book.published.results import find
    from pythia_book.studies.errata.catalog import erratum_named, erratum_text, listing

    print(erratum_text(erratum_named(args.name), find()) if args.name else listing())
