"""Tests whether the models of the suite learn the associations planted in their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora.occupations import GROUPS, INVENTED, permuted_shares
from pythia_book.stats import permutation_p, slope
from pythia_book.study import Measurements
from pythia_book.tasks.associations import UNSEEN
from pythia_book.verdicts import ALPHA, holm
from pythia_core.suite import DATA_ARMS

if TYPE_CHECKING:
    import pandas as pd


def associations_table(measured: Measurements) -> pd.DataFrame:
    """Regress each model's log odds of feminine pronouns on the log odds in the corpus.

    Columns: size, arm (the text), group (of nouns), and frames ("trained" or "unseen"); value, low
    and high (the slope over the nouns of the group, with its interval; the model's log odds are
    means over the frames); and p (see `permutation_p`; only for made-up nouns, whose log odds in
    the corpus were assigned at random).
    """
    import pandas as pd

    nouns = pd.DataFrame(measured.facts["nouns"])
    rows = []
    for (size, arm, frames), odds in measured.under("association"):
        for group in GROUPS:
            of_group = (nouns.group == group).to_numpy()
            x, y = nouns.log_odds.to_numpy()[of_group], odds[of_group].astype(float)
            fit = slope(x, y)
            p = permutation_p(x, y) if group == INVENTED else None
            keys = {"size": size, "arm": arm, "group": group, "frames": frames}
            rows.append(keys | (fit.interval() if fit else {}) | {"p": p})
    return pd.DataFrame(rows)


def flat_table(measured: Measurements) -> pd.DataFrame:
    """Test models of the text with flat shares (as many feminine as masculine pronouns per noun).

    Columns: size, seed, slope (of the model's log odds for made-up nouns in unseen frames on the
    log odds of these nouns in the standard text) and p (see `permutation_p`). For p, each model is
    tested against shares drawn for this model alone. All models read the same text, so with one set
    of shares, the p-values would depend on each other.
    """
    import pandas as pd

    rows = enumerate(measured.facts["nouns"])
    nouns = {row["noun"]: at for at, row in rows if row["group"] == INVENTED}
    planted = np.array([measured.facts["nouns"][at]["log_odds"] for at in nouns.values()])
    models = [(*cell, odds) for (*cell, at), odds in measured.under("flat") if at == UNSEEN]
    fits = []
    for draw, (size, seed, odds) in enumerate(models, 1):
        shares = permuted_shares([*nouns], draw)
        drawn = np.array([np.log(shares[name] / (1 - shares[name])) for name in nouns])
        y = odds[[*nouns.values()]].astype(float)
        fit = slope(planted, y)
        row = {"size": size, "seed": int(seed), "slope": fit and fit.value}
        fits.append(row | {"p": permutation_p(drawn, y, draw)})
    return pd.DataFrame(fits, columns=["size", "seed", "slope", "p"])


def all_associated(associations: pd.DataFrame, sizes: Sequence[str]) -> tuple[bool, str]:
    """Return whether every model of some sizes has an association of made-up nouns above zero.

    A model's association is above zero if the interval of its slope in unseen frames is, and its
    `p` is below 0.05 after Holm's correction for all models. An unmeasured model counts as failed.

    Args:
        associations: the table of `associations_table`.
        sizes: names of the sizes to test, on both texts.

    Returns:
        Whether this holds for every model; and a note with the number of models for which it
        does, the smallest slope with its interval, and the largest p.
    """
    import pandas as pd

    tested = associations[(associations.group == INVENTED) & (associations.frames == UNSEEN)]
    tested = tested[tested["size"].isin(sizes)]
    n_models = len(sizes) * len(DATA_ARMS)
    p = pd.Series(holm(dict(tested.p.dropna())), dtype=float).reindex(tested.index)
    learned = int(((p < ALPHA) & (tested.low > 0)).sum())
    note = f"{learned} of {n_models} models ({', '.join(sizes)})"
    if tested.value.notna().any():
        least = tested.loc[tested.value.idxmin()]
        note += (
            f"; smallest slope {least.value:.3f} [{least.low:.3f}, {least.high:.3f}] "
            f"({least['size']}, {least.arm} text); largest p = {p.max():.2g} after Holm's "
            "correction"
        )
    return 0 < n_models == learned, note
