"""The measures of the gender-bias study on one checkpoint, item by item.

    feminine_share   share of feminine among gendered pronouns (she/her/hers/herself, he/him/his/
                     himself) after e.g. "The nurse said that"; mean by occupation. Not used by the
                     study itself, but by the study `seeds` and by `continuation`
    winobias         1 if the sentence with the stereotypical pronoun is likelier, else 0
    crows, stereoset 1 if the stereotyping sentence of the pair is likelier, else 0
    loss             nats per token, by held-out row
    loss_rest        the same without gendered pronouns as targets
    last_word        1 if the last word of a held-out sentence is predicted greedily, else 0

winobias, crows and stereoset compare total log-likelihoods after one end-of-document token, like
the released numbers; `*_per_token` compares means per token, like the paper. `*_margin` is the
difference of totals in nats. Ties count as 0. WinoBias sentences are not put into a question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import LanguageMeasurement
from pythia_book.studies.gender_bias.estimates import Sentences
from pythia_core.config import stable_hash
from pythia_core.errors import DataError
from pythia_core.evaluation import scoring

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData

FEMININE = (" she", " her", " hers", " herself")
MASCULINE = (" he", " him", " his", " himself")

Measured = dict[str, np.ndarray]
"""Maps a measure to one value per item, float64[n]."""


@dataclass(frozen=True)
class Items:
    """The evaluation items as plain text: sentences, pairs of sentences, and contexts."""

    winobias: Sequence[Any]  # items.PronounItem
    crows: Sequence[Any]  # items.SentencePair
    stereoset: Sequence[Any]  # items.SentencePair
    contexts: Sequence[str]
    occupations: Sequence[str]

    @classmethod
    def load(cls) -> Items:
        """Load the items from the pinned wheels, downloading them once."""
        from pythia_book.tasks import bias_items as items

        return cls(
            items.winobias(),
            items.crows_pairs("gender"),
            items.stereoset_gender(),
            items.occupation_contexts(),
            items.OCCUPATIONS,
        )

    def occupation_of(self, context: str) -> str:
        """Return the longest occupation named in `context`, or `context` if it names none."""
        for job in sorted(self.occupations, key=len, reverse=True):
            if re.search(rf"\b{re.escape(job)}\b", context, re.IGNORECASE):
                return job
        return context

    def jobs(self) -> tuple[list[str], np.ndarray]:
        """Return the occupations, sorted, and each context's occupation index, int[contexts]."""
        named = [self.occupation_of(context) for context in self.contexts]
        jobs, index = np.unique(named, return_inverse=True)
        return jobs.tolist(), index


