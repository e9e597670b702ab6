"""What the page on throughput shows: rates and utilisation by size, memory, how speed scales.

Predictions are lines and open marks, measurements filled ones. Where nothing was measured the page
says so; a prediction is never drawn as a result. `values`, `predicted` and `parts` take nothing and
are called while the book is built, so that the page predicts without a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book.bench import cost_model
from pythia_book.records import number_text
from pythia_book.released import recipe
from pythia_book.studies.throughput.params import SIZES
from pythia_book.studies.throughput.study import (
    NOT_MEASURED,
    USABLE_GIB,
    goals_table,
    predicted_table,
)
from pythia_book.style import INK, MUTED, Drawing, Table, footer, panels, say, size_colour, style

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import StudyResult as Result

DASH = "\N{EN DASH}"
COLOURS = {"ours": "#0072b2", "plain": "#d55e00", "transformers": "#009e73"}
WAYS = {
    "compiled": ("torch.compile, predicted", COLOURS["plain"], (0, (4, 1.5))),
    "ours": ("ours, predicted", COLOURS["ours"], (0, (4, 1.5))),
    "ideal": ("every part at its best", MUTED, (0, (1, 1.2))),
}
MEASURED = {
    "ours": ("ours", "o"),
    "plain": ("the same model, plain torch", "s"),
    "transformers": ("transformers", "^"),
}


def _state(result: Result) -> str:
    return f"Measured: {result.values['status']}" if _any(result) else "Not yet measured"


def _any(result: Result) -> bool:
    return bool(result.tables["measured"].tokens_per_s.notna().any())


def _best(result: Result) -> pd.DataFrame:
    """The fastest measurement of every side and size, on the batch that all share."""
    frame = result.tables["measured"]
    frame = frame[frame.purpose.isin(["compare", "price"]) & frame.tokens_per_s.notna()]
    return frame.sort_values("tokens_per_s").groupby(["size", "who"]).last().reset_index()


def rates(result: Result) -> Drawing:
    """Tokens a second, and the share of the data sheet, by size."""
    predicted, goals = result.tables["predicted"], result.tables["goals"]
    sizes = list(goals["size"])
    best = _best(result)
    with style():
        note = f"Lines: predictions for one H100; diamonds: goals. {_state(result)}"
        figure, (speed, share) = panels(2, 3.4, footer(result, note), ratios=(1.1, 1))
        for way, (label, colour, dashes) in WAYS.items():
            mine = predicted[predicted.way == way]
            x = [sizes.index(size) for size in mine["size"]]
            look = {"color": colour, "linestyle": dashes, "linewidth": 1.2}
            speed.plot(x, mine.tokens_per_s, label=label, **look)
            share.plot(x, 100 * mine.mfu_causal, **look)
        speed.plot(range(len(sizes)), goals.target, linestyle="", marker="D", color=COLOURS["ours"],
                   markerfacecolor="white", label="goal")  # fmt: skip
        paper = goals[goals.paper_hours.notna()]
        x = [sizes.index(size) for size in paper["size"]]
        look = {"linestyle": "", "marker": "x", "color": INK}
        speed.plot(x, paper.paper_tokens_per_s, label="the paper's, on an A100", **look)
        share.plot(x, 100 * paper.paper_mfu, **look)
        for who, (label, mark) in MEASURED.items():
            mine = best[best.who == who]
            if len(mine):
                x = [sizes.index(size) for size in mine["size"]]
                look = {"linestyle": "", "marker": mark, "color": COLOURS[who]}
                speed.plot(x, mine.tokens_per_s, label=f"{label}, measured", **look)
                share.plot(x, 100 * mine.mfu_causal.astype(float), **look)
        for ax in (speed, share):
            ax.set_xticks(range(len(sizes)), sizes)
            ax.set_xlabel("model size")
        speed.set(yscale="log", ylabel="tokens per second and GPU")
        share.set(ylabel="MFU, %, causal", ylim=(0, 100))
        if not _any(result):
            share.text(0.5, 0.97, f"{NOT_MEASURED}: predictions only", transform=share.transAxes,
                       ha="center", va="top", fontsize=8, color=MUTED)  # fmt: skip
        figure.legend(loc="outside upper left", ncols=3)
        aims = ", ".join(f"{s} {n:,.0f}" for s, n in zip(sizes, goals.target, strict=True))
        words = f"Tokens per second and utilisation by size; {_state(result)}; goals: {aims}"
        return Drawing(figure, words)


def memory(result: Result) -> Drawing:
    """State and activations by size as estimated, and measured peaks."""
    goals, best = result.tables["goals"], _best(result)
    best = best[best.peak_gib.notna()]
    sizes = list(goals["size"])
    with style():
        note = f"{USABLE_GIB} GiB can be used on an H100; rows of 2,048 tokens"
        figure, (held, rows) = panels(2, 2.9, footer(result, note))
        held.bar(range(len(sizes)), goals.state_gib, width=0.55, color="#c9d8e4",
                 label="state, computed")  # fmt: skip
        for who, (label, mark) in MEASURED.items():
            mine = best[best.who == who]
            if len(mine):
                held.plot([sizes.index(s) for s in mine["size"]], mine.peak_gib.astype(float),
                          linestyle="", marker=mark, color=COLOURS[who],
                          label=f"{label}, peak")  # fmt: skip
        held.axhline(USABLE_GIB, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        held.set(ylabel="GiB", title="Memory", ylim=(0, 90))
        figure.legend(loc="outside upper left", ncols=4)
        rows.plot(range(len(sizes)), goals.largest_rows, linestyle="", marker="o",
                  color=COLOURS["ours"], markerfacecolor="white")  # fmt: skip
        rows.set(yscale="log", ylabel="rows", title="Largest micro-batch, by estimate")
        for ax in (held, rows):
            ax.set_xticks(range(len(sizes)), sizes)
            ax.set_xlabel("model size")
            ax.grid(axis="x", visible=False)
        words = "Memory of weights, gradients and moments by size: " + ", ".join(
            f"{size} {gib:.1f} GiB" for size, gib in zip(sizes, goals.state_gib, strict=True)
        )
        return Drawing(figure, f"{words}; peaks: {_state(result)}")


def scaling(result: Result) -> Drawing:
    """Measured speed against rows of a micro-batch, length of rows, micro-batches of an update, as
    a multiple of the speed at the shape that all contenders of a size are compared at."""
    frame = result.tables["measured"]
    frame = frame[frame.tokens_per_s.notna()]
    axes_of = {
        "rows": ("rows of a micro-batch", "rows"),
        "seq_len": ("tokens of a row", "seq_len"),
        "accumulate": ("micro-batches of an update", "micro_batches"),
    }
    with style():
        figure, axes = panels(3, 2.7, footer(result, _state(result)), sharey=True)
        top = 1.0
        for ax, (purpose, (label, x)) in zip(axes, axes_of.items(), strict=True):
            mine = frame[frame.purpose == purpose]
            if mine.empty:
                say(ax, f"{label}:\n{NOT_MEASURED}")
                continue
            ticks = set()
            for (size, who, contender), line in mine.groupby(["size", "who", "contender"]):
                every = _with_comparison(frame, line, x)
                ticks |= set(every[x])
                top = max(top, every.times.max())
                ax.plot(every[x], every.times, marker=MEASURED[who][1], color=size_colour(size),
                        linestyle="-" if who == "ours" else (0, (1, 1.2)),
                        label=f"{size}, {contender}")  # fmt: skip
            ax.set(xscale="log", xlabel=label)
            ax.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)], rotation=60)
            ax.minorticks_off()
            ax.legend(loc="lower right", fontsize=6.5)
        if not frame.empty:
            axes[0].set(ylim=(0, 1.08 * top), ylabel="times the compared speed")
        return Drawing(figure, f"How speed grows with the shape of an update; {_state(result)}")


def _with_comparison(frame: pd.DataFrame, line: pd.DataFrame, x: str) -> pd.DataFrame:
    """A contender's rows by `x` with `times`; that of the comparison too where `x` differs."""
    import pandas as pd

    first = line.iloc[0]
    same = (frame["size"] == first["size"]) & (frame.contender == first.contender)
    shared = frame[same & frame.purpose.isin(["compare", "price"])].head(1)
    base = float((line if shared.empty else shared).tokens_per_s.iloc[0])
    every = line if x == "rows" else pd.concat([line, shared])
    return every.sort_values(x).assign(times=lambda rows: rows.tokens_per_s.astype(float) / base)


