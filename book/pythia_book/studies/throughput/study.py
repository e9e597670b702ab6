"""Throughput of training on one GPU: predictions first, measurements beside them where there are.

Predicted (pythia_book.bench.cost_model) is what a token should cost on an H100 under torch.compile,
in our step, and if every part ran at its best; measured are the rows that `bench train --device
cuda` left (pythia_book.bench.rows), never those of a dry run. Without any, the tables of
measurements are empty and every value says so. The paper's own rates follow from its GPU-hours.
Measuring is not done here: a page must not hang on a machine. Tables only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pythia_book.bench import cost_model
from pythia_book.bench.rows import COMMAND, Row, measured_rows
from pythia_book.released import recipe
from pythia_book.stats import NOT_TESTABLE
from pythia_book.studies.throughput.params import STUDY, ThroughputParams
from pythia_book.study import StudyResult
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training import memory
from pythia_core.training.execution import Execution

if TYPE_CHECKING:
    import pandas as pd

NOT_MEASURED = "not yet measured"
PREDICTED = {"compile": "compiled", "eager": "eager"}
"""Which prediction a rival's measurement is compared with, by mode; ours with "ours"."""
SIDES = {"ours": ("ours", ""), "rival": ("plain", "compile"), "library": ("transformers", "")}
"""Who is compared, in which mode."""
COMPARED = (
    *("size", "contender", "ours", "rival", "library"),
    *("ratio", "low", "high", "predicted_ratio", "error_percent"),
)
USABLE_GIB = 78
"""Of an H100 of 80 GB."""
WITHIN = 15.0
"""Percent by which a prediction may miss and still count as right."""
MEASURED = (
    *("size", "purpose", "contender", "who", "rows", "seq_len", "micro_batches"),
    *("tokens_per_s", "low", "high", "predicted", "mfu_causal", "mfu_full"),
    *("products_share", "attainable_share", "peak_gib", "note"),
)


def run(params: ThroughputParams) -> StudyResult:
    """Predict, read what was measured, compare."""
    started = time.time()
    rows = measured_rows()
    train = [r for r in rows if r["kind"] == "train" and r["size"] in params.size_list]
    machine = pick_machine(rows)
    tables = {
        "predicted": predicted_table(params.size_list),
        "goals": goals_table(params.size_list),
        "measured": measured_table(train, machine),
        "compared": compared_table(params.size_list, train),
    }
    claims = claims_of(tables)
    values = values_of(tables, machine)
    return StudyResult(STUDY, params, tables, values, claims, [], started)


# --- tables ----------------------------------------------------------------------------------


def predicted_table(sizes: tuple[str, ...]) -> pd.DataFrame:
    """size, way (cost_model.WAYS), the ns a token of each part, ns_per_token, tokens_per_s,
    mfu_causal, mfu_full, of an H100; without the optimizer."""
    import pandas as pd

    peak = cost_model.peak_tflops("H100")
    rows = []
    for size in sizes:
        model = OFFICIAL_SIZES[size].model()
        for way in cost_model.WAYS:
            rate = 1e9 / cost_model.ns_per_token(model, way)
            shares = {
                f"mfu_{name}": cost_model.mfu(model, rate, peak, causal)
                for name, causal in (("causal", True), ("full", False))
            }
            parts = cost_model.parts(model, way)
            rows.append(
                {"size": size, "way": way, **parts, "ns_per_token": 1e9 / rate,
                 "tokens_per_s": rate, **shares}
            )  # fmt: skip
    return pd.DataFrame(rows)


def goals_table(sizes: tuple[str, ...]) -> pd.DataFrame:
    """size, parameters, target (tokens/s on one H100), hours (one H100, all of training, at it),
    paper_hours, paper_tokens_per_s and paper_mfu (A100s, causal), state_gib and largest_rows (of a
    micro-batch in USABLE_GIB, by estimate)."""
    import pandas as pd

    rows = []
    for size in sizes:
        model, hours = OFFICIAL_SIZES[size].model(), recipe.HARDWARE[size].gpu_hours
        target = cost_model.TARGETS[size]
        rate = recipe.TOKENS / (3600 * hours) if hours else None
        share = rate and cost_model.mfu(model, rate, recipe.A100_PEAK / 1e12, causal=True)
        rows.append(
            {
                "size": size,
                "parameters": model.n_params,
                "target": target,
                "hours": recipe.TOKENS / target / 3600,
                "paper_hours": hours,
                "paper_tokens_per_s": rate,
                "paper_mfu": share,
                "state_gib": memory.state_bytes(model, "bf16") / memory.GIB,
                "largest_rows": memory.largest_micro_batch(
                    model, cost_model.SEQ_LEN, USABLE_GIB * memory.GIB, Execution(), "bf16"
                ),
            }
        )
    return pd.DataFrame(rows)


def pick_machine(rows: list[Row]) -> Row:
    """The machine of the newest run, with its ceilings by name; empty if nothing was measured."""
    machines = [row for row in rows if row["kind"] == "machine"]
    if not machines:
        return {}
    newest = max(machines, key=lambda row: row["run"])
    ceilings = {
        row["what"]: row["value"]
        for row in rows
        if row["kind"] == "ceiling" and row["run"] == newest["run"]
    }
    return {**newest, "ceilings": ceilings}


