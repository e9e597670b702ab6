"""Figures and tables of the kernels study: shares of the ceilings, attention by library, choices.

`predictions()` needs no run: the book draws it whenever it is built. The others draw a result, and
say in words where it holds no measurement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book.records import number_text
from pythia_book.studies.kernels.params import ONE_OF_EVERY_HEAD_DIM
from pythia_book.studies.kernels.study import (
    COMPILED,
    COPY_GB_PER_S,
    MATMUL_TFLOP_PER_S,
    NOT_MEASURED,
    PREDICTIONS,
    SEQ_LEN,
    executed_products,
)
from pythia_book.studies.kernels.study import predictions as predicted
from pythia_book.style import INK, MUTED, Drawing, Table, footer, panels, reference, say, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import StudyResult as Result

COLOURS = {
    "ours": "#0072b2",
    "triton": "#0072b2",
    COMPILED: "#e69f00",
    "reference": MUTED,
    "torch": "#d55e00",
    "cudnn": "#009e73",
    "flash": "#cc79a7",
    "efficient": "#f0e442",
    "math": MUTED,
    "flash_attn": "#56b4e9",
    "liger": "#009e73",
}
NAMES = {COMPILED: "torch.compile", "triton": "ours (triton)"}
DASH = "\N{EN DASH}"
UNITS = {"GB/s": "of a copy", "TFLOP/s": "of a matrix product"}


def values() -> dict[str, str]:
    """Numbers of the page that no run has to give."""
    least, products = executed_products(64)
    return {
        "least_products": str(least),
        "products": str(products),
        "products_256": str(executed_products(256)[1]),
    }


def predictions() -> Table:
    """What each kernel fuses and should save, one row a kernel, at the first and last of the sizes
    that are measured; no run is needed."""
    import pandas as pd

    sizes = ONE_OF_EVERY_HEAD_DIM.split(",")
    shown = [sizes[1], sizes[-1]]
    frame = predicted(tuple(shown)).set_index(["kernel", "size"])
    rows = []
    for p in PREDICTIONS:
        row = {"kernel": p.kernel, "in one": p.fuses, "what a compiler does not": p.cannot}
        for size in shown:
            found = frame.loc[(p.kernel, size)]
            row[f"bytes saved a token, {size}"] = number_text(int(found.saved_bytes))
            row[f"ns a token, {size}"] = number_text(float(found.saved_ns))
            row[f"% of the least step, {size}"] = number_text(float(100 * found.share_of_floor))
        rows.append(row)
    caption = (
        "Predicted, not measured. Against torch.compile of the same formula, all layers, forward "
        f"and backward, rows of {SEQ_LEN:,} tokens; at {COPY_GB_PER_S / 1e3:g} TB/s and "
        f"{MATMUL_TFLOP_PER_S:g} TFLOP/s, what one H100 is known to reach."
    )
    return Table(pd.DataFrame(rows), caption)


def outcomes(result: Result) -> Table:
    """Every prediction with what was measured in its place."""
    import pandas as pd

    frame = result.tables["predictions"].rename(columns={"size": "model"})
    rows = [
        {
            "size": row.model,
            "kernel": row.kernel,
            "bytes a token, compiled": number_text(int(row.compiled_bytes)),
            "bytes a token, ours": number_text(int(row.ours_bytes)),
            "predicted ns a token": number_text(float(row.saved_ns)),
            "measured ns a token": "part of attention"
            if row.kernel == "attention (packed)"
            else _measured(row.measured_ns),
        }
        for row in frame.itertuples()
    ]
    copy = number_text(float(result.values["copy"])) if _on_a_card(result) else f"{COPY_GB_PER_S:g}"
    return Table(pd.DataFrame(rows), f"Saved against torch.compile. {_card(result)}; {copy} GB/s")


def roofline(result: Result) -> Drawing:
    """Shares of the ceiling that a kernel is bound by: ours, torch.compile, the plain formula."""
    frame = result.tables["measurements"]
    contenders = ("ours", COMPILED, "reference", "liger")
    both = frame[(frame.direction == "both") & frame.contender.isin(contenders)]
    both = both[both.kernel != "attention"]
    with style():
        figure, axes = panels(2, 3.2, footer(result, _card(result)), ratios=[4, 1])
        said: list[str] = []
        for ax, (unit, of) in zip(axes, UNITS.items(), strict=True):
            mine = both[both.unit == unit].dropna(subset=["share"])
            ax.set_title(unit)
            said += _bars(ax, mine, "kernel", contenders, _nothing(result))
            ax.set_ylabel(f"share {of}")
        if said:
            _legend(axes[0], [c for c in contenders if c in set(both.contender)])
        return Drawing(figure, "Share of the ceiling: " + (", ".join(said) or _nothing(result)))


def attention(result: Result) -> Drawing:
    """Attention by head dim and library, forward and backward apart."""
    frame = result.tables["measurements"]
    frame = frame[frame.kernel == "attention"].dropna(subset=["share"])
    frame = frame[~frame.contender.isin(("ours", COMPILED, "reference", "math"))]
    libraries = [c for c in COLOURS if c in set(frame.contender)]
    with style():
        figure, axes = panels(2, 3.0, footer(result, _card(result)), sharey=True)
        said: list[str] = []
        for ax, direction in zip(axes, ("forward", "backward"), strict=True):
            ax.set_title(direction)
            mine = frame[frame.direction == direction].astype({"head_dim": int})
            drawn = _bars(ax, mine, "head_dim", libraries, _nothing(result))
            said += [f"{direction} {words}" for words in drawn]
            ax.set_xlabel("head dim")
        axes[0].set_ylabel("share of a matrix product")
        if said:
            _legend(axes[0], libraries)
        return Drawing(figure, "Attention: " + (", ".join(said) or _nothing(result)))


def choices(result: Result) -> Table:
    """Which attention a head dim should take, and takes."""
    import pandas as pd

    rows = [
        {
            "head dim": str(row.head_dim),
            "fastest": _nothing(result) if pd.isna(row.fastest) else row.fastest,
            "TFLOP/s": _measured(row.rate),
            "taken now": row.taken,
            "faster than that by": DASH
            if pd.isna(row.gain)
            else f"{number_text(float(100 * row.gain))} %",
            "measured": row.measured or DASH,
        }
        for row in result.tables["choices"].itertuples()
    ]
    return Table(pd.DataFrame(rows), f"Forward and backward together. {_card(result)}")


def measurements(result: Result) -> Table:
    """Ours and all others at every size, both directions; what failed says why."""
    import pandas as pd

    frame = result.tables["measurements"].rename(columns={"size": "model"})
    frame = frame[frame.direction == "both"]
    if not _on_a_card(result):  # one size shows what there will be
        frame = frame[frame.model == frame.model.iloc[0]]
    rows = []
    for (size, kernel), mine in frame.groupby(["model", "kernel"], sort=False):
        name = "ours" if "ours" in set(mine.contender) else "triton"
        ours, others = mine[mine.contender == name].iloc[0], mine[mine.contender != name]
        rows.append(
            {
                "size": size,
                "kernel": kernel,
                "ours, ms": _timed(ours),
                "rate": f"{number_text(ours.rate)} {ours.unit}" if pd.notna(ours.rate) else DASH,
                "error": f"{ours.relative_error:.1e}" if pd.notna(ours.relative_error) else DASH,
                "peak, GB": number_text(ours.peak_bytes / 1e9) if pd.notna(ours.ms) else DASH,
                "others, ms": "; ".join(
                    f"{NAMES.get(other.contender, other.contender)} {_timed(other)}"
                    for other in others.itertuples()
                )
                if _on_a_card(result)
                else ", ".join(NAMES.get(name, name) for name in others.contender),
            }
        )
    where = "" if _on_a_card(result) else f" {_card(result)}."
    return Table(
        pd.DataFrame(rows), f"Forward and backward together. {result.values['method']}.{where}"
    )


def _timed(row: Any) -> str:
    """Milliseconds of a measurement, median and range, or why there are none."""
    import pandas as pd

    if pd.isna(row.ms):
        return f"({row.failed})"
    return f"{number_text(row.ms)} [{number_text(row.ms_low)}, {number_text(row.ms_high)}]"


def _on_a_card(result: Result) -> bool:
    return result.values["card"] != NOT_MEASURED


def _card(result: Result) -> str:
    return f"measured on {result.values['card']}" if _on_a_card(result) else NOT_MEASURED


def _nothing(result: Result) -> str:
    return "nothing of this ran" if _on_a_card(result) else NOT_MEASURED


def _measured(value: float | None) -> str:
    import pandas as pd

    return "not yet measured" if pd.isna(value) else number_text(float(value))


def _bars(
    ax: Axes, frame: pd.DataFrame, group: str, contenders: Sequence[str], nothing: str
) -> list[str]:
    """Bars of the mean share over sizes, a point a size, side by side; what was drawn, in words."""
    if frame.empty:
        say(ax, nothing)
        return []
    there = [c for c in contenders if c in set(frame.contender)]
    groups = list(dict.fromkeys(frame.sort_values(group)[group] if group == "head_dim"
                                else frame[group]))  # fmt: skip
    width, said = 0.8 / len(there), []
    for i, name in enumerate(groups):
        for j, contender in enumerate(there):
            mine = frame[(frame[group] == name) & (frame.contender == contender)]
            if mine.empty:
                continue
            at, mean = i + width * (j - (len(there) - 1) / 2), float(mine.share.mean())
            ax.bar([at], [mean], 0.92 * width, color=COLOURS[contender], alpha=0.75)
            ax.plot([at] * len(mine), mine.share, color=INK, marker=".", linestyle="", markersize=2)
            said.append(f"{name} {NAMES.get(contender, contender)} {mean:.2f}")
    reference(ax, 1)
    ax.set_xticks(range(len(groups)), [str(g).replace("_", "\n") for g in groups])
    ax.grid(axis="x", visible=False)
    ax.set_ylim(bottom=0)
    return said


def _legend(ax: Axes, contenders: list[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[c], alpha=0.75, label=NAMES.get(c, c)) for c in contenders]
    ax.legend(handles=handles, loc="upper left", ncols=2, handlelength=1.2)
