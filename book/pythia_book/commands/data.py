"""Adds the commands `inspect`, `find` and `terms`, which look into training data."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from pythia_book.commands import file_to_write, utf8_text
from pythia_core.commands import COUNT, RUN, STEP, AddCommand, nonblank, seed_number
from pythia_core.errors import ConfigError, count_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pythia_core.data.order import Rows
    from pythia_core.training.runs import Run


def add(command: AddCommand) -> None:
    """Add `inspect`, `find` and `terms` to the command line."""
    p = command("inspect", _inspect, "show the decoded batch of a step, from a run or token files")
    p.add_argument("run", metavar="RUN", nargs="?", type=nonblank, help=RUN)
    text = "show the batch of the update from step K to K + 1"
    p.add_argument("--step", **STEP, required=True, help=text)
    p.add_argument("--rows", **COUNT, default=4, help="number of rows to print (default: 4)")
    p.add_argument("--ids", action="store_true", help="print token ids, not text (--data only)")
    _data_arguments(p)

    p = command(
        "find",
        _find,
        "find a text in the training data: which updates read it, and where",
        usage="%(prog)s [options] [RUN] TEXT",
    )
    first = p.add_argument("first", metavar="RUN", nargs=1, help=f"{RUN}; omit it with --data")
    second = p.add_argument("second", metavar="TEXT", nargs="+", help="text to find")
    # not nargs="*", with which an option could not be before them; `_find` reports missing words
    first.required = second.required = False
    p.add_argument("--tokens", action="store_true", help="match tokens, not characters")
    p.add_argument("--ignore-case", action="store_true", help="ignore the case of ASCII letters")
    p.add_argument("--from-step", **STEP, default=0, help="first update (default: 0)")
    p.add_argument("--to-step", **STEP, help="stop before this update (default: the end)")
    p.add_argument("--limit", **COUNT, default=20, help="occurrences to print (default: 20)")
    _data_arguments(p)

    p = command("terms", _terms, "count words in the training data of a run up to each checkpoint")
    p.add_argument("run", metavar="RUN", type=nonblank, help=RUN)
    text = (
        'one or more words, e.g. `Parliament "New York"`; a word is a sequence of letters, marks '
        "and numbers"
    )
    p.add_argument("terms", nargs="+", type=utf8_text, metavar="TERM", help=text)
    p.add_argument("--ignore-case", action="store_true", help="ignore the case of ASCII letters")
    text = "print every checkpoint (default: about twelve)"
    p.add_argument("--all", action="store_true", help=text)
    text = "also write term, step and count to FILE (.parquet)"
    p.add_argument("--parquet", metavar="FILE", type=nonblank, help=text)


def _data_arguments(p: argparse.ArgumentParser) -> None:
    """Add the options with which `inspect` and `find` read token files instead of a run."""
    data = p.add_argument_group("token files instead of a run")
    data.add_argument(
        "--data",
        type=nonblank,
        help="pile-standard, pile-deduped, pile-seed0..9 (read over the network, only the rows "
        "needed), a folder of pre-shuffled shards, or the PREFIX of a .bin/.idx pair",
    )
    data.add_argument(
        "--tokenizer",
        default="neox-20b",
        type=nonblank,
        help="neox-20b or a tokenizer.json (default: neox-20b)",
    )
    data.add_argument("--seq-len", **COUNT, default=2048, help="tokens per row (default: 2048)")
    data.add_argument("--batch-size", **COUNT, default=1024, help="rows per update (default: 1024)")
    data.add_argument(
        "--dtype",
        default="<u2",
        choices=("<u2", "<i4"),
        help="type of token ids if there is no .idx: <u2 (uint16, the default) or <i4 (int32)",
    )
    text = "seed of the data order (PREFIX only; default: 1234)"
    data.add_argument("--seed", type=seed_number, default=1234, help=text)
    data.add_argument("--epochs", **COUNT, help="passes over the data (PREFIX only; default: 1)")
    text = "number of updates (PREFIX only, instead of --epochs; Pythia: 143000)"
    data.add_argument("--steps", **COUNT, help=text)


def _rows_of(args: argparse.Namespace) -> tuple[Rows, str]:
    """Open the training rows that --data names; return the rows and a sentence about the rows."""
    from pythia_book.released.pile import open_rows

    return open_rows(
        args.data, args.seq_len, args.seed, args.epochs, args.steps, args.batch_size, args.dtype
    )


# --- inspect ---------------------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> None:
    """Print the batch of a step, from a run or from token files."""
    if (args.run is None) == (args.data is None):
        raise ConfigError("pass either a RUN, or --data with a name, a folder or a PREFIX")
    if args.data is None:
        return _inspect_run(args)
    from pythia_book.released.pile import describe_batch, tokenizer_at

    rows, description = _rows_of(args)
    tokenizer = None if args.ids else tokenizer_at(args.tokenizer)
    print(description)
    print(describe_batch(rows, args.step, args.batch_size, args.rows, tokenizer))


def _inspect_run(args: argparse.Namespace) -> None:
    """Print a batch of a run, with swapped tokens marked, and check its hash against the log."""
    from pythia_core.data.order import batch_hash
    from pythia_core.training.runs import find_run

    run = find_run(args.run)
    batch = run.batch(args.step)
    logged = {row["step"]: row for row in run.metrics()}.get(args.step + 1)
    print(
        f"run {run.id}: batch of the update from step {args.step} to {args.step + 1}\n"
        f"rows {args.step * len(batch)}..{(args.step + 1) * len(batch) - 1}, "
        f"{batch.shape[1] - 1} tokens each (+1 as the last label), hash {batch_hash(batch)}"
    )
    if logged:
        agrees = "equals" if logged["batch_hash"] == batch_hash(batch) else "DIFFERS FROM"
        print(f"this hash {agrees} the hash in the training log; the loss is {logged['loss']:.4f}")
    control = batch if run.ledger is None else run.data.batch(args.step, len(batch))
    if run.ledger is not None:
        changed = int((control != batch).sum())
        print(f"{changed} tokens are swapped, shown as [control>this run]")

    def decode(*ids: int) -> str:
        return run.data.tokenizer.decode(list(ids), skip_special_tokens=False)

    for number, (before, now) in enumerate(zip(control, batch[: args.rows], strict=False)):
        if (before == now).all():
            text = decode(*now.tolist())
        else:  # token by token, so that the swapped ones can be marked
            pairs = zip(before.tolist(), now.tolist(), strict=True)
            text = "".join(decode(b) if a == b else f"[{decode(a)}>{decode(b)}]" for a, b in pairs)
        print(f"\n--- row {number} ---\n{text}")


# --- find ------------------------------------------------------------------------------------


def _run_rows(run: Run) -> Callable[[int, int], NDArray]:
    """Return a function that reads the rows [start, stop) of a run, with the swaps of a fork."""
    ledger, rows = run.ledger, run.data.rows
    if ledger is None:
        return rows.rows
    return lambda start, stop: ledger.apply(rows.rows(start, stop), start)


def _find(args: argparse.Namespace) -> None:
    """Print the occurrences of a text in the training data, in the order of the updates."""
    from pythia_book.released.pile import released_order, tokenizer_at
    from pythia_book.search import SurfaceMatcher, TokenMatcher, find_text, quote
    from pythia_core.data.tokenizer import token_bytes

    second = args.second or ["--"] if args.second is not None else []  # argparse drops a text "--"
    words = [*(args.first or []), *second]
    if len(words) != (2 if args.data is None else 1) or "" in words:
        raise ConfigError(
            "pass a RUN and a TEXT, or --data and a TEXT; put quotes around a TEXT with spaces"
        )
    text = utf8_text(words[-1])
    if args.data is None:
        from pythia_core.training.runs import find_run

        run = find_run(words[0])
        description, read, tokenizer = f"run {run.id}", _run_rows(run), run.data.tokenizer
        size, end = run.config.train.batch_size, run.config.train.steps
    else:
        if released_order(args.data) and args.to_step is None:
            raise ConfigError(
                f"pass --to-step to limit the download from {args.data}, which is about 4 MB per "
                "update searched"
            )
        rows, description = _rows_of(args)
        read, tokenizer, size = rows.rows, tokenizer_at(args.tokenizer), args.batch_size
        end = rows.n_rows // size
    matcher = (
        TokenMatcher.of(text, tokenizer)
        if args.tokens
        else SurfaceMatcher(text, token_bytes(tokenizer), args.ignore_case)
    )
    first, last = args.from_step, end if args.to_step is None else min(args.to_step, end)
    print(f"{description}\nupdates {first}..{last - 1} of {end}, {size} rows each")

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    n_hits, steps = 0, set[int]()
    for hit in find_text(read, matcher, size, first, last, progress=True):
        n_hits += 1
        steps.add(hit.step)
        if n_hits <= args.limit:
            quotation = quote(read(hit.row, hit.row + 1)[0], hit, decode)
            print(f"step {hit.step}, row {hit.row}, token {hit.column}: {quotation}")
    more = f" ({args.limit} shown)" if n_hits > args.limit else ""
    span = ""
    if steps:
        low, high = min(steps), max(steps)
        span = f", at step {low}" if low == high else f", from step {low} to {high}"
    print(f"{count_of(n_hits, 'occurrence')}{more}, in {count_of(len(steps), 'update')}{span}")


# --- terms -----------------------------------------------------------------------------------


def _terms(args: argparse.Namespace) -> None:
    """Print how often each term occurs in the text that a run has read up to each checkpoint."""
    from pythia_book.term_counts import SurfaceTerms, count_terms
    from pythia_core.data.tokenizer import token_bytes
    from pythia_core.training.runs import find_run

    if args.parquet:
        args.parquet = file_to_write("--parquet", args.parquet, (".parquet",))
    run = find_run(args.run)
    steps = [step for step in run.steps if step]
    terms = SurfaceTerms(args.terms, token_bytes(run.data.tokenizer), args.ignore_case)
    counts = count_terms(run.data.rows, terms, steps, run.config.train.batch_size, progress=True)
    if args.parquet:
        counts.save(args.parquet)
    columns = steps if args.all else steps[:: -max(1, len(steps) // 11)][::-1]
    width = max(map(len, terms.names))
    print("read up to step".ljust(max(width, 15)), *(f"{step:>7,}" for step in columns))
    for i, name in enumerate(terms.names):
        print(name.ljust(max(width, 15)), *(f"{counts.up_to(step)[i]:>7,}" for step in columns))
