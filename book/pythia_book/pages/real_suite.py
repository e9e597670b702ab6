"""Makes the tables of the page on the released models: their training, and the cost of using them.

All numbers follow from the constants here, recipe.HARDWARE and suite.OFFICIAL_SIZES. No time was
measured; all times are estimates at assumed rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book.pages import formatted
from pythia_book.released.continuation.data import TokenFileData
from pythia_book.released.continuation.plan import Plan, make_plan
from pythia_book.released.continuation.start import published_train
from pythia_book.released.recipe import BATCH_ROWS, H100_UTILIZATION, HARDWARE, SEQ_LEN
from pythia_book.studies.phases.ngrams import ORDERS
from pythia_book.studies.phases.probes import LONGEST_COPY, N_POSITIONS, N_ROWS, N_SEQUENCES
from pythia_book.style import Table
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.metrics import flops_per_token
from pythia_core.training.schedule import N_CHECKPOINTS

if TYPE_CHECKING:
    import pandas as pd


# --- facts and estimates ---------------------------------------------------------------------

TRAINED_IN = dict.fromkeys(OFFICIAL_SIZES, "fp16") | {"1b": "bf16"}
"""Maps each size to the precision of its matrix products. The standard 1B model was trained in bf16
because its fp16 run did not recover from a loss spike. The deduplicated 1B model was trained in
fp16 (EleutherAI/pythia, README; gpt-neox, configs/pythia/1B.yml).
"""
USABLE_VOCABULARY = 50_277
"""The number of tokens of the tokenizer. Embedding rows beyond this number are never targets."""
PADDED_TO = 128
"""The vocabulary is padded to a multiple of PADDED_TO times the number of tensor-parallel ranks."""

STORED_BYTES = 2
"""Bytes per parameter on the hub, in half precision."""
DOWNLOAD = 100e6
"""Assumed download rate in bytes per second."""
CPU_FLOPS = 100e9
"""Assumed FLOP per second of a few cores in fp32."""
GPU_BYTES = 80e9
TASK_TOKENS = {
    "lambada_openai": 394_855,
    "piqa": 93_661,
    "winogrande": 30_357,
    "arc_easy": 23_427,
    "arc_challenge": 14_843,
    "sciq": 222_333,
    "hellaswag": 2_589_698,
    "crows_pairs_english": 26_794,
    "crows_pairs_english_gender": 4_195,
    "winobias_mc": 23_694,
    "winobias_em": 131_604,
    "arithmetic": 33_406,
    "triviaqa": 1_542_994,
}
"""Maps each task to a number of tokens of the 20B tokenizer: the tokens that a checkpoint reads,
including padding, plus the largest number of tokens that the checkpoint may generate.
"""
_SHOWN = "70m"
"""The model size in the table of commands."""


def padded_vocabulary(tensor_parallel: int) -> int:
    """Return the size of the padded vocabulary, by the rule of GPT-NeoX."""
    multiple = PADDED_TO * tensor_parallel
    return -(-USABLE_VOCABULARY // multiple) * multiple


def repository(size: str, deduplicated: bool = False) -> str:
    """Return the name of a released model on the hub."""
    return f"EleutherAI/pythia-{size}" + ("-deduped" if deduplicated else "")


def fidelity_table() -> pd.DataFrame:
    """Return how each released size was trained, one row per size.

    The column `vocabulary` is the padded size. Other columns: `size`, `precision`, `init`,
    `tensor_parallel`, `head_dim`, `lr_max`, `lr_min`.
    """
    import pandas as pd

    rows = []
    for name, size in OFFICIAL_SIZES.items():
        hardware = HARDWARE[name]
        rows.append(
            {
                "size": name,
                "precision": TRAINED_IN[name],
                "init": size.init,
                "tensor_parallel": hardware.tensor_parallel,
                "vocabulary": padded_vocabulary(hardware.tensor_parallel),
                "head_dim": size.model().head_dim,
                "lr_max": size.lr_max,
                "lr_min": size.lr_max / 10,
            }
        )
    return pd.DataFrame(rows)


def reading_table() -> pd.DataFrame:
    """Return the cost of loading and running each released model, one row per size.

    Columns:
    - `size`, `repository`
    - `stored`, `stored_all`: bytes of one checkpoint and of all checkpoints on the hub.
    - `minutes`: time to download one checkpoint.
    - `memory`: bytes of the model in fp32.
    - `row_seconds`: CPU time of a forward pass over 2,048 tokens.
    - `task_seconds`: CPU time of the forward passes for all tasks.
    """
    import pandas as pd

    rows = []
    for name, size in OFFICIAL_SIZES.items():
        model = size.model()
        stored = STORED_BYTES * model.n_params
        rows.append(
            {
                "size": name,
                "repository": repository(name),
                "stored": stored,
                "minutes": stored / DOWNLOAD / 60,
                "stored_all": stored * N_CHECKPOINTS,
                "memory": 4 * model.n_params,
                "row_seconds": _forward_seconds(name, SEQ_LEN),
                "task_seconds": _forward_seconds(name, sum(TASK_TOKENS.values())),
            }
        )
    return pd.DataFrame(rows)


def _forward_seconds(size: str, tokens: float) -> float:
    """Estimate the seconds of forward passes over `tokens` tokens on a CPU, at CPU_FLOPS."""
    return flops_per_token(OFFICIAL_SIZES[size].model(), SEQ_LEN) / 3 * tokens / CPU_FLOPS


def _plan(size: str, start: int, steps: int, swap: bool = True) -> Plan:
    """Return the plan to continue a released deduplicated model; `swap`: with swap and control."""
    model = OFFICIAL_SIZES[size].model()
    train = published_train(model, SEQ_LEN, precision="bf16")
    rows = TokenFileData("pile-deduped", "")
    return make_plan(repository(size, True), model, train, start, steps, rows, swap)


def forks_table() -> pd.DataFrame:
    """Return the cost of a pronoun-swap run and its control, one row per size.

    Both runs are trained in the paper's shorter window, 10,000 updates from step 133,000.

    Columns:
    - `size`
    - `weights`, `rows`: bytes of weights and of training rows to fetch; `disk`: bytes on disk.
    - `state`: bytes of GPU memory; `fits`: whether `state` fits on a GPU of 80 GB.
    - `gpu_seconds`: estimated time on an H100.
    """
    import pandas as pd

    plans = {name: _plan(name, 133_000, 10_000) for name in OFFICIAL_SIZES}
    return pd.DataFrame(
        [
            {
                "size": name,
                "weights": plan.weight_bytes,
                "rows": plan.row_bytes,
                "state": plan.memory,
                "fits": plan.memory < GPU_BYTES,
                "disk": plan.disk,
                "gpu_seconds": plan.seconds,
            }
            for name, plan in plans.items()
        ]
    )


def commands_table() -> pd.DataFrame:
    """Return the cost of some example commands, one row per command.

    Columns: `command`, `fetched` (bytes), `memory` (bytes), `machine` and `seconds`. The seconds
    are the time on `machine` or, if `machine` is empty, the time of the download.
    """
    import pandas as pd

    model, name = OFFICIAL_SIZES[_SHOWN].model(), repository(_SHOWN)
    stored, fp32 = STORED_BYTES * model.n_params, 4 * model.n_params
    batch = BATCH_ROWS * (SEQ_LEN + 1) * 2
    tasks = _forward_seconds(_SHOWN, sum(TASK_TOKENS.values()))
    probe_tokens = N_ROWS * SEQ_LEN + 4 * N_SEQUENCES * LONGEST_COPY
    expected = 4 * len(ORDERS) * N_ROWS * N_POSITIONS * model.vocab_size
    fork, long, short = (
        _plan(_SHOWN, 133_000, 10_000),
        _plan(_SHOWN, 113_000, 30_000),
        _plan(_SHOWN, 133_000, 10_000, False),
    )
    swap = "--swap masculine_to_feminine --data pile-deduped --yes"
    rows = [
        (f"verify {name}", 0, 0, 0, ""),
        (f"convert {name} results/pythia-{_SHOWN} --revision step3000", stored, 2 * stored, 0, ""),
        (f'generate {name} --prompt "The Pile is"', stored, stored + fp32, 0, ""),
        ("inspect --data pile-standard --step 3000", batch, 2 * batch, 0, ""),
        ('find --data pile-deduped --to-step 10 "a sentence"', 10 * batch, 2 * batch, 0, ""),
        (f"evaluate {name}", stored, stored + fp32, tasks, "CPU"),
        (f"evaluate {name} --steps all --out scores.csv", N_CHECKPOINTS * stored, stored + fp32,
         N_CHECKPOINTS * tasks, "CPU"),
        (f"study phases --scale paper -p source={name} -p data=pile-standard",
         N_CHECKPOINTS * stored + 16 * batch, 2 * expected + stored + fp32,
         N_CHECKPOINTS * _forward_seconds(_SHOWN, probe_tokens), "CPU"),
        (f"continue {name}-deduped --revision step133000 --steps 10000 {swap}",
         fork.weight_bytes + fork.row_bytes, fork.memory, fork.seconds, "H100"),
        (f"study gender_bias --scale paper -p sizes={_SHOWN}",
         long.weight_bytes + long.row_bytes + short.row_bytes, long.memory,
         long.seconds + short.seconds, "H100"),
    ]  # fmt: skip
    columns = ["command", "fetched", "memory", "seconds", "machine"]
    frame = pd.DataFrame(rows, columns=columns)
    no_compute = frame.seconds == 0
    frame.loc[no_compute, "seconds"] = frame.fetched[no_compute] / DOWNLOAD
    return frame


# --- tables ----------------------------------------------------------------------------------

SPACE = "\N{NO-BREAK SPACE}"
RATE = "{:.1e}".format


def bytes_text(value: float) -> str:
    """Format bytes in decimal units with three significant digits, e.g. 1.41e8 as "141 MB"."""
    units = ("kB", "MB", "GB", "TB")
    power = min(len(units), max(1, len(f"{value:.0f}") - 1) // 3)
    return f"{value / 1000**power:,.3g}{SPACE}{units[power - 1]}"


def time_text(seconds: float) -> str:
    """Format a time with a suitable unit, e.g. 5400 as "1.5 h"."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (2 * 86_400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:,.2g}{SPACE}{name}"
    return f"{seconds / 86_400:,.0f}{SPACE}days"


