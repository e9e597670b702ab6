"""The laboratory of the phases study: its language, its heads, and claims that can fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from pythia_book import verdicts
from pythia_book.corpora import laboratory as corpus
from pythia_book.studies.phases import heads, laboratory, probes, transitions
from pythia_book.studies.phases.ngrams import Ngrams
from pythia_book.studies.phases.params import LABORATORY, Params, laboratory_runs
from pythia_book.studies.phases.probes import prefix_chance, previous_chance

from pythia_core.config import ModelConfig
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import ConfigError
from pythia_core.evaluation import hooks
from pythia_core.kernels.rotary import rotary_reference
from pythia_core.model import GPTNeoX

# --- the language ----------------------------------------------------------------------------


def test_documents_repeat_a_sequence_or_follow_a_grammar() -> None:
    repeats = corpus.documents("repeats", 300, seed=5)
    assert repeats.shape == (300, corpus.LENGTH)
    periods = [next(p for p in corpus.PERIODS if (row[p:] == row[:-p]).all()) for row in repeats]
    assert set(periods) == set(corpus.PERIODS)
    assert all(len(set(row[:p])) == p for row, p in zip(repeats, periods, strict=True))
    grammar = corpus.documents("grammar", 6000, seed=5)
    ngrams = Ngrams.count(grammar[:5000], len(corpus.SYLLABLES)).tuned(grammar[5000:5500])
    rows = grammar[5500:, 2:]  # from here on, the chain is no longer at its random start
    contexts, targets = rows[:, :2], rows[:, 2]
    loss = [-np.log(ngrams.probability(n, contexts, targets)).mean() for n in (1, 2, 3)]
    assert loss[0] - loss[1] > 0.2 and loss[1] - loss[2] > 0.3
    # n-grams of the repeats predict nothing
    counted = Ngrams.count(repeats, len(corpus.SYLLABLES))
    new = corpus.documents("repeats", 300, seed=6)
    fresh = -np.log(counted.probability(2, new[:, :2], new[:, 2])).mean()
    assert fresh > np.log(len(corpus.SYLLABLES)) - 0.1


def test_the_text_is_the_same_on_every_machine_and_has_a_token_per_syllable() -> None:
    assert corpus.as_text(corpus.documents("repeats", 1, 4)[0]).startswith(" da ga vu jo ge so da")
    grammar = corpus.as_text(corpus.documents("grammar", 1, 3)[0])
    assert grammar.startswith(" pa hu xo gi li wa do ri")
    texts = [corpus.as_text(d) for d in corpus.documents("repeats", 2000, 9)]
    tokenizer = train_bpe(texts, int(LABORATORY.tokenizer.removeprefix("bpe-")))
    assert all(len(tokenizer.encode(t).ids) == corpus.LENGTH for t in texts)
    text = laboratory.GrammarText.of(tokenizer, 0)
    assert len(set(text.ids)) == len(corpus.SYLLABLES) and 0 not in text.ids
    rows = text.heldout(3)
    assert rows.shape == (3, text.seq_len + 1)
    assert (rows[:, [0, corpus.LENGTH + 1]] == 0).all() and (rows == 0).sum() == 6


def test_domains_can_be_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DOCUMENTS", 3)
    assert [d for d, _ in corpus.texts(("repeats", "grammar"))] == ["grammar"] * 3 + ["repeats"] * 3
    assert [d for d, _ in corpus.texts(("repeats",))] == ["repeats"] * 3


@pytest.mark.parametrize("layers", [0, 3, 9, "2"])
def test_bad_depths_are_refused(layers: int) -> None:
    with pytest.raises(ConfigError, match="layers must be"):
        Params("smoke", layers=layers)


def test_depths_differ_in_nothing_else_and_released_models_have_no_laboratory() -> None:
    runs = laboratory_runs(Params(layers=2, seeds=3))
    assert list(runs) == [(n, seed) for n in (1, 2) for seed in (2000, 2001, 2002)]
    one, two = runs[1, 2000], runs[2, 2000]
    assert (one.data, one.train) == (two.data, two.train)
    assert (one.model.n_layers, two.model.n_layers) == (1, 2)
    assert laboratory_runs(Params("paper", source="EleutherAI/pythia-70m", data="x")) == {}


# --- heads -----------------------------------------------------------------------------------


def tiny() -> GPTNeoX:
    model = GPTNeoX(ModelConfig(2, 24, 3, 20, max_seq_len=64)).requires_grad_(False)
    model.init_weights(0)
    return model


def test_a_head_that_is_knocked_out_writes_its_mean_value() -> None:
    model, ids = tiny(), torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(0))
    names = ["layers.1.attention.query_key_value", "layers.1.attention"]
    with hooks.record(model, names) as intact:
        whole = model.hidden(ids)
    with heads.without_heads(model, [(1, 2)]), hooks.record(model, names[1:]) as outputs:
        model.hidden(ids)
    qkv = intact[names[0]].view(2, 9, 3, 3, 8)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
    v = v.clone()
    v[:, 2] = v[:, 2].mean((0, 1))
    q, k = (rotary_reference(x, *model.rotary(9, torch.device("cpu"))) for x in (q, k))
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(
        torch.ones(9, 9, dtype=torch.bool).triu(1), float("-inf")
    )
    written = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = model.layers[1].attention.dense(written.flatten(0, 1)).view(2, 9, 24)
    torch.testing.assert_close(outputs[names[1]], expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(outputs[names[1]], intact[names[1]], atol=1e-4)
    with heads.without_heads(model, []):
        torch.testing.assert_close(model.hidden(ids), whole)
    torch.testing.assert_close(model.hidden(ids), whole)  # and afterwards


def test_heads_are_found_by_what_they_attend_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head (1, 0) is an induction head, head (0, 2) a previous-token head, the others uniform."""
    length = 20
    t = 2 * length - 1
    uniform = torch.tril(torch.ones(t, t)) / torch.arange(1, t + 1)[:, None]
    patterns = [uniform.expand(4, 3, t, t).clone() for _ in range(2)]
    patterns[0][:, 2] = 0.9 * torch.diag(torch.ones(t - 1), -1)
    patterns[1][:, 0] = 0.9 * torch.diag(torch.ones(t - length + 1), 1 - length)

    @contextlib.contextmanager
    def planted(model: GPTNeoX) -> Iterator[list[torch.Tensor]]:
        yield patterns

    copies = np.tile(np.arange(length), (4, 2))
    assert heads.find_heads(tiny(), copies) == ([], [])  # untrained
    monkeypatch.setattr(hooks, "record_attention", planted)
    assert heads.find_heads(tiny(), copies) == ([(1, 0)], [(0, 2)])
    assert heads.TIMES_UNIFORM * max(prefix_chance(length), previous_chance(t)) < 0.9


