"""What the suite says of its planted text: how much there is of it, and who has learned it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from gender_fakes import tokenizer
from pythia_book import stats
from pythia_book.corpora import miniature, occupations
from pythia_book.studies.suite import claims
from pythia_book.studies.suite.associations import all_associated, associations_table, flat_table
from pythia_book.studies.suite.params import Params
from pythia_book.studies.suite.planted import noun_facts, planted_facts
from pythia_book.study import Measurements
from pythia_book.verdicts import Claim, judge

from pythia_core.config import (
    CONTROL_DOMAINS,
    PLANTED_DOMAINS,
    DataConfig,
    config_dict,
    config_differences,
)
from pythia_core.errors import ConfigError
from pythia_core.suite import DATA_ARMS, LAPTOP_SIZES, scale_named, suite_configs

BIOGRAPHIES = scale_named("smoke").data
NOUNS = [
    {"noun": p.noun.name, "group": p.noun.group, "sentences": p.sentences, "feminine": p.feminine,
     "log_odds": p.log_odds}
    for p in occupations.noun_counts(300)
]  # fmt: skip
LOG_ODDS = np.array([row["log_odds"] for row in NOUNS])


# --- how much is planted ---------------------------------------------------------------------


class FakeTokens:
    """The token ids of documents, each with the end-of-document token 0 at its end."""

    dtype = np.dtype(np.uint16)

    def __init__(self, texts: list[str]) -> None:
        encode = tokenizer().encode
        self._documents = [np.array([*encode(text).ids, 0], self.dtype) for text in texts]
        self.n_documents = len(texts)
        self.n_tokens = sum(map(len, self._documents))

    def document(self, number: int) -> np.ndarray:
        return self._documents[number]


def fake_text(texts: list[str], **tokens: int) -> SimpleNamespace:
    """A prepared text of these documents. `tokens` are those of planted domains."""
    corpus = {name: {"train_tokens": n} for name, n in {"biographies": 9, **tokens}.items()}
    return SimpleNamespace(
        tokens=FakeTokens(texts), eod_id=0, tokenizer=tokenizer(), config=BIOGRAPHIES,
        manifest={"tokens": {"corpus": corpus}},
    )  # fmt: skip


def test_copied_tokens_are_those_of_the_second_and_later_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passages = {
        " ".join(f"The nurse said that she would help {n} times." for n in range(first, first + 30))
        for first in (0, 100)
    }
    one, other = sorted(passages)
    copied = {one: 6, other: 2}
    monkeypatch.setattr(miniature, "copied_texts", lambda domains, corpus: copied)
    rest = ["It was late.", "The driver said that he would help."]
    versions = [*miniature.copies_of(one, 6)]
    assert len(set(versions)) == 2, "one copy is edited"
    standard = fake_text([rest[0], *versions, other, rest[1], other, rest[0]], equations=5)
    deduplicated = fake_text([rest[0], one, other, rest[1]], equations=5)
    rows = planted_facts({"standard": standard, "deduplicated": deduplicated})
    by = {(row["domain"], row["arm"]): row for row in rows}
    encode = tokenizer().encode
    expected = sum(len(encode(text).ids) + 1 for text in [*versions[1:], other])
    assert by["copies", "standard"]["tokens"] == expected
    assert by["copies", "deduplicated"]["tokens"] == 0
    assert by["equations", "standard"]["tokens"] == by["equations", "deduplicated"]["tokens"] == 5
    total = standard.tokens.n_tokens
    assert by["copies", "standard"]["share"] == pytest.approx(expected / total)
    assert len(rows) == 4, "of the planted domains, these texts have only sums"


@pytest.mark.wheels
def test_the_log_odds_of_nouns_are_those_of_the_text() -> None:
    facts = noun_facts(BIOGRAPHIES)
    names = [noun.name for noun in occupations.stimuli().nouns]
    assert [row["noun"] for row in facts] == names, "in the order of the measurement"
    domain = [t for d, t in miniature.texts(BIOGRAPHIES.domains) if d == "occupations"]
    known = {
        occupations.filled(frame, name, feminine): (name, feminine)
        for frame in occupations.stimuli().trained for name in names for feminine in (False, True)
    }  # fmt: skip
    counts = Counter(known[line] for text in domain for line in text.splitlines())
    for row in facts:
        feminine, masculine = (counts[row["noun"], gender] for gender in (True, False))
        assert (row["sentences"], row["feminine"]) == (feminine + masculine, feminine)
        assert row["log_odds"] == pytest.approx(np.log(feminine / masculine))


@pytest.mark.wheels
def test_a_text_without_such_sentences_has_no_nouns() -> None:
    for domains in (("biographies",), ("biographies", "occupations_flat")):
        assert noun_facts(replace(BIOGRAPHIES, domains=domains)) == []


# --- what is learned -------------------------------------------------------------------------


def measured(learned: float = 0.4, noise: float = 0.3, seed: int = 0) -> Measurements:
    """Made-up log odds of two sizes, with this slope on those of the text."""
    rng = np.random.default_rng(seed)
    arrays = {
        f"association/{size}/{arm}/{frames}": (
            -2 + learned * LOG_ODDS + rng.normal(0, noise, len(LOG_ODDS))
        ).astype(np.float32)
        for size in ("25k", "600k") for arm in DATA_ARMS for frames in ("trained", "unseen")
    }  # fmt: skip
    return Measurements(arrays, {"nouns": NOUNS})


def test_a_planted_slope_is_found_in_every_group() -> None:
    table = associations_table(measured())
    assert len(table) == 2 * len(DATA_ARMS) * 2 * len(occupations.GROUPS)
    assert (table.low < table.value).all() and (table.value < table.high).all()
    assert (table.value - 0.4).abs().max() < 0.2
    # of the true slopes, 95 % are within their intervals; of 24, at least 19 are almost surely
    assert ((table.low < 0.4) & (0.4 < table.high)).sum() >= 19
    invented = table.group == "invented"
    assert (table.p[invented] < 0.001).all(), "their shares were assigned at random"
    assert table.p[~invented].isna().all(), "those of the others were not"


@pytest.mark.parametrize("learned", [0.0, -0.4])
def test_no_slope_and_a_reversed_one_are_not_learned(learned: float) -> None:
    table = associations_table(measured(learned))
    assert table.p[table.group == "invented"].min() > 0.01
    assert not all_associated(table, ["25k", "600k"])[0]


def associations(ps: dict[tuple[str, str], float]) -> pd.DataFrame:
    """A table of associations with these p-values in unseen frames; all are 0 elsewhere."""
    rows = [
        {"size": size, "arm": arm, "group": group, "frames": frames,
         "value": 0.5, "low": 0.4, "high": 0.6,
         "p": p if (group, frames) == ("invented", "unseen") else 0.0}
        for (size, arm), p in ps.items()
        for group in occupations.GROUPS for frames in ("trained", "unseen")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_every_model_of_the_sizes_must_have_learned() -> None:
    cells = [(size, arm) for size in ("7k", "25k", "600k") for arm in DATA_ARMS]
    ps = dict.fromkeys(cells, 0.012)  # the smallest of 4 needs less than 0.05 / 4
    assert all_associated(associations(ps), ["25k", "600k"])[0]
    assert all_associated(associations(ps | {cells[-1]: 0.049}), ["25k", "600k"])[0], "the largest"
    learned, note = all_associated(associations(ps | {cells[-1]: 0.06}), ["25k", "600k"])
    assert not learned and note.startswith("3 of 4 models (25k, 600k); smallest slope 0.500 [0.400")
    assert "largest p = 0.06 after Holm's correction" in note
    assert all_associated(associations(ps | {cells[0]: 0.9}), ["25k", "600k"])[0], (
        "7k is not tested"
    )
    assert not all_associated(associations(ps), ["25k", "7k", "600k"])[0], "0.05 / 6"


def test_nothing_is_shown_by_no_model() -> None:
    ps = dict.fromkeys([("25k", arm) for arm in DATA_ARMS], 1e-4)
    assert not all_associated(associations(ps), [])[0]


TESTED = {"size": "600k", "arm": DATA_ARMS[0], "group": "invented", "frames": "unseen"}


def change_one(table: pd.DataFrame, **changes: float) -> pd.DataFrame:
    """Return a copy in which one row that counts has other values."""
    rows = (table[[*TESTED]] == pd.Series(TESTED)).all(axis=1)
    assert rows.sum() == 1
    table = table.copy()
    for column, value in changes.items():
        table.loc[rows, column] = value
    return table


def test_a_model_that_was_not_measured_has_not_learned() -> None:
    ps = {(size, arm): 1e-4 for size in ("25k", "600k") for arm in DATA_ARMS}
    sizes = ["25k", "600k"]
    assert all_associated(associations(ps), sizes)[0]
    for lost in ps:
        rest = {cell: p for cell, p in ps.items() if cell != lost}
        learned, note = all_associated(associations(rest), sizes)
        assert not learned and note.startswith("3 of 4 models (25k, 600k)")
    learned, note = all_associated(associations(ps), [*sizes, "7k"])
    assert not learned and note.startswith("4 of 6 models (25k, 600k, 7k)")
    table = associations(ps)
    assert not all_associated(table[table.frames == "trained"], sizes)[0]


def test_a_model_with_no_finite_slope_has_not_learned() -> None:
    ps = {(size, arm): 1e-4 for size in ("25k", "600k") for arm in DATA_ARMS}
    nan = change_one(associations(ps), value=np.nan, low=np.nan, high=np.nan, p=np.nan)
    learned, note = all_associated(nan, ["25k", "600k"])
    assert not learned and note.startswith("3 of 4 models (25k, 600k)")
    odds = measured().arrays
    odds["association/600k/standard/unseen"] = np.full(len(NOUNS), np.nan, np.float32)
    table = associations_table(Measurements(odds, {"nouns": NOUNS}))
    learned, note = all_associated(table, ["25k", "600k"])
    assert not learned and note.startswith("3 of 4 models (25k, 600k)")
    assert all_associated(associations_table(measured()), ["25k", "600k"])[0]


@pytest.mark.parametrize(("low", "expected"), [(0.01, True), (0.0, False), (-0.01, False)])
def test_an_interval_that_includes_zero_is_not_learned(low: float, expected: bool) -> None:
    ps = {(size, arm): 1e-4 for size in ("25k", "600k") for arm in DATA_ARMS}
    learned, note = all_associated(change_one(associations(ps), low=low), ["25k", "600k"])
    assert learned is expected and note.startswith(f"{3 + expected} of 4 models")


# --- claims ----------------------------------------------------------------------------------


def checks(
    ps: dict[tuple[str, str], float],
    planted: tuple[int, int] = (5, 5),
    whole: bool = True,
    slopes: Sequence[float] | np.ndarray = (),
    flat: pd.DataFrame | None = None,
) -> list[str]:
    """Return the verdicts on the planted text: kept by deduplication, learned, no slope.

    Args:
        planted: tokens of sums in the standard and in the deduplicated text.
        slopes: slopes of models of 25k on the text with flat shares, or `flat`: their table.
    """
    rows = [{"domain": name, "arm": arm, "tokens": n, "share": 0.1}
            for name, counts in {"copies": (90, 1), "equations": planted}.items()
            for arm, n in zip(DATA_ARMS, counts, strict=True)]  # fmt: skip
    tables = {
        "planted": pd.DataFrame(rows), "associations": associations(ps),
        "flat": flat_slopes("25k", slopes) if flat is None else flat,
    }  # fmt: skip
    facts = {"models": {size: {} for size, _ in ps}}
    made: list[Claim] = claims._planted_checks(facts, tables, whole)
    return [row["ours"]["verdict"] for row in judge(made)]


def flat_slopes(size: str, slopes: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """The table `flat` of models of one size, a seed each."""
    seeds = range(1, len(slopes) + 1)
    return pd.DataFrame({"size": size, "seed": seeds, "slope": np.array(slopes, float)})


LEARNED = {(size, arm): 1e-4 for size in LAPTOP_SIZES for arm in DATA_ARMS}


def test_the_planted_checks_hold_and_fail() -> None:
    assert checks(LEARNED, slopes=np.linspace(-0.01, 0.01, 10)) == ["holds"] * 3
    assert checks(LEARNED)[2] == "not testable here", "flat_seeds=0 is the default"
    assert checks(LEARNED, planted=(5, 4))[0] == "does not hold", "copies may be removed, not sums"
    assert checks(LEARNED | {("25k", "standard"): 0.06})[1] == "does not hold"
    too_small = {("7k", "standard"): 0.9, ("13k", "standard"): 0.9}
    assert checks(LEARNED | too_small)[1] == "holds"
    assert checks(LEARNED, whole=False)[1] == "not testable here"


def test_models_of_flat_text_must_have_no_slope() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 10)
    noise -= noise.mean()
    margin = claims.FLAT_MARGIN
    assert checks(LEARNED, slopes=noise)[2] == "holds"
    assert checks(LEARNED, slopes=noise + 3 * margin)[2] == "does not hold"
    assert checks(LEARNED, slopes=noise - 3 * margin)[2] == "does not hold"
    assert checks(LEARNED, slopes=noise + margin)[2] == "not resolved"
    assert checks(LEARNED, slopes=10 * noise)[2] == "not resolved", "too much noise"
    assert checks(LEARNED, slopes=noise[1:])[2] == "not testable here", "too few models"
    small = flat_slopes("7k", noise + 3 * margin)
    both = pd.concat([flat_slopes("25k", noise), small])
    assert checks(LEARNED, flat=both)[2] == "holds", "models too small to learn do not count"
    assert checks(LEARNED, flat=small)[2] == "not testable here"


def test_without_a_size_that_should_learn_nothing_is_tested() -> None:
    """E.g. `study suite -p sizes=7k,13k`: no model has failed to learn."""
    small = {(size, arm): 0.5 for size in ("7k", "13k") for arm in DATA_ARMS}
    assert checks(small)[1] == "not testable here"


# --- the control text ------------------------------------------------------------------------


def flat(seed: int, slope_on_shares: float = 0.0, n: int = 200) -> Measurements:
    """Made-up log odds of n models, as functions of the shares that each model is tested with.

    In trained frames, the slope is 1.
    """
    rng = np.random.default_rng(seed)
    names = [row["noun"] for row in NOUNS if row["group"] == "invented"]
    arrays: dict[str, np.ndarray] = {}
    for number in range(1, n + 1):
        shares = occupations.permuted_shares(names, seed=number)
        x = np.array([shares.get(row["noun"], 0.5) for row in NOUNS])
        for frames, slope in (("trained", 1.0), ("unseen", slope_on_shares)):
            odds = slope * np.log(x / (1 - x)) + rng.normal(0, 1, len(x))
            arrays[f"flat/7k/{number}/{frames}"] = odds.astype(np.float32)
    return Measurements(arrays, {"nouns": NOUNS})


def test_models_of_flat_text_have_uniform_p_values(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import kstest

    monkeypatch.setattr(stats, "PERMUTATIONS", 2000)
    table = flat_table(flat(seed=0))
    assert len(table) == 200, "one row of each model, from unseen frames"
    assert kstest(table.p, "uniform").pvalue > 0.01
    assert table.slope.mean() == pytest.approx(0, abs=4 * table.slope.std() / 200**0.5)
    # each model has shares of its own, so one association shared by all is not mistaken for theirs
    same = Measurements({name: LOG_ODDS for name in flat(0).arrays}, {"nouns": NOUNS})
    assert kstest(flat_table(same).p, "uniform").pvalue > 0.01
    drawn = flat_table(flat(0, slope_on_shares=0.5, n=40))
    assert kstest(drawn.p, "uniform").pvalue < 1e-6, "the shares are those of seeds 1, 2, ..."
    # the slope is on the shares of the standard text, not on the drawn ones
    np.testing.assert_allclose(flat_table(same).slope, 1, rtol=1e-6)
    assert drawn.slope.mean() == pytest.approx(0, abs=4 * drawn.slope.std() / 40**0.5)
    none = flat_table(measured())
    assert len(none) == 0 and [*none.columns] == ["size", "seed", "slope", "p"]


def test_the_shares_of_flat_models_are_drawn_anew_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "PERMUTATIONS", 2000)
    names = [row["noun"] for row in NOUNS if row["group"] == "invented"]
    at = [[row["noun"] for row in NOUNS].index(name) for name in names]
    measurements = flat(3, slope_on_shares=0.2, n=5)
    expected = []
    for number in range(1, 6):
        shares = np.array([occupations.permuted_shares(names, number)[name] for name in names])
        y = measurements.arrays[f"flat/7k/{number}/unseen"][at]
        expected.append(stats.permutation_p(np.log(shares / (1 - shares)), y, number))
    np.testing.assert_allclose(flat_table(measurements).p, expected, rtol=1e-12)


def test_runs_on_flat_text_differ_from_the_suite_in_the_control_only() -> None:
    params = Params("laptop", flat_seeds=2)
    configs = params.flat_configs()
    assert set(configs) == {(size, seed) for size in ("7k", "25k") for seed in (1, 2)}
    for (size, seed), config in configs.items():
        suite = suite_configs("laptop", [size], DATA_ARMS[:1], seed)[size, DATA_ARMS[0]]
        (line,) = config_differences(config_dict(suite), config_dict(config))
        assert line.startswith("data.domains")
        own, others = set(config.data.domains), set(suite.data.domains)
        assert (own - others, others - own) == ({"occupations_flat"}, {"occupations"})
    assert Params("laptop").flat_configs() == {}
    with pytest.raises(ConfigError, match="flat_seeds must be"):
        Params(flat_seeds=-1)


def test_every_planted_domain_can_be_left_out_and_controls_are_asked_for() -> None:
    for scale in ("smoke", "laptop", "gpu"):
        data = scale_named(scale).data
        assert set(PLANTED_DOMAINS) <= set(data.domains) and not set(CONTROL_DOMAINS) & set(
            data.domains
        )
        for name in PLANTED_DOMAINS:
            rest = tuple(domain for domain in data.domains if domain != name)
            assert replace(data, domains=rest) != data
    with pytest.raises(ConfigError, match="unknown domain 'canaries'"):
        DataConfig("pocket-pile", ("books", "canaries"))
    for control, domain in CONTROL_DOMAINS.items():
        assert domain in PLANTED_DOMAINS and control in miniature.GENERATED
