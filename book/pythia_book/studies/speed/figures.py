"""Draws the tables and figures of the page on speed.

In figures about GPUs, lines are predictions, dots are measurements, and crosses are computed from
the GPU-hours in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pythia_book import palette, style
from pythia_book.bench.decisions import THRESHOLD, TRITON_FILES
from pythia_book.records import number_text
from pythia_book.studies.speed.study import DESCRIPTIONS, KERNEL_SIZES, NO_GPU, PARTS
from pythia_book.style import BLUE, DASH, GREEN, INK, MUTED, ORANGE, Drawing, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

OURS, BASELINE, TRANSFORMERS = BLUE, ORANGE, GREEN
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50)
PART_NAMES = {
    "products of layers": ("gemm",),
    "products with the vocabulary, and the loss": ("logits", "loss"),
    "attention": ("attention",),
    "passes over activations": ("elementwise",),
    "gradients and optimizer": ("gradients", "optimizer"),
}
"""Maps the labels of a figure to parts of a training step (study.PARTS)."""
PART_COLORS = dict(zip(PART_NAMES, (BLUE, GREEN, palette.PINK, palette.GOLD, MUTED), strict=True))
GPU_MEASURED = (
    "ours, measured",
    "our fastest mode",
    "torch.compile, measured",
    "transformers, measured",
    "ratio, measured",
)
"""The columns of `gpu_sizes` with measurements."""
PALETTE = (BASELINE, TRANSFORMERS, palette.PINK, palette.GOLD, INK, MUTED)


def _text(value: Any, decimals: int = 0, percent: bool = False, factor: float = 1) -> str:
    """Return `value` * `factor` as text, as a percentage if `percent`; a dash for no value."""
    if value is None or value != value:
        return DASH
    return number_text(factor * (100 if percent else 1) * float(value), decimals) + " %" * percent


def _ratio(row: Mapping[str, Any]) -> str:
    """Format the ratio in a row, with its range over repeats. If there is no ratio, say why."""
    if row["ratio"] is None or row["ratio"] != row["ratio"]:
        return f"({row['failed']})" if row.get("failed") else DASH
    return f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Make a table of the rows, with a dash in every empty cell."""
    import pandas as pd

    return pd.DataFrame(rows).astype(object).fillna(DASH)


# --- measured on the CPU ---------------------------------------------------------------------


def steps(result: Result) -> Table:
    """Return a table of training-step times on the CPU, one row per size and precision."""
    rows = []
    for (size, precision), steps in result.tables["steps"].groupby(
        ["size", "precision"], sort=False
    ):
        ours = steps[steps.family == "ours"].iloc[0]
        cells = {
            "size": size,
            "precision": precision,
            "ours, tokens/s": _text(ours.tokens_per_s),
            "of matrix products": _text(ours.matmul_share, percent=True),
        }
        others = steps[steps.family == "transformers"].to_dict("records")
        rows.append(
            cells | {row["label"].removeprefix("transformers "): _ratio(row) for row in others}
        )
    values = result.values
    rates = ", ".join(f"{v:,.0f} {name}" for name, v in values["matmul"].items())
    caption = (
        f"Measured on {values['device']}, one thread, torch {values['torch']}; "
        f"{values['tokens']:,} tokens per update. Last columns: the time of `transformers` over "
        f"ours, median and range of the repeats. Matrix products, GFLOP/s: {rates}."
    )
    return Table(_frame(rows), caption)


def operations(result: Result) -> Table:
    """Return a table of our operations' times on the CPU, with torch's times divided by ours."""
    rows = []
    keys = ["size", "kernel", "dtype"]
    for (size, kernel, dtype), group in result.tables["operations"].groupby(keys, sort=False):
        group = group.set_index("implementation")
        ours = group.loc["ours"]
        rows.append(
            {
                "size": size,
                "operation": kernel,
                "precision": dtype,
                "ours, ms": _text(ours.ms, 2),
                "of the ceiling": _text(ours.share, percent=True),
                "error": f"{ours.relative_error:.0e}",
                "formula": _ratio(group.loc["reference"]),
                "torch's own": _ratio(group.loc["torch"]) if "torch" in group.index else DASH,
            }
        )
    caption = (
        "Measured on the same CPU, forward and backward together. Ceiling: the rate of a large "
        "copy or, for loss and attention, of a matrix product in the same run and precision; for "
        "attention always in fp32, since our code multiplies in fp32 there. Error: against fp64. "
        "Last columns: the time of the formula written out in torch, and of torch's own operation, "
        "over ours; median and range of the repeats."
    )
    return Table(_frame(rows), caption)


