"""Runs the evaluation harness (lm-evaluation-harness) on this library's checkpoints and tasks.

`register` adds to the harness a model type "pythia", which stands for a checkpoint of this library.
The harness's own command line accepts it, too. Task definitions can contain Python code; only code
in the harness's own definitions is run, and templates are rendered in a sandbox.

`evaluate_with_harness` runs pythia_book.tasks.benchmarks on any model type, without network access.
It uses the harness's definitions with local items. Where the harness has no definition (WinoBias)
or a different prompt (arithmetic, TriviaQA), the function writes a definition. Tests compare the
scores with those of pythia_book.tasks.metrics. `lm_eval` is an optional dependency, imported on
use.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pythia_book.tasks.benchmarks import Item, task_named
from pythia_book.tasks.metrics import BuiltTask, GeneratedTask, ScoredTask
from pythia_book.tasks.sweep import steps_of
from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError, DataError, FetchError, MissingDependencyError
from pythia_core.evaluation import scoring
from pythia_core.evaluation.generate import Sampling, generate_texts
from pythia_core.hf import step_of
from pythia_core.training.checkpoint import sha256_tensors
from pythia_core.training.runs import CheckpointSource
from pythia_core.util.files import check_writable


def lm_eval_package() -> Any:
    """Import the harness and return the package; raise a MissingDependencyError without lm_eval."""
    try:
        import lm_eval
    except ImportError as error:
        raise MissingDependencyError(
            "the evaluation harness is not installed; run pip install 'lm-eval==0.4.13'"
        ) from error
    return lm_eval


def _tasks_folder() -> Path:
    """Return the folder of the harness's own task definitions."""
    return Path(lm_eval_package().__file__).parent / "tasks"


def adapter(model: Any, tokenizer: Any, eod_id: int, max_seq_len: int) -> Any:
    """Wrap one of our models as a harness model (lm_eval.api.model.TemplateLM)."""
    return _harness_model(CheckpointLM)(model, tokenizer, eod_id, max_seq_len)


def register(trusted: Sequence[str | Path] = ()) -> None:
    """Register the model "pythia" with the harness, and make the harness refuse foreign code.

    The options `--model pythia --model_args run=ID,step=K` select the model. From then on, in this
    process, the harness renders templates in a sandbox and refuses Python functions in task
    definitions outside its own folder and the folders `trusted`. Also, `use_cache` keeps the
    responses of each checkpoint in a file of its own.

    Raises a MissingDependencyError if lm_eval is not installed.
    """
    lm_eval_package()
    from lm_eval.api.registry import model_registry

    if "pythia" not in model_registry:
        model_registry.register("pythia")(_harness_model(NamedCheckpointLM))
    _separate_caches()
    _refuse_code(trusted)


def _separate_caches() -> None:
    """Make the harness cache the responses of each of our models in a file of its own.

    The harness looks responses up by the request alone (EleutherAI/lm-evaluation-harness#2715), so
    in one file every later checkpoint would get the scores of the first.
    """
    from lm_eval.api import model

    if hasattr(model.CachingLM, "separate"):
        return

    class SeparateCache(model.CachingLM):
        separate = True

        def __init__(self, lm: Any, cache_db: str) -> None:
            if isinstance(lm, CheckpointLM):
                cache_db = f"{cache_db.removesuffix('.db')}_{lm.cache_key}.db"
            super().__init__(lm, cache_db)

    model.CachingLM = SeparateCache


def command_line(arguments: Sequence[str]) -> None:
    """Run the command line of the harness, in which `--model pythia` is available.

    Args:
        arguments: the words after `lm_eval`.

    Raises:
        MissingDependencyError: lm_eval is not installed.
        ConfigError: an argument is not accepted, or an output file cannot be written.
        DataError: a task definition has a Python function, or a task is unknown.
        FetchError: the items of a task cannot be downloaded.
    """
    register()
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        _check_arguments()
        cli_evaluate()
    except ConnectionError as error:
        raise FetchError(
            f"{error}. The harness downloads the items of its tasks. Without a network, use the "
            "command `evaluate`, which reads items from pinned wheels or from a folder (--items)"
        ) from error
    except ValueError as error:
        if "not found" not in str(error):
            raise
        raise DataError(
            f"{error}. The command `python -m pythia_core lm_eval ls tasks` lists all tasks"
        ) from error
    finally:
        sys.argv = before


