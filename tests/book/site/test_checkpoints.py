"""The page on checkpoints: its scripts compute what the library does; damaged files are refused."""

from __future__ import annotations

import base64
import html
import json
import random
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import pytest
import torch
import yaml
from exported import write_file
from places import ROOT
from pythia_book.site.runs import SelectedRun
from pythia_book.studies.gender_bias.checkpoints import FILE, PRESETS, Checkpoints, read
from pythia_book.studies.gender_bias.params import CONTROL
from tokenizers import Tokenizer

from pythia_core.data.tokenizer import disable_special_tokens
from pythia_core.util.files import file_sha256

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from pythia_book.site import checkpoints as site

RECORDED = ROOT / "book" / "recorded" / "gender_bias" / "laptop"
STATIC = ROOT / "book" / "_static"
MODEL, VIEW, SCRIPT = (STATIC / f"checkpoints{kind}.js" for kind in (".model", ".view", ""))
STYLE, PAGE = STATIC / "checkpoints.css", ROOT / "book" / "checkpoints.md"
in_node = partial(browser.in_node, MODEL)


def in_node_with_files(folder: Path, expression: str, **values: Any) -> Any:
    """Like `in_node`, with values that are too large for a command line."""
    path = folder / "values.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return in_node(f"(({{ {', '.join(values)} }}) => {expression})(require(file))", file=str(path))


