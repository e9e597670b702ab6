"""Does the ability to add appear suddenly in training, and is that an artifact of the metric?

Bounds and hypotheses were written before any run was tested on sums at more than six checkpoints;
the tests became stricter later. At first they covered the standard half only, where no size turned
out to learn sums. The same tests, with the same bounds, now cover both halves. In the deduplicated
half, six checkpoints had already been seen, and so had the result that 26 to 37 % of final choices
are right.

- Over training: `jumps` seeks a jump in choice, exact answers, log-probability and margin of every
  run. A jump is *abrupt* if it is at least half (ABRUPT) of the run's rise in the part of training
  where jumps are sought. A run is informative if a jump of half its rise would be detected with
  80 % power. (At first, the rise was measured over four doublings, most of which lie before the
  part of training where jumps are sought.)
- The metric: `links` predicts accuracy from a smooth measure, for each size, with a fit to the
  other sizes. Accuracy and measure are taken from different sums, since the same four
  log-probabilities decide both. Errors are counted only in the second half of training, where
  abilities differ. A link *predicts* if its mean error is below two standard errors of one
  checkpoint's accuracy (MOST_ERROR), and if it is better than two rivals that know the text but
  nothing of the model. Where runs differ by less than twice this error, or where a constant
  predicts the accuracy to within this error, no result could contradict a link.
- The share of exact answers is compared with the mean probability of the right answer (`product`).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import LEVEL, Z_95, mean_over
from pythia_book.studies.scaling.jumps import Jumps, critical_over, find_jumps
from pythia_book.studies.scaling.links import LINKS, Curves, fit_link, left_out
from pythia_book.studies.scaling.sums import MEASURES, PRODUCT, STORED, sum_curves
from pythia_book.verdicts import POWER, Test, untestable, within
from pythia_core.suite import DATA_ARMS, Cell

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.scaling.params import Params
    from pythia_book.study import Measurements, Tables

ABRUPT = 0.5
"""A jump is abrupt if it makes this share of the rise of its run."""
MOST_ERROR = {"choice": 3.0, "exact": 1.0}
"""Mean errors, in points, below which a link predicts: two standard errors of a checkpoint's
accuracy, at 1,000 sums with 30 % and with 3 % right."""
FACTOR = 1.0
"""In doublings: the product of probabilities predicts exact answers within a factor of two."""
FEWEST_SIZES = 3


# --- over training ---------------------------------------------------------------------------


def all_jumps(params: Params, measured: Measurements) -> dict[tuple[Cell, str], Jumps]:
    """Map (run, measure) to the jumps sought in the run.

    Each curve is simulated with a seed of its own, so that limits over several curves hold.
    """
    jumps = {}
    for run in cells_of(params):
        for measure, about in MEASURES.items():
            steps, curves = sum_curves(measured, measure, run)
            seed = zlib.crc32("/".join((*run, measure)).encode())
            sought = find_jumps(steps, about.factor * curves, seed)
            if sought is not None:
                jumps[run, measure] = sought
    return jumps


def cells_of(params: Params) -> list[Cell]:
    """Return the runs of the suite as (size, data arm), the standard text first."""
    return [(size, arm) for arm in DATA_ARMS for size in params.size_list]


def jumps_table(params: Params, jumps: dict[tuple[Cell, str], Jumps]) -> pd.DataFrame:
    """Return the rises and the largest jumps of all runs, in points or nats.

    Columns: `size`, `arm`, `measure`; `rise`, `rise_low`, `rise_high`: change over the last
    two doublings of the step; `step`: the first checkpoint after the largest jump upwards; `jump`,
    `jump_low`, `jump_high`: its height, with limits that hold for all places and runs; `share`,
    `share_low`, `share_high`: see `_share`, NaN for runs that are not able; `able`: whether a jump
    of ABRUPT of the rise would be seen with 80 % power wherever it is.
    """
    import pandas as pd

    rows = []
    for measure in MEASURES:
        each = {run: jumps[run, measure] for run in cells_of(params) if (run, measure) in jumps}
        critical = critical_over(list(each.values())) if each else 0.0
        for run, own in each.items():
            jump, rise = own.largest(critical), own.rise
            share, least_rise, strict = _share(own, list(each.values()))
            able = _able(own, least_rise, strict)
            rows.append((*run, measure, *rise.interval().values(), int(own.steps[own.place]),
                         *jump.interval().values(), *(share if able else (np.nan,) * 3),
                         able))  # fmt: skip
    columns = ["size", "arm", "measure"]
    for name in ("rise", "step", "jump", "share", "able"):
        columns += [name] if name in ("step", "able") else [name, f"{name}_low", f"{name}_high"]
    return pd.DataFrame(rows, columns=columns)


def _able(own: Jumps, least_rise: float, critical: float) -> bool:
    """Return whether a jump of ABRUPT of the rise would be seen with 80 % power wherever it is.

    The arguments are those that `_share` returns, the rise at its lower limit.
    """
    from scipy.special import ndtri

    return bool((critical + ndtri(POWER)) * np.max(own.errors) <= ABRUPT * least_rise)


def _share(own: Jumps, of_all: list[Jumps]) -> tuple[tuple[float, float, float], float, float]:
    """Return the largest jump of a run in percent of the run's rise, with a 95 % interval.

    The interval of the ratio holds for all runs at once: the jump and the rise each have half of
    its 5 % of error. Value and limits are NaN if the rise may be 0.

    Returns:
        Value, low and high; the lower limit of the rise; the number of standard errors of a jump.
    """
    from scipy.special import ndtri

    half_error = (1 - LEVEL) / 2
    critical = critical_over(of_all, 1 - half_error)
    jump, rise = own.largest(critical), own.rise
    half = (rise.high - rise.low) / 2 / Z_95 * float(ndtri(1 - half_error / 2 / len(of_all)))
    least, most = rise.value - half, rise.value + half
    if least <= 0:
        return (np.nan, np.nan, np.nan), least, critical
    low = jump.low / (most if jump.low > 0 else least)
    return (100 * jump.value / rise.value, 100 * low, 100 * jump.high / least), least, critical


# --- through the metric ----------------------------------------------------------------------


def _late(steps: np.ndarray) -> np.ndarray:
    return steps * 2 > steps.max(initial=0)


def links_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return how well each link, fitted to all other sizes, predicts the accuracy of a run.

    The smooth measure is from sums with every other first operand, the accuracy from the other
    sums.

    Columns: `accuracy`, `smooth`, `size`, `arm`; the mean absolute errors in the second half of
    training, in points: `error` of the link, `same_step` of the mean accuracy of the other sizes at
    the same step on the same text, `constant` of the best constant for all runs on this text,
    including this run; `late`: mean accuracy in the second half, on all sums, in percent.
    """
    import pandas as pd

    rows = []
    for (accuracy, smooth), (link, start) in LINKS.items():
        curves = _curves(params, measured, accuracy, smooth, halves=True)
        whole = _curves(params, measured, accuracy, smooth)
        if any(sum(text == arm for _, text in curves) < FEWEST_SIZES for arm in DATA_ARMS):
            continue
        constants = {
            arm: np.median(np.concatenate([
                c.accuracy[_late(c.steps)] for (_, text), c in curves.items() if text == arm
            ]))
            for arm in DATA_ARMS
        }  # fmt: skip
        for run, predictions in left_out(link, start, curves).items():
            own = curves[run]
            late = _late(own.steps)
            errors = [100 * float(np.abs(p - own.accuracy)[late].mean())
                      for p in (*predictions, constants[run[1]])]  # fmt: skip
            mean = 100 * float(whole[run].accuracy[late].mean())
            rows.append((accuracy, smooth, *run, *errors, mean))
    columns = ["accuracy", "smooth", "size", "arm", "error", "same_step", "constant", "late"]
    return pd.DataFrame(rows, columns=columns)


