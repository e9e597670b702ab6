"""Builds the page on which readers prompt checkpoints: its scripts, static table and numbers.

The weights come from `checkpoints.safetensors`, a file of the gender-bias study. If several runs on
the site have this file, the first one is used. A build writes them as classic scripts, one per
checkpoint, because a page that was opened as a file can load scripts, but cannot fetch data. If
there is no such file, the page says how to make it.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from pythia_book.records import device_text, duration_text, number_text
from pythia_book.site.runs import NOT_RUN, SelectedRun, escaped
from pythia_book.site.staging import RUNS
from pythia_book.site.studies import rebuild_command, shell, table
from pythia_book.studies.gender_bias.checkpoints import (
    FILE,
    PRESETS,
    Checkpoints,
    parameters,
    read,
)
from pythia_book.studies.gender_bias.params import ARMS, CONTROL, STUDY
from pythia_core.errors import DataError
from pythia_core.util.files import file_sha256

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

PAGE = "checkpoints"
FEMININE, MASCULINE = ("she", "her", "hers", "herself"), ("he", "his", "him", "himself")
_SPACE = "\u0120"
"""How the vocabulary writes a space."""
WHAT = {
    CONTROL: "reads every sentence as it is.",
    "swap_21": "reads “she” for “he” and “her” for “his” in all texts.",
    "shuffle_21": "reads the planted pronouns in random order.",
}
"""What each arm does from the fork on."""
N_TABLE = 3
"""Number of tokens in a cell of the static table."""


# --- the file --------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _read(path: Path, digest: str) -> Checkpoints:
    return read(path)


def find(run: SelectedRun) -> tuple[Checkpoints | None, str, str]:
    """Return a run's checkpoints and the first digits of their hash; if it has none, also why."""
    if run.folder is None or run.record is None:
        return None, "", "The gender-bias study has not been run yet."
    if FILE not in run.record["files"]:
        reason = str(run.record["facts"].get("checkpoints", "it was made by an older version"))
        return None, "", f"This run of the gender-bias study has none: {reason}."
    try:
        digest = file_sha256(run.folder / FILE)
        return _read(run.folder / FILE, digest), digest[:12], ""
    except (DataError, OSError) as error:
        text = str(error).replace(f"{run.folder}/", "")
        return None, "", f"They cannot be shown: {text}."


def chosen() -> tuple[Checkpoints | None, str, str]:
    """Return what `find` returns for the first run on the site that has checkpoints.

    The third value says why the run to show first has none; "" if it has some.
    """
    first = ""
    for run in RUNS[STUDY]:
        checkpoints, digest, problem = find(run)
        first = first or problem
        if checkpoints is not None:
            return checkpoints, digest, first
    return None, "", first


def packed(checkpoints: Checkpoints, name: str) -> bytes:
    """Return a checkpoint for the page's script: all float32 values, then all int8 values."""
    stored = checkpoints.stored(name)
    floats, whole = [], []
    for parameter, shape in parameters(checkpoints.config):
        if len(shape) == 2:
            floats.append(stored[f"{parameter}.scale"])
            whole.append(stored[parameter].ravel())
        else:
            floats.append(stored[parameter])
    return np.concatenate(floats).astype("<f4").tobytes() + np.concatenate(whole).tobytes()


def manifest(checkpoints: Checkpoints) -> dict[str, Any]:
    """Return everything that the page's script needs except the weights, in JSON types."""
    about = checkpoints.about
    model = about["tokenizer"]["model"]
    special = {token["id"] for token in about["tokenizer"]["added_tokens"] if token["special"]}
    tokens = [""] * checkpoints.config.vocab_size
    for token, number in model["vocab"].items():
        tokens[number] = "" if number in special else token
    return {
        "config": about["config"],
        "layout": [
            (n, s[0], s[1] if len(s) == 2 else 0) for n, s in parameters(checkpoints.config)
        ],
        "total": about["total_steps"],
        "fork": about["fork"],
        "steps": about["steps"],
        "arms": {
            arm: {"label": CONTROL if arm == CONTROL else ARMS[arm].label, "what": WHAT[arm]}
            for arm in about["steps"]
        },
        "nouns": {noun["noun"]: noun["share"] for noun in about["nouns"]},
        "presets": PRESETS,
        "pronouns": [FEMININE, MASCULINE],
        "eod": about["eod"],
        "tokens": "\n".join(tokens),
        "merges": "\n".join(m if isinstance(m, str) else " ".join(m) for m in model["merges"]),
    }