def test_an_untrained_model_gains_nothing_and_has_no_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.permutation(20)[:8] for _ in range(40)])
    shuffled = rng.permuted(drawn, axis=1)
    measurement = heads.HeadsMeasurement(
        np.concatenate([drawn, drawn], 1),
        np.concatenate([shuffled, drawn], 1),
        {"repeats": (drawn, 2), "grammar": (shuffled, 0)},
    )
    kinds = transitions.knock_outs(measurement(tiny(), 0)["heads"])
    assert [each.heads for each in kinds.values()] == [0] * 5
    gains = {each.gain for each in kinds.values()}
    assert len(gains) == 1 and abs(gains.pop()) < 0.1
    kinds_of = {"found": ([(1, 0), (1, 1)], [(0, 2)])}
    monkeypatch.setattr(heads, "find_heads", lambda model, copies: kinds_of["found"])
    kinds = transitions.knock_outs(measurement(tiny(), 0)["heads"])
    assert [each.heads for each in kinds.values()] == [0, 2, 2, 1, 1]  # as many others, of three
    assert len({each.gain for each in kinds.values()}) == 5
    assert len({each.repeats for each in kinds.values()}) == 5
    (loss,) = probes.row_losses(tiny(), drawn[:1], 3)
    logp = torch.log_softmax(tiny()(torch.from_numpy(drawn[:1, :-1])), -1)[0]
    assert loss == pytest.approx(-logp[range(3, 7), drawn[0, 4:]].mean().item(), rel=1e-6)


# --- turns and claims ------------------------------------------------------------------------

STEPS = np.array([0, 1, 2, 4, 8, 16, 32, *range(48, 577, 4)])


def turned(at: float, height: float, width: float = 0.15) -> np.ndarray:
    """A curve over STEPS from 0 to `height` that is steepest, in doublings, at the step `at`."""
    return height / (1 + np.exp(-np.log2(np.maximum(STEPS, 1) / at) / width))


@pytest.mark.parametrize("at", [60, 150, 300, 470])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_steepest_change_is_found(at: int, sign: int) -> None:
    noise = np.random.default_rng(at).normal(0, 0.01, len(STEPS))
    found = transitions.steepest(STEPS, sign * turned(at, 3.0) + noise)
    assert abs(np.log2(found / at)) < 0.06
    early = 2 * np.exp(-STEPS / 20)  # a slower fall early in training does not hide the turn
    found = transitions.steepest(STEPS, early - turned(at, 3.0))
    assert abs(np.log2(found / at)) < 0.1
    assert np.isnan(transitions.steepest(np.array([0, 1]), np.zeros(2)))


