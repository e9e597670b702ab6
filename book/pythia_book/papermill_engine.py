"""Makes `papermill notebooks/gender_bias.ipynb`, with one argument, do the sensible thing.

Papermill loads this module through the entry point `papermill.engine` before it reads its command
line. For a notebook of this project given alone it then adds the output path, which papermill would
otherwise ask for (terminal), replace by stdout (pipe) or, with a pipe as its stdin, take to be the
notebook itself: results/<study>/<scale>/notebook.ipynb. The engine checks the parameters before the
kernel starts, and cleans and stamps the notebook once it has run.

Calls with two paths keep their paths and get the engine only; `--help-notebook`, `--version` and
notebooks from elsewhere are left alone. Nothing here is heavy: every papermill call imports it.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

from pythia_core.errors import PythiaError, one_of
from pythia_core.suite import SCALES
from pythia_core.util.progress import TERMINAL

OPTION_ARGUMENTS = {
    **dict.fromkeys(("-p", "--parameters", "-r", "--parameters_raw"), 2),
    **dict.fromkeys(("-f", "--parameters_file", "-y", "--parameters_yaml"), 1),
    **dict.fromkeys(("-b", "--parameters_base64", "--engine", "--autosave-cell-every"), 1),
    **dict.fromkeys(("-k", "--kernel", "-l", "--language", "--cwd", "--log-level"), 1),
    **dict.fromkeys(("--stdout-file", "--stderr-file", "--execution-timeout"), 1),
    **dict.fromkeys(("--start-timeout", "--start_timeout"), 1),
}
"""How many values follow each of papermill's options (tests compare this with papermill itself)."""

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
    from pythia_book.notebooks import notebooks_dir, output_path, parameters_of, read_notebook

    if source.parent != notebooks_dir().resolve():
        return arguments
    added = [] if "--engine" in names else ["--engine", "pythia"]
    if len(positional) == 1:
        scale = scale_given(options)
        if scale is None:
            default = parameters_of(read_notebook(source)).get("scale")
            scale = default.default if default else "laptop"
        if scale not in SCALES:
            from pythia_core.errors import ConfigError

            raise ConfigError(one_of(scale, SCALES, "scale"))
        target = output_path(source.stem, scale)
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


def _on_import() -> None:
    if not _is_papermill_command():
        return
    try:
        completed = complete(sys.argv[1:])
    except PythiaError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if len(completed) > len(sys.argv) - 1:
        sys.argv[1:] = completed
        _close_piped_stdin()


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

        from pythia_book import notebooks
        from pythia_book.notebooks import clean_notebook

        given = dict(nb.metadata.get("papermill", {}).get("parameters", {}))
        study = Path(str(kwargs.get("input_path") or "")).stem
        try:
            values = notebooks.validate_parameters(nb, given)
            notebooks.check_values(study, values)
        except PythiaError as error:
            raise click.ClickException(str(error)) from None
        nb.metadata.pop(notebooks.STAMP, None)
        stamp = notebooks.make_stamp(study, values, nb)
        if sys.stderr.isatty():  # where progress bars of the kernel show
            os.environ[TERMINAL] = os.ttyname(sys.stderr.fileno())
        kwargs.setdefault("extra_arguments", ["--log-level=ERROR"])  # no notes on kernel transport
        nb = NBClientEngine.execute_notebook(nb, kernel_name, *args, **kwargs)
        if not notebooks.has_errors(nb):  # a failed notebook keeps everything that may explain it
            nb.metadata[notebooks.STAMP] = stamp
            clean_notebook(nb)
        return nb


_on_import()
