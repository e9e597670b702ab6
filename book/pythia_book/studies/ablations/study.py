"""Compare Pythia's architecture with others that differ from it in one choice each.

The paper chose its architecture from the literature (section 2.3). Here every choice is undone in
turn: each arm trains models on the same batches as Pythia's architecture and, wherever both have a
parameter, from the same initial weights. Differences are paired by seed.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.stats import Estimate, mean_over_known, quoted
from pythia_book.studies.ablations.claims import GAIN, MARGIN, SUITE, claims, worth
from pythia_book.studies.ablations.params import BASELINE, MEAN, STUDY, Params
from pythia_book.study import Analysis, Measurements, Origin, Result, Tables, name_of
from pythia_core.suite import scale_named


def run(params: Params, progress: bool = True) -> Result:
    """Find or train the models of all arms, and compare their losses and speeds."""
    return conduct(STUDY, params, partial(measure, params, progress), partial(analyze, params))


def measure(params: Params, progress: bool = True) -> Measurements:
    """Train the models of all arms, unless their results are kept, and time their updates.

    loss/<size>/<arm>: float64[seeds, checkpoints], mean over held-out rows, nats per token
    seconds/<size>/<arm>: float64[rounds], of one update on one thread

    Facts: `parameters` of each size and arm; `heldout_rows`, a count; `init_factors`, see
    training.init_factors.
    """
    from pythia_book.studies.ablations import training
    from pythia_core.data.prepare import prepare

    jobs = {}
    for seed in range(params.seeds):
        data = prepare(params.config(params.size_list[0], BASELINE, seed).data, progress)
        for size in params.size_list[::-1]:
            for arm in params.arm_list:
                config = params.config(size, arm, seed)
                jobs[size, arm, seed] = training.Job(arm, config, params.checkpoints, data)
    trained = dict(zip(jobs, training.train_all([*jobs.values()], progress), strict=True))
    arrays, parameters = {}, {}
    for size in params.size_list:
        first = {arm: jobs[size, arm, 0] for arm in params.arm_list}
        seconds = training.seconds_per_update([*first.values()], progress)
        for (arm, job), times in zip(first.items(), seconds, strict=True):
            rows = [trained[size, arm, seed]["loss"] for seed in range(params.seeds)]
            arrays[name_of("loss", size, arm)] = np.array([r.mean(1, np.float64) for r in rows])
            arrays[name_of("seconds", size, arm)] = times
            parameters[name_of(size, arm)] = training.n_parameters(arm, job.config.model)
    origin = Origin(
        data=sorted({job.data.fingerprint for job in jobs.values()}),
        training_s=float(sum(each["seconds"].sum() for each in trained.values())),
    )
    facts = {
        "parameters": parameters,
        "heldout_rows": len(training.heldout_rows(next(iter(jobs.values())).data)),
        "init_factors": {
            size: training.init_factors(params.config(size, BASELINE, 0).model)
            for size in params.size_list
        },
    }
    return Measurements(arrays, facts, origin=origin)


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements; `released` is not used.

    Tables have the columns `size`, `arm`, `value`, `low`, `high`. Differences are an arm's loss
    minus Pythia's, in nats per token; `size` may be MEAN, the mean over sizes for each seed.

    `differences`: over training, by `step`.
    `arms`: at the end, with `parameters`, `loss` with `loss_low` and `loss_high`, `difference` as
        `value`, and `speed` relative to Pythia's with its range over rounds.
    """
    import pandas as pd

    arrays = measured.arrays
    changes = {
        (size, arm): arrays[name_of("loss", size, arm)] - arrays[name_of("loss", size, BASELINE)]
        for size in params.size_list
        for arm in params.arm_list
    }
    for arm in params.arm_list:
        changes[MEAN, arm] = np.mean([changes[size, arm] for size in params.size_list], axis=0)
    final = {cell: mean_over_known(change[:, -1]) for cell, change in changes.items()}
    over_training = [
        {"size": size, "arm": arm, "step": step} | interval(mean_over_known(column))
        for (size, arm), change in changes.items()
        if arm != BASELINE
        for step, column in zip(params.checkpoints, change.T, strict=True)
    ]
    rows = []
    for size in params.size_list:
        for arm in params.arm_list:
            loss = interval(mean_over_known(arrays[name_of("loss", size, arm)][:, -1]))
            ratios = speeds(arrays, size, arm)
            rows.append(
                {
                    "size": size,
                    "arm": arm,
                    "parameters": measured.facts["parameters"][name_of(size, arm)],
                    "loss": loss["value"],
                    "loss_low": loss["low"],
                    "loss_high": loss["high"],
                    **interval(final[size, arm] if arm != BASELINE else None),
                    "speed": float(np.median(ratios)),
                    "slowest": float(ratios.min()),
                    "fastest": float(ratios.max()),
                }
            )
    tables = {"differences": pd.DataFrame(over_training), "arms": pd.DataFrame(rows)}
    return tables, _values(params, measured, final), claims(params, final)


