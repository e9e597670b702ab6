"""Our scorer agrees with the evaluation harness on every item; the harness finds our checkpoints by
name and runs no code of other folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pythia_book.tasks.benchmarks import TASKS, load_items
from pythia_book.tasks.metrics import build, encode_pair
from task_items import fake_items

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import CheckpointError, ConfigError, DataError, FetchError
from pythia_core.evaluation import scoring
from pythia_core.model import GPTNeoX
from pythia_core.training.runs import Run, find_or_train

lm_eval = pytest.importorskip("lm_eval", reason="the evaluation harness is not installed")

LENGTH = 56


@pytest.fixture(scope="module")
def tokenizer():
    texts = [str(item) for task in TASKS for item in fake_items(task, 30)]
    return train_bpe(iter(texts), 420)


@pytest.fixture(scope="module")
def model() -> GPTNeoX:
    """A model with random weights, scaled so that answers differ clearly."""
    tiny = GPTNeoX(ModelConfig(2, 32, 2, 512, max_seq_len=LENGTH))
    tiny.init_weights(5)
    with torch.no_grad():
        tiny.embed_out.weight *= 6
    return tiny.eval().requires_grad_(False)


def compare(model: GPTNeoX, tokenizer, built: list) -> None:
    from pythia_book.tasks.harness import adapter, evaluate_with_harness

    results = evaluate_with_harness(adapter(model, tokenizer, 0, model.config.max_seq_len), built)
    assert set(results) == {task.key for task in built}
    for task in built:
        ours, theirs = task.metrics(task(model, 0)), results[task.key]
        scores = scoring.score(model, scoring.pack(task.requests, model.config.max_seq_len))
        np.testing.assert_allclose(np.concatenate(theirs.logprob), scores.logprob, atol=1e-4)
        np.testing.assert_array_equal(theirs.acc, ours["acc"])
        np.testing.assert_array_equal(theirs.acc_norm, ours.get("acc_norm", ours["acc"]))
        assert theirs.metrics["acc"] == pytest.approx(ours["acc"].mean())


def test_every_task_agrees_zero_and_few_shot(model: GPTNeoX, tokenizer) -> None:
    built = [
        build(
            task,
            fake_items(task, 30)[:12],
            fake_items(task, 30)[12:],
            shots,
            tokenizer,
            LENGTH,
        )
        for task in TASKS
        for shots in (0, 2)
    ]
    assert any(not each.fits.all() for each in built)  # cut prompts are compared as well
    assert any(each.fits.all() for each in built)
    compare(model, tokenizer, built)


@pytest.mark.wheels
@pytest.mark.slow
def test_real_items_agree(model: GPTNeoX, tokenizer) -> None:
    built = [
        build(task, *load_items(task, 12), shots, tokenizer, LENGTH)
        for task in TASKS
        for shots in (0, 1)
    ]
    compare(model, tokenizer, built)


def test_metrics_of_given_scores(tokenizer) -> None:
    built = build("arc_easy", fake_items("arc_easy", 2), [], 0, tokenizer, LENGTH)
    logprob = np.array([-4.0, -4.5, -9.0, -1.0, -8.0, -2.0])  # gold is the second of three
    metrics = built.metrics({"logprob": logprob, "greedy": np.zeros(6, bool)})
    assert metrics["acc"].tolist() == [False, False]
    assert metrics["acc_norm"].tolist() == [True, False]  # -4.5 / 5 characters beats -4 / 4
    assert set(metrics) == {"acc", "acc_norm"}
    built = build("lambada_openai", fake_items("lambada_openai", 2), [], 0, tokenizer, LENGTH)
    scores = {"logprob": np.array([-4.5, -8.0]), "greedy": np.array([False, True])}
    metrics = built.metrics(scores)
    assert metrics["logprob"].tolist() == [-4.5, -8.0]
    assert metrics["acc"].tolist() == [False, True]
    assert set(metrics) == {"acc", "logprob"}


def test_items_that_do_not_fit_are_counted_or_left_out(tokenizer) -> None:
    items = fake_items("piqa", 6)
    items[0]["sol1"] = "word " * 200
    items[1]["goal"] = "word " * 200
    built = build("piqa", items, [], 0, tokenizer, LENGTH)
    assert built.n_left_out == 1
    assert built.items == tuple(items[1:])
    assert built.fits.tolist() == [False, True, True, True, True]
    with pytest.raises(ConfigError, match=r"number of few-shot examples of .*; got 1"):
        build("piqa", items, [], 1, tokenizer, LENGTH)


def test_context_and_continuation_are_split_as_in_the_harness(tokenizer) -> None:
    encode = scoring.encoder(tokenizer)
    for context, continuation in (("Question: a\nAnswer:", " yes"), ("ends in spaces  ", "x")):
        request = encode_pair(context, continuation, encode)
        assert request.context + request.continuation == encode(context + continuation)
        assert request.context == encode(context.rstrip())
    built = build("piqa", fake_items("piqa", 1), fake_items("piqa", 3)[1:], 2, tokenizer, LENGTH)
    context = tokenizer.decode(built.requests[0].context)
    assert context.count("Question:") == 3
    assert context.count("\n\n") == 2


def test_the_digest_depends_on_the_requests(tokenizer, tmp_path: Path) -> None:
    one = build("piqa", fake_items("piqa", 4), [], 0, tokenizer, LENGTH)
    other = build("piqa", fake_items("piqa", 5), [], 0, tokenizer, LENGTH)
    longer = build("piqa", fake_items("piqa", 4), [], 0, tokenizer, LENGTH + 1)
    assert len({each.digest for each in (one, other, longer)}) == 3
    assert build("piqa", fake_items("piqa", 4), [], 0, tokenizer, LENGTH).digest == one.digest


# --- by name, as from lm-eval's command line -------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"text": str(item)}) + "\n" for item in fake_items("piqa", 60))
    corpus.write_text("".join(lines))
    config = RunConfig(
        model=ModelConfig(n_layers=1, d_model=16, n_heads=2, vocab_size=384, max_seq_len=LENGTH),
        data=DataConfig(corpus=str(corpus), tokenizer="bpe-384", seq_len=16, heldout_fraction=0),
        train=TrainConfig(steps=6, batch_size=4, lr_max=1e-2),
    )
    return find_or_train(config, progress=False)


@pytest.fixture
def definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that writes a task definition of a user; all changes to the harness are undone."""
    import datasets
    import lm_eval.utils
    from lm_eval.tasks import _yaml_loader

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(lm_eval.utils, "env", lm_eval.utils.env)
    monkeypatch.setattr(_yaml_loader, "_import_func_in_yml", _yaml_loader._import_func_in_yml)
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in fake_items("piqa", 8)))

    def write(text: str = '"Question: {{goal}}"', **more: str) -> Path:
        settings = {
            "task": "theirs",
            "dataset_path": "json",
            "dataset_kwargs": f"{{data_files: {{test: {data}}}}}",
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": text,
            "doc_to_target": '" {{sol1}}"',
            "target_delimiter": '""',
            **more,
        }
        folder = tmp_path / "theirs"
        folder.mkdir(exist_ok=True)
        lines = (f"{name}: {value}\n" for name, value in settings.items())
        (folder / "theirs.yaml").write_text("".join(lines))
        (folder / "code.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w')\ndef text(doc): return doc['goal']\n"
        )
        return folder

    return write