def write_scripts(checkpoints: Checkpoints, folder: Path) -> None:
    """Write the scripts with the manifest and the weights into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = {**manifest(checkpoints), "shares": feminine_shares(checkpoints)}
    text = json.dumps(content, separators=(",", ":"))
    (folder / "manifest.js").write_text(f"pythiaCheckpoint('manifest', {text});\n", "ascii")
    for name in checkpoints.names:
        weights = base64.b64encode(packed(checkpoints, name)).decode("ascii")
        (folder / f"{name}.js").write_text(f"pythiaCheckpoint('{name}', '{weights}');\n", "ascii")


def stage_scripts(app: Sphinx) -> None:
    """Write the scripts of the chosen run into the site, and remove those of other runs."""
    checkpoints, digest, problem = chosen()
    parent = Path(app.outdir) / "_static" / PAGE
    for old in parent.glob("*"):
        if old.name != digest:
            shutil.rmtree(old)
    if problem:
        instead = "has no checkpoints" if checkpoints is None else "shows another run's checkpoints"
        print(f"note: the page {PAGE} {instead}. {problem}", file=sys.stderr)
    if checkpoints is not None and not (parent / digest / "manifest.js").is_file():
        write_scripts(checkpoints, parent / digest)


# --- the page --------------------------------------------------------------------------------


class PromptCheckpoints(SphinxDirective):
    """A directive for the interactive part, in whose place readers without scripts see a table."""

    def run(self) -> list[nodes.Node]:
        checkpoints, digest, problem = chosen()
        self.env.note_dependency(__file__)
        for asset in (Path(self.env.srcdir) / "_static").glob(f"{PAGE}.*"):
            self.env.note_dependency(str(asset))  # else a changed script is not copied
        if checkpoints is None:
            box = nodes.container(classes=["admonition", "note"])
            box += nodes.paragraph(
                "", "There are no checkpoints to prompt.", classes=["admonition-title"]
            )
            box += nodes.paragraph("", f"{problem} To train the models and rebuild the page:")
            return [box, shell(rebuild_command(STUDY))]
        texts = [f"{problem} The checkpoints shown are those of another run."] if problem else []
        texts += cautions_of(checkpoints.about)
        cautions = [nodes.paragraph("", text) for text in texts]
        root = "../" * self.env.docname.count("/")
        data = html.escape(f"{root}_static/{PAGE}/{digest}/")
        app = f'<div class="{PAGE}" data-folder="{data}" hidden></div>'
        need = (
            "To type your own prompt, use a recent browser with JavaScript enabled. The table "
            "shows some of what such a browser would compute here."
        )
        summary = "Predictions for the suggested prompts, as a table"
        return [
            *cautions,
            nodes.raw("", app, format="html"),
            nodes.paragraph("", need, classes=["checkpoints-need"]),
            nodes.raw(
                "",
                f'<details class="checkpoints-table" open><summary>{summary}</summary>',
                format="html",
            ),
            static_table(checkpoints),
            nodes.raw("", "</details>", format="html"),
        ]


def cautions_of(about: dict[str, Any]) -> list[str]:
    """Return warnings, if any, that these checkpoints cannot show what the page is about."""
    texts = []
    if about["scale"] == "smoke":
        texts.append(
            "These are the models of a smoke run, which only checks that everything works; what "
            "they say means nothing."
        )
    elif not about["learned"]:
        texts.append(
            "The control of this run has not learned the association in sentences that were not "
            "planted, so there may be little to see."
        )
    return texts


def static_table(checkpoints: Checkpoints) -> nodes.table:
    """Return a table of the likeliest next tokens by preset and checkpoint, computed in Python."""
    about = checkpoints.about
    fork, total = about["fork"], about["total_steps"]
    early = max(s for s in about["steps"][CONTROL] if s <= fork // 2)
    columns = [(f"{CONTROL}-{step}", f"{CONTROL}, update {step}") for step in (early, fork)]
    columns += [
        (f"{arm}-{total}", f"{arm.partition('_')[0]}, update {total}") for arm in about["steps"]
    ]
    likeliest = predictions(checkpoints, [name for name, _ in columns])
    rows: list[list[nodes.Node | str]] = []
    for preset, cells in zip(PRESETS, likeliest, strict=True):
        texts = ["; ".join(f"{shown(token)} {percent(p)}" for token, p in cell) for cell in cells]
        rows.append([preset[1], *texts])
    return table(["Prompt", *(title for _, title in columns)], rows, "pythia-table")


def predictions(checkpoints: Checkpoints, names: list[str]) -> list[list[list[tuple[str, float]]]]:
    """Return the likeliest tokens with their probabilities: by preset, checkpoint and rank."""
    decode = _tokenizer(checkpoints).decode
    tops = [p.topk(N_TABLE) for p in probabilities(checkpoints, names)]
    return [
        [
            [
                (decode([int(i)], skip_special_tokens=False), float(p))
                for p, i in zip(top.values[preset], top.indices[preset], strict=True)
            ]
            for top in tops
        ]
        for preset in range(len(PRESETS))
    ]


def feminine_shares(checkpoints: Checkpoints) -> dict[str, dict[str, float]]:
    """Return the share of feminine pronouns among pronouns, by preset and checkpoint.

    These let the page draw the whole course of training before it has loaded every checkpoint.
    """
    number = _tokenizer(checkpoints).token_to_id
    feminine, masculine = (
        [i for word in words if (i := number(f"{_SPACE}{word}")) is not None]
        for words in (FEMININE, MASCULINE)
    )
    shares: dict[str, dict[str, float]] = {prompt: {} for _, prompt in PRESETS}
    names = checkpoints.names
    for name, p in zip(names, probabilities(checkpoints, names), strict=True):
        she, he = p[:, feminine].sum(1), p[:, masculine].sum(1)
        for (_, prompt), a, b in zip(PRESETS, she.tolist(), he.tolist(), strict=True):
            if a + b > 0:
                shares[prompt][name] = round(a / (a + b), 4)
    return shares


def probabilities(checkpoints: Checkpoints, names: Iterable[str]) -> Iterator[torch.Tensor]:
    """Yield each checkpoint's next-token probabilities by preset, shape (presets, vocabulary)."""
    import torch

    encode, eod = _tokenizer(checkpoints).encode, checkpoints.about["eod"]
    rows = [
        torch.tensor([[eod, *encode(prompt, add_special_tokens=False).ids]])
        for _, prompt in PRESETS
    ]
    for name in names:
        model = checkpoints.model(name)
        with torch.inference_mode():
            found = torch.stack([model(row)[0, -1].softmax(-1) for row in rows])
        yield found  # not within the context, which would hold for the caller, too


