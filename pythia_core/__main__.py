"""The command line: `python -m pythia_core COMMAND` (installed as `pythia-book COMMAND`).

Every command does what a function of the library does; nothing here computes. Heavy modules are
imported by the command that needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pythia_core.config import PRECISIONS, SWAPS
from pythia_core.continue_command import arguments as continue_arguments
from pythia_core.errors import CheckpointError, ConfigError, PythiaError
from pythia_core.scales import OFFICIAL_SIZES, SCALES, SIZES

MODEL = "a run's folder or (the beginning of) its id; or a published model's folder or hub name"


def _prepare(args: argparse.Namespace) -> None:
    from pythia_core.prepare import prepare
    from pythia_core.scales import scale_named

    data = prepare(scale_named(args.scale).data)
    print(json.dumps(data.manifest, indent=1))
    print(f"{data.rows.n_rows:,} rows of {data.config.seq_len + 1} tokens in {data.folder}")


def _run_config(args: argparse.Namespace) -> Any:
    from dataclasses import replace

    from pythia_core.metrics import best_precision
    from pythia_core.scales import scale_named

    scale = scale_named(args.scale)
    if args.steps is not None:
        scale = replace(scale, steps=args.steps)
    if args.batch_size is not None:
        scale = replace(scale, batch_size=args.batch_size)
    overrides: dict[str, Any] = {"precision": args.precision or best_precision()}
    if args.lr is not None:
        overrides["lr_max"] = args.lr
    if args.micro_batch is not None:
        overrides["micro_batch"] = args.micro_batch
    config = scale.run(args.size, args.order_seed, args.weight_seed, **overrides)
    if not args.swap and (args.start is not None or args.stop is not None):
        raise ConfigError("--start and --stop say when a swap happens; name it with --swap")
    if args.swap:
        start = scale.fork_step(133) if args.start is None else args.start
        config = config.fork(args.swap, start, args.stop)
    return config


def _train(args: argparse.Namespace) -> None:
    from pythia_core.runs import find_or_train

    run = find_or_train(_run_config(args))
    last = run.metrics()[-1]
    print(
        f"run {run.id}: {len(run.steps)} checkpoints, last loss {last['loss']:.4f}, "
        f"{run.seconds:.0f} s of training\nweights sha256 {run.final_sha256}\n{run.folder}"
    )


def _inspect(args: argparse.Namespace) -> None:
    from pythia_core.data_commands import inspect_data
    from pythia_core.order import batch_hash
    from pythia_core.runs import find_run

    if args.run is None or args.data is not None:
        return inspect_data(args)
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
        print(f"this {agrees} the hash that training logged; loss there {logged['loss']:.4f}")
    changed = set()
    if run.ledger is not None:
        control = run.data.batch(args.step, len(batch))
        changed = set(zip(*(index.tolist() for index in (control != batch).nonzero()), strict=True))
        print(f"{len(changed)} tokens are swapped, shown as [control>this run]")
    decode = run.data.tokenizer.decode
    for number, row in enumerate(batch[: args.rows]):
        if changed:
            parts = [
                f"[{decode([int(control[number, i])])}>{decode([int(token)])}]"
                if (number, i) in changed
                else decode([int(token)], skip_special_tokens=False)
                for i, token in enumerate(row)
            ]
            text = "".join(parts)
        else:
            text = decode(row.tolist(), skip_special_tokens=False)
        print(f"\n--- row {number} ---\n{text}")


def _verify_published(source: str) -> None:
    from pythia_core.audit import audit

    found = audit(source)
    print(found.report())
    if defects := found.defects():
        raise CheckpointError(f"{source}: {len(defects)} defects, listed above")


def _verify(args: argparse.Namespace) -> None:
    from pythia_core.audit import is_published

    if is_published(args.run):
        return _verify_published(args.run)
    from pythia_core.checkpoint import duplicates, load_checkpoint, step_folder
    from pythia_core.order import batch_hash
    from pythia_core.runs import find_run

    run = find_run(args.run)
    first, last, due = run.updates.start, run.updates.stop, run.due
    logged = [row["step"] for row in run.metrics()]
    if run.finished and (run.steps != due or logged != list(range(first + 1, last + 1))):
        missing = sorted(set(due) - set(run.steps))
        raise CheckpointError(
            f"run {run.id} is finished but {len(missing)} of its {len(due)} checkpoints "
            f"({missing[:5]} …) or rows of its log are missing; delete the run's folder and ask "
            "for it again"
        )
    for step in run.steps:
        load_checkpoint(step_folder(run.checkpoints, step))
    for row in run.metrics():
        if row["batch_hash"] != batch_hash(run.batch(row["step"] - 1)):
            raise PythiaError(f"the batch of update {row['step'] - 1} is not what was trained on")
    print(
        f"run {run.id}: {len(run.steps)} checkpoints match their hashes, "
        f"{len(run.metrics())} batches match the log"
    )
    for steps in duplicates(run.checkpoints):
        known = " (expected: the first update runs at learning rate 0)" if steps == [0, 1] else ""
        print(f"equal weights at steps {', '.join(map(str, steps))}{known}")


def _study(args: argparse.Namespace) -> None:
    from pythia_core.notebooks import parse_parameters, run_study

    path, ran = run_study(args.study, args.scale, parse_parameters(args.parameter), args.force)
    print(f"{path}" if ran else f"{path} is up to date (--force runs it again)")


def _record(args: argparse.Namespace) -> None:
    from pythia_core.recorded import record_run

    print(f"recorded in {record_run(args.study, args.scale)}; review and commit it")


def _terms(args: argparse.Namespace) -> None:
    from pythia_core.runs import find_run
    from pythia_core.terms import SurfaceTerms, count_terms
    from pythia_core.tokenizer import token_bytes

    run = find_run(args.run)
    steps = [step for step in run.steps if step]
    terms = SurfaceTerms(args.terms, token_bytes(run.data.tokenizer), args.ignore_case)
    counts = count_terms(run.data.rows, terms, steps, run.config.train.batch_size, progress=True)
    if args.parquet:
        counts.save(args.parquet)
    shown = steps if args.all else steps[:: -max(1, len(steps) // 11)][::-1]
    width = max(map(len, terms.names))
    print("read up to step".ljust(max(width, 15)), *(f"{step:>7,}" for step in shown))
    for i, name in enumerate(terms.names):
        print(name.ljust(max(width, 15)), *(f"{counts.up_to(step)[i]:>7,}" for step in shown))


def _convert(args: argparse.Namespace) -> None:
    from pythia_core.convert import convert

    place = convert(
        args.source,
        args.target,
        args.to,
        revision=args.revision,
        step=args.step,
        dtype=args.dtype,
        size=args.size,
    )
    print(f"{place}")


def _evaluate(args: argparse.Namespace) -> None:
    from pythia_core import sweep
    from pythia_core.models import find_model
    from pythia_core.tasks import all_tasks

    if args.out:
        sweep.check_suffix(args.out)
    run = find_model(args.model)
    tasks = list(filter(None, args.tasks.split(","))) or list(all_tasks())
    steps = sweep.steps_of(run, args.steps)
    limit = sweep.EVERYTHING if args.limit is None else args.limit
    table = sweep.sweep(run, tasks, steps, args.shots, limit, args.items)
    if args.out:
        sweep.write_table(table, args.out)
    print(table.to_string(index=False, float_format="{:.4f}".format))


def _lm_eval(args: argparse.Namespace) -> None:
    from pythia_core.harness import command_line

    command_line(args.arguments)


def _generate(args: argparse.Namespace) -> None:
    from pythia_core.generate import Sampling, generate_texts
    from pythia_core.models import find_model

    run = find_model(args.model)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    texts = generate_texts(
        run.model(args.step), run.data.tokenizer, args.prompt, args.tokens, run.data.eod_id,
        args.until, sampling,
    )  # fmt: skip
    for prompt, text in zip(args.prompt, texts, strict=True):
        print(f"{prompt}[{text}]")


def _continue(args: argparse.Namespace) -> None:
    from pythia_core.continue_command import run_continue

    run_continue(args)


def _find(args: argparse.Namespace) -> None:
    from pythia_core.data_commands import find

    find(args)


def _bench(args: argparse.Namespace) -> None:
    sizes = tuple(filter(None, args.sizes.split(",")))
    if args.what == "kernels":
        from pythia_core.bench_kernels import bench_kernels

        with open(args.json or os.devnull, "a", encoding="utf-8") as file:
            for row in bench_kernels(sizes, args.dry_run):
                line = json.dumps(row)
                print(line, flush=True)
                file.write(line + "\n")
        return
    if args.what == "terms":
        from pythia_core import bench_terms

        result = bench_terms.bench_terms(rounds=args.rounds)
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
        print(bench_terms.markdown(result))
        return
    if args.what == "generate":
        from pythia_core import bench_generate

        result = bench_generate.bench_generate(sizes, args.rounds)
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
        print(bench_generate.markdown(result))
        return
    from pythia_core.bench import bench_train, markdown

    result = bench_train(sizes, args.rounds, args.precision or "")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    if args.readme:
        from pythia_core.paths import project_root
        from pythia_core.recorded import fill_block

        fill_block(project_root() / "README.md", "bench", markdown(result))


def _errata(args: argparse.Namespace) -> None:
    from pythia_core.errata import erratum_named, explained, listing
    from pythia_core.published import find

    print(explained(erratum_named(args.name), find()) if args.name else listing())


def _trained() -> list[str]:
    """Scales whose models are trained from scratch."""
    return sorted(name for name, scale in SCALES.items() if not scale.published)


def _data_arguments(p: argparse.ArgumentParser) -> None:
    """Arguments of the commands that can look at token files instead of a run."""
    data = p.add_argument_group("token files instead of a run")
    data.add_argument(
        "--data",
        help="pile-standard, pile-deduped, pile-seed0..9 (read over the network, only the rows "
        "needed), a folder of pre-shuffled shards, or the PREFIX of a .bin/.idx pair",
    )
    data.add_argument("--tokenizer", default="neox-20b", help="or the path of a tokenizer.json")
    data.add_argument("--seq-len", type=int, default=2048, help="tokens a row (default 2048)")
    data.add_argument("--batch-size", type=int, default=1024, help="rows (default 1024)")
    data.add_argument(
        "--dtype", default="<u2", choices=("<u2", "<i4"), help="of ids without an index"
    )
    data.add_argument("--seed", type=int, default=1234, help="of the order of a PREFIX")
    data.add_argument("--epochs", type=int, help="of the order of a PREFIX (default 1)")
    data.add_argument(
        "--steps", type=int, help="or as many epochs as so many updates need: 143000 for Pythia"
    )


def parser() -> argparse.ArgumentParser:
    """The argument parser of every command."""
    top = argparse.ArgumentParser(prog="pythia_core", description=__doc__.split("\n\n")[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str, **settings: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **settings)
        sub.set_defaults(function=function)
        return sub

    p = command("prepare", _prepare, "fetch the corpus, train the tokenizer, lay out the rows")
    p.add_argument("--scale", default="laptop", choices=_trained())

    p = command("train", _train, "train a run, or find it if it exists")
    p.add_argument("size", help=f"one of {', '.join(s for s in SIZES if s not in OFFICIAL_SIZES)}")
    p.add_argument("--scale", default="laptop", help=f"one of {', '.join(_trained())}")
    p.add_argument("--steps", type=int, help="number of updates (default: the scale's)")
    p.add_argument("--batch-size", type=int, help="rows per update (default: the scale's)")
    p.add_argument("--micro-batch", type=int, help="rows per forward/backward (default: all)")
    p.add_argument("--lr", type=float, help="peak learning rate (default: the size's)")
    p.add_argument("--precision", choices=PRECISIONS, help="default: bf16 where hardware has it")
    p.add_argument("--order-seed", type=int, default=1234)
    p.add_argument("--weight-seed", type=int, default=1234)
    p.add_argument("--swap", choices=SWAPS, help="train a fork whose data is swapped from --start")
    p.add_argument("--start", type=int, help="first swapped update (default: the last 7 %%)")
    p.add_argument("--stop", type=int, help="first update no longer swapped (default: the end)")

    p = command(
        "continue", _continue, "train on from a checkpoint, a run's or a published one, and swap"
    )
    continue_arguments(p)

    p = command("inspect", _inspect, "show the decoded batch of a step, of a run or of token files")
    p.add_argument("run", metavar="RUN", nargs="?", help="a run's folder or its id's beginning")
    p.add_argument("--step", type=int, required=True, help="the update from step K to K + 1")
    p.add_argument("--rows", type=int, default=4, help="how many rows to print (default 4)")
    p.add_argument("--ids", action="store_true", help="of DATA, print ids; needs no tokenizer")
    _data_arguments(p)

    p = command(
        "find", _find, "find a text in what was trained on: which updates saw it, and where"
    )
    p.add_argument("words", metavar="[RUN] TEXT", nargs="+", help="a run unless --data is given")
    p.add_argument("--tokens", action="store_true", help="match token ids instead of letters")
    p.add_argument("--ignore-case", action="store_true", help="match upper and lower case alike")
    p.add_argument("--from-step", type=int, default=0, help="first update to look at (default 0)")
    p.add_argument("--to-step", type=int, help="first update not to look at (default: the end)")
    p.add_argument("--limit", type=int, default=20, help="occurrences to print (default 20)")
    _data_arguments(p)

    p = command("terms", _terms, "count words in what a run has read, up to its checkpoints")
    p.add_argument("run", metavar="RUN", help="a run's folder or (the beginning of) its id")
    p.add_argument("terms", nargs="+", metavar="TERM", help='words, e.g. "Parliament" "New York"')
    p.add_argument("--ignore-case", action="store_true", help="count upper and lower case alike")
    p.add_argument("--all", action="store_true", help="print every checkpoint, not about twelve")
    p.add_argument("--parquet", help="also write term, step and count to this file")

    p = command("verify", _verify, "check a run against its hashes, or audit a published model")
    p.add_argument(
        "run",
        metavar="RUN",
        help="a run's folder or (the beginning of) its id; or, to audit its checkpoints, a folder "
        "of stepN folders or a repository, e.g. EleutherAI/pythia-70m",
    )

    p = command("convert", _convert, "write a model in another format")
    p.add_argument("source", metavar="SRC", help="a run, a folder, or a repository of the hub")
    p.add_argument("target", metavar="DST", help="a new folder")
    p.add_argument("--to", default="", choices=("hf", "pythia"), help="default: the other one")
    p.add_argument("--revision", default="main", help="of a repository, e.g. step3000")
    p.add_argument("--step", type=int, help="of a run (default: the last)")
    p.add_argument("--dtype", default="", choices=("fp32", "fp16", "bf16"), help="default: as is")
    p.add_argument("--size", default="", help="of native GPT-NeoX files, e.g. 70m")

    p = command("evaluate", _evaluate, "ask checkpoints the paper's tasks")
    p.add_argument("model", metavar="MODEL", help=MODEL)
    p.add_argument("--tasks", default="", help="comma list (default: all)")
    p.add_argument("--steps", default="last", help="all, or e.g. 0,512,last (default: last)")
    p.add_argument("--shots", type=int, help="solved examples (default: the task's, mostly 0)")
    p.add_argument("--limit", type=int, help="items of a task, a fixed sample (default: all)")
    p.add_argument("--items", metavar="FOLDER", help="items from FOLDER/TASK.jsonl")
    p.add_argument("--out", metavar="FILE", help="also write the table, .csv or .parquet")

    p = command(
        "lm_eval", _lm_eval, "lm-evaluation-harness with --model pythia --model_args run=ID,step=K",
        prefix_chars="\0", add_help=False,
    )  # fmt: skip
    p.add_argument("arguments", nargs="*", help="arguments of lm_eval")

    p = command("generate", _generate, "let a checkpoint write on after a text")
    p.add_argument("model", metavar="MODEL", help=MODEL)
    p.add_argument("--prompt", action="append", required=True, help="may be given several times")
    p.add_argument("--step", type=int, help="which checkpoint (default: the last)")
    p.add_argument("--tokens", type=int, default=32, help="at most so many (default 32)")
    p.add_argument("--until", action="append", default=[], help="stop before this text")
    p.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    p.add_argument("--top-k", type=int, default=0)
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)

    p = command("study", _study, "run a study's notebook, unless its results are up to date")
    p.add_argument("study", help="name of a notebook, e.g. gender_bias")
    p.add_argument("--scale", help=f"one of {', '.join(SCALES)} (default: the notebook's)")
    p.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--force", action="store_true", help="run even if up to date")

    p = command("record", _record, "copy a reviewed local run into book/recorded, to be committed")
    p.add_argument("study")
    p.add_argument("--scale", default="laptop")

    p = command("errata", _errata, "what is often told wrongly about Pythia, with the evidence")
    p.add_argument("name", nargs="?", metavar="NAME", help="explain this one (default: list all)")

    p = command("bench", _bench, "measure speed against a named peer, in one run")
    p.add_argument("what", choices=("train", "terms", "generate", "kernels"))
    p.add_argument("--device", default="cpu", choices=("cpu",))
    p.add_argument("--sizes", default="", help="comma list (default: the laptop ladder)")
    p.add_argument("--dry-run", action="store_true", help="kernels: tiny tensors, on the CPU")
    p.add_argument("--rounds", type=int, default=10, help="alternating rounds of 2 steps each")
    p.add_argument("--precision", choices=PRECISIONS)
    p.add_argument("--json", help="also write the full result to this file")
    p.add_argument("--readme", action="store_true", help="write the table into README.md")
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