def _check_arguments() -> None:
    """Check the arguments of the harness in sys.argv.

    Without it, the harness fails with a traceback, or only logs at the end that nothing was saved.

    Raises:
        ConfigError: an argument is not accepted, or an output file cannot be written.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig

    parsed = HarnessCLI().parse_args()
    if parsed.command != "run":
        return
    try:
        quiet = io.StringIO()  # the harness will say it again
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            config = EvaluatorConfig.from_cli(parsed)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"lm_eval: {error}") from error
    import torch

    if str(parsed.device).startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("no GPU is available; omit --device or pass --device cpu")
    for option in ("output_path", "use_cache"):
        if path := getattr(config, option):
            folder = Path(path)
            is_file = option == "use_cache" or folder.suffix == ".json"
            advice = f"choose another --{option}"
            check_writable(folder.parent if is_file else folder, advice)


def _refuse_code(trusted: Sequence[str | Path]) -> None:
    """Make the harness refuse Python functions from outside its own and `trusted` folders.

    The harness has no option to refuse functions: reading the tag `!function` imports the function.
    So this function replaces the loader and the template environment of the pinned harness version.
    """
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval.tasks import _yaml_loader

    folders = [
        _tasks_folder(),
        *(Path(folder).expanduser().resolve() for folder in trusted),
    ]
    load = getattr(_yaml_loader, "_load_unguarded", _yaml_loader._import_func_in_yml)
    _yaml_loader._load_unguarded = load

    def guarded(name: str, base: Path) -> Any:
        """Import the function `name` if `base` is in an allowed folder; else raise a DataError."""
        if not any(Path(base).resolve().is_relative_to(folder) for folder in folders):
            raise DataError(
                f"a task definition in {base} has the tag `!function {name}`, which would run "
                "code, and only the harness's own definitions may run code. Remove the tag from "
                "the definition. Or, if you trust the code, call "
                f"pythia_book.tasks.harness.register(trusted=[{str(base)!r}])"
            )
        return load(name, base)

    _yaml_loader._import_func_in_yml = guarded
    settings = {"undefined": lm_eval.utils.StrictUndefined, "keep_trailing_newline": True}
    sandbox = SandboxedEnvironment(loader=lm_eval.utils.BaseLoader(), **settings)
    sandbox.filters.update(lm_eval.utils.env.filters)
    lm_eval.utils.env = sandbox


# --- our models ------------------------------------------------------------------------------


@cache
def _harness_model(requests: type) -> type:
    """Return a class that inherits from `requests` and from the harness's base class of models."""
    lm_eval_package()
    from lm_eval.api.model import TemplateLM

    return type(requests.__name__, (requests, TemplateLM), {})


