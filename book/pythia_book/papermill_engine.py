"""Runs the notebook of a study with papermill, and lets `papermill` work without an output path.

Papermill imports this module in every call, through the entry point `papermill.engine`, so the
import must be fast. If the notebook is one of this project, the import selects our engine and, if
the call has no output path, adds results/<study>/<scale>/notebook.ipynb.

The kernel writes the record to a temporary folder (`PYTHIA_RECORD_TO`), and the engine adds the
cleaned and stamped notebook. The folder then replaces results/<study>/<scale>/ as a whole. A
notebook that failed or was only prepared, not executed, goes to
results/<study>/<scale>-unfinished.ipynb. If the call names a path elsewhere, no record is written.
"""

from __future__ import annotations

import contextlib
import os
import reprlib
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pythia_book import notebooks
from pythia_book.notebooks import STOP_NOTE
from pythia_core.errors import ConfigError, DataError, PythiaError, one_of
from pythia_core.suite import SCALES
from pythia_core.util.files import (
    FULL_DISK,
    cache_dir,
    check_cache,
    check_results,
    check_writable,
    full_disk_advice,
    results_dir,
)
from pythia_core.util.machine import require_one_process
from pythia_core.util.progress import TERMINAL, is_live
from pythia_core.util.stopping import SIGNALS, Stopped, ignore_signals, report_stop, stop_requests

START_DELAY = 0.5
"""Seconds from Ctrl-C until the kernel is interrupted. A kernel whose cell has not started yet
would ignore the interrupt."""

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
"""Maps the names of each papermill option to its number of values."""

KERNEL_ARGUMENTS = ["--log-level=CRITICAL", "--InteractiveShell.xmode=Plain"]
"""Arguments that silence the kernel's log and turn off colors in tracebacks. Coloring a traceback
can take ten seconds, which would delay a stop."""

_SHORT = reprlib.Repr()
"""Shortens values in messages: with aliases, a short YAML text can mean a list of any length."""
_SHORT.maxlevel = 2

_INFORMATION = {"-h", "--help", "--help-notebook", "--version"}


