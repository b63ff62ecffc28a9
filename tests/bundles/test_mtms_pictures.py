"""The bundle mtms-kd on pictures: the overlay of each set trains, scores and segments what the set's folders hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flows import causes, checksum, first_batches, get, ready
from monai.bundle import ConfigWorkflow
from picture_sets import CASES, GREEN, HEIGHT, RED, SETS, WHITE, WIDTH, make, picture, save
from PIL import Image

from monai_kd.data import case_id

# so few pictures, of so few groups
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unable to generate class balanced samples"),
    pytest.mark.filterwarnings("ignore:.*has no query with a right and a wrong key"),
]
SMALL: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 2,
    "num_samples": 2,
    "volumes_per_epoch": 4,
    "patch_size": [32, 32],
    "diameter": 48,
    "teacher_def::channels": [4, 8, 8, 8],
}
GROUPED = ("brain_tumor", "brain_tumor_lgg", "cvc_clinicdb")


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "bundles" / "mtms-kd"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))


def files(name: str, *more: str) -> tuple[str, ...]:
    return ("train.yaml", "pictures.yaml", f"pictures/{name}.yaml", *(f"{other}.yaml" for other in more))


def trained(flow: ConfigWorkflow) -> list[dict[str, Any]]:
    """Take two steps; every weight that has a gradient moves, and all stay finite."""
    network = get(ready(flow), "network")
    before = {key: value.clone() for key, value in network.named_parameters()}
    batches = first_batches(flow, 2)
    still = [key for key, value in network.named_parameters() if torch.equal(value, before[key])]
    assert [key for key in still if not key.endswith("bias")] == []
    assert np.isfinite(checksum(value.detach() for value in network.parameters()))
    return batches


def scored(flow: ConfigWorkflow) -> list[dict[str, Any]]:
    """Run an evaluation up to its scores."""
    for number in range(len(flow.parser.get("run"))):
        get(flow, f"run::{number}")
    state: Any = get(flow, "validate::evaluator").state
    return state.case_scores


@pytest.mark.parametrize("name", SETS)
def test_a_set_trains_teacher_and_student_and_is_scored_and_segmented(bundle, workflow, tmp_path, name):
    folder = make(tmp_path / "set", name)
    given = {**SMALL, "dataset_dir": str(folder)}
    for stage in (("teacher",), ()):
        flow = workflow(bundle, files(name, *stage), **given)
        classes = len(get(flow, "class_names"))
        batches = trained(flow)
        for batch in batches:
            assert batch["image"].shape == (4, 3, 32, 32)
            assert set(torch.as_tensor(batch["label"]).unique().tolist()) <= set(range(classes))
            assert batch["position"].tolist() == [0, 0, 0, 0]
    seen = torch.cat([torch.as_tensor(batch["label"]).flatten() for batch in batches]).unique().tolist()
    assert seen == list(range(classes)), "every class comes in"
    torch.save(get(flow, "network").state_dict(), tmp_path / "weights.pt")

    given = {**given, "ckpt_path": str(tmp_path / "weights.pt")}
    cases = scored(workflow(bundle, files(name, "evaluate"), **given, run_dir=str(tmp_path / "scored")))
    assert len(cases) == CASES
    record = (tmp_path / "scored" / "run.json").read_text()
    assert all(f'"{word}"' in record for word in get(flow, "class_names"))

    images = tmp_path / "images"
    images.mkdir()
    image, _ = picture(0, (WHITE,))
    for ending, size in (("png", (WIDTH, HEIGHT)), ("jpeg", (31, 70))):
        Image.fromarray(image).resize(size).save(images / f"{ending}.{ending}")
    flow = workflow(
        bundle,
        ("inference.yaml", "inference_pictures.yaml", f"pictures/{name}.yaml"),
        "infer",
        **{key: given[key] for key in ("diameter", "ckpt_path")},
        **{"dataset_dir": str(images), "roi_size": [32, 32], "output_dir": str(tmp_path / "out")},
    )
    get(flow, "run::0")
    found = {path.name: Image.open(path) for path in sorted((tmp_path / "out").iterdir())}
    assert {key: mask.size for key, mask in found.items()} == {"jpeg_seg.png": (31, 70), "png_seg.png": (WIDTH, HEIGHT)}
    levels = {0, 255} if classes == 2 else set(range(classes))
    assert all(mask.mode == "L" and set(np.unique(np.asarray(mask))) <= levels for mask in found.values())


def test_every_overlay_of_a_set_is_tried_above(bundle):
    assert {path.stem for path in (bundle / "configs" / "pictures").glob("*.yaml")} == set(SETS)


# ---- what a training sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUPED)
def test_half_of_the_groups_keep_their_labels_and_groups_are_not_cut(bundle, workflow, tmp_path, name):
    folder = make(tmp_path / "set", name)
    given = {**SMALL, "dataset_dir": str(folder)}
    flow = workflow(bundle, files(name, "unlabelled"), **given)
    split = get(flow, "split")
    groups = {case_id(case["image"]): case["group"] for case in split.cases("all")}
    assert len(set(groups.values())) == CASES // 2
    sections = [{groups[name] for name in names} for names in split.ids.values()]
    assert sum(map(len, sections)) == len(set().union(*sections)) == CASES // 2
    cases = get(flow, "train::dataset").data
    flags = {group: {case["labelled"] for case in cases if case["group"] == group} for group in sections[0]}
    assert sorted(map(sorted, flags.values())) == [[0], [0], [1], [1]], "half of four groups, each whole"
    (batch,) = first_batches(ready(flow), 1)
    assert 2 <= len(set(batch["group"].tolist())) <= 4


def test_a_hidden_label_reaches_no_batch_and_an_image_without_group_is_one_of_its_own(bundle, workflow, tmp_path):
    folder = make(tmp_path / "set", "kvasir")
    flow = ready(workflow(bundle, files("kvasir", "unlabelled"), **SMALL, dataset_dir=str(folder)))
    (batch,) = first_batches(flow, 1)
    hidden = batch["labelled"] == 0
    assert hidden.sum() == 4
    assert not (batch["label"][hidden] == 1).any()
    assert len(set(batch["group"].tolist())) == 4


TINY_ARMS: dict[str, dict[str, Any]] = {
    "trans_teacher": {"teacher_def::channels": [16, 16, 16, 64], "grid": 2},
    "cached_teacher": {"bank_draws": 2},
}


@pytest.mark.parametrize(
    "arm", ["baseline", "unlabelled", "supervised", "one_component", "trans_teacher", "cached_teacher"]
)
def test_the_overlays_of_arms_stand_behind(bundle, workflow, tmp_path, arm):
    folder = make(tmp_path / "set", "cvc_clinicdb")
    tiny = TINY_ARMS.get(arm, {})
    flow = workflow(bundle, files("cvc_clinicdb", arm), **{**SMALL, "dataset_dir": str(folder), **tiny})
    trained(flow)
    evaluator = get(flow, "validate::evaluator")
    evaluator.run()
    assert 0.0 <= evaluator.state.metrics["val_mean_dice"] <= 1.0


def test_labels_and_pictures_are_resized_by_the_longer_side_and_scored_as_they_are(bundle, workflow, tmp_path):
    folder = make(tmp_path / "set", "neopolyp")
    flow = workflow(bundle, files("neopolyp"), **{**SMALL, "diameter": 30}, dataset_dir=str(folder))
    item = get(flow, "validate::preprocessing")(get(flow, "split").cases("all")[0])
    assert tuple(item["image"].shape) == (3, 30, 22)
    assert tuple(item["label"].shape) == (1, WIDTH, HEIGHT)
    _, mask = picture(0, (RED, GREEN))
    expected = (mask == RED).all(-1) + 2 * (mask == GREEN).all(-1)
    assert np.mean(expected != item["label"][0].numpy().T) < 0.02  # JPEG
    steps = get(flow, "train::preprocessing").transforms
    working = item = dict(get(flow, "split").cases("all")[0])
    for step in steps[:7]:
        working = step(working)
    assert tuple(working["label"].shape) == tuple(working["fov"].shape) == (1, 30, 22)
    assert set(working["label"].unique().tolist()) == {0, 1, 2}


def test_nothing_is_found_outside_of_a_shipped_field_of_view(bundle, workflow, tmp_path):
    folder = make(tmp_path / "set", "drive")
    field = np.zeros((HEIGHT, WIDTH), np.uint8)
    field[:, :20] = 255
    for number in range(CASES):
        save(folder / f"mask/{number}_training_mask.gif", field)
    flow = workflow(bundle, files("drive"), **SMALL, dataset_dir=str(folder))
    network = get(flow, "network")
    torch.nn.init.constant_(next(p for key, p in reversed(list(network.named_parameters())) if key.endswith("bias")), 0)
    item = get(flow, "validate::preprocessing")(get(flow, "split").cases("all")[0])
    item["pred"] = item["image"][:2] * 0 + torch.tensor([0.0, 9.0])[:, None, None]  # vessels everywhere
    done = get(flow, "validate::postprocessing")(item)
    assert done["pred"][1].sum() == done["pred"][1, :20].sum() == 20 * HEIGHT


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["neopolyp", "rite_av"])
def test_an_unknown_color_is_refused_before_any_step_and_named(bundle, workflow, tmp_path, name):
    folder = make(tmp_path / "set", name)
    places, colors = SETS[name]
    _, mask = picture(2, colors)
    mask[10:24, 20:34] = (255, 255, 0)
    save(folder / places(2)[1], mask)
    flow = workflow(bundle, files(name), **SMALL, dataset_dir=str(folder), labelled_fraction=1.0)
    get(flow, "split")._ids = {"train": [case_id(places(n)[0]) for n in range(CASES)], "validation": [], "test": []}
    with pytest.raises(RuntimeError) as caught:
        get(flow, "train::dataset")
    assert re.search(rf"{Path(places(2)[1]).name}' has the color \(25\d, 25\d, \d\)", causes(caught.value))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("isic", np.array([[0, 7]], np.uint8), "label has the values 7; the classes are 0, 255"),
        ("kvasir", None, "no label"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(bundle, workflow, tmp_path, name, spoil, message):
    folder = make(tmp_path / "set", name)
    place = folder / SETS[name][0](3)[1]
    if spoil is None:
        place.unlink()
    else:
        save(place, np.resize(spoil, (HEIGHT, WIDTH)))
    flow = workflow(bundle, files(name), **SMALL, dataset_dir=str(folder))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        get(flow, "split").cases("train")


def test_grey_pictures_are_refused_unless_they_are_announced(bundle, workflow, tmp_path):
    folder = make(tmp_path / "set", "brain_tumor")
    given = {**SMALL, "dataset_dir": str(folder), "layout": "kvasir_seg"}
    flow = workflow(bundle, files("kvasir"), **given)
    with pytest.raises(ValueError, match="image has 1 channels, the network takes 3"):
        get(flow, "split").cases("all")
    assert len(get(workflow(bundle, files("kvasir"), **given, stored_channels=1), "split").cases("all")) == CASES


# ---- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place", "count"), [("cvc_clinicdb", "CVC_ClinicDB", 123), ("drive", "DRIVE/training", 20)]
)
def test_real_pictures_are_listed_checked_and_trained_on(bundle, workflow, real_data, name, place, count):
    if not (real_data / place).is_dir():
        pytest.skip(f"MONAI_KD_DATA lacks {place}: this test needs it")
    few = {**SMALL, "diameter": 64, "train::dataset::cache_rate": 0.0, "train::dataset::num_workers": 1}
    flow = workflow(bundle, files(name, "baseline"), **few, dataset_dir=str(real_data / place))
    assert len(get(flow, "split").cases("all")) == count
    dataset = get(flow, "train::dataset")
    patches = dataset[0]
    assert all(tuple(patch["image"].shape) == (3, 32, 32) for patch in patches)
    assert set(torch.as_tensor(patches[0]["label"]).unique().tolist()) <= {0.0, 1.0}