@style.figure
def ratios(result: Result) -> Drawing:
    """Draw the time of other implementations on the CPU, divided by our implementation's time."""
    tables = result.tables
    other_steps = tables["steps"][tables["steps"].family == "transformers"].assign(
        group=lambda f: f["size"] + "\n" + f.precision,
        series=lambda f: f.label.str.removeprefix("transformers "),
    )
    other_operations = tables["operations"][tables["operations"].implementation != "ours"].assign(
        group=lambda f: f.kernel.str.replace("linear_cross_entropy", "loss").str.replace("_", "\n"),
        series=lambda f: f.implementation.map({"reference": "formula", "torch": "torch's own"}),
    )
    note = f"measured on {result.values['device']}, one thread; bars: range of the repeats"
    with style.canvas(result, 2, 2.9, note, ratios=(1, 1.2)) as (figure, axes):
        words = []
        for ax, frame, title in (
            (axes[0], other_steps, "Training step: transformers"),
            (axes[1], other_operations, "Operations: plain torch"),
        ):
            ax.set_title(title)
            words += _points(ax, frame.dropna(subset="ratio"))
            style.reference(ax, 1)
        axes[0].set_ylabel("time, times ours")
        return Drawing(figure, "Time over ours on the CPU", words)


def _points(ax: Axes, frame: pd.DataFrame) -> list[str]:
    """Draw a mark for each measurement; return the values as text."""
    groups, series = list(dict.fromkeys(frame.group)), list(dict.fromkeys(frame.series))
    words, keys = [], {}
    for j, name in enumerate(series):
        points = style.rows_where(frame, series=name)
        shift = 0.6 * ((j + 0.5) / len(series) - 0.5)
        at = [groups.index(group) + shift for group in points.group]
        shape = {"linestyle": "", "marker": "o", "name": name}
        keys[name] = {"linestyle": "", "marker": "o", "color": PALETTE[j]}
        points = points.assign(at=at, value=points.ratio)
        style.curve(ax, points, "at", PALETTE[j], bars=True, **shape)
        words += [
            f"{' '.join(group.split())}, {name} {ratio:.2f}"
            for group, ratio in zip(points.group, points.ratio, strict=True)
        ]
    style.legend(ax, keys)
    style.category_ticks(ax, groups)
    low, high = 0.8 * min(1, frame.low.min()), 1.25 * frame.high.max()
    ax.set(yscale="log", ylim=(low, high))
    ticks = [tick for tick in TICKS if low <= tick <= high]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    return words


# --- predicted for a GPU ---------------------------------------------------------------------


def _measured(result: Result) -> str:
    """Return a sentence that names the measured GPU, or says that no GPU has been measured."""
    gpu = result.values["gpu"]
    return f"Measured: {'not yet' if gpu == NO_GPU else gpu}."


def gpu_sizes(result: Result) -> Table:
    """Return the table of predicted and measured training speeds on one GPU, by size."""
    rows = [
        {
            "size": row["size"],
            "torch.compile": _text(row["compiled"], factor=1e-3),
            "ours": _text(row["ours"], factor=1e-3),
            "ratio": f"{row['predicted_ratio']:.2f}",
            "MFU": _text(row["mfu"], percent=True),
            "A100, the paper's": _text(row["paper_tokens_per_s"], factor=1e-3),
            "MFU, the paper's": _text(row["paper_mfu"], percent=True),
            "ours, measured": _text(row["measured"], factor=1e-3),
            "our fastest mode": row["implementation"] or DASH,
            "torch.compile, measured": _text(row["baseline"], factor=1e-3),
            "transformers, measured": _text(row["transformers"], factor=1e-3),
            "ratio, measured": _ratio(row),
        }
        for row in result.tables["gpu_sizes"].to_dict("records")
    ]
    caption = (
        "Thousands of tokens per second on one GPU. Columns 2 to 5: predicted, not measured, for "
        "one H100 of 80 GB; the paper's: from its GPU-hours, on clusters of A100s. MFU counts "
        "causal attention. "
        f"{_measured(result)}"
    )
    return Table(_shown(rows, result, GPU_MEASURED), caption)