# --- predictions: the page has these without a run -------------------------------------------


def values() -> dict[str, str]:
    """What the page's prose takes from the predictions."""
    frame = predicted_table(SIZES)
    ours, compiled = (frame[frame.way == way] for way in ("ours", "compiled"))
    gains = compiled.ns_per_token.to_numpy() / ours.ns_per_token.to_numpy()
    found = {
        "goal": cost_model.GOAL,
        "sheet": cost_model.peak_tflops("H100"),
        "products": cost_model.MATMUL,
        "copy": cost_model.COPY,
        "gain_least": gains.min(),
        "gain_most": gains.max(),
        "mfu_least": 100 * ours.mfu_causal.min(),
        "mfu_most": 100 * ours.mfu_causal.max(),
    }
    return {name: number_text(float(value)) for name, value in found.items()}


def predicted() -> Table:
    """Predicted rates and goals by size, and the paper's own rates."""
    import pandas as pd

    frame = predicted_table(SIZES).set_index(["size", "way"])
    goals = goals_table(SIZES).set_index("size")
    rows = [
        {
            "size": size,
            "torch.compile": _thousands(frame.loc[(size, "compiled")].tokens_per_s),
            "ours": _thousands(frame.loc[(size, "ours")].tokens_per_s),
            "at its best": _thousands(frame.loc[(size, "ideal")].tokens_per_s),
            "MFU of ours": _text(frame.loc[(size, "ours")].mfu_causal, percent=True),
            "goal": _thousands(goals.loc[size].target),
            "hours at goal": _text(goals.loc[size].hours),
            "A100-hours": _text(goals.loc[size].paper_hours),
            "A100": _thousands(goals.loc[size].paper_tokens_per_s),
            "MFU of A100": _text(goals.loc[size].paper_mfu, percent=True),
        }
        for size in SIZES
    ]
    caption = (
        "Thousands of tokens per second and GPU. First four: predicted for one H100. Hours at "
        f"goal: all {recipe.TOKENS:,} tokens on one H100. A100: the paper's own, from its "
        "GPU-hours. MFU: causal."
    )
    return Table(pd.DataFrame(rows), caption)