class CheckpointLM:
    """A harness model that answers requests with one of our models.

    Log-likelihoods are computed in batches of at most `token_budget` tokens. `_harness_model` adds
    the base class.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        eod_id: int,
        max_seq_len: int,
        token_budget: int = scoring.TOKEN_BUDGET,
    ) -> None:
        super().__init__()
        self.model, self._tokenizer, self._eod_id = model, tokenizer, eod_id
        self.max_length, self.token_budget = max_seq_len, token_budget
        self._encode = scoring.encoder(tokenizer)
        self.info: dict[str, Any] = {}

    @property
    def cache_key(self) -> str:
        """The key of this model's cached responses.

        It has the run and the step, if known; then a hash of weights, tokenizer and length.
        """
        weights = sha256_tensors(self.model.state_dict())
        identity = stable_hash([weights, self.tokenizer_name, self.max_length])
        return "-".join([*map(str, self.info.values()), identity[:12]])

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes about the model into its results."""
        return self.info

    @property
    def eot_token_id(self) -> int:
        """The id of the token that ends a document."""
        return self._eod_id

    @property
    def tokenizer_name(self) -> str:
        """A short hash of the tokenizer, by which the harness tells tokenizers apart."""
        return stable_hash(self._tokenizer.to_str())[:12]

    @property
    def max_gen_toks(self) -> int:
        """The default maximum number of tokens that are generated for a request."""
        return min(256, self.max_length // 2)

    def tok_encode(self, string: str, *_: Any, **__: Any) -> list[int]:
        """Return the token ids of a text; ignore further arguments of the harness."""
        return list(self._encode(string))

    def _score(self, requests: list[scoring.Request], quiet: bool) -> scoring.Scores:
        """Score the continuation of each request."""
        packed = scoring.pack(requests, self.max_length, self.token_budget)
        return scoring.score(self.model, packed, progress=not quiet)

    def _loglikelihood_tokens(
        self, requests: list, disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-probability in nats, whether greedy) of the continuation of each request.

        A request is (texts, token ids of the context, token ids of the continuation). A
        continuation is greedy if greedy decoding yields the continuation.
        """
        pairs = [scoring.Request(tuple(c), tuple(t)) for _, c, t in requests]
        scores = self._score(pairs, disable_tqdm)
        return list(zip(scores.logprob.tolist(), scores.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, in nats, summed over context-length windows."""
        from lm_eval import utils

        windows, request_index = [], []
        for number, request in enumerate(requests):
            for window in utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.eot_token_id, self.max_length, 1
            ):
                windows.append(scoring.Request(*map(tuple, utils.make_disjoint_window(window))))
                request_index.append(number)
        logprob = self._score(windows, disable_tqdm).logprob
        totals = np.bincount(np.array(request_index, int), logprob, len(requests)).tolist()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Generate a text for each request, in the same order."""
        from lm_eval.models.utils import normalize_gen_kwargs

        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts = [""] * len(requests)
        for settings, members in groups.items():
            kwargs = normalize_gen_kwargs(json.loads(settings), self.max_gen_toks)
            sampling = Sampling(
                kwargs.get("temperature") or float(kwargs.get("do_sample", False)),
                kwargs.get("top_k") or 0,
                kwargs.get("top_p") or 1.0,
                kwargs.get("seed") or 0,
            )
            answers = generate_texts(
                self.model, self._tokenizer, [requests[i].args[0] for i in members],
                kwargs["max_gen_toks"], self.eot_token_id, kwargs["until"], sampling, truncate=True,
                progress=not disable_tqdm,
            )  # fmt: skip
            for index, text in zip(members, answers, strict=True):
                texts[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return texts


class NamedCheckpointLM(CheckpointLM):
    """A harness model for the checkpoint that --model_args names. Batch sizes are ignored.

    As in the harness's own models, `pretrained` can name the model, and `revision` ("step512") the
    step.
    """

    def __init__(
        self,
        run: object = None,
        step: object = None,
        token_budget: int = scoring.TOKEN_BUDGET,
        device: str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        pretrained: object = None,
        revision: str = "main",
        **others: object,
    ) -> None:
        import torch

        from pythia_book.released.resolve import find_model

        name = run or pretrained
        if others:
            raise ConfigError(
                f"the model pythia has no argument {', '.join(others)}; --model_args accepts run "
                "(or pretrained), step (or revision), token_budget and device"
            )
        if not name or (run and pretrained):
            raise ConfigError(
                "name one model: --model_args run=NAME, where NAME is the folder or the id of a "
                f"run, or a released model (got run={run!r}, pretrained={pretrained!r})"
            )
        if not isinstance(name, str):
            raise ConfigError(
                f"lm_eval read run={name!r} as a number; pass the folder of the run instead of the "
                "id"
            )
        source = find_model(name)
        step = _step(source, step, str(revision))
        model = source.model(step)
        if not torch.cuda.is_available():  # lm_eval's default is a GPU even without one
            device = "cpu"
        super().__init__(
            model.to(device or "cpu"), source.data.tokenizer, source.data.eod_id,
            source.config.model.max_seq_len, token_budget,
        )  # fmt: skip
        self.info = {"model_run": source.id, "model_step": step}


def _step(source: CheckpointSource, step: object, revision: str) -> int:
    """Return the step that `step` ("last", 512) or else `revision` ("step512", "main") names.

    Raises:
        ConfigError: the words name no step, or two.
        CheckpointError: the model has no checkpoint of this step.
    """
    words = [str(step)] if step is not None else []
    if revision != "main":
        named = step_of(revision)
        words.append(revision if named is None else str(named))
    if len(set(words)) > 1:
        raise ConfigError(f"step={step} and revision={revision} are two steps; omit one of them")
    steps = steps_of(source, words[0] if words else "last")
    if len(steps) > 1:
        raise ConfigError(f"lm_eval evaluates one step per call, got step={step}")
    return steps[0]


# --- our tasks, offline ----------------------------------------------------------------------


@dataclass(frozen=True)
class HarnessResult:
    """The result of the harness for one task."""

    metrics: dict[str, float]
    """Metrics over all items, e.g. acc or perplexity, and standard errors, e.g. acc_stderr."""
    acc: np.ndarray
    """float64[items]: acc, or pct_stereotype for sentence pairs, or exact_match for generation."""
    acc_norm: np.ndarray
    """float64[items]: acc_norm, or the same as `acc` if the task has no acc_norm."""
    logprob: tuple[np.ndarray, ...]
    """For each item, the log-probability of every answer, in nats; empty for generated answers."""


def evaluate_with_harness(lm: Any, built: Sequence[BuiltTask]) -> dict[str, HarnessResult]:
    """Run the harness on built tasks that have items; map each key, e.g. "piqa_0", to a result.

    `lm` is a harness model, e.g. one made by `adapter`. Raises a MissingDependencyError if lm_eval
    is not installed.
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
        result = lm_eval.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True)
    return {
        key: _result(result["samples"][name], result["results"][name])
        for key, name in names.items()
    }