def fidelity() -> Table:
    """Return the table of how each size was trained."""
    columns = {
        "size": ("Size", str),
        "precision": ("Products in", str),
        "init": ("Initial weights", str),
        "tensor_parallel": ("Tensor parallel", str),
        "vocabulary": ("Vocabulary, padded", "{:,}".format),
        "head_dim": ("Head dim", str),
        "lr_max": ("Peak rate", RATE),
        "lr_min": ("Lowest rate", RATE),
    }
    caption = (
        f"How the released models were trained. The vocabulary has {USABLE_VOCABULARY:,} entries, "
        f"padded to a multiple of {PADDED_TO} times the tensor-parallel ranks"
    )
    return Table(formatted(fidelity_table(), columns), caption)


def reading() -> Table:
    """Return the table of the cost of loading and running each released model."""
    columns = {
        "size": ("Size", str),
        "repository": ("Name", str),
        "stored": ("One checkpoint", bytes_text),
        "minutes": ("Download", lambda minutes: time_text(60 * minutes)),
        "stored_all": ("All 154", bytes_text),
        "memory": ("Memory, fp32", bytes_text),
        "row_seconds": ("2,048 tokens", time_text),
        "task_seconds": ("All tasks", time_text),
    }
    caption = (
        f"The cost of using a released model, computed from its parameters. Assumed: a download at "
        f"{DOWNLOAD / 1e6:.0f} MB/s; 2,048 tokens, and the tasks' {sum(TASK_TOKENS.values()):,} "
        f"tokens, at {CPU_FLOPS / 1e9:.0f} GFLOP/s"
    )
    return Table(formatted(reading_table(), columns), caption)


