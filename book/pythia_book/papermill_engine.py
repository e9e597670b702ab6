"""Runs a study's notebook; lets `papermill notebooks/gender_bias.ipynb` work with one argument.

Papermill loads this module through the entry point `papermill.engine` before it reads its command
line. If the only path there is a notebook of this project, the module adds the output path,
results/<study>/<scale>/notebook.ipynb. Without it papermill would prompt (terminal), write to
stdout (pipe) or, with a pipe as stdin, use the path as the output. The engine checks the parameters
before the kernel starts. It cleans, stamps and writes the notebook only after it has run, so a
stopped run leaves an earlier one intact. The kernel's progress is shown in the terminal of the
command, and Ctrl-C there lets the kernel save what it is training.

Calls with two paths get only the engine; `--help-notebook`, `--version` and notebooks of other
projects are left alone. Every papermill call imports this module, so it must import quickly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pythia_book import notebooks
from pythia_book.notebooks import STOP_NOTE
from pythia_core.errors import ConfigError, PythiaError, one_of
from pythia_core.suite import SCALES
from pythia_core.util.progress import TERMINAL, is_live
from pythia_core.util.stopping import SIGNALS, Stopped, ignore_signals, report_stop, stop_requests

START_DELAY = 0.5
"""Seconds to wait before interrupting: a kernel ignores it until it has begun its cell."""

OPTIONS = {
    ("--parameters", "-p"): 2,
    ("--parameters_raw", "-r"): 2,
    ("--parameters_file", "-f"): 1,
    ("--parameters_yaml", "-y"): 1,
    ("--parameters_base64", "-b"): 1,
    ("--start-timeout", "--start_timeout"): 1,
    **dict.fromkeys((("--kernel", "-k"), ("--language", "-l"), ("--engine",), ("--cwd",)), 1),
    **dict.fromkeys((("--stdout-file",), ("--stderr-file",), ("--log-level",)), 1),
    **dict.fromkeys((("--execution-timeout",), ("--autosave-cell-every",)), 1),
}
"""Papermill's options -> number of values (a test compares them with papermill's own)."""

KERNEL_ARGUMENTS = ["--log-level=CRITICAL", "--InteractiveShell.xmode=Plain"]
"""Silence the kernel's transport, and do not colour tracebacks: that can take ten seconds, which
would delay a stop."""

_INFORMATION = {"-h", "--help", "--help-notebook", "--version"}


def parse_arguments(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Parse arguments as papermill does: (paths and flags, values by option name)."""
    import click

    options = [click.Option(names, nargs=n, multiple=True) for names, n in OPTIONS.items()]
    command = click.Command(
        "papermill",
        params=[*options, click.Argument(["words"], nargs=-1)],
        context_settings={"ignore_unknown_options": True},  # keep flags as words
        add_help_option=False,
    )
    values = command.make_context("papermill", list(arguments), resilient_parsing=True).params
    return list(values.pop("words") or ()), values


