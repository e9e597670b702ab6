"""Runs a page's script: its functions in node, its page in a headless browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)

needed = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def in_node(script: Path, expression: str, **given: Any) -> Any:
    """What a JavaScript expression gives, in which `page` is what the script exports."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    names = {"page": f"require({json.dumps(str(script))})"}
    names |= {name: json.dumps(value) for name, value in given.items()}
    code = "".join(f"const {name} = {value};" for name, value in names.items())
    done = subprocess.run(
        ["node", "-e", f"{code} console.log(JSON.stringify({expression}))"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_self_contained(*paths: Path) -> None:
    """A page's script and style are short, load nothing and draw no random numbers."""
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"http|//[\w.]+/|@import|url\(|fetch|XMLHttp|import\(|Math\.random", text
        )
        assert len(text.splitlines()) < 350


def run_page(script: Path, style: Path, body: str, then: str, folder: Path) -> dict[str, Any]:
    """What the statements `then` leave in `result` once the script has run on a narrow page.

    Args:
        body: what a phone's width shows when the script starts.
        then: JavaScript; `result.errors` has what went wrong on the page so far.
    """
    driver = f"""
      document.body.innerHTML = "<div style='width: 343px'>" + {_literal(body)} + "</div>";
      const errors = [], result = {{ errors }};
      addEventListener("error", (event) => errors.push(event.message));
      const script = document.createElement("script");
      script.src = {_literal(script.as_uri())};
      script.onload = () => {{
        {then}
        result.labelled = [...document.querySelectorAll("input, select")].every(
          (input) => input.labels.length);
        result.widths = [...document.querySelectorAll("figure, .picture")].map(
          (each) => each.scrollWidth - each.clientWidth);
        result.images = [...document.querySelectorAll("img")].map(
          (image) => getComputedStyle(image).display);
        result.wrong = document.body.innerHTML.match(/NaN|undefined|Infinity/g);
        document.body.innerHTML = "";
        const pre = document.body.appendChild(document.createElement("pre"));
        pre.textContent = JSON.stringify(result);
      }};
      document.head.append(script);
    """
    head = f'<meta charset="utf-8"><link rel="stylesheet" href="{style.as_uri()}">'
    page = folder / "page.html"
    page.write_text(
        f"<html><head>{head}</head><body><script>{driver}</script></body></html>", encoding="utf-8"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [str(BROWSER), *options, profile, "--dump-dom", page.as_uri()],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["errors"] == [] and seen["wrong"] is None
    assert seen["labelled"], "an input has no label"
    assert max(seen["widths"]) <= 0, "a phone would scroll sideways"
    assert set(seen["images"]) == {"none"}, "the static figures make room"
    return seen


def _literal(text: str) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(text).replace("</", "<\\/")
