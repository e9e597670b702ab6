"""Whether the models of the suite learn the associations that are planted in their text."""

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
    """Return how closely each model's log odds of feminine pronouns follow the corpus's.

    Columns: size, arm, group (of nouns), frames ("trained" or "unseen"), value, low and high (slope
    of the model's log odds, a mean over frames, on the corpus's, over the nouns of the group), and
    p (see `permutation_p`; only for made-up nouns, whose log odds were assigned at random).
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
    """Return what the test finds in models of the text with flat shares.

    Columns: slope (of the model's log odds in unseen frames on those that the made-up nouns have in
    the standard text) and p (see `permutation_p`). For p, each model is tested against shares drawn
    for it alone. With one set of shares for all, the p-values would depend on each other, because
    all models read the same text.
    """
    import pandas as pd

    rows = enumerate(measured.facts["nouns"])
    nouns = {row["noun"]: at for at, row in rows if row["group"] == INVENTED}
    planted = np.array([measured.facts["nouns"][at]["log_odds"] for at in nouns.values()])
    models = [odds for (*_, frames), odds in measured.under("flat") if frames == UNSEEN]
    found = []
    for seed, odds in enumerate(models, 1):
        shares = permuted_shares([*nouns], seed)
        drawn = np.array([np.log(shares[name] / (1 - shares[name])) for name in nouns])
        y = odds[[*nouns.values()]].astype(float)
        fit = slope(planted, y)
        found.append({"slope": fit and fit.value, "p": permutation_p(drawn, y, seed)})
    return pd.DataFrame(found, columns=["slope", "p"])


def all_learned(associations: pd.DataFrame, sizes: Sequence[str]) -> tuple[bool, str]:
    """Return whether every model of some sizes has learned the shares of the made-up nouns.

    It has if, in unseen frames, its slope's interval is above 0 and its `p` is below 0.05 after
    Holm's correction for all models. A model that was not measured has not.

    Args:
        associations: the table of `associations_table`.
        sizes: names of the sizes to test, on both texts.

    Returns:
        Whether every model has; and a note with the number of models and the extremes.
    """
    import pandas as pd

    tested = associations[(associations.group == INVENTED) & (associations.frames == UNSEEN)]
    tested = tested[tested["size"].isin(sizes)]
    n_models = len(sizes) * len(DATA_ARMS)
    p = pd.Series(holm(dict(tested.p.dropna())), dtype=float).reindex(tested.index)
    learned = int(((p < ALPHA) & (tested.low > 0)).sum())
    note = (
        f"{learned} of {n_models} models ({', '.join(sizes)}); slopes {tested.value.min():.3f} to "
        f"{tested.value.max():.3f}, largest p = {p.max():.2g} after Holm's correction"
    )
    return 0 < n_models == learned, note