def scale_parameter(options: dict[str, Any]) -> Any:
    """The parameter `scale` in parsed options, by papermill's precedence; None if not set."""
    import base64

    import yaml

    documents = [base64.b64decode(text).decode() for text in options["parameters_base64"]]
    files = map(Path, options["parameters_file"])
    documents += [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    values: dict[str, Any] = {}
    for document in (*documents, *options["parameters_yaml"]):
        loaded = yaml.safe_load(document)
        values |= loaded if isinstance(loaded, dict) else {}
    values |= dict(options["parameters"]) | dict(options["parameters_raw"])
    return values.get("scale")


def complete_arguments(arguments: list[str]) -> list[str]:
    """Papermill's arguments, with output path and engine added to calls that lack them.

    Raises:
        PythiaError: the notebook cannot be read or the scale is unknown.
    """
    words, options = parse_arguments(arguments)
    paths = [word for word in words if not word.startswith("-") or word == "-"]
    if not 1 <= len(paths) <= 2 or _INFORMATION & set(words):
        return arguments
    source = Path(paths[0]).resolve()
    ours = source.parent == notebooks.notebooks_dir().resolve()
    if not ours or source.suffix != ".ipynb" or not source.is_file():
        return arguments
    engine = [] if options["engine"] else ["--engine", "pythia"]
    if len(paths) == 2:
        return [*engine, *arguments]
    scale = scale_parameter(options)
    if scale is None:
        parameter = notebooks.parameters_of(notebooks.read_notebook(source)).get("scale")
        scale = parameter.default if parameter else "laptop"
    if scale not in SCALES:
        raise ConfigError(one_of(scale, SCALES, "scale"))
    target = notebooks.output_path(source.stem, scale)
    target.parent.mkdir(parents=True, exist_ok=True)
    return [*engine, *arguments, _escaped(os.path.relpath(target))]


def _escaped(path: object) -> str:
    """A path escaped for papermill, which formats paths with the parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _close_piped_stdin() -> None:
    """Replace a pipe or a closed stdin with the null device: papermill would read from it."""
    try:
        piped = stat.S_ISFIFO(os.fstat(0).st_mode)
    except OSError:
        piped = True
    if piped:
        null = os.open(os.devnull, os.O_RDONLY)
        if null != 0:
            os.dup2(null, 0)
            os.close(null)


def _is_papermill_command() -> bool:
    """Whether this process is the script `papermill` or `python -m papermill`."""
    if sys.argv[0] == "-m":  # the module is not loaded yet
        return "papermill" in sys.orig_argv[1 : -len(sys.argv[1:]) or None]
    return Path(sys.argv[0]).stem == "papermill"


_in_papermill_command = False


def _exit_at_once(number: int, _frame: Any) -> None:
    """Handle Ctrl-C and SIGTERM in the papermill command while there is nothing to save."""
    os._exit(report_stop(Stopped(number=number), STOP_NOTE))


def _on_import() -> None:
    global _in_papermill_command
    _in_papermill_command = _is_papermill_command()
    if not _in_papermill_command:
        return
    before = {number: signal.signal(number, _exit_at_once) for number in SIGNALS}
    try:
        completed = complete_arguments(sys.argv[1:])
    except PythiaError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if len(completed) > len(sys.argv) - 1:
        sys.argv[1:] = completed
        _close_piped_stdin()
    else:  # not a notebook of this project
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _kernel_progress(study: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Let the kernel show its progress in this command's terminal, unless progress is off."""
    progress = kwargs.get("progress_bar", True)
    live = progress and is_live(sys.stderr)
    if progress and not kwargs.get("stderr_file"):
        kwargs["stderr_file"] = sys.stderr
    # one line, redrawn when a cell ends; while a cell runs, the kernel uses the line
    # (delayed, because papermill first prints the kernel's name there)
    cells = {"desc": study, "leave": False, "miniters": 1, "dynamic_ncols": True, "delay": 0.1}
    cells["bar_format"] = "{desc}: cell {n_fmt} of {total_fmt}, {elapsed}"
    kwargs["progress_bar"] = cells if live else False
    before = os.environ.get(TERMINAL)
    os.environ[TERMINAL] = os.ttyname(sys.stderr.fileno()) if live else ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[TERMINAL]
        else:
            os.environ[TERMINAL] = before


@contextlib.contextmanager
def _stoppable(kwargs: dict[str, Any]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM interrupt the running cell, which saves what it is training, and then
    end the notebook; without this they would break the connection to the kernel.

    Raises:
        Stopped: after either signal. The papermill command instead prints one line and exits.
    """
    from jupyter_client.manager import AsyncKernelManager

    kernels: list[AsyncKernelManager] = []
    cell_started = False

    class Manager(AsyncKernelManager):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            kernels.append(self)

    def interrupt() -> None:
        for kernel in kernels:
            pid = getattr(kernel.provisioner, "pid", None)
            if cell_started and kernel.has_kernel and pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)

    def cell_start(**_: Any) -> None:
        nonlocal cell_started
        if stop_requested():
            raise Stopped
        cell_started = True

    kwargs |= {"kernel_manager_class": Manager, "on_cell_start": cell_start}
    try:
        with stop_requests(
            lambda: threading.Timer(START_DELAY, interrupt).start()
        ) as stop_requested:
            try:
                yield
            finally:
                if number := stop_requested():
                    raise Stopped(number=number) from None
    except Stopped as stop:
        if _in_papermill_command:
            raise SystemExit(report_stop(stop, STOP_NOTE)) from None
        raise


class PythiaEngine:
    """Papermill's own engine; it checks the parameters first and cleans the notebook at the end.

    It cannot inherit from that engine, because papermill.engines imports this module.
    """

    @staticmethod
    def nb_kernel_name(nb: Any, name: str | None = None) -> str:
        from papermill.utils import nb_kernel_name

        return nb_kernel_name(nb, name)

    @staticmethod
    def nb_language(nb: Any, language: str | None = None) -> str:
        from papermill.utils import nb_language

        return nb_language(nb, language)

    @staticmethod
    def execute_notebook(nb: Any, kernel_name: str, *args: Any, **kwargs: Any) -> Any:
        import click
        from papermill.engines import NBClientEngine

        from pythia_book.records import start_message

        parameters = dict(nb.metadata.get("papermill", {}).get("parameters", {}))
        study = Path(str(kwargs.get("input_path") or "")).stem
        try:
            values = notebooks.validate_parameters(nb, parameters)
            notebooks.check_values(study, values)
        except PythiaError as error:
            raise click.ClickException(str(error)) from None
        nb.metadata.pop(notebooks.STAMP, None)
        stamp = notebooks.make_stamp(study, values, nb)
        kwargs["output_path"] = None  # papermill writes the returned notebook
        kwargs.setdefault("extra_arguments", KERNEL_ARGUMENTS)
        if kwargs.get("progress_bar", True) and "scale" in values:
            print(start_message(study, values["scale"]), file=sys.stderr, flush=True)
        with _kernel_progress(study, kwargs), _stoppable(kwargs):
            nb = NBClientEngine.execute_notebook(nb, kernel_name, *args, **kwargs)
        if not notebooks.has_errors(nb):  # a failed one is left as it is, to explain the failure
            nb.metadata[notebooks.STAMP] = stamp
            notebooks.clean_notebook(nb)
        if _in_papermill_command:  # only writing the notebook is left
            ignore_signals()
        return nb


def run_study(
    study: str,
    scale: str | None = None,
    parameters: dict[str, Any] | None = None,
    force: bool = False,
    progress: bool = True,
) -> tuple[Path, bool]:
    """Execute a study's notebook into results/<study>/<scale>/, unless it is up to date there.

    Args:
        study: name of a notebook. scale: overrides the notebook's default.
        parameters: further parameters, checked before anything runs.
        force: run even if the last run is up to date.
        progress: show a progress bar and the notebook's error stream.

    Returns:
        The path of the executed notebook, and whether this call ran it.

    Raises:
        ConfigError: unknown study, scale or parameter, or a value that the study cannot use.
        PythiaError: a cell failed or the kernel died; says where to look.
        Stopped: after SIGINT or SIGTERM; an earlier run's notebook is unchanged.
    """
    source = notebooks.notebook_path(study)
    notebook = notebooks.read_notebook(source)
    parameters = {**(parameters or {}), **({"scale": scale} if scale else {})}
    values = notebooks.validate_parameters(notebook, parameters)
    notebooks.check_values(study, values)
    target = notebooks.output_path(study, values.get("scale", "laptop"))
    stamp = notebooks.make_stamp(study, values, notebook)
    if not force and notebooks.is_current(target, stamp):
        return target, False

    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines

    papermill_engines.register("pythia", PythiaEngine)  # an entry point, but only if installed

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with stop_requests() as stop_requested:  # the engine stops the notebook
            papermill.execute_notebook(
                str(source),
                _escaped(target),
                parameters=parameters,
                engine_name="pythia",
                progress_bar=progress,
                cwd=str(notebooks.project_root()),
            )
            if number := stop_requested():
                raise Stopped(number=number)
    except papermill.PapermillExecutionError as error:
        message = f"a cell of {source.name} failed with {error.ename}: {error.evalue}"
        raise PythiaError(f"{message}\nfor the traceback, see {target}") from error
    except DeadKernelError as error:
        message = f"the kernel running {source.name} died; was there enough memory?"
        raise PythiaError(f"{message} What was trained is kept: run it again to resume.") from error
    return target, True


_on_import()
