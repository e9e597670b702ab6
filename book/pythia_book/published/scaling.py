"""Checks the paper's claims on the released benchmark results (sections 2.4 and 2.6).

Nothing is trained here. Every value has the standard error reported by the harness. Two models are
scored on the same items, but per-item results were not released, so a difference gets the error of
independent scores: its interval is too wide rather than too narrow. Means over tasks leave out WSC
(in a third of all rows it equals the share of the more frequent label). "Costs nothing" means that
the interval of the cost is below two points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.published.tables import MODELS, TASKS, TOKENS_PER_STEP
from pythia_book.records import interval_text
from pythia_book.stats import NOT_TESTABLE, directional_verdict, noninferiority_verdict
from pythia_core.suite import OFFICIAL_SIZES, size_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published

INFORMATIVE = tuple(task for task in TASKS if task != "wsc")
LAST, MIDDLE = 143_000, 93_000
COLUMNS = {
    "curves": ["model", "deduped", "shots", "task", "step", "tokens", "value", "low", "high"],
    "means": ["model", "deduped", "shots", "step", "tokens", "value", "low", "high"],
    "final": ["name", "family", "n_params", "task", "value", "low", "high"],
    "batch": ["model", "batch_tokens", "tokens", "value", "low", "high"],
}
Z = 1.959964
"""Half the width of a 95 % interval, in standard errors."""
UNAVAILABLE = "not available: set PYTHIA_PUBLISHED_DIR"
OPT_TWINS = {"160m": "opt-125m", "410m": "opt-350m", "1.4b": "opt-1.3b", "2.8b": "opt-2.7b"}
"""Pythia size -> OPT model of equal depth and width, below 6B."""
BLOOM_TWINS = {"410m": "bloom-560m", "1.4b": "bloom-1b7", "2.8b": "bloom-3b", "6.9b": "bloom-7b1"}
"""Pythia size -> BLOOM model of equal width and, within two layers, equal depth; BLOOM's larger
vocabulary makes the parameter counts differ."""
MARGINAL = 2.0
"""Costs below this many points count as none."""
NOT_RELEASED = "not among the released files"


@dataclass(frozen=True)
class PublishedScaling:
    """Tables for the figures, and claims with verdicts."""

    tables: dict[str, pd.DataFrame]
    """curves (accuracy over training), means (the same, over seven tasks), final (zero-shot, with
    OPT and BLOOM), batch (means over eight tasks, five-shot); columns as in COLUMNS."""
    claims: list[dict[str, Any]]


def published_scaling(published: Published | None) -> PublishedScaling:
    """Tables and claims of the released results; without a source, empty and untestable."""
    import pandas as pd

    if published is None or published.benchmarks.empty:
        return PublishedScaling(
            {name: pd.DataFrame(columns=columns) for name, columns in COLUMNS.items()},
            _claims(None),
        )
    rows = published.benchmarks
    acc = rows[rows.metric == "acc"]
    curves = _with_interval(acc.assign(tokens=acc.step * TOKENS_PER_STEP))
    tables = {
        "curves": curves[COLUMNS["curves"]],
        "means": _means(curves),
        "final": _final(published, acc),
        "batch": _batch(published),
    }
    return PublishedScaling(tables, _claims(published))


def published_deduplication(published: Published | None) -> pd.DataFrame:
    """Deduplicated minus standard accuracy in points, mean over the seven tasks without WSC, at
    steps 93,000 and 143,000: model, shots, step, value, low, high. Empty without a source.
    """
    import pandas as pd

    columns = ["model", "shots", "step", "value", "low", "high"]
    if published is None or published.benchmarks.empty:
        return pd.DataFrame(columns=columns)
    rows = published.benchmarks
    rows = rows[
        (rows.metric == "acc") & rows.task.isin(INFORMATIVE) & rows.step.isin([MIDDLE, LAST])
    ]
    differences = []
    for (shots, step, model), group in rows.groupby(["shots", "step", "model"]):
        value, error = _mean_difference(group[group.deduped], group[~group.deduped])
        differences.append((model, shots, step, *_interval(value, error)))
    frame = pd.DataFrame(differences, columns=columns)
    return _sorted(frame, ["shots", "step", "model"])


# --- tables ----------------------------------------------------------------------------------


def _with_interval(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(
        low=frame.value - Z * frame.stderr.fillna(0), high=frame.value + Z * frame.stderr.fillna(0)
    )


def _sorted(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Sort, with models by size rather than alphabetically."""
    rank = {name: i for i, name in enumerate(MODELS)}
    return frame.sort_values(
        by, key=lambda c: c.map(rank) if c.name == "model" else c, ignore_index=True
    )


def _mean_over_tasks(frame: pd.DataFrame, keys: list[str], n_tasks: int) -> pd.DataFrame:
    """Mean over tasks, with interval, of each group with all `n_tasks`, treated as independent."""
    grouped = frame.assign(variance=frame.stderr**2).groupby(keys)
    means = grouped.agg(value=("value", "mean"), variance=("variance", "sum"), n=("value", "size"))
    means = means[means.n == n_tasks].reset_index()
    return _with_interval(means.assign(stderr=means.variance**0.5 / means.n))


