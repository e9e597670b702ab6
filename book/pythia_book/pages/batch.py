"""Draws the figures of the page on how a batch is made, and computes its data and numbers.

The figures follow one row from the documents into a batch, in the order of `order.RowOrder`. The
examples are the training corpus of the scale `smoke`, if cached, and a few sentences. The page's
script computes the same order in the browser, and tests check that the script and library agree.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.pages import hls_color
from pythia_book.style import INK, Drawing, figure, narrow, sheet, style
from pythia_core.data.order import RowOrder, batch_hash, epochs_needed, samples_requested
from pythia_core.errors import PythiaError
from pythia_core.util.files import cache_dir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOOTER = "drawn by book/pythia_book/pages/batch.py whenever the book is built"
PALENESS = 0.45
"""Opacity of colors under text, so that text can be read on light and dark pages."""
DEDUPED_TOKENS = 207_000_000_000
"""The number of tokens in the deduplicated Pile (paper section 2.2)."""
TEXTS = (
    "The ferry leaves at nine. Nobody has told the gulls.",
    "To bake bread you need flour, water, salt and time; of these, time is the hard one.",
    "A red kite hangs over the field and waits.",
    "for i in range(3): print(i)",
    "Dear Ada, the apples are in the cellar and the key is under the blue pot.",
    "In winter the lake carries a cart; in spring it does not carry a hat.",
    "Q: Which way to the station? A: Downhill, then ask again.",
    "The train was late, so we learned the names of all the clouds.",
    "Rain.",
    "She counted the steps of the tower twice and got two answers, both of them right.",
    "Moss grows on the north side, said the guide, and walked south.",
    "Leave the lamp on; the cat reads at night.",
)
TINY_ROW, TINY_BATCH, TINY_VOCABULARY = 8, 4, 320


@dataclass(frozen=True)
class Example:
    """A small corpus with its training order."""

    name: str
    sizes: list[int]
    """The number of tokens of each document."""
    seed: int
    epochs: int
    seq_len: int
    batch_size: int
    steps: int
    pieces: dict[int, str]
    """Maps each token id in `rows` or `documents` to its text; the end of a document to ""."""
    rows: list[list[int]]
    """The rows of the first `steps` batches."""
    documents: list[list[int]]
    """The token ids of each document; empty if there are too many documents for a page."""

    @property
    def order(self) -> RowOrder:
        """The order of the training rows of the corpus."""
        return RowOrder(self.sizes, self.seq_len, self.seed, self.epochs)

    def batch(self, step: int) -> np.ndarray:
        """Return the batch int[batch_size, seq_len + 1] of the update after `step`."""
        return np.array(self.rows[step * self.batch_size : (step + 1) * self.batch_size])


def _pieces(ids: set[int], tokenizer: Any, eod: int) -> dict[int, str]:
    """Map each token id to its text; the end-of-document token, `eod`, maps to ""."""
    from pythia_core.data.tokenizer import token_bytes

    pieces = token_bytes(tokenizer)
    return {
        i: "" if i == eod else (pieces[i] or b"?").decode("utf-8", "replace") for i in sorted(ids)
    }


@functools.cache
def tiny() -> Example:
    """Return the example made of the sentences in TEXTS, with a tokenizer trained on them."""
    from pythia_core.data.tokenizer import EOD, encode_documents, train_bpe

    tokenizer = train_bpe(TEXTS * 2, TINY_VOCABULARY)
    eod = tokenizer.token_to_id(EOD)
    documents = [[*ids, eod] for ids in encode_documents(tokenizer, list(TEXTS))]
    sizes = [len(ids) for ids in documents]
    order = RowOrder(sizes, TINY_ROW)
    stream = np.concatenate([documents[d] for d in order.documents])
    steps = order.n_rows // TINY_BATCH
    starts = order.shuffle[: steps * TINY_BATCH].astype(int) * TINY_ROW
    rows = stream[starts[:, None] + np.arange(TINY_ROW + 1)].tolist()
    pieces = _pieces(set(stream.tolist()), tokenizer, eod)
    return Example(
        "twelve short texts", sizes, order.seed, 1, TINY_ROW, TINY_BATCH, steps, pieces, rows,
        documents,
    )  # fmt: skip


@functools.cache
def real() -> Example:
    """Return an example from the data of the scale `smoke`, or `tiny()` if no data are cached.

    Nothing is fetched, so that the book can be built offline.
    """
    from pythia_book.corpora.pocket_pile import wheels_needed
    from pythia_book.corpora.wheels import WHEELS
    from pythia_core.data.prepare import prepare
    from pythia_core.suite import scale_named

    scale = scale_named("smoke")
    folder = cache_dir() / "wheels"
    if not all((folder / WHEELS[n].file).is_file() for n in wheels_needed(scale.data.domains)):
        return tiny()
    try:
        data = prepare(scale.data, progress=False)
        rows = data.rows.rows(0, scale.steps * scale.batch_size)
    except (PythiaError, OSError):  # a damaged cache must not break the page
        return tiny()
    return Example(
        "what a run at scale smoke reads",
        data.tokens.sizes.tolist(),
        data.config.order_seed,
        data.config.epochs,
        data.config.seq_len,
        scale.batch_size,
        scale.steps,
        _pieces(set(np.unique(rows).tolist()), data.tokenizer, data.eod_id),
        rows.tolist(),
        [],
    )


def script_data(name: str) -> dict[str, Any]:
    """Return the JSON data from which the page's script draws the figure "follow" or "shuffle"."""
    example = real() if name == "follow" else tiny()
    return {
        "sizes": example.sizes,
        "seed": example.seed,
        "epochs": example.epochs,
        "seqLen": example.seq_len,
        "batchSize": example.batch_size,
        "steps": example.steps,
        "pieces": example.pieces,
        "rows": example.rows if name == "follow" else [],
        "documents": example.documents if name == "shuffle" else [],
        "first": row_to_show(example),
        "hashes": [batch_hash(example.batch(step)) for step in range(example.steps)],
    }


