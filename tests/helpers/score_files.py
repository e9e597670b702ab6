"""Made-up files in the layouts of the released evaluation results."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

WINOBIAS_TASKS = [f"wino_bias_type{t}_{side}" for t in (1, 2) for side in ("pro", "anti")]
PROMPTS = ("What does p stand for", "refers_to")


def harness(crows: float, lambada: float | None) -> dict:
    """Return a made-up result file of the evaluation harness, as parsed from JSON.

    Args:
        crows: share of the gender pairs of CrowS-Pairs in which the model prefers the stereotype.
        lambada: accuracy on LAMBADA; None: not in the file.
    """
    results = {
        "crows_pairs_english_gender": {
            "likelihood_difference": 4.0,
            "likelihood_difference_stderr": 0.2,
            "pct_stereotype": crows,
            "pct_stereotype_stderr": 0.027,
        },
        "piqa": {"acc": 0.7, "acc_stderr": 0.01},
    }
    if lambada is not None:
        results["lambada_openai"] = {"acc": lambada, "acc_stderr": 0.006, "ppl": 9.0}
    return {"results": results, "versions": {}, "config": {"model": "hf-causal"}}


def winobias(pro: float, anti: float) -> dict:
    """Return made-up scores on WinoBias for all tasks and prompts, as parsed from JSON.

    Args:
        pro: exact match on the pro-stereotypical tasks. anti: on the anti-stereotypical tasks.
    """
    return {
        f"{task}+{prompt}": {
            "task_name": task,
            "prompt_name": prompt,
            "em": pro if task.endswith("pro") else anti,
            "em_stderr": 0.02,
        }
        for task in WINOBIAS_TASKS
        for prompt in PROMPTS
    }


V1 = "evals/pythia-v1/pythia-410m-deduped"
TREE = {
    f"{V1}/zero-shot/410m-deduped_step3000.json": harness(0.55, 0.30),
    f"{V1}/zero-shot/410m-deduped_step143000.json": harness(0.99, 0.52),
    f"{V1}/baseline/baseline-410m-deduped_step143000.json": harness(0.60, None),
    f"{V1}/intervention/intervention-410m-deduped_step143000.json": harness(0.61, 0.51),
    "evals/pythia-v1/pythia-1.4b-deduped/intervention/"
    "intervention-1.4b-deduped-long_step114000.json": harness(0.62, 0.61),
    "evals/bias-evals/winobias/410M/eval_results_02-16-2023-00-59-19.json": {
        "results": [],
        "table_results": winobias(0.30, 0.20),
        "config": {"model_args": {"iteration": 143000}},
    },
    "evals/bias-evals/winobias/intervene_7/410M/eval_results_410m-deduped_143000.json": {
        "table_results": winobias(0.25, 0.21),
        "model_args": {"iteration": 143000},
    },
    "evals/pythia-v0/winobias/1.3B/eval_results_01-22-2023-21-31-01.json": {
        "results": [],
        "table_results": winobias(0.30, 0.20),
        "config": {"model_args": {"iteration": 67000}},
    },
    # a model without a twin
    "evals/pythia-v1/pythia-12b-deduped/zero-shot/12b-deduped_step143000.json": harness(0.3, 0.3),
    # ignored: other results of the first suite, the standard models
    "evals/pythia-v0/pythia-410m-deduped/zero-shot/410m-deduped_step3000.json": harness(0.1, 0.1),
    "evals/pythia-v1/pythia-410m/zero-shot/410m_step3000.json": harness(0.2, 0.2),
}


def as_folder(root: Path, tree: dict = TREE) -> Path:
    """Write `tree`, which maps paths to contents, as JSON files below `root`; return `root`."""
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def as_csv(root: Path) -> Path:
    """Write the numbers of TREE to `root` as CSV tables, and return `root`."""
    rows = []

    def add(model, arm, step, source, task, prompt, metric, value, suite="v1"):
        """Add a row to the table of bias scores."""
        row = dict(suite=suite, model=model, intervention=arm, step=step)
        row["step_2M_equiv"] = 2 * step if suite == "v0" else step
        row |= dict(source_folder=source, task=task, prompt=prompt, metric=metric, value=value)
        rows.append(row | {"stderr": {"pct_stereotype": 0.027, "em": 0.02}.get(metric, 0.006)})

    for arm, model, step, source, crows, lambada in (
        ("none", "410m", 3000, "v1/zero-shot", 0.55, 0.30),
        ("none", "410m", 143000, "v1/zero-shot", 0.99, 0.52),
        ("none", "410m", 143000, "v1/baseline", 0.60, None),
        ("swap_last_7pct", "410m", 143000, "v1/intervention", 0.61, 0.51),
        ("swap_last_21pct", "1.4b", 114000, "v1/intervention", 0.62, 0.61),
    ):
        crows_task = "crows_pairs_english_gender"
        add(model, arm, step, source, crows_task, "", "pct_stereotype", crows)
        if lambada:
            add(model, arm, step, source, "lambada_openai", "", "acc", lambada)
    for arm, pro, anti in (("none", 0.30, 0.20), ("swap_last_7pct", 0.25, 0.21)):
        for e in winobias(pro, anti).values():
            place = ("410m", arm, 143000, "bias-evals/winobias")
            add(*place, e["task_name"], e["prompt_name"], "em", e["em"])
    for e in winobias(0.30, 0.20).values():
        place = ("1.4b", "none", 67000, "pythia-v0/winobias")
        add(*place, e["task_name"], e["prompt_name"], "em", e["em"], "v0")
    add("410m", "none", 3000, "x", "crows_pairs_english_gender", "", "pct_stereotype", 0.1, "v0")
    root.mkdir(parents=True, exist_ok=True)
    twelve = dict(model="12b", deduped=1, shots=0, task="crows_pairs_english_gender", step=143000)
    twelve |= dict(metric="pct_stereotype", value=0.3, stderr=0.027)
    pd.DataFrame([twelve]).to_csv(root / "evals_crows_pairs_zero_shot.csv", index=False)
    pd.DataFrame(rows).to_csv(root / "bias_evals.csv", index=False)
    return root
