"""Measures which pronoun a model expects after the nouns that are planted in the miniature.

For every noun of pythia_book.corpora.occupations and every frame, the measurement is the log odds
of the feminine pronoun (she or her) against the masculine one (he or his). In the miniature, the
true log odds of each noun are known. `permutation_p` tests exactly whether a model has learned them
for the made-up nouns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora import occupations
from pythia_core.config import stable_hash
from pythia_core.errors import DataError
from pythia_core.evaluation import scoring

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FRAMES = ("trained", "unseen")
"""The two sets of frames: those of the planted sentences, and others."""
PERMUTATIONS = 20_000


@dataclass(frozen=True)
class AssociationMeasurement:
    """The log odds of a feminine pronoun after every noun, for one checkpoint.

    Calling it returns two arrays, `trained` and `unseen`, each float64[frames, nouns]. Nouns are in
    the order of `occupations.declared().nouns`.
    """

    requests: tuple[scoring.Request, ...]
    """For every frame of both sets and every noun: the masculine pronoun, then the feminine one."""
    max_seq_len: int
    name: str = "associations"

    @classmethod
    def of(cls, tokenizer: Tokenizer, eod_id: int, max_seq_len: int) -> AssociationMeasurement:
        """Create the measurement for models with this tokenizer.

        Raises:
            DataError: a pronoun is not one token, or made-up nouns differ in their numbers of
                tokens.
        """
        encode = scoring.encoder(tokenizer)
        declared = occupations.declared()
        names = [noun.name for noun in declared.nouns if noun.group == "invented"]
        require_equal_tokens(tokenizer, names)
        requests = []
        for frame in (*declared.trained, *declared.unseen):
            for noun in declared.nouns:
                text, pronouns = occupations.prompt(frame, noun.name)
                context = (eod_id, *encode(text))
                for pronoun in pronouns:
                    ids = encode(pronoun)
                    if len(ids) != 1:
                        raise DataError(
                            f"the pronoun {pronoun!r} is {len(ids)} tokens, but must be one; use a "
                            "tokenizer with a larger vocabulary"
                        )
                    requests.append(scoring.Request(context, ids))
        return cls(tuple(requests), max_seq_len)

    @cached_property
    def digest(self) -> str:
        """A hash of the requests and the method."""
        requests = [(r.context, r.continuation) for r in self.requests]
        return stable_hash([scoring.VERSION, self.max_seq_len, requests])

    def __call__(self, model: scoring.Scorable, step: int) -> dict[str, np.ndarray]:
        """Measure a model; return `trained` and `unseen`. The step is not used."""
        packed = scoring.pack(self.requests, self.max_seq_len)
        logprob = scoring.score(model, packed).logprob.reshape(-1, 2)
        declared = occupations.declared()
        odds = (logprob[:, 1] - logprob[:, 0]).reshape(-1, len(declared.nouns))
        return dict(zip(FRAMES, np.split(odds, [len(declared.trained)]), strict=True))


def require_equal_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """Check that all names of a comparison are equally many tokens.

    Raises:
        DataError: they are not; the message gives the numbers.
    """
    encode = scoring.encoder(tokenizer)
    lengths = {name: len(encode(f" {name}")) for name in names}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {n}" for name, n in sorted(lengths.items(), key=lambda i: i[1]))
        raise DataError(
            f"the nouns of one comparison must have equally many tokens, but have: {listed}; use "
            "more text or other nouns"
        )


def permutation_p(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Return the one-sided p-value of a positive slope of `y` on `x`, by permuting `x`.

    If the values of `x` were assigned to the units at random, the test is exact for one model,
    whatever the distribution of `y`: under the null hypothesis, every assignment is as likely as
    the actual one. PERMUTATIONS assignments are drawn.

    Args:
        x: float[n], e.g. the corpus's log odds of n nouns.
        y: float[n], e.g. a model's log odds of the same nouns.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(x, (PERMUTATIONS, 1)), axis=1)
    centred = y - y.mean()
    reached = drawn @ centred >= x @ centred - 1e-12
    return float((1 + reached.sum()) / (1 + PERMUTATIONS))
