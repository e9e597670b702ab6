"""Is the ability to add sudden, over training or over size, and does the metric make it so?

Design, bounds and hypotheses were written before any run was asked sums at more than six
checkpoints. (Known were six checkpoints of the deduplicated half; all tests over training are on
the standard half.)

- Over training: `jumps` seeks a jump in choice, exact answers, log-probability and margin of every
  run. The largest jump of all runs is *abrupt* if it makes half (ABRUPT) of the largest rise.
- The metric: `links` predicts accuracy from a smooth measure, each size by the others. Errors count
  in the second half of training, where abilities differ. A link *predicts* if its mean error is
  below two standard errors of one checkpoint's accuracy (MOST_ERROR), and if it is better than the
  mean accuracy of the other sizes at the same step, which knows nothing of the model.
- Over size: the share of a rise that two neighbouring sizes make, for released results; for ours
  the slope at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.published.scaling import SUM_SHOTS
from pythia_book.published.tables import MODELS, NO_RELEASED, SEVEN
from pythia_book.stats import LEVEL, Estimate, mean_over, slope
from pythia_book.studies.scaling.jumps import Jumps, critical_over, find_jumps
from pythia_book.studies.scaling.links import LINKS, Curves, fit_link, left_out
from pythia_book.studies.scaling.released import PER_TENFOLD
from pythia_book.studies.scaling.sums import MEASURES, sum_curves
from pythia_book.verdicts import POWER, Claim, Test, falls, rises, untestable, within
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.scaling.params import Params
    from pythia_book.study import Measurements, Tables

ABRUPT = 0.5
"""A jump is abrupt if it makes this share of the largest rise of a run."""
MOST_ERROR = {"choice": 3.0, "exact": 1.0}
"""Mean errors, in points, below which a link predicts: two standard errors of a checkpoint's
accuracy, at 1,000 sums with 30 % and with 3 % right."""
FACTOR = 1.0
"""In doublings: the product of probabilities predicts exact answers within a factor of two."""
UNITS = {"choice": "points", "exact": "points", "logprob": "nats", "margin": "nats"}
NAMES = {"choice": "choices among four", "exact": "exact answers",
         "logprob": "the log-probability of the right answer", "margin": "the margin"}  # fmt: skip
MIRAGE = "Schaeffer et al. 2023 (arXiv:2304.15004)"
FEWEST_SIZES = 3


def _factor(measure: str) -> float:
    """Return 100 for shares, which are shown in points or percent, and 1 for nats."""
    return 100.0 if UNITS[measure] == "points" else 1.0


# --- over training ---------------------------------------------------------------------------


def all_jumps(params: Params, measured: Measurements) -> dict[tuple[str, str], Jumps]:
    """Map (size, measure) to the jumps sought in the run on the standard text."""
    found = {}
    for size in params.size_list:
        for measure in MEASURES:
            steps, curves = sum_curves(measured, measure, size)
            jumps = find_jumps(steps, _factor(measure) * curves)
            if jumps is not None:
                found[size, measure] = jumps
    return found


def jumps_table(params: Params, jumps: dict[tuple[str, str], Jumps]) -> pd.DataFrame:
    """Return the rises and the largest jumps of all runs, in points or nats.

    Columns: `size`, `measure`; `rise`, `rise_low`, `rise_high`: change over the last four doublings
    of the step; `step`: the first checkpoint after the largest jump upwards; `jump`, `jump_low`,
    `jump_high`: its height, with limits that hold for all places and sizes at once; `seen`: the
    height that would be seen with 80 % power at the place with the median error; `phi` and
    `shared`: the kind of noise, see `jumps.NOISES`.
    """
    import pandas as pd
    from scipy.special import ndtri

    rows = []
    for measure in MEASURES:
        each = {size: jumps[size, measure] for size in params.size_list if (size, measure) in jumps}
        critical = critical_over(list(each.values())) if each else 0.0
        for size, found in each.items():
            e, r = found.largest(critical), found.rise
            seen = float((critical + ndtri(POWER)) * np.median(found.errors))
            rows.append((size, measure, r.value, r.low, r.high, int(found.steps[found.place]),
                         e.value, e.low, e.high, seen, *found.noise))  # fmt: skip
    columns = ["size", "measure", "rise", "rise_low", "rise_high", "step", "jump", "jump_low",
               "jump_high", "seen", "phi", "shared"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _largest_jump(table: pd.DataFrame, measure: str) -> tuple[Test, str]:
    """Test that the largest jump of a measure is below ABRUPT of the largest rise of a run."""
    rows = table[table.measure == measure]
    if rows.empty:
        return untestable("no run has enough checkpoints, or the scores do not vary"), ""
    riser = rows.loc[rows.rise.idxmax()]
    if not riser.rise_low > 0:
        return untestable("no run's score rises over the last four doublings of training"), ""
    top = rows.loc[(rows.jump / (rows.jump - rows.jump_low)).idxmax()]
    shares = [100 * value / riser.rise for value in (top.jump, top.jump_low, rows.jump_high.max())]
    n = len(rows)
    e = Estimate(shares[0], shares[1], shares[2], n, n)
    unit = UNITS[measure]
    note = (
        f"the likeliest jump is that of {top['size']} at step {top.step} ({top.jump:.2g} {unit}); "
        f"the largest rise is that of {riser['size']} ({riser.rise:.2g} {unit})"
    )
    units = f"{n} runs; noise between checkpoints and first operands"
    return falls(e, "% of the rise", units, 100 * ABRUPT, note), riser["size"]


# --- through the metric ----------------------------------------------------------------------


def _late(steps: np.ndarray) -> np.ndarray:
    return steps * 2 > steps.max(initial=0)


def links_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return how well each link predicts the accuracy of a size from those of all others.

    Columns: `accuracy`, `smooth`, `size`; `error`: mean absolute error in the second half of
    training, in points; `same_step`: that of the mean accuracy of the other sizes at the same step;
    `correlation`: of prediction and accuracy over all checkpoints.
    """
    import pandas as pd

    rows = []
    for (accuracy, smooth), (link, start) in LINKS.items():
        curves = _curves(params, measured, accuracy, smooth)
        if len(curves) < FEWEST_SIZES:
            continue
        for size, (by_link, same_step) in left_out(link, start, curves).items():
            own = curves[size]
            late = _late(own.steps)
            errors = [
                100 * float(np.abs(p - own.accuracy)[late].mean()) for p in (by_link, same_step)
            ]
            varies = np.ptp(by_link) > 0 and np.ptp(own.accuracy) > 0
            r = float(np.corrcoef(by_link, own.accuracy)[0, 1]) if varies else float("nan")
            rows.append((accuracy, smooth, size, *errors, r))
    columns = ["accuracy", "smooth", "size", "error", "same_step", "correlation"]
    return pd.DataFrame(rows, columns=columns)


