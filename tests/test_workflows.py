"""Workflows and issue forms: what they may do, and that their commands work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from site_build import copy_of_the_checkout

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
VALUES = {
    "vars.TORCH_INDEX": "",
    "steps.pages.outputs.base_url": "https://me.example/fork",
    "github.server_url": "https://github.com",
    "github.repository": "me/fork",
    "github.ref_name": "mine",
    "matrix.python": "3.11",
}
"""What the expressions of the workflows are in a fork."""


def read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["on"] = content.pop(True)  # in YAML 1.1, `on` is a truth value
    return content


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def filled(text: Any) -> str:
    """A text of a workflow with the values of its expressions."""
    return re.sub(r"\$\{\{ *([\w.]+) *\}\}", lambda found: VALUES[found[1]], str(text))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_do_little_and_pin_what_they_use(path: Path) -> None:
    workflow, text = read(path), path.read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"} and "secrets" not in text
    assert "pull_request_target" not in workflow["on"], "it would run strangers' code with rights"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and re.fullmatch(r"ubuntu-\d\d\.04", job["runs-on"])
        if "permissions" in job:
            assert not any("run" in step for step in job["steps"]), "rights only to deploy"
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_commands_of_workflows_exist(path: Path) -> None:
    commands = [step for step in steps(read(path)) if "run" in step]
    assert commands
    for step in commands:
        script = filled(step["run"])
        assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
        environment = {name: filled(value) for name, value in step.get("env", {}).items()}
        for words in re.findall(r"^make (.+)$", script, re.MULTILINE):
            done = subprocess.run(
                ["make", "-n", *words.split()],
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
        for file in re.findall(r"^(\.\S+)$", script, re.MULTILINE):
            assert os.access(ROOT / file, os.X_OK), f"{file} cannot be run"


@pytest.mark.slow
@pytest.mark.commands
@pytest.mark.timeout(900)
def test_what_a_fork_publishes(tmp_path: Path) -> None:
    """The build step of the workflow, as GitHub runs it, with the packages that are here."""
    if not any(map(shutil.which, ("chromium", "google-chrome", "chrome"))):
        pytest.skip("no Chromium is installed")
    (step,) = (step for step in steps(read(GITHUB / "workflows" / "site.yml")) if "env" in step)
    root = copy_of_the_checkout(tmp_path)
    for name in ("Makefile", "requirements.txt", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, root / name)
    programs = root / ".venv" / "bin"  # as if it had been set up
    programs.mkdir(parents=True)
    for name in ("python", "jupyter-book"):
        here = Path(sys.executable).with_name(name)
        (programs / name).write_text(f'#!/bin/sh\nexec "{here}" "$@"\n')
        (programs / name).chmod(0o755)
    (root / ".venv" / ".ready").touch()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    done = subprocess.run(
        ["bash", "-c", filled(step["run"])],
        cwd=root,
        env=kept
        | {name: filled(value) for name, value in step["env"].items()}
        | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'book'}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    site = root / "_build" / "html"
    assert (site / "pythia-book.pdf").read_bytes().startswith(b"%PDF")
    text = (site / "studies" / "suite.html").read_text(encoding="utf-8")
    for part in (
        '<link rel="canonical" href="https://me.example/fork/studies/suite.html"',
        'property="og:url" content="https://me.example/fork/studies/suite.html"',
        'content="https://me.example/fork/_static/card.png"',
        'href="https://github.com/me/fork/edit/mine/notebooks/suite.ipynb"',
        'href="https://github.com/me/fork">Source</a>',
        'href="../pythia-book.pdf"',
    ):
        assert part in text, part
    code = (site / "rotary.html").read_text(encoding="utf-8")
    assert "https://github.com/me/fork/blob/mine/pythia_core/kernels/rotary.py#L" in code


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"] and form["body"]
    names = [field["id"] for field in form["body"]]
    assert len({*names}) == len(names)
    for field in form["body"]:
        assert field["type"] in ("input", "textarea") and field["attributes"]["label"]


def test_commands_in_issue_forms_exist() -> None:
    from pythia_core.__main__ import parser

    known = parser().format_help()
    text = "".join(path.read_text(encoding="utf-8") for path in FORMS)
    named = re.findall(r"python -m pythia_core (\w+)", text)
    assert named and all(f" {name} " in known for name in named)