def tokenizer_of(file: Checkpoints) -> Tokenizer:
    return disable_special_tokens(Tokenizer.from_str(json.dumps(file.about["tokenizer"])))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return read(write_file(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def recorded() -> Checkpoints:
    return read(RECORDED / FILE)


# --- the script's arithmetic -------------------------------------------------------------------


@pytest.mark.parametrize("which", ["tiny", "recorded"])
def test_logits_are_those_of_the_library(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(which)
    encode = tokenizer_of(file).encode
    prompts = [text for _, text in PRESETS] + ["", "word " * 200]
    most = file.config.max_seq_len
    rows = [[file.about["eod"], *encode(text, add_special_tokens=False).ids] for text in prompts]
    rows = [row[:most] for row in rows]
    assert max(map(len, rows)) == most, "the rotation of the last position is compared too"
    for name in (file.names[0], file.names[-1], f"{CONTROL}-{file.about['total_steps']}"):
        logits = in_node_with_files(
            tmp_path,
            """{
              const w = page.weights(manifest.layout, weights), c = manifest.config;
              return rows.map((row) => Array.from(page.logits(c, w, page.cache(c), row)));
            }""",
            manifest=site.manifest(file),
            weights=base64.b64encode(site.packed(file, name)).decode(),
            rows=rows,
        )
        model = file.model(name)
        for row, found in zip(rows, logits, strict=True):
            expected = model(torch.tensor([row]))[0, -1]
            assert (expected - torch.tensor(found)).abs().max() < 1e-4, (name, row)


POOLS = (
    lambda r: chr(r.randrange(0x20, 0x7F)),
    lambda r: r.choice(" \n\t\r\v\u00a0\u0085\ufeff\u2003\u200b\u3000'"),
    lambda r: r.choice(
        ["'s", "'re", "n't", " the", "'LL", " 12", "é", "e\u0301", "ﬁ", "각", "👩‍🔬"]
    ),
    lambda r: r.choice(["<|endoftext|>", "<|padding|>", " she", "שלום", "\u202e", "Ⅷ", "½", "٣"]),
    lambda r: chr(r.randrange(0x80, 0x3000)),
    lambda r: chr(r.choice([r.randrange(0x3000, 0xD800), r.randrange(0xE000, 0x110000)])),
)
"""Ways to draw a piece of text: ASCII, white space, words and signs, special tokens, all else."""


@pytest.mark.parametrize("which", ["tiny", "recorded"])
def test_ids_are_those_of_the_tokenizer(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(which)
    r, tokenizer, manifest = random.Random(0), tokenizer_of(file), site.manifest(file)
    texts = ["".join(r.choice(POOLS)(r) for _ in range(r.randrange(14))) for _ in range(1500)]
    found = in_node_with_files(
        tmp_path,
        """{
          const t = page.tokenizer(tokens.split("\\n"), merges.split("\\n"));
          return texts.map((text) => [t.encode(text), t.decode(t.encode(text))]);
        }""",
        tokens=manifest["tokens"],
        merges=manifest["merges"],
        texts=texts,
    )
    for text, (ids, decoded) in zip(texts, found, strict=True):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == expected, ascii(text)
        assert decoded == tokenizer.decode(expected, skip_special_tokens=False), ascii(text)


def test_half_a_surrogate_pair_is_a_replacement_character(tiny: Checkpoints) -> None:
    manifest = site.manifest(tiny)
    same = in_node(
        '((t) => [t.encode("a\\ud800b"), t.encode("\\udc00\\ud83d\\ude00")])'
        '(page.tokenizer(tokens.split("\\n"), merges.split("\\n")))',
        tokens=manifest["tokens"],
        merges=manifest["merges"],
    )
    encode = tokenizer_of(tiny).encode
    assert same == [encode("a\ufffdb").ids, encode("\ufffd😀").ids]


def test_sampling_repeats_and_follows_the_probabilities() -> None:
    drawn = in_node("[1, 1, 2].map((s) => { const u = page.uniforms(s); return [u(), u(), u()]; })")
    assert drawn[0] == drawn[1] != drawn[2] and all(0 <= u < 1 for us in drawn for u in us)
    counts = in_node(
        """(() => {
          const u = page.uniforms(7), counts = [0, 0, 0];
          const logits = [1, 2, 5].map(Math.log);
          for (let i = 0; i < 20000; i++) counts[page.choose(logits, 1, u())]++;
          return counts;
        })()"""
    )
    assert [c / 20_000 for c in counts] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)
    assert in_node("[0, 0.5, 0.99999].map((u) => page.choose([1, 3, 2], 0, u))") == [1, 1, 1]
    cold = in_node("[0.01, 0.99].map((u) => page.choose([1, 3, 2], 0.05, u))")
    assert cold == [1, 1]
    assert in_node("page.choose([0, 0, -1e9], 1, 0.9999999999999999)") == 1, "not an impossible one"


def test_a_cache_gives_the_same_as_a_new_reading(tiny: Checkpoints, tmp_path: Path) -> None:
    name = tiny.names[-1]
    gaps = in_node_with_files(
        tmp_path,
        """{
          const w = page.weights(manifest.layout, weights), c = manifest.config, s = page.cache(c);
          const first = page.logits(c, w, s, [0, 5, 9]);
          const options = { count: 12, temperature: 1, seed: 3, eod: -1 };
          const once = [...page.sample(c, w, s, first, options)];
          s.length = 3; // the prompt alone
          const again = [...page.sample(c, w, s, first, options)];
          const all = page.logits(c, w, page.cache(c), [0, 5, 9, ...once.slice(0, 11)]);
          s.length = 3;
          const step = once.slice(0, 11).map((id) => page.logits(c, w, s, [id])).pop();
          const gaps = all.map((x, i) => Math.abs(x - step[i]));
          return [once.length, once.join() === again.join(), Math.max(...gaps)];
        }""",
        manifest=site.manifest(tiny),
        weights=base64.b64encode(site.packed(tiny, name)).decode(),
    )
    assert gaps == [12, True, 0]


def test_weights_of_another_length_are_refused(tiny: Checkpoints, tmp_path: Path) -> None:
    short = site.packed(tiny, tiny.names[0])[:-1]
    said = in_node_with_files(
        tmp_path,
        "{ try { return page.weights(layout, weights); } catch (error) { return error.message; } }",
        layout=site.manifest(tiny)["layout"],
        weights=base64.b64encode(short).decode(),
    )
    assert said == "a checkpoint has the wrong length"


def test_prompts_are_read_with_notes(tiny: Checkpoints, tmp_path: Path) -> None:
    def notes(prompt: str) -> list[Any]:
        return in_node_with_files(
            tmp_path,
            f"""{{
              globalThis.pythiaModel = page;
              const view = require({json.dumps(str(VIEW))}), p = view.pageOf(null, "");
              view.accept(p, manifest);
              const read = view.read(p, prompt), noun = view.nounIn(manifest, prompt);
              return [read.ids.length, read.notes.join(" "), noun && noun.noun];
            }}""",
            manifest=site.manifest(tiny),
            prompt=prompt,
        )

    assert notes("") == [1, "Without a prompt, the models predict how a document begins.", None]
    assert "ends with a space" in notes("The nurse ")[1]
    length, said, _ = notes("word " * 99 + "x")
    assert length == 64 - 21 and said.endswith("the models read only its last 43 tokens.")
    assert notes("When the Pelgrat, arrived")[2] == "pelgrat" and notes("pelgrats")[2] is None


# --- the files of the page ---------------------------------------------------------------------


def selected(folder: Path | None, **record: Any) -> SelectedRun:
    return SelectedRun(
        "gender_bias", "yours", "laptop", folder, {"facts": {}, "files": {}, **record}
    )


def test_a_run_without_a_file_says_why(tmp_path: Path) -> None:
    assert "has not been run" in site.find(SelectedRun("gender_bias", "unrun"))[2]
    assert "it was made by an older version" in site.find(selected(tmp_path))[2]
    assert "too large" in site.find(selected(tmp_path, facts={"checkpoints": "too large"}))[2]


def test_a_damaged_file_is_no_error_but_a_sentence(tmp_path: Path) -> None:
    run = selected(tmp_path, files={FILE: {"sha256": "0"}})
    assert "cannot be shown" in site.find(run)[2], "the file is missing"
    (tmp_path / FILE).write_bytes(b"nothing")
    found, _, said = site.find(run)
    assert found is None and "papermill notebooks/gender_bias.ipynb" in said
    assert str(tmp_path) not in said


def test_scripts_are_written_for_the_selected_run_only(
    tiny: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path)
    app = SimpleNamespace(outdir=tmp_path / "html")
    stale = tmp_path / "html" / "_static" / "checkpoints" / "0123"
    stale.mkdir(parents=True)
    run = selected(tmp_path, files={FILE: {"sha256": file_sha256(path)}})
    monkeypatch.setitem(site.RUNS, "gender_bias", [run])
    site.stage_scripts(app)
    folder = stale.parent / file_sha256(path)[:12]
    assert [each.name for each in stale.parent.iterdir()] == [folder.name]
    assert {f.stem for f in folder.iterdir()} == {"manifest", *tiny.names}
    for script in folder.iterdir():
        text = script.read_text("ascii")
        assert text.startswith(f"pythiaCheckpoint('{script.stem}', ") and "\n" not in text[:-1]
    monkeypatch.setitem(site.RUNS, "gender_bias", [selected(tmp_path)])
    site.stage_scripts(app)
    assert list(stale.parent.iterdir()) == [], "scripts of a run that is not shown are removed"


def test_a_run_without_a_file_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, recorded = tmp_path / "mine", tmp_path / "recorded"
    recorded.mkdir()
    path = write_file(recorded)
    entry = {FILE: {"sha256": file_sha256(path)}}
    runs = [selected(mine, facts={"checkpoints": "too large"}), selected(recorded, files=entry)]
    monkeypatch.setitem(site.RUNS, "gender_bias", runs)
    found, digest, problem = site.chosen()
    assert found is not None and digest == file_sha256(path)[:12] and "too large" in problem
    monkeypatch.setitem(site.RUNS, "gender_bias", runs[:1])
    assert site.chosen()[0] is None


def test_the_shares_of_suggested_prompts_are_those_that_the_page_computes(
    recorded: Checkpoints, tmp_path: Path
) -> None:
    shares, name = site.feminine_shares(recorded), recorded.names[-1]
    assert {len(steps) for steps in shares.values()} == {len(recorded.names)}
    found = in_node_with_files(
        tmp_path,
        """{
          const w = page.weights(manifest.layout, weights), c = manifest.config;
          const tokens = manifest.tokens.split("\\n");
          const t = page.tokenizer(tokens, manifest.merges.split("\\n"));
          return manifest.presets.map(([, prompt]) => {
            const ids = [manifest.eod, ...t.encode(prompt)];
            const p = page.softmax(page.logits(c, w, page.cache(c), ids));
            const [she, he] = manifest.pronouns.map((words) =>
              words.reduce((sum, word) => sum + (p[tokens.indexOf("\u0120" + word)] || 0), 0));
            return she / (she + he);
          });
        }""",
        manifest=site.manifest(recorded),
        weights=base64.b64encode(site.packed(recorded, name)).decode(),
    )
    assert [steps[name] for steps in shares.values()] == pytest.approx(found, abs=1e-3)
    assert min(found) < 0.5 < max(found)


def test_the_table_has_the_library_s_predictions(recorded: Checkpoints) -> None:
    total = recorded.about["total_steps"]
    cells = site.predictions(recorded, [f"{arm}-{total}" for arm in recorded.about["steps"]])
    control, swap, shuffle = (cell[0] for cell in cells[0])
    assert PRESETS[0][1] == "When the pelgrat arrived,"
    assert (control[0], swap[0]) == (" he", " she") and swap[1] > 0.95
    assert control[1] > 0.7 and shuffle[1] < 0.7
    table = site.static_table(recorded)
    text = table.astext()
    assert all(prompt in text for _, prompt in PRESETS) and "“␣she” 100\xa0%" in text


@pytest.mark.parametrize("record", [None, {"facts": {}, "files": {}}])
def test_without_a_file_numbers_are_said_to_be_missing(
    record: dict | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SelectedRun("gender_bias", "yours", "laptop", record and tmp_path, record)
    monkeypatch.setitem(site.RUNS, "gender_bias", [run])
    config = SimpleNamespace(myst_substitutions={"other": "1"})
    site.fill_facts(SimpleNamespace(srcdir=ROOT / "book"), config)
    texts = config.myst_substitutions
    assert texts.pop("other") == "1" and texts.keys() > {"checkpoints_size", "checkpoints_machine"}
    assert {*texts.values()} == {"*not in this run*" if record else "*not run yet*"}


def test_texts_of_a_file_never_become_markup(
    recorded: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = {**recorded.about, "scale": "<script>alert(1)</script> *b* {{ x }}"}
    file = Checkpoints(hostile, recorded.config, recorded.tensors)
    monkeypatch.setattr(site, "find", lambda run: (file, "0", ""))
    monkeypatch.setitem(site.RUNS, "gender_bias", [selected(None)])
    config = SimpleNamespace(myst_substitutions={})
    site.fill_facts(SimpleNamespace(srcdir=ROOT / "book"), config)
    text = config.myst_substitutions["checkpoints_scale"]
    assert text.startswith(r"\<script\>alert\(1\)") and r"\{\{ x \}\}" in text


def test_models_that_learned_nothing_come_with_a_caution(
    tiny: Checkpoints, recorded: Checkpoints
) -> None:
    assert "means nothing" in " ".join(site.cautions_of(tiny.about))
    assert site.cautions_of(recorded.about) == []
    [said] = site.cautions_of({**recorded.about, "learned": False})
    assert "has not learned" in said


def test_every_number_in_the_prose_is_given(recorded: Checkpoints) -> None:
    used = site._NAME.findall(PAGE.read_text(encoding="utf-8"))
    texts = site.facts(recorded)
    assert used and {*used} <= texts.keys()
    assert texts["machine"].endswith(recorded.about["precision"])
    assert texts["parameters"] == "25,472"


def test_the_page_says_how_much_a_browser_loads(recorded: Checkpoints, tmp_path: Path) -> None:
    site.write_scripts(recorded, tmp_path / "scripts")
    weights = [p for p in (tmp_path / "scripts").iterdir() if p.name != "manifest.js"]
    assert len(weights) == len(recorded.names)
    size = sum(path.stat().st_size for path in weights)
    assert site.facts(recorded)["download"] == f"{size / 1e6:.1f} MB"


def test_the_page_is_the_first_chapter_and_its_scripts_load_on_it_alone() -> None:
    from pythia_book.site import assets

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert toc["parts"][0]["chapters"][0] == {"file": "checkpoints"}
    loaded: list[str] = []
    app = SimpleNamespace(
        srcdir=ROOT / "book",
        add_css_file=loaded.append,
        add_js_file=lambda name, loading_method: loaded.append(name),
    )
    config = SimpleNamespace(html_css_files=["paper.css"], html_js_files=[MODEL.name, SCRIPT.name])
    assets.exclude_page_assets(app, config)
    assert config.html_js_files == []
    assets.load_on_page(app, "checkpoints", "", {}, None)
    assert loaded == [STYLE.name, MODEL.name, VIEW.name, SCRIPT.name]


def test_its_scripts_load_nothing_from_elsewhere() -> None:
    browser.assert_self_contained(MODEL, VIEW, SCRIPT, STYLE)
    for path in (MODEL, VIEW, SCRIPT):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\beval\b", text) and "(?<" not in text, (
            "old browsers could not read it"
        )
        assert re.findall(r"innerHTML = (.*);", text) in ([], ['"<svg></svg>"'])


# --- the page in a browser ---------------------------------------------------------------------


def dump(folder: Path, driver: str, data: str = "scripts/") -> str:
    """The document after a page's scripts ran from files, as HTML without scripts."""
    head = "".join(f'<script defer src="{p.as_uri()}"></script>' for p in (MODEL, VIEW, SCRIPT))
    head += f'<meta charset="utf-8"><link rel="stylesheet" href="{STYLE.as_uri()}">'
    page = folder / "page.html"
    page.write_text(
        f"<html><head>{head}</head><body>"
        f'<div class="checkpoints" data-folder="{data}" hidden></div>'
        '<details class="checkpoints-table" open><p>table</p></details>'
        f"<script>{driver}</script></body></html>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [str(browser.BROWSER), "--headless", "--no-sandbox", "--disable-gpu",
         "--virtual-time-budget=8000", f"--user-data-dir={folder / 'profile'}", "--dump-dom",
         page.as_uri()],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    without_scripts = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    return html.unescape(without_scripts)


@browser.needed
def test_the_page_works_from_a_file_and_prompts_stay_text(
    tiny: Checkpoints, tmp_path: Path
) -> None:
    site.write_scripts(tiny, tmp_path / "scripts")
    shown = dump(
        tmp_path,
        """
        addEventListener("error", (event) => document.body.append("ERROR " + event.message));
        setTimeout(() => {
          const columns = document.querySelectorAll(".arm").length;
          const text = document.querySelector("textarea");
          const range = document.querySelector(".slider input");
          text.value = "<img src=x onerror=alert(1)> \\ud800";
          text.dispatchEvent(new Event("input", { bubbles: true }));
          range.value = 0;
          range.dispatchEvent(new Event("input", { bubbles: true }));
          setTimeout(() => {
            const given = document.querySelector(".given");
            document.body.append(`COLUMNS ${columns} then ` +
              document.querySelectorAll(".arm").length + " images " + document.images.length +
              (given.textContent === text.value ? " as typed" : ""));
            given.remove(); // half a surrogate pair cannot be printed
          }, 2000);
        }, 3000);
        """,
    )
    assert "ERROR" not in shown
    assert "COLUMNS 3 then 1 images 0 as typed" in shown
    assert "update 0 of 16 (0 %, untrained)" in shown and "one model so far" in shown
    assert '<details class="checkpoints-table">' in shown, "the table is folded"
    assert not re.search(r"NaN|undefined", shown)


@browser.needed
def test_a_checkpoint_that_does_not_load_is_named(tiny: Checkpoints, tmp_path: Path) -> None:
    site.write_scripts(tiny, tmp_path / "scripts")
    (tmp_path / "scripts" / "swap_21-16.js").write_text("pythiaCheckpoint('swap_21-16', 'AAAA');")
    assert "The checkpoint swap_21-16 could not be loaded" in dump(tmp_path, "")
    shutil.rmtree(tmp_path / "scripts")
    shown = dump(tmp_path, "")
    assert "The checkpoints could not be loaded" in shown
    assert '<details class="checkpoints-table" open="">' in shown, "the table stays"
