"""`bench`: speeds against a named peer, measured in one run."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from pythia_core.commands import AddCommand
from pythia_core.config import PRECISIONS


def add(command: AddCommand) -> None:
    """Add these commands to the parser."""
    p = command("bench", _bench, "measure speed against a named peer, in one run")
    p.add_argument("what", choices=("train", "terms", "generate", "kernels"))
    p.add_argument("--device", default="cpu", choices=("cpu",))
    p.add_argument("--sizes", default="", help="comma list (default: the laptop ladder)")
    p.add_argument("--dry-run", action="store_true", help="kernels: tiny tensors, on the CPU")
    p.add_argument("--rounds", type=int, default=10, help="alternating rounds of 2 steps each")
    p.add_argument("--precision", choices=PRECISIONS)
    p.add_argument("--json", help="also write the full result to this file")
    p.add_argument("--readme", action="store_true", help="write the table into README.md")


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