def _result(samples: list[dict[str, Any]], metrics: dict[str, Any]) -> HarnessResult:
    """Convert the harness's samples and metrics of one task; sort the samples by `doc_id`."""
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
    """Return the log-probability in a response: a number, or the first entry of a pair."""
    return float(response[0] if isinstance(response, (tuple, list)) else response)


def _write_task(folder: Path, task: BuiltTask, name: str) -> None:
    """Write the items as JSONL, and a definition that includes the harness's definition, if any."""
    examples: Sequence[Item] = ()
    if isinstance(task, GeneratedTask):
        items, definition = _generation_definition(task)
    elif yaml := task_named(task.name).yaml:
        items, examples = task.items, task.examples
        definition = {"num_fewshot": task.shots, "include": str(_tasks_folder() / yaml)}
    else:
        items, definition = _choice_definition(task)
    files = {}
    for split, rows in (("train", examples or items[:1]), ("test", items)):  # no file may be empty
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
    """Return the items and the definition of a scored task that the harness does not have."""
    items = [
        {"context": p.contexts[0], "answers": list(p.continuations), "gold": p.gold}
        for p in task.prompts
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
    """Return the items and the definition of a generated task. Each question becomes an item."""
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
    """Make the harness work offline and silently in a `with` block, and cache in `folder`."""
    import datasets

    config, log = datasets.config, logging.getLogger("lm_eval")
    before = config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE, log.level
    config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE = Path(folder) / "cache", True
    datasets.disable_progress_bars()
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be disabled
            yield
    finally:
        config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE = before[:2]
        datasets.enable_progress_bars()
        log.setLevel(before[2])
