"""The table of networks that were trained by one recipe says what their records say, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from records import arm, write_record

from monai_kd.visualize import PairRefused, networks_figure, networks_table, paired_difference, write_tables

# mean Dice over the four cases: 0.83, 0.85, 0.84 by seed
BASE = ((0.80, 0.82, 0.84, 0.86), (0.82, 0.84, 0.86, 0.88), (0.81, 0.83, 0.85, 0.87))
CONTROLS = ("baseline", "unet3d")
PARAMETERS = {"baseline": 1_000_000, "distill_dsm": 1_200_000, "unet3d": 4_000_000, "alpha_one": 1_600_000}
SHARE, SEEDS, DICE, AGAINST_2D = 2, 3, 6, 9


def shifted(by: float, seeds: int = 3) -> list[list[float]]:
    return [[value + by for value in seed] for seed in BASE[:seeds]]


def network(name: str, dice: Sequence[Sequence[float]], **settings: Any) -> list[dict[str, Any]]:
    """Records of a network: schedule and protocol hash of its own, as its configuration and its window are."""
    own = {"schedule": name.ljust(64, "0"), "protocol": f"p{name}".ljust(64, "0"), "bundle": "distill-dsm"}
    return arm(name, dice, parameters=PARAMETERS[name], **{**own, **settings})


def study() -> list[dict[str, Any]]:
    return [
        *network("baseline", BASE),
        *network("distill_dsm", shifted(0.05)),
        *network("unet3d", shifted(0.04)),
        *network("alpha_one", shifted(0.07, seeds=1)),
    ]


def rows(table: str) -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][2:]
    return {cells[0].strip(): [cell.strip() for cell in cells] for cells in lines}


def test_controls_come_first_then_networks_by_falling_dice():
    expected = ["baseline", "unet3d", "alpha_one", "distill_dsm"]
    assert list(rows(networks_table(study(), "distill-dsm", CONTROLS))) == expected
    assert list(rows(networks_table(reversed(study()), "distill-dsm", CONTROLS))) == expected


def test_a_row_by_hand():
    found = rows(networks_table(study(), "distill-dsm", CONTROLS))
    # the seed noise is 2 * sqrt((0.01**2 + 0.01**2) / 3) = 0.0163
    assert found["distill_dsm"] == [
        *("distill_dsm", "1,200,000", "30.0 %", "3", "0.9000 ± 0.0100", "0.8800 ± 0.0100", "0.8900 ± 0.0100"),
        *("1.25 ± 0.00", "100", "+0.0500 (+0.0500 to +0.0500)", "gain"),
        *("+0.0100 (+0.0100 to +0.0100)", "within noise"),
    ]
    assert found["baseline"][AGAINST_2D : AGAINST_2D + 2] == ["-", "reference"]
    assert found["unet3d"][SHARE] == "100.0 %"
    # one seed is compared with the same seed of the controls
    assert found["alpha_one"][SEEDS] == "1"
    assert found["alpha_one"][AGAINST_2D:] == [
        *("+0.0700 (+0.0700 to +0.0700)", "1 seed", "+0.0300 (+0.0300 to +0.0300)", "1 seed")
    ]


def test_without_a_control_there_is_no_column_for_it():
    table = networks_table([r for r in study() if r["method"] != "unet3d"], "distill-dsm", CONTROLS)
    assert "unet3d" not in table
    assert rows(table)["distill_dsm"][SHARE] == "120.0 %"
    alone = networks_table(network("distill_dsm", BASE), "distill-dsm", CONTROLS)
    assert rows(alone)["distill_dsm"][SHARE] == "-"
    assert "Difference" not in alone


def test_another_recipe_is_refused_and_named():
    records = [*network("baseline", BASE), *network("distill_dsm", shifted(0.05), recipe="8" * 64)]
    table = networks_table(records, "distill-dsm", CONTROLS)
    assert rows(table)["distill_dsm"][AGAINST_2D:] == ["-", "refused"]
    assert "distill_dsm is not compared with baseline: recipe_hash differs: 666666666666 in" in table


def test_each_protocol_has_a_table_and_other_bundles_none():
    records = [*study(), *network("baseline", BASE[:1], protocol_name="left_atrium"), *arm("kd", BASE)]
    table = networks_table(records, "distill-dsm", CONTROLS)
    assert table.index("**hippocampus**") < table.index("**left_atrium**")
    assert "| kd |" not in table
    assert networks_table(arm("kd", BASE), "distill-dsm") == "No results recorded."


def test_sections_and_scorings_stand_apart_and_nothing_is_superseded_by_another_section():
    validated = network("baseline", shifted(-0.1), section="validation", stamp="20261122-000000")
    table = networks_table([*study(), *validated], "distill-dsm", CONTROLS)
    assert "**hippocampus, validation section**" in table
    assert rows(table.split("**hippocampus, validation section**")[0])["baseline"][DICE] == "0.8400 ± 0.0100"
    assert "the newest evaluation" not in table
    other = network("unet3d", BASE)
    for record in other:
        record["protocol"]["scoring_hash"] = "9" * 64
    table = networks_table([*network("baseline", BASE), *other], "distill-dsm", CONTROLS)
    assert "**hippocampus, scoring 77777777**" in table
    assert "**hippocampus, scoring 99999999**" in table


def test_epochs_are_said_only_where_all_were_trained_alike():
    assert "Epochs of training: 60 of the same data" in networks_table(study(), "distill-dsm", CONTROLS)
    records = [*network("baseline", BASE), *network("distill_dsm", shifted(0.05), recipe="8" * 64)]
    table = networks_table(records, "distill-dsm", CONTROLS)
    assert "Epochs" not in table
    assert "These networks were trained by 2 recipes; only those of one are compared." in table


def test_misses_are_counted_and_explained():
    records = [*network("baseline", BASE), *network("distill_dsm", shifted(0.05), missed=(1,))]
    table = networks_table(records, "distill-dsm", CONTROLS)
    assert rows(table)["distill_dsm"][7].endswith("(3 missed)")
    assert "Missed:" in table
    assert "Missed:" not in networks_table(study(), "distill-dsm")


def test_a_document_asks_for_the_table_by_its_name(tmp_path):
    for record in study():
        write_record(tmp_path / "results", record)
    page = tmp_path / "page.md"
    page.write_text("<!-- >>> results: distill_dsm -->\n<!-- <<< results -->\n")
    assert write_tables(tmp_path / "results", [page]) == [page]
    assert "| distill_dsm | 1,200,000 | 30.0 % |" in page.read_text()


# ---------------------------------------------------------------- what may be compared


def test_networks_on_one_recipe_are_compared_only_where_that_is_asked_for():
    a, b = network("baseline", BASE), network("unet3d", shifted(0.05))
    assert paired_difference(a, b, same_network=False).mean == pytest.approx(0.05)
    with pytest.raises(PairRefused, match="protocol hash differs"):
        paired_difference(a, b)


def test_an_unknown_recipe_another_scoring_and_no_schedule_at_all_are_refused():
    a = network("baseline", BASE)
    with pytest.raises(PairRefused, match="recipe_hash is unknown in evaluate-unet3d-seed0"):
        paired_difference(a, network("unet3d", BASE, recipe=None), same_network=False)
    other = network("unet3d", BASE)
    for record in other:
        record["protocol"]["scoring_hash"] = "9" * 64
    with pytest.raises(PairRefused, match="scoring hash differs: 777777777777 in"):
        paired_difference(a, other, same_network=False)
    with pytest.raises(ValueError, match="only one of same_schedule, same_network"):
        paired_difference(a, a, same_schedule=False, same_network=False)


# ---------------------------------------------------------------- the figure


def test_the_figure_has_a_panel_per_protocol_and_a_dot_per_seed():
    records = [*study(), *network("baseline", BASE[:1], protocol_name="left_atrium")]
    first, second = networks_figure(records, "distill-dsm", CONTROLS).axes
    assert (first.get_title(), second.get_title()) == ("hippocampus", "left_atrium")
    assert [text.get_text() for text in first.get_yticklabels()] == ["baseline", "unet3d", "alpha_one", "distill_dsm"]
    dots = [line for line in first.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [3, 3, 1, 3]
    assert sorted(dots[0].get_xdata()) == pytest.approx([0.83, 0.84, 0.85])
    colors = [line.get_color() for line in dots]
    assert len(set(colors)) == 3, "each control and the others"
    assert colors[2] == colors[3]


def test_a_figure_without_a_record_of_the_bundle_is_refused():
    with pytest.raises(ValueError, match="no record of the bundle 'distill-dsm'"):
        networks_figure(arm("kd", BASE), "distill-dsm")
