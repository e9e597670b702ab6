"""Whatever is typed for an argument of a command, the answer is a result or one message."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pythia_book
from tiny_runs import control

from pythia_core.__main__ import main, parser
from pythia_core.commands import whole_number
from pythia_core.errors import FetchError, PythiaError
from pythia_core.training.runs import find_or_train

WORK = (
    "pythia_core.data.prepare.prepare",
    "pythia_core.training.runs.find_or_train",
    "pythia_book.bench.train.bench_train",
    "pythia_book.bench.learning_rates.sweep_learning_rates",
    "pythia_book.bench.terms.bench_terms",
    "pythia_book.bench.generate.bench_generate",
    "pythia_book.bench.kernels.bench_kernels",
    "pythia_book.bench.kernels.bench_attention",
    "pythia_book.bench.correctness.check_gpu",
    "pythia_book.bench.gpu_check.gpu_check",
    "pythia_book.budget.report",
    "pythia_book.bundle.prepare_tokens",
    "pythia_book.bundle.project_files",
    "pythia_book.papermill_engine.execute",
    "pythia_book.redraw.redraw",
    "pythia_book.released.continuation.run.find_or_continue",
    "pythia_book.worker.work",
    "pythia_core.commands.workers.on_slurm",
    "pythia_core.commands.workers.on_this_machine",
)
"""Functions that would take long, or change this checkout."""
NONSENSE = (
    "", " ", "nonsense", "-1", "0", "1e999", "nan", "9" * 400, "../x/y", "\udcff", "e\n{x}%s\x1b",
    "a folder", "a file", "None", "last", "x" * 5000,
)  # fmt: skip
NEEDED = {"RUN": "RUN", "MODEL": "RUN", "SRC": "RUN", "SIZE": "7k"}
"""By metavar, what an argument gets while others get nonsense."""


def commands(top: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple]:
    """Yield (words, parser) of every command, those of `bench` included."""
    nested = [a for a in top._actions if isinstance(a, argparse._SubParsersAction)]
    for name, sub in nested[0].choices.items() if nested else ():
        yield from commands(sub, (*words, name))
    if words and not nested:
        yield words, top


COMMANDS = {" ".join(words): sub for words, sub in commands(parser()) if words != ("lm_eval",)}


def calls(name: str) -> Iterator[list[str]]:
    """Yield calls of a command in which one argument is nonsense."""
    actions = [a for a in COMMANDS[name]._actions if a.nargs != 0]

    def typed(changed: argparse.Action | None, value: str) -> list[str]:
        options, places = [], []
        for action in actions:
            is_number = action.type is whole_number
            needed = "1" if is_number else NEEDED.get(str(action.metavar), "nonsense")
            word = value if action is changed else needed
            if not action.option_strings:
                if action.required or action is changed:
                    places.append(word)
            elif action.required or action is changed:
                options.append(f"{action.option_strings[-1]}={word}")
        return [*name.split(), *options, "--", *places]

    for action in actions:
        yield from (typed(action, value) for value in NONSENSE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run of twenty updates."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_RESULTS", str(folder / "results"))
        patch.setenv("PYTHIA_CACHE", str(folder / "cache"))
        return str(find_or_train(control(folder), progress=False).folder)


@pytest.fixture
def nothing_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replace functions that take long, and forbid the network."""
    for module in pkgutil.walk_packages(pythia_book.__path__, "pythia_book."):
        if ".studies." not in module.name and "papermill" not in module.name:
            importlib.import_module(module.name)  # not while functions are replaced

    def stop(name: str) -> Callable:
        def stopped(*_: object, **__: object) -> None:
            raise PythiaError(f"{name} would begin")

        return stopped

    def refuse(*_: object, **__: object) -> None:
        raise FetchError("no network")

    for name in WORK:
        monkeypatch.setattr(name, stop(name))
    monkeypatch.setattr("pythia_core.data.downloads._pip_download", refuse)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for variable, folder in (("PYTHIA_RESULTS", "results"), ("PYTHIA_CACHE", "cache")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file").write_bytes(b"\xff\x00 {]")


@pytest.mark.parametrize("name", COMMANDS)
def test_nonsense_is_answered_with_a_message(
    name: str, run: str, nothing_long: None, capsys: pytest.CaptureFixture
) -> None:
    for words in calls(name):
        words = [run if word == "RUN" else word for word in words]
        try:
            code = main(words)
        except SystemExit as end:  # of argparse
            code = end.code
        except BaseException as error:
            raise AssertionError(f"{words} raised {error!r}") from error
        shown = capsys.readouterr().err
        assert code in (0, 1, 2) and "Traceback" not in shown, words
        assert code == 0 or "error: " in shown, words
