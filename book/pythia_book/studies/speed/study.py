"""Training speed: measured on this machine's CPU; predicted for a GPU and compared with gpu-check.

On the CPU, with one thread as in every run of the book, the study times a training step and its
operations (pythia_book.bench). It never measures a GPU itself: it reads what the command
`gpu-check` wrote to results/gpu-check, except dry runs. There are two kinds of GPU predictions. For
a training step, they come from pythia_book.bench.cost_model. For each kernel, memory traffic per
token over all layers is counted by hand, for our kernel and for the code that torch.compile
generates; the difference is due to fusion that the compiler does not find. None of this is a claim
of the Pythia paper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pythia_book.bench import cost_model
from pythia_book.bench.rows import Row, gpu_folder, measured_rows
from pythia_book.released import recipe
from pythia_book.stats import NOT_TESTABLE, Estimate, claim_row
from pythia_book.studies.speed.params import STUDY, Params
from pythia_book.study import Result
from pythia_core.config import ModelConfig
from pythia_core.kernels.attention_backends import DEFAULT, FASTEST
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training import memory
from pythia_core.training.metrics import flops_per_token
from pythia_core.util.workers import one_thread

if TYPE_CHECKING:
    import pandas as pd

PRECISIONS = ("fp32", "bf16")
GPU_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b")
"""The sizes that fit on one H100."""
COMPILED = "torch.compile (inductor)"
NOT_MEASURED = "not yet measured"
WITHIN = 15.0
"""A prediction is correct if it misses by at most this many percent."""


def run(params: Params, progress: bool = True) -> Result:
    """Measure the CPU, read the GPU measurements, predict and compare."""
    from pythia_book.bench.kernels import bench_kernels
    from pythia_book.bench.train import bench_train

    started = time.time()
    smoke = params.scale == "smoke"
    with one_thread():
        step_rows = list(
            bench_train(
                params.size_list,
                precisions=PRECISIONS,
                compiled=() if smoke else PRECISIONS,
                rounds=1 if smoke else 5,
                progress=progress,
            )
        )
        operation_rows = list(
            bench_kernels(
                params.size_list,
                seconds=0.0 if smoke else 0.3,
                device="cpu",
                precisions=PRECISIONS,
                calls=1 if smoke else 5,
            )
        )
    gpu_steps = measured_rows(gpu_folder() / "train.jsonl", "train", ("size", "implementation"))
    keys = ("size", "kernel", "implementation")
    gpu_operations = measured_rows(gpu_folder() / "kernels.jsonl", "operation", keys)
    keys = ("library", "seq_len", "head_dim", "deterministic")
    libraries = measured_rows(gpu_folder() / "attention.jsonl", "attention", keys)
    steps, operations = steps_table(step_rows), operations_table(operation_rows)
    measured, timed = steps_table(gpu_steps), operations_table(gpu_operations)
    tables = {
        "steps": steps,
        "operations": operations,
        "gpu_sizes": gpu_sizes_table(measured),
        "gpu_steps": measured,
        "gpu_kernels": gpu_kernels_table(timed),
        "gpu_operations": timed,
        "attention": attention_table(libraries),
    }
    numbers = values(step_rows[0], gpu_steps or gpu_operations, tables)
    return Result(STUDY, params, tables, numbers, claims(tables), [], started)


# --- measurements ----------------------------------------------------------------------------

STEPS = (
    *(
        "size",
        "precision",
        "implementation",
        "label",
        "family",
        "mode",
        "rows",
        "tokens_per_update",
    ),
    *("tokens_per_s", "tflops", "mfu", "matmul_share", "peak_bytes"),
)
OPERATIONS = (
    *("size", "kernel", "dtype", "implementation"),
    *("rate", "unit", "share", "relative_error", "peak_bytes"),
)
TIMES = ("ms", "ms_low", "ms_high", "ratio", "low", "high", "failed")


def steps_table(rows: list[Row]) -> pd.DataFrame:
    """One row per measured implementation of a training step; matmul_share is its share of the
    matrix-product rate measured in the same run."""
    return _compared(rows[1:], ("size", "precision"), STEPS)


def operations_table(rows: list[Row]) -> pd.DataFrame:
    """One row per measured implementation of an operation, forward and backward together."""
    return _compared(rows[1:], ("size", "kernel", "dtype"), OPERATIONS)


def _compared(rows: list[Row], keys: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """The rows as a table. `ratio` is the time over that of our fastest implementation with the
    same keys; low and high follow from the ranges of the repeats."""
    import pandas as pd

    ours: dict[tuple, Row] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        is_ours = row.get("family", row["implementation"]) == "ours" and "ms" in row
        if is_ours and row["ms"] < ours.get(key, {"ms": float("inf")})["ms"]:
            ours[key] = row
    compared = []
    for row in rows:
        base = ours.get(tuple(row[name] for name in keys))
        cells = {name: row.get(name) for name in (*columns, *TIMES)}
        if base and "ms" in row and row is not base:
            cells["ratio"] = row["ms"] / base["ms"]
            cells["low"] = row["ms_low"] / base["ms_high"]
            cells["high"] = row["ms_high"] / base["ms_low"]
        compared.append(cells)
    return pd.DataFrame(compared, columns=[*columns, *TIMES])


# --- a training step on a GPU ----------------------------------------------------------------

GPU_COLUMNS = (
    *("size", "parameters", "compiled", "ours", "mfu", "predicted_ratio", "state_gib"),
    *("paper_tokens_per_s", "paper_mfu"),
    *("implementation", "measured", "measured_mfu", "peak_gib", "baseline", "transformers"),
    *("ratio", "low", "high", "error_percent"),
)


def gpu_sizes_table(measured: pd.DataFrame) -> pd.DataFrame:
    """One row per official size.

    Predicted for one H100, whatever the tokens per update: tokens/s (`compiled`, `ours`), mfu,
    predicted_ratio. Computed: state_gib. From the paper's GPU-hours: paper_*. Measured: our fastest
    `implementation`, the `baseline` (the same model under torch.compile), the fastest of
    `transformers`, and error_percent, the measured speed relative to the prediction.
    """
    import pandas as pd

    peak = 1e12 * (cost_model.peak_tflops("H100") or 0)
    rows = []
    for size in GPU_SIZES:
        model, hours = OFFICIAL_SIZES[size].model(), recipe.HARDWARE[size].gpu_hours
        flop = flops_per_token(model, cost_model.SEQ_LEN)
        compiled, ours = (1e9 / cost_model.ns_per_token(model, w) for w in ("compiled", "ours"))
        paper = recipe.TOKENS / (3600 * hours) if hours else None
        cells: Row = {
            "size": size,
            "parameters": model.n_params,
            "compiled": compiled,
            "ours": ours,
            "mfu": ours * flop / peak,
            "predicted_ratio": ours / compiled,
            "state_gib": memory.state_bytes(model, "bf16") / memory.GIB,
            "paper_tokens_per_s": paper,
            "paper_mfu": paper and paper * flop / recipe.A100_PEAK,
        }
        timed = measured[(measured["size"] == size) & measured.tokens_per_s.notna()]
        timed = timed.sort_values("tokens_per_s", ascending=False)
        fastest = {family: times.iloc[0] for family, times in timed.groupby("family", sort=False)}
        compiled_rows = timed[(timed.family == "plain") & (timed["mode"] == "compile")]
        if "transformers" in fastest:
            cells["transformers"] = fastest["transformers"].tokens_per_s
        if len(compiled_rows):
            cells["baseline"] = compiled_rows.tokens_per_s.iloc[0]
            cells |= compiled_rows.iloc[0][["ratio", "low", "high"]].to_dict()
        if "ours" in fastest:
            best = fastest["ours"]
            tokens = int(best.tokens_per_update)
            predicted = cost_model.predicted_tokens_per_s(model, "ours", tokens)
            cells |= {
                "implementation": best.label,
                "measured": best.tokens_per_s,
                "measured_mfu": best.mfu,
                "peak_gib": best.peak_bytes / memory.GIB,
                "error_percent": 100 * (best.tokens_per_s / predicted - 1),
            }
        rows.append(cells)
    return pd.DataFrame(rows, columns=list(GPU_COLUMNS))


# --- single kernels on a GPU -----------------------------------------------------------------

BF16, FP32 = 2, 4
"""Bytes per element."""


@dataclass(frozen=True)
class Prediction:
    """Memory traffic of a kernel: `compiled` and `ours` give bytes per token over all layers."""

    kernel: str
    fuses: str
    cannot: str
    """Fusion that the compiler does not find."""
    compiled: Callable[[ModelConfig], float]
    ours: Callable[[ModelConfig], float]


PREDICTIONS = (
    Prediction(
        "linear_cross_entropy",
        "unembedding, softmax, loss and their gradients, in chunks of rows",
        "keep the logits out of memory: they are read once more",
        lambda c: 3 * BF16 * c.vocab_size,
        lambda c: 2 * BF16 * c.vocab_size,
    ),
    Prediction(
        "split_rotated",
        "rotation of queries and keys where they lie, and one packed gradient",
        "work in place: it writes new queries and keys, and joins three gradients",
        lambda c: c.n_layers * BF16 * (4 * c.d_model + 6 * c.d_model),
        lambda c: c.n_layers * BF16 * (4 * c.n_heads * c.rotary_dims + 6 * c.d_model),
    ),
    Prediction(
        "layer_norm_pair",
        "the sum of the block before, two LayerNorms of it, and their four parameter gradients",
        "sum the parameter gradients in the pass that makes dx: it reads three tensors again",
        lambda c: c.n_layers * c.d_model * (5 * FP32 + 7 * BF16 + FP32 + 2 * BF16),
        lambda c: c.n_layers * c.d_model * (5 * FP32 + 7 * BF16),
    ),
    Prediction(
        "bias_gelu_tanh",
        "bias and GELU, their backward, and the gradient of the bias",
        "sum the bias gradient in the pass that makes dx: it reads dx again",
        lambda c: c.n_layers * 4 * c.d_model * BF16 * 6,
        lambda c: c.n_layers * 4 * c.d_model * BF16 * 5,
    ),
)
KERNEL_SIZES = ("160m", "2.8b")
"""Sizes that get predictions even if they were not measured."""


def gpu_kernels_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Savings of our kernels per token, predicted and measured.

    Columns: size, kernel, compiled_bytes, ours_bytes, saved_ns, share_of_step, measured_ns.
    saved_ns is the predicted saving at the attainable copy rate; share_of_step relates it to the
    causal FLOP of a step at the attainable rate of matrix products. measured_ns is how much slower
    torch.compile was, over all layers.
    """
    import pandas as pd

    timed = measured.dropna(subset="ms").set_index(["size", "kernel", "implementation"]).ms
    rows = []
    for size in dict.fromkeys([*KERNEL_SIZES, *measured["size"]]):
        model = OFFICIAL_SIZES[size].model()
        least = flops_per_token(model, cost_model.SEQ_LEN) / cost_model.MATMUL / 1e3
        for p in PREDICTIONS:
            saved = (p.compiled(model) - p.ours(model)) / cost_model.COPY / 1e3
            both = [timed.get((size, p.kernel, name)) for name in (COMPILED, "ours")]
            layers = 1 if p.kernel == "linear_cross_entropy" else model.n_layers
            difference = None if None in both else layers * 1e6 * (both[0] - both[1]) / TOKENS
            rows.append(
                {
                    "size": size,
                    "kernel": p.kernel,
                    "compiled_bytes": p.compiled(model),
                    "ours_bytes": p.ours(model),
                    "saved_ns": saved,
                    "share_of_step": saved / least,
                    "measured_ns": difference,
                }
            )
    return pd.DataFrame(rows)


