"""Measures which pronoun a model expects after the nouns that are planted in the miniature.

For every noun of pythia_book.corpora.occupations and every frame, this is the log odds of the
feminine pronoun (she or her) against the masculine one (he or his). For the made-up nouns, the log
odds in the text are known, and were assigned at random. So `stats.permutation_p` tests exactly
whether a model has learned them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora import occupations
from pythia_book.measurements import RequestMeasurement
from pythia_core.errors import DataError
from pythia_core.evaluation import scoring

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pythia_core.data.prepare import TokenizedText

UNSEEN = "unseen"
FRAMES = ("trained", UNSEEN)
"""The two sets of frames (sentence templates): "trained" frames are planted, "unseen" ones not."""


@dataclass(frozen=True)
class AssociationMeasurement(RequestMeasurement):
    """The log odds of a feminine pronoun in every frame, after every noun, for one checkpoint.

    A call returns two arrays, `trained` and `unseen`, each float64[frames, nouns]. Nouns are in the
    order of `occupations.stimuli().nouns`.
    """

    requests: tuple[scoring.Request, ...]
    """For every frame of FRAMES and every noun, a masculine pronoun and then a feminine pronoun."""
    max_seq_len: int
    name: str = "associations"

    @classmethod
    def of(cls, text: TokenizedText, max_seq_len: int) -> AssociationMeasurement:
        """Create the measurement for models that were trained on a text, with the text's tokenizer.

        Raises:
            DataError: a pronoun is not one token, or the invented nouns do not all have the same
                number of tokens.
        """
        encode = scoring.encoder(text.tokenizer)
        stimuli = occupations.stimuli()
        names = [noun.name for noun in stimuli.nouns if noun.group == occupations.INVENTED]
        require_equal_tokens(text.tokenizer, names)
        requests = []
        for frame in (*stimuli.trained, *stimuli.unseen):
            for noun in stimuli.nouns:
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
        return cls(tuple(requests), max_seq_len)

    def __call__(self, model: scoring.Scorable, step: int) -> dict[str, np.ndarray]:
        """Measure a model; return `trained` and `unseen`. The step is not used."""
        logprob = scoring.score(model, self.packed).logprob.reshape(-1, 2)
        stimuli = occupations.stimuli()
        odds = (logprob[:, 1] - logprob[:, 0]).reshape(-1, len(stimuli.nouns))
        return dict(zip(FRAMES, np.split(odds, [len(stimuli.trained)]), strict=True))


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
            f"the nouns of one comparison must have equally many tokens, but have: {listed}; use "
            "other nouns, or more text for the tokenizer"
        )
