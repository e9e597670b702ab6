"""The claims of the scaling study. Some are tested on our models, others only on released models.

Intervals are over model sizes. Each size was trained once on each of the two texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.tables import NO_RELEASED
from pythia_book.records import number_text
from pythia_book.stats import Estimate, estimate, mean_over, slope
from pythia_book.studies.scaling.released import PER_TENFOLD, Estimates
from pythia_book.studies.scaling.released import claims as released_claims
from pythia_book.tasks.benchmarks import TASKS
from pythia_book.verdicts import Claim, Test, passes, rises, untestable

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.scaling.params import Params
    from pythia_book.study import Measurements, Tables


def claims(
    params: Params,
    measured: Measurements,
    tables: Tables,
    found: Estimates,
    pairs: pd.DataFrame,
) -> list[Claim]:
    """Return all claims of the scaling study."""
    size = found["size"]
    statements = [
        Claim(
            "Accuracy rises with size.",
            "section 1, about the literature",
            quote="there are regular and predictable patterns in the behavior of trained language "
            "models as they scale",
            released=rises(
                size, PER_TENFOLD, "8 sizes, mean of both texts",
                note="zero-shot at the end, mean over seven tasks",
            ) if size else untestable(NO_RELEASED),
            ours=_ability(params, measured),
        ),
        *released_claims(found, pairs),
        Claim(
            "A power law with a floor predicts the loss of the next larger size better than "
            "simpler rules do.",
            "Hoffmann et al. 2022 (arXiv:2203.15556), about the form of the law",
            kind="premise",
            ours=_prediction_test(tables["prediction"]),
        ),
    ]  # fmt: skip
    agreement = tables["agreement"]
    if len(agreement):
        n, differing = int(agreement["items"].sum()), int(agreement.differing.sum())
        statements.append(
            Claim(
                "Our scorer and the evaluation harness agree on every item about whether the "
                "model's answer is right.",
                "validity of our accuracies",
                kind="check",
                ours=passes(differing == 0, f"{differing:,} of {n:,} items differ"),
            )
        )
    return statements


def _ability(params: Params, measured: Measurements) -> Test:
    """Test whether the final accuracy of our models rises with size.

    The accuracy is a mean over the choice tasks and both training texts, with the fewest shots. The
    test has no verdict if fewer than three sizes were scored on every task, or if the largest size
    does not beat guessing.
    """
    shots, step = str(min(params.shot_list)), str(measured.facts["steps"])
    hits: dict[str, dict[str, list[np.ndarray]]] = {}  # task -> size -> bool[items] per text
    for (size, _, at, task, k), right in measured.under("hits"):
        if (at, k) == (step, shots) and TASKS[task].chance:
            hits.setdefault(task, {}).setdefault(size, []).append(right)
    sizes = [s for s in params.size_list if hits and all(s in each for each in hits.values())]
    if len(sizes) < 3:
        return untestable("fewer than three sizes were scored on every task")
    largest = [
        100 * (np.mean(each[sizes[-1]], axis=0) - TASKS[task].chance) for task, each in hits.items()
    ]
    above = estimate(np.concatenate(largest)[None], params.bootstrap)
    tasks = f"{len(hits)} choice tasks: {', '.join(hits)}"
    if above.low <= 0:
        value, low, high = (number_text(number, 1) for number in above.interval().values())
        return untestable(
            f"the largest model guesses: {value} [{low}, {high}] points above chance, mean over "
            f"the items of {tasks}",
        )
    means = [100 * np.mean([np.mean(each[size]) for each in hits.values()]) for size in sizes]
    numbers = [measured.facts["n_params"][size] for size in sizes]
    units = f"{len(sizes)} sizes, one run per text"
    return rises(slope(np.log10(numbers), means), PER_TENFOLD, units, note=f"mean over {tasks}")


RIVALS = {"power": "a power law without a floor", "line": "a straight line in log size",
          "same": "no improvement"}  # fmt: skip


def advantage(prediction: pd.DataFrame) -> tuple[Estimate, str]:
    """Return by how much a power law with a floor errs less than the best simpler rule does.

    The best simpler rule, which is also returned, has the smallest mean error. The errors returned
    are those by which it was chosen, which favors it. The unit is percent of the loss.
    """
    errors = prediction.pivot(index="size", columns="rule", values="error").abs()
    rival = str(errors[list(RIVALS)].mean().idxmin())
    return mean_over((errors[rival] - errors["law"]).to_numpy()), rival


def _prediction_test(prediction: pd.DataFrame) -> Test:
    """Test whether a power law with a floor predicts losses better than the best simpler rule."""
    if prediction.empty:
        return untestable("too few sizes to predict any from the smaller ones")
    e, rival = advantage(prediction)
    return rises(
        e,
        "points",
        f"{e.n_seeds} sizes, each predicted from the smaller ones",
        note=f"error of the best simpler rule ({RIVALS[rival]}) minus error of the law, both in "
        "percent of the loss",
    )