def measured_table(train: list[Row], machine: Row) -> pd.DataFrame:
    """Every measurement with the prediction for its update, and what it is a share of: the data
    sheet (mfu), products and every part at its best at the rate of products of its run. note: why
    there is none, or what the kernels warned of."""
    import pandas as pd

    found = []
    for row in train:
        model = OFFICIAL_SIZES[row["size"]].model(max_seq_len=row["seq_len"])
        cells = {name: row.get(name) for name in MEASURED}
        cells["note"] = row.get("error") or "; ".join(row.get("said", []))
        if "tokens_per_s" in row:
            way = "ours" if row["who"] == "ours" else PREDICTED[row["mode"]]
            at_2048 = row["seq_len"] == cost_model.SEQ_LEN
            update, products = row["tokens_per_update"], row["products_tflops"]
            best = cost_model.predicted_tokens_per_s(model, "ideal", update)
            cells |= {
                "low": row["tokens_per_s_low"],
                "high": row["tokens_per_s_high"],
                "predicted": cost_model.predicted_tokens_per_s(model, way, update)
                if at_2048
                else None,
                "products_share": row["tflops_causal"] / products,
                "attainable_share": row["tokens_per_s"] / (best * products / cost_model.MATMUL)
                if at_2048
                else None,
                "peak_gib": row["peak_bytes"] and row["peak_bytes"] / 2**30,
            }
        found.append(cells)
    return pd.DataFrame(found, columns=list(MEASURED))


def compared_table(sizes: tuple[str, ...], train: list[Row]) -> pd.DataFrame:
    """A row a size: contender (our fastest), ours, rival (the same model under torch.compile),
    library (transformers' fastest), ratio with low and high, predicted_ratio, and error_percent by
    which our prediction misses; missing where it is not measured."""
    import pandas as pd

    rows = []
    for size in sizes:
        model = OFFICIAL_SIZES[size].model()
        sides = {name: _fastest(train, size, *side) for name, side in SIDES.items()}
        ours, rival = sides["ours"], sides["rival"]
        ns = [cost_model.ns_per_token(model, way) for way in ("compiled", "ours")]
        cells: dict[str, Any] = dict.fromkeys(COMPARED) | {"size": size}
        cells |= {name: row and row["tokens_per_s"] for name, row in sides.items()}
        cells["predicted_ratio"] = ns[0] / ns[1]
        if ours:
            cells["contender"] = ours["contender"]
            update = ours["tokens_per_update"]
            predicted = cost_model.predicted_tokens_per_s(model, "ours", update)
            cells["error_percent"] = 100 * (ours["tokens_per_s"] / predicted - 1)
        if ours and rival:
            cells["ratio"] = ours["tokens_per_s"] / rival["tokens_per_s"]
            cells["low"] = ours["tokens_per_s_low"] / rival["tokens_per_s_high"]
            cells["high"] = ours["tokens_per_s_high"] / rival["tokens_per_s_low"]
        rows.append(cells)
    return pd.DataFrame(rows, columns=list(COMPARED))


def _fastest(train: list[Row], size: str, who: str, mode: str) -> Row | None:
    """The fastest measurement of one side at a size, on the batch that all share; any mode: ""."""
    found = [
        row
        for row in train
        if row["size"] == size
        and row["purpose"] in ("compare", "price")
        and row["who"] == who
        and mode in ("", row["mode"])
        and "tokens_per_s" in row
    ]
    return max(found, key=lambda row: row["tokens_per_s"], default=None)


# --- claims and values -----------------------------------------------------------------------


def claims_of(tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """The goal, and whether the predictions were right; both over the sizes that were measured."""
    compared = tables["compared"]
    rows = [
        {
            "claim": f"At every size measured, an update is at least {cost_model.GOAL:g} times as "
            "fast as the same model's in plain torch under torch.compile (smallest ratio)",
            "paper": "not measured",
            "published": None,
            **dict.fromkeys(("ours", "low", "high")),
            "verdict": NOT_TESTABLE,
        },
        {
            "claim": f"The speed of our update was predicted to within {WITHIN:g} % at every size "
            "measured (largest miss, %)",
            "paper": "not measured",
            "published": None,
            **dict.fromkeys(("ours", "low", "high")),
            "verdict": NOT_TESTABLE,
        },
    ]
    both = compared.dropna(subset="ratio")
    if len(both):
        least = both.loc[both.ratio.astype(float).idxmin()]
        holds = "holds" if least.low >= cost_model.GOAL else "does not hold"
        between = least.low < cost_model.GOAL <= least.high
        rows[0] |= {"ours": float(least.ratio), "low": float(least.low), "high": float(least.high)}
        rows[0]["verdict"] = NOT_TESTABLE if between else holds
    known = compared.dropna(subset="error_percent").error_percent.astype(float)
    if len(known):
        miss = float(known.abs().max())
        rows[1] |= {"ours": miss, "verdict": "holds" if miss <= WITHIN else "does not hold"}
    return rows


def values_of(tables: dict[str, pd.DataFrame], machine: Row) -> dict[str, Any]:
    """For prose."""
    both = tables["compared"].dropna(subset="ratio")
    ceilings = machine.get("ceilings", {})
    values: dict[str, Any] = {
        "status": f"{machine['device']}, {machine['run'][:10]}" if machine else NOT_MEASURED,
        "bench": COMMAND,
        "sizes_measured": len(both),
        "sizes_at_goal": int((both.ratio >= cost_model.GOAL).sum()),
    }
    for name, what in CEILINGS.items():
        values[name] = ceilings.get(what, NOT_MEASURED)
    for name, least in (("ratio_least", True), ("ratio_most", False)):
        ratios = both.ratio.astype(float)
        values[name] = (
            NOT_MEASURED if both.empty else float(ratios.min() if least else ratios.max())
        )
    return values


CEILINGS = {
    "products_best": "products, best, TFLOP/s",
    "products_sustained": "products, sustained, TFLOP/s",
    "copy_measured": "copy, TB/s",
}