def interval(e: Estimate | None) -> dict[str, float]:
    """Return an estimate as the columns `value`, `low` and `high`; NaN where there is none."""
    return e.interval() if e else dict.fromkeys(("value", "low", "high"), math.nan)


def speeds(arrays: dict[str, np.ndarray], size: str, arm: str) -> np.ndarray:
    """Return an arm's speed relative to Pythia's, float64[rounds]."""
    seconds = (arrays[name_of("seconds", size, name)] for name in (BASELINE, arm))
    return np.divide(*seconds)


def _values(
    params: Params, measured: Measurements, final: dict[tuple[str, str], Estimate | None]
) -> dict[str, Any]:
    """Return the numbers and texts that the page quotes, by name.

    ROLE is "smallest" or "largest"; without it, numbers are means over sizes.

    - `change_ARM`, `change_ARM_ROLE`: final loss minus Pythia's, nats per token.
    - `speed_ARM_ROLE`: speed relative to Pythia's, the median over rounds.
    - `init_factor_ROLE`, `init_output_factor_ROLE`: see training.init_factors.
    - `tied_percent_ROLE`: by how many percent fewer parameters the tied model has;
      `tied_worth_ROLE`: what that many parameters are worth in Pythia's architecture, in nats.
    - `margin_total`: the margin if embeddings counted as parameters.
    """
    scale, sizes = scale_named(params.scale), params.size_list
    roles = {"smallest": sizes[0], "largest": sizes[-1]}
    parameters = measured.facts["parameters"]
    numbers: dict[str, Any] = {
        "sizes": " and ".join(sizes),
        "seeds": params.seeds,
        "models": len(sizes) * len(params.arm_list) * params.seeds,
        "updates": params.n_steps,
        "suite_updates": scale.steps,
        "batch": scale.batch_size,
        "row": scale.data.seq_len,
        "window": params.window,
        "tokens": params.n_steps * scale.batch_size * scale.data.seq_len,
        "heldout_rows": measured.facts["heldout_rows"],
        "margin": f"{MARGIN:g}",
        "margin_total": f"{worth(GAIN, embeddings=True):.3f}",
        "gain_percent": round(100 * (GAIN - 1)),
    }
    for size, model in SUITE.items():
        numbers |= {
            f"suite_parameters_{size}": model.n_params_non_embedding,
            f"suite_loss_{size}": model.loss,
        }
    for arm in params.arm_list[1:]:
        for name, size in {"": MEAN, **{f"_{role}": size for role, size in roles.items()}}.items():
            numbers[f"change_{arm}{name}"] = quoted(final[size, arm])
    for role, size in roles.items():
        numbers[f"size_{role}"] = size
        numbers[f"parameters_{role}"] = parameters[name_of(size, BASELINE)]
        for name, factor in zip(("", "_output"), measured.facts["init_factors"][size], strict=True):
            numbers[f"init{name}_factor_{role}"] = f"{factor:.1f}"
        if "tied" in params.arm_list:
            tied, untied = parameters[name_of(size, "tied")], numbers[f"parameters_{role}"]
            numbers[f"tied_percent_{role}"] = round(100 * (1 - tied / untied))
            numbers[f"tied_worth_{role}"] = f"{worth(untied / tied, embeddings=True):.2f}"
        for arm in params.arm_list[1:]:
            ratio = float(np.median(speeds(measured.arrays, size, arm)))
            numbers[f"speed_{arm}_{role}"] = f"{ratio:.2f}"
    return numbers
