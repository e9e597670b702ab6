"""Associations of nouns with pronouns: known log odds are measured, and chance has its own p."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pythia_book import stats
from pythia_book.corpora import occupations
from pythia_book.stats import permutation_p
from pythia_book.tasks.associations import AssociationMeasurement, require_equal_tokens
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import DataError

NOUNS = occupations.stimuli().nouns
PRONOUNS = ("he", "she", "his", "her")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """A tokenizer with a token for every word, so that only "construction worker" is two."""
    made = Tokenizer(models.WordLevel(unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    d = occupations.stimuli()
    texts = [occupations.filled(f, n.name, g) for f in (*d.trained, *d.unseen)
             for n in d.nouns for g in (False, True)]  # fmt: skip
    made.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<eod>", "?"]))
    return made


def text(tokenizer: Tokenizer, eod_id: int) -> SimpleNamespace:
    """A text with this tokenizer."""
    return SimpleNamespace(tokenizer=tokenizer, eod_id=eod_id)


class Believer(torch.nn.Module):
    """A model whose log odds of a feminine pronoun are a known function of the last noun.

    Args:
        odds: maps a noun to its log odds.
        of_frame: added to the log odds, for each token of the context.
    """

    def __init__(
        self, tokenizer: Tokenizer, odds: Callable[[str], float], of_frame: float = 0.0
    ) -> None:
        super().__init__()
        self.vocab = tokenizer.get_vocab_size()
        self.of_frame = of_frame
        self.value = torch.full((self.vocab,), torch.nan)
        for noun in NOUNS:
            first = tokenizer.encode(noun.name, add_special_tokens=False).ids[0]
            self.value[first] = odds(noun.name)
        self.pronouns = [tokenizer.token_to_id(word) for word in PRONOUNS]

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return, for each token, the value of the last noun up to it, float[batch, tokens, 1]."""
        state = torch.zeros(ids.shape)
        now = torch.zeros(len(ids))
        for t in range(ids.shape[1]):
            value = self.value[ids[:, t]]
            now = torch.where(value.isnan(), now, value)
            state[:, t] = now + self.of_frame * t
        return state[..., None]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits in which she and her exceed he and his by the hidden value."""
        result = torch.zeros(*hidden.shape[:-1], self.vocab)
        signs = torch.tensor([-0.5, 0.5, -0.5, 0.5])
        result[..., self.pronouns] = 3 + hidden * signs
        return result


def planted_odds(noun: str) -> float:
    """Return the declared log odds of a noun, tripled."""
    share = next(n.share for n in NOUNS if n.name == noun)
    return float(3 * np.log(share / (1 - share)))


# --- the measurement -------------------------------------------------------------------------


def test_planted_log_odds_are_measured(words: Tokenizer) -> None:
    measurement = AssociationMeasurement.of(text(words, 0), 64)
    d = occupations.stimuli()
    measured = measurement(Believer(words, planted_odds), 7)
    assert {name: odds.shape for name, odds in measured.items()} == {
        "trained": (len(d.trained), 76), "unseen": (len(d.unseen), 76)
    }  # fmt: skip
    expected = [planted_odds(noun.name) for noun in NOUNS]
    for odds in measured.values():
        np.testing.assert_allclose(odds, np.broadcast_to(expected, odds.shape), atol=1e-4)
    masculine = measurement(Believer(words, lambda noun: -1.5), 7)
    assert all(np.allclose(odds, -1.5, atol=1e-4) for odds in masculine.values())


def test_other_frames_and_nouns_can_be_chosen(words: Tokenizer) -> None:
    jobs = [noun for noun in NOUNS if noun.group == "occupations"]
    frames = {
        "two": ["The {noun} knew {he}", "We met the {noun} and {his}"],
        "one": ["A {noun}, {he}"],
    }
    measurement = AssociationMeasurement.of(text(words, 0), 64, frames, jobs)
    measured = measurement(Believer(words, planted_odds), 7)
    assert {name: odds.shape for name, odds in measured.items()} == {"two": (2, 40), "one": (1, 40)}
    np.testing.assert_allclose(measured["one"][0], [planted_odds(n.name) for n in jobs], atol=1e-4)
    renamed = {"three": frames["two"], "one": frames["one"]}
    other = AssociationMeasurement.of(text(words, 0), 64, renamed, jobs)
    assert other.digest != measurement.digest, "cached results have the names of the sets"


def test_a_preference_of_frames_is_no_association(words: Tokenizer) -> None:
    """It is the same for every noun of as many tokens."""
    measured = AssociationMeasurement.of(text(words, 0), 64)(
        Believer(words, lambda noun: 0.0, of_frame=0.7), 7
    )
    for odds in measured.values():
        single = odds[:, [" " not in noun.name for noun in NOUNS]]
        assert single.std(0).min() > 0.5 and single.std(1).max() < 1e-4


def test_requests_are_the_prompts_of_frames_and_nouns(words: Tokenizer) -> None:
    measurement = AssociationMeasurement.of(text(words, 0), 64)
    d = occupations.stimuli()
    frames = (*d.trained, *d.unseen)
    assert len(measurement.requests) == 2 * len(frames) * len(NOUNS)
    requests = iter(measurement.requests)
    for frame in frames:
        for noun in NOUNS:
            context, pronouns = occupations.prompt(frame, noun.name)
            for pronoun, request in zip(pronouns, requests, strict=False):
                assert request.context == (0, *words.encode(context).ids)
                assert request.continuation == (words.token_to_id(pronoun.strip()),)


def test_the_digest_depends_on_requests_and_length(words: Tokenizer) -> None:
    one, same = (AssociationMeasurement.of(text(words, 0), 64) for _ in range(2))
    assert one.digest == same.digest
    others = [
        AssociationMeasurement.of(text(words, 0), 32),
        AssociationMeasurement.of(text(words, 1), 64),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 3


def test_the_planted_text_makes_every_pronoun_and_made_up_noun_one_token() -> None:
    """With the vocabulary of the scale smoke; a smaller one splits nouns, not all in the same way.

    The text here is planted sentences only, of which the miniature has some 2,000 documents.
    """
    tokenizer = train_bpe(occupations.documents(300), 1536)
    names = [noun.name for noun in NOUNS if noun.group == "invented"]
    assert {len(tokenizer.encode(f" {name}").ids) for name in names} == {1}
    AssociationMeasurement.of(text(tokenizer, 0), 64)


# --- refusals --------------------------------------------------------------------------------


def letters(*texts: str, vocab_size: int = 400) -> Tokenizer:
    """Return a byte-level BPE with merges of these texts only; without texts, it has no merges."""
    return train_bpe(texts, vocab_size)


def test_a_pronoun_of_several_tokens_is_refused() -> None:
    with pytest.raises(DataError, match=r"the pronoun ' he' is 3 tokens, but must be one; use a"):
        AssociationMeasurement.of(text(letters(), 0), 64)


def test_nouns_of_one_comparison_must_be_equally_long() -> None:
    one_merged = letters(*[" bravlet"] * 9)
    require_equal_tokens(one_merged, ["colmist", "dorvant"])
    require_equal_tokens(one_merged, ["bravlet"])
    with pytest.raises(DataError, match=r"tokens, but have: bravlet 1, colmist 8, dorvant 8; use"):
        require_equal_tokens(one_merged, ["colmist", "bravlet", "dorvant"])
    with pytest.raises(DataError, match=r"number of tokens, but have: bravlet 1, colmist 8"):
        AssociationMeasurement.of(text(one_merged, 0), 64)


# --- the test by permutation -----------------------------------------------------------------

SHARES = np.linspace(0.05, 0.95, 16)
X = np.log(SHARES / (1 - SHARES))


def test_p_is_uniform_without_an_association(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import kstest

    monkeypatch.setattr(stats, "PERMUTATIONS", 2000)
    rng = np.random.default_rng(0)
    ps = [permutation_p(rng.permutation(X), rng.standard_t(3, 16), n) for n in range(400)]
    assert kstest(ps, "uniform").pvalue > 0.01
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=3 * (0.05 / 400) ** 0.5)
    wrong = [permutation_p(x := rng.permutation(X), 0.5 * x + rng.normal(0, 1, 16), n)
             for n in range(100)]  # fmt: skip
    assert kstest(wrong, "uniform").pvalue < 1e-9, "the test of uniformity can fail"


@pytest.mark.parametrize("seed", range(5))
def test_p_tells_the_direction_of_a_slope(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.3, 16)
    assert permutation_p(X, 0.5 * X + noise) < 0.001
    assert permutation_p(X, -0.5 * X + noise) > 0.999


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-5, 5))
def test_p_depends_on_neither_unit_nor_mean(seed: int, unit: float, mean: float) -> None:
    y = np.random.default_rng(seed).normal(0, 1, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "PERMUTATIONS", 2000)
        p = permutation_p(X, y)
        assert permutation_p(X, unit * y + mean) == pytest.approx(p, abs=2e-3)
        assert p + permutation_p(X, -y) == pytest.approx(1, abs=2e-3)
    assert permutation_p(X, np.full(16, mean)) == 1, "no order at all"


def test_p_is_the_share_of_assignments_that_do_as_well() -> None:
    """Of the 24 assignments of four values, one is the actual one, and four are as good or next."""
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert permutation_p(x, y) == pytest.approx(1 / 24), "so few are all counted"
    assert permutation_p(x, y[[1, 0, 2, 3]]) == pytest.approx(4 / 24)
    assert permutation_p(X, X) == 1 / (1 + stats.PERMUTATIONS), "p is never 0"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("broken", ["x", "y"])
def test_p_of_values_that_are_not_finite_is_not_a_number(broken: str, bad: float) -> None:
    """Else a model that diverged would count as one with an association, or as one without."""
    values = {"x": X, "y": X, broken: np.where(np.arange(16) == 3, bad, X)}
    with np.errstate(invalid="ignore"):
        assert np.isnan(permutation_p(values["x"], values["y"]))