def parse_arguments(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Parse arguments as papermill does; return (paths and flags, dict of option values)."""
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
    """Return `scale` from parsed options, with papermill's precedence; None if it is not set.

    Raises:
        ConfigError: a document with parameters is not a YAML mapping of names to values.
    """
    import base64

    import yaml

    values: dict[str, Any] = {}
    readers: dict[str, Callable[[str], str | bytes]] = {
        "parameters_base64": lambda text: base64.b64decode("".join(text.split()), validate=True),
        "parameters_file": lambda path: Path(path).read_bytes(),
        "parameters_yaml": str,
    }
    for option, read in readers.items():
        for given in options[option]:
            if option == "parameters_file" and "://" in given:  # papermill opens addresses
                continue
            try:
                loaded = yaml.safe_load(read(given)) or {}
            except (ValueError, OSError, RecursionError, yaml.YAMLError) as error:
                raise ConfigError(f"--{option} {given}: {error}") from error
            if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
                raise ConfigError(
                    f"--{option} {given}: expected names with values, such as `seeds: 3`, got "
                    f"{_SHORT.repr(loaded)}"
                )
            values |= loaded
    values |= dict(options["parameters"]) | dict(options["parameters_raw"])
    return values.get("scale")


def keep_text(words: list[str], texts: set[str]) -> list[str]:
    """Replace -p by -r before the parameters `texts`, whose values papermill must not convert."""
    names = [*words[1:], ""]
    return [
        "-r" if word in ("-p", "--parameters") and name in texts else word
        for word, name in zip(words, names, strict=True)
    ]


def complete_arguments(arguments: list[str]) -> list[str]:
    """Add a missing output path and engine to papermill's arguments, and keep text as it is typed.

    Calls for help or the version, and calls with a notebook of another project, stay unchanged.

    Raises:
        PythiaError: the study or the scale is unknown, the notebook cannot be read, or nothing can
            be written to the folder of results.
    """
    words, options = parse_arguments(arguments)
    paths = [word for word in words if not word.startswith("-") or word == "-"]
    if not 1 <= len(paths) <= 2 or _INFORMATION & set(words):
        return arguments
    source = Path(paths[0]).resolve()
    ours = source.parent == notebooks.notebooks_dir().resolve()
    if not ours or source.suffix != ".ipynb":
        return arguments
    notebooks.notebook_path(source.stem)  # names the studies if there is no such notebook
    accepted = notebooks.parameters_of(notebooks.read_notebook(source))
    texts = {name for name, parameter in accepted.items() if parameter.type == "str"}
    engine = [] if options["engine"] else ["--engine", "pythia"]
    arguments = [*engine, *keep_text(arguments, texts)]
    scale = scale_parameter(options)
    if len(paths) == 2:
        return arguments
    if scale is None:
        scale = accepted["scale"].default if "scale" in accepted else "laptop"
    if not isinstance(scale, str):
        choices = ", ".join(SCALES)
        raise ConfigError(f"unknown scale {_SHORT.repr(scale)}; accepted: {choices}")
    if scale not in SCALES:
        raise ConfigError(one_of(scale[:80], SCALES, "scale"))
    target = notebooks.output_path(source.stem, scale)
    return [*arguments, _escaped(os.path.relpath(target))]


def _escaped(path: object) -> str:
    """Escape braces in a path, because papermill substitutes parameters in paths."""
    return str(path).replace("{", "{{").replace("}", "}}")


# --- the place of a run ----------------------------------------------------------------------


def _place_of_a_run(written: str, study: str, base: Path) -> Path | None:
    """Return the absolute output path if the study's notebook in results/ has this path, else None.

    Args:
        written: papermill's output path, relative to `base`.

    Raises:
        ConfigError: `written` is the notebook of another study's run, or is in book/recorded/.
    """
    path = os.path.realpath(base / written)
    *_, owner, scale, _ = ("", "", "", *Path(path).parts)
    if scale not in SCALES:
        return None
    recorded = notebooks.project_root() / "book" / "recorded"
    for root in (results_dir(), recorded):
        for name in dict.fromkeys((study, owner)):
            place = root / name / scale / notebooks.NOTEBOOK
            if os.path.realpath(place) != path:
                continue
            if root == recorded or name != study:
                raise ConfigError(
                    f"this call would overwrite {written}, the notebook of a recorded run of "
                    f"{name}; choose another output path"
                )
            return place.absolute()
    return None


def _check_output(target: Path | None, written: str, base: Path) -> None:
    """Check, before cells run, that the run or the notebook can be written afterwards.

    Args:
        target: from `_place_of_a_run`.
        written: papermill's output path, relative to `base`.

    Raises:
        ConfigError: one of them cannot be written.
    """
    if target:
        check_results(target.parent.parent)
    elif written != "-" and "://" not in written:  # else not a file, but an address
        path = base / written
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(
                f"the output path {written} is a folder, or its folder does not exist; choose the "
                "path of a file in an existing folder"
            )
        check_writable(path.parent, "choose another output path")


def _working_folder() -> Path:
    """Return the folder to which papermill's paths are relative, even if cells run elsewhere."""
    from papermill.iorw import papermill_io

    handler = papermill_io.get_handler("local")
    folder = handler.cwd(None)
    handler.cwd(folder)
    return Path(folder or os.getcwd())


_guarded: set[str] = set()


def _guard(written: str, target: Path) -> None:
    """Keep papermill from writing to `written`, where a finished run may be.

    An unfinished notebook goes to `unfinished_path(target)` instead. The notebook of a recorded run
    is not written again, because the engine has already written it.
    """
    from papermill.iorw import LocalHandler, papermill_io

    class Guard(LocalHandler):
        def write(self, content: str, path: str) -> None:
            import nbformat

            notebook = nbformat.reads(content, as_version=4)
            if "record" not in notebook.metadata.get(notebooks.STAMP, {}):  # else it is in place
                keep_unfinished(notebook, target)

    if written not in _guarded:
        papermill_io.register(written, Guard())
        _guarded.add(written)


def keep_unfinished(notebook: Any, target: Path) -> Path:
    """Write the notebook of an unfinished run to `unfinished_path(target)`, and print that path."""
    path = notebooks.unfinished_path(target)
    notebooks.write_notebook(notebook, path)
    if notebooks.has_errors(notebook):
        outcome = "The run did not finish"
    elif notebooks.STAMP in notebook.metadata:
        outcome = "The run was not recorded"
    else:
        outcome = "The notebook was not run to its end"
    print(f"{outcome}; the notebook is in {os.path.relpath(path)}", file=sys.stderr, flush=True)
    return path


def finish(notebook: Any, stamp: dict[str, Any], folder: Path) -> None:
    """Stamp and clean an executed notebook, and write it to `folder`, next to the record.

    Raises:
        DataError: the record is missing, incomplete or damaged.
    """
    from pythia_book import records
    from pythia_core.util.files import file_sha256

    record = folder / "record.json"
    if not record.is_file():
        raise DataError(
            "the notebook wrote no record; the last cell of a study must be "
            "style.write_record(result)"
        )
    notebook.metadata[notebooks.STAMP] = stamp | {"record": file_sha256(record)}
    notebooks.clean_notebook(notebook)
    notebook.metadata[notebooks.STAMP]["cells"] = notebooks.cells_hash(notebook)
    notebooks.write_notebook(notebook, folder / notebooks.NOTEBOOK)
    if problems := records.check_whole(folder, named=False):
        del notebook.metadata[notebooks.STAMP]
        raise DataError("; ".join(problems))


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# --- the papermill command -------------------------------------------------------------------


def _close_piped_stdin() -> None:
    """Replace a piped or closed stdin by the null device, because papermill would read it."""
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
    """Return whether this process is the script `papermill` or `python -m papermill`."""
    if sys.argv[0] == "-m":  # the module is not loaded yet
        return "papermill" in sys.orig_argv[1 : -len(sys.argv[1:]) or None]
    return Path(sys.argv[0]).stem == "papermill"


_in_papermill_command = False


def _exit_at_once(number: int, _frame: Any) -> None:
    """Handle a signal when there is nothing to save: report the signal and exit."""
    os._exit(report_stop(Stopped(number=number), STOP_NOTE))


def _on_import() -> None:
    global _in_papermill_command
    _in_papermill_command = _is_papermill_command()
    if not _in_papermill_command:
        return
    before = {number: signal.signal(number, _exit_at_once) for number in SIGNALS}
    try:
        completed = complete_arguments(sys.argv[1:])
        _guard_output(completed)
    except PythiaError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if len(completed) > len(sys.argv) - 1:
        sys.argv[1:] = completed
        _close_piped_stdin()
    else:  # not a notebook of this project
        for number, handler in before.items():
            signal.signal(number, handler)


def _guard_output(arguments: list[str]) -> None:
    """Keep a papermill call from overwriting a recorded run, even with --prepare-only.

    Raises:
        ConfigError: `_place_of_a_run` refuses the output path, or an engine other than `pythia`
            would write a study's notebook in results/.
    """
    words, options = parse_arguments(arguments)
    paths = [word for word in words if not word.startswith("-") or word == "-"]
    if len(paths) != 2 or _INFORMATION & set(words):
        return
    source, written = paths[0], paths[1].replace("{{", "{").replace("}}", "}")
    ours = Path(source).resolve().parent == notebooks.notebooks_dir().resolve()
    target = _place_of_a_run(written, Path(source).stem if ours else "", Path.cwd())
    if target and options["engine"][-1:] != ("pythia",):
        raise ConfigError(
            f"only the engine `pythia` may write {written}, because runs are recorded there; omit "
            "--engine, or choose another output path"
        )
    if target:
        _guard(written, target)


# --- the engine ------------------------------------------------------------------------------


@contextlib.contextmanager
def _kernel_progress(study: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Show the kernel's progress in this terminal; change papermill's `kwargs` in place."""
    progress = kwargs.get("progress_bar", True)
    live = progress and is_live(sys.stderr)
    if progress and not kwargs.get("stderr_file"):
        kwargs["stderr_file"] = sys.stderr
    # one line, redrawn when a cell ends; while a cell runs, the kernel uses the line
    # (delayed, because papermill first prints the kernel's name there)
    cells = {"desc": study, "leave": False, "miniters": 1, "dynamic_ncols": True, "delay": 0.1}
    cells["bar_format"] = "{desc}: cell {n_fmt} of {total_fmt}, {elapsed}"
    kwargs["progress_bar"] = cells if live else False
    with environment(TERMINAL, os.ttyname(sys.stderr.fileno()) if live else ""):
        yield


@contextlib.contextmanager
def _stoppable(kwargs: dict[str, Any]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the notebook after the running cell has saved its model.

    Without this context manager, a signal would break the connection to the kernel. The `kwargs` of
    papermill's engine are changed in place.

    Raises:
        Stopped: a signal was received. The papermill command prints one line and exits instead.
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
    """Runs a notebook with papermill's default engine, and checks, stamps and records the run.

    Inheriting from the default engine is impossible, because papermill.engines imports this module.
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

        from pythia_book import records
        from pythia_book.plan import start_message

        papermill = dict(nb.metadata.get("papermill", {}))
        study = Path(str(kwargs.get("input_path") or "")).stem
        try:
            require_one_process("a notebook")
            given = papermill.get("parameters", {})
            given = {k: v for k, v in given.items() if k not in notebooks.PATH_PARAMETERS}
            values = notebooks.validate_parameters(nb, given)
            notebooks.check_values(study, values)
            check_cache()
            cache = cache_dir()
        except PythiaError as error:
            raise click.ClickException(str(error)) from None
        nb.metadata.pop(notebooks.STAMP, None)
        stamp = notebooks.make_stamp(study, values, nb)
        folder = kwargs.pop("record_to", None)
        target = None
        if written := papermill.get("output_path"):
            try:
                target = _place_of_a_run(written, study, _working_folder())
                _check_output(target, written, _working_folder())
            except ConfigError as error:
                raise click.ClickException(str(error)) from None
        if target:
            _guard(written, target)
        recorded = target and target.parent.name == values.get("scale")
        kwargs["output_path"] = None  # papermill writes the returned notebook
        kwargs.setdefault("extra_arguments", KERNEL_ARGUMENTS)
        if kwargs.get("progress_bar", True) and "scale" in values:
            print(start_message(study, values), file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:
            if os.path.expanduser("~") == "~":  # Jupyter does not start without a home folder
                cache.mkdir(parents=True, exist_ok=True)
                stack.enter_context(environment("HOME", str(cache)))
            if recorded:
                folder = stack.enter_context(records.staging(target.parent))
            recording = environment(records.RECORD_TO, str(folder or ""))
            with _kernel_progress(study, kwargs), _stoppable(kwargs), recording:
                nb = NBClientEngine.execute_notebook(nb, kernel_name, *args, **kwargs)
            if _in_papermill_command:  # only writing is left
                ignore_signals()
            if notebooks.has_errors(nb):  # it keeps everything that may explain it
                return nb
            if folder is None:
                nb.metadata[notebooks.STAMP] = stamp
                return notebooks.clean_notebook(nb)
            try:
                finish(nb, stamp, folder)
            except DataError as error:
                if recorded:
                    keep_unfinished(nb, target)
                raise click.ClickException(f"{study}: {error}") from None
            if recorded:
                records.swap_in(folder, target.parent)
                notebooks.unfinished_path(target).unlink(missing_ok=True)
        return nb


def run_study(
    study: str,
    scale: str | None = None,
    parameters: dict[str, Any] | None = None,
    force: bool = False,
    progress: bool = True,
) -> tuple[Path, bool]:
    """Execute a study's notebook into results/<study>/<scale>/, unless the run there is up to date.

    An earlier run is replaced only when the new run is complete.

    Args:
        scale: overrides the parameter `scale`.
        parameters: parameters to change; all are checked before anything runs.
        force: run even if the last run is up to date.

    Returns:
        The path of the executed notebook, and whether this call ran the notebook.

    Raises:
        ConfigError: the study, the scale or a parameter is unknown, or a value is not accepted.
        PythiaError: a cell failed or the kernel died; the message says where to look.
        Stopped: SIGINT or SIGTERM was received.
    """
    source = notebooks.notebook_path(study)
    notebook = notebooks.read_notebook(source)
    parameters = {**(parameters or {}), **({"scale": scale} if scale is not None else {})}
    values = notebooks.validate_parameters(notebook, parameters)
    notebooks.check_values(study, values)
    target = notebooks.output_path(study, values.get("scale", "laptop"))
    stamp = notebooks.make_stamp(study, values, notebook)
    from pythia_book import records

    folder = target.parent
    records.tidy(folder)
    if not force and records.is_current(folder, stamp):
        return target, False
    if folder.exists() and (problems := records.check_whole(folder)):
        print(
            f"the run in {folder} cannot be used and will be replaced: {'; '.join(problems)}",
            file=sys.stderr,
            flush=True,
        )

    with stop_requests() as stop_requested:  # the engine stops the notebook
        execute(
            source,
            target,
            failed=f"\nthe notebook with the error is {notebooks.unfinished_path(target)}",
            died="Checkpoints are kept; run the study again to resume training. If the kernel dies "
            "again, set PYTHIA_WORKERS=1 or choose smaller sizes",
            parameters=parameters,
            progress_bar=progress,
        )
        if number := stop_requested():
            raise Stopped(number=number)
    return target, True


def execute(
    source: Path, target: Path | None, failed: str = "", died: str = "", **settings: Any
) -> None:
    """Execute a notebook with papermill and our engine, in the working folder.

    Args:
        target: the output path; None: papermill writes no notebook.
        failed: text added to the error message if a cell failed.
        died: text added to the error message if the kernel died.
        settings: further arguments of papermill's `execute_notebook`.

    Raises:
        PythiaError: a parameter is not accepted, a cell failed or the kernel died.
    """
    import click
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines

    papermill_engines.register("pythia", PythiaEngine)  # an entry point, but only if installed
    try:
        papermill.execute_notebook(
            _escaped(source),
            target and _escaped(target),
            engine_name="pythia",
            **settings,
        )
    except papermill.PapermillExecutionError as error:
        message = f"a cell of {source.name} failed with {error.ename}: {error.evalue}"
        if error.evalue.startswith(tuple(f"[Errno {number}]" for number in FULL_DISK)):
            message += f"; {full_disk_advice()}"
        raise PythiaError(message + failed) from error
    except click.ClickException as error:
        raise PythiaError(error.message) from error
    except DeadKernelError as error:
        message = f"the kernel that ran {source.name} died, perhaps for lack of memory. "
        raise PythiaError(message + died) from error


_on_import()
