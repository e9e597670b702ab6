"""Configs reject invalid settings, name every problem, and have a stable hash."""

from __future__ import annotations

import pytest

from pythia_core.config import (
    CONTROL_DOMAINS,
    PRONOUN_SWAPS,
    DataConfig,
    InterventionConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    config_dict,
    config_differences,
    default_domains,
    run_config_from_dict,
    stable_hash,
)
from pythia_core.errors import ConfigError
from pythia_core.suite import (
    LAPTOP_SIZES,
    OFFICIAL_SIZES,
    SCALES,
    nominal_parameters,
    scale_named,
    size_named,
)


def run() -> RunConfig:
    return SCALES["laptop"].run("600k")


def test_round_trip_and_stable_hash() -> None:
    fork = run().fork("masculine_to_feminine", 532)
    assert run_config_from_dict(config_dict(fork)) == fork
    assert fork.parent == run()
    assert run().parent is None
    assert stable_hash({"b": 1, "a": [1.5, "é"]}) == stable_hash({"a": [1.5, "é"], "b": 1})
    assert stable_hash({"a": 1}) != stable_hash({"a": 2})
    # if a hash changes, no existing run can be found any more; those of the runs of the laptop last
    # changed when its text got planted domains and a held-out share of 0.1; those of forks, when
    # interventions got a list of domains
    assert stable_hash(config_dict(ModelConfig(2, 16, 2, 128)))[:16] == "16e188be42cc1324"
    swapped = {swap: run().fork(swap, 532) for swap in PRONOUN_SWAPS}
    hashes = {swap: stable_hash(config_dict(config))[:16] for swap, config in swapped.items()}
    assert hashes == {
        "masculine_to_feminine": "b9d4856c35426dcc",
        "feminine_to_masculine": "72806994ecbd2e6a",
    }


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(steps=0, batch_size=6, lr_max=-1, micro_batch=4, precision="fp8")
    message = str(caught.value)
    for part in (
        "TrainConfig has 4 problems",
        "steps must be at least 1, got 0",
        "micro_batch=4 does not divide batch_size=6",
        "lr_max must be positive and finite, got -1",
        "unknown precision 'fp8'; accepted: fp32, bf16",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(2, 64, 5, 97), "n_heads=5 does not divide d_model=64"),
        (lambda: ModelConfig(2, 12, 2, 97, rotary_fraction=0.5), "3 rotary dims in a head"),
        (lambda: ModelConfig(0, 64, 4, 97), "n_layers must be at least 1, got 0"),
        (lambda: ModelConfig(2, 64, 4, 97, rotary_fraction=2), "rotary_fraction must be in .0, 1."),
        (lambda: DataConfig(domains=("book",)), "unknown domain 'book'.*Did you mean 'books'"),
        (lambda: DataConfig(domains=()), "domains is empty; accepted: books"),
        *(
            (
                lambda corpus=corpus: DataConfig(
                    corpus, ("biographies", "occupations", "occupations_flat")
                ),
                "both 'occupations' and its alternative 'occupations_flat'; use one of them",
            )
            for corpus in ("miniature", "large")
        ),
        (lambda: DataConfig(tokenizer="bpe-10"), "N must be a whole number in 260..65500"),
        *(
            (lambda name=name: DataConfig(tokenizer=name), "digits 0-9 and without a leading zero")
            for name in ("bpe-٣٠٠", "bpe-0300", "bpe-", "bpe-+300", "bpe-" + "9" * 5000)
        ),
        (lambda: DataConfig(epochs=0), "epochs must be at least 1"),
        (lambda: InterventionConfig("he", 1, 2), "unknown transform 'he'; accepted: masculine"),
        (lambda: run().fork("masculine_to_feminine", 572), "less than stop, got start=572"),
        (lambda: run().fork("masculine_to_feminine", 5, 900), "the last step of the run is 572"),
        (lambda: size_named("600"), "unknown size '600'.*Did you mean '600k'"),
        (lambda: scale_named("laptob"), "unknown scale 'laptob'.*Did you mean 'laptop'"),
        (lambda: LAPTOP_SIZES["7k"].model(), "pass a vocab_size"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_control_takes_the_place_of_its_domain() -> None:
    for control, domain in CONTROL_DOMAINS.items():
        for corpus in ("miniature", "large"):
            accepted = default_domains(corpus)
            assert domain in accepted and control not in accepted
            DataConfig(corpus, tuple(control if d == domain else d for d in accepted))
    DataConfig("my_texts", ("occupations", "occupations_flat"))  # files have no domains


def test_rows_must_fit_the_model() -> None:
    with pytest.raises(ConfigError, match="seq_len=128 exceeds max_seq_len=64"):
        RunConfig(ModelConfig(1, 16, 2, 97, max_seq_len=64), DataConfig(), TrainConfig(1, 1, 1.0))


def test_a_fork_of_a_fork_is_refused() -> None:
    with pytest.raises(ConfigError, match="fork its control run instead"):
        run().fork("masculine_to_feminine", 5).fork("masculine_to_feminine", 6)


def test_differences_are_named_by_key() -> None:
    ours, theirs = config_dict(run()), config_dict(SCALES["laptop"].run("600k", order_seed=5))
    assert config_differences(ours, theirs) == ["data.order_seed: 1234 != 5"]


@pytest.mark.parametrize("values", [{}, {"model": 1}, {"model": {"layers": 3}}])
def test_a_damaged_config_raises_a_config_error(values: dict) -> None:
    with pytest.raises(ConfigError):
        run_config_from_dict(values)


def test_laptop_sizes_grow_in_parameters_and_have_one_head_dimension() -> None:
    """Names round the counts L(12d^2 + 13d) + 2d: 85k and 600k have 84,912 and 608,160."""
    models = {name: size.model(4096) for name, size in LAPTOP_SIZES.items()}
    assert len(models) == 8
    counts = [model.n_params_non_embedding for model in models.values()]
    assert counts == sorted(set(counts)), "each size has more parameters than the last"
    assert counts[0] < 10_000 and counts[-1] > 500_000
    assert {model.head_dim for model in models.values()} == {16}
    for name, model in models.items():
        assert nominal_parameters(name) == pytest.approx(model.n_params_non_embedding, rel=0.07)
    assert scale_named("laptop").size_list("") == tuple(models), "lists are sorted by size"
    deep, wide = models["13k"], models["25k"]
    assert deep.n_layers > wide.n_layers and deep.d_model < wide.d_model  # as 410M and 1B


def test_scales_use_known_sizes_and_fork_where_the_paper_did() -> None:
    for scale in SCALES.values():
        assert scale.sizes
        assert scale.based_on in ("", *SCALES)
        for size in scale.sizes:
            assert (size in OFFICIAL_SIZES) == scale.published
            if not scale.published:
                scale.run(size)
    with pytest.raises(ConfigError, match="no model is trained from scratch"):
        scale_named("paper").run("70m")
    short, gpu = SCALES["gpu-short"], SCALES["gpu"]
    assert set(short.sizes) < set(gpu.sizes)
    assert short.run("4.7m") == gpu.run("4.7m"), "models and tokens are shared"
    assert (
        short.default_in({"gpu": 1}, 2) == 1
        and short.default_in({"gpu": 1, "gpu-short": 3}, 2) == 3
    )
    assert gpu.default_in({"gpu-short": 3}, 2) == 2
    assert [scale_named("paper").fork_step(i) for i in (113, 133)] == [113_000, 133_000]
    assert [SCALES["laptop"].fork_step(i) for i in (113, 133, 143)] == [452, 532, 572]