def _curves(
    params: Params, measured: Measurements, accuracy: str, smooth: str, halves: bool = False
) -> dict[Cell, Curves]:
    """Return the curves of all runs, from the first update on.

    With `halves`, accuracy and smooth measure are those of different first operands.
    """
    of_smooth, of_accuracy = (
        (slice(0, None, 2), slice(1, None, 2)) if halves else (slice(None),) * 2
    )
    curves = {}
    for run in cells_of(params):
        steps, y = sum_curves(measured, accuracy, run)
        _, x = sum_curves(measured, smooth, run)
        read = steps > 0
        if read.any():
            curves[run] = Curves(
                steps[read], y[read][:, of_accuracy].mean(1), x[read][:, of_smooth].mean(1)
            )
    return curves


def link_curves(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the links fitted to all runs and all sums, for drawing.

    Columns: `accuracy`, `smooth`; `x`: the smooth measure; `value`: accuracy from 0 to 1.
    """
    import pandas as pd

    rows = []
    for (accuracy, smooth), (link, start) in LINKS.items():
        curves = list(_curves(params, measured, accuracy, smooth).values())
        if not curves:
            continue
        x, y = (np.concatenate([getattr(c, k) for c in curves]) for k in ("smooth", "accuracy"))
        grid = np.linspace(np.quantile(x, 0.1), x.max(), 40)
        fitted = link(fit_link(link, start, x, y), grid)
        rows += [(accuracy, smooth, *point) for point in zip(grid, fitted, strict=True)]
    return pd.DataFrame(rows, columns=["accuracy", "smooth", "x", "value"])


def product(params: Params, measured: Measurements) -> Test:
    """Test the share of exact answers against the mean probability of the right answer.

    Both are means over all sums, runs and checkpoints of the second half of training. Their ratio
    has an interval over first operands. Where no run learns sums, both are near 1 / (number of
    possible answers) whatever the metric does, so that nothing is tested.
    """
    shares, span = [], 0.0
    for measure in ("exact", PRODUCT):
        late = []
        for run in cells_of(params):
            steps, curves = sum_curves(measured, measure, run)
            if _late(steps).any():
                late.append(curves[_late(steps)].mean(0))
        shares.append(np.mean(late, axis=0) if late else np.zeros(1))
        if late and measure == "exact":
            span = 100 * float(np.ptp(np.mean(late, axis=1)))
    exact, expected = shares
    if not exact.any():
        return untestable("no sum is answered exactly")
    ratio = exact.mean() / expected.mean()
    relative = exact / exact.mean() - expected / expected.mean()  # the delta method for logarithms
    e = mean_over(np.log2(ratio) + relative / np.log(2))
    units = f"{len(exact)} first operands; these runs, second half of training"
    note = (
        f"doublings from the mean probability of the right answer ({100 * expected.mean():.2g} %) "
        f"to the share of exact answers ({100 * exact.mean():.2g} %), all runs together"
    )
    if span < 2 * MOST_ERROR["exact"]:
        return untestable(alike(span), e, "doublings", units, note)
    return within(e, "doublings", units, FACTOR, note)


def alike(span: float) -> str:
    """Return why accuracies cannot test a link if the means of runs span only `span` points."""
    return (
        f"averaged over the second half of training, the runs lie within {span:.2g} points of each "
        "other, so that a constant would predict them, too"
    )


# --- over size -------------------------------------------------------------------------------


def ends_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the scores at the end, with a t-interval over first operands.

    Columns: `size`, `arm`, `n_params`, `measure`, `value`, `low`, `high`; shares are from 0 to 1.
    """
    import pandas as pd

    rows = []
    for size, arm in cells_of(params):
        n = measured.facts["n_params"][size]
        for measure in MEASURES:
            steps, curves = sum_curves(measured, measure, (size, arm))
            if len(steps) and steps[-1] == measured.facts["steps"]:
                rows.append((size, arm, n, measure, *mean_over(curves[-1]).interval().values()))
    columns = ["size", "arm", "n_params", "measure", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


# --- all tables, and numbers for prose --------------------------------------------------------


def tables_of(params: Params, measured: Measurements) -> Tables:
    """Return all tables of this part of the study, by name."""
    jumps = all_jumps(params, measured)
    return {
        "sums": curves_table(params, measured),
        "sums_smooth": smooth_table(params, jumps),
        "sums_end": ends_table(params, measured),
        "jumps": jumps_table(params, jumps),
        "links": links_table(params, measured),
        "link_curves": link_curves(params, measured),
    }


def curves_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the mean scores of the runs at every checkpoint.

    Columns: `size`, `arm`, `step`, `percent` (of training), and STORED; shares are from 0 to 1.
    """
    import pandas as pd

    tables = []
    for run in cells_of(params):
        size, arm = run
        means = {m: sum_curves(measured, m, run)[1].mean(1).round(6) for m in STORED}
        steps, _ = sum_curves(measured, PRODUCT, run)
        percent = 100 * steps / measured.facts["steps"]
        columns = {"size": size, "arm": arm, "step": steps, "percent": percent, **means}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def smooth_table(params: Params, jumps: dict[tuple[Cell, str], Jumps]) -> pd.DataFrame:
    """Return the smooth curves, in points or nats: `size`, `arm`, `step`, and MEASURES."""
    import pandas as pd

    tables = []
    for size, arm in cells_of(params):
        each = {m: jumps[(size, arm), m] for m in MEASURES if ((size, arm), m) in jumps}
        if len(each) == len(MEASURES):
            values = {m: own.smooth.round(4) for m, own in each.items()}
            columns = {"size": size, "arm": arm, "step": each["choice"].window, **values}
            tables.append(pd.DataFrame(columns))
    empty = pd.DataFrame(columns=["size", "arm", "step", *MEASURES])
    return pd.concat(tables, ignore_index=True) if tables else empty


def values(params: Params, measured: Measurements, tables: Tables) -> dict[str, Any]:
    """Return the numbers about our sums that the page quotes, by name.

    - `sums_asked`: the number of sums.
    - `ARM_least`, `ARM_most`: the lowest and the highest accuracy in choosing of the runs on a
      text, means over the second half of training, in percent.
    - `riser`, `riser_arm`: the run whose choice accuracy rises most; `rise_choice`, `rise_margin`:
      its rises; `jump_choice`, `jump_margin`, `jump_choice_step`: its largest jumps.
    - `rise_margin_standard`: the largest rise of a margin on the standard text.
    - `rise_logprob_least`, `rise_logprob_most`: the smallest and the largest rise of a
      log-probability on the standard text, in nats.
    - `link_margin`, `link_logprob`, `link_constant`: errors in predicting choices, means over
      sizes (see `links_table`).
    - `product_factor`: the share of exact answers divided by the one expected from PRODUCT.
    """
    jumps, links = tables["jumps"], tables["links"]
    numbers: dict[str, Any] = {"sums_asked": int(measured.arrays["sums/count"].sum())}
    choices = links[links.accuracy == "choice"]
    from_margin = choices[choices.smooth == "margin"]
    ends = {arm: from_margin[from_margin.arm == arm].late for arm in DATA_ARMS}
    standard = jumps[jumps.arm == "standard"]
    ends["rise_logprob"] = standard[standard.measure == "logprob"].rise
    for name, several in ends.items():
        for end, pick in (("least", min), ("most", max)):
            numbers[f"{name}_{end}"] = float(pick(several)) if len(several) else None
    chosen = jumps[jumps.measure == "choice"]
    riser = chosen.loc[chosen.rise.idxmax()] if len(chosen) else None
    numbers["riser"], numbers["riser_arm"], numbers["jump_choice_step"] = (
        (riser["size"], riser.arm, int(riser.step)) if riser is not None else (None,) * 3
    )
    own = jumps[(jumps["size"] == numbers["riser"]) & (jumps.arm == numbers["riser_arm"])]
    for measure in ("choice", "margin"):
        for column in ("rise", "jump"):
            numbers[f"{column}_{measure}"] = _largest(own[own.measure == measure], column)
    numbers["rise_margin_standard"] = _largest(standard[standard.measure == "margin"], "rise")
    for name, smooth, column in (
        ("margin", "margin", "error"), ("logprob", "logprob", "error"),
        ("constant", "margin", "constant"),
    ):  # fmt: skip
        errors = choices[choices.smooth == smooth].groupby("size")[column].mean()
        numbers[f"link_{name}"] = mean_over(errors).interval() if len(errors) else None
    e = product(params, measured).estimate
    numbers["product_factor"] = (
        {key: float(2**value) for key, value in e.interval().items()} if e else None
    )
    return numbers


def _largest(rows: pd.DataFrame, name: str) -> dict[str, float] | None:
    """Return the largest value in the column `name`, with its interval."""
    if rows.empty:
        return None
    top = rows.loc[rows[name].idxmax()]
    ends = zip(("value", "low", "high"), (name, f"{name}_low", f"{name}_high"), strict=True)
    return {end: float(top[column]) for end, column in ends}
