"""Figures and tables of the suite: loss curves, sizes, checks, and how often tokens are read."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from pythia_book import palette, style, svg
from pythia_book.corpora.occupations import INVENTED
from pythia_book.records import number_text
from pythia_book.style import BLUE, INK, MUTED, ORANGE, Drawing, Table
from pythia_book.tasks.associations import UNSEEN
from pythia_core.suite import DATA_ARMS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Result

ARM_TITLES = {"standard": "Standard text", "deduplicated": "Deduplicated text"}
READINGS = {
    ("standard", "joint"): "standard, one copy",
    ("deduplicated", "joint"): "deduplicated,\ncopies shuffled together",
    ("deduplicated", "separate"): "deduplicated,\none epoch after the other",
}


def _reading(arm: str, policy: str) -> str:
    return READINGS[arm, policy].replace("\n", " ")


TIMES = {"never": palette.PALE, "once": BLUE, "twice": palette.GOLD, "more often": INK}


@style.figure
def loss_curves(result: Result) -> Drawing:
    """Draw training loss against tokens read, with one panel per text and one line per size.

    Pale bands show how much another seed would move a curve.
    """
    losses = result.tables["losses"]
    sizes = result.params.size_list
    note = style.seed_note(result, "training_loss")
    with style.canvas(result, 2, 2.9, note, sharey=True) as (figure, axes):
        for ax, (arm, title) in zip(axes, ARM_TITLES.items(), strict=True):
            points = style.rows_where(losses.assign(value=losses.loss), arm=arm)
            style.seed_band(ax, result, points, "tokens", "training_loss")
            style.size_curves(ax, points, "tokens", sizes, marker="", linewidth=1.1)
            ax.set(xscale="log", title=title, xlabel="tokens read")
        axes[0].set_ylabel("training loss, nats per token")
        style.size_legend(figure, sizes)
        last = losses.groupby(["size", "arm"]).loss.last()
        words = f"Training loss of {len(last)} models, falling to {last.min():.2f} nats per token"
        return Drawing(figure, words)


@style.figure
def reading(result: Result) -> Drawing:
    """Draw how often the tokens of each text are read, and when tokens are read again.

    The first panel has the percentage of each text's tokens that are read never, once, twice and
    more often, with the same percentages for the Pile as paler bars. The second panel has, for each
    interval of training, the percentage of the interval's tokens that had been read before.
    """
    from matplotlib.colors import to_rgba

    reads, rereads = result.tables["reads"], result.tables["rereads"]
    kinds = [k for k in READINGS if len(style.rows_where(reads, arm=k[0], policy=k[1]))]
    with style.canvas(result, 2, 2.9, ratios=(1.1, 1)) as (figure, (bars, lines)):
        for i, (arm, policy) in enumerate(kinds):
            shares = style.rows_where(reads, arm=arm, policy=policy)
            for offset, column, alpha in ((0.18, "share", 1.0), (-0.18, "pile", 0.45)):
                left = 0.0
                text = "our text" if column == "share" else "the Pile"
                for times, value in zip(TIMES, 100 * shares[column], strict=True):
                    at, shade = len(kinds) - 1 - i + offset, TIMES[times]
                    faces = bars.barh(at, value, 0.32, left=left, label=f"{times}, {text}")
                    edge = MUTED if shade == palette.PALE else shade
                    faces[0].set(facecolor=to_rgba(shade, alpha), edgecolor=edge, linewidth=0.8)
                    left += value
        names = [READINGS[kind] for kind in reversed(kinds)]
        bars.set_yticks(range(len(kinds)), names)
        bars.set_xlim(0, 100)
        bars.set_xlabel("% of the tokens of the text (pale: the Pile, by its size)")
        bars.grid(axis="y", visible=False)
        blocks = {
            times: {"color": shade, "linewidth": 6, "solid_capstyle": "butt"}
            for times, shade in TIMES.items()
        }
        style.legend(figure, blocks, handlelength=1.2)
        dashes = {"joint": "-", "separate": (0, (4, 1.5))}
        colors, keys = {"standard": MUTED, "deduplicated": ORANGE}, {}
        for arm, policy in kinds:
            points = style.rows_where(rereads, arm=arm, policy=policy)
            points = points.assign(value=points.share)
            shape = {"linestyle": dashes[policy]}
            keys[_reading(arm, policy)] = {**shape, "color": colors[arm]}
            shape["name"] = _reading(arm, policy)
            style.curve(lines, points, "percent", colors[arm], 100, **shape)
        lines.set(xlim=(0, 100), xlabel="% of training")
        lines.set(ylim=(-3, 103), ylabel="% of a stretch read before")
        style.legend(figure, keys, handlelength=2.2)
        joint = style.rows_where(reads, arm="deduplicated", policy="joint")
        numbers = (f"{100 * share:.1f} %" for share in joint.share[:3])
        return Drawing(figure, "Tokens of the deduplicated text read 0, 1 and 2 times", numbers)


GROUP_STYLES = {INVENTED: (BLUE, "made-up nouns"), "occupations": (ORANGE, "occupations")}
"""Maps each group of nouns that is drawn to its color and label. Definitional nouns are left out,
because their shares of feminine pronouns (near 2 % and 98 %) would stretch the axes."""


@style.figure
def associations(result: Result) -> Drawing:
    """Draw the associations of nouns with pronouns that models learned, in unseen sentence frames.

    The first panel is about the largest model on the standard text. A point is a noun: x is the log
    odds of a feminine pronoun in the text, and y the log odds by the model. The second panel has,
    for each size and text, the slope of such points for the made-up nouns.
    """
    nouns, table = result.tables["nouns"], result.tables["associations"]
    sizes = result.params.size_list
    odds = result.measured.get("association", sizes[-1], DATA_ARMS[0], UNSEEN)
    slopes = style.rows_where(table, group=INVENTED, frames=UNSEEN)
    with style.canvas(result, 2, 2.9, ratios=(1, 1.25)) as (figure, (points, lines)):
        if odds is None:
            style.say(points, "not measured")
        for group, (color, label) in GROUP_STYLES.items() if odds is not None else ():
            of_group = nouns.group == group
            named = [str(noun) for noun in nouns.noun[of_group]]
            shape = {"color": color, "markersize": 3}
            (dots,) = points.plot(nouns.log_odds[of_group], odds[of_group], "o", **shape)
            svg.register(dots, svg.Series(label, points=named))
        points.set(
            xlabel="log odds of she/her in planted sentences",
            ylabel=f"log odds by the {sizes[-1]} model",
        )
        style.legend(
            points,
            {
                label: {"color": color, "marker": "o", "markersize": 3, "linestyle": ""}
                for color, label in GROUP_STYLES.values()
            },
        )
        marks = {arm: style.mark("o", arm != "standard") for arm in ARM_TITLES}
        style.size_points(lines, slopes, sizes, "arm", marks, factor=1)
        style.reference(lines, y=0)
        lines.set(xlabel="parameters", ylabel="slope (1: learned completely)")
        texts = {title: marks[arm] for arm, title in ARM_TITLES.items()}
        style.legend(lines, texts)
        standard = style.rows_where(slopes, arm="standard")
        numbers = [f"{r.size} {r.value:.3f}" for r in standard.itertuples()]
        return Drawing(figure, "Slope of the learned association, made-up nouns", numbers)


def models_table(result: Result) -> Table:
    """Return a table of our model sizes: shape, training parameters and losses at the end."""
    frame = result.tables["models"]
    return Table(_sizes(frame), f"The suite in miniature. {_reading_of(frame)}")


def official_table(result: Result) -> Table:
    """Return a table of the ten released sizes, like `models_table` but without losses."""
    frame = result.tables["official"]
    return Table(_sizes(frame), f"The released sizes. {_reading_of(frame)}")


def _reading_of(frame: pd.DataFrame) -> str:
    """Say how many tokens the models of a table of sizes read, in all and per update."""
    first = frame.iloc[0]
    return f"Every model reads {first.tokens:,} tokens, {first.batch_tokens:,} per update."


def _sizes(frame: pd.DataFrame) -> pd.DataFrame:
    """Rename the columns of a table of model sizes for readers, and format its numbers as text."""
    shown = frame.drop(columns=["batch_tokens", "tokens"]).rename(
        columns={
            "size": "Name",
            "layers": "Layers",
            "width": "Width",
            "heads": "Heads",
            "head_dim": "Head dim",
            "non_embedding": "Parameters without embeddings",
            "total": "In all",
            "lr_max": "Peak LR",
            "tokens_per_parameter": "Tokens per parameter (of all)",
            "loss_standard": "Final loss, standard",
            "loss_deduplicated": "Final loss, deduplicated",
        }
    )
    for name in shown.columns[1:]:
        losses = name.startswith("Final")
        shown[name] = [
            f"{v:.3f}" if losses else f"{v:g}" if name == "Peak LR" else number_text(v)
            for v in shown[name].tolist()
        ]
    return shown


def writing_table(result: Result) -> Table:
    """Return a table of what the smallest and the largest model write during training."""
    import pandas as pd

    frame = result.tables["writing"]
    cells = frame.assign(text=frame.prompt + frame.text.map(_continuation))
    rows, prompts = [], []
    for (prompt, step), texts in cells.groupby(["prompt", "step"], sort=False):
        rows.append({"Step": number_text(step)} | dict(zip(texts["size"], texts.text, strict=True)))
        prompts.append([(0, len(prompt))])
    caption = (
        "What the smallest and the largest model write after three prompts (bold) as training "
        "proceeds. Standard text, greedy decoding; a slash stands for line breaks."
    )
    sizes = frame["size"].unique()
    return Table(pd.DataFrame(rows), caption, strong=dict.fromkeys(sizes, prompts))


def _continuation(text: str) -> str:
    """Return a continuation on one line, to follow its prompt."""
    line = style.one_line(text)
    return f" / {line}" if text.startswith("\n") else f" {line}" if text[:1].isspace() else line


def batch_table(result: Result) -> Table:
    """Return a table of the documents in the first rows of a batch, and where they come from."""
    import pandas as pd

    rows = []
    for part in result.tables["batch"].itertuples():
        columns = f"{part.column}\u2013{part.column + part.columns - 1}"
        tokens = f"{part.offset:,}\u2013{part.offset + part.columns - 1:,} of {part.length:,}"
        rows.append(
            {
                "Row: columns": f"{part.row:,}: {columns}",
                "Document: tokens": f"{part.domain} {part.document:,}: {tokens}",
                "Begins with": style.one_line(part.text),
            }
        )
    caption = (
        "The first rows of a training batch, and the document that each part comes from. A row has "
        "one token more than the model reads: the last is only predicted."
    )
    return Table(pd.DataFrame(rows), caption)


def proofs_table(result: Result) -> Table:
    """Return a table of all checks of the suite, with the number of cases and failures of each."""
    frame = result.tables["proofs"].rename(
        columns={"check": "Check", "what": "What", "cases": "Cases", "failures": "Failures"}
    )
    frame["Cases"] = [number_text(v) for v in frame["Cases"].tolist()]
    return Table(frame, "What the studies rely on, checked")


HEADINGS = {
    "suite": "Suite",
    "data": "Data public",
    "order": "Order known",
    "checkpoints": "Checkpoints",
    "optimizer": "Optimizer states",
    "seeds": "Seeds",
    "license": "License",
}


class Suites:
    """A table that compares public suites of language models, shown as HTML.

    Each cell links to its sources, and a list below the table has all sources.
    """

    def __init__(self, result: Result) -> None:
        self.frame, self.sources = result.tables["suites"], result.tables["suite_sources"]
        self.read = result.values["suites_read"]

    def _repr_html_(self) -> str:
        numbers = {url: n for n, url in enumerate(dict.fromkeys(self.sources.url), 1)}
        head = "".join(f"<th>{heading}</th>" for heading in HEADINGS.values())
        body = []
        for row in self.frame.itertuples():
            own = self.sources[self.sources.suite == row.suite]
            about = f"{row.suite}, {row.year}: {row.sizes}; {row.models}"
            cells = []
            for cell, heading in HEADINGS.items():
                text = about if cell == "suite" else getattr(row, cell)
                of_cell = own[own.cell == ("about" if cell == "suite" else cell)]
                links = "".join(
                    f' <a href="{html.escape(s.url, quote=True)}" '
                    f'title="{html.escape(s.quote, quote=True)}">{numbers[s.url]}</a>'
                    for s in of_cell.drop_duplicates("url").itertuples()
                )
                links = f"<sup>{links}</sup>" if links else ""
                cells.append(f'<td data-label="{heading}">{html.escape(str(text))}{links}</td>')
            body.append(f"<tr>{''.join(cells)}</tr>")
        caption = (
            f"Suites of language models and what is public about them, from copies of pages made "
            f"around {self.read}. First column: year, sizes, number of models. Unproven: no page "
            "that was read supports a value. Raised numbers link to the sources."
        )
        items = "".join(
            f'<li><a href="{html.escape(url, quote=True)}">{html.escape(url)}</a></li>'
            for url in numbers
        )
        return (
            f'<table class="pythia-table suites"><caption>{caption}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
            f'<details class="sources"><summary>Sources</summary><ol>{items}</ol></details>'
        )

    def __repr__(self) -> str:
        return self.frame.to_string(index=False)


def suites_table(result: Result) -> Suites:
    """Return the table that compares Pythia with other public suites of language models."""
    return Suites(result)
