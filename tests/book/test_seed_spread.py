"""Bands over seeds: interpolated over sizes and steps, kept in records, drawn under curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pythia_book import conduct, records, seed_spread, style
from pythia_book.study import Measurements, Result

from pythia_core.errors import DataError


@dataclass(frozen=True)
class Params:
    """The least that a study has as parameters."""

    scale: str = "laptop"

    @property
    def size_list(self) -> tuple[str, ...]:
        return ("7k", "25k", "150k", "600k")


def spreads(sizes: dict[str, float], measure: str = "loss") -> pd.DataFrame:
    """A table whose spread halves from the first to the last checkpoint, at each size."""
    rows = [
        {"kind": kind, "measure": measure, "size": size, "step": step,
         "percent": percent, "sd": sd * (1 - percent / 200), "n": 10 if size == "25k" else 3}
        for (size, sd), kind in zip(sizes.items(), ("both", "largest"), strict=False)
        for step, percent in ((1, 0.2), (286, 50.0), (572, 100.0))
    ]  # fmt: skip
    return pd.DataFrame(rows)


TWO = {"25k": 0.04, "600k": 0.01}


def recorded(folder: Path, table: pd.DataFrame, name: str) -> None:
    """Write a record with one table."""
    result = Result("seeds", Params(), {name: table}, {}, [], Measurements({}, {}), {}, 0.0)
    records.save_record(result, folder)


def test_measured_sizes_and_steps_are_returned_as_they_are() -> None:
    table = spreads(TWO)
    assert seed_spread.spread_at(table, "loss", "25k", [100.0]) == pytest.approx(0.02)
    assert seed_spread.spread_at(table, "loss", "600k", [50.0]) == pytest.approx(0.0075)


def test_sizes_between_are_interpolated_in_logarithms_and_others_get_the_nearest() -> None:
    table = spreads(TWO)
    share = np.log(150 / 25) / np.log(600 / 25)
    expected = np.exp((1 - share) * np.log(0.02) + share * np.log(0.005))
    assert seed_spread.spread_at(table, "loss", "150k", [100.0]) == pytest.approx(expected)
    for size, nearest in (("7k", "25k"), ("1.2m", "600k")):
        both = [
            seed_spread.spread_at(table, "loss", name, [100.0, 75.0]) for name in (size, nearest)
        ]
        assert np.array_equal(*both)
    one = spreads({"25k": 0.04})
    assert seed_spread.spread_at(one, "loss", "600k", [100.0]) == pytest.approx(0.02)


def test_a_spread_of_zero_is_interpolated_too() -> None:
    table = spreads({"25k": 0.0, "600k": 0.01})
    share = np.log(150 / 25) / np.log(600 / 25)
    found = seed_spread.spread_at(table, "loss", "150k", [100.0])
    assert found == pytest.approx(share * 0.005)


def test_nothing_is_made_up_outside_the_measured_training() -> None:
    table = spreads(TWO)
    first, middle, beyond = seed_spread.spread_at(table, "loss", "25k", [0.0, 75.0, 101.0])
    assert first == pytest.approx(0.04 * 0.999)  # step 0 has the weights of step 1
    assert middle == pytest.approx(0.025) and np.isnan(beyond)
    late = table[table.step == 572]
    assert np.isnan(seed_spread.spread_at(late, "loss", "25k", [50.0])).all()
    assert np.isnan(seed_spread.spread_at(table, "unknown", "25k", [50.0])).all()


def test_a_small_spread_of_both_seeds_gives_way_to_the_pooled_one_and_a_large_one_stays() -> None:
    """The pooled spread is known at the end only, and twice or half that of both seeds there."""
    both = pd.concat([spreads(TWO), spreads(TWO, "last_word")], ignore_index=True)
    pooled = both[(both["size"] == "25k") & (both.step == 572)].assign(kind="pooled", n=28)
    pooled.sd = pooled.sd.mul(2).where(pooled.measure == "loss", pooled.sd / 2)
    table = seed_spread.of_single_runs(pd.concat([both, pooled], ignore_index=True))
    assert list(table) == seed_spread.COLUMNS
    found = {
        (measure, size): np.array(seed_spread.spread_at(table, measure, size, [50.0, 100.0]))
        for measure in ("loss", "last_word")
        for size in TWO
    }
    assert found["loss", "25k"] == pytest.approx([0.06, 0.04])  # twice, also before the end
    assert found["last_word", "25k"] == pytest.approx([0.03, 0.02])
    assert found["loss", "600k"] == pytest.approx([0.0075, 0.005])
    assert seed_spread.source_text(table, "loss") == "28 of 25k and 3 of 600k"
    assert seed_spread.source_text(table, "last_word") == "10 of 25k and 3 of 600k"
    within = seed_spread.source_text(table, "loss", ["600k", "85k", "25k"])
    assert within == "28 of 25k and 3 of 600k"
    outside = seed_spread.source_text(table, "loss", ["600k", "7k", "1.2m"])
    assert outside.endswith(
        "; 7k is drawn with the spread of 25k; 1.2m is drawn with the spread of 600k"
    )
    assert seed_spread.source_text(table, "unknown", ["7k"]) == ""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, with an empty folder of results."""
    monkeypatch.setattr(seed_spread, "project_root", lambda: tmp_path)
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_the_recorded_spread_comes_first_then_your_own_then_that_of_the_record(
    project: Path,
) -> None:
    assert seed_spread.find("laptop").empty
    redrawn = project / "redrawn"
    recorded(redrawn, spreads({"25k": 0.1})[seed_spread.COLUMNS], seed_spread.TABLE)
    assert seed_spread.find("laptop", redrawn).sd.max() == pytest.approx(0.0999)
    recorded(project / "results" / "seeds" / "laptop", spreads({"25k": 0.2}), "spreads")
    assert seed_spread.find("laptop", redrawn).sd.max() == pytest.approx(0.1998)
    place = project / "book" / "recorded" / "seeds" / "laptop"
    one_kind = spreads(TWO).assign(kind="order", sd=9.0)
    recorded(place, pd.concat([spreads(TWO), one_kind]), "spreads")
    table = seed_spread.find("laptop", redrawn)
    assert list(table) == seed_spread.COLUMNS and table.sd.max() < 0.05 and len(table) == 6
    assert seed_spread.source_text(table, "loss") == "10 of 25k and 3 of 600k"
    assert seed_spread.find("smoke").empty
    (place / "spreads.csv").write_text("damaged")
    with pytest.raises(DataError, match="changed or damaged"):
        records.read_table(place, "spreads")
    assert seed_spread.find("laptop", redrawn).sd.max() == pytest.approx(0.1998)


