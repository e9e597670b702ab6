"""Released results on sums and on LAMBADA: how abruptly they change with size.

When the task and the number of examples were chosen, it was known that accuracy
on sums jumps between two sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.published.scaling import SUM_SHOTS
from pythia_book.published.tables import MODELS, NO_RELEASED
from pythia_book.stats import LEVEL, Estimate
from pythia_book.studies.scaling.released import parameters
from pythia_book.verdicts import Claim, Test, untestable
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Tables


def steepness(values: np.ndarray) -> tuple[float, int]:
    """Return how abruptly a score changes over sizes in order.

    Returns:
        The largest change between neighbors, in the direction of the whole change, as a share of
        the range of all values; and the index of the later neighbor.
    """
    spread = np.ptp(values)
    changes = np.diff(values) * (np.sign(np.argmax(values) - np.argmin(values)) or 1)
    place = int(np.argmax(changes)) + 1
    return float(changes.max() / spread) if spread else float("nan"), place


def claim(released: Tables, draws: int) -> Claim:
    """Return the claim that an ability can appear abruptly with size."""
    return Claim(
        "An ability can appear abruptly with size: the step between two neighboring sizes accounts "
        "for more than half of the range of accuracies on sums.",
        "Ganguli et al. 2022, as quoted by Schaeffer et al. 2023 (arXiv:2304.15004)",
        quote="performance on a specific task can sometimes emerge quite unpredictably and "
        "abruptly at scale",
        released=share_of_two_sizes(released, draws),
    )


def share_of_two_sizes(released: Tables, draws: int) -> Test:
    """Return the largest step between neighboring sizes, as a share of the range of released sums.

    It is a maximum over neighbors, for a task chosen because it jumps, so it is not a test.
    """
    operands = released.get("operands")
    if operands is None or operands.empty:
        return untestable(NO_RELEASED)
    table = operands.pivot(index="model", columns="number", values="value")
    models = [m for m in MODELS if m in table.index]
    values = table.loc[models].to_numpy()
    share, place = steepness(values.mean(1))
    n = values.shape[1]
    picks = np.random.default_rng(0).integers(n, size=(draws, n))
    drawn = values[:, picks].mean(2).T
    low, high = np.quantile([steepness(each)[0] for each in drawn],
                            [(1 - LEVEL) / 2, (1 + LEVEL) / 2])  # fmt: skip
    return untestable(
        "the task and the number of examples were chosen because the step between sizes was known",
        Estimate(100 * share, 100 * low, 100 * high, n, 1),
        "% of the range",
        f"{n} first operands; one run of each of {len(models)} sizes",
        f"between {models[place - 1]} and {models[place]}, after {SUM_SHOTS} examples; no "
        "log-probabilities of sums were released",
    )


def values(released: Tables, draws: int) -> dict[str, Any]:
    """Return the numbers about released sums and LAMBADA that the page quotes, by name.

    A share, in percent, is the largest step between neighboring sizes as a part of the range.

    - `released_sums_share`: see `share_of_two_sizes`.
    - `released_sums_least`, `released_sums_most`: the smallest and the largest share over all
      operations and numbers of examples.
    - `released_lambada_share`, `released_lambada_nats_share`: the shares of accuracy and of
      log-probability on LAMBADA, over the sizes that were tested on sums.
    - `released_lambada_all_share`, `released_lambada_nats_all_share`: the same over all sizes.
    - `released_sums_factor`, `released_lambada_factor`: by what factor the parameters without
      embeddings grow in the largest step.
    - the numbers of `_over_training`.
    """
    test = share_of_two_sizes(released, draws)
    share = test.estimate.interval() if test.estimate else None
    return _shares(released) | {"released_sums_share": share} | _over_training(released)


def _shares(released: Tables) -> dict[str, float | None]:
    """Return the shares and factors of `values`, all without intervals."""
    numbers: dict[str, float | None] = {}
    sums, lambada, operands = (released.get(name) for name in ("sums", "lambada", "operands"))
    scores, shares = {}, []
    if operands is not None and len(operands):
        scores["sums"] = operands.groupby("model").value.mean()
    if sums is not None and len(sums):
        last = sums[sums.step == OFFICIAL_STEPS]
        shares = [_largest_step(each.set_index("model").value)[0]
                  for _, each in last.groupby(["operation", "shots"])]  # fmt: skip
        if lambada is not None and len(lambada):
            last = lambada[lambada.step == OFFICIAL_STEPS]
            every = last.groupby("model")[["value", "nats"]].mean()
            tested = every[every.index.isin(sums.model)]
            scores |= {"lambada": tested.value, "lambada_nats": tested.nats,
                       "lambada_all": every.value, "lambada_nats_all": every.nats}  # fmt: skip
    numbers["released_sums_least"] = min(shares, default=None)
    numbers["released_sums_most"] = max(shares, default=None)
    for name in ("sums", "lambada", "lambada_nats", "lambada_all", "lambada_nats_all"):
        share, factor = _largest_step(scores[name]) if name in scores else (None, None)
        if name != "sums":
            numbers[f"released_{name}_share"] = share
        if name in ("sums", "lambada"):
            numbers[f"released_{name}_factor"] = factor
    return numbers


def _largest_step(by_model: pd.Series) -> tuple[float, float]:
    """Return the largest step between neighboring sizes in the scores of models (`steepness`).

    Returns:
        Its share of the range, in percent; and the factor by which the parameters without
        embeddings grow in this step.
    """
    models = [m for m in MODELS if m in by_model.index]
    share, place = steepness(by_model[models].to_numpy())
    before, after = parameters(models[place - 1 : place + 1])
    return 100 * share, after / before


def _over_training(released: Tables) -> dict[str, Any]:
    """Return accuracies on sums after SUM_SHOTS examples by size and over training, in percent.

    `released_sums_NAME`: at the end for 1.4B, 2.8B and 6.9B, in the middle and at the end for 12B;
    `released_sums_steps`: the largest step between two of the six checkpoints, as a share of the
    range over training, in the three largest sizes.
    """
    sums = released.get("sums")
    cells = {"end_1b": ("1.4b", OFFICIAL_STEPS), "end_3b": ("2.8b", OFFICIAL_STEPS),
             "end_7b": ("6.9b", OFFICIAL_STEPS),
             "half_12b": ("12b", 65_000), "end_12b": ("12b", OFFICIAL_STEPS)}  # fmt: skip
    if sums is None or sums.empty:
        return {f"released_sums_{name}": None for name in (*cells, "steps")}
    chosen = sums[(sums.operation == "addition") & (sums.shots == SUM_SHOTS)]
    table = 100 * chosen.pivot(index="model", columns="step", values="value")
    numbers = {name: float(table.loc[cell]) for name, cell in cells.items()}
    numbers["steps"] = max(100 * steepness(table.loc[m].to_numpy())[0] for m in MODELS[-3:])
    return {f"released_sums_{name}": number for name, number in numbers.items()}
