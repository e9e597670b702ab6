"""The page on speed: a CPU is measured, a GPU predicted and shown as measured only if it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pythia_book import records
from pythia_book.bench import cost_model, kernels, train
from pythia_book.bench.rows import COMPILED, Row, gpu_folder, write_rows
from pythia_book.studies.speed import figures as draw
from pythia_book.studies.speed import study
from pythia_book.studies.speed.params import Params
from pythia_book.verdicts import judge

from pythia_core.errors import ConfigError
from pythia_core.kernels import attention_backends
from pythia_core.suite import OFFICIAL_SIZES

MATMUL = {"fp32": 0.2, "bf16": 0.1}
MACHINE = {
    "kind": "machine", "device": "a CPU", "torch": "9.9", "copy_gb_per_s": 100.0,
    "matmul_tflop_per_s": MATMUL, "dry_run": False,
}  # fmt: skip
CARD = {**MACHINE, "device": "a GPU <b>", "matmul_tflop_per_s": {"bf16": 700.0}}


def timed(ms: float, **more: Any) -> Row:
    return {"ms": ms, "ms_low": 0.99 * ms, "ms_high": 1.01 * ms, "dry_run": False, **more}


def step(implementation: train.Implementation, ms: float, size: str = "7k", **more: Any) -> Row:
    cuda = size in OFFICIAL_SIZES
    tokens = 2**21 if cuda else 4096
    rate = 1e3 * tokens / ms
    row = {"kind": "train", "size": size, "rows": 32, "seq_len": 128, "tokens_per_update": tokens}
    row |= {"micro_rows": 4} if cuda else {}
    row |= {
        "tokens_per_s": rate,
        "tflops": 1e-6 * rate,
        "matmul_share": 0.5,
        "mfu": 0.4,
        "peak_bytes": 30 * 2**30,
    }
    return timed(ms, **row, **implementation.columns, **more)


def operation(kernel: str, implementation: str, ms: float, **more: Any) -> Row:
    row = {"kind": "operation", "size": "7k", "kernel": kernel, "dtype": "fp32"}
    row |= {"implementation": implementation, "rate": 1.0, "unit": "GB/s"}
    return timed(ms, **{**row, "share": 0.5, "relative_error": 1e-3, "peak_bytes": None, **more})


CPU_STEPS = [
    MACHINE,
    step(train.Implementation("ours", precision="fp32"), 10.0),
    step(train.Implementation("transformers", "eager", "fp32", "eager"), 30.0),
    step(train.Implementation("transformers", "eager", "fp32"), 20.0),
]
CPU_OPERATIONS = [
    MACHINE,
    operation("gelu", "ours", 1.0),
    operation("gelu", "reference", 5.0),
    operation("gelu", "torch", 0.5),
]


def gpu_steps(ratio: float = 1.3, dry_run: bool = False) -> list[Row]:
    baseline = 1e3 * 2**21 / 400e3  # ms
    rows = [
        CARD,
        step(train.BASELINE, baseline, "160m"),
        step(train.Implementation("plain"), baseline / 2, "160m"),  # faster, but not compiled
        step(train.Implementation("transformers"), 2 * baseline, "160m"),
        step(train.Implementation("ours"), 1.1 * baseline, "160m"),
        step(train.GRAPH, baseline / ratio, "160m"),
        step(train.ROUNDS_ON_GPU[0][-1], baseline / 9, "160m"),  # not as users get our code
        {
            **{"kind": "train", "size": "160m", "failed": "out of memory: 80 GB"},
            **train.Implementation("transformers", "compile").columns,
        },
    ]
    return [row | {"dry_run": dry_run} for row in rows]


@pytest.fixture(autouse=True)
def measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use made-up CPU measurements; the benchmarks have tests of their own."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.setattr(train, "bench_train", lambda *_, **__: iter(CPU_STEPS))
    monkeypatch.setattr(kernels, "bench_kernels", lambda *_, **__: iter(CPU_OPERATIONS))


def run_with(steps: list[Row] = (), operations: list[Row] = (), libraries: list[Row] = ()) -> Any:
    for name, rows in (("train", steps), ("kernels", operations), ("attention", libraries)):
        write_rows(rows, gpu_folder() / f"{name}.jsonl", lambda _: None)
    return study.run(Params())


TABLES = (draw.steps, draw.operations, draw.gpu_sizes, draw.gpu_kernels, draw.attention)


def all_text(result: Any) -> str:
    drawn = [figure(result).svg for figure in (draw.ratios, draw.gpu_rates)]
    return "\n".join(drawn + [table(result)._repr_html_() for table in TABLES])


def test_the_cpu_is_measured_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    options_used = {}

    def measure(sizes: tuple[str, ...], **options: Any) -> list[Row]:
        threads.append(torch.get_num_threads())
        options_used.update(options, sizes=sizes)
        return CPU_STEPS

    monkeypatch.setattr(train, "bench_train", measure)
    before = torch.get_num_threads()
    result = study.run(Params("smoke"), progress=False)
    assert threads == [1] and torch.get_num_threads() == before
    assert options_used["sizes"] == ("7k",) and options_used["compiled"] == ()
    assert options_used["rounds"] == 1
    steps = result.tables["steps"].set_index("label")
    assert steps.ratio["transformers eager, sdpa"] == pytest.approx(2)
    assert steps.low["transformers eager"] == pytest.approx(3 * 0.99 / 1.01)
    assert steps.matmul_share["ours eager"] == 0.5
    assert result.values["ratio_fp32"] == "2.00 at 7k" and result.values["products_fp32"] == ""
    assert result.values["own_faster"] == "GELU in fp32 at 7k (0.50 of our time)"
    assert {row["kind"] for row in result.claims} == {"check"}, "no paper claims any of it"
    holds, also = (row["ours"] for row in result.claims[:2])
    assert (holds["verdict"], also["verdict"]) == ("holds", "holds")
    assert "ratios 2.00, range of its repeats 1.96 to 2.04" in holds["note"]
    assert "5.00" in also["note"], "the formula; torch's own may be faster"
    text = all_text(result)
    assert "2.00 [1.96, 2.04]" in text and "0.50 [0.49, 0.51]" in text and "a CPU" in text


def test_the_ceiling_of_our_attention_is_that_of_fp32_products() -> None:
    low = {"unit": "TFLOP/s", "rate": 0.05, "dtype": "bf16"}
    rows = [operation("attention", name, 1.0, **low) for name in ("ours", "torch")]
    for machine, shares in ((MACHINE, [0.25, 0.5]), (CARD, [0.5, 0.5])):
        assert study.operations_table([machine, *rows]).share.tolist() == pytest.approx(shares)


def test_without_gpu_measurements_everything_is_marked_as_predicted() -> None:
    result = study.run(Params())
    assert result.values["gpu"] == study.NO_GPU
    assert result.tables["gpu_sizes"].measured.isna().all()
    assert {c["ours"]["verdict"] for c in result.claims[2:]} == {"not testable here"}
    assert "predicted, not measured" in draw.gpu_sizes(result).caption
    for table in (draw.gpu_sizes, draw.gpu_kernels, draw.attention):
        assert "Measured: not yet." in table(result).caption
        assert set(table(result).frame.get("decision", ["not measured"])) == {"not measured"}
    assert not [c for c in draw.gpu_sizes(result).frame if "measured" in c], "nothing to show"
    assert "not measured. Measured: not yet." in draw.gpu_rates(result).svg
    assert draw.gpu_sizes(result).frame.set_index("size").loc["160m", "ours"] == "444"
    assert len(result.tables["decisions"]) == 11
    kernels = draw.gpu_kernels(result).frame.set_index("kernel")
    expected = {"layer_norm_pair": "delete", "adamw": "delete", "bias_gelu_tanh": "keep"}
    outcomes = {kernel: kernels["ratio, predicted"][kernel].split(": ")[1] for kernel in expected}
    assert outcomes == expected and kernels["ratio, predicted"]["bias_gelu_tanh"][:4] == "1.20"
    assert (
        kernels["share of our step saved, predicted"]["adamw"]
        == f"160m: {draw.DASH}, 2.8b: {draw.DASH}"
    )
    sizes = result.tables["gpu_sizes"].set_index("size")
    assert sizes.micro_rows["160m"] == 16 and sizes.compiled_micro_rows["2.8b"] < 16


def test_dry_run_numbers_are_never_shown() -> None:
    nothing = all_text(study.run(Params()))
    assert all_text(run_with(gpu_steps(dry_run=True))) == nothing


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.1, "holds"), (0.95, "does not hold"), (1.0, "not testable here")]
)
def test_our_fastest_is_compared_with_the_compiled_plain_model(ratio: float, verdict: str) -> None:
    result = run_with(gpu_steps(ratio))
    row = result.tables["gpu_sizes"].set_index("size").loc["160m"]
    assert row.ratio == pytest.approx(ratio) and row.implementation == "ours graph"
    assert row.low == pytest.approx(ratio * 0.99 / 1.01)
    assert (row.baseline, row.transformers) == (pytest.approx(400e3), pytest.approx(200e3))
    assert result.claims[2]["ours"]["verdict"] == verdict
    model = OFFICIAL_SIZES["160m"].model()
    predicted = cost_model.predicted_tokens_per_s(model, "ours", 2**21, 4 * 2048)
    assert row.error_percent == pytest.approx(100 * (ratio * 400e3 / predicted - 1))
    miss = result.claims[4]["ours"]
    assert miss["verdict"] == ("holds" if abs(row.error_percent) <= 15 else "does not hold")
    text = all_text(result)
    assert "a GPU &lt;b&gt;" in text and "<b>" not in text and "ours, measured" in text
    assert result.tables["gpu_steps"].failed.dropna().tolist() == ["out of memory: 80 GB"]


def test_only_the_newest_rows_of_the_last_gpu_count() -> None:
    other = [{**CARD, "device": "another"}, step(train.GRAPH, 1.0, "70m")]
    again = [CARD, {"kind": "train", "size": "160m", "failed": "skipped", "dry_run": False}
             | train.GRAPH.columns]  # fmt: skip
    frame = run_with([*other, *gpu_steps(), *again]).tables["gpu_sizes"].set_index("size")
    assert frame.measured.notna().sum() == 1 and frame.loc["160m"].implementation == "ours graph"


def test_predictions_follow_from_the_model_configs() -> None:
    size = OFFICIAL_SIZES["160m"]
    frame = study.run(Params()).tables["gpu_kernels"]
    assert set(frame["size"]) == set(study.KERNEL_SIZES)
    frame = frame[frame["size"] == "160m"].set_index("kernel").drop("adamw")
    d, layers, vocab = size.d_model, size.n_layers, size.vocab_size
    saved = frame.compiled_bytes - frame.ours_bytes
    assert saved["linear_cross_entropy"] == 2 * vocab
    assert saved["split_rotated"] == 2 * d * layers * 3  # three passes of a bf16 tensor
    assert saved["layer_norm_pair"] == 0, "the compiler fuses as much"
    assert saved["bias_gelu_tanh"] == 2 * d * layers * 4
    assert frame.saved_ns.tolist() == pytest.approx((saved / 2400).tolist())
    whole = cost_model.ns_per_token(size.model(), "ours")
    assert frame.share_of_step.tolist() == pytest.approx((frame.saved_ns / whole).tolist())


def test_measured_kernels_and_libraries_are_compared_with_predictions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norms = {"size": "160m", "dtype": "bf16"}
    operations = [
        CARD,
        operation("layer_norm_pair", "ours", 1.0, **norms, graph=True),
        operation("layer_norm_pair", COMPILED, 1.25, **norms, graph=True),
    ]
    base = {"kind": "attention", "seq_len": 2048, "head_dim": 64}
    libraries = [
        CARD,
        timed(1.0, **base, library="torch", deterministic=False, tflops=400.0, bits_repeat=False),
        timed(0.8, **base, library="cudnn", deterministic=False, tflops=500.0, bits_repeat=False),
        timed(2.0, **base, library="torch", deterministic=True, tflops=200.0, bits_repeat=True),
        timed(1.6, **base, library="triton", deterministic=True, tflops=250.0, bits_repeat=True),
        {**base, "library": "flash_attn", "failed": "not installed", "dry_run": False},
    ]
    result = run_with(operations=operations, libraries=libraries)
    kernels_faster = result.claims[3]["ours"]
    assert kernels_faster["verdict"] == "holds" and "ratios 1.25," in kernels_faster["note"]
    row = result.tables["attention"].set_index("head_dim").loc[64]
    assert (row.taken, row.taken_tflops, row.fastest, row.repeatable) == (
        "torch", 200.0, "cudnn", "triton",
    )  # fmt: skip
    assert "cudnn 500" in repr(draw.attention(result))
    norms = draw.gpu_kernels(result).frame.set_index("kernel").loc["layer_norm_pair"]
    assert norms["ratio, measured"] == "1.25"
    assert norms.decision == "keep (torch.compile takes 1.25 times as long (160m 1.25))"
    outcomes = result.tables["decisions"].set_index("subject").outcome
    assert outcomes["layer_norm_triton"] == "keep" and outcomes["gelu_triton"] == "not measured"
    assert outcomes["attention at head dim 64"] == "use triton"
    monkeypatch.setitem(attention_backends.FASTEST, 64, "triton")
    assert study.run(Params()).tables["attention"].taken_tflops[1] == 250.0


def test_a_record_says_one_thread_and_gives_the_same_result(tmp_path: Path) -> None:
    result = run_with(gpu_steps())
    record = records.read_record(records.save_record(result, tmp_path / "record"))
    assert record["values"]["gpu"] == "a GPU <b>"
    assert record["device"]["threads"] == 1
    machine = {"device": record["device"] | {"gpu": None}}
    assert records.device_text(machine).endswith(", 1 thread")
    runs = [{"precision": "bf16"}, {"precision": "bf16"}, {"id": "of an old record"}]
    assert records.device_text(machine | {"runs": runs}).endswith(", 1 thread, bf16")
    again = records.read_measurements(tmp_path / "record", "speed", record["parameters"])
    tables, values, claims = study.analyze(again, {})
    assert values == result.values and judge(claims) == result.claims
    assert all(table.equals(result.tables[name]) for name, table in tables.items())


def test_the_paper_s_rates_follow_from_its_gpu_hours() -> None:
    sizes = study.run(Params()).tables["gpu_sizes"].set_index("size")
    assert sizes.loc["70m"].paper_tokens_per_s == pytest.approx(163_340, abs=5)
    assert sizes.loc["1.4b"].paper_mfu == pytest.approx(0.318, abs=0.001)
    assert sizes.loc["14m"].paper_mfu != sizes.loc["14m"].paper_mfu


def test_parameters() -> None:
    assert Params("smoke").size_list == ("7k",)
    assert Params(sizes="600k, 25k").size_list == ("25k", "600k")
    with pytest.raises(ConfigError, match="unknown size '70m'"):
        Params(sizes="70m")
