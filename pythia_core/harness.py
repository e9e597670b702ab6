"""The language-model evaluation harness on our checkpoints, offline.

The adapter is a `TemplateLM` around a model and a tokenizer; requests are scored by
pythia_core.evaluate, in batches of a token budget. Tasks are the harness' own definitions, included
by path, with their data replaced by local JSONL files and the solved examples fixed to the first
ones. Definitions may name Python functions, which the harness runs: only its own are used.

`lm_eval` is an optional dependency, imported when a function here is called.
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

from pythia_core import evaluate
from pythia_core.benchmarks import BuiltTask
from pythia_core.errors import MissingDependencyError, PythiaError
from pythia_core.tasks import TASKS


@dataclass(frozen=True)
class HarnessResult:
    """What the harness found for one task."""

    metrics: dict[str, float]
    """Its aggregated metrics: acc, acc_norm, perplexity, and *_stderr."""
    acc: np.ndarray
    """float64[items]."""
    acc_norm: np.ndarray
    """float64[items]; acc where the task has none."""
    logprob: tuple[np.ndarray, ...]
    """Per item the log-probability of every answer, in nats."""


def _lm_eval() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise MissingDependencyError(
            "the evaluation harness is not installed: pip install -e '.[eval]'"
        ) from error
    return lm_eval


def adapter(model: Any, tokenizer: Any, eod_id: int, max_seq_len: int) -> Any:
    """A harness model (lm_eval.api.model.TemplateLM) around one of ours."""
    _lm_eval()
    from lm_eval.api.model import TemplateLM

    encode = evaluate.encoder(tokenizer)

    class PythiaLM(TemplateLM):
        @property
        def eot_token_id(self) -> int:
            return eod_id

        def tok_encode(self, string: str, **_: Any) -> list[int]:
            return list(encode(string))

        def _loglikelihood_tokens(
            self, requests: list, disable_tqdm: bool = False, **_: Any
        ) -> list[tuple[float, bool]]:
            asked = [evaluate.Request(tuple(c), tuple(t)) for _, c, t in requests]
            found = evaluate.score(model, evaluate.pack(asked, max_seq_len))
            return list(zip(found.logprob.tolist(), found.greedy.tolist(), strict=True))

        def loglikelihood_rolling(self, requests: list, **_: Any) -> list[float]:
            raise PythiaError("this adapter has no rolling log-likelihood; no task here needs it")

        def generate_until(self, requests: list, **_: Any) -> list[str]:
            raise PythiaError("this adapter does not generate; no task here needs it")

    return PythiaLM()


def evaluate_with_harness(lm: Any, built: Sequence[BuiltTask]) -> dict[str, HarnessResult]:
    """Run the harness on built tasks; the keys are those of the tasks ("piqa_0").

    Args:
        lm: `adapter(...)`, or any other model of the harness.

    Raises:
        MissingDependencyError: lm_eval is not installed.
    """
    lm_eval = _lm_eval()
    from lm_eval.tasks import TaskManager

    scored = [b for b in built if len(b.items)]
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
    acc = np.array([float(s["acc"]) for s in samples])
    norm = np.array([float(s.get("acc_norm", s["acc"])) for s in samples])
    logprob = tuple(np.array([_first(r) for r in s["filtered_resps"]]) for s in samples)
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
    return HarnessResult(numbers, acc, norm, logprob)


def _first(response: Any) -> float:
    """The log-probability of a (log-probability, greedy) response."""
    return float(response[0] if isinstance(response, (tuple, list)) else response)


def _write_task(folder: Path, built: BuiltTask) -> None:
    """A definition that includes the harness' own, and its data as JSONL."""
    from importlib.util import find_spec

    official = Path(find_spec("lm_eval").origin).parent / "tasks" / TASKS[built.task].yaml
    files = {}
    examples = built.examples or built.items[:1]  # a split must not be empty
    for split, items in (("train", examples), ("test", built.items)):
        files[split] = str(folder / f"{built.key}-{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    settings = {
        "include": str(official),
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
        "num_fewshot": built.shots,
    }
    # JSON is YAML: nothing needs quoting by hand
    (folder / f"{built.key}.yaml").write_text(json.dumps(settings, indent=1), "utf-8")


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
