"""Train, inspect and study Pythia models (`python -m pythia_core`, or `pythia-book` if installed).

The commands `prepare` and `train` are in pythia_core.commands, all others in
pythia_book.commands.
"""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # Ctrl-C during the imports below exits without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pythia_core.commands import training
from pythia_core.errors import PythiaError
from pythia_core.util import stopping
from pythia_core.util.extensions import registered
from pythia_core.util.files import FULL_DISK, full_disk_advice


def parser() -> argparse.ArgumentParser:
    """Build the argument parser with the commands of the library and of other packages."""
    script = Path(sys.argv[0]).name == "pythia-book"
    top = argparse.ArgumentParser(
        prog="pythia-book" if script else "python -m pythia_core",
        description=__doc__.split("\n\n")[0],
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable, text: str, **settings: Any
    ) -> argparse.ArgumentParser:
        """Add a command that calls `function` with the parsed arguments."""
        sub = commands.add_parser(name, help=text, description=text, **settings)
        sub.set_defaults(function=function)
        return sub

    training.add(command)
    for point in registered("commands").values():
        try:
            point.load()(command)
        except (ImportError, AttributeError, argparse.ArgumentError) as error:
            print(
                f"warning: the commands in {point.value!r} are missing, because they cannot be "
                f"loaded: {error}",
                file=sys.stderr,
            )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. On a PythiaError, print the message and return 1."""
    resume_note = None
    with stopping.interruptible():
        try:
            args = parser().parse_args(arguments)
            resume_note = getattr(args, "resume_note", "")
            args.function(args)
        except PythiaError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("pythia_"):
                raise
            print(
                f"error: this command needs the package {error.name!r}, which is not installed; "
                "`pip install -r requirements.txt` in a checkout installs everything",
                file=sys.stderr,
            )
            return 1
        except BrokenPipeError:  # `... | head`
            sys.stderr.close()
            return 0
        except OSError as error:
            advice = f"{error}. Check the path and its permissions."
            if error.errno in FULL_DISK:
                advice = full_disk_advice(error.filename)
            print(f"error: {advice}", file=sys.stderr)
            return 1
        except KeyboardInterrupt as stop:
            return stopping.report_stop(stop, resume_note)
        return 0


if __name__ == "__main__":
    sys.exit(main())