TOKENS = 32_768
"""Tokens per call of an operation timed on a GPU."""


def attention_table(rows: list[Row]) -> pd.DataFrame:
    """One row per head dim of the official sizes: the library in use, the TFLOP/s that the
    prediction assumes, and the fastest library measured, of all and of the reproducible ones."""
    import pandas as pd

    timed = [r for r in rows[1:] if "ms" in r and r["seq_len"] == cost_model.SEQ_LEN]
    by_dim = []
    for dim, (forward, backward) in cost_model.BEST_LIBRARY.items():
        of_dim = [r for r in timed if r["head_dim"] == dim]
        taken = FASTEST.get(dim, DEFAULT)
        cells: Row = {"head_dim": dim, "taken": taken, "forward": forward, "backward": backward}
        exact = [r for r in of_dim if r["bits_repeat"]]
        for name, choice in (("fastest", of_dim), ("repeatable", exact)):
            best: Row = max(choice, key=lambda r: r["tflops"], default={})
            cells |= {name: best.get("library"), f"{name}_tflops": best.get("tflops")}
        now = [r["tflops"] for r in of_dim if r["library"] == taken]
        cells["taken_tflops"] = max(now, default=None)
        by_dim.append(cells)
    return pd.DataFrame(by_dim)


# --- claims and values -----------------------------------------------------------------------


