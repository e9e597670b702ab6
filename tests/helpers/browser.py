"""Looks at pages in a headless browser, and runs the functions of their scripts in node.

The browser is the machine's own Chromium, which Playwright drives; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)

needed = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

WIDE, PHONE = (1440, 900), (390, 844)
"""Sizes of windows, in CSS pixels."""
THEMES = ("light", "dark")


# --- whole pages -----------------------------------------------------------------------------


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the machine's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class _Compressing(http.server.SimpleHTTPRequestHandler):
    """Serves files, text compressed, and is quiet."""

    protocol_version = "HTTP/1.1"
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".svg": "image/svg+xml",
        ".woff": "font/woff",
    }

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        if path.suffix in (".html", ".css", ".js", ".svg", ".json"):
            content = gzip.compress(content, 6)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yields its address, which ends with a slash."""
    handler = functools.partial(_Compressing, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Visit:
    """A page in a browser, and what went wrong since it was opened."""

    page: Page
    problems: list[str] = field(default_factory=list)
    """Script errors, failed requests, and requests to other hosts."""
    transferred: int = 0
    """Bytes of all responses, as sent: compressed, with headers."""

    def look(self, theme: str, size: tuple[int, int]) -> None:
        """Show the page in one of THEMES in a window of this size."""
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.emulate_media(color_scheme=theme, media="screen")
        self.page.evaluate(
            """async theme => {
              Object.assign(document.documentElement.dataset, { theme, mode: theme });
              const drawn = () => new Promise(done => requestAnimationFrame(() => done()));
              await drawn();
              await Promise.all(document.getAnimations().map(each => each.finished));
              await drawn();
            }""",
            theme,
        )


@contextlib.contextmanager
def visit(
    browser: Browser, url: str, size: tuple[int, int] = WIDE, **options: Any
) -> Iterator[Visit]:
    """Open a page in a fresh profile and wait until it has loaded.

    Args:
        options: of Playwright's `new_context`, such as `java_script_enabled` or `has_touch`.
    """
    home = re.match(r"(\w+://[^/]*)", url)
    assert home, url
    options.setdefault("viewport", {"width": size[0], "height": size[1]})
    context = browser.new_context(**options)
    seen = Visit(context.new_page())

    def requested(request: Any) -> None:
        if not request.url.startswith((home[1], "data:", "blob:")):
            seen.problems.append(f"asks another host: {request.url}")

    def answered(response: Any) -> None:
        if response.status >= 400:
            seen.problems.append(f"status {response.status}: {response.url}")

    requests: list[Any] = []  # their sizes can be asked for only outside a handler
    seen.page.on("pageerror", lambda error: seen.problems.append(f"script error: {error}"))
    seen.page.on("console", lambda said: said.type == "error" and seen.problems.append(said.text))
    seen.page.on("requestfailed", lambda request: seen.problems.append(f"failed: {request.url}"))
    seen.page.on("request", requested)
    seen.page.on("response", answered)
    seen.page.on("requestfinished", lambda request: requests.append(request))
    seen.page.goto(url, wait_until="load")
    for request in requests:
        if request.url.startswith("http"):
            sizes = request.sizes()
            seen.transferred += sizes["responseBodySize"] + sizes["responseHeadersSize"]
    try:
        yield seen
    finally:
        context.close()


def axe(page: Page, without: Sequence[str] = ()) -> list[str]:
    """Return what axe finds wrong with a page: rule, impact and the first elements, as text.

    Args:
        without: rules that are not checked.
    """
    from axe_playwright_python.sync_playwright import Axe

    options = {
        "resultTypes": ["violations"],
        "rules": {rule: {"enabled": False} for rule in without},
    }
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): "
        + " | ".join(f"{node['target']} {node['html'][:160]}" for node in each["nodes"][:4])
        for each in found
    ]


# --- scripts ---------------------------------------------------------------------------------


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
    """Assert that a page's scripts and styles load nothing and use no random numbers."""
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"http|//[\w.]+/|@import|url\(|fetch|XMLHttp|import\(|Math\.random", text
        )


def run_page(
    scripts: Sequence[Path], style: Path, body: str, then: str, folder: Path
) -> dict[str, Any]:
    """Run a page's scripts in a headless browser at a phone's width, and return what it found.

    Also assert that the page has no errors, no NaN or undefined values, no unlabeled inputs and no
    figure wider than the page, and that it hides its static images.

    Args:
        body: HTML of the page when the scripts start.
        then: JavaScript statements to run after the scripts. They can set attributes of the object
            `result`, which is returned.
        folder: where the page and the browser's profile are written.
    """
    driver = f"""
      document.body.innerHTML = "<div style='width: 343px'>" + {_literal(body)} + "</div>";
      const errors = [], result = {{ errors }};
      addEventListener("error", (event) => errors.push(event.message));
      const load = ([source, ...others]) => {{
        const script = document.createElement("script");
        script.src = source;
        script.onload = () => (others.length ? load(others) : done());
        document.head.append(script);
      }};
      const done = () => {{
        {then}
        result.labeled = [...document.querySelectorAll("input, select")].every(
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
      load({json.dumps([script.as_uri() for script in scripts])});
    """
    result = _dumped(driver, style, folder)
    assert result["errors"] == [] and result["wrong"] is None
    assert result["labeled"], "an input has no label"
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
    sheets = [style.with_name("explorable.css"), style]
    links = "".join(f'<link rel="stylesheet" href="{each.as_uri()}">' for each in sheets)
    head = f'<meta charset="utf-8">{links}'
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