def load(folder: Path) -> dict:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False).load(["theirs"])


def test_the_harness_finds_a_checkpoint_by_name(run: Run, definition: Callable) -> None:
    from lm_eval.api.registry import get_model
    from pythia_book.tasks.harness import register

    register()
    register()  # may be called again
    arguments = {"run": run.id, "step": 3}
    lm = get_model("pythia").create_from_arg_obj(arguments, {"batch_size": 1, "device": None})
    assert lm.get_model_info() == {"model_run": run.id, "model_step": 3}
    result = lm_eval.evaluate(lm=lm, task_dict=load(definition()), bootstrap_iters=0)
    encode = scoring.encoder(run.data.tokenizer)
    requests = [
        encode_pair(f"Question: {item['goal']}", f" {item['sol1']}", encode)
        for item in fake_items("piqa", 8)
    ]
    scores = scoring.score(run.model(3), scoring.pack(requests, LENGTH))
    metrics = {k.split(",")[0]: v for k, v in result["results"]["theirs"].items()}
    assert metrics["perplexity"] == pytest.approx(np.exp(-scores.logprob.mean()))
    last = get_model("pythia").create_from_arg_string(f"run={run.folder},token_budget=64")
    assert last.get_model_info()["model_step"] == 6
    with pytest.raises(ConfigError, match="as a number"):
        get_model("pythia").create_from_arg_obj({"run": 123})


def perplexity(lm: object, folder: Path, cache: Path | None = None) -> float:
    """Evaluate with the harness's own function, as a script does that calls `register`."""
    from lm_eval.tasks import TaskManager

    tasks = {"task_manager": TaskManager(include_path=str(folder), include_defaults=False)}
    result = lm_eval.simple_evaluate(
        model=lm, tasks=["theirs"], use_cache=cache and str(cache), bootstrap_iters=0, **tasks
    )
    return result["results"]["theirs"]["perplexity,none"]