@functools.cache
def values() -> dict[str, str]:
    """Map the name of each number in the page's prose to the number as text."""
    from pythia_book.released.pile import N_ROWS, RELEASED
    from pythia_book.released.recipe import BATCH_ROWS, SEQ_LEN
    from pythia_core.training.schedule import OFFICIAL_STEPS

    example, shards = real(), RELEASED["pile-standard"].shards
    n_rows = samples_requested(OFFICIAL_STEPS, BATCH_ROWS)
    tokens = {"standard": RELEASED["pile-seed0"].shards.total // 2, "deduped": DEDUPED_TOKENS}
    numbers = {
        "example": example.name,
        "documents": f"{len(example.sizes):,}",
        "tokens": f"{sum(example.sizes):,}",
        "seq_len": f"{example.seq_len}",
        "batch_size": f"{example.batch_size}",
        "stream_rows": f"{example.order.n_rows:,}",
        "row_bytes": f"{(SEQ_LEN + 1) * 2:,}",
        "batch_bytes": f"{(SEQ_LEN + 1) * 2 * BATCH_ROWS:,}",
        "shards": f"{len(shards.sizes)}",
        "all_rows": f"{N_ROWS:,}",
        "all_gigabytes": f"{shards.total / 1e9:,.0f}",
        "asked": f"{n_rows:,}",
    }
    for arm, total in tokens.items():
        epochs = epochs_needed(total, SEQ_LEN, n_rows)
        share = N_ROWS / ((epochs * total - 1) // SEQ_LEN)
        numbers[f"{arm}_billions"] = f"{total / 1e9:.0f}"
        numbers[f"{arm}_epochs"] = f"{epochs}"
        numbers[f"{arm}_share"] = f"{100 * share:.1f} %"
        for times in range(epochs + 1):
            chance = math.comb(epochs, times) * share**times * (1 - share) ** (epochs - times)
            numbers[f"{arm}_seen_{times}"] = f"{100 * chance:.1f} %"
    repeats = {seed: first_repeat(tiny(), seed) for seed in (1234, *range(1, 10))}
    few, many = min(repeats.values()), max(repeats.values())
    numbers |= {"repeat": f"{repeats[1234]}", "repeats": f"{few} and {many}"}
    whole = tiny().order
    numbers["rows_left"] = f"{whole.n_rows % TINY_BATCH}"
    numbers["tokens_left"] = f"{sum(tiny().sizes) - 1 - whole.n_rows * TINY_ROW}"
    return numbers


def first_repeat(example: Example, seed: int, epochs: int = 2) -> int:
    """Return the step of the first batch that reads some token of a document a second time."""
    order = RowOrder(example.sizes, example.seq_len, seed, epochs)
    seen: set[tuple[int, int]] = set()
    for rank, row in enumerate(order.shuffle.tolist()):
        parts = spans(order, example.sizes, row)
        inputs = [(document, k) for document, first, stop in parts for k in range(first, stop)][:-1]
        if not seen.isdisjoint(inputs):
            return rank // example.batch_size
        seen.update(inputs)
    raise PythiaError("no token is read twice in this order; use more epochs")


# --- drawings --------------------------------------------------------------------------------


def hue(document: int, documents: int) -> str:
    """Return the color of a document as "#rrggbb". The page's script uses the same colors."""
    return hls_color(20 + 300 * document / max(documents - 1, 1), 0.62, 0.6)


def spans(order: RowOrder, sizes: list[int], row: int) -> list[tuple[int, int, int]]:
    """List the documents that have tokens in a row of the stream of shuffled documents.

    Return (document, first, stop) for each. The row has tokens `first` to `stop` - 1 of `document`.
    """
    first, stop = row * order.seq_len, (row + 1) * order.seq_len + 1
    lengths = np.array(sizes)[order.documents]
    ends = np.cumsum(lengths)
    parts = []
    for i in range(int(np.searchsorted(ends, first, "right")), len(ends)):
        low = int(ends[i] - lengths[i])
        if low >= stop:
            break
        if lengths[i]:
            document = int(order.documents[i])
            parts.append((document, max(first - low, 0), min(stop, int(ends[i])) - low))
    return parts


def _strip(ax: Axes, y: float, parts: list[tuple[float, float, int]], n: int, labels: bool) -> None:
    """Draw a horizontal strip of colored parts, each (start, width, document), at height `y`.

    The number of documents, `n`, determines the colors. `labels` adds the document numbers.
    """
    from matplotlib.patches import Rectangle

    for start, width, document in parts:
        ax.add_patch(
            Rectangle((start, y), width, 0.7, facecolor=hue(document, n), edgecolor="white",
                      linewidth=0.4 if labels else 0, alpha=PALENESS)
        )  # fmt: skip
        if labels and width > (0.06 if narrow() else 0.03):
            middle = start + width / 2, y + 0.34
            ax.text(*middle, f"{document}", ha="center", va="center")


def row_to_show(example: Example) -> tuple[int, int]:
    """Find the row with tokens of the most documents; of several such rows, the first.

    Return (step, index): the row has this index in the batch of the update after `step`.
    """
    numbers = example.order.shuffle[: len(example.rows)].tolist()
    parts = [len(spans(example.order, example.sizes, number)) for number in numbers]
    return divmod(parts.index(max(parts)), example.batch_size)


def _picture(example: Example) -> Drawing:
    """Draw how documents become a batch: the file, the shuffled stream, the rows and one batch."""
    from matplotlib.patches import Rectangle

    order, n, S = example.order, len(example.sizes), example.seq_len
    sizes = np.array(example.sizes)
    total, labels = order.epochs * sizes.sum(), n < 40
    step, index = row_to_show(example)
    row = int(order.shuffle[step * example.batch_size + index])
    tiled = np.tile(np.arange(n), order.epochs)
    with style():
        # placed by hand: the solver of a constrained layout does not always round the same way
        drawn = sheet(5.0, FOOTER)
        drawn.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.95, hspace=0.34)
        top, middle, grid, batch = drawn.subplots(4, 1, height_ratios=(1.2, 0.9, 0.9, 1.7))
        for y, documents, label in ((1.1, tiled, "in the file"), (0, order.documents, "shuffled")):
            ends = np.cumsum(sizes[documents])
            parts = zip((ends - sizes[documents]) / total, sizes[documents] / total, documents,
                        strict=True)  # fmt: skip
            _strip(top, y, [(float(s), float(w), int(d)) for s, w, d in parts], n, labels)
            top.text(-0.01, y + 0.35, label, ha="right", va="center")
        top.plot([(row * S + S / 2) / total] * 2, [-0.35, 0.8], color=INK, linewidth=1.2)
        top.set(
            xlim=(-0.25 if narrow() else -0.13, 1),
            ylim=(-0.4, 2.0),
            title="1  the documents are shuffled",
        )
        low, high = row * S - 1.5 * S, row * S + 2.5 * S
        ends = np.cumsum(sizes[order.documents])
        begins = ends - sizes[order.documents]
        near = [
            (float(max(b, low)), float(min(e, high) - max(b, low)), int(d))
            for b, e, d in zip(begins, ends, order.documents, strict=True)
            if e > low and b < high
        ]
        _strip(middle, 0, near, n, False)
        for start, width, document in near:
            if width > 0.45 * S:
                label = f"{document}" if narrow() else f"document {document}"
                middle.text(start + width / 2, 0.34, label, ha="center",
                            va="center")  # fmt: skip
        for k in range(-1, 3):
            middle.plot([(row + k) * S] * 2, [-0.3, 1.0], color=INK, linewidth=0.9)
        middle.add_patch(Rectangle((row * S, -0.08), S + 1, 0.86, fill=False,
                                   edgecolor=INK, linewidth=2))  # fmt: skip
        middle.text(row * S + S / 2, -0.3, f"row {row:,}", ha="center", va="top")
        middle.set(xlim=(low - 0.5 * S, high), ylim=(-0.75, 1.05),
                   title=f"2  their stream is cut into rows of {S}")  # fmt: skip
        n_batches = min(example.steps, 24)
        for k in range(n_batches):
            for i in range(example.batch_size):
                number = int(order.shuffle[k * example.batch_size + i])
                color = hue(spans(order, example.sizes, number)[0][0], n)
                cell = Rectangle((k, -i), 0.9, 0.9, facecolor=color, alpha=0.8, lw=0)
                grid.add_patch(cell)
        grid.add_patch(Rectangle((step - 0.05, 0.95), 1, -example.batch_size, fill=False,
                                 edgecolor=INK, linewidth=1.6))  # fmt: skip
        grid.set(xlim=(-1, n_batches), ylim=(1 - example.batch_size, 1.2))
        title = "3  the rows are shuffled; each column is a batch"
        grid.set_title(title if narrow() else f"{title}, colored by document")
        for i, ids in enumerate(example.batch(step).tolist()):
            number = int(order.shuffle[step * example.batch_size + i])
            x = 0
            for document, first, stop in spans(order, example.sizes, number):
                batch.add_patch(Rectangle((x, -i), stop - first, 0.8, linewidth=0,
                                          facecolor=hue(document, n),
                                          alpha=PALENESS))  # fmt: skip
                x += stop - first
            words = "".join(example.pieces[t] or " \N{SQUARE LOZENGE} " for t in ids)
            words = " ".join(words.split()).replace("$", r"\$")
            batch.text(0.006 * S, 0.4 - i, words[: 42 if narrow() else 84], va="center")
        batch.set(xlim=(0, S + 1), ylim=(0.9 - example.batch_size, 1),
                  title=f"4  batch {step}: the beginning of each row")  # fmt: skip
        for ax in (top, middle, grid, batch):
            ax.set_axis_off()
    parts = [str(d) for d, _, _ in spans(order, example.sizes, row)]
    documents = f"{'document' if len(parts) == 1 else 'documents'} {', '.join(parts)}"
    return Drawing(
        drawn,
        f"Four steps. {n} documents in the order of the file and shuffled; the stream of shuffled "
        f"documents near row {row}, which has tokens of {documents}; a grid of the first "
        f"{n_batches} batches of {example.batch_size} shuffled rows; and the beginning of the text "
        f"of each row in batch {step}.",
    )


@figure
def follow() -> Drawing:
    """Draw how documents become the rows of one batch, with the data of the scale `smoke`."""
    return _picture(real())


@figure
def shuffle() -> Drawing:
    """Draw how a few sentences, which the page's script reshuffles, become the rows of a batch."""
    return _picture(tiny())
