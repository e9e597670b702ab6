"""The claims and hypotheses of the ablations study.

An effect is the held-out loss of an arm minus that of Pythia's architecture at the end of training,
averaged over sizes for each seed, with a t-interval over seeds. If it is positive, Pythia's choice
is the better one. Speed has no verdict: the paper means training on many GPUs.

Claims and hypotheses were written before any model of this study was trained at scale laptop, and
so was the rule for the margin. The rule was first applied to the suite's training losses, which
include planted text that is read many times (0.016 nats); after a look at two of five seeds, these
were replaced by its held-out losses, the quantity that is compared.
"""

from __future__ import annotations

import math

from pythia_book.records import value_text
from pythia_book.stats import Estimate, quoted
from pythia_book.studies.ablations.params import MEAN, Params
from pythia_book.verdicts import Claim, falls, rises, within

KNOWN = {"25k": (25_472, 5.252), "85k": (84_912, 5.090)}
"""Parameters without embeddings, and final held-out loss in nats per token, of two models of the
suite on the standard text, as recorded at scale laptop when the margin was set."""
GAIN = 1.1
"""The margin is worth this factor in parameters."""


def margin() -> float:
    """Return what GAIN times as many parameters are worth between two sizes of the suite, in nats.

    The loss is taken to be linear in the logarithm of the parameters without embeddings, by which
    the paper recommends to measure size (Table 1).
    """
    (n_small, worse), (n_large, better) = KNOWN.values()
    return (worse - better) / math.log(n_large / n_small) * math.log(GAIN)


MARGIN = round(margin(), 3)
"""Losses that differ by less than this, in nats per token, count as equal."""
NATS = "nats per token"
OURS = "ours, written before the models were trained"


def claims(params: Params, final: dict[tuple[str, str], Estimate | None]) -> list[Claim]:
    """Return the claims and hypotheses; `final` maps (size or MEAN, arm) to the effect."""
    sizes = params.size_list
    seeds = f"{params.seeds} seed{'s' * (params.seeds > 1)}"
    units = f"{seeds}; mean over {', '.join(sizes)}" if len(sizes) > 1 else seeds

    def by_size(arm: str) -> str:
        """Return the effect at each size as a note."""
        known = [(size, e) for size in sizes if (e := final.get((size, arm)))]
        return ", ".join(f"{size}: {value_text(quoted(e))}" for size, e in known if len(sizes) > 1)

    def effect(arm: str) -> Estimate | None:
        return final.get((MEAN, arm))

    return [
        Claim(
            f"Parallel attention and MLP do not harm: without them, the loss is at most {MARGIN:g} "
            "nats lower.",
            "section 2.3, which adopts them from other work",
            rises(effect("sequential"), NATS, units, -MARGIN, by_size("sequential")),
            quote="because they improve training efficiency and do not harm performance",
        ),
        Claim(
            "In small models, parallel attention and MLP raise the loss.",
            'section 2, as an expectation: parallel layers are "generally not recommended for '
            'models with less than 6B parameters"',
            falls(effect("sequential"), NATS, units, note=by_size("sequential")),
            quote="choices we expect to hurt performance at smaller scales",
        ),
        Claim(
            "The adopted rule for initial weights does not harm: with GPT-NeoX's default, which "
            f"6.9B and 12B kept, the loss is at most {MARGIN:g} nats lower.",
            "section 2.3, which adopts them from other work",
            rises(effect("default_init"), NATS, units, -MARGIN, by_size("default_init")),
            quote="because they improve training efficiency and do not harm performance",
        ),
        Claim(
            f"Rotating whole heads instead of a quarter changes the loss by less than {MARGIN:g} "
            "nats.",
            OURS,
            within(effect("full_rotary"), NATS, units, MARGIN, by_size("full_rotary")),
            kind="hypothesis",
        ),
        Claim(
            f"Without rotary embedding, the loss is more than {MARGIN:g} nats higher.",
            f"{OURS}; a causal decoder can tell positions without",
            rises(effect("no_rotary"), NATS, units, MARGIN, by_size("no_rotary")),
            kind="hypothesis",
        ),
        Claim(
            f"Tying embedding and unembedding changes the loss by less than {MARGIN:g} nats.",
            OURS,
            within(effect("tied"), NATS, units, MARGIN, by_size("tied")),
            kind="hypothesis",
        ),
        Claim(
            "Attention to a quarter of the row in every layer changes the loss by less than "
            f"{MARGIN:g} nats.",
            OURS,
            within(effect("window"), NATS, units, MARGIN, by_size("window")),
            kind="hypothesis",
        ),
    ]