def _curves(
    params: Params, measured: Measurements, accuracy: str, smooth: str
) -> dict[str, Curves]:
    """Return the curves of all sizes on the standard text, from the first update on."""
    curves = {}
    for size in params.size_list:
        steps, y = sum_curves(measured, accuracy, size)
        _, x = sum_curves(measured, smooth, size)
        read = steps > 0
        if read.any():
            curves[size] = Curves(steps[read], y[read].mean(1), x[read].mean(1))
    return curves


def link_curves(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the links fitted to all sizes, for drawing.

    Columns: `accuracy`, `smooth`; `link`: "fitted", or "product" for the product of probabilities;
    `x`: the smooth measure; `value`: accuracy from 0 to 1.
    """
    import pandas as pd

    rows = []
    for (accuracy, smooth), (link, start) in LINKS.items():
        curves = list(_curves(params, measured, accuracy, smooth).values())
        if not curves:
            continue
        x, y = (np.concatenate([getattr(c, k) for c in curves]) for k in ("smooth", "accuracy"))
        grid = np.linspace(np.quantile(x, 0.1), x.max(), 40)
        shown = {"fitted": link(fit_link(link, start, x, y), grid)}
        if accuracy == "exact":
            shown["product"] = np.exp(grid)
        for name, values in shown.items():
            rows += [(accuracy, smooth, name, *point) for point in zip(grid, values, strict=True)]
    return pd.DataFrame(rows, columns=["accuracy", "smooth", "link", "x", "value"])


def _product(params: Params, measured: Measurements) -> Test:
    """Test exact answers against the product of the probabilities of the answer's tokens."""
    curves = _curves(params, measured, "exact", "logprob")
    doublings = []
    for own in curves.values():
        late = _late(own.steps)
        seen, expected = own.accuracy[late].mean(), np.exp(own.smooth[late]).mean()
        if seen > 0:
            doublings.append(np.log2(seen / expected))
    if len(doublings) < FEWEST_SIZES:
        return untestable("fewer than three sizes answer any sum exactly")
    units = f"{len(doublings)} sizes, one run each; second half of training"
    note = "doublings by which exact answers exceed exp(mean log-probability)"
    return within(mean_over(doublings), "doublings", units, FACTOR, note)


# --- over size -------------------------------------------------------------------------------


def ends_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the scores at the end, the mean over both texts with a t-interval over operands.

    Columns: `size`, `n_params`, `measure`, `value`, `low`, `high`; shares are from 0 to 1.
    """
    import pandas as pd

    rows = []
    for size in params.size_list:
        for measure in MEASURES:
            ends = []
            for arm in ("standard", "deduplicated"):
                steps, curves = sum_curves(measured, measure, size, arm)
                if len(steps) and steps[-1] == measured.facts["steps"]:
                    ends.append(curves[-1])
            if len(ends) == 2:
                e = mean_over(np.mean(ends, axis=0))
                n = measured.facts["n_params"][size]
                rows.append((size, n, measure, *e.interval().values()))
    return pd.DataFrame(rows, columns=["size", "n_params", "measure", "value", "low", "high"])


def _over_size(ends: pd.DataFrame) -> Test:
    """Test that choices among sums rise with size, at the end, over sizes."""
    rows = ends[ends.measure == "choice"]
    e = slope(np.log10(rows.n_params), 100 * rows.value) if len(rows) else None
    if e is None:
        return untestable("fewer than three sizes were asked")
    return rises(e, PER_TENFOLD, f"{len(rows)} sizes, mean of both texts")


def steepness(values: np.ndarray) -> tuple[float, int, float]:
    """Return how abruptly a score changes over sizes in order.

    Returns:
        The largest change between neighbours as a share of the range of all values; the index of
        the larger neighbour; and the emergence score of Schaeffer et al. (2023, equation 1): the
        range over the root of the median squared change, with its sign.
    """
    changes = np.diff(values)
    spread = np.ptp(values)
    sign = np.sign(np.argmax(values) - np.argmin(values))
    changes = changes * (sign or 1)
    place = int(np.argmax(changes)) + 1
    median = float(np.median(changes**2) ** 0.5)
    score = float(sign * spread / median) if median else float("nan")
    return float(changes.max() / spread) if spread else float("nan"), place, score


def steepness_table(released: Tables) -> pd.DataFrame:
    """Return how abruptly released results change over size at the end.

    Columns: `score` (what was scored), `models` (number of sizes), `share` (of the range of the
    score, between two neighbouring sizes), `smaller` and `larger` (these sizes), `emergence` (see
    `steepness`). Means of both texts, zero-shot unless the score says otherwise.
    """
    import pandas as pd

    rows = []

    def add(score: str, values: pd.Series) -> None:
        models = [m for m in MODELS if m in values.index]
        if len(models) >= FEWEST_SIZES:
            share, place, emergence = steepness(values[models].to_numpy())
            rows.append((score, len(models), share, models[place - 1], models[place], emergence))

    sums = released.get("sums")
    if sums is not None and len(sums):
        last = sums[sums.step == OFFICIAL_STEPS]
        for (operation, shots), each in last.groupby(["operation", "shots"]):
            add(f"{operation}, {shots}-shot", each.set_index("model").value)
    curves = released.get("curves")
    if curves is not None and len(curves):
        last = curves[curves.step == OFFICIAL_STEPS].groupby("model")[list(SEVEN)].mean()
        for task in SEVEN:
            add(task, last[task])
    lambada = released.get("lambada")
    if lambada is not None and len(lambada):
        last = lambada[lambada.step == OFFICIAL_STEPS].groupby("model").nats.mean()
        add("lambada_openai, nats", -last)
    columns = ["score", "models", "share", "smaller", "larger", "emergence"]
    return pd.DataFrame(rows, columns=columns)


def _released_share(released: Tables, draws: int) -> Test:
    """Test that two neighbouring sizes make more than half of the range of released sums."""
    operands = released.get("operands")
    if operands is None or operands.empty:
        return untestable(NO_RELEASED)
    table = operands.pivot(index="model", columns="number", values="value")
    models = [m for m in MODELS if m in table.index]
    values = table.loc[models].to_numpy()
    share, place, _ = steepness(values.mean(1))
    n = values.shape[1]
    picks = np.random.default_rng(0).integers(n, size=(draws, n))
    drawn = values[:, picks].mean(2).T
    low, high = np.quantile([steepness(each)[0] for each in drawn],
                            [(1 - LEVEL) / 2, (1 + LEVEL) / 2])  # fmt: skip
    e = Estimate(100 * share, 100 * low, 100 * high, n, 1)
    note = (
        f"between {models[place - 1]} and {models[place]}, after {SUM_SHOTS} examples; no "
        "log-probabilities of sums were released"
    )
    units = f"{n} first operands; one run of each of {len(models)} sizes"
    return rises(e, "% of the range", units, 100 * ABRUPT, note)


# --- claims and numbers for prose ------------------------------------------------------------


def claims(params: Params, measured: Measurements, tables: Tables, released: Tables) -> list[Claim]:
    """Return the claim and the hypotheses on emergence."""
    continuous = (
        "linear or continuous metrics produce smooth, continuous, predictable changes in model "
        "performance"
    )
    statements = [
        Claim(
            "An ability can be abrupt over size: two neighbouring sizes make more than half of the "
            "range of accuracies on sums.",
            "Ganguli et al. 2022, as quoted by Schaeffer et al. 2023 (arXiv:2304.15004)",
            quote="performance on a specific task can sometimes emerge quite unpredictably and "
            "abruptly at scale",
            released=_released_share(released, params.bootstrap),
        )
    ]
    for measure in MEASURES:
        smooth = measure in ("logprob", "margin")
        test, _ = _largest_jump(tables["jumps"], measure)
        share = f"less than {100 * ABRUPT:.0f} % of the largest rise of a run"
        statements.append(
            Claim(
                f"Over training, no run jumps in {NAMES[measure]}: the largest jump between two "
                f"checkpoints makes {share}.",
                f"{MIRAGE}, abstract" if smooth else "stated before these runs were asked sums",
                quote=continuous if smooth else "",
                kind="claim" if smooth else "hypothesis",
                ours=test,
            )
        )
    statements.append(
        Claim(
            "The product of the probabilities of its tokens predicts how often an answer is exact, "
            "within a factor of two.",
            f"{MIRAGE}, section 2; the factor is ours",
            ours=_product(params, measured),
        )
    )
    for accuracy, smooth in LINKS:
        rows = tables["links"]
        rows = rows[(rows.accuracy == accuracy) & (rows.smooth == smooth)]
        units = f"{len(rows)} sizes, each predicted from the others; second half of training"
        bound = MOST_ERROR[accuracy]
        error = mean_over(rows.error) if len(rows) else None
        gain = mean_over(rows.same_step - rows.error) if len(rows) else None
        few = untestable("fewer than three sizes were asked sums")
        statements += [
            Claim(
                f"One curve predicts {NAMES[accuracy]} from {NAMES[smooth]} at sizes left out, "
                f"with a mean error below {bound:g} {'point' if bound == 1 else 'points'}.",
                "stated before these runs were asked sums",
                kind="hypothesis",
                ours=falls(error, "points", units, bound) if error else few,
            ),
            Claim(
                f"This curve, from {NAMES[smooth]} to {NAMES[accuracy]}, predicts better than the "
                "other sizes' accuracy at the same step does.",
                "stated before these runs were asked sums",
                kind="hypothesis",
                ours=rises(gain, "points", units, note="error of the latter minus error of the "
                           "curve") if gain else few,
            ),
        ]  # fmt: skip
    statements.append(
        Claim(
            "Choices among sums rise with size.",
            "without this, nothing can emerge over our sizes",
            kind="premise",
            ours=_over_size(tables["sums_end"]),
        )
    )
    return statements


def tables_of(params: Params, measured: Measurements, released: Tables) -> Tables:
    """Return all tables of this part of the study, by name."""
    jumps = all_jumps(params, measured)
    return {
        "sums": curves_table(params, measured),
        "sums_smooth": smooth_table(params, jumps),
        "sums_end": ends_table(params, measured),
        "jumps": jumps_table(params, jumps),
        "links": links_table(params, measured),
        "link_curves": link_curves(params, measured),
        "steepness": steepness_table(released),
    }


def curves_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the mean scores of the runs on the standard text at every checkpoint.

    Columns: `size`, `step`, `percent` (of training), and MEASURES; shares are from 0 to 1.
    """
    import pandas as pd

    tables = []
    for size in params.size_list:
        means = {m: sum_curves(measured, m, size)[1].mean(1).round(6) for m in MEASURES}
        steps, _ = sum_curves(measured, MEASURES[0], size)
        percent = 100 * steps / measured.facts["steps"]
        tables.append(pd.DataFrame({"size": size, "step": steps, "percent": percent, **means}))
    return pd.concat(tables, ignore_index=True)


def smooth_table(params: Params, jumps: dict[tuple[str, str], Jumps]) -> pd.DataFrame:
    """Return the smooth curves, in points or nats: `size`, `step`, and MEASURES."""
    import pandas as pd

    tables = []
    for size in params.size_list:
        each = {m: jumps[size, m] for m in MEASURES if (size, m) in jumps}
        if len(each) == len(MEASURES):
            values = {m: found.smooth.round(4) for m, found in each.items()}
            tables.append(pd.DataFrame({"size": size, "step": each["choice"].window, **values}))
    empty = pd.DataFrame(columns=["size", "step", *MEASURES])
    return pd.concat(tables, ignore_index=True) if tables else empty


def values(
    params: Params, measured: Measurements, tables: Tables, released: Tables
) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name."""
    jumps, links, steep = (tables[name] for name in ("jumps", "links", "steepness"))
    numbers: dict[str, Any] = {"sums_asked": int(measured.arrays["sums/count"].sum())}
    for measure in MEASURES:
        rows = jumps[jumps.measure == measure]
        test, _ = _largest_jump(jumps, measure)
        numbers[f"jump_{measure}"] = test.estimate.interval() if test.estimate else None
        riser = rows.loc[rows.rise.idxmax()] if len(rows) else None
        numbers[f"riser_{measure}"] = None if riser is None else riser["size"]
        numbers[f"rise_{measure}"] = None if riser is None else {
            "value": riser.rise, "low": riser.rise_low, "high": riser.rise_high
        }  # fmt: skip
        numbers[f"seen_{measure}"] = None if riser is None else float(rows.seen.median())
    for accuracy, smooth in LINKS:
        rows = links[(links.accuracy == accuracy) & (links.smooth == smooth)]
        for column in ("error", "same_step"):
            e = mean_over(rows[column]).interval() if len(rows) else None
            numbers[f"link_{accuracy}_{smooth}_{column}"] = e
    product = _product(params, measured).estimate
    numbers["product_factor"] = (
        {key: float(2**value) for key, value in product.interval().items()} if product else None
    )
    test = _released_share(released, params.bootstrap)
    numbers["released_sums_share"] = test.estimate.interval() if test.estimate else None
    for name, score in (("lambada", "lambada_openai"), ("lambada_nats", "lambada_openai, nats")):
        share = steep[steep.score == score].share
        numbers[f"released_{name}_share"] = 100 * float(share.iloc[0]) if len(share) else None
    for name, score in (("sums", f"addition, {SUM_SHOTS}-shot"), ("nats", "lambada_openai, nats")):
        emergence = steep[steep.score == score].emergence
        numbers[f"emergence_{name}"] = float(emergence.iloc[0]) if len(emergence) else None
    return numbers | _over_released_training(released) | _lambada_link(released)


def _over_released_training(released: Tables) -> dict[str, Any]:
    """Return accuracies on sums after SUM_SHOTS examples by size and over training, in percent.

    `released_sums_NAME`: at the end for 1.4B and 2.8B, in the middle and at the end for 12B;
    `released_sums_steps`: the largest share of the range over training that one of the three
    largest sizes makes between two of the six checkpoints.
    """
    sums = released.get("sums")
    cells = {"end_1b": ("1.4b", OFFICIAL_STEPS), "end_3b": ("2.8b", OFFICIAL_STEPS),
             "half_12b": ("12b", 65_000), "end_12b": ("12b", OFFICIAL_STEPS)}  # fmt: skip
    if sums is None or sums.empty:
        return {f"released_sums_{name}": None for name in (*cells, "steps")}
    chosen = sums[(sums.operation == "addition") & (sums.shots == SUM_SHOTS)]
    table = 100 * chosen.pivot(index="model", columns="step", values="value")
    numbers = {name: float(table.loc[cell]) for name, cell in cells.items()}
    numbers["steps"] = max(100 * steepness(table.loc[m].to_numpy())[0] for m in MODELS[-3:])
    return {f"released_sums_{name}": number for name, number in numbers.items()}


def _lambada_link(released: Tables) -> dict[str, Any]:
    """Predict the final accuracy on LAMBADA of larger models from their mean log-probability.

    A logistic curve in the log-probability is fitted to all checkpoints of models below one billion
    parameters. The value is the mean of accuracy minus prediction over the larger sizes, in points.
    """
    from scipy.optimize import curve_fit
    from scipy.special import expit

    from pythia_book.published.scaling import SMALL

    lambada = released.get("lambada")
    if lambada is None or lambada.empty or lambada.nats.isna().any():
        return {"released_lambada_link": None}
    small = lambada[lambada.model.isin(SMALL)]
    (a, b), _ = curve_fit(lambda x, a, b: expit(a - b * x), small.nats, small.value, (1.0, 0.5))
    large = lambada[~lambada.model.isin(SMALL) & (lambada.step == OFFICIAL_STEPS)]
    errors = 100 * (large.value - expit(a - b * large.nats))
    by_size = errors.groupby(large.model).mean()
    return {"released_lambada_link": mean_over(by_size).interval()}