def commands() -> Table:
    """Return the table of example commands, with download, memory and time."""
    frame = commands_table()
    frame["time"] = [
        "seconds"
        if row.seconds < 1
        else time_text(row.seconds) + (f", {row.machine}" if row.machine else ", download")
        for row in frame.itertuples()
    ]
    columns = {
        "command": ("python -m pythia_core", str),
        "fetched": ("Fetched", lambda n: bytes_text(n) if n else "hashes only"),
        "memory": ("Memory", lambda n: bytes_text(n) if n else "little"),
        "time": ("Time", str),
    }
    caption = (
        f"For pythia-{_SHOWN}, computed from its parameters. Assumed: downloads at "
        f"{DOWNLOAD / 1e6:.0f} MB/s, a CPU of {CPU_FLOPS / 1e9:.0f} GFLOP/s, "
        f"{100 * H100_UTILIZATION:.0f}\N{NO-BREAK SPACE}% of an H100's peak. "
        "Memory for training excludes activations; downloads stay on disk, except rows and, in a "
        "sweep, checkpoints"
    )
    return Table(formatted(frame, columns), caption, code=("python -m pythia_core",))


def forks() -> Table:
    """Return the table of the cost of training a pronoun-swap run and its control."""
    columns = {
        "size": ("Size", str),
        "weights": ("Weights to fetch", bytes_text),
        "rows": ("Rows to fetch", bytes_text),
        "state": ("Weights, gradients, optimizer", bytes_text),
        "fits": ("On a GPU of 80 GB", lambda fits: "yes" if fits else "no"),
        "disk": ("Disk", bytes_text),
        "gpu_seconds": ("One H100", time_text),
    }
    caption = (
        "10,000 updates from step 133,000, a swap and its control, in bf16, without activations; "
        f"time at an assumed {100 * H100_UTILIZATION:.0f}\N{NO-BREAK SPACE}% of the peak"
    )
    return Table(formatted(forks_table(), columns), caption)