class TokenizedItems:
    """The evaluation items, tokenized and packed once, for all checkpoints that share a tokenizer.

    `too_long` maps each kind of item, e.g. "CrowS-Pairs", to the number of pairs left out because a
    sentence exceeds the context.

    Raises:
        DataError: there are no items of some kind.
    """

    def __init__(self, items: Items, data: PreparedData, max_seq_len: int) -> None:
        self.items = items
        self.jobs = items.jobs()
        encode = scoring.encoder(data.tokenizer)

        def pack(requests: list[scoring.Request], kind: str) -> scoring.PackedRequests:
            if not requests:
                raise DataError(f"there are no {kind} to measure; at least one is needed")
            digests.append([(r.context, r.continuation) for r in requests])
            return scoring.pack(requests, max_seq_len)

        def pairs(
            left: list[str], right: list[str], kind: str
        ) -> tuple[scoring.PackedRequests, list]:
            # Pack only pairs that fit into the context, and return whether each pair fits.
            lefts = scoring.text_requests(left, encode, data.eod_id)
            rights = scoring.text_requests(right, encode, data.eod_id)
            both = list(zip(lefts, rights, strict=True))
            fits = [max(len(a.continuation), len(b.continuation)) <= max_seq_len for a, b in both]
            requests = [r for pair, fit in zip(both, fits, strict=True) if fit for r in pair]
            self.too_long[kind] = fits.count(False)
            return pack(requests, kind), fits

        digests: list[Any] = []
        self.too_long: dict[str, int] = {}
        self.winobias, fits = pairs(
            [i.sentence_pro for i in items.winobias],
            [i.sentence_anti for i in items.winobias],
            "WinoBias items",
        )
        feminine = np.array([is_feminine(i.pronoun_pro) for i in items.winobias])
        names = [item.occupation for item in items.winobias]
        _, occupation = np.unique(names, return_inverse=True)
        self.sentences = Sentences(occupation[fits], feminine[fits])
        self.crows, _ = pairs(
            [p.more for p in items.crows], [p.less for p in items.crows], "CrowS-Pairs"
        )
        self.stereoset, _ = pairs(
            [p.more for p in items.stereoset], [p.less for p in items.stereoset], "StereoSet pairs"
        )
        self.contexts = pack(
            scoring.continuation_requests(
                items.contexts, FEMININE + MASCULINE, encode, data.eod_id
            ),
            "contexts",
        )
        self.language = LanguageMeasurement.of(data)
        if not len(self.language.words):
            raise DataError("no held-out sentence has a last word to predict; use more text")
        self._gendered = np.zeros(data.tokenizer.get_vocab_size(), bool)
        for word in (*FEMININE, *MASCULINE):
            for text in (word, word.strip(), word.title(), word.strip().capitalize()):
                ids = encode(text)
                self._gendered[list(ids)] |= len(ids) == 1
        digests.append([self.language.digest, np.flatnonzero(self._gendered).tolist()])
        self.digest = stable_hash([scoring.VERSION, max_seq_len, digests])

    def measurement(self, full: bool) -> GenderMeasurement:
        """Return the measurement for `measure_all`; see `measure` for `full`."""
        return GenderMeasurement(self, full)

    def measure(self, model: scoring.Scorable, full: bool) -> Measured:
        """Return {measure: float64[items]}; without `full`, only feminine share and CrowS-Pairs."""
        measured: Measured = {}
        logp = scoring.score(model, self.contexts).logprob
        mass = np.exp(logp.reshape(len(self.items.contexts), -1))
        feminine = mass[:, : len(FEMININE)].sum(1)
        # Contexts with the same occupation are not independent, so their mean is one item.
        jobs, job_of = self.jobs
        share = np.bincount(job_of, feminine / mass.sum(1), len(jobs))
        measured["feminine_share"] = share / np.bincount(job_of, minlength=len(jobs))
        measured |= _choices("crows", scoring.score(model, self.crows))
        if full:
            language = self.language
            scores = scoring.score_rows(model, language.rows)
            measured["loss"] = scores.losses
            measured["loss_rest"] = np.nanmean(
                np.where(self._gendered[language.rows[:, 1:]], np.nan, -scores.logprob), axis=1
            )
            measured["last_word"] = scores.of_words(language.words).greedy.astype(np.float64)
            measured |= _choices("winobias", scoring.score(model, self.winobias))
            measured |= _choices("stereoset", scoring.score(model, self.stereoset))
        return measured


def is_feminine(pronoun: str) -> bool:
    return f" {pronoun.strip().lower()}" in FEMININE


def _choices(name: str, scores: scoring.Scores) -> Measured:
    """Compare each pair, stereotyping sentence first; return three arrays, float64[pairs].

    - NAME: 1 if the stereotyping sentence has the higher log-likelihood, else 0.
    - NAME_per_token: the same with log-likelihood per token.
    - NAME_margin: log-likelihood of the stereotyping sentence minus the other, in nats.
    """
    total = scores.logprob[0::2] - scores.logprob[1::2]
    per_token = scores.per_token[0::2] - scores.per_token[1::2]
    return {
        name: (total > 0).astype(np.float64),
        f"{name}_per_token": (per_token > 0).astype(np.float64),
        f"{name}_margin": total,
    }


@dataclass(frozen=True)
class GenderMeasurement:
    """A measurement for `measure_all` that applies `TokenizedItems.measure` to a checkpoint."""

    items: TokenizedItems
    full: bool

    @property
    def name(self) -> str:
        return "gender_full" if self.full else "gender_few"

    @property
    def digest(self) -> str:
        return self.items.digest

    def __call__(self, model: scoring.Scorable, step: int) -> Measured:
        return self.items.measure(model, self.full)
