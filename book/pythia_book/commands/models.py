"""Adds the commands `convert`, `evaluate`, `lm_eval`, `generate` and `verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pythia_book.commands import file_to_write, names, nonempty_text, utf8_text
from pythia_core.commands import COUNT, RUN, STEP, AddCommand, nonblank, seed_number, whole_number
from pythia_core.errors import CheckpointError, count_of
from pythia_core.util.files import check_writable

TEXT: dict[str, Any] = {"action": "append", "type": utf8_text, "metavar": "TEXT"}
MODEL = f"{RUN}; or the folder or the hub name of a published model"


def add(command: AddCommand) -> None:
    """Add `convert`, `evaluate`, `lm_eval`, `generate` and `verify` to the command line."""
    p = command("convert", _convert, "convert between the formats of this library and transformers")
    text = "a run, a folder, or a repository on the hub"
    p.add_argument("source", metavar="SRC", type=nonblank, help=text)
    p.add_argument("target", metavar="DST", type=nonblank, help="a new folder")
    text = "target format (default: the other format)"
    p.add_argument("--to", default="", choices=("hf", "pythia"), help=text)
    text = "revision of a repository, e.g. step3000 (default: main)"
    p.add_argument("--revision", default="main", type=nonblank, help=text)
    text = (
        "step to convert, of a run or of a folder of checkpoints (default: the last); for any "
        "other model, the step to record in DST (default: the one in SRC)"
    )
    p.add_argument("--step", **STEP, help=text)
    dtypes = ("fp32", "fp16", "bf16")
    p.add_argument("--dtype", default="", choices=dtypes, help="number format (default: unchanged)")
    text = "model size, e.g. 70m, if native GPT-NeoX files do not determine it"
    p.add_argument("--size", type=nonblank, help=text)

    p = command("evaluate", _evaluate, "score checkpoints on the paper's tasks")
    p.set_defaults(resume_note="what was measured is kept")
    p.add_argument("model", metavar="MODEL", type=nonblank, help=MODEL)
    p.add_argument(
        "--tasks",
        type=names,
        default=(),
        help="comma-separated list (default: all; without --items, all but wsc and logiqa)",
    )
    p.add_argument(
        "--steps",
        default="last",
        type=nonblank,
        help="all, or a list such as 0,512,last (default: last)",
    )
    p.add_argument("--shots", **COUNT, help="few-shot examples (default: the task's)")
    p.add_argument("--limit", **COUNT, help="items per task, a fixed sample (default: all)")
    text = "read items from FOLDER/TASK.jsonl"
    p.add_argument("--items", metavar="FOLDER", type=nonblank, help=text)
    text = (
        "how many downloads may wait to be measured (default: 1); each is deleted once measured. "
        "`all` keeps every download. Checkpoints already in the cache are never deleted"
    )
    p.add_argument("--keep", type=number_or_all, default=1, metavar="N", help=text)
    text = "also write the table to FILE (.csv or .parquet)"
    p.add_argument("--out", metavar="FILE", type=nonblank, help=text)

    p = command(
        "lm_eval", _lm_eval,
        "run lm-evaluation-harness, e.g. with --model pythia --model_args run=ID,step=K",
        prefix_chars="\0", add_help=False,
    )  # fmt: skip
    p.add_argument("arguments", nargs="*", help="arguments of lm_eval")

    p = command("generate", _generate, "continue a text with a checkpoint")
    p.add_argument("model", metavar="MODEL", type=nonblank, help=MODEL)
    p.add_argument("--prompt", **TEXT, required=True, help="text to continue; repeatable")
    p.add_argument("--step", **STEP, help="step of the checkpoint (default: the last)")
    text = "maximum number of new tokens (default: 32)"
    p.add_argument("--tokens", **COUNT, default=32, help=text)
    until = TEXT | {"type": nonempty_text, "default": []}
    p.add_argument("--until", **until, help="stop before TEXT; repeatable")
    text = "sampling temperature (default: 0, greedy)"
    p.add_argument("--temperature", type=float, default=0.0, metavar="T", help=text)
    text = "sample from the K likeliest tokens (default: all)"
    p.add_argument("--top-k", type=whole_number, default=0, metavar="K", help=text)
    text = "sample from the likeliest tokens with total probability P (default: 1)"
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help=text)
    p.add_argument(
        "--seed", type=seed_number, default=0, help="random seed for sampling (default: 0)"
    )

    text = "check all files of a run against hashes and data, or audit a published model"
    p = command("verify", _verify, text)
    p.add_argument(
        "run",
        metavar="RUN",
        type=nonblank,
        help=f"{RUN}; or, to audit a published model, a folder of stepN folders or a "
        "repository, e.g. EleutherAI/pythia-70m",
    )


def number_or_all(word: str) -> int | None:
    """Parse a whole number; return None for "all".

    Raises:
        argparse.ArgumentTypeError: the word is neither.
    """
    return None if word == "all" else whole_number(word)


def _convert(args: argparse.Namespace) -> None:
    """Convert a model to another format, and print the new folder."""
    from pythia_book.released.convert import convert

    utf8_text(args.target)
    target = Path(args.target).expanduser()
    check_writable(target, "choose another DST")
    settings = {name: getattr(args, name) for name in ("revision", "step", "dtype")}
    print(convert(args.source, target, args.to, size=args.size or "", **settings))


def _evaluate(args: argparse.Namespace) -> None:
    """Score checkpoints on tasks; print the table and, with --out, write it to a file."""
    from pythia_book.released.resolve import find_model
    from pythia_book.tasks import sweep
    from pythia_book.tasks.benchmarks import ALL_TASKS

    if args.out:
        args.out = file_to_write("--out", args.out, sweep.SUFFIXES)
    run = find_model(args.model)
    available = [name for name, task in ALL_TASKS.items() if args.items or task.source]
    tasks = list(args.tasks) or available
    steps = sweep.steps_of(run, args.steps)
    table = sweep.sweep(run, tasks, steps, args.shots, args.limit, args.items, keep=args.keep)
    if args.out:
        sweep.write_table(table, args.out)
    print(table.to_string(index=False, float_format="{:.4f}".format))


def _lm_eval(args: argparse.Namespace) -> None:
    """Run the command line of lm-evaluation-harness with the model "pythia"."""
    from pythia_book.tasks.harness import command_line

    command_line(args.arguments)


def _generate(args: argparse.Namespace) -> None:
    """Print each prompt, followed by its continuation in brackets."""
    from pythia_book.released.resolve import find_model
    from pythia_core.evaluation.generate import Sampling, generate_texts

    run = find_model(args.model)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    texts = generate_texts(
        run.model(args.step), run.data.tokenizer, args.prompt, args.tokens, run.data.eod_id,
        args.until, sampling,
    )  # fmt: skip
    for prompt, text in zip(args.prompt, texts, strict=True):
        print(f"{prompt}[{text}]")


def _verify(args: argparse.Namespace) -> None:
    """Verify a run, or audit the checkpoints of a published model, and print a report."""
    from pythia_book.released.download import is_published

    if not is_published(args.run):
        from pythia_book.measurements import damaged_caches
        from pythia_core.training.runs import find_run, verify

        run = find_run(args.run)
        print("\n".join(verify(run)))
        for path in damaged_caches(run):
            print(
                f"the cached measurement {path} is damaged; it will be repeated when it is needed"
            )
        return
    from pythia_book.released.audit import audit

    result = audit(args.run)
    print(result.report())
    if defects := result.defects():
        raise CheckpointError(f"{args.run} has {count_of(len(defects), 'defect')}, listed above")