def parts() -> Table:
    """Where a token's time goes, as predicted under torch.compile and in our step."""
    import pandas as pd

    names = {
        "gemm": "layers' products",
        "logits": "vocabulary's products",
        "attention": "attention",
        "elementwise": "passes over memory",
        "loss": "loss",
    }
    rows = []
    for size, mine in predicted_table(SIZES).groupby("size", sort=False):
        mine = mine.set_index("way")
        pair = (mine.loc["compiled"], mine.loc["ours"])
        cells = {label: " / ".join(_text(p[key]) for p in pair) for key, label in names.items()}
        total = " / ".join(_text(p.ns_per_token) for p in pair)
        rows.append({"size": size, **cells, "ns a token": total})
    return Table(pd.DataFrame(rows), "Predicted nanoseconds a token: torch.compile / ours.")


# --- tables ----------------------------------------------------------------------------------


def _text(value: Any, decimals: int = 0, percent: bool = False) -> str:
    if value is None or value != value:
        return DASH
    value = 100 * float(value) if percent else float(value)
    return number_text(value, decimals) + (" %" if percent else "")


def _thousands(value: Any) -> str:
    return DASH if value is None or value != value else number_text(float(value) / 1000)


def summary(result: Result) -> Table:
    """A size a row: predictions, goal, and what was measured."""
    import pandas as pd

    predicted = result.tables["predicted"].set_index(["way", "size"])
    goals = result.tables["goals"].set_index("size")
    rows = []
    for row in result.tables["compared"].to_dict("records"):
        size, ratio = row["size"], row["ratio"]
        ways = {way: predicted.loc[(way, size)] for way in ("compiled", "ours")}
        ratio = DASH if ratio is None or ratio != ratio else f"{ratio:.2f}"
        rows.append(
            {
                "size": size,
                "torch.compile": _thousands(ways["compiled"].tokens_per_s),
                "ours": _thousands(ways["ours"].tokens_per_s),
                "MFU": _text(ways["ours"].mfu_causal, percent=True),
                "goal": _thousands(goals.loc[size].target),
                "ours, measured": _thousands(row["ours"]),
                "plain torch, compiled": _thousands(row["rival"]),
                "transformers": _thousands(row["library"]),
                "ratio (predicted)": f"{ratio} ({row['predicted_ratio']:.2f})",
            }
        )
    caption = (
        "Thousands of tokens per second on one GPU. First three: predicted, H100, updates of two "
        "million tokens. "
        + (f"Measured: {result.values['status']}." if _any(result) else "Measured: not yet.")
    )
    return Table(pd.DataFrame(rows), caption)


def ways_table(result: Result) -> Table:
    """Every measurement on the batch that all contenders of a size share."""
    import pandas as pd

    frame = result.tables["measured"]
    frame = frame[frame.purpose.isin(["compare", "price"])]
    rows = [
        {
            "size": row["size"],
            "contender": row["contender"],
            "rows": _text(row["rows"]),
            "tokens/s": _text(row["tokens_per_s"]),
            "predicted": _text(row["predicted"]),
            "MFU causal": _text(row["mfu_causal"], percent=True),
            "MFU full": _text(row["mfu_full"], percent=True),
            "of products": _text(row["products_share"], percent=True),
            "of attainable": _text(row["attainable_share"], percent=True),
            "GiB": _text(row["peak_gib"], 1),
            "note": row["note"],
        }
        for row in frame.to_dict("records")
    ]
    if not rows:
        rows = [{"contender": f"{NOT_MEASURED}; to measure:", "": result.values["bench"]}]
    caption = "Every contender on the batch that all of a size share; medians of three repeats."
    return Table(pd.DataFrame(rows), caption)
