"""Makes the tables and the figure of the page on clusters: a budget for the released models.

The budget follows from the cost model of one GPU (pythia_book.bench.cost_model), the memory
estimate (pythia_core.training.memory) and the bytes that GPUs exchange. Nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pythia_book.bench.cost_model import MICRO_TOKENS, ns_per_token, optimizer_seconds
from pythia_book.budget import WRITE_RATE
from pythia_book.pages import formatted
from pythia_book.pages.real_suite import GPU_BYTES, bytes_text, time_text
from pythia_book.released.continuation.start import published_train
from pythia_book.released.recipe import BATCH_ROWS, H100_UTILIZATION, SEQ_LEN, estimates
from pythia_book.style import Drawing, Table, figure, legend, panels, size_color, style
from pythia_core.config import DataConfig, RunConfig
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.execution import Execution
from pythia_core.training.memory import (
    RESERVE,
    activation_bytes_per_token,
    largest_micro_batch,
    training_bytes,
)
from pythia_core.training.retention import checkpoint_bytes, saved_state_bytes
from pythia_core.training.schedule import N_CHECKPOINTS, OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.config import ModelConfig

GPUS = (8, 64, 256)
NODE = 8
"""GPUs per node."""
NVLINK = 360e9
"""Bytes per second that a GPU sends to others in its node [estimate: 80 % of the 450 GB/s of an
H100's data sheet]."""
FABRIC = 40e9
"""Bytes per second that a GPU sends to other nodes [estimate: 80 % of one 400 Gbit/s link per
GPU]."""
EXECUTION = Execution()
"""How updates run: no activation is computed a second time."""
GRADIENT_BYTES, COPY_BYTES = 4, 2
"""Bytes per parameter of gradients, which are summed in fp32, and of weights in bf16."""
ROWS_BYTES = BATCH_ROWS * (SEQ_LEN + 1) * 2 * OFFICIAL_STEPS
"""Bytes of all training rows of one data set, as published: 2 per token."""


@dataclass(frozen=True)
class Layout:
    """How a model is trained on a number of GPUs, and how long an update takes.

    Every GPU takes an equal part of the batch. Weights, gradients and moments are whole on each GPU
    if they fit, else split over the GPUs of a node, else over all GPUs.
    """

    model: ModelConfig
    gpus: int
    seq_len: int = SEQ_LEN
    batch_rows: int = BATCH_ROWS
    """Rows per update; all GPUs read equally many."""
    precision: str = "bf16"
    """The precision for which memory is estimated; times are predicted for bf16 only."""

    @cached_property
    def split(self) -> int:
        """The number of GPUs that share one copy of the training state."""
        node = min(NODE, self.gpus)
        fits = (n for n in (1, node) if self._largest_micro_batch(n))
        return next(fits, self.gpus)

    def _largest_micro_batch(self, split: int) -> int:
        """Return how many rows at a time fit in the memory of a GPU."""
        return largest_micro_batch(
            self.model, self.seq_len, int(GPU_BYTES), EXECUTION, self.precision, processes=split
        )

    @property
    def rows(self) -> int:
        """How many rows of every batch each GPU reads."""
        return self.batch_rows // self.gpus

    @property
    def micro_batch(self) -> int:
        """The rows per forward and backward pass: a power of two, as many as fit or are useful.

        It is 0 if not even one row fits.
        """
        most = min(self.rows, MICRO_TOKENS // self.seq_len, self._largest_micro_batch(self.split))
        return 1 << (most.bit_length() - 1) if most else 0

    @property
    def memory(self) -> int:
        """The estimated bytes of memory that training takes on each GPU."""
        return sum(self.memory_parts.values())

    @property
    def memory_parts(self) -> dict[str, int]:
        """The parts of `memory`; `copies` has copies of weights, and gradients before sharding."""
        model, shared = self.model, self.split
        parts = {
            name: size * model.n_params // shared
            for name, size in {"weights": 4, "moments": 8, "gradients": 4}.items()
        }
        whole = training_bytes(model, 0, EXECUTION, self.precision, processes=shared)
        tokens = self.micro_batch * self.seq_len
        return {
            **parts,
            "copies": whole - RESERVE - sum(parts.values()),
            "activations": tokens * activation_bytes_per_token(model, EXECUTION, self.precision),
            "reserve": RESERVE,
        }

    @property
    def compute_seconds(self) -> float:
        """The predicted seconds of an update without communication."""
        ns = ns_per_token(self.model, "ours", self.seq_len, self.micro_batch * self.seq_len)
        return 1e-9 * ns * self.rows * self.seq_len + optimizer_seconds(self.model) / self.split

    @property
    def passes(self) -> int:
        """The forward and backward passes per update."""
        return -(-self.rows // self.micro_batch)

    @property
    def sent_in_node(self) -> float:
        """The bytes per update that a GPU sends to others in its node."""
        gradient, copy = (b * self.model.n_params for b in (GRADIENT_BYTES, COPY_BYTES))
        share = (min(NODE, self.gpus) - 1) / min(NODE, self.gpus)
        if self.split == 1:  # a reduce-scatter and an all-gather of the gradient
            return 2 * share * gradient
        return share * self.passes * (2 * copy + gradient)  # weights, twice, and gradient

    @property
    def sent_between_nodes(self) -> float:
        """The bytes per update that a GPU sends to other nodes."""
        share = max(0.0, 1 - NODE / self.gpus)
        if self.split > NODE:
            return share * self.sent_in_node
        sums = 1 if self.split == 1 else self.passes
        return 2 * share * sums * GRADIENT_BYTES * self.model.n_params / NODE

    @property
    def communication_seconds(self) -> float:
        """The predicted seconds that an update spends on communication, if nothing hides it."""
        return self.sent_in_node / NVLINK + self.sent_between_nodes / FABRIC

    @property
    def seconds(self) -> float:
        """The predicted seconds of an update.

        Whole gradients are summed after the last backward pass. If the state is split, blocks are
        exchanged while others compute, so an update takes the longer of the two times.
        """
        if self.split == 1:
            return self.compute_seconds + self.communication_seconds
        return max(self.compute_seconds, self.communication_seconds)

    @property
    def days(self) -> float:
        """The predicted days of training all OFFICIAL_STEPS updates."""
        return self.seconds * OFFICIAL_STEPS / 86_400


def layouts() -> dict[tuple[str, int], Layout]:
    """Map (size, number of GPUs) to the layout of each released size on each of GPUS."""
    return {
        (size, gpus): Layout(shape.model(), gpus)
        for size, shape in OFFICIAL_SIZES.items()
        for gpus in GPUS
    }


def budget_table() -> pd.DataFrame:
    """Predict the training of each released size on each of GPUS, one row per pair.

    Columns: `size`, `gpus`, and the properties of Layout of the same names; `busy` is the share of
    an update that is not spent waiting for the network.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "size": size,
                "gpus": gpus,
                "split": layout.split,
                "micro_batch": layout.micro_batch,
                "memory": layout.memory,
                "sent": layout.sent_in_node + layout.sent_between_nodes,
                "seconds": layout.seconds,
                "busy": layout.compute_seconds / layout.seconds,
                "days": layout.days,
            }
            for (size, gpus), layout in layouts().items()
        ]
    )


def disk_table() -> pd.DataFrame:
    """Return how many bytes training writes for each released size, one row per size.

    Columns: `size`; `checkpoint`, `checkpoints`: bytes of the bf16 weights of one step and of all;
    `state`: bytes of one training state; `seconds`: time to write a state from one process.
    """
    import pandas as pd

    rows = []
    for size, shape in OFFICIAL_SIZES.items():
        model = shape.model()
        train = published_train(model, SEQ_LEN, precision="bf16")
        config = RunConfig(model, DataConfig(seq_len=SEQ_LEN), train)
        weights, state = checkpoint_bytes(config), saved_state_bytes(config)
        rows.append(
            {
                "size": size,
                "checkpoint": weights,
                "checkpoints": N_CHECKPOINTS * weights,
                "state": state,
                "seconds": state / WRITE_RATE,
            }
        )
    return pd.DataFrame(rows)


# --- drawings --------------------------------------------------------------------------------


@figure
def days() -> Drawing:
    """Draw the predicted days of training each size, and the share of them that is not waiting."""
    frame = budget_table()
    with style():
        note = "Predicted, not measured: H100, bf16, 8 per node, one 400 Gbit/s link per GPU."
        drawn, (time, busy) = panels(2, 3.0, note)
        lines = {}
        for size in OFFICIAL_SIZES:
            rows = frame[frame["size"] == size]
            look = {"color": size_color(size), "marker": "o"}
            time.plot(rows.gpus, rows.days, label=size, **look)
            busy.plot(rows.gpus, 100 * rows.busy, label=size, **look)
            lines[size] = look
        for ax in (time, busy):
            ax.set(xscale="log", xlabel="GPUs")
            ax.set_xticks(GPUS, [str(n) for n in GPUS])
            ax.minorticks_off()
        time.set(yscale="log", ylabel="days", title="One model, 300 billion tokens")
        time.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        busy.set(ylim=(0, 104), ylabel="% of the time", title="Not waiting for the network")
        legend(drawn, lines)
        by = frame.set_index(["size", "gpus"])
        small, *_, large = OFFICIAL_SIZES
        few, many = GPUS[0], GPUS[-1]
        description = (
            f"Days of training by number of GPUs: {small} from {by.days[small, few]:.2g} on {few} "
            f"to {by.days[small, many]:.2g} on {many}, {large} from {by.days[large, few]:.0f} to "
            f"{by.days[large, many]:.1f}; {small} then computes {100 * by.busy[small, many]:.0f} % "
            f"of the time, {large} {100 * by.busy[large, many]:.0f} %"
        )
        return Drawing(drawn, description)


def time() -> Table:
    """Return the table of the predicted days of training each size, with two rows for all sizes."""
    frame = budget_table().pivot(index="size", columns="gpus", values="days")
    frame = frame.loc[list(OFFICIAL_SIZES)].reset_index()
    total, hours = frame[list(GPUS)].sum().to_dict(), estimates().h100_hours.sum()
    assumed = {gpus: hours / gpus / 24 for gpus in GPUS}
    frame.loc[len(frame)] = {"size": "All ten", **total}
    share = f"{100 * H100_UTILIZATION:.0f}\N{NO-BREAK SPACE}%"
    frame.loc[len(frame)] = {"size": f"All ten, at {share} of the peak", **assumed}
    columns = {"size": ("Size", str)} | {n: (f"{n} GPUs", _days) for n in GPUS}
    caption = "Predicted days of training, one size after another, for one half of the suite"
    return Table(formatted(frame, columns), caption)


def memory() -> Table:
    """Return the table of the memory that each GPU needs, by size and number of GPUs."""
    frame = budget_table()
    kept = {1: "on each GPU", NODE: "over a node"}
    splits = frame.groupby("size", sort=False)["split"].unique()
    table = _by_gpus(frame, "memory")
    table.insert(1, "State", [", ".join(kept.get(n, "over all") for n in each) for each in splits])
    caption = (
        f"Memory per GPU of {GPU_BYTES / 1e9:.0f} GB. State: whether weights, gradients and "
        "moments are whole on each GPU, or sharded"
    )
    return Table(table, caption)


def network() -> Table:
    """Return the table of the bytes that each GPU sends per update."""
    return Table(_by_gpus(budget_table(), "sent"), "What each GPU sends to others, per update")


def _by_gpus(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return a column of bytes as a table of sizes and numbers of GPUs."""
    table = frame.pivot(index="size", columns="gpus", values=value).loc[list(OFFICIAL_SIZES)]
    columns = {"size": ("Size", str)} | {n: (f"{n} GPUs", bytes_text) for n in GPUS}
    return formatted(table.reset_index(), columns)


def disk() -> Table:
    """Return the table of what training each size writes."""
    frame = disk_table()
    total = frame[["checkpoints"]].sum().to_dict()
    frame.loc[len(frame)] = {"size": "All ten", **total}
    columns = {
        "size": ("Size", str),
        "checkpoint": ("Weights of a step", bytes_text),
        "checkpoints": (f"Of {N_CHECKPOINTS} steps", bytes_text),
        "state": ("A training state", bytes_text),
        "seconds": ("Writing it", time_text),
    }
    caption = (
        f"What training writes, for one half of the suite; writing by one process, at "
        f"{WRITE_RATE / 1e9:.0f} GB/s"
    )
    return Table(formatted(frame, columns), caption)


def _days(value: float) -> str:
    """Format days with three significant digits; from a hundred on, as a whole number."""
    return f"{value:#.3g}".removesuffix(".") if value < 100 else f"{value:,.0f}"


def values() -> dict[str, str]:
    """Return the numbers in the page's prose, as text."""
    frame, written = budget_table(), disk_table().set_index("size").checkpoints
    large = [*OFFICIAL_SIZES][-2:]

    def total(gpus: int, sizes: Sequence[str] = tuple(OFFICIAL_SIZES)) -> str:
        """Return the days of training some sizes, one after the other."""
        return _days(frame.days[(frame.gpus == gpus) & frame["size"].isin(sizes)].sum())

    return {
        "days_8": total(8),
        "large_days_8": total(8, large),
        "days_256": total(256),
        "most_waiting": f"{100 * (1 - frame.busy[frame.split == 1].min()):.0f}",
        "checkpoints_2_8b": f"{written['2.8b'] / 1e9:.0f}",
        "checkpoints_terabytes": f"{written.sum() / 1e12:.1f}",
        "rows_terabytes": f"{ROWS_BYTES / 1e12:.1f}",
    }
