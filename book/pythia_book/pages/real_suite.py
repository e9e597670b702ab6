"""The tables of the page on the released models; the book calls them while it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book.pages import real_suite_facts as suite
from pythia_book.style import Table

if TYPE_CHECKING:
    import pandas as pd

SPACE = "\N{NO-BREAK SPACE}"
RATE = "{:.1e}".format


def _table(frame: pd.DataFrame, columns: dict[str, tuple[str, Any]], caption: str) -> Table:
    import pandas as pd

    shown = {title: [text(v) for v in frame[name]] for name, (title, text) in columns.items()}
    return Table(pd.DataFrame(shown), caption)


def _bytes(value: float) -> str:
    """1.41e8 as "141 MB": powers of 1,000, three digits."""
    units = ("kB", "MB", "GB", "TB")
    power = min(len(units), max(1, len(f"{value:.0f}") - 1) // 3)
    return f"{value / 1000**power:,.3g}{SPACE}{units[power - 1]}"


def _time(seconds: float) -> str:
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (2 * 86_400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:,.2g}{SPACE}{name}"
    return f"{seconds / 86_400:,.0f}{SPACE}days"


def fidelity() -> Table:
    """What was done, by size."""
    columns = {
        "size": ("Size", str),
        "precision": ("Products in", str),
        "init": ("Initial weights", str),
        "tensor_parallel": ("Tensor parallel", str),
        "vocabulary": ("Rows of the vocabulary", "{:,}".format),
        "head_dim": ("Width of a head", str),
        "lr_max": ("Peak rate", RATE),
        "lr_min": ("Lowest rate", RATE),
    }
    caption = (
        f"What was really done. Rows: {suite.USABLE_VOCABULARY:,} entries, padded to a multiple of "
        f"{suite.PADDED_TO} times the tensor-parallel ranks"
    )
    return _table(suite.fidelity_table(), columns, caption)


def reading() -> Table:
    """What reading them takes."""
    columns = {
        "size": ("Size", str),
        "repository": ("Name", str),
        "stored": ("One step", _bytes),
        "minutes": ("Download", lambda minutes: _time(60 * minutes)),
        "stored_all": ("All 154", _bytes),
        "memory": ("Memory, fp32", _bytes),
        "row_seconds": ("A row of 2,048", _time),
        "task_seconds": ("All tasks", _time),
    }
    caption = (
        f"To read a released model, from its parameters. Download at {suite.DOWNLOAD / 1e6:.0f} "
        f"MB/s, a row and the tasks' {sum(suite.TASK_TOKENS.values()):,} tokens at "
        f"{suite.CPU_FLOPS / 1e9:.0f} GFLOP/s: assumptions"
    )
    return _table(suite.reading_table(), columns, caption)


def commands() -> Table:
    """What to type, and what it takes."""
    frame = suite.commands_table()
    frame["time"] = [
        "seconds"
        if row.seconds < 1
        else _time(row.seconds) + (f", {row.machine}" if row.machine else ", download")
        for row in frame.itertuples()
    ]
    columns = {
        "command": ("python -m pythia_core", str),
        "fetched": ("Fetched", lambda n: _bytes(n) if n else "hashes only"),
        "memory": ("Memory", lambda n: _bytes(n) if n else "little"),
        "time": ("Time", str),
    }
    caption = (
        f"On pythia-70m, from its parameters. Downloads at {suite.DOWNLOAD / 1e6:.0f} MB/s, a CPU "
        f"of {suite.CPU_FLOPS / 1e9:.0f} GFLOP/s, a quarter of an H100's peak: assumptions. Memory "
        "of training is without activations; what is fetched stays on disk, but for rows"
    )
    table = _table(frame, columns, caption)
    return Table(table.frame, caption, code=("python -m pythia_core",))


def forks() -> Table:
    """What a fork takes."""
    columns = {
        "size": ("Size", str),
        "weights": ("Weights to fetch", _bytes),
        "rows": ("Rows to fetch", _bytes),
        "state": ("Weights, gradients, optimizer", _bytes),
        "fits": ("On a GPU of 80 GB", lambda fits: "yes" if fits else "no"),
        "disk": ("Disk", _bytes),
        "gpu_seconds": ("One H100", _time),
    }
    caption = (
        "10,000 updates from step 133,000, a swap and its control, in bf16, activations left out; "
        "time at an assumed quarter of the peak"
    )
    return _table(suite.forks_table(), columns, caption)


def training() -> Table:
    """What training them again would take."""
    columns = {
        "size": ("Size", str),
        "parameters": ("Parameters", "{:,}".format),
        "state": ("Weights, gradients, optimizer", _bytes),
        "fits": ("On a GPU of 80 GB", lambda fits: "yes" if fits else "no"),
        "h100_hours": ("Hours of one H100", "{:,.0f}".format),
    }
    caption = "To train a size again, in bf16, activations left out; hours as on the recipe's page"
    return _table(suite.training_table(), columns, caption)
