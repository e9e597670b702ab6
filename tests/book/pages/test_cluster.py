"""The budget on the page on clusters follows from stated rates, and its commands can be run."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise

import pytest
from places import ROOT
from pythia_book.pages import cluster
from pythia_book.pages.cluster import FABRIC, GPUS, NVLINK, Layout
from pythia_book.pages.real_suite import GPU_BYTES

from pythia_core.__main__ import parser
from pythia_core.suite import OFFICIAL_SIZES

PAGE = (ROOT / "book" / "cluster.md").read_text("utf-8")


def layout(size: str, gpus: int) -> Layout:
    return Layout(OFFICIAL_SIZES[size].model(), gpus)


def test_only_the_two_largest_sizes_are_split_and_every_layout_fits() -> None:
    frame = cluster.budget_table()
    assert set(frame["size"][frame.split > 1]) == {"6.9b", "12b"}
    assert (frame.memory <= GPU_BYTES).all()
    assert (frame.micro_batch >= 1).all() and (frame.busy <= 1).all()
    assert ((frame.gpus * frame.micro_batch) <= 1024).all()


def test_more_gpus_take_less_time_but_more_gpu_hours() -> None:
    days = cluster.budget_table().pivot(index="size", columns="gpus", values="days")
    for few, many in pairwise(GPUS):
        assert (days[many] < days[few]).all()
        assert (many * days[many] >= few * days[few]).all()


def test_what_is_sent_is_that_of_a_ring() -> None:
    """70M has 70,426,624 parameters; its gradient is summed in fp32."""
    gradient = 4 * 70_426_624
    one_node, many = layout("70m", 8), layout("70m", 64)
    assert one_node.sent_in_node == pytest.approx(2 * 7 / 8 * gradient)
    assert one_node.sent_between_nodes == 0
    assert many.sent_between_nodes == pytest.approx(2 * 7 / 8 * gradient / 8)
    waiting = 2 * 7 / 8 * gradient * (1 / NVLINK + 1 / 8 / FABRIC)
    assert many.seconds - many.compute_seconds == pytest.approx(waiting)


def test_the_disk_holds_154_checkpoints() -> None:
    frame = cluster.disk_table().set_index("size")
    assert frame.checkpoints["70m"] == 154 * 2 * 70_426_624
    assert frame.state["70m"] == 12 * 70_426_624
    assert cluster.disk().frame.iloc[-1]["Size"] == "All ten"
    assert cluster.values()["rows_terabytes"] == "0.6"


def test_the_page_shows_every_drawing_and_commands_that_parse() -> None:
    drawn = re.findall(r"^```\{drawing\} cluster\.(\w+)$", PAGE, flags=re.MULTILINE)
    assert sorted(drawn) == ["days", "disk", "memory", "network", "time"]
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL))
    text = re.sub(r"\\\n\s*", "", blocks)
    commands = re.findall(r"-m pythia_core (.+?)(?: +#.*)?$", text, flags=re.MULTILINE)
    assert len(commands) == blocks.count("-m pythia_core") == 11
    for line in commands:
        parser().parse_args(shlex.split(line))