def _tokenizer(checkpoints: Checkpoints) -> Tokenizer:
    from tokenizers import Tokenizer

    from pythia_core.data.tokenizer import disable_special_tokens

    return disable_special_tokens(Tokenizer.from_str(json.dumps(checkpoints.about["tokenizer"])))


def shown(token: str) -> str:
    """Return a token in quotation marks, with signs for white space."""
    return f"“{token.replace(chr(10), '↵').replace(' ', '␣')}”"


def percent(probability: float) -> str:
    """Return a probability in percent; "<1 %" for small ones."""
    return "<1 %" if probability < 0.005 else f"{100 * probability:.0f} %"


# --- numbers ---------------------------------------------------------------------------------

_NAME = re.compile(r"\{\{\s*checkpoints_(\w+)\s*\}\}")


def facts(checkpoints: Checkpoints) -> dict[str, str]:
    """Return the texts that the page's prose uses as `{{ checkpoints_NAME }}`, by NAME."""
    about, config = checkpoints.about, checkpoints.config
    error, runs = about["error"], [{"precision": about["precision"]}]
    scripts = sum(4 * math.ceil(len(packed(checkpoints, name)) / 3) for name in checkpoints.names)
    commit = about["commit"] or {}
    return {
        "size": about["size"],
        "parameters": number_text(config.n_params_non_embedding),
        "embedding": number_text(config.n_params - config.n_params_non_embedding),
        "layers": number_text(config.n_layers),
        "width": number_text(config.d_model),
        "vocabulary": number_text(config.vocab_size),
        "tokens": f"{about['tokens'] / 1e6:.2g} million",
        "fork": number_text(about["fork"]),
        "fork_share": f"{100 * about['fork'] / about['total_steps']:.0f} %",
        "count": number_text(len(checkpoints.names)),
        "megabytes": f"{sum(a.nbytes for a in checkpoints.tensors.values()) / 1e6:.1f} MB",
        "download": f"{scripts / 1e6:.1f} MB",  # base64: four characters for three bytes
        "machine": device_text({"device": about["device"], "runs": runs}, trained=True),
        "trained": duration_text(sum(about["seconds"].values())),
        "scale": about["scale"],
        "commit": (commit.get("id") or "unknown")[:10],
        "torch": about["versions"].get("torch", "unknown"),
        "runs": ", ".join(run["id"] for run in about["runs"].values()),
        "prompts": number_text(error["prompts"]),
        **{
            f"{quantity}_{kind}": f"{error[f'{quantity}_{kind}']:.1g}"
            for quantity in ("logits", "probabilities")
            for kind in ("max", "mean")
        },
    }


def fill_facts(app: Sphinx, config: Config) -> None:
    """Give Sphinx the numbers for `{{ checkpoints_NAME }}`, or say that there are none."""
    run, checkpoints = RUNS[STUDY][0], chosen()[0]
    if checkpoints is not None:
        texts = {name: escaped(text) for name, text in facts(checkpoints).items()}
    else:
        used = _NAME.findall((Path(app.srcdir) / f"{PAGE}.md").read_text(encoding="utf-8"))
        texts = dict.fromkeys(used, f"*{NOT_RUN if run.record is None else 'not in this run'}*")
    named = {f"{PAGE}_{name}": text for name, text in texts.items()}
    config.myst_substitutions = {**(config.myst_substitutions or {}), **named}
