"""Measures which pronoun a model expects after the nouns that are planted in the miniature.

For every noun of pythia_book.corpora.occupations and every frame, the measure is the log odds of
the feminine pronoun (she or her) against the masculine one (he or his). For the made-up nouns, the
log odds in the text are known, and were assigned at random. So `stats.permutation_p` tests exactly
whether a model has learned them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora import occupations
from pythia_book.measurements import RequestMeasurement
from pythia_core.config import stable_hash
from pythia_core.errors import DataError
from pythia_core.evaluation import scoring

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pythia_core.data.prepare import TokenizedText

UNSEEN, NATURAL = "unseen", "natural"
FRAMES = ("trained", UNSEEN)
"""The two sets of frames (sentence templates): "trained" frames are planted, "unseen" ones not. The
set NATURAL comes from a benchmark (`bias_items.natural_frames`)."""


@dataclass(frozen=True)
class AssociationMeasurement(RequestMeasurement):
    """The log odds of a feminine pronoun in every frame, after every noun, for one checkpoint.

    A call returns an array for each set of frames, float64[frames, nouns].
    """

    requests: tuple[scoring.Request, ...]
    """For every frame and every noun, a masculine pronoun and then a feminine pronoun."""
    max_seq_len: int
    sets: tuple[tuple[str, int], ...]
    """The name and the number of frames of each set."""
    name: str = "associations"

    @classmethod
    def of(
        cls,
        text: TokenizedText,
        max_seq_len: int,
        frames: Mapping[str, Sequence[str]] | None = None,
        nouns: Sequence[occupations.Noun] | None = None,
    ) -> AssociationMeasurement:
        """Create the measurement for models that were trained on a text, with the text's tokenizer.

        Args:
            frames: maps the names of sets to their frames; default: the sets FRAMES.
            nouns: default: all nouns of `occupations.stimuli()`.

        Raises:
            DataError: a pronoun is not one token, or the invented nouns do not all have the same
                number of tokens.
        """
        encode = scoring.encoder(text.tokenizer)
        stimuli = occupations.stimuli()
        frames = frames or {name: getattr(stimuli, name) for name in FRAMES}
        nouns = nouns or stimuli.nouns
        names = [noun.name for noun in nouns if noun.group == occupations.INVENTED]
        require_equal_tokens(text.tokenizer, names)
        requests = []
        for frame in itertools.chain(*frames.values()):
            for noun in nouns:
                prompt, pronouns = occupations.prompt(frame, noun.name)
                context = (text.eod_id, *encode(prompt))
                for pronoun in pronouns:
                    ids = encode(pronoun)
                    if len(ids) != 1:
                        raise DataError(
                            f"the pronoun {pronoun!r} is {len(ids)} tokens, but must be one; use a "
                            "tokenizer with a larger vocabulary"
                        )
                    requests.append(scoring.Request(context, ids))
        sets = tuple((name, len(of_set)) for name, of_set in frames.items())
        return cls(tuple(requests), max_seq_len, sets)

    @cached_property
    def digest(self) -> str:
        """A hash of the requests, the method of scoring, and the sets."""
        return stable_hash([super().digest, self.sets])

    def __call__(self, model: scoring.Scorable, step: int) -> dict[str, np.ndarray]:
        """Measure a model; return the array of each set of frames. The step is not used."""
        logprob = scoring.score(model, self.packed).logprob.reshape(-1, 2)
        names, counts = zip(*self.sets, strict=True)
        odds = (logprob[:, 1] - logprob[:, 0]).reshape(sum(counts), -1)
        return dict(zip(names, np.split(odds, np.cumsum(counts)[:-1]), strict=True))


def require_equal_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """Check that all names of a comparison have the same number of tokens.

    Raises:
        DataError: the numbers differ; the message lists the numbers.
    """
    encode = scoring.encoder(tokenizer)
    lengths = {name: len(encode(f" {name}")) for name in names}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {n}" for name, n in sorted(lengths.items(), key=lambda i: i[1]))
        raise DataError(
            f"the nouns of one comparison need the same number of tokens, but have: {listed}; use "
            "other nouns, or train the tokenizer on more text"
        )
