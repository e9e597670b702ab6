"""Our tasks asked by the language-model evaluation harness, offline, of any model it knows.

Definitions are the harness' own, included by path, with their data replaced by local JSONL files
and the solved examples fixed to the first ones; where it has none (WinoBias) or another prompt
(arithmetic, TriviaQA), one is written out. This is how tests hold our scores to the harness'.

`lm_eval` is an optional dependency, imported when a function here is called. Not here: our model in
the harness (pythia_book.tasks.harness).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pythia_book.tasks.benchmarks import task_named
from pythia_book.tasks.harness import lm_eval_package
from pythia_book.tasks.metrics import BuiltTask, GeneratedTask, ScoredTask


@dataclass(frozen=True)
class HarnessResult:
    """What the harness found for one task."""

    metrics: dict[str, float]
    """Its aggregated metrics: acc, acc_norm, perplexity, and *_stderr."""
    acc: np.ndarray
    """float64[items]; of sentence pairs pct_stereotype, of written answers exact_match."""
    acc_norm: np.ndarray
    """float64[items]; acc where the task has none."""
    logprob: tuple[np.ndarray, ...]
    """Per item the log-probability of every answer, in nats; of written answers empty."""


def evaluate_with_harness(lm: Any, built: Sequence[BuiltTask]) -> dict[str, HarnessResult]:
    """Run the harness on tasks that are built; the keys are theirs ("piqa_0").

    Args:
        lm: `adapter(...)`, or any other model of the harness.

    Raises:
        MissingDependencyError: lm_eval is not installed.
    """
    lm_eval = lm_eval_package()
    from lm_eval.tasks import TaskManager

    scored = [task for task in built if len(task.fits)]
    if not scored:
        return {}
    with tempfile.TemporaryDirectory(prefix="harness-") as folder, _offline(folder):
        for each in scored:
            _write_task(Path(folder), each)
        manager = TaskManager(include_path=folder, include_defaults=False)
        loaded = manager.load([f"local_{b.key}" for b in scored])
        done = lm_eval.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True)
    return {b.key: _result(done, f"local_{b.key}") for b in scored}


def _result(done: dict[str, Any], name: str) -> HarnessResult:
    samples = sorted(done["samples"][name], key=lambda sample: sample["doc_id"])
    metrics = {k.split(",")[0]: v for k, v in done["results"][name].items()}
    key = next(k for k in ("acc", "pct_stereotype", "exact_match") if k in samples[0])
    acc = np.array([float(s[key]) for s in samples])
    norm = np.array([float(s.get("acc_norm", s[key])) for s in samples])
    written = key == "exact_match"
    logprob = tuple(
        np.array([] if written else [_first(r) for r in s["filtered_resps"]]) for s in samples
    )
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
    return HarnessResult(numbers, acc, norm, logprob)


def _first(response: Any) -> float:
    """The log-probability of a (log-probability, greedy) response."""
    return float(response[0] if isinstance(response, (tuple, list)) else response)


def _write_task(folder: Path, built: BuiltTask) -> None:
    """A definition, of the harness where it has one, and the task's data as JSONL."""
    if isinstance(built, GeneratedTask):
        items, settings = _written_definition(built)
        examples: Sequence[dict] = ()
    else:
        items, examples, settings = built.items, built.examples, _chosen_definition(built)
        if "include" not in settings:
            prompts = [task_named(built.name).prompt(item) for item in items]
            items = [
                {"context": p.contexts[0], "answers": list(p.continuations), "gold": p.gold}
                for p in prompts
            ]
    files = {}
    for split, rows in (("train", examples or items[:1]), ("test", items)):  # none may be empty
        files[split] = str(folder / f"{built.key}-{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings |= {
        "task": f"local_{built.key}",
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": "train",
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
    }
    # JSON is YAML: nothing needs quoting by hand
    (folder / f"{built.key}.yaml").write_text(json.dumps(settings, indent=1), "utf-8")


def _chosen_definition(built: ScoredTask) -> dict[str, Any]:
    from importlib.util import find_spec

    yaml = task_named(built.name).yaml
    settings: dict[str, Any] = {"num_fewshot": built.shots}
    if yaml:
        return settings | {
            "include": str(Path(find_spec("lm_eval").origin).parent / "tasks" / yaml)
        }
    return settings | {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
    }


def _written_definition(built: GeneratedTask) -> tuple[list[dict], dict[str, Any]]:
    """Every question an item; solved examples are part of it."""
    task = task_named(built.name)
    items = [
        {"context": text, "targets": sorted(right)}
        for text, right in zip(built.contexts, built.targets, strict=True)
    ]
    read = [{"function": "remove_whitespace"}, {"function": "take_first"}]
    if task.pattern:
        read = [{"function": "regex", "regex_pattern": f"({task.pattern})"},
                {"function": "take_first"}]  # fmt: skip
    return items, {
        "num_fewshot": 0,
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{targets}}",
        "generation_kwargs": {
            "until": list(task.until), "max_gen_toks": task.max_new, "do_sample": False,
        },
        "filter_list": [{"name": "read", "filter": read}],
        "metric_list": [
            {"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}
        ],
    }  # fmt: skip


@contextlib.contextmanager
def _offline(folder: str) -> Iterator[None]:
    """Nothing is fetched or cached elsewhere, and the harness shows neither log nor bars."""
    import datasets

    before = {name: os.environ.get(name) for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE")}
    cache, level = datasets.config.HF_DATASETS_CACHE, logging.getLogger("lm_eval").level
    os.environ.update(dict.fromkeys(before, "1"))
    datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its bars have no switch
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        datasets.config.HF_DATASETS_CACHE = cache
        datasets.enable_progress_bars()
        logging.getLogger("lm_eval").setLevel(level)