def _means(curves: pd.DataFrame) -> pd.DataFrame:
    keys = COLUMNS["means"][:5]
    means = _mean_over_tasks(curves[curves.task.isin(INFORMATIVE)], keys, len(INFORMATIVE))
    return _sorted(means[COLUMNS["means"]], ["shots", "model", "deduped", "step"])


def _final(published: Published, acc: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    ours = acc[(acc.shots == 0) & (acc.step == LAST)].copy()
    ours["name"] = ours.model + np.where(ours.deduped, "-deduped", "")
    ours["family"] = np.where(ours.deduped, "pythia-deduped", "pythia")
    ours["n_params"] = ours.model.map({m: size_named(m).model().n_params for m in OFFICIAL_SIZES})
    others = published.baselines
    others = others[others.metric == "acc"].rename(columns={"model": "name"})
    both = _with_interval(pd.concat([ours, others]))
    return both[COLUMNS["final"]].sort_values(["family", "n_params", "task"], ignore_index=True)


def _batch(published: Published) -> pd.DataFrame:
    """Five-shot means over the eight tasks, with small and full batches at equal tokens."""
    import pandas as pd

    small = published.batch_size
    small = small[(small.metric == "acc") & (small.shots == 5)]
    full = published.benchmarks
    full = full[(full.metric == "acc") & (full.shots == 5) & ~full.deduped]
    full = full.assign(batch_tokens=TOKENS_PER_STEP, tokens=full.step * TOKENS_PER_STEP)
    rows = pd.concat([small, full[full.model.isin(small.model.unique())]])
    keys = COLUMNS["batch"][:3]
    return _sorted(_mean_over_tasks(rows, keys, len(TASKS))[COLUMNS["batch"]], keys)


# --- claims ----------------------------------------------------------------------------------


def _interval(value: float, error: float) -> tuple[float, float, float]:
    return value, value - Z * error, value + Z * error


def _mean_difference(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, float]:
    """Mean of a - b over their common tasks, in points, and its standard error."""
    a, b = a.set_index("task"), b.set_index("task")
    tasks = [task for task in a.index if task in b.index]
    difference = 100 * (a.value[tasks] - b.value[tasks])
    variance = 100**2 * (a.stderr[tasks] ** 2 + b.stderr[tasks] ** 2)
    return float(difference.mean()), float(variance.sum() ** 0.5 / len(tasks))


def _claims(published: Published | None) -> list[dict[str, Any]]:
    """Claims with the released numbers as text and a verdict; `ours` is None."""
    findings = _Findings(published) if published and not published.benchmarks.empty else None
    rows: list[dict[str, Any]] = []
    for claim, paper, test in (
        ("Released models: accuracy rises with size (slope per tenfold size of the mean over seven "
         "tasks, points)", "rises", _Findings.size),
        ("Released models: the smallest lose LAMBADA accuracy late in training, the largest do not "
         "(last minus best checkpoint, points)", "not discussed", _Findings.decline),
        ("Released models: deduplication brings no clear benefit (mean over seven tasks, points)",
         "no clear benefit", _Findings.deduplication),
        ("Released models: batches of 2M tokens cost small models nothing (full minus small "
         "batches, five-shot mean over eight tasks, points)", "no harm", _Findings.batch),
        ("Released models: the parallel residual costs nothing against OPT below 6B (Pythia minus "
         "OPT of equal shape, mean over seven tasks, points)", "no loss", _Findings.opt),
        ("Released models: training on many languages costs BLOOM on some tasks only (BLOOM "
         "minus Pythia of equal shape, mean over four sizes, points)",
         "worse on LAMBADA, PIQA and WSC, not on the others", _Findings.bloom),
    ):  # fmt: skip
        text, verdict = test(findings) if findings else (UNAVAILABLE, NOT_TESTABLE)
        rows.append({"claim": claim, "paper": paper, "published": text, "ours": None,
                     "low": None, "high": None, "verdict": verdict})  # fmt: skip
    return rows


class _Findings:
    """One method per claim; returns (numbers as text, verdict)."""

    def __init__(self, published: Published) -> None:
        self.published = published
        rows = published.benchmarks
        self.acc = rows[rows.metric == "acc"]
        self.final = self.acc[(self.acc.shots == 0) & (self.acc.step == LAST)]

    def size(self) -> tuple[str, str]:
        standard = self.final[~self.final.deduped & self.final.task.isin(INFORMATIVE)]
        x = np.log10([size_named(m).model().n_params for m in standard.model])
        x = standard.assign(x=x - x.mean()).x
        weights = x / (x**2).groupby(standard.task).transform("sum")
        parts = standard.assign(slope=100 * weights * standard.value,
                                variance=(100 * weights * standard.stderr) ** 2)  # fmt: skip
        by_task = parts.groupby("task")[["slope", "variance"]].sum().loc[list(INFORMATIVE)]
        error = by_task.variance.sum() ** 0.5 / len(by_task)
        mean = _interval(float(by_task.slope.mean()), float(error))
        texts = [f"mean {interval_text(*mean, '.1f')}"]
        texts += [
            f"{t} {interval_text(*_interval(r.slope, r.variance**0.5), '.1f')}"
            for t, r in by_task.iterrows()
        ]
        return ", ".join(texts), directional_verdict(mean[1], mean[2], 1)

    def decline(self) -> tuple[str, str]:
        """The best of many checkpoints is biased upwards, so small declines mean nothing."""
        parts, falls = [], {}
        lambada = self.acc[(self.acc.task == "lambada_openai") & (self.acc.shots == 0)]
        for model in MODELS:
            scores = lambada[(lambada.model == model) & lambada.deduped].sort_values("step")
            best, last = scores.loc[scores.value.idxmax()], scores.iloc[-1]
            error = 100 * (best.stderr**2 + last.stderr**2) ** 0.5
            change = _interval(100 * (last.value - best.value), error)
            falls[model] = change[2] < 0
            parts.append(
                f"{model}-deduped {best.value:.3f} at {best.step:,} to {last.value:.3f}: "
                f"{interval_text(*change, '.1f')}"
            )
        small = falls["70m"] and falls["160m"]
        large = any(falls[m] for m in MODELS[3:])
        return ", ".join(parts), "holds" if small and not large else "does not hold"

    def deduplication(self) -> tuple[str, str]:
        frame = published_deduplication(self.published)
        parts, clear = [], []
        for (shots, step), group in frame.groupby(["shots", "step"]):
            error = ((group.high - group.low) / (2 * Z)).pow(2).sum() ** 0.5 / len(group)
            value, low, high = _interval(float(group.value.mean()), float(error))
            parts.append(f"{shots}-shot at {step:,}: {interval_text(value, low, high, '.2f')}")
            if step == LAST:  # the paper compares the final models
                clear.append(low > 0)
        return ", ".join(parts), "not reproduced" if any(clear) else "reproduced"

    def batch(self) -> tuple[str, str]:
        table = _batch(self.published)
        parts, harmed = [], []
        for model, group in table.groupby("model", sort=False):
            full = group[group.batch_tokens == TOKENS_PER_STEP].set_index("tokens")
            small = group[group.batch_tokens != TOKENS_PER_STEP].set_index("tokens")
            tokens = min(full.index.max(), small.index.max())
            if tokens not in full.index or tokens not in small.index:
                continue
            a, b = full.loc[tokens], small.loc[tokens]
            error = (
                100 * (((a.high - a.low) / (2 * Z)) ** 2 + ((b.high - b.low) / (2 * Z)) ** 2) ** 0.5
            )
            change = _interval(100 * (a.value - b.value), float(error))
            parts.append(f"{model} {interval_text(*change, '.1f')}")
            harmed.append(change[2] < 0)
        if not parts:
            return NOT_RELEASED, NOT_TESTABLE
        return ", ".join(parts), "not reproduced" if any(harmed) else "reproduced"

    def opt(self) -> tuple[str, str]:
        parts, pairs = [], self._paired(OPT_TWINS, INFORMATIVE)
        for (model, twin), pair in pairs.groupby(["model", "twin"], sort=False):
            parts.append(f"{model} minus {twin} {interval_text(*_average(pair), '.1f')}")
        if not parts:
            return NOT_RELEASED, NOT_TESTABLE
        value, low, high = _average(pairs)
        parts.append(f"mean {interval_text(value, low, high, '.1f')}")
        return ", ".join(parts), noninferiority_verdict(-high, -low, MARGINAL)

    def bloom(self) -> tuple[str, str]:
        parts, worse = [], []
        for task, pair in self._paired(BLOOM_TWINS, TASKS, -1).groupby("task", sort=False):
            value, low, high = _average(pair)
            parts.append(f"{task} {interval_text(value, low, high, '.1f')}")
            worse.append(high < 0)
        if not parts:
            return NOT_RELEASED, NOT_TESTABLE
        mixed = any(worse) and not all(worse)
        return ", ".join(parts), "reproduced" if mixed else "not reproduced"

    def _paired(self, twins: dict[str, str], tasks: tuple[str, ...], sign: int = 1) -> pd.DataFrame:
        """sign * (model - twin) at the last step, in points: model, twin, task, value, variance."""
        others = self.published.baselines
        others = others[others.metric == "acc"].rename(columns={"model": "twin"})
        scores = self.final[~self.final.deduped & self.final.task.isin(tasks)]
        both = scores.assign(twin=scores.model.map(twins)).merge(
            others[["twin", "task", "value", "stderr"]], on=["twin", "task"], suffixes=("", "_twin")
        )
        return both.assign(value=100 * sign * (both.value - both.value_twin),
                           variance=100**2 * (both.stderr**2 + both.stderr_twin**2))  # fmt: skip


def _average(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Mean of independent values, and its interval."""
    return _interval(float(rows.value.mean()), float(rows.variance.sum() ** 0.5 / len(rows)))