def models(
    depth: int,
    gain: float = 3.5,
    left: float = 0.05,
    lag: float = 1.0,
    nearest: tuple[int, int, int] = (10, 60, 150),
) -> list[transitions.Model]:
    """Five models that turn near step 300; heads form `lag` times as late as the loss falls."""
    rng, found = np.random.default_rng(depth), []
    for seed in range(5):
        at = 300 * np.exp(rng.normal(0, 0.1))
        noise = rng.normal(0, 0.02, len(STEPS))
        curves = {
            "repeats": 3 - turned(at, 0.7 * gain) + noise,
            "grammar": 3 + noise,
            "gain": turned(at, gain) + noise,
            "order_gain": turned(at, gain) + noise,
            "prefix": turned(at * lag, 0.3) + 0.05 * noise,
            "previous": turned(0.9 * at, 0.9) + noise,
        }
        curves["kl_3"] = 2 - turned(nearest[2], 1.0) + 0.1 * noise
        for order, step in enumerate(nearest[:2], 1):
            away = np.log2(np.maximum(STEPS, 1) / (step * np.exp(rng.normal(0, 0.05))))
            curves[f"kl_{order}"] = np.abs(away)
        without = {}
        for n, kind in enumerate(transitions.KNOCKED_OUT):
            share = 1.0 if kind == "intact" else left if "control" not in kind else 0.8
            share += rng.normal(0, 0.02)
            repeats = 0.2 + (1 - share) * 0.7 * gain
            without[kind] = transitions.KnockOut(n, gain * share, repeats, 3.0 + 0.1 * n)
        found.append(transitions.Model(depth, seed, STEPS, curves, without))
    return found


def outcomes(found: list[transitions.Model], heads: int = 4) -> list[str]:
    return [row["ours"]["verdict"] for row in verdicts.judge(transitions.claims(found, heads))]


def test_induction_as_described_is_reproduced() -> None:
    found = models(1, gain=0.0) + models(2)
    expected = [verdicts.REPRODUCED, *[verdicts.HOLDS] * 2, *[verdicts.REPRODUCED] * 3]
    assert outcomes(found) == expected
    numbers = transitions.values(found, {})
    assert numbers["order_gain_2"]["value"] == pytest.approx(3.5, abs=0.1)
    # a logistic curve of this width takes 2 log(9) widths from a tenth to nine tenths
    assert numbers["rise_2"]["value"] == pytest.approx(2 * np.log(9) * 0.15, abs=0.05)
    assert numbers["missed_2"]["value"] == pytest.approx(34, abs=5)
    assert numbers["transition_prefix_2"]["low"] < 300 < numbers["transition_prefix_2"]["high"]


def test_each_claim_about_induction_can_fail() -> None:
    shallow, deep = models(1, gain=0.0), models(2)
    late = outcomes(shallow + models(2, lag=1.6))
    assert late[0] == verdicts.CONTRADICTED and late[1] == verdicts.HOLDS
    assert late[2:5] == [verdicts.HOLDS, *[verdicts.REPRODUCED] * 2]
    assert outcomes(shallow + models(2, gain=0.05))[1] == verdicts.FAILS
    assert outcomes(models(1, gain=2.0) + deep)[2] == verdicts.FAILS
    assert outcomes(shallow + models(2, left=1.2))[3:5] == [verdicts.CONTRADICTED] * 2
    backwards = models(2, nearest=(480, 200, 300))
    assert outcomes(shallow + backwards)[5] == verdicts.CONTRADICTED


def test_missing_checkpoints_give_no_date() -> None:
    """Without the checkpoints of the transition there is no verdict, not a wrong one."""
    kept = (STEPS < 200) | (STEPS > 400)
    found = [
        replace(m, steps=STEPS[kept], curves={name: c[kept] for name, c in m.curves.items()})
        for m in models(2)
    ]
    assert all(np.isnan(m.step_of("loss")) and np.isnan(m.rise) for m in found)
    assert outcomes(models(1, gain=0.0) + found)[:3] == [
        verdicts.NOT_TESTABLE, *[verdicts.HOLDS] * 2
    ]  # fmt: skip
    (flat, *_) = models(2, gain=0.0)
    assert np.isnan(flat.rise)
    assert transitions.values([flat], {})["missed_2"] is None


def test_knocking_out_a_whole_layer_has_no_verdict() -> None:
    found = outcomes(models(1, gain=0.0) + models(2), heads=1)
    assert found[3:5] == [verdicts.NOT_TESTABLE, verdicts.REPRODUCED]


def test_a_note_says_where_the_control_has_fewer_heads() -> None:
    found = models(2)
    control = "previous-token control"
    assert transitions.claims(found, 4)[4].ours.note == ""
    few = replace(found[0].without[control], heads=1)
    found[0] = replace(found[0], without=found[0].without | {control: few})
    note = transitions.claims(found, 4)[4].ours.note
    assert note == (
        f"in 1 of {len(found)} models, there are fewer other heads, and all are knocked out"
    )


def test_nothing_is_claimed_of_models_that_are_missing() -> None:
    assert set(outcomes([])) == {verdicts.NOT_TESTABLE}
    unfinished = [transitions.Model(m.layers, m.seed, m.steps, m.curves, {}) for m in models(2)]
    assert set(outcomes(unfinished)) == {verdicts.NOT_TESTABLE}
    assert transitions.values([], {})["order_gain_2"] is None
