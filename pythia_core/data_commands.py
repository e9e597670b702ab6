"""What `inspect --data` and `find` do: look at batches and search in runs and in token files.

The work is done by pythia_core.pile and pythia_core.find_text; here it is put into words. Not here:
`inspect RUN`, which also knows what training logged (pythia_core.__main__).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from pythia_core.errors import ConfigError
from pythia_core.find_text import SurfaceMatcher, TokenMatcher, find_text, quote
from pythia_core.pile import RELEASED, describe_batch, open_rows, tokenizer_at
from pythia_core.rows import Rows
from pythia_core.tokenizer import token_bytes


def _rows_of(args: argparse.Namespace) -> tuple[Rows, str]:
    """The rows that --data names, and what they are."""
    return open_rows(
        args.data, args.seq_len, args.seed, args.epochs, args.steps, args.batch_size, args.dtype
    )


def inspect_data(args: argparse.Namespace) -> None:
    """Print a batch of the rows that --data names.

    Raises:
        ConfigError: a run besides, or nothing. DataError, FetchError: the rows cannot be read.
    """
    if (args.run is None) == (args.data is None):
        raise ConfigError("give a RUN, or --data with a name, a folder or a PREFIX: one of the two")
    rows, what = _rows_of(args)
    tokenizer = None if args.ids else tokenizer_at(args.tokenizer)
    print(what)
    print(describe_batch(rows, args.step, args.batch_size, args.rows, tokenizer))


def _run_rows(run: Any) -> Callable[[int, int], NDArray]:
    """The rows of a run as it read them, swapped where it is a fork."""
    ledger, rows = run.ledger, run.data.rows
    if ledger is None:
        return rows.rows
    return lambda start, stop: ledger.apply(rows.rows(start, stop), start)


def find(args: argparse.Namespace) -> None:
    """Print where a text was read, update by update.

    Raises:
        ConfigError: not one text, or neither run nor --data. As `inspect_data` for the rest.
    """
    text = args.words[-1]
    if len(args.words) != (2 if args.data is None else 1):
        raise ConfigError("give a RUN and a TEXT, or --data and a TEXT; quote a TEXT with spaces")
    if args.data is None:
        from pythia_core.runs import find_run

        run = find_run(args.words[0])
        what, read, tokenizer = f"run {run.id}", _run_rows(run), run.data.tokenizer
        size, end = run.config.train.batch_size, run.config.train.steps
    else:
        if args.data in RELEASED and args.to_step is None:
            raise ConfigError("say how far with --to-step: each update is 4 MB over the network")
        rows, what = _rows_of(args)
        read, tokenizer, size = rows.rows, tokenizer_at(args.tokenizer), args.batch_size
        end = rows.n_rows // size
    matcher = (
        TokenMatcher.of(text, tokenizer)
        if args.tokens
        else SurfaceMatcher(text, token_bytes(tokenizer), args.ignore_case)
    )
    first, last = args.from_step, end if args.to_step is None else min(args.to_step, end)
    print(f"{what}\nupdates {first}..{last - 1} of {end}, {size} rows each")

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    seen, steps = 0, set()
    for hit in find_text(read, matcher, size, first, last, progress=True):
        seen += 1
        steps.add(hit.step)
        if seen <= args.limit:
            shown = quote(read(hit.row, hit.row + 1)[0], hit, decode)
            print(f"step {hit.step}, row {hit.row}, token {hit.column}: {shown}")
    more = f" ({args.limit} shown)" if seen > args.limit else ""
    between = f", from step {min(steps)} to {max(steps)}" if steps else ""
    print(f"{seen} occurrences{more}, in {len(steps)} updates{between}")
