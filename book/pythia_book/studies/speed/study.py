"""Measures training speed on the CPU, and compares predictions for a GPU with GPU measurements.

On the CPU, the study times a training step and its operations with one thread (pythia_book.bench).
GPU measurements are read from results/gpu-check, where the command `gpu-check` writes them. Those
of dry runs are ignored.

pythia_book.bench.cost_model predicts the speed of a training step on a GPU, and the memory traffic
of our kernels and of the code that torch.compile generates. pythia_book.bench.decisions has the
rules by which measurements decide which kernels stay. The Pythia paper makes no claim about any of
this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pythia_book.bench import cost_model
from pythia_book.bench.decisions import THRESHOLD, decisions
from pythia_book.bench.rows import COMPILED, Row, fastest_steps, gpu_folder, measured_rows
from pythia_book.conduct import conduct
from pythia_book.records import number_text
from pythia_book.released import recipe
from pythia_book.stats import Estimate
from pythia_book.studies.speed.params import STUDY, Params
from pythia_book.study import Measurements, Origin
from pythia_book.verdicts import NOT_MEASURED, Claim, passes, untestable
from pythia_core.kernels.attention_backends import DEFAULT, FASTEST
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.metrics import flops_per_token
from pythia_core.util.workers import one_thread

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Analysis, Result, Tables

PRECISIONS = ("fp32", "bf16")
GPU_FILES = {"steps": "train", "operations": "kernels", "attention": "attention"}
"""Maps each kind of GPU measurement to the file that `gpu-check` writes."""
OWN_NAMES = {"gelu": "GELU", "layer_norm": "LayerNorm"}
"""Maps operations to what the page calls torch's own versions of them."""
NO_GPU = "none"
"""Shown instead of a GPU's name if none was measured."""
H100_BYTES = 80e9
"""The memory of an H100."""
GPU_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b")
"""The sizes that fit on one H100."""
WITHIN = 15.0
"""A prediction is correct if it misses by at most this many percent."""


def run(params: Params, progress: bool = True) -> Result:
    """Measure the CPU, read GPU measurements, and compare the GPU measurements to predictions."""
    return conduct(STUDY, params, partial(measure, params, progress), analyze)


def measure(params: Params, progress: bool = True) -> Measurements:
    """Time training steps and operations on one CPU thread, and read the last GPU measurements.

    There are no arrays. The facts `steps` and `operations` (on the CPU), `gpu_steps`,
    `gpu_operations` and `gpu_attention` (on the GPU) are lists of rows from pythia_book.bench. The
    first row of each list describes the machine.
    """
    from pythia_book.bench.kernels import bench_kernels
    from pythia_book.bench.train import bench_train

    smoke = params.scale == "smoke"
    with one_thread():
        steps = list(
            bench_train(
                params.size_list,
                precisions=PRECISIONS,
                compiled=() if smoke else PRECISIONS,
                rounds=1 if smoke else 5,
                progress=progress,
            )
        )
        operations = list(
            bench_kernels(
                params.size_list,
                seconds=0.0 if smoke else 0.3,
                device="cpu",
                precisions=PRECISIONS,
                calls=1 if smoke else 5,
            )
        )
    facts = {"steps": steps, "operations": operations}
    for name, kind in (("steps", "train"), ("operations", "operation"), ("attention", "attention")):
        path = gpu_folder() / f"{GPU_FILES[name]}.jsonl"
        facts[f"gpu_{name}"] = measured_rows(path, kind)
    facts["gpu_steps"][1:] = fastest_steps(facts["gpu_steps"][1:])
    return Measurements({}, json.loads(json.dumps(facts)), origin=Origin(device={"threads": 1}))


