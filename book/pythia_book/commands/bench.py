"""Adds the commands `bench` and `gpu-check`.

`bench NAME` measures one part of the code against a baseline; `bench correctness` checks kernels
and training. `gpu-check` runs several of these benchmarks on a GPU, within a time limit.
"""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from pythia_book.commands import file_to_write, names
from pythia_core.commands import COUNT, AddCommand, nonblank, positive_number
from pythia_core.errors import ConfigError
from pythia_core.util.files import check_writable, write_json


def duration(text: str) -> float:
    """Parse a duration such as 9m, 1h, 540s or 540 (seconds), and return it in seconds.

    Raises:
        ConfigError: the text is not a duration, or the duration is zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not seconds:
        raise ConfigError(f"expected a time such as 540 or 540s (seconds), 9m or 1h, got {text!r}")
    return seconds


SIZES = {
    "type": names,
    "help": "comma-separated list of model sizes (default: chosen for the device)",
}
DRY_RUN = {"action": "store_true", "help": "run everything at a tiny size on the CPU"}
JSON = {"metavar": "FILE", "type": partial(file_to_write, "--json"), "default": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "--json": JSON | {"help": "also write the results to FILE"},
    "--sizes": SIZES,
    "--dry-run": DRY_RUN,
    "--rounds": COUNT | {"help": "how often to time each implementation"},
    "--budget": {"type": duration, "metavar": "TIME", "help": "time limit, e.g. 9m"},
    "--seconds": {"type": positive_number, "metavar": "S",
                  "help": "minimum seconds per measurement"},
    "--precision": {"choices": ("fp32", "bf16"),
                    "help": "number format (default: both if the CPU has bf16)"},
    "--rows": COUNT | {"help": "rows per micro-batch (default: as many as fit, for each "
                               "implementation)"},
    "--write": {"action": "store_true", "help": "also write the table into README.md"},
    "--kernels": {"dest": "only", "type": names, "metavar": "KERNELS",
                  "help": "comma-separated list of kernels, e.g. adamw,attention (default: all)"},
}  # fmt: skip
ONLY_ON = {"cpu": ("--rounds", "--precision", "--write"),
           "cuda": ("--dry-run", "--budget", "--seconds", "--rows")}  # fmt: skip
"""Maps a device to the options of `bench train` that work only on this device."""


def add(command: AddCommand) -> None:
    """Add `bench` and `gpu-check` to the command line."""
    p = command("bench", _train, "measure speed against a baseline, or check correctness")
    benchmarks = p.add_subparsers(required=True, metavar="BENCHMARK")

    def benchmark(name: str, run: Any, text: str, *options: str) -> argparse.ArgumentParser:
        """Add a benchmark with some of the OPTIONS to the command `bench`; return its parser."""
        p = benchmarks.add_parser(
            name, help=text, description=text, argument_default=argparse.SUPPRESS
        )
        p.set_defaults(function=run, parser=p)
        for option in ("--json", *options):
            p.add_argument(option, **OPTIONS[option])
        return p

    p = benchmark("train", _train, "training steps, against GPT-NeoX in transformers", "--sizes")
    p.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="device to measure (default: cpu)"
    )
    for device, title in (("cpu", "on a CPU"), ("cuda", "on a GPU")):
        group = p.add_argument_group(title)
        for option in ONLY_ON[device]:
            group.add_argument(option, **OPTIONS[option])
    p = benchmark("learning-rates", _learning_rates, "held-out loss of each size at several "
                  "learning rates", "--sizes")  # fmt: skip
    text = "also write the table into book/method.md"
    p.add_argument("--write", action="store_true", help=text)
    benchmark("terms", _terms, "counting terms, against decoding and splitting", "--rounds")
    benchmark("generate", _generate, "generating text, against transformers", "--sizes", "--rounds")
    gpu = ("--dry-run", "--budget")
    benchmark("kernels", _kernels, "on a GPU: single kernels, against PyTorch", "--sizes", *gpu,
              "--seconds", "--kernels")  # fmt: skip
    benchmark("attention", _attention, "on a GPU: every attention library", *gpu)
    benchmark("correctness", _correctness, "on a GPU: are kernels and training correct?", "--sizes",
              *gpu)  # fmt: skip

    p = command("gpu-check", _gpu_check, "check and measure a GPU within a time budget")
    p.add_argument(
        "--budget",
        default="15m",
        type=duration,
        metavar="TIME",
        help="time limit, e.g. 9m (default: 15m)",
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        type=nonblank,
        help="folder for results (default: results/gpu-check)",
    )
    parts = "comma-separated list from correctness, attention, train, kernels and study (default: "
    parts += "all but study)"
    p.add_argument("--only", default=(), type=names, metavar="PARTS", help=parts)
    p.add_argument("--sizes", default=(), **SIZES)
    p.add_argument("--kernels", **{**OPTIONS["--kernels"], "dest": "kernels", "default": ()})
    studies = "studies that the part `study` runs (default: gender_bias); needs --only study"
    p.add_argument("--studies", default=(), type=names, help=studies)
    p.add_argument("--dry-run", **DRY_RUN)
    p.epilog = (
        "The steps, in this order, with their estimated minutes: correctness of kernels and "
        "training, 2.5; every attention library, 1; training of size 160m, 2.5; kernels of size "
        "160m, 1.5; then, while time is left, training (1 to 7 per size) and kernels of other "
        "sizes. A step is stopped after 1.5 times its estimate. A budget of 9 minutes (--budget "
        "9m) is enough for the model size 160m alone. A second call adds to the results, e.g. "
        "--budget 9m --only train,kernels --sizes 70m,1b. The summary ends with what to use, "
        "judging by the results: which kernels and which attention library."
    )


# --- bench -----------------------------------------------------------------------------------


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options on the command line as keyword arguments of a benchmark function."""
    others = ("command", "function", "parser", "json")
    return {name: value for name, value in vars(args).items() if name not in others}


