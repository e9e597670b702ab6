"""The command line: `python -m pythia_core COMMAND` (installed as `pythia-book COMMAND`).

The commands themselves are in pythia_core.commands.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pythia_core.commands import bench, continued, data, models, scales, studies, training
from pythia_core.errors import PythiaError


def parser() -> argparse.ArgumentParser:
    """The argument parser of every command."""
    top = argparse.ArgumentParser(prog="pythia_core", description=__doc__.split("\n\n")[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable, text: str, **settings: Any
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **settings)
        sub.set_defaults(function=function)
        return sub

    for module in (training, continued, data, models, studies, scales, bench):
        module.add(command)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Deliberate errors become one message, no traceback."""
    args = parser().parse_args(arguments)
    try:
        args.function(args)
    except PythiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `... | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"error: {error}. Is there room, and may this be written?", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
