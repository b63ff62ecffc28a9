"""The tables and the figure of several domains say what the records say, and compare only what may be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import pytest
from records import make_record, write_record

from monai_kd.visualize import bootstrap_interval, domains_figure, domains_table, load_records, write_tables

Record = dict[str, Any]
# Dice of each image by seed; the means are 0.80, 0.82, 0.81 on the source
SOURCE = ((0.79, 0.81), (0.81, 0.83), (0.80, 0.82))
STARE = ((0.60, 0.62, 0.64), (0.62, 0.64, 0.66), (0.61, 0.63, 0.65))  # means 0.62, 0.64, 0.63
DRIVE = ((0.70, 0.72), (0.72, 0.74), (0.71, 0.73))  # means 0.71, 0.73, 0.72
DOMAINS = {"retina": "CHASE_DB1 (source)", "retina_stare": "STARE", "retina_drive": "DRIVE"}
IMAGES = {"retina": SOURCE, "retina_stare": STARE, "retina_drive": DRIVE}
HASHES = {"retina": "a" * 64, "retina_stare": "b" * 64, "retina_drive": "c" * 64}
CONTROLS = ("baseline", "augmentation")
METRICS = ("dice", "iou", "sensitivity", "specificity", "accuracy", "auc", "cldice")
SEEDS, ON_SOURCE, ON_STARE, ON_DRIVE, TARGETS, AGAINST = 2, 3, 4, 5, 6, 7


def with_pixels(record: Record, dice: Sequence[float | None], trained_under: str | None = "retina") -> Record:
    """Make an evaluation of two classes one of vessels, with pixel scores beside a Dice of its own, 0.5 throughout."""
    scores = [dict.fromkeys(METRICS, value) for value in dice]
    for score in scores:
        if score["dice"] is not None:
            score.update({"iou": score["dice"] - 0.1, "specificity": 0.95, "auc": score["dice"] + 0.2})
    cases = [
        {"case": f"im{number:04d}", "dice": {"vessel": 0.5}, "hd95_mm": {"vessel": 9.0}, "missed": [], "pixels": score}
        for number, score in enumerate(scores)
    ]
    known = {name: [score[name] for score in scores if score[name] is not None] for name in METRICS}
    pixels = {
        "mean": {name: mean(values) if values else None for name, values in known.items()},
        "sd": {name: stdev(values) if len(values) > 1 else None for name, values in known.items()},
        "n": {name: len(values) for name, values in known.items()},
        "pooled": {**dict.fromkeys(METRICS[:-1], 0.3), "auc": 0.9123, "auc_error": 1.5e-4},
    }
    summary = {"dice": {"vessel": 0.5, "mean": 0.5}, "hd95_mm": {"vessel": 9.0, "mean": 9.0}, "missed": {"vessel": 0}}
    record.update({"classes": {"1": "vessel"}, "cases": cases, "summary": {**summary, "pixels": pixels}})
    record["protocol"].update({"n_train": 16, "n_validation": 4})
    if record["training"] and trained_under:
        record["training"]["protocol"] = {"name": trained_under}
    return record


def scored(
    method: str, protocol: str, dice: Sequence[Sequence[float | None]], trained_under: str | None = "retina", **own: Any
) -> list[Record]:
    """Records of a method on one domain, one for each seed."""
    section = "test" if protocol == "retina" else "all"
    settings = {
        "protocol_name": protocol,
        "section": section,
        "protocol": HASHES.get(protocol, protocol),
        "bundle": "gkd",
        **own,
    }
    return [
        with_pixels(make_record(method, seed, **settings), of_seed, trained_under) for seed, of_seed in enumerate(dice)
    ]


def method(name: str, by: Mapping[str, float] | float = 0.0, seeds: int = 3, **own: Any) -> list[Record]:
    """Records of a method on all domains, apart from the first values by one number or one for each domain."""
    found = []
    for protocol, images in IMAGES.items():
        shift = by if isinstance(by, float) else by.get(protocol, 0.0)
        found += scored(name, protocol, [[value + shift for value in seed] for seed in images[:seeds]], **own)
    return found


def study() -> list[Record]:
    return [
        *method("gkd", 0.08),
        *method("gkd_scratch", -0.02, schedule="9" * 64),
        *method("gkd_teacher", 0.02, schedule="8" * 64, parameters=2_000_000),
        *method("logit_kd", 0.01),
        *method("augmentation", 0.05),
        *method("views_kd", 0.10, seeds=1),
        *method("baseline"),
    ]


def table_of(records: Sequence[Record], controls: Sequence[str] = CONTROLS) -> str:
    return domains_table(records, "gkd", DOMAINS, controls)


def rows(table: str, title: str | None = None) -> dict[str, list[str]]:
    """The rows of the first table, or of the one below a title, by method."""
    part = table.split(f"**{title}**")[1] if title else table
    block = part.strip().split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
    return {row[0]: row for row in cells}


def where(records: Sequence[Record], change: Callable[[Record], None], **wanted: Any) -> list[Record]:
    """Change the records of a method, a seed or a protocol, of which there must be some."""
    found = [
        r
        for r in records
        if all(
            value == {"protocol": r["protocol"]["name"], **{k: r[k] for k in ("method", "seed")}}[key]
            for key, value in wanted.items()
        )
    ]
    assert found
    for record in found:
        change(record)
    return list(records)


# ---------------------------------------------------------------- numbers


def test_a_row_by_hand():
    found = rows(table_of(study()))
    # the seed noise is 2 * sqrt((0.01**2 + 0.01**2) / 3) = 0.0163; the targets' means are 0.665, 0.685, 0.675
    assert found["baseline"] == [
        *("baseline", "271,234", "3", "0.8100 ± 0.0100", "0.6300 ± 0.0100", "0.7200 ± 0.0100", "0.6750 ± 0.0100"),
        *("-", "reference", "-0.0500 (-0.0500 to -0.0500)", "loss"),
    ]
    assert found["gkd"] == [
        *("gkd", "271,234", "3", "0.8900 ± 0.0100", "0.7100 ± 0.0100", "0.8000 ± 0.0100", "0.7550 ± 0.0100"),
        *("+0.0800 (+0.0800 to +0.0800)", "gain", "+0.0300 (+0.0300 to +0.0300)", "gain"),
    ]
    assert found["logit_kd"][AGAINST:] == [
        *("+0.0100 (+0.0100 to +0.0100)", "within noise", "-0.0400 (-0.0400 to -0.0400)", "loss")
    ]
    assert found["views_kd"][SEEDS:] == [
        *("1", "0.9000", "0.7200", "0.8100", "0.7650"),
        *("+0.1000 (+0.1000 to +0.1000)", "1 seed", "+0.0500 (+0.0500 to +0.0500)", "1 seed"),
    ]


def test_targets_count_alike_in_their_mean_and_images_in_the_difference():
    shift = {"retina_stare": 0.10, "retina_drive": 0.05}
    found = rows(table_of([*method("baseline"), *method("gkd", shift)]))["gkd"]
    assert found[TARGETS] == "0.7500 ± 0.0100", "(0.73 + 0.77) / 2"
    low, high = bootstrap_interval([0.05, 0.05, 0.10, 0.10, 0.10])  # 2 images and 3
    assert found[AGAINST] == f"+0.0800 ({low:+.4f} to {high:+.4f})"
    assert 0.05 <= low < 0.08 < high <= 0.10


def test_a_gain_needs_an_interval_of_images_that_excludes_zero():
    mixed = method("gkd", {"retina_stare": 0.30, "retina_drive": -0.30})
    found = rows(table_of([*method("baseline"), *mixed]))["gkd"]
    assert found[AGAINST].startswith("+0.0600 (-0.")
    assert found[AGAINST + 1] == "within noise"


def test_a_target_on_which_a_method_gains_nothing_counts_in_its_difference_and_the_source_does_not():
    shift = {"retina": 0.1, "retina_stare": 0.0, "retina_drive": 0.1}
    assert rows(table_of([*method("baseline"), *method("gkd", shift)]))["gkd"][AGAINST].startswith("+0.0400 (")
    assert rows(table_of([*method("baseline"), *method("gkd", {"retina": 0.1})]))["gkd"][AGAINST].startswith(
        "+0.0000 ("
    )


def test_the_scores_of_each_domain_are_means_of_images_and_pooled():
    table = table_of(study())
    header = next(line for line in table.split("**STARE**")[1].splitlines() if line.startswith("| method"))
    assert header == (
        "| method | seeds | Dice | IoU | sensitivity | specificity | AUC | clDice | pooled Dice | pooled AUC |"
    )
    assert rows(table, "STARE")["gkd"] == [
        *("gkd", "3", "0.7100 ± 0.0100", "0.6100 ± 0.0100", "0.7100 ± 0.0100", "0.9500 ± 0.0000", "0.9100 ± 0.0100"),
        *("0.7100 ± 0.0100", "0.3000 ± 0.0000", "0.9123 ± 0.0000"),
    ]
    assert rows(table, "DRIVE")["views_kd"][1:3] == ["1", "0.8100"]
    assert list(rows(table, "CHASE_DB1 (source)")) == list(rows(table))
    assert "puts it off by about 1.5e-04 at most" in table


def test_the_dice_is_of_pixels_and_not_of_the_whole_photograph():
    table = table_of(study())
    assert "0.5000" not in table
    assert "0.6300" in table


def test_a_score_that_no_image_has_is_a_dash_and_one_that_some_have_is_told():
    records = [*method("baseline"), *method("gkd", 0.08)]

    def without_cldice(record: Record) -> None:
        for kind in ("mean", "sd", "n"):
            del record["summary"]["pixels"][kind]["cldice"]

    def without_auc(record: Record) -> None:
        record["summary"]["pixels"]["mean"]["auc"] = record["summary"]["pixels"]["pooled"]["auc"] = None
        record["summary"]["pixels"]["n"]["auc"] = 0

    where(records, without_cldice, method="gkd", protocol="retina_stare")
    table = table_of(where(records, without_auc, method="gkd", protocol="retina_drive"))
    assert rows(table, "STARE")["gkd"][7] == "-"
    assert rows(table, "STARE")["baseline"][7] != "-"
    assert rows(table, "DRIVE")["gkd"][6] == rows(table, "DRIVE")["gkd"][9] == "-"
    assert "DRIVE: 0 of 2 images have a value of AUC in the evaluation with fewest" in table
    assert "images have a value of" not in table_of(study())


def test_an_image_without_a_dice_leaves_means_and_comparison():
    def empty(images: Sequence[Sequence[float]], by: float) -> list[list[float | None]]:
        return [[None, *(value + by for value in seed)] for seed in images]

    records = [r for name in ("baseline", "gkd") for r in method(name) if r["protocol"]["name"] != "retina_stare"]
    for name, by in (("baseline", 0.0), ("gkd", 0.05)):
        records += scored(name, "retina_stare", empty(STARE, by))
    table = table_of(records)
    assert rows(table)["gkd"][ON_STARE] == "0.6800 ± 0.0100"
    assert rows(table)["gkd"][AGAINST].startswith("+0.0300 ("), "3 images of 5 are better by 0.05, one is no image"
    assert "STARE: 3 of 4 images have a value of Dice" in table


# ---------------------------------------------------------------- order, controls, absent parts


def test_controls_come_first_then_what_is_not_compared_then_methods_by_falling_target_dice():
    expected = ["baseline", "augmentation", "gkd_teacher", "gkd_scratch", "views_kd", "gkd", "logit_kd"]
    assert list(rows(table_of(study()))) == expected
    assert list(rows(table_of(list(reversed(study()))))) == expected
    worse_on_targets = [*study(), *method("gkd_views", {"retina": 0.1, "retina_stare": -0.3})]
    assert list(rows(table_of(worse_on_targets))) == [*expected, "gkd_views"]
    assert list(rows(table_of(study(), ("augmentation",))))[:3] == ["augmentation", "gkd_teacher", "gkd_scratch"]


def test_without_a_control_there_is_no_column_for_it():
    table = table_of([r for r in study() if r["method"] != "augmentation"])
    assert "augmentation" not in table
    assert len(rows(table)["gkd"]) == AGAINST + 2
    no_control = [r for r in study() if r["method"] not in CONTROLS]
    assert list(rows(table_of(no_control))) == ["views_kd", "gkd", "gkd_teacher", "logit_kd", "gkd_scratch"]
    alone = table_of(method("gkd"))
    assert len(rows(alone)["gkd"]) == AGAINST
    assert "Minus a control" not in alone
    assert "Minus a control: on equal images and seeds, all images of STARE and DRIVE together" in table


def test_a_domain_that_a_method_was_not_scored_on_is_a_dash_and_nothing_is_concluded():
    records = [r for r in study() if (r["method"], r["protocol"]["name"]) != ("gkd", "retina_drive")]
    table = table_of(records)
    assert rows(table)["gkd"][ON_SOURCE : ON_SOURCE + 4] == ["0.8900 ± 0.0100", "0.7100 ± 0.0100", "-", "-"]
    assert rows(table)["gkd"][AGAINST:] == ["-", "refused", "-", "refused"]
    assert "gkd is not compared with baseline: gkd was not scored on DRIVE." in table
    assert "gkd" not in rows(table, "DRIVE")
    only_targets = [r for r in study() if (r["method"], r["protocol"]["name"]) != ("gkd", "retina")]
    assert rows(table_of(only_targets))["gkd"][ON_SOURCE] == "-"
    assert rows(table_of(only_targets))["gkd"][AGAINST + 1] == "gain"


def test_a_domain_without_any_record_is_said_to_have_none():
    table = table_of([r for r in study() if r["protocol"]["name"] != "retina_drive"])
    assert "CHASE_DB1 (source), 2 (test section); STARE, 3 (all section); DRIVE, none scored." in table
    assert "**DRIVE**" not in table
    assert {row[ON_DRIVE] for row in rows(table).values()} == {"-"}


def test_no_record_of_the_bundle_or_of_its_domains_is_no_result():
    assert table_of([]) == "No results recorded."
    assert domains_table(study(), "kd", DOMAINS, CONTROLS) == "No results recorded."
    others = {"hrf": "HRF", "stare": "STARE"}
    assert domains_table(study(), "gkd", others, CONTROLS) == "No results recorded."


def test_without_a_target_without_pixel_scores_and_with_two_classes_it_is_an_error():
    with pytest.raises(ValueError, match="the source and at least one target, got retina"):
        domains_table(study(), "gkd", {"retina": "CHASE_DB1"})
    for part in ("summary", "case"):
        record = method("gkd")[3]
        del (record["summary"] if part == "summary" else record["cases"][1])["pixels"]
        with pytest.raises(ValueError, match=r"evaluate-gkd-seed0-\S+ \(retina_stare\) has no pixel scores"):
            table_of([record])
    record = method("gkd")[0]
    record["classes"]["2"] = "disc"
    with pytest.raises(ValueError, match="has the classes vessel, disc; pixel scores are of one"):
        table_of([record])


# ---------------------------------------------------------------- what may be compared


def test_another_network_and_another_schedule_are_refused_with_a_note():
    table = table_of(study())
    for name in ("gkd_teacher", "gkd_scratch"):
        assert rows(table)[name][AGAINST:] == ["-", "refused", "-", "refused"]
        for control in CONTROLS:
            assert f"{name} is not compared with {control}: on STARE, schedule_hash differs: 111111111111 in" in table
    larger = table_of([*method("baseline"), *method("gkd", parameters=9)])
    assert "gkd is not compared with baseline: on STARE, parameters differs: 271234 in" in larger


def test_methods_that_are_refused_for_one_reason_share_a_note():
    other = [*method("augmentation", schedule="9" * 64), *method("views_kd", 0.1, schedule="9" * 64)]
    table = table_of([*method("baseline"), *other, *method("gkd", 0.08), *method("logit_kd", 0.01)])
    schedules = "on STARE, schedule_hash differs: 999999999999 in evaluate-augmentation-seed0-20261121-104400"
    refused = [line for line in table.splitlines() if "not compared" in line]
    assert refused == [
        f"- baseline, gkd, logit_kd are not compared with augmentation: {schedules}, "
        "111111111111 in evaluate-baseline-seed0-20261121-104400.",
        "- augmentation, views_kd are not compared with baseline: on STARE, schedule_hash differs: 111111111111 in "
        "evaluate-baseline-seed0-20261121-104400, 999999999999 in evaluate-augmentation-seed0-20261121-104400.",
    ]
    assert rows(table)["views_kd"][AGAINST:] == ["-", "refused", "+0.1000 (+0.1000 to +0.1000)", "gain"]
    assert list(rows(table)) == ["baseline", "augmentation", "views_kd", "gkd", "logit_kd"]


def test_every_target_can_refuse():
    def other_hash(record: Record) -> None:
        record["protocol"]["hash"] = "d" * 64

    def other_image(record: Record) -> None:
        record["cases"][0]["case"] = "im9999"

    for target, title in (("retina_stare", "STARE"), ("retina_drive", "DRIVE")):
        for change, why in ((other_hash, "protocol hash differs"), (other_image, "cases differ; only in")):
            table = table_of(where([*method("baseline"), *method("gkd", 0.08)], change, method="gkd", protocol=target))
            assert rows(table)["gkd"][AGAINST:] == ["-", "refused"]
            assert f"gkd is not compared with baseline: on {title}, {why}" in table


def test_a_seed_that_lacks_a_target_is_in_no_mean_of_targets_and_is_refused():
    def drop(records: Sequence[Record], name: str) -> list[Record]:
        return [r for r in records if (r["method"], r["seed"], r["protocol"]["name"]) != (name, 1, "retina_drive")]

    both = [*method("baseline"), *method("gkd", 0.08)]
    table = table_of(drop(both, "gkd"))
    assert rows(table)["gkd"][SEEDS] == "2 or 3"
    assert rows(table)["gkd"][TARGETS] == "0.7500 ± 0.0071", "seeds 0 and 2: 0.745 and 0.755"
    assert rows(table)["gkd"][AGAINST:] == ["-", "refused"]
    assert "seeds of gkd differ: 0, 1, 2 on STARE; 0, 2 on DRIVE." in table
    table = table_of(drop(both, "baseline"))
    assert "gkd is not compared with baseline: on DRIVE, seeds differ: 0, 2 in baseline, 0, 1, 2 in gkd." in table
    # the seeds of a method that has fewer are all there
    one = rows(table_of(drop([*method("baseline"), *method("views_kd", 0.1, seeds=1)], "baseline")))["views_kd"]
    assert one[AGAINST:] == ["+0.1000 (+0.1000 to +0.1000)", "1 seed"]


def test_other_weights_on_another_domain_are_refused_also_on_the_source():
    for protocol, title in DOMAINS.items():
        records = [*method("baseline"), *method("gkd", 0.08)]

        def retrained(record: Record) -> None:
            record["network"]["weights_sha256"] = "f" * 64

        table = table_of(where(records, retrained, method="gkd", seed=2, protocol=protocol))
        assert rows(table)["gkd"][AGAINST + 1] == "refused"
        assert f"ffffffffffff on {title}" in table
        assert "gkd is not compared with baseline: weights of seed 2 of gkd differ: " in table


def test_an_unknown_training_is_refused_and_said():
    records = [*method("baseline"), *method("gkd", 0.08, schedule=None, curves=False)]
    table = table_of(records)
    assert "gkd is not compared with baseline: on STARE, schedule_hash is unknown in evaluate-gkd-seed0" in table
    assert "gkd: 9 of 9 evaluations carry no training." in table
    assert "carry no training" not in table_of(study())


def test_two_schedules_of_one_method_are_two_rows():
    table = table_of([*method("baseline"), *method("gkd", 0.08), *method("gkd", 0.01, schedule="9" * 64)])
    found = rows(table)
    assert list(found) == ["baseline", "gkd, schedule 99999999", "gkd, schedule 11111111"]
    assert found["gkd, schedule 11111111"][AGAINST + 1] == "gain"
    assert found["gkd, schedule 99999999"][AGAINST + 1] == "refused"


# ---------------------------------------------------------------- notes


def test_training_is_said_to_be_of_the_source_only_where_the_records_say_so():
    table = table_of(study())
    assert "Training on 16 images, selection of the epoch on 4, all of CHASE_DB1 (source)." in table
    assert "The records name no target in either" in table
    assert "was trained under" not in table
    on_target = table_of([*method("baseline"), *method("gkd", trained_under="retina_stare")])
    assert "all of CHASE_DB1" not in on_target
    assert "name no target" not in on_target
    assert "gkd was trained under 'retina_stare'; the source is 'retina'." in on_target
    unknown = table_of([*method("baseline"), *method("gkd", trained_under=None)])
    assert "name no target" not in unknown
    assert "gkd was trained under a protocol that is not recorded" in unknown


def test_epochs_are_told_by_method():
    records = where(study(), lambda record: record["training"].update(epochs=100), method="gkd_teacher")
    epochs = "Epochs: 60 (baseline, augmentation, gkd_scratch, views_kd, gkd, logit_kd), 100 (gkd_teacher)."
    assert epochs in table_of(records)


def test_a_repeated_evaluation_counts_once_and_is_named():
    older = scored("gkd", "retina_stare", [[0.1] * 3], stamp="20251121-104400")
    table = table_of([*older, *study()])
    assert rows(table)["gkd"] == rows(table_of(study()))["gkd"]
    assert "gkd on STARE: the newest evaluation of each seed is shown, not evaluate-gkd-seed0-20251121-104400." in table
    assert "the newest evaluation" not in table_of(study())


def test_another_section_counts_nowhere_and_is_said():
    validated = scored("gkd", "retina", [[0.1, 0.1]], section="validation", stamp="20271121-104400")
    table = table_of([*study(), *validated])
    assert rows(table) == rows(table_of(study()))
    assert "CHASE_DB1 (source): evaluations of other sections are left out, 1 of the validation section." in table
    assert "left out" not in table_of(study())


def test_several_ways_of_scoring_are_said():
    def other_way(record: Record) -> None:
        record["protocol"]["scoring_hash"] = "9" * 64

    table = table_of(where(study(), other_way, method="gkd_teacher", protocol="retina_drive"))
    assert "DRIVE: scored in 2 ways" in table
    assert "scored in" not in table_of(study())


def test_a_document_asks_for_the_table_by_its_name(tmp_path):
    for record in study():
        write_record(tmp_path / "results" / record["protocol"]["name"], record)
    page = tmp_path / "page.md"
    page.write_text("<!-- >>> results: gkd -->\n<!-- <<< results -->\n")
    assert write_tables(tmp_path / "results", [page]) == [page]
    assert table_of(load_records(tmp_path / "results")) in page.read_text()
    assert "minus augmentation, targets, paired" in page.read_text()


def test_shifts_of_the_same_images_are_compared_image_by_image():
    """Four images under two shifts are four values and not eight."""
    changed = {"plain": "as they are", "dark": "dark", "grain": "grain"}
    records = []
    for name, gains in (("baseline", (0.0, 0.0)), ("gkd", (0.1, -0.1))):
        records += scored(name, "plain", [[0.8, 0.7, 0.6, 0.5]])
        for protocol, gain in zip(("dark", "grain"), gains, strict=True):
            records += scored(name, protocol, [[0.7 + gain, 0.6 + gain, 0.5 + gain, 0.4 + gain]])
    table = domains_table(records, "gkd", changed, ("baseline",), shifts=True)
    header = table.splitlines()[0]
    assert "Dice, mean of shifts | minus baseline, shifts, paired" in header
    assert "target" not in table
    assert rows(table)["gkd"][7].replace("-", "+") == "+0.0000 (+0.0000 to +0.0000)"  # no gain on any image
    assert "**" not in table
    assert "sensitivity" not in table
    assert "was trained under" in table


def test_settings_are_compared_on_validation_and_its_shifts_and_never_in_the_table_of_cameras(tmp_path):
    shifts = {"retina": 0.0, "retina_low_resolution": 0.1, "retina_ringing": 0.1, "retina_dark": 0.1}
    shifts |= {"retina_grain": 0.1, "retina_tone": 0.1}
    for name, gain in (("baseline", 0.0), ("gkd", 0.1)):
        for protocol, harder in shifts.items():
            dice = [[0.8 - harder + gain, 0.7 - harder + gain]]
            (record,) = scored(name, protocol, dice, section="validation")
            write_record(tmp_path / "results" / "shifts" / protocol, record)
    page = tmp_path / "page.md"
    page.write_text("<!-- >>> results: gkd_shifts -->\n<!-- <<< results -->\n")
    write_tables(tmp_path / "results", [page])
    found = rows(page.read_text().split("-->")[1])
    assert found["gkd"][3:5] == ["0.8500", "0.7500"]
    assert found["gkd"][9].startswith("0.7500")
    assert found["gkd"][10].startswith("+0.1000 ")
    page.write_text("<!-- >>> results: gkd -->\n<!-- <<< results -->\n")
    write_tables(tmp_path / "results", [page])
    assert "No results recorded." in page.read_text()


# ---------------------------------------------------------------- the figure


def test_the_figure_has_a_panel_per_domain_and_a_dot_per_seed():
    panels = domains_figure(study(), "gkd", DOMAINS, CONTROLS).axes
    assert [panel.get_title() for panel in panels] == list(DOMAINS.values())
    names = list(rows(table_of(study())))
    for panel, first in zip(panels, (0.80, 0.62, 0.71), strict=True):
        assert [text.get_text() for text in panel.get_yticklabels()] == names
        dots = [line for line in panel.lines if line.get_marker() == "o"]
        assert [len(line.get_xdata()) for line in dots] == [1 if name == "views_kd" else 3 for name in names]
        assert [line.get_ydata()[0] for line in dots] == list(range(len(names)))
        assert list(dots[0].get_xdata()) == pytest.approx([first, first + 0.02, first + 0.01])
        bars = [line for line in panel.lines if line.get_marker() == "|"]
        assert len(bars) == len(names) - 1, "an only seed has no mean"
        assert bars[0].get_xdata()[0] == pytest.approx(first + 0.01)
        colors = [line.get_color() for line in dots]
        assert len(set(colors)) == 3, "each control and the others"
        assert len({*colors[2:]}) == 1


def test_a_domain_without_records_is_an_empty_panel_and_an_absent_method_an_empty_row():
    records = [r for r in study() if r["protocol"]["name"] != "retina_drive"]
    records = [r for r in records if (r["method"], r["protocol"]["name"]) != ("gkd", "retina_stare")]
    source, stare, drive = domains_figure(records, "gkd", DOMAINS, CONTROLS).axes
    assert (source.get_xlabel(), drive.get_xlabel()) == ("Dice in the field of view, mean over images", "not scored")
    assert list(drive.get_xticks()) == []
    counts = {
        panel.get_title(): sum(len(line.get_xdata()) for line in panel.lines if line.get_marker() == "o")
        for panel in (source, stare, drive)
    }
    assert counts == {"CHASE_DB1 (source)": 19, "STARE": 16, "DRIVE": 0}


def test_a_figure_without_a_record_is_refused():
    with pytest.raises(ValueError, match="no record of the bundle 'kd' under the protocols retina, retina_stare"):
        domains_figure(study(), "kd", DOMAINS, CONTROLS)
    with pytest.raises(ValueError, match="no record of the bundle 'gkd'"):
        domains_figure([], "gkd", DOMAINS, CONTROLS)