def test_a_study_keeps_the_spread_in_its_record_and_a_redraw_finds_it_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(project / "results" / "seeds" / "laptop", spreads(TWO), "spreads")

    def run() -> Result:
        return conduct.conduct(
            "suite",
            Params(),
            lambda: Measurements({}, {}),
            lambda *_: ({}, {}, []),
            seed_bands=True,
        )

    first = run()
    folder = project / "suite"
    records.save_record(first, folder)
    (project / "results" / "seeds" / "laptop" / "record.json").unlink()
    assert run().tables[seed_spread.TABLE].empty
    monkeypatch.setenv(records.REDRAW_FROM, str(folder))
    again = run()
    pd.testing.assert_frame_equal(again.tables[seed_spread.TABLE], first.tables[seed_spread.TABLE])


def drawn(table: pd.DataFrame, **options: object) -> tuple[list[np.ndarray], str]:
    """The outlines of the bands under three curves, as [points, (x, y)], and the note."""
    tables = {seed_spread.TABLE: table}
    result = Result("suite", Params(), tables, {}, [], Measurements({}, {}), {}, 0.0)
    points = pd.DataFrame(  # three sizes, of which the middle one gets no band
        {"size": ["25k", "25k", "150k", "150k", "600k", "600k"], "step": [286, 572] * 3}
    ).assign(value=[5.0, 4.0] * 3)
    with style.style():
        _, (ax,) = style.panels(1, 2.0, "")
        style.seed_band(ax, result, points, "step", **options)
        return [band.get_paths()[0].vertices for band in ax.collections], style.seed_note(result)


def test_the_band_is_two_standard_deviations_either_way() -> None:
    (small, large), note = drawn(spreads(TWO), measure="loss")
    at_end = small[small[:, 0] == 572][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((3.96, 4.04))
    assert np.ptp(large[large[:, 0] == 572][:, 1]) == pytest.approx(0.02)
    assert note == (
        "pale bands, smallest and largest size: \N{PLUS-MINUS SIGN} 2 sd over seeds, from runs on "
        "the standard text (10 of 25k and 3 of 600k; 7k is drawn with the spread of 25k)"
    )


def test_a_band_of_shares_ends_at_0_and_1_and_without_a_spread_there_is_none() -> None:
    (band, _), _ = drawn(spreads(TWO, "last_word"), measure="last_word", factor=100)
    assert band[:, 1].max() <= 100
    bands, note = drawn(pd.DataFrame(columns=seed_spread.COLUMNS), measure="loss")
    assert not bands and not note
