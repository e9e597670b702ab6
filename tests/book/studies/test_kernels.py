"""The kernels study: predictions from configs, tables of measured rows, no number of a dry run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pythia_book.studies.kernels import figures as draw
from pythia_book.studies.kernels import study
from pythia_book.studies.kernels.study import PREDICTIONS, executed_products, predictions

from pythia_core.errors import ConfigError
from pythia_core.kernels import attention_backends
from pythia_core.suite import OFFICIAL_SIZES

HEAD = {
    "device": "a card",
    "torch": "2.11",
    "dry_run": False,
    "triton": True,
    "method": "as it is",
    "copy_gb_per_s": 2500.0,
    "matmul_tflop_per_s": 700.0,
}
PARAMS = study.KernelsParams(sizes="31m,160m")


def row(size: str, kernel: str, contender: str, ms: float, **more: Any) -> dict[str, Any]:
    found = {
        "size": size,
        "kernel": kernel,
        "contender": contender,
        "direction": "both",
        "dtype": "bfloat16",
        "shape": {"tokens": 32_768, "width": 768},
        **{"ms": ms, "ms_low": 0.99 * ms, "ms_high": 1.01 * ms, "calls": 60},
        **{
            "rate": 1000 / ms,
            "unit": "GB/s",
            "share": 0.5 / ms,
            "formula": "least work, over time",
        },
        **{"relative_error": 2e-3, "peak_bytes": 10**9, "dry_run": False},
    }
    return found | more


def attention(size: str, dim: int, library: str, ms: float, direction: str) -> dict[str, Any]:
    shape = {"batch": 16, "seq": 2048, "heads": 12, "head_dim": dim}
    more = {"shape": shape, "unit": "TFLOP/s", "direction": direction}
    return row(size, "attention", library, ms, **more)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """What a card would give: made up, and told from a measurement by its round numbers."""
    made = [HEAD]
    for size, factor in (("31m", 1.0), ("160m", 3.0)):
        made += [
            row(size, "layer_norm_pair", "ours", factor),
            row(size, "layer_norm_pair", study.COMPILED, 1.25 * factor),
            row(size, "layer_norm_pair", "reference", 4 * factor),
        ]
    for direction in ("forward", "backward", "both"):
        for library, ms in (("torch", 1.0), ("cudnn", 0.8), ("triton", 1.6)):
            made.append(attention("160m", 64, library, ms, direction))
        lost = attention("160m", 64, "flash_attn", 1.0, direction)
        lost = {k: v for k, v in lost.items() if k not in ("ms", "ms_low", "ms_high", "share")}
        made.append(lost | {"failed": "flash_attn is not installed", "rate": None})
    return made


@pytest.fixture(scope="module")
def dry(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**r, "dry_run": True} for r in rows]


def test_predictions_are_the_configs() -> None:
    size = OFFICIAL_SIZES["160m"]
    frame = predictions(("160m",), 1000.0).set_index("kernel")
    d, layers, vocab = size.d_model, size.n_layers, size.vocab_size
    saved = frame.saved_bytes
    assert saved["linear_cross_entropy"] == 2 * vocab
    assert saved["split_rotated"] == 2 * d * layers * 3  # three passes of a bf16 tensor
    assert saved["attention (packed)"] == 2 * d * layers * 8
    assert saved["layer_norm_pair"] == 8 * d * layers
    assert saved["bias_gelu"] == 2 * d * layers * 4
    assert frame.saved_ns.tolist() == pytest.approx((saved / 1000).tolist())
    assert frame.saved_ns.sum() / frame.share_of_floor.sum() == pytest.approx(
        frame.saved_ns.iloc[0] / frame.share_of_floor.iloc[0]
    )
    assert (saved > 0).all() and len(frame) == len(PREDICTIONS)


def test_products_follow_from_the_tiles() -> None:
    assert executed_products(64) == executed_products(80) == (5, 7)
    assert executed_products(256) == (5, 8)


def test_measured_rows_make_tables(
    rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = study.run(PARAMS, rows)
    assert result.values["card"] == "a card" and result.values["copy"] == 2500
    (choice,) = result.tables["choices"].to_dict("records")
    assert (choice["head_dim"], choice["fastest"], choice["taken"]) == (64, "cudnn", "torch")
    assert choice["gain"] == pytest.approx(0.25)
    assert choice["measured"] == "cudnn, torch, triton"
    monkeypatch.setitem(attention_backends.FASTEST, 64, "cudnn")
    assert study.run(PARAMS, rows).tables["choices"].gain.tolist() == [0]
    outcome = result.tables["predictions"].set_index(["kernel", "size"]).measured_ns
    layers = OFFICIAL_SIZES["160m"].n_layers
    expected = 0.25 * 3 * 1e6 / 32_768 * layers
    assert outcome["layer_norm_pair", "160m"] == pytest.approx(expected)
    assert math.isnan(outcome["bias_gelu", "160m"])
    norms, attended = result.claims
    assert norms["verdict"] == "holds" and norms["ours"] == pytest.approx(0.25)
    assert norms["low"] == pytest.approx(1.25 * 0.99 / 1.01 - 1)
    assert attended["verdict"] == "does not hold" and attended["ours"] == pytest.approx(-0.375)
    for drawing in (draw.roofline, draw.attention):
        assert drawing(result).svg == drawing(result).svg and "not yet" not in drawing(result).svg
    assert "cudnn" in repr(draw.choices(result))
    assert "flash_attn is not installed" in repr(draw.measurements(result))


def test_a_dry_run_leaves_no_number(dry: list[dict[str, Any]]) -> None:
    result = study.run(PARAMS, dry)
    frame = result.tables["measurements"]
    assert len(frame) == len(dry) - 1
    assert frame[[*study.MEASURED, "tokens"]].isna().all(axis=None)
    assert set(frame.failed) == {study.NOT_MEASURED}
    assert {c["verdict"] for c in result.claims} == {"not testable here"}
    assert {c["ours"] for c in result.claims} == {None}
    assert result.values["card"] == result.values["copy"] == study.NOT_MEASURED
    assert result.tables["predictions"].measured_ns.isna().all()
    assert result.tables["choices"].fastest.isna().all()
    for drawing in (draw.roofline, draw.attention):
        assert study.NOT_MEASURED in drawing(result).svg
    for table in (draw.choices, draw.measurements):
        assert study.NOT_MEASURED in repr(table(result))
    assert "not yet measured" in repr(draw.outcomes(result))
    assert "2500" not in json.dumps(result.values)


def test_the_page_needs_no_run() -> None:
    table = draw.predictions()
    assert table.caption.startswith("Predicted, not measured.")
    assert table.frame.kernel.tolist() == [p.kernel for p in PREDICTIONS]


def test_parameters() -> None:
    assert study.KernelsParams("smoke").size_list == ("31m",)
    dims = [OFFICIAL_SIZES[s].model().head_dim for s in study.KernelsParams().size_list]
    assert sorted(dims) == [32, 64, 80, 128, 256]
    with pytest.raises(ConfigError, match=r"official sizes \(14m, .*got 25k"):
        study.KernelsParams(sizes="25k")
    with pytest.raises(ConfigError, match="rows must be text"):
        study.KernelsParams(rows=3)
