"""The suite's losses as laws, tables of what follows, and where the released sizes stand.

Fitted to the standard half. "Compute-optimal" is the size with the lowest loss for a budget of
training FLOP; "inference-optimal" the one that reaches a loss most cheaply when the model is then
used. Both are read off the fitted law, hence no better than it. Our N leaves embeddings out, which
at these sizes are most of a model; the released sizes are placed on a law of others, whose N counts
everything, and shown under both conventions. FLOP are 6 N D for training, 2 N for a generated
token; of our models that is the smaller part, as their vocabulary matrix computes most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.studies.scaling.fits import (
    BESIROGLU,
    NAMES,
    Law,
    bootstrap_laws,
    fit_law,
    interval,
    resampled,
)
from pythia_core.errors import DataError
from pythia_core.suite import OFFICIAL_SIZES, size_named
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 100
"""Resamples of a law: each is a fit of its own."""
USES = (0.0, 1.0, 10.0, 100.0, 1000.0)
"""Tokens generated with a model, as multiples of the tokens the suite is trained on."""
OFFICIAL_TOKENS = OFFICIAL_STEPS * 1024 * 2048


def laws_tables(
    params: Any, losses: pd.DataFrame, rows: dict[tuple[str, str, int], np.ndarray]
) -> dict[str, pd.DataFrame]:
    """laws: law ("size", "both"), parameter, value, low, high; empty where points are too few.
    optimal: kind, flops or uses, n_params, low, high, tokens, tokens_per_parameter.
    prediction: size, value, low, high: the loss of the largest model over that which the law of
    the other sizes predicts, in percent; empty where they are too few.
    official_sizes: size, n_params, n_non_embedding, tokens_per_parameter,
    tokens_per_non_embedding, optimal_tokens, cheapest_at (generated tokens; below 0: none).
    """
    import pandas as pd

    standard = losses[losses.arm == "standard"]
    last = standard[standard.step == standard.step.max()]
    late = standard[standard.step >= 0.1 * standard.step.max()]
    laws, optimal = [], []
    for name, points, with_tokens in (("size", last, False), ("both", late, True)):
        stacked = np.array([rows[r.size_, "standard", r.step] for r in _named(points)])
        d = points.tokens.to_numpy(float) if with_tokens else None
        try:
            law, draws = bootstrap_laws(points.n_params.to_numpy(float), stacked, d, DRAWS)
        except DataError:  # a run of one or two sizes determines no law
            continue
        for parameter in NAMES[2 if with_tokens else 1]:
            value = interval(getattr(law, parameter), [getattr(x, parameter) for x in draws])
            laws.append((name, parameter, *value))
        if with_tokens:
            optimal = _optimal(law, draws, last)
    columns = ["kind", "flops", "uses", "n_params", "low", "high", "tokens", "tokens_per_parameter"]
    return {
        "laws": pd.DataFrame(laws, columns=["law", "parameter", "value", "low", "high"]),
        "optimal": pd.DataFrame(optimal, columns=columns),
        "prediction": _prediction(last, rows),
        "official_sizes": _official(),
    }


def _prediction(last: pd.DataFrame, rows: dict[tuple[str, str, int], np.ndarray]) -> pd.DataFrame:
    """Whether the law holds outside of what it was fitted to: one size further."""
    import pandas as pd

    stacked = np.array([rows[r.size_, "standard", r.step] for r in _named(last)])
    n, found = last.n_params.to_numpy(float), []
    if len(n) > len(NAMES[1]):
        law = fit_law(n[:-1], stacked[:-1].mean(1))
        laws = ((fit_law(n[:-1], m[:-1], start=law), m[-1]) for m in resampled(stacked, DRAWS))
        excess = [100 * (measured / float(each.loss(n[-1])) - 1) for each, measured in laws]
        value = 100 * (stacked[-1].mean() / float(law.loss(n[-1])) - 1)
        found = [(last["size"].iloc[-1], *interval(value, excess))]
    return pd.DataFrame(found, columns=["size", "value", "low", "high"])


def _named(points: pd.DataFrame) -> Any:
    """Rows with the column "size" under a name that a tuple allows."""
    return points.rename(columns={"size": "size_"}).itertuples()


def _optimal(law: Law, draws: list[Law], last: pd.DataFrame) -> list[tuple]:
    rows = []
    for flops in np.geomspace(last.flops.min(), last.flops.max(), 7):
        n, d = law.compute_optimal(flops)
        _, low, high = interval(n, [x.compute_optimal(flops)[0] for x in draws])
        rows.append(("compute", float(flops), None, n, low, high, d, d / n))
    target = float(np.median(last.value))
    trained = float(last.tokens.iloc[0])
    for uses in USES:
        try:
            n, d = law.inference_optimal(target, uses * trained)
            sizes = [x.inference_optimal(target, uses * trained)[0] for x in draws]
        except DataError:
            continue
        _, low, high = interval(n, sizes)
        cost = 6 * n * d + 2 * n * uses * trained
        rows.append(("inference", cost, uses, n, low, high, d, d / n))
    return rows


def _official() -> pd.DataFrame:
    """All released sizes read as many tokens: far past the compute optimum for most."""
    import pandas as pd

    rows = []
    for name in OFFICIAL_SIZES:
        model = size_named(name).model()
        n, bare = model.n_params, model.n_params_non_embedding
        rows.append((name, n, bare, OFFICIAL_TOKENS / n, OFFICIAL_TOKENS / bare,
                     BESIROGLU.optimal_tokens(n),
                     BESIROGLU.cheapest_when_generating(n, OFFICIAL_TOKENS)))  # fmt: skip
    return pd.DataFrame(
        rows,
        columns=["size", "n_params", "n_non_embedding", "tokens_per_parameter",
                 "tokens_per_non_embedding", "optimal_tokens", "cheapest_at"],
    )  # fmt: skip