def analyze(measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and checks from the measurements; `released` is not used."""
    facts = measured.facts
    gpu_steps, gpu_operations = facts["gpu_steps"], facts["gpu_operations"]
    steps, operations = steps_table(facts["steps"]), operations_table(facts["operations"])
    timed_steps, timed = steps_table(gpu_steps), operations_table(gpu_operations)
    tables = {
        "steps": steps,
        "operations": operations,
        "gpu_sizes": gpu_sizes_table(timed_steps),
        "gpu_steps": timed_steps,
        "gpu_kernels": gpu_kernels_table(),
        "gpu_operations": timed,
        "attention": attention_table(facts["gpu_attention"]),
        "decisions": decisions_table(gpu_operations[1:], facts["gpu_attention"][1:]),
    }
    numbers = values(facts["steps"][0], gpu_steps or gpu_operations, tables)
    return tables, numbers, claims(tables)


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
        "micro_rows",
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
    """Return a table of the timed implementations of a training step.

    The columns are STEPS and TIMES (see `_compared`). `matmul_share` is the speed as a fraction of
    the speed of matrix products in the same measurement. The first of `rows` describes the machine.
    """
    return _compared(rows[1:], ("size", "precision"), STEPS)


def operations_table(rows: list[Row]) -> pd.DataFrame:
    """Return a table of the implementations of operations, timed forward and backward together.

    The columns are OPERATIONS and TIMES (see `_compared`). The first of `rows` describes the
    machine. On a CPU, our attention multiplies in fp32 whatever the precision of its input (see
    native.c), so its `share` is relative to the rate of fp32 products.
    """
    table = _compared(rows[1:], ("size", "kernel", "dtype"), OPERATIONS)
    fp32 = rows[0]["matmul_tflop_per_s"].get("fp32") if rows else None  # only known of CPUs
    if fp32:
        native = (table.kernel == "attention") & (table.implementation == "ours")
        table.loc[native, "share"] = table.rate / fp32
    return table


def _compared(rows: list[Row], keys: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Return measurements as a table with the given columns and TIMES.

    `ratio` is a time divided by the time of our fastest implementation with equal `keys`, which has
    no ratio itself. `low` and `high` are the extreme ratios within the ranges of the two times.
    """
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

PARTS = ("gemm", "logits", "attention", "elementwise", "loss", "gradients", "optimizer")
"""The parts of a training step, in the order of `cost_model.parts`."""
GPU_COLUMNS = (
    *("size", "parameters", "compiled", "ours", "mfu", "predicted_ratio"),
    *("micro_rows", "compiled_micro_rows"),
    *PARTS,
    *("paper_tokens_per_s", "paper_mfu"),
    *("implementation", "measured", "measured_mfu", "baseline", "transformers"),
    *("ratio", "low", "high", "error_percent"),
)


def gpu_sizes_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Compare predicted and measured speeds of training on one GPU, with a row for each size.

    Predicted for one H100 and updates of 2M tokens:
    `compiled`, `ours`: tokens/s of torch.compile and of our code;
    `mfu`: utilization by our code, as a fraction of peak FLOP/s;
    `predicted_ratio`: `ours` divided by `compiled`;
    `micro_rows`, `compiled_micro_rows`: rows per micro-batch that should fit, ours and compiled;
    PARTS: nanoseconds per token of the parts of our step.

    Computed:
    `paper_tokens_per_s`, `paper_mfu`: speed and utilization per A100, from the paper's GPU-hours.

    Measured, from the argument `measured`, a table of `steps_table`:
    `implementation`: our fastest; `measured`, `measured_mfu`: its tokens/s and utilization;
    `baseline`, `transformers`: tokens/s of torch.compile and of the fastest transformers variant;
    `ratio`, `low`, `high`: the time of `baseline` divided by our time, with its range;
    `error_percent`: by how many percent `measured` exceeds the prediction for the same number of
        tokens per update and per micro-batch.
    """
    import pandas as pd

    from pythia_book.bench import train

    peak = 1e12 * (cost_model.peak_tflops("H100") or 0)
    rows = []
    for size in GPU_SIZES:
        model, hours = OFFICIAL_SIZES[size].model(), recipe.HARDWARE[size].gpu_hours
        flop = flops_per_token(model, cost_model.SEQ_LEN)
        job = train.Job(size, (), "cuda")
        tokens = {
            name: train.estimated_rows(implementation, job, H100_BYTES) * cost_model.SEQ_LEN
            for name, implementation in (("compiled", train.BASELINE), ("ours", train.GRAPH))
        }
        compiled, ours = (
            cost_model.predicted_tokens_per_s(model, name, micro_tokens=n)
            for name, n in tokens.items()
        )
        optimizer = 1e9 * cost_model.optimizer_seconds(model) / cost_model.UPDATE_TOKENS
        paper = recipe.TOKENS / (3600 * hours) if hours else None
        cells: Row = {
            "size": size,
            "parameters": model.n_params,
            "compiled": compiled,
            "ours": ours,
            "mfu": ours * flop / peak,
            "predicted_ratio": ours / compiled,
            "micro_rows": tokens["ours"] // cost_model.SEQ_LEN,
            "compiled_micro_rows": tokens["compiled"] // cost_model.SEQ_LEN,
            **cost_model.parts(model, "ours", micro_tokens=tokens["ours"]),
            "optimizer": optimizer,
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
            predicted = cost_model.predicted_tokens_per_s(
                model,
                "ours",
                int(best.tokens_per_update),
                int(best.micro_rows) * cost_model.SEQ_LEN,
            )
            cells |= {
                "implementation": best.label,
                "measured": best.tokens_per_s,
                "measured_mfu": best.mfu,
                "error_percent": 100 * (best.tokens_per_s / predicted - 1),
            }
        rows.append(cells)
    return pd.DataFrame(rows, columns=list(GPU_COLUMNS))


# --- single kernels on a GPU -----------------------------------------------------------------

DESCRIPTIONS = {
    "linear_cross_entropy": (
        "unembedding, softmax, loss and their gradients, in chunks of rows",
        "the logits are never all in memory, and are read once less",
    ),
    "split_rotated": (
        "rotation of queries and keys in place, one packed gradient, the gradient of the bias",
        "writes no new queries and keys, and joins no gradients",
    ),
    "layer_norm_pair": (
        "the residual sum, two LayerNorms of it, and the gradients of their four parameters",
        "it should not be, if the compiler fuses the formula",
    ),
    "bias_gelu_tanh": (
        "bias and GELU, their backward, and the gradient of the bias",
        "sums the gradient of the bias in the pass that computes dx",
    ),
    "adamw": (
        "Adam, weight decay and the new copy in bf16; a flag on the device skips the update",
        "it should not be, if the compiler fuses the formula",
    ),
}
"""Maps a kernel to what it fuses, and to why it should be faster than torch.compile, in words."""
KERNEL_SIZES = ("160m", "2.8b")
"""The sizes at which kernels are compared."""


def gpu_kernels_table() -> pd.DataFrame:
    """Predict what our kernels save over those of torch.compile, per token, in all layers.

    `size`, `kernel`;
    `compiled_bytes`, `ours_bytes`: memory traffic;
    `saved_ns`: the time of the difference in bytes;
    `share_of_step`: `saved_ns` as a fraction of the predicted time of our step;
    `ratio`: the time of torch.compile divided by that of our kernel.
    """
    import pandas as pd

    rows = []
    for size in KERNEL_SIZES:
        model = OFFICIAL_SIZES[size].model()
        step = cost_model.ns_per_token(model, "ours")
        for kernel in DESCRIPTIONS:
            cells: Row = {"size": size, "kernel": kernel}
            compiled, ours = (
                cost_model.kernel_bytes(kernel, model, name) for name in ("compiled", "ours")
            )
            if compiled is not None and ours is not None:
                saved = (compiled - ours) / cost_model.BANDWIDTH / 1e3
                cells |= {"compiled_bytes": compiled, "ours_bytes": ours, "saved_ns": saved}
                cells["share_of_step"] = saved / step
            rows.append({**cells, "ratio": cost_model.predicted_ratio(kernel, model)})
    return pd.DataFrame(rows)


def attention_table(rows: list[Row]) -> pd.DataFrame:
    """Compare attention libraries on a GPU, with a row for each `head_dim` of the official sizes.

    `taken`, `taken_tflops`: the library in use, and its TFLOP/s with deterministic kernels;
    `forward`, `backward`: the TFLOP/s that the cost model assumes;
    `fastest`, `fastest_tflops`: the fastest library, with any kernels;
    `repeatable`, `repeatable_tflops`: the fastest library that gives the same bits every time.

    The first of `rows` describes the machine.
    """
    import pandas as pd

    timed = [r for r in rows[1:] if "ms" in r and r["seq_len"] == cost_model.SEQ_LEN]
    by_dim = []
    for dim, (forward, backward) in cost_model.ATTENTION_TFLOPS.items():
        of_dim = [r for r in timed if r["head_dim"] == dim]
        taken = FASTEST.get(dim, DEFAULT)
        cells: Row = {"head_dim": dim, "taken": taken, "forward": forward, "backward": backward}
        exact = [r for r in of_dim if r["bits_repeat"]]
        for name, choice in (("fastest", of_dim), ("repeatable", exact)):
            best: Row = max(choice, key=lambda r: r["tflops"], default={})
            cells |= {name: best.get("library"), f"{name}_tflops": best.get("tflops")}
        now = [r["tflops"] for r in of_dim if r["library"] == taken and r["deterministic"]]
        cells["taken_tflops"] = max(now, default=None)
        by_dim.append(cells)
    return pd.DataFrame(by_dim)


def decisions_table(operations: list[Row], attention: list[Row]) -> pd.DataFrame:
    """Return the decisions on kernels and attention libraries (see bench.decisions)."""
    import pandas as pd

    columns = ["subject", "rule", "value", "outcome", "note"]
    return pd.DataFrame(decisions(operations, attention), columns=columns)


# --- claims and values -----------------------------------------------------------------------


def least_ratio(frame: pd.DataFrame) -> Estimate | None:
    """Return the smallest ratio in a table, with its range over repeats; None without ratios."""
    timed = frame.dropna(subset="ratio")
    if timed.empty:
        return None
    row = timed.loc[timed.ratio.astype(float).idxmin()]
    return Estimate(float(row.ratio), float(row.low), float(row.high), len(timed), 1)


def _at_least(text: str, e: Estimate | None, bound: float = 1.0) -> Claim:
    """Return a check that other code takes at least `bound` times as long as our code.

    `e` is the smallest ratio of times, with its range over repeats.
    """
    secures = "what this page says of our kernels"
    if e is None:
        return Claim(text, secures, untestable(NOT_MEASURED), kind="check")
    note = (
        f"smallest of {e.n_items} ratios {e.value:.2f}, range of its repeats {e.low:.2f} to "
        f"{e.high:.2f}"
    )
    if e.low < bound <= e.high:
        test = untestable(
            f"the range of the repeats includes {bound:g}, and ranges are not confidence intervals",
            note=note,
        )
    else:
        test = passes(e.low >= bound, note)
    return Claim(text, secures, test, kind="check")


def claims(tables: Tables) -> list[Claim]:
    """Return the checks that our code is fast, and as fast as predicted, in the worst cases."""
    steps, operations, gpu = tables["steps"], tables["operations"], tables["gpu_operations"]
    libraries = steps[steps.family == "transformers"]
    compiled = gpu[(gpu.implementation == COMPILED) & (gpu.kernel != "attention")]
    misses = tables["gpu_sizes"].error_percent.dropna().astype(float).abs()
    predicted = untestable(NOT_MEASURED)
    if len(misses):
        note = f"largest of {len(misses)} misses {misses.max():.1f} %"
        predicted = passes(misses.max() <= WITHIN, note)
    return [
        _at_least(
            "On the CPU, an update is faster than with Hugging Face `transformers`, run in any of "
            "the three ways, in the same precision.",
            least_ratio(libraries),
        ),
        _at_least(
            "On the CPU, every operation is faster than its formula written out in torch.",
            least_ratio(operations[operations.implementation == "reference"]),
        ),
        _at_least(
            "On a GPU, an update is faster than that of the same model under torch.compile.",
            least_ratio(tables["gpu_sizes"]),
        ),
        _at_least(
            f"On a GPU, every kernel but attention is at least {THRESHOLD:g} times as fast as its "
            "formula under torch.compile.",
            least_ratio(compiled),
            THRESHOLD,
        ),
        Claim(
            f"On a GPU, the speed of an update was predicted to within {WITHIN:g} %.",
            "the predictions of this page",
            predicted,
            kind="check",
        ),
    ]


def values(machine: Row, gpu: list[Row], tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Map names to the numbers that the page quotes.

    `ratio_PRECISION` is the time of the fastest step of `transformers` relative to ours, and
    `products_PRECISION` the percentage of our step that its matrix products take, both as text,
    by size. `own_faster` lists torch's own operations that are faster than ours, with their times.
    `vocabulary_SIZE` is the predicted percentage of our step on a GPU that goes into the products
    with the vocabulary and the loss. `machine` describes the CPU; the first row of `gpu`, if there
    is one, the GPU.
    """
    steps = tables["steps"].dropna(subset="ratio")
    texts = {}
    for precision in PRECISIONS:
        for name, family, factor, unit, decimals in (
            ("ratio", "transformers", 1, "", 2),
            ("products", "products", 100, " %", 0),
        ):
            rows = steps[(steps.family == family) & (steps.precision == precision)]
            times = factor * rows.ratio.astype(float).groupby(rows["size"], sort=False).min()
            texts[f"{name}_{precision}"] = " and ".join(
                f"{number_text(time, decimals)}{unit} at {size}" for size, time in times.items()
            )
    own = tables["operations"][tables["operations"].implementation == "torch"]
    own = own[own.ratio.astype(float) < 1].sort_values("ratio")
    sizes = tables["gpu_sizes"]
    parts = sizes.set_index("size")[list(PARTS)]
    vocabulary = 100 * (parts.logits + parts.loss) / parts.sum(axis=1)
    return {
        "device": machine["device"],
        "torch": machine["torch"],
        "matmul": {p: 1e3 * v for p, v in machine["matmul_tflop_per_s"].items()},
        "tokens": int(tables["steps"].tokens_per_update.dropna().iloc[0]),
        **texts,
        "own_faster": ", ".join(
            f"{OWN_NAMES.get(row.kernel, row.kernel)} in {row.dtype} at {row.size} "
            f"({number_text(row.ratio, 2)} of our time)"
            for row in own.itertuples()
        )
        or "none",
        **{f"vocabulary_{size}": f"{vocabulary[size]:.0f}" for size in ("14m", "70m")},
        "gpu": gpu[0]["device"] if gpu else NO_GPU,
        "gain_least": sizes.predicted_ratio.min(),
        "gain_most": sizes.predicted_ratio.max(),
        "mfu_least": 100 * sizes.mfu.min(),
        "mfu_most": 100 * sizes.mfu.max(),
        "threshold": THRESHOLD,
        "products": cost_model.MATMUL,
        "h100_copy": cost_model.COPY,
        "h100_passes": cost_model.BANDWIDTH,
    }
