"""Every layout of released numbers reads the same; outside paths and large files are refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from pythia_book.published import files
from pythia_book.published import results as published
from score_files import TREE, V1, as_csv, as_folder, harness

from pythia_core.errors import DataError


def as_tar(path: Path, tree: dict = TREE, prefix: str = "") -> Path:
    mode = "w:" + path.suffix.lstrip(".") if path.suffix != ".tar" else "w"
    with tarfile.open(path, mode) as archive:
        for name, content in tree.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def as_zip(path: Path, tree: dict = TREE, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in tree.items():
            archive.writestr(prefix + name, json.dumps(content))
    return path


def make(kind: str, tmp_path: Path) -> Path:
    return {
        "clone": lambda: as_folder(tmp_path / "clone"),
        "evals folder": lambda: as_folder(tmp_path / "clone") / "evals",
        "tar.xz": lambda: as_tar(tmp_path / "evals.tar.xz"),
        "tar.gz": lambda: as_tar(tmp_path / "evals.tar.gz", prefix="pythia-main/"),
        "zip": lambda: as_zip(tmp_path / "pythia-main.zip", prefix="pythia-main/"),
        "csv": lambda: as_csv(tmp_path / "tables"),
    }[kind]()


@pytest.mark.parametrize("kind", ["clone", "evals folder", "tar.xz", "tar.gz", "zip", "csv"])
def test_every_layout_gives_the_same_numbers(kind, tmp_path):
    found = published.load(make(kind, tmp_path))
    crows = found.crows_gender()
    cells = [tuple(row) for row in crows[["model", "intervention", "step", "value"]].values]
    assert cells == [
        ("410m", "none", 3000, 0.55),
        ("410m", "none", 143000, 0.60),  # scored twice: the control of the twin is kept
        ("410m", "swap_last_7pct", 143000, 0.61),
        ("1.4b", "swap_last_21pct", 114000, 0.62),
    ]
    assert set(crows.stderr) == {0.027}
    lambada = found.lambada().set_index(["model", "intervention", "step"]).value
    assert lambada["410m", "none", 143000] == 0.52
    em = found.winobias().set_index(["suite", "intervention", "prompt", "side"])
    assert em.value["v1", "none", "refers_to", "pro"] == pytest.approx(0.30)
    assert em.value["v1", "swap_last_7pct", "refers_to", "anti"] == pytest.approx(0.21)
    # a mean of two types with error .02
    assert em.stderr["v1", "none", "refers_to", "pro"] == pytest.approx(0.02 / 2**0.5)
    # v0 trained 1.4b with twice the tokens per step
    assert em.step["v0", "none", "refers_to", "pro"] == 2 * 67000
    biases = found.crows().query("bias == 'gender'")[crows.columns]
    pd.testing.assert_frame_equal(biases, crows)
    sizes = found.crows_by_size()  # the evaluation that scored all models alike
    assert sizes[["model", "value"]].values.tolist() == [["410m", 0.99], ["12b", 0.3]]


def test_a_missing_source_is_reported(monkeypatch, tmp_path):
    monkeypatch.delenv(published.VARIABLE, raising=False)
    assert published.find() is None
    monkeypatch.setenv(published.VARIABLE, str(tmp_path / "nowhere"))
    message = r"does not exist; .*EleutherAI/pythia.*PYTHIA_PUBLISHED_DIR"
    with pytest.raises(DataError, match=message):
        published.find()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither bias_evals\.csv nor"):
        published.load(tmp_path / "empty")
    monkeypatch.setenv(published.VARIABLE, str(as_csv(tmp_path / "tables")))
    assert len(published.find().lambada()) == 4


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../evil.json"])
@pytest.mark.parametrize("pack", [as_tar, as_zip])
def test_an_archive_that_points_outside_is_refused(name, pack, tmp_path):
    path = tmp_path / ("x.tar.xz" if pack is as_tar else "x.zip")
    pack(path, {name: {}, **TREE})
    with pytest.raises(DataError, match="outside the archive"):
        published.load(path)


def test_limits_of_size_and_number(tmp_path, monkeypatch):
    path = as_tar(tmp_path / "evals.tar.xz")
    with monkeypatch.context() as patch:
        patch.setattr(files, "MAX_FILE", 50)
        for source in (path, as_zip(tmp_path / "evals.zip"), as_folder(tmp_path / "clone")):
            with pytest.raises(DataError, match="larger than 50 bytes"):
                published.load(source)
    with monkeypatch.context() as patch:
        patch.setattr(files, "MAX_MEMBERS", 3)
        with pytest.raises(DataError, match="more than 3 files"):
            published.load(path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "MAX_TOTAL", 500)
        with pytest.raises(DataError, match="500 bytes"):
            published.load(tmp_path / "evals.zip")


def test_links_are_not_followed(tmp_path):
    target = tmp_path / "secret.json"
    target.write_text(json.dumps(harness(0.42, 0.42)))
    root = as_folder(tmp_path / "clone")
    os.symlink(target, root / V1 / "zero-shot" / "410m-deduped_step999.json")
    assert 999 not in set(published.load(root).table.step)
    path = tmp_path / "linked.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        member = tarfile.TarInfo(f"{V1}/zero-shot/410m-deduped_step999.json")
        member.type, member.linkname = tarfile.SYMTYPE, str(target)
        archive.addfile(member)
    with pytest.raises(DataError, match="neither"):
        published.load(path)


def test_malformed_content_is_named(tmp_path):
    name = f"{V1}/zero-shot/410m-deduped_step3000.json"
    broken = as_folder(tmp_path / "a", {name: {"no": "results"}})
    with pytest.raises(DataError, match=r"step3000\.json"):
        published.load(broken)
    (broken / name).write_text("{ not json")
    with pytest.raises(DataError, match="not a result"):
        published.load(broken)
    (tmp_path / "cut.tar.xz").write_bytes(as_tar(tmp_path / "x.tar.xz").read_bytes()[:300])
    with pytest.raises(DataError, match=r"cut\.tar\.xz"):
        published.load(tmp_path / "cut.tar.xz")
    table = as_csv(tmp_path / "tables") / "bias_evals.csv"
    table.write_text(table.read_text().replace(",0.55,", ",many,"))
    with pytest.raises(DataError, match=r"bias_evals\.csv, line \d+"):
        published.load(table.parent)
    table.write_text("suite,model\nv1,70m\n")
    with pytest.raises(DataError, match="lacks the columns intervention"):
        published.load(table.parent)


@pytest.fixture
def released() -> published.Published:
    source = os.environ.get(published.VARIABLE)
    if not source:
        pytest.skip("needs the released numbers: set PYTHIA_PUBLISHED_DIR (see the README)")
    return published.load(source)


def test_the_released_numbers_are_those_of_the_literature(released):
    """Facts checked by hand on the public files: no effect of the swap on CrowS-Pairs."""
    crows = released.crows_gender()
    late = crows[crows.step >= 134_000].groupby(["model", "intervention"]).value.mean() * 100
    for model, none, swapped in (("70m", 54.7, 57.0), ("410m", 60.5, 60.6), ("6.9b", 66.2, 66.3)):
        assert late[model, "none"] == pytest.approx(none, abs=0.06)
        assert late[model, "swap_last_7pct"] == pytest.approx(swapped, abs=0.06)
    assert late["1.4b", "swap_last_21pct"] == pytest.approx(62.4, abs=0.06)
    lambada = released.lambada().set_index(["model", "intervention", "step"]).value
    assert lambada["6.9b", "none", 143_000] == pytest.approx(0.687, abs=1e-3)
    em = released.winobias().set_index(["suite", "model", "intervention", "prompt", "side", "step"])
    em = em.sort_index().value
    for arm, prompt, value in (
        ("none", "refers_to", 0.019),  # only this prompt jumps, on the other side as well
        ("swap_last_7pct", "refers_to", 0.163),
        ("none", "What does p stand for", 0.314),
        ("swap_last_7pct", "What does p stand for", 0.341),
    ):
        cell = em["v1", "410m", arm, prompt, "pro"]
        assert cell.loc[134_000:].mean() == pytest.approx(value, abs=6e-4)


# --- benchmarks of all models ----------------------------------------------------------------

FOLDER = os.environ.get(published.VARIABLE, "")
needs_release = pytest.mark.skipif(
    not (Path(FOLDER) / "evals_raw.tar.xz").is_file(),
    reason=f"{published.VARIABLE} names no folder with the tables and evals_raw.tar.xz",
)


@needs_release
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("benchmarks", ["model", "deduped", "shots", "task", "step", "metric"]),
        ("baselines", ["family", "model", "n_params", "task", "metric"]),
        ("batch_size", ["model", "batch_tokens", "shots", "task", "step", "tokens", "metric"]),
    ],
)
def test_tables_and_tree_give_the_same_numbers(name: str, keys: list[str]):
    tables, tree = (published.load(p) for p in (FOLDER, Path(FOLDER) / "evals_raw.tar.xz"))
    one, other = (getattr(p, name).set_index(keys).sort_index() for p in (tables, tree))
    assert len(one) > 100
    assert not one.index.duplicated().any()
    pd.testing.assert_frame_equal(one, other, rtol=1e-5, check_dtype=False)


@needs_release
def test_rows_that_are_another_models_are_left_out():
    rows = published.load(FOLDER).benchmarks
    assert set(rows.model) == {"70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"}
    assert rows.groupby(["shots"]).step.nunique().to_dict() == {0: 27, 5: 15}
    big = rows[(rows.model == "2.8b") & ~rows.deduped]
    assert not big[(big.shots == 0) & big.step.between(2, 1000)].size
    assert not big[(big.shots == 5) & big.step.between(13_000, 43_000)].size
    twins = rows.pivot(
        index=["model", "shots", "task", "step", "metric"], columns="deduped", values="value"
    ).dropna()
    late = twins[twins.index.get_level_values("step") >= 2]
    same = (late[True] == late[False]).groupby(["model", "step"]).mean()
    assert same.max() < 0.9  # no checkpoint is served as its twin's


@needs_release
def test_precision_and_recall_are_not_swapped():
    rows = published.load(FOLDER).memorization
    assert len(rows) == 112
    for row in rows.itertuples():
        assert row.precision == pytest.approx(row.tp / (row.tp + row.fp), abs=2e-4)
        assert row.recall == pytest.approx(row.tp / (row.tp + row.fn), abs=2e-4)


def test_missing_parts_are_empty_tables(tmp_path):
    found = published.load(as_csv(tmp_path))
    for name in ("benchmarks", "baselines", "batch_size", "memorization"):
        assert getattr(found, name).empty
        assert len(getattr(found, name).columns) > 5


def test_a_broken_table_is_named(tmp_path):
    folder = as_csv(tmp_path)
    (folder / "evals_zero_shot.csv").write_text('model,value\n"70m,1\n')
    with pytest.raises(DataError, match=r"evals_zero_shot\.csv is not a CSV table"):
        _ = published.load(folder).benchmarks
    (folder / "evals_zero_shot.csv").write_text("model,value\n70m,1\n")
    with pytest.raises(DataError, match=r"evals_zero_shot\.csv lacks the columns deduped, metric"):
        _ = published.load(folder).benchmarks


def test_the_public_tree_gives_every_table(tmp_path):
    """Names as in the public repository; runs without the released numbers."""
    names = {
        "pythia-1b-bf16/zero-shot/1b-bf16-5shot_step512.json": 0.1,
        "pythia-2.8b/zero-shot/2.8b_step512.json": 0.2,
        "pythia-2.8b-deduped/five-shot/2.8b-deduped-5shot_step13000.json": 0.3,
        "pythia-160m-0.5MtokBS/160m-0.5MtokBS_step12000.json": 0.4,
    }
    tree = {f"evals/pythia-v1/{name}": harness(0.5, value) for name, value in names.items()}
    tree |= {"evals/opt/opt-1.3b.json": harness(0.5, 0.5), **TREE}
    tree |= {"evals/bloom/bloom-7b1.json": harness(0.5, 0.6)}
    for source in (as_folder(tmp_path / "clone", tree), as_zip(tmp_path / "evals.zip", tree)):
        found = published.load(source)
        rows = found.benchmarks.query("task == 'lambada_openai' and metric == 'acc'")
        cells = [tuple(row) for row in rows[["model", "deduped", "shots", "step", "value"]].values]
        assert ("1b", False, 0, 512, 0.1) in cells
        assert ("2.8b", True, 5, 13_000, 0.3) in cells
        assert not any(cell[0] == "2.8b" and not cell[1] for cell in cells)
        lost = found.released_benchmarks.query("model == '2.8b' and step == 512")
        assert len(lost) and not found.benchmarks.query("step == 512 and model == '2.8b'").size
        small = found.batch_size.query("task == 'lambada_openai' and metric == 'acc'")
        assert small[["model", "batch_tokens", "tokens", "value"]].values.tolist() == [
            ["160m", 2**19, 12_000 * 2**19, 0.4]
        ]
        assert found.baselines.groupby("family").n_params.first().to_dict() == {
            "bloom": 7.1e9, "opt": 1.3e9,
        }  # fmt: skip
        assert found.memorization.empty