@style.figure
def gpu_rates(result: Result) -> Drawing:
    """Draw speed and utilization on one GPU by size, and the predicted parts of a step."""
    frame = result.tables["gpu_sizes"]
    sizes, x = list(frame["size"]), range(len(frame))
    dashed, mark = {"linestyle": (0, (4, 1.5)), "linewidth": 1.2}, {"linestyle": "", "marker": "o"}
    note = f"lines: predicted for one H100, not measured. {_measured(result)}"
    with style.canvas(result, 3, 3.0, note) as (figure, (speed, share, parts)):
        speed.plot(x, frame.compiled, color=BASELINE, label="torch.compile, predicted", **dashed)
        speed.plot(x, frame.ours, color=OURS, label="ours, predicted", **dashed)
        share.plot(x, 100 * frame.mfu, color=OURS, **dashed)
        cross = {"color": INK, "linestyle": "", "marker": "x"}
        speed.plot(x, frame.paper_tokens_per_s.astype(float), label="the paper's A100s", **cross)
        share.plot(x, 100 * frame.paper_mfu.astype(float), **cross)
        total, below = frame[list(PARTS)].sum(axis=1), 0.0 * frame.ours
        for part, color in PART_COLORS.items():
            height = 100 * frame[list(PART_NAMES[part])].sum(axis=1) / total
            parts.bar(x, height, bottom=below, width=0.7, color=color, label=part)
            below += height
        measured = {}
        for column, color, label in (
            ("measured", OURS, "ours, measured"),
            ("baseline", BASELINE, "torch.compile, measured"),
            ("transformers", TRANSFORMERS, "transformers, measured"),
        ):
            if frame[column].notna().any():
                speed.plot(x, frame[column].astype(float), color=color, label=label, **mark)
                measured[label] = {"color": color, **mark}
        share.plot(x, 100 * frame.measured_mfu.astype(float), color=OURS, **mark)
        for ax in (speed, share, parts):
            ax.set_xticks(x, sizes, rotation=60)
            ax.set_xlabel("size")
        speed.set(yscale="log", ylabel="tokens per second")
        share.set(ylabel="MFU, %, causal", ylim=(0, 100))
        parts.set(ylabel="% of the time of our step, predicted", ylim=(0, 100))
        keys = {
            "torch.compile, predicted": {"color": BASELINE, **dashed},
            "ours, predicted": {"color": OURS, **dashed},
            "the paper's A100s": cross,
            **measured,
            **{part: {"color": color, "linewidth": 6} for part, color in PART_COLORS.items()},
        }
        style.legend(figure, keys)
        words = ", ".join(f"{s} {n:,.0f}" for s, n in zip(sizes, frame.ours, strict=True))
        text = f"Predicted tokens per second of ours on an H100: {words}. {_measured(result)}"
        return Drawing(figure, text)


def gpu_kernels(result: Result) -> Table:
    """Return a table: what each Triton kernel fuses and should save, and what was decided."""
    predicted = result.tables["gpu_kernels"].set_index(["kernel", "size"])
    decided = result.tables["decisions"].set_index("subject")
    rows = []
    for kernel, (fuses, reason) in DESCRIPTIONS.items():
        decision = decided.loc[TRITON_FILES[kernel]]
        of_sizes = predicted.loc[kernel].loc[list(KERNEL_SIZES)]
        shares = [f"{size}: {_text(x, 1, True)}" for size, x in of_sizes.share_of_step.items()]
        ratio = of_sizes.ratio.prod() ** (1 / len(of_sizes))
        rows.append(
            {
                "kernel": kernel,
                "in one pass": fuses,
                "why it should be faster than torch.compile": reason,
                "share of our step saved, predicted": ", ".join(shares),
                "ratio, predicted": f"{ratio:.2f}: {'keep' if ratio >= THRESHOLD else 'delete'}",
                "ratio, measured": _text(decision.value, 2),
                "decision": _outcome(decision),
            }
        )
    caption = (
        "Ratio: the time of torch.compile for the same formula over ours, forward and backward, "
        "both replayed from CUDA graphs; predicted: geometric mean over the sizes. "
        f"Rule: {decided.loc['gelu_triton'].rule}; for the loss, "
        f"{decided.loc['cross_entropy_triton'].rule}. {_measured(result)}"
    )
    return Table(_shown(rows, result, ["ratio, measured"]), caption)


def _outcome(decision: pd.Series) -> str:
    """Format the outcome of a decision, with the numbers behind it."""
    return f"{decision.outcome} ({decision.note})" if decision.note else decision.outcome


def attention(result: Result) -> Table:
    """Return a table of attention speeds by head dim, and what was decided."""
    decided = result.tables["decisions"].set_index("subject")
    rows = []
    for row in result.tables["attention"].itertuples():
        decision = decided.loc[f"attention at head dim {row.head_dim}"]
        rows.append(
            {
                "head dim": str(row.head_dim),
                "used now": row.taken,
                "estimated, forward / backward": f"{row.forward} / {row.backward}",
                "used now, measured": _text(row.taken_tflops),
                "fastest, measured": _rate(row.fastest, row.fastest_tflops),
                "fastest deterministic": _rate(row.repeatable, row.repeatable_tflops),
                "decision": _outcome(decision),
            }
        )
    own = decided.loc["attention_triton"]
    caption = (
        "TFLOP/s of causal attention on rows of 2,048 tokens. Estimated: what the predictions "
        f"assume on an H100. Rule: {decided.loc['attention at head dim 64'].rule}. Our own Triton "
        f"attention: {_outcome(own)}; rule: {own.rule}. {_measured(result)}"
    )
    measured = ["used now, measured", "fastest, measured", "fastest deterministic"]
    return Table(_shown(rows, result, measured), caption)


def _shown(rows: list[dict[str, Any]], result: Result, measured: Sequence[str]) -> pd.DataFrame:
    """Make a table of the rows, without the `measured` columns if no GPU was measured."""
    return _frame(rows).drop(columns=list(measured) if result.values["gpu"] == NO_GPU else [])


def _rate(backend: str | None, tflops: float | None) -> str:
    """Return an attention library and its TFLOP/s as text; a dash without a library."""
    return f"{backend} {_text(tflops)}" if backend else DASH
