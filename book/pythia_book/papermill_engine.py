"""Running a study's notebook: `papermill notebooks/gender_bias.ipynb`, with one argument, works.

Papermill loads this module through the entry point `papermill.engine` before it reads its command
line. For a notebook of this project given alone it then adds the output path, which papermill would
otherwise ask for (terminal), replace by stdout (pipe) or, with a pipe as its stdin, take to be the
notebook itself: results/<study>/<scale>/notebook.ipynb. The engine checks the parameters before the
kernel starts, and cleans, stamps and writes the notebook once it has run: not before, so that an
earlier one stays whole if this one is stopped. What takes long in the kernel shows where the
command runs, and Ctrl-C there lets the kernel save what it trains.

Calls with two paths keep their paths and get the engine only; `--help-notebook`, `--version` and
notebooks from elsewhere are left alone. Nothing here is heavy: every papermill call imports it.
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
from pythia_book.notebooks import KEPT
from pythia_core.errors import PythiaError, one_of
from pythia_core.suite import SCALES
from pythia_core.util.progress import TERMINAL, is_live
from pythia_core.util.stopping import SIGNALS, Stopped, ignore_signals, report_stop, stop_requests

BEGUN = 0.5
"""Seconds in which a kernel begins a cell that was sent to it; idle, it ignores an interrupt."""

OPTION_ARGUMENTS = {
    **dict.fromkeys(("-p", "--parameters", "-r", "--parameters_raw"), 2),
    **dict.fromkeys(("-f", "--parameters_file", "-y", "--parameters_yaml"), 1),
    **dict.fromkeys(("-b", "--parameters_base64", "--engine", "--autosave-cell-every"), 1),
    **dict.fromkeys(("-k", "--kernel", "-l", "--language", "--cwd", "--log-level"), 1),
    **dict.fromkeys(("--stdout-file", "--stderr-file", "--execution-timeout"), 1),
    **dict.fromkeys(("--start-timeout", "--start_timeout"), 1),
}
"""How many values follow each of papermill's options (tests compare this with papermill itself)."""

KERNEL_ARGUMENTS = ["--log-level=CRITICAL", "--InteractiveShell.xmode=Plain"]
"""No notes on the kernel's transport; tracebacks at once (coloured ones can take ten seconds, and
one that stops waits for them)."""

_INFORMATION = {"-h", "--help", "--help-notebook", "--version"}
_YAML_SOURCES = {"-b": "b", "--parameters_base64": "b", "-f": "f", "--parameters_file": "f"} | {
    "-y": "y",
    "--parameters_yaml": "y",
}


