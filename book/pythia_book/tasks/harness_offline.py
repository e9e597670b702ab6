"""Our tasks in the language-model evaluation harness, offline, with any model it knows.

Definitions are the harness' own, included by path, with local JSONL files as their data and the
first solved examples as their examples. Where the harness has no definition (WinoBias) or another
prompt (arithmetic, TriviaQA), one is written here. Tests compare our scores with the harness' so.

`lm_eval` is an optional dependency, imported when a function here is called.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pythia_book.tasks.benchmarks import Item, task_named
from pythia_book.tasks.harness import lm_eval_package
from pythia_book.tasks.metrics import BuiltTask, GeneratedTask, ScoredTask


@dataclass(frozen=True)
class HarnessResult:
    """The harness' result for one task."""

    metrics: dict[str, float]
    """Its aggregated metrics: acc, acc_norm, perplexity, and *_stderr."""
    acc: np.ndarray
    """float64[items]; pct_stereotype of sentence pairs, exact_match of generated answers."""
    acc_norm: np.ndarray
    """float64[items]; acc where the task has none."""
    logprob: tuple[np.ndarray, ...]
    """Per item the log-probability of every answer, in nats; empty for generated answers."""


def evaluate_with_harness(lm: Any, built: Sequence[BuiltTask]) -> dict[str, HarnessResult]:
    """Run the harness on built tasks; the result has their keys ("piqa_0").

    Args:
        lm: `adapter(...)`, or any other model of the harness.

    Raises:
        MissingDependencyError: lm_eval is not installed.
    """
    lm_eval = lm_eval_package()
    from lm_eval.tasks import TaskManager

    names = {task.key: f"local_{task.key}" for task in built if len(task.fits)}
    if not names:
        return {}
    with tempfile.TemporaryDirectory(prefix="harness-") as folder, _offline(folder):
        for task in built:
            if task.key in names:
                _write_task(Path(folder), task, names[task.key])
        manager = TaskManager(include_path=folder, include_defaults=False)
        loaded = manager.load(list(names.values()))
        done = lm_eval.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True)
    return {
        key: _result(done["samples"][name], done["results"][name]) for key, name in names.items()
    }


def _result(samples: list[dict[str, Any]], metrics: dict[str, Any]) -> HarnessResult:
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    key = next(k for k in ("acc", "pct_stereotype", "exact_match") if k in samples[0])
    acc = np.array([float(s[key]) for s in samples])
    norm = np.array([float(s.get("acc_norm", s[key])) for s in samples])
    generated = key == "exact_match"
    logprob = tuple(
        np.array([] if generated else [_logprob(r) for r in s["filtered_resps"]]) for s in samples
    )
    numbers = {k.split(",")[0]: v for k, v in metrics.items() if isinstance(v, (int, float))}
    return HarnessResult(numbers, acc, norm, logprob)


def _logprob(response: Any) -> float:
    """Of a response that may be (log-probability, greedy)."""
    return float(response[0] if isinstance(response, (tuple, list)) else response)


def _write_task(folder: Path, task: BuiltTask, name: str) -> None:
    """A definition, the harness' own where it has one, and the task's data as JSONL."""
    examples: Sequence[Item] = ()
    if isinstance(task, GeneratedTask):
        items, definition = _generation_definition(task)
    elif yaml := task_named(task.name).yaml:
        items, examples = task.items, task.examples
        own = Path(lm_eval_package().__file__).parent / "tasks" / yaml
        definition = {"num_fewshot": task.shots, "include": str(own)}
    else:
        items, definition = _choice_definition(task)
    files = {}
    for split, rows in (("train", examples or items[:1]), ("test", items)):  # none may be empty
        files[split] = str(folder / f"{task.key}-{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    definition |= {
        "task": name,
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
    (folder / f"{task.key}.yaml").write_text(json.dumps(definition, indent=1), "utf-8")


def _choice_definition(task: ScoredTask) -> tuple[list[Item], dict[str, Any]]:
    prompts = [task_named(task.name).prompt(item) for item in task.items]
    items = [
        {"context": p.contexts[0], "answers": list(p.continuations), "gold": p.gold}
        for p in prompts
    ]
    return items, {
        "num_fewshot": task.shots,
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
    }


def _generation_definition(task: GeneratedTask) -> tuple[list[Item], dict[str, Any]]:
    """Every question is an item; its solved examples are part of it."""
    settings = task_named(task.name)
    items = [
        {"context": text, "targets": sorted(right)}
        for text, right in zip(task.contexts, task.targets, strict=True)
    ]
    answer = {"function": "remove_whitespace"}
    if settings.pattern:
        answer = {"function": "regex", "regex_pattern": f"({settings.pattern})"}
    return items, {
        "num_fewshot": 0,
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{targets}}",
        "generation_kwargs": {
            "until": list(settings.until), "max_gen_toks": settings.max_new, "do_sample": False,
        },
        "filter_list": [{"name": "answer", "filter": [answer, {"function": "take_first"}]}],
        "metric_list": [
            {"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}
        ],
    }  # fmt: skip


@contextlib.contextmanager
def _offline(folder: str) -> Iterator[None]:
    """Nothing is fetched or cached elsewhere, and the harness shows neither log nor bars."""
    import datasets

    config, log = datasets.config, logging.getLogger("lm_eval")
    before = config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE, log.level
    config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE = Path(folder) / "cache", True
    datasets.disable_progress_bars()
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its bars have no switch
            yield
    finally:
        config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE = before[:2]
        datasets.enable_progress_bars()
        log.setLevel(before[2])