def test_cached_responses_are_those_of_the_checkpoint(
    run: Run, definition: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.api.model
    from lm_eval.api.registry import get_model
    from pythia_book.tasks.harness import adapter, register

    monkeypatch.setattr(lm_eval.api.model, "CachingLM", lm_eval.api.model.CachingLM)
    register()
    register()

    def named(step: int) -> object:
        return get_model("pythia").create_from_arg_obj({"run": run.id, "step": step})

    folder, cache = definition(), tmp_path / "cache of responses"
    right = {step: perplexity(named(step), folder) for step in (6, 0)}
    assert right[6] != right[0]
    for _ in range(2):
        assert {step: perplexity(named(step), folder, cache) for step in (6, 0)} == right
    names = sorted(path.name for path in tmp_path.glob("cache of responses*"))
    assert len(names) == 2 and all(run.id in name for name in names), names
    for step in (6, 0):  # without names
        lm = adapter(run.model(step), run.data.tokenizer, run.data.eod_id, LENGTH)
        assert perplexity(lm, folder, cache) == right[step]
    monkeypatch.setattr(type(named(6)), "loglikelihood", None)  # nothing is computed again
    assert perplexity(named(6), folder, cache) == right[6]


def test_the_words_of_the_harness_name_a_checkpoint(run: Run, tmp_path: Path) -> None:
    from lm_eval.api.registry import get_model
    from pythia_book.tasks.harness import register

    register()
    link = tmp_path / "a, b=c"
    link.symlink_to(run.folder)

    def step_of(**arguments: object) -> int:
        lm = get_model("pythia").create_from_arg_obj(arguments)
        return lm.get_model_info()["model_step"]

    assert step_of(pretrained=run.id, revision="step3") == 3
    assert step_of(pretrained=str(link), revision="main") == 6
    assert step_of(run=run.id, step="last") == step_of(run=run.id) == 6
    assert step_of(run=run.id, step="first") == 0 == step_of(run=run.id, step=0)
    assert step_of(run=run.id, step=3, revision="step3") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "name one model: --model_args run=NAME"),
        ({"run": "a", "pretrained": "b"}, "name one model"),
        ({"run": "RUN", "dtype": "float16"}, "no argument dtype; --model_args accepts run"),
        ({"run": "RUN", "step": 3, "revision": "step6"}, "are two steps; omit one"),
        ({"run": "RUN", "revision": "v0"}, "'v0' is not a step"),
        ({"run": "RUN", "step": "all"}, "one step per call, got step=all"),
        ({"run": "RUN", "step": 7}, "no checkpoint of step 7"),
        ({"run": "RUN", "step": -1}, "'-1' is not a step"),
    ],
)
def test_other_words_are_refused(run: Run, arguments: dict, message: str) -> None:
    from lm_eval.api.registry import get_model
    from pythia_book.tasks.harness import register

    register()
    given = {k: run.id if value == "RUN" else value for k, value in arguments.items()}
    with pytest.raises((ConfigError, CheckpointError), match=message):
        get_model("pythia").create_from_arg_obj(given)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_path", "file/out"], r"file/out \(file: .*; choose another --output_path"),
        (["--output_path", "file/out.json"], "file .*; choose another --output_path"),
        (["--use_cache", "file/cache"], "file .*; choose another --use_cache"),
        (["--log_samples"], "Specify --output_path if providing --log_samples"),
        (["--config", "missing.yaml"], "Config file not found"),
        (["--device", "cuda:0"], "no GPU is available; omit --device or pass --device cpu"),
    ],
)
def test_arguments_are_checked_before_anything_is_measured(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.__main__
    from pythia_book.tasks.harness import command_line

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: pytest.fail("began"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        command_line(["--tasks", "x", *words])


def test_code_in_other_folders_is_refused(definition: Callable, tmp_path: Path) -> None:
    from pythia_book.tasks.harness import register

    register()
    folder = definition("!function code.text")
    with pytest.raises(DataError, match=r"theirs has the tag `!function code\.text`.*trusted"):
        load(folder)
    with pytest.raises(DataError, match=r"!function os\.system"):
        load(definition("!function os.system"))
    assert not (tmp_path / "ran").exists()
    definition("!function code.text")
    register(trusted=[folder])
    load(folder)
    assert (tmp_path / "ran").exists()


def test_templates_are_rendered_in_a_sandbox(
    run: Run, definition: Callable, tokenizer, model: GPTNeoX
) -> None:
    from jinja2.exceptions import SecurityError
    from pythia_book.tasks.harness import adapter, register

    register()
    lm = adapter(model, tokenizer, 0, LENGTH)
    folder = definition('"{{goal.__class__.__mro__[1].__subclasses__()}}"')
    with pytest.raises(SecurityError):
        lm_eval.evaluate(lm=lm, task_dict=load(folder), bootstrap_iters=0)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            ConnectionError("Couldn't reach 'a/set'"),
            FetchError,
            "`evaluate`, which reads items from pinned wheels",
        ),
        (ValueError("Tasks not found: x"), DataError, "lm_eval ls tasks` lists all tasks"),
        (ValueError("another thing"), ValueError, "another thing"),
    ],
)
def test_errors_of_the_harness_are_explained(
    error: Exception, kind: type, words: str, definition: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.__main__
    from pythia_book.tasks.harness import command_line

    def fail() -> None:
        raise error

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", fail)
    with pytest.raises(kind, match=words):
        command_line(["--tasks", "x"])


@pytest.mark.slow
def test_the_lm_eval_command(
    run: Run, definition: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from pythia_core.__main__ import main

    command = ["lm_eval", "--model", "pythia", "--model_args", f"run={run.folder},step=3"]
    command += ["--tasks", "theirs", "--include_path", str(definition()), "--limit", "4"]
    assert main([*command, "--output_path", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "theirs" in output and "perplexity" in output
    (results_file,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results_file.read_text())["config"]["model_step"] == 3
    definition("!function code.text")
    assert main(command) == 1
    assert "which would run code" in capsys.readouterr().err