def split_arguments(arguments: list[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Papermill's arguments as (positional ones, [(option, its values)])."""
    positional, options = [], []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return positional + rest, options
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name, inline = word, []
        if word.startswith("--") and "=" in word:
            name, _, value = word.partition("=")
            inline = [value]
        elif not word.startswith("--") and len(word) > 2 and word[:2] in OPTION_ARGUMENTS:
            name, inline = word[:2], [word[2:].removeprefix("=")]
        more = max(0, OPTION_ARGUMENTS.get(name, 0) - len(inline))
        options.append((name, inline + rest[:more]))
        del rest[:more]
    return positional, options


def scale_given(options: list[tuple[str, list[str]]]) -> Any:
    """The value of the parameter `scale` on the command line in papermill's precedence, or None."""
    import base64

    import yaml

    values: dict[str, Any] = {}
    for wanted in "bfy":
        for name, given in options:
            if _YAML_SOURCES.get(name) != wanted or not given:
                continue
            text = given[0]
            if wanted == "b":
                text = base64.b64decode(text).decode()
            elif wanted == "f":
                text = Path(text).read_text(encoding="utf-8") if Path(text).is_file() else ""
            loaded = yaml.safe_load(text)
            values.update(loaded if isinstance(loaded, dict) else {})
    for wanted in (("-p", "--parameters"), ("-r", "--parameters_raw")):
        values.update({v[0]: v[1] for name, v in options if name in wanted and len(v) == 2})
    return values.get("scale")


def complete(arguments: list[str]) -> list[str]:
    """Papermill's arguments with output path and engine added where they are wanted.

    Raises:
        PythiaError: the notebook cannot be read or the scale is unknown.
    """
    positional, options = split_arguments(arguments)
    names = {name for name, _ in options}
    if not 1 <= len(positional) <= 2 or names & _INFORMATION:
        return arguments
    source = Path(positional[0]).resolve()
    if source.suffix != ".ipynb" or not source.is_file():
        return arguments
    if source.parent != notebooks.notebooks_dir().resolve():
        return arguments
    added = [] if "--engine" in names else ["--engine", "pythia"]
    if len(positional) == 1:
        scale = scale_given(options)
        if scale is None:
            default = notebooks.parameters_of(notebooks.read_notebook(source)).get("scale")
            scale = default.default if default else "laptop"
        if scale not in SCALES:
            from pythia_core.errors import ConfigError

            raise ConfigError(one_of(scale, SCALES, "scale"))
        target = notebooks.output_path(source.stem, scale)
        target.parent.mkdir(parents=True, exist_ok=True)
        # papermill formats its paths with the parameters, hence the doubled braces
        path = os.path.relpath(target).replace("{", "{{").replace("}", "}}")
        arguments = [*arguments, path]
    return [*added, *arguments]


def _close_piped_stdin() -> None:
    """Replace a pipe (or nothing) as stdin by the null device: papermill would read from it."""
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
    if sys.argv[0] == "-m":  # the module is still being found
        return "papermill" in sys.orig_argv[1 : -len(sys.argv[1:]) or None]
    return Path(sys.argv[0]).stem == "papermill"


_in_papermill_command = False


def _leave(number: int, _frame: Any) -> None:
    """What Ctrl-C and SIGTERM do to the command papermill while nothing needs to be saved."""
    os._exit(report_stop(Stopped(number=number), KEPT))


def _on_import() -> None:
    global _in_papermill_command
    _in_papermill_command = _is_papermill_command()
    if not _in_papermill_command:
        return
    before = {number: signal.signal(number, _leave) for number in SIGNALS}
    try:
        completed = complete(sys.argv[1:])
    except PythiaError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if len(completed) > len(sys.argv) - 1:
        sys.argv[1:] = completed
        _close_piped_stdin()
    else:  # nothing of ours
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress_shown(study: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Let the kernel show its progress where this command shows its own, if it does."""
    shown = kwargs.get("progress_bar", True)
    live = shown and is_live(sys.stderr)
    if shown and not kwargs.get("stderr_file"):
        kwargs["stderr_file"] = sys.stderr
    # one line, redrawn when a cell ends; while a cell runs, the line is the kernel's
    # (not at once: papermill first names the kernel there)
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
    """Ctrl-C and SIGTERM interrupt the cell that runs, which saves what it trains, and then end
    the notebook, instead of the machinery between this process and its kernel.

    Raises:
        Stopped: either arrived; the command papermill is ended with one line instead.
    """
    from jupyter_client.manager import AsyncKernelManager

    kernels: list[AsyncKernelManager] = []
    begun = False

    class Manager(AsyncKernelManager):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            kernels.append(self)

    def interrupt() -> None:
        for kernel in kernels:
            pid = getattr(kernel.provisioner, "pid", None)
            if begun and kernel.has_kernel and pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)

    def cell_start(**_: Any) -> None:
        nonlocal begun
        if stop_requested():
            raise Stopped
        begun = True

    kwargs |= {"kernel_manager_class": Manager, "on_cell_start": cell_start}
    try:
        with stop_requests(lambda: threading.Timer(BEGUN, interrupt).start()) as stop_requested:
            try:
                yield
            finally:
                if number := stop_requested():
                    raise Stopped(number=number) from None
    except Stopped as stop:
        if _in_papermill_command:
            raise SystemExit(report_stop(stop, KEPT)) from None
        raise


class PythiaEngine:
    """Papermill's own engine, with the parameters checked before and the notebook cleaned after.

    It holds that engine instead of inheriting from it: papermill.engines imports this module.
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

        from pythia_book.records import outlook

        given = dict(nb.metadata.get("papermill", {}).get("parameters", {}))
        study = Path(str(kwargs.get("input_path") or "")).stem
        try:
            values = notebooks.validate_parameters(nb, given)
            notebooks.check_values(study, values)
        except PythiaError as error:
            raise click.ClickException(str(error)) from None
        nb.metadata.pop(notebooks.STAMP, None)
        stamp = notebooks.make_stamp(study, values, nb)
        kwargs["output_path"] = None  # papermill writes what is returned
        kwargs.setdefault("extra_arguments", KERNEL_ARGUMENTS)
        if kwargs.get("progress_bar", True) and "scale" in values:
            print(outlook(study, values["scale"]), file=sys.stderr, flush=True)
        with _progress_shown(study, kwargs), _stoppable(kwargs):
            nb = NBClientEngine.execute_notebook(nb, kernel_name, *args, **kwargs)
        if not notebooks.has_errors(nb):  # a failed notebook keeps everything that may explain it
            nb.metadata[notebooks.STAMP] = stamp
            notebooks.clean_notebook(nb)
        if _in_papermill_command:  # which has only to write it
            ignore_signals()
        return nb


def run_study(
    study: str,
    scale: str | None = None,
    parameters: dict[str, Any] | None = None,
    force: bool = False,
    progress: bool = True,
) -> tuple[Path, bool]:
    """Execute a study's notebook into results/<study>/<scale>/, unless that is up to date.

    Args:
        study: name of a notebook. scale: overrides the notebook's default.
        parameters: further parameters, checked before anything runs.
        force: run even if the last run is up to date.
        progress: show what runs, and what the notebook writes to its error stream.

    Returns:
        The executed notebook and whether it was run now (False: it was up to date).

    Raises:
        ConfigError: unknown study, scale or parameter, or a value that the study cannot use.
        PythiaError: a cell failed or the kernel died; says where to look.
        Stopped: after SIGINT or SIGTERM; an earlier run's notebook is as it was.
    """
    source = notebooks.notebook_path(study)
    notebook = notebooks.read_notebook(source)
    given = {**(parameters or {}), **({"scale": scale} if scale else {})}
    values = notebooks.validate_parameters(notebook, given)
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
        with stop_requests() as stop_requested:  # what runs is stopped by the engine
            papermill.execute_notebook(
                str(source),
                str(target).replace("{", "{{").replace("}", "}}"),  # papermill formats its paths
                parameters=given,
                engine_name="pythia",
                progress_bar=progress,
                cwd=str(notebooks.project_root()),
            )
            if number := stop_requested():
                raise Stopped(number=number)
    except papermill.PapermillExecutionError as error:
        message = f"a cell of {source.name} failed with {error.ename}: {error.evalue}"
        raise PythiaError(f"{message}\nwhere: see {target}") from error
    except DeadKernelError as error:
        message = f"the kernel running {source.name} died; was there enough memory?"
        raise PythiaError(f"{message} What was trained is kept: run it again to go on.") from error
    return target, True


_on_import()
