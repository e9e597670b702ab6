"""Adds the command `continue`, which continues the training of a checkpoint.

With --swap, two runs are trained: one on data with swapped pronouns, and a control on the same data
unchanged. The command first prints a plan, which lists missing shards. It starts long training and
large downloads only with --yes.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pythia_core.commands import (
    COUNT,
    STEP,
    AddCommand,
    nonblank,
    positive_number,
    share_under_torchrun,
)
from pythia_core.config import PRECISIONS, PRONOUN_SWAPS
from pythia_core.errors import ConfigError, DataError, count_of

if TYPE_CHECKING:
    from pythia_book.released.continuation.run import Continued
    from pythia_core.training.distributed import World


def add(command: AddCommand) -> None:
    """Add `continue` to the command line."""
    text = "continue training from any checkpoint, with or without swapping pronouns"
    p = command("continue", _continue, text)
    p.set_defaults(resume_note="what was downloaded and trained is kept")
    share_under_torchrun(p)
    p.add_argument(
        "source",
        metavar="SRC",
        type=nonblank,
        help="a run (folder or id), the folder of a published model, a folder with one subfolder "
        "stepN per revision, or a repository on the hub such as EleutherAI/pythia-70m-deduped",
    )
    text = "revision of a published model, e.g. step133000"
    p.add_argument("--revision", type=nonblank, help=text)
    text = "step to start from (required unless --revision is stepN)"
    p.add_argument("--step", **STEP, help=text)
    p.add_argument("--steps", **COUNT, required=True, help="number of updates")
    p.add_argument(
        "--swap", choices=PRONOUN_SWAPS, help="also train a second arm with pronouns swapped"
    )
    p.add_argument(
        "--data",
        type=nonblank,
        help="rows in training order: pile-deduped, pile-standard, a folder with the shards, or "
        "anything else that `inspect --data` takes (default: the run's own; required for a "
        "published model)",
    )
    text = "neox-20b or a tokenizer.json (default: the model's)"
    p.add_argument("--tokenizer", type=nonblank, help=text)
    p.add_argument("--seq-len", **COUNT, default=2048, help="tokens per row (default: 2048)")
    p.add_argument(
        "--state",
        default="auto",
        choices=("auto", "kept", "weights"),
        help="optimizer state to start with: the saved one (kept), none (weights), or the saved "
        "one if there is one (auto, the default)",
    )
    p.add_argument(
        "--rewarm",
        choices=("linear", "none", "constant"),
        help="how to re-warm the learning rate when starting without an optimizer state (default: "
        "linear)",
    )
    text = "number of re-warming updates (linear only; default: 1 %% of --steps)"
    p.add_argument("--rewarm-updates", **COUNT, default=0, help=text)
    trained = p.add_argument_group("training settings (default: Pythia's, or those of the run)")
    text = "number of updates of the whole schedule"
    trained.add_argument("--schedule-steps", **COUNT, help=text)
    trained.add_argument("--batch-size", **COUNT, help="rows per update")
    trained.add_argument("--lr", type=positive_number, help="peak learning rate")
    trained.add_argument("--micro-batch", **COUNT, help="rows per forward/backward pass")
    trained.add_argument("--precision", choices=PRECISIONS, help="training precision")
    p.add_argument("--plan", action="store_true", help="print requirements and costs, then exit")
    text = "start even if the run takes a long time or downloads a lot"
    p.add_argument("--yes", action="store_true", help=text)
    text = "measure gender bias in both arms (needs --swap)"
    p.add_argument("--measure", action="store_true", help=text)


def _continue(args: argparse.Namespace) -> None:
    """Run `continue` in all processes that torchrun started."""
    from pythia_core.training.distributed import run_together

    run_together(lambda world: _continue_in(world, args), args.shard)


def _continue_in(world: World, args: argparse.Namespace) -> None:
    """Print the plan of a continuation, train it unless --plan is given, and print a report."""
    from pythia_book.released.continuation.data import swap_summary
    from pythia_book.released.continuation.run import find_or_continue

    with world.rank_zero_first():  # the others then find what it downloads
        arguments = _planned(args)
    if arguments is None:
        return
    run = find_or_continue(**arguments, progress=world.is_rank_zero, world=world)
    if not world.is_rank_zero:
        return
    print(run.continuation.described())
    for arm, trained in {"control": run.control, run.continuation.arm: run}.items():
        loss = trained.metrics()[-1]["loss"]
        print(
            f"{arm}: run {trained.id}, {count_of(len(trained.steps), 'checkpoint')}, "
            f"last loss {loss:.4f}, "
            f"weights sha256 {trained.final_sha256}\n{trained.folder}"
        )
    if run.swaps:
        total = swap_summary(run.swaps)
        print(
            f"{total['tokens_changed']:,} of {total['tokens']:,} tokens changed "
            f"({total['share_changed']:.3%}), {total['at_row_ends']:,} of them at row ends"
        )
    _report(run, args.measure)


def _planned(args: argparse.Namespace) -> dict[str, Any] | None:
    """Print the plan; return the arguments of `find_or_continue`, or None with --plan."""
    from pythia_book.released.continuation.data import TokenFileData
    from pythia_book.released.continuation.plan import make_plan
    from pythia_book.released.continuation.run import Rewarm
    from pythia_book.released.continuation.start import find_source, published_train
    from pythia_core.hf import step_of

    if args.measure and not args.swap:
        raise ConfigError(
            "--measure compares the two arms of a swap; pass --swap too, or omit --measure"
        )
    source = find_source(args.source)
    if args.steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {args.steps}")
    step = step_of(args.revision or "") if args.step is None else args.step
    if step is None:
        raise ConfigError("the step to start from is unknown; pass --step N or --revision stepN")
    revision = args.revision or f"step{step}"
    source.check(step, revision)
    options: dict[str, Any] = {
        "steps": args.schedule_steps,
        "batch_size": args.batch_size,
        "lr_max": args.lr,
        "micro_batch": args.micro_batch,
        "precision": args.precision,
    }
    options = {name: value for name, value in options.items() if value is not None}
    model, train, seq_len = source.settings(revision, args.seq_len, **options)
    if args.data is None and not source.brings_data:
        raise ConfigError(
            "a published model comes without training data; pass --data pile-deduped or "
            "--data pile-standard (read over the network), or a folder with the needed shards"
        )
    rows = None
    if args.data is not None:
        tokenizer = args.tokenizer or source.tokenizer_name(revision)
        rows = TokenFileData(args.data, tokenizer, args.seq_len)
    plan = make_plan(args.source, model, train, step, args.steps, rows, bool(args.swap), seq_len)
    print("\n".join(plan.lines))
    if plan.missing_shards and not args.plan:
        raise DataError(
            f"{args.data} lacks {count_of(len(plan.missing_shards), 'shard')}, listed above; "
            "put the missing files there"
        )
    if args.plan:
        return None
    if plan.is_large and not args.yes:
        raise ConfigError(
            "this run takes a long time or downloads a lot of data (see the plan above), so it was "
            "not started; pass --yes to start it"
        )
    if train is None and plan.model is not None:
        train = published_train(plan.model, args.seq_len, **options)
    rule = None
    if args.rewarm or args.rewarm_updates:
        rule = Rewarm(args.rewarm or "linear", args.rewarm_updates)
    return {
        "source": args.source,
        "step": step,
        "steps": args.steps,
        "batches": rows,
        "intervention": args.swap,
        "revision": args.revision or "",
        "train_config": train,
        "rewarm": rule,
        "state": args.state,
    }


def _report(run: Continued, measure: bool) -> None:
    """Print losses of the control and of the source run; if `measure`, also print gender biases."""
    from pythia_book.studies.gender_bias.continuation import continuity, effects

    if run.place["control"]:
        print("\nthe control is the source run itself, so there are no losses to compare")
    else:
        print("\nlosses of the continued control and of the source, on rows that neither has read")
        print(continuity(run).to_string(index=False, float_format="%.4f"))
    if measure:
        print("\ngender bias of the control and of the swap, and the change with a 95 % interval")
        print(effects(run).to_string(index=False, float_format="%.4f"))
