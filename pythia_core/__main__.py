"""Train, inspect and study Pythia models (`python -m pythia_core`, or `pythia-book` if installed).

The commands `prepare` and `train` are in pythia_core.commands, all others in
pythia_book.commands.
"""

from __future__ import annotations

import io
import os
import signal
import sys

if __name__ == "__main__":  # Ctrl-C during the imports below exits without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import difflib
import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pythia_core.commands import training
from pythia_core.errors import PythiaError, one_of
from pythia_core.util import stopping
from pythia_core.util.extensions import registered
from pythia_core.util.files import CACHE, FULL_DISK, RESULTS, full_disk_advice
from pythia_core.util.machine import require_one_process


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
        sub.set_defaults(function=function, parser=sub)
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; errors about unknown commands and options suggest similar ones."""
    top = parser()
    words = sys.argv[1:] if arguments is None else arguments
    known = next(action.choices for action in top._actions if action.dest == "command")
    if words and known and not words[0].startswith("-") and words[0] not in known:
        top.error(one_of(words[0], sorted(known), "command"))
    args, unknown = top.parse_known_args(words)
    if unknown:
        options = [option for action in args.parser._actions for option in action.option_strings]
        typed = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        near = [name for word in typed for name in difflib.get_close_matches(word, options, n=1)]
        hint = f". Did you mean {' and '.join(near)}?" if near else ""
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args


def prepare_streams() -> None:
    """Let commands print in any locale, and even if standard streams are closed.

    Characters that a stream cannot encode are written as `\\xe9` or `\\u2013`.
    """
    for number in range(3):  # else the next file that is opened would be, e.g., the standard output
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _output_fails() -> bool:
    """Return whether the standard output cannot be written to.

    If so, later output is discarded, so that Python does not fail again when it exits.
    """
    try:
        print(flush=True)  # what could not be written may have been discarded, so write more
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. On a PythiaError, print the message and return 1."""
    prepare_streams()
    resume_note = None
    with stopping.interruptible():
        try:
            args = parse(arguments)
            resume_note = getattr(args, "resume_note", "")
            if not getattr(args, "together", False):
                require_one_process(f"the command `{args.command}`")
            args.function(args)
            sys.stdout.flush()  # errors of the last lines are reported below, too
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
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except MemoryError as error:
            print(
                f"error: there is not enough memory ({error}); close other programs, or choose "
                "lower numbers in the options or a smaller model",
                file=sys.stderr,
            )
            return 1
        except RuntimeError as error:
            if "home directory" not in str(error):  # of pathlib.Path.expanduser
                raise
            print(
                "error: a path begins with ~ and a name that no user has; write the path in full",
                file=sys.stderr,
            )
            return 1
        except UnicodeEncodeError as error:
            if error.reason != "surrogates not allowed":
                raise
            print(f"error: {error.object!r} is not UTF-8; use another name", file=sys.stderr)
            return 1
        except OSError as error:
            advice = f"{error}. Check the path and its permissions"
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                advice += (
                    f"; to use other folders for results and caches, set {RESULTS} and {CACHE}"
                )
            if error.errno in FULL_DISK:
                advice = full_disk_advice(error.filename)
                if error.filename is None and _output_fails():
                    advice = (
                        f"the output could not be written ({error.strerror}); redirect it to a "
                        "place with free space, and run the same command again"
                    )
            print(f"error: {advice}", file=sys.stderr)
            return 1
        except KeyboardInterrupt as stop:
            return stopping.report_stop(stop, resume_note)
        return 0


if __name__ == "__main__":
    sys.exit(main())
