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


def in_node(script: Path, expression: str, **values: Any) -> Any:
    """Evaluate a JavaScript expression in node, and return its value. Skip the test without node.

    Args:
        script: the script of a page. In the expression, `page` has what the script exports.
        values: further names for the expression, with their values.
    """
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    names = {"page": f"require({json.dumps(str(script))})"}
    names |= {name: json.dumps(value) for name, value in values.items()}
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
    """Assert that a page's scripts and styles are short, load nothing and use no random numbers."""
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"http|//[\w.]+/|@import|url\(|fetch|XMLHttp|import\(|Math\.random", text
        )
        assert len(text.splitlines()) < 350


def run_page(script: Path, style: Path, body: str, then: str, folder: Path) -> dict[str, Any]:
    """Run a page's script in a headless browser at a phone's width, and return what it found.

    Also assert that the page has no errors, no NaN or undefined values, no unlabelled inputs and no
    figure wider than the page, and that it hides its static images.

    Args:
        body: HTML of the page when the script starts.
        then: JavaScript statements to run after the script. They can set attributes of the object
            `result`, which is returned.
        folder: where the page and the browser's profile are written.
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
        result.images = [...document.querySelectorAll(".pythia-figure")].map(
          (image) => getComputedStyle(image).display);
        result.wrong = document.body.innerHTML.match(/NaN|undefined|Infinity/g);
        document.body.innerHTML = "";
        const pre = document.body.appendChild(document.createElement("pre"));
        pre.textContent = JSON.stringify(result);
      }};
      document.head.append(script);
    """
    result = _dumped(driver, style, folder)
    assert result["errors"] == [] and result["wrong"] is None
    assert result["labelled"], "an input has no label"
    assert max(result["widths"]) <= 0, "a phone would scroll sideways"
    assert set(result["images"]) == {"none"}, "the static figures make room"
    return result


def evaluate(
    script: Path, style: Path, body: str, then: str, folder: Path, width: int
) -> dict[str, Any]:
    """Run a script on a piece of a page in a headless browser, and return an object of results.

    Also assert that there are no errors.

    Args:
        body: HTML of the piece when the script starts, inside a block `width` pixels wide.
        then: the body of a JavaScript function that returns the object, to call after the script.
        folder: where the page and the browser's profile are written.
    """
    driver = f"""
      document.body.innerHTML = "<div style='width: {width}px'>" + {_literal(body)} + "</div>";
      const errors = [];
      addEventListener("error", (event) => errors.push(event.message));
      const script = document.createElement("script");
      script.src = {_literal(script.as_uri())};
      script.onload = () => {{
        const start = () => {{
          const result = (() => {{ {then} }})();
          document.body.innerHTML = "";
          const pre = document.body.appendChild(document.createElement("pre"));
          pre.textContent = JSON.stringify({{ ...result, errors }});
        }};
        if (document.readyState === "complete") start();
        else addEventListener("load", start);
      }};
      document.head.append(script);
    """
    result = _dumped(driver, style, folder)
    assert result.pop("errors") == []
    return result


def _dumped(driver: str, style: Path, folder: Path) -> dict[str, Any]:
    """Open a page with a script in a headless browser; return the JSON that it leaves in <pre>."""
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
    pre = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert pre, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(pre[1]))


def _literal(text: str) -> str:
    """Return `text` as a JavaScript string literal that is safe inside a script element."""
    return json.dumps(text).replace("</", "<\\/")