def _check_whole(options: dict[str, Any]) -> None:
    """Raise a ConfigError if --write would replace a table with one for only some sizes."""
    if options.get("write") and "sizes" in options:
        raise ConfigError("--write replaces the table of all sizes; omit --sizes or --write")


def _page(name: str) -> Path:
    """Return the path of a page that --write updates; outside a checkout, raise a ConfigError."""
    from pythia_core.util.files import require_checkout

    return require_checkout("--write") / name


def _train(args: argparse.Namespace) -> None:
    """Run `bench train` and print its rows and, on a CPU, a table; --write updates the README."""
    from pythia_book.bench import rows, train
    from pythia_book.recording import fill_block

    options, printed = _options(args), []
    _check_whole(options)
    for option in ONLY_ON["cuda" if args.device == "cpu" else "cpu"]:
        if option[2:].replace("-", "_") in options:
            raise ConfigError(
                f"{option} does not apply to `bench train` on the device {args.device}; omit "
                f"{option} or choose another --device"
            )
    if "precision" in options:
        options["precisions"] = (options.pop("precision"),)
    page = _page("README.md") if options.pop("write", False) else None

    def show(row: rows.Row) -> None:
        if not row.get("partial"):
            printed.append(row)
            print(rows.format_row(row), flush=True)

    rows.write_rows(train.bench_train(rates_from=args.json, **options), args.json, show)
    if args.device == "cpu":
        text = train.markdown(printed)
        print(f"\n{text}")
        if page:
            fill_block(page, "bench", text)


def _learning_rates(args: argparse.Namespace) -> None:
    """Run `bench learning-rates` and print its table; with --write, update the page Method."""
    from pythia_book.bench import learning_rates
    from pythia_book.recording import fill_block

    options = _options(args)
    _check_whole(options)
    page = _page("book/method.md") if options.pop("write", False) else None
    result = learning_rates.sweep_learning_rates(**options)
    _print_table(result, learning_rates.markdown, args.json)
    if page:
        fill_block(page, "learning-rates", learning_rates.markdown(result))


def _terms(args: argparse.Namespace) -> None:
    """Run `bench terms` and print its table."""
    from pythia_book.bench import terms

    _print_table(terms.bench_terms(**_options(args)), terms.markdown, args.json)


def _generate(args: argparse.Namespace) -> None:
    """Run `bench generate` and print its table."""
    from pythia_book.bench import generate

    _print_table(generate.bench_generate(**_options(args)), generate.markdown, args.json)


def _print_table(result: dict[str, Any], markdown: Any, file: Path | None) -> None:
    """Print the result of a benchmark as a table; also write it to `file` as JSON, if given."""
    if file:
        write_json(file, result)
    print(markdown(result))


def _kernels(args: argparse.Namespace) -> None:
    """Run `bench kernels` and print its rows as JSON."""
    from pythia_book.bench.kernels import bench_kernels

    _print_rows(bench_kernels(rates_from=args.json, **_options(args)), args.json)


def _attention(args: argparse.Namespace) -> None:
    """Run `bench attention` and print its rows as JSON."""
    from pythia_book.bench.kernels import bench_attention

    _print_rows(bench_attention(**_options(args)), args.json)


def _correctness(args: argparse.Namespace) -> None:
    """Run `bench correctness` and print its rows as JSON."""
    from pythia_book.bench.correctness import check_gpu

    _print_rows(check_gpu(**_options(args)), args.json)


def _print_rows(measured: Any, file: Path | None) -> None:
    """Print each row as JSON as soon as it is measured; also write it to `file`, if given."""
    from pythia_book.bench.rows import write_rows

    write_rows(measured, file, lambda row: print(json.dumps(row), flush=True))


def _gpu_check(args: argparse.Namespace) -> None:
    """Check and measure a GPU within a time budget."""
    from pythia_book.bench.gpu_check import STUDY, gpu_check
    from pythia_book.bench.rows import gpu_folder

    out = Path(args.out).expanduser() if args.out else gpu_folder()
    check_writable(out, "name another folder with --out")
    if args.studies and "study" not in args.only:
        raise ConfigError("--studies has no effect without the part `study`; add --only study")
    gpu_check(
        args.budget,
        out.absolute(),
        only=args.only,
        sizes=args.sizes,
        dry_run=args.dry_run,
        kernels=args.kernels,
        studies=args.studies or (STUDY,),
    )