def least_ratio(frame: pd.DataFrame) -> Estimate | None:
    """The smallest ratio of a table, with its range."""
    timed = frame.dropna(subset="ratio")
    if timed.empty:
        return None
    row = timed.loc[timed.ratio.astype(float).idxmin()]
    return Estimate(float(row.ratio), float(row.low), float(row.high), len(timed), 1)


def _at_least(claim: str, e: Estimate | None, bound: float = 1.0) -> dict[str, Any]:
    """A claim that a ratio is at least `bound`."""
    verdict = NOT_TESTABLE
    if e and not e.low < bound <= e.high:
        verdict = "holds" if e.low >= bound else "does not hold"
    return claim_row(claim, "not measured", e, verdict)


def claims(tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Claims that the kernels are faster; each estimate is the worst measured case."""
    steps, operations, gpu = tables["steps"], tables["operations"], tables["gpu_operations"]
    libraries = steps[steps.family == "transformers"]
    compiled = gpu[(gpu.implementation == COMPILED) & (gpu.kernel != "attention")]
    misses = tables["gpu_sizes"].error_percent.dropna().astype(float).abs()
    miss = Estimate(misses.max(), misses.max(), misses.max(), len(misses), 1)
    return [
        _at_least(
            "On the CPU, an update is faster than every one of `transformers` in the same "
            "precision (smallest ratio)",
            least_ratio(libraries),
        ),
        _at_least(
            "On the CPU, every operation is faster than its formula written out in torch (smallest "
            "ratio)",
            least_ratio(operations[operations.implementation == "reference"]),
        ),
        _at_least(
            f"On a GPU, an update is at least {cost_model.GOAL:g} times as fast as that of the "
            "same model under torch.compile (smallest ratio)",
            least_ratio(tables["gpu_sizes"]),
            cost_model.GOAL,
        ),
        _at_least(
            "On a GPU, every kernel but attention is faster than its formula under torch.compile "
            "(smallest ratio)",
            least_ratio(compiled),
        ),
        claim_row(
            f"On a GPU, the speed of an update was predicted to within {WITHIN:g} % (largest miss, "
            "%)",
            "not measured",
            miss if len(misses) else None,
            "holds" if len(misses) and miss.value <= WITHIN else "does not hold",
        ),
    ]


def values(machine: Row, gpu: list[Row], tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Names and numbers quoted in the page's text."""
    libraries = tables["steps"][tables["steps"].family == "transformers"].dropna(subset="ratio")
    ratios, sizes = libraries.ratio.astype(float), tables["gpu_sizes"]
    return {
        "device": machine["device"],
        "torch": machine["torch"],
        "matmul": {p: 1e3 * v for p, v in machine["matmul_tflop_per_s"].items()},
        "tokens": int(tables["steps"].tokens_per_update.dropna().iloc[0]),
        "ratio_least": ratios.min(),
        "ratio_most": ratios.max(),
        "gpu": gpu[0]["device"] if gpu else NOT_MEASURED,
        "gain_least": sizes.predicted_ratio.min(),
        "gain_most": sizes.predicted_ratio.max(),
        "mfu_least": 100 * sizes.mfu.min(),
        "mfu_most": 100 * sizes.mfu.max(),
        "goal": cost_model.GOAL,
        "products": cost_model.MATMUL,
        "h100_copy": cost_model.COPY,
    }
