"""`bench`: speed against a baseline; `gpu-check`: test and measure a GPU in limited time."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from pythia_book.commands import file_to_write
from pythia_core.commands import AddCommand
from pythia_core.errors import ConfigError

ON_CPU, ON_GPU = "train on a CPU", "train on a GPU"
ONLY_FOR = {
    "rounds": (ON_CPU, "terms", "generate"),
    "precision": (ON_CPU,),
    "readme": (ON_CPU,),
    "dry_run": (ON_GPU, "kernels", "attention", "correctness"),
    "budget": (ON_GPU, "kernels", "attention", "correctness"),
    "seconds": (ON_GPU, "kernels"),
    "kernels": ("kernels",),
}
"""Which benchmarks an option applies to; for others it is refused."""


def add(command: AddCommand) -> None:
    """Add these commands to the parser."""
    p = command("bench", _bench, "measure speed against a baseline, or check correctness")
    p.add_argument(
        "what",
        choices=("train", "terms", "generate", "kernels", "attention", "correctness"),
        help="a training step, counting terms, generating text; on a GPU: single kernels, "
        "attention by every library, or whether kernels and training are correct",
    )
    p.add_argument("--device", choices=("cpu", "cuda"), help="where to train (default: cpu)")
    p.add_argument(
        "--sizes", default="", help="comma-separated list (default: those meant for the device)"
    )
    p.add_argument("--json", metavar="FILE", help="also write the results to this file")
    p.add_argument("--rounds", type=int, help="train on a CPU, terms, generate: repeats")
    p.add_argument(
        "--precision", choices=("fp32", "bf16"), help="train on a CPU (default: what it is fast in)"
    )
    p.add_argument(
        "--readme", action="store_true", help="train on a CPU: put the table into README.md"
    )
    p.add_argument("--dry-run", action="store_true", help="run all of it at tiny sizes on the CPU")
    p.add_argument("--budget", metavar="TIME", help="on a GPU: start nothing after this, e.g. 9m")
    p.add_argument("--seconds", type=float, help="on a GPU: least time per measurement")
    p.add_argument("--kernels", help="kernels: comma-separated list of operations (default: all)")

    p = command("gpu-check", _gpu_check, "check and measure a GPU within a time budget")
    p.add_argument("--budget", default="15m", metavar="TIME", help="e.g. 9m or 540s (default 15m)")
    p.add_argument("--out", metavar="DIR", help="folder for results (default: results/gpu-check)")
    p.add_argument(
        "--only",
        default="",
        help="comma-separated list of correctness,attention,train,kernels,study",
    )
    p.add_argument(
        "--sizes", default="", help="comma-separated list (default: 160m, then the others)"
    )
    p.add_argument("--dry-run", action="store_true", help="run all of it at tiny sizes on the CPU")


def _bench(args: argparse.Namespace) -> None:
    _refuse_idle_options(args)
    sizes, options = _names(args.sizes), _typed(args)
    if options.pop("readme", False):
        from pythia_core.util.files import require_checkout

        readme = require_checkout("--readme") / "README.md"
    if "budget" in options:
        options["budget"] = duration(args.budget)
    file = file_to_write("--json", args.json) if args.json else None
    if args.what in ("terms", "generate"):
        return print(_table(args.what, sizes, options, file))
    from pythia_book.bench import rows

    if args.what != "train":
        if args.what == "kernels":
            from pythia_book.bench.kernels import bench_kernels

            if only := options.pop("kernels", ""):
                options["only"] = _names(only)
            measured = bench_kernels(sizes, **options)
        elif args.what == "attention":
            from pythia_book.bench.kernels import bench_attention

            measured = bench_attention(**options)
        else:
            from pythia_book.bench.correctness import check_gpu

            measured = check_gpu(sizes, **options)
        return rows.write_rows(measured, file, lambda row: print(json.dumps(row), flush=True))
    from pythia_book.bench import train

    if precision := options.pop("precision", ""):
        options["precisions"] = (precision,)
    shown = []

    def show(row: rows.Row) -> None:
        shown.append(row)
        print(rows.format_row(row), flush=True)

    rows.write_rows(train.bench_train(sizes, args.device or "cpu", **options), file, show)
    if args.device != "cuda":
        text = train.markdown(shown)
        print(f"\n{text}")
        if args.readme:
            from pythia_book.site_runs import fill_block

            fill_block(readme, "bench", text)


def _gpu_check(args: argparse.Namespace) -> None:
    from pythia_book.bench.gpu_check import gpu_check
    from pythia_book.bench.rows import gpu_folder

    out = Path(args.out) if args.out else gpu_folder()
    only, sizes = _names(args.only), _names(args.sizes)
    gpu_check(duration(args.budget), out.absolute(), only, sizes, args.dry_run)


def duration(text: str) -> float:
    """Seconds in a duration like 9m, 1h, 540s or 540.

    Raises:
        ConfigError: anything else, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not seconds:
        raise ConfigError(
            f"a time is a number, in seconds or with s, m or h (540, 9m), got {text!r}"
        )
    return seconds


def _typed(args: argparse.Namespace) -> dict[str, Any]:
    """Those of ONLY_FOR that were typed, zeros among them."""
    values = {name: getattr(args, name) for name in ONLY_FOR}
    return {
        name: value for name, value in values.items() if value is not None and value is not False
    }


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _refuse_idle_options(args: argparse.Namespace) -> None:
    kind = args.what
    if kind == "train":
        kind = ON_GPU if args.device == "cuda" else ON_CPU
    elif args.device == "cuda" and kind not in ONLY_FOR["dry_run"]:
        raise ConfigError(f"bench {kind} measures on the CPU; --device cuda is only for train")
    if args.sizes and kind in ("terms", "attention"):
        raise ConfigError(f"bench {kind} does not depend on model sizes; it takes no --sizes")
    for option in _typed(args):
        if kind not in (kinds := ONLY_FOR[option]):
            flag = "--" + option.replace("_", "-")
            accepted = ", ".join(kinds)
            raise ConfigError(f"{flag} does not apply to bench {kind}, only to {accepted}")


def _table(
    benchmark: str, sizes: tuple[str, ...], options: dict[str, Any], file: Path | None
) -> str:
    """Measure, write the whole result to `file` if it is named, return it as a table."""
    if benchmark == "terms":
        from pythia_book.bench import terms as bench

        result = bench.bench_terms(**options)
    else:
        from pythia_book.bench import generate as bench

        result = bench.bench_generate(sizes, **options)
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n")
    return bench.markdown(result)
