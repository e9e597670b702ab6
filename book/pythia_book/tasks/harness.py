"""Our models in the language-model evaluation harness, also from its own command line.

A checkpoint is a harness model named "pythia": log-likelihoods, rolling ones too, come from
pythia_core.evaluation.scoring in batches of a token budget, texts from
pythia_core.evaluation.generate. Task definitions may name Python functions for the harness to run:
its own are run, those of other folders are refused, and templates are rendered in a sandbox.

`lm_eval` is an optional dependency, imported when a function here is called.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError, DataError, FetchError, MissingDependencyError
from pythia_core.evaluation import scoring
from pythia_core.evaluation.generate import Sampling, generate_texts


def lm_eval_package() -> Any:
    """The harness.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise MissingDependencyError(
            "the evaluation harness is not installed: pip install 'lm-eval==0.4.13'"
        ) from error
    return lm_eval


def adapter(model: Any, tokenizer: Any, eod_id: int, max_seq_len: int) -> Any:
    """A harness model (lm_eval.api.model.TemplateLM) around one of ours."""
    return _harness_model(CheckpointLM)(model, tokenizer, eod_id, max_seq_len)


def register(trusted: Sequence[str | Path] = ()) -> None:
    """Make `--model pythia --model_args run=ID,step=K` known to the harness in this process.

    From now on only Python functions in the harness' own task definitions and in `trusted` folders
    are run, and templates are rendered in a sandbox.

    Raises:
        MissingDependencyError: lm_eval is not installed.
    """
    lm_eval_package()
    from lm_eval.api.registry import model_registry

    if "pythia" not in model_registry:
        model_registry.register("pythia")(_harness_model(NamedCheckpointLM))
    _refuse_code(trusted)


def command_line(arguments: Sequence[str]) -> None:
    """lm-eval's own command line, with the model "pythia" and without code from elsewhere.

    Raises:
        As `register`; DataError: a task definition that names code, or an unknown task.
        FetchError: its items cannot be fetched.
    """
    register()
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except ConnectionError as error:
        raise FetchError(
            f"{error}. The harness fetches the items of its tasks; without a network, use "
            "`evaluate`, whose tasks come with their items or read them from a folder"
        ) from error
    except ValueError as error:
        if "not found" not in str(error):
            raise
        raise DataError(f"{error}. `lm_eval ls tasks` lists the tasks there are") from error
    finally:
        sys.argv = before


def _refuse_code(trusted: Sequence[str | Path]) -> None:
    from importlib.util import find_spec

    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval.tasks import _yaml_loader

    own = Path(find_spec("lm_eval").origin).parent / "tasks"
    folders = [own, *(Path(folder).expanduser().resolve() for folder in trusted)]
    load = getattr(_yaml_loader, "_load_unguarded", _yaml_loader._import_func_in_yml)
    _yaml_loader._load_unguarded = load

    def guarded(name: str, base: Path) -> Any:
        if not any(Path(base).resolve().is_relative_to(folder) for folder in folders):
            raise DataError(
                f"a task definition in {base} has the tag `!function {name}`, which runs code; "
                "only the harness' own definitions may do that. Write it without a function, or "
                "read the code and name the folder in "
                "pythia_book.tasks.harness.register(trusted=[...])"
            )
        return load(name, base)

    _yaml_loader._import_func_in_yml = guarded
    settings = {"undefined": lm_eval.utils.StrictUndefined, "keep_trailing_newline": True}
    sandbox = SandboxedEnvironment(loader=lm_eval.utils.BaseLoader(), **settings)
    sandbox.filters.update(lm_eval.utils.env.filters)
    lm_eval.utils.env = sandbox


@cache
def _harness_model(requests: type) -> type:
    """The class as a model of the harness, whose base class is imported only now."""
    lm_eval_package()
    from lm_eval.api.model import TemplateLM

    return type(requests.__name__, (requests, TemplateLM), {})


class CheckpointLM:
    """Answers the harness' requests with a model, in batches of a token budget."""

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

    def get_model_info(self) -> dict[str, Any]:
        return self.info

    @property
    def eot_token_id(self) -> int:
        return self._eod_id

    @property
    def tokenizer_name(self) -> str:
        return stable_hash(self._tokenizer.to_str())[:12]

    @property
    def max_gen_toks(self) -> int:
        """Where a task does not say how long an answer may be."""
        return min(256, self.max_length // 2)

    def tok_encode(self, string: str, *_: Any, **__: Any) -> list[int]:
        return list(self._encode(string))

    def _score(self, requests: list[scoring.Request], quiet: bool) -> scoring.Scores:
        packed = scoring.pack(requests, self.max_length, self.token_budget)
        return scoring.score(self.model, packed, progress=not quiet)

    def _loglikelihood_tokens(
        self, requests: list, disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [scoring.Request(tuple(c), tuple(t)) for _, c, t in requests]
        scores = self._score(pairs, disable_tqdm)
        return list(zip(scores.logprob.tolist(), scores.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        from lm_eval import utils

        windows, owner = [], []
        for number, request in enumerate(requests):
            for window in utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.eot_token_id, self.max_length, 1
            ):
                windows.append(scoring.Request(*map(tuple, utils.make_disjoint_window(window))))
                owner.append(number)
        logprob = self._score(windows, disable_tqdm).logprob
        totals = np.bincount(np.array(owner, int), logprob, len(requests)).tolist()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
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
    """A checkpoint by its name, with the arguments that the harness' command line gives."""

    def __init__(
        self,
        run: str,
        step: int | None = None,
        token_budget: int = scoring.TOKEN_BUDGET,
        device: str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
    ) -> None:
        import torch

        from pythia_book.released.resolve import find_model

        if not isinstance(run, str):
            raise ConfigError(f"run={run!r} was taken for a number; give the run's folder")
        source = find_model(run)
        step = source.steps[-1] if step is None and source.steps else step
        model = source.model(step)
        if not torch.cuda.is_available():  # lm_eval's own default is a GPU, there or not
            device = "cpu"
        super().__init__(
            model.to(device or "cpu"), source.data.tokenizer, source.data.eod_id,
            source.config.model.max_seq_len, token_budget,
        )  # fmt: skip
        self.info = {"model_run": source.id, "model_step": step}
