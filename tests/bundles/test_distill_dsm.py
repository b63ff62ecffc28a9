"""The bundle distill-dsm at work: overlays train and score, knobs count, all ways through a volume agree."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import TINY, TINY_UNET3D, bundle_run
from flows import first_batches, get, ready, validated
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from monai_kd.hub import materialize_run
from monai_kd.networks.nets import DSMUNet

SMALL = {"epochs": 1, "batch_size": 1, "patch_size": [16, 16, 8]}
OVERLAYS = [
    ("baseline.yaml",),
    ("plain_dsm.yaml",),
    ("residual_dsm.yaml",),
    ("alpha_quarter.yaml",),
    ("alpha_one.yaml",),
    ("unet3d.yaml",),
    ("sigmoid.yaml",),
    ("from_teacher.yaml",),
    ("left_atrium.yaml",),
    ("prostate.yaml",),
    ("pancreas.yaml",),
    ("sigmoid.yaml", "brats.yaml"),
    ("unet3d.yaml", "sigmoid.yaml", "brats.yaml"),
]


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "bundles" / "distill-dsm"


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", OVERLAYS, ids=lambda names: "+".join(name.split(".")[0] for name in names))
def test_every_overlay_moves_every_weight_and_scores_every_class(bundle, workflow, names):
    flow = ready(workflow(bundle, ("train.yaml", *names), **SMALL))
    network = get(flow, "network")
    before = {name: value.clone() for name, value in network.named_parameters()}
    assert all(torch.isfinite(batch["image"]).all() for batch in first_batches(flow, 3))
    still = [name for name, value in network.named_parameters() if torch.equal(value, before[name])]
    assert still == [], "no gradient"
    evaluator = get(flow, "validate::evaluator")
    evaluator.run()
    classes = get(flow, "class_names")[1:]
    assert set(evaluator.state.case_summary["dice"]) == {*classes, "mean"}
    assert 0.0 <= evaluator.state.metrics["val_mean_dice"] <= 1.0


def test_networks_of_the_same_task_see_the_same_batches(bundle, workflow):
    seen = {}
    for names in (("train.yaml",), ("train.yaml", "baseline.yaml"), ("train.yaml", "unet3d.yaml")):
        flow = ready(workflow(bundle, names, **{**SMALL, "batch_size": 2}))
        seen[names] = first_batches(flow, 2)
    (first, *others) = seen.values()
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            for key in ("image", "label"):
                assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())


def test_the_teachers_term_teaches_and_the_teacher_stays(bundle, workflow):
    flow = ready(workflow(bundle, ("train.yaml", "from_teacher.yaml"), **SMALL, **{"terms::seg::weight": 0.0}))
    distiller = get(flow, "distiller")
    teacher = {name: value.clone() for name, value in get(flow, "teacher").state_dict().items()}
    found = distiller(torch.randn(1, 1, 16, 16, 8), torch.zeros(1, 1, 16, 16, 8))
    assert found.terms["soft"].item() > 0
    assert found.loss.item() == pytest.approx(get(flow, "terms::soft::weight") * found.terms["soft"].item())
    found.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in get(flow, "network").parameters())
    first_batches(flow, 2)
    assert all(torch.equal(value, teacher[name]) for name, value in get(flow, "teacher").state_dict().items())


def test_a_knob_of_the_network_or_of_the_way_through_a_volume_changes_logits_and_a_chunk_does_not(bundle, workflow):
    def logits(**overrides: Any) -> float:
        set_determinism(0)
        return validated(ready(workflow(bundle, ("train.yaml",), **{**SMALL, **overrides})))

    base = logits()
    assert logits() == base
    assert logits(chunk=3) == pytest.approx(base, rel=1e-4)
    for changed in (
        {"network_def::alpha": 1.0},
        {"network_def::exchange": "plain"},
        {"network_def::depth_axis": 0},
        {"roi_size": [24, 24, -1]},
        {"overlap": 0.6},
        {"spacing_mm": [1.0, 1.0, 1.3]},
        {"intensity": {"_target_": "ScaleIntensityd", "keys": "image"}},
    ):
        assert abs(logits(**changed) - base) > 1e-3 * abs(base), changed


@pytest.mark.parametrize("knob", ["rotate_range", "shear_range"])
def test_a_knob_of_augmentation_changes_the_batches(bundle, workflow, knob):
    def batches(**overrides: Any) -> list:
        return first_batches(ready(workflow(bundle, ("train.yaml",), **SMALL, **overrides)), 3)

    base, same, other = batches(), batches(), batches(**{knob: [0.0, 0.0, 0.0]})
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(base, same, strict=True))
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(base, other, strict=True))


def test_windows_of_validation_leave_training_as_it_is(bundle, workflow):
    batches = []
    for roi_size in ([16, 16, -1], [24, 32, -1]):
        batches.append(first_batches(ready(workflow(bundle, ("train.yaml",), **SMALL, roi_size=roi_size)), 2))
    for ours, theirs in zip(*batches, strict=True):
        assert torch.equal(ours["image"], theirs["image"])


def test_windows_follow_the_axis_of_the_slices(bundle, workflow):
    assert get(workflow(bundle, ("train.yaml",)), "roi_size") == [40, 56, -1]
    assert get(workflow(bundle, ("train.yaml",), **{"network_def::depth_axis": 0}), "roi_size") == [-1, 56, 24]
    assert get(workflow(bundle, ("train.yaml", "unet3d.yaml")), "roi_size") == [40, 56, 24]


def test_a_network_without_these_arguments_takes_numbers(bundle, workflow):
    """``network_def`` may be any component, such as a 2-D network with exchanges put in."""
    network = {
        "_target_": "monai_kd.networks.nets.insert_depth_shift",
        "network": {"_target_": "BasicUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 3},
        "depth_axis": 2,
    }
    network["network"]["features"] = [8, 8, 8, 8, 8, 8]
    given = {**SMALL, "network_def": network, "in_channels": 1}
    flow = ready(workflow(bundle, ("train.yaml",), **given, out_channels=3))
    assert len(first_batches(flow, 1)) == 1
    flow = workflow(bundle, ("train.yaml",), **given, out_channels=4)
    with pytest.raises(RuntimeError) as refused:
        ready(flow)
    assert "the network has 4 outputs" in "".join(traceback.format_exception(refused.value))


WRONG_ORDER = {
    "a network behind its data": (
        ("left_atrium.yaml", "unet3d.yaml"),
        r"the network has 3 outputs \(network_def::out_channels\) and class_names is \['background', 'left atrium'\]",
    ),
    "regions of other classes": (
        ("sigmoid.yaml", "left_atrium.yaml"),
        r"class_names is \['background', 'left atrium'\]; with the regions \['anterior', 'posterior'\]",
    ),
    "overlapping regions as classes": (
        ("brats.yaml",),
        r"the network has 3 outputs .* and class_names is \['background'",
    ),
}


@pytest.mark.parametrize(("names", "message"), WRONG_ORDER.values(), ids=list(WRONG_ORDER))
def test_overlays_that_do_not_fit_each_other_are_refused_before_data_is_read(bundle, workflow, names, message):
    with pytest.raises(RuntimeError) as refused:
        ready(workflow(bundle, ("train.yaml", *names), **SMALL))
    causes = []
    error: BaseException | None = refused.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert re.search(message, "\n".join(causes))


def test_a_volume_with_fewer_slices_than_the_patch_is_named(bundle, workflow):
    with pytest.raises(RuntimeError) as refused:
        ready(workflow(bundle, ("train.yaml",), **{**SMALL, "patch_size": [16, 16, 64]}))
    text = "".join(traceback.format_exception(refused.value))
    assert re.search(r"phantom_00\d.nii.gz' has \d\d slices along axis 2 at the working spacing", text)
    assert re.search(r'give --patch_size "\[16, 16, \d\d\]"', text)


# ---- commands -------------------------------------------------------------------------------------------------------


def segmented(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_slice_by_slice_gives_the_files_of_chunks(bundle, phantoms, tmp_path):
    given = {"dataset_dir": phantoms, "chunk": 9}
    for name, files in (("chunks", ["inference.yaml"]), ("stream", ["inference.yaml", "streaming.yaml"])):
        bundle_run(bundle, files, tmp_path / "cwd", output_dir=tmp_path / name, **given)
    chunks, stream = segmented(tmp_path / "chunks"), segmented(tmp_path / "stream")
    assert list(chunks) == list(stream)
    assert len(chunks) == 2
    for name, found in chunks.items():
        assert (found != stream[name]).mean() < 1e-4, name  # a tie may fall either way
        assert set(np.unique(found)) <= {0, 1, 2}


@pytest.mark.slow
def test_brain_tumors_are_trained_scored_and_segmented_as_regions(bundle, data_of, tmp_path):
    names, data = ["train.yaml", "sigmoid.yaml", "brats.yaml"], data_of(["brats.yaml"])
    given = {**TINY["distill-dsm"], "dataset_dir": data, "split_file": "''"}
    run = tmp_path / "run"
    bundle_run(bundle, names, tmp_path / "cwd", run_dir=run, epochs=2, patch_size=[32, 32, 16], **given)
    record = json.loads((run / "run.json").read_text())
    assert list(record["classes"].values()) == ["whole_tumor", "tumor_core", "enhancing_tumor"]
    assert (record["network"]["target"], record["status"]) == ("DSMUNet", "finished")
    weights = {"ckpt_path": run / "model.pt"}
    scores = tmp_path / "scores"
    bundle_run(bundle, [*names, "evaluate.yaml"], tmp_path / "cwd", run_dir=scores, **weights, **given)
    assert json.loads((scores / "run.json").read_text())["summary"]["n_cases"] == 6
    files = ["inference.yaml", "inference_sigmoid.yaml", "inference_brats.yaml"]
    state = torch.load(run / "model.pt", weights_only=True)
    *_, head, bias = list(state)
    assert state[bias].shape == (3,)
    state[head].zero_()
    state[bias].copy_(torch.tensor([9.0, 9.0, -9.0]))  # in the whole tumor and its core, and not enhancing
    torch.save(state, weights["ckpt_path"])
    small = {**TINY["distill-dsm"], "dataset_dir": data}
    bundle_run(bundle, files, tmp_path / "cwd", output_dir=tmp_path / "out", **weights, **small)
    found = segmented(tmp_path / "out")
    assert len(found) == 6
    assert {int(value) for values in found.values() for value in np.unique(values)} == {1}, "necrosis"
    for name, values in found.items():
        truth = nib.load(next(data.glob(f"*/{name.split('_t1')[0]}_seg.nii.gz")))
        assert values.shape == truth.shape


@pytest.mark.slow
def test_a_run_on_other_data_becomes_a_bundle_with_its_own_windows(bundle, data_of, tmp_path):
    names, data = ["train.yaml", "left_atrium.yaml"], data_of(["left_atrium.yaml"])
    run = tmp_path / "run"
    given = {**TINY["distill-dsm"], "dataset_dir": data, "split_file": "''", "run_dir": run, "chunk": 11}
    sagittal = {"patch_size": [8, 24, 32], "network_def::depth_axis": 0}
    bundle_run(bundle, names, tmp_path / "cwd", epochs=1, **sagittal, **given)
    made = materialize_run(run, tmp_path / "atrium", bundle)
    bundle_run(made, ["inference.yaml"], tmp_path / "cwd", dataset_dir=data, output_dir=tmp_path / "out")
    assert len(segmented(tmp_path / "out")) == 2
    text = (made / "configs" / "inference.yaml").read_text()
    assert "roi_size: [-1, 24, 32]" in text
    assert "chunk: 11" in text
    metadata = json.loads((made / "configs" / "metadata.json").read_text())
    formats = metadata["network_data_format"]
    for end in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        assert end["spatial_shape"] == ["n", "8*(n+1)", "8*(n+1)"]
    definition = json.loads((made / "configs" / "infer.json").read_text())["network_def"]
    assert definition["out_channels"] == 2


@pytest.mark.slow
def test_a_run_on_ct_becomes_a_bundle_that_sees_what_the_run_saw(bundle, data_of, tmp_path):
    names, data = ["train.yaml", "pancreas.yaml"], data_of(["pancreas.yaml"])
    given = {**TINY["distill-dsm"], "dataset_dir": data, "split_file": "''", "run_dir": tmp_path / "run"}
    bundle_run(bundle, names, tmp_path / "cwd", epochs=1, patch_size=[24, 24, 8], **given)
    made = materialize_run(tmp_path / "run", tmp_path / "ct", bundle)
    files = [str(made / "configs" / f"{name}.yaml") for name in ("train", "inference")]
    train, inference = (ConfigParser.load_config_file(path) for path in files)
    assert train["intensity"] == inference["intensity"]
    assert inference["intensity"]["_target_"] == "ScaleIntensityRanged"
    assert inference["roi_size"] == [24, 24, -1]
    out, whole = tmp_path / "out", tmp_path / "overlay"
    bundle_run(made, ["inference.yaml"], tmp_path / "cwd", dataset_dir=data, output_dir=out)
    small = {**TINY["distill-dsm"], "roi_size": [24, 24, -1], "network_def::out_channels": 3}
    files = {"ckpt_path": tmp_path / "run" / "model.pt", "dataset_dir": data, "output_dir": whole}
    bundle_run(bundle, ["inference.yaml", "inference_pancreas.yaml"], tmp_path / "cwd", **files, **small)
    ours, theirs = segmented(out), segmented(whole)
    assert list(ours) == list(theirs)
    assert len(ours) == 2
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_training_and_inference_of_other_data_agree(bundle):
    """An overlay of inference.yaml states what the overlay of train.yaml does."""
    for train, inference in (
        (("train.yaml", "pancreas.yaml"), ("inference.yaml", "inference_pancreas.yaml")),
        (("train.yaml", "sigmoid.yaml", "brats.yaml"), INFERENCE_BRATS),
        (("train.yaml", "sigmoid.yaml"), INFERENCE_BRATS[:2]),
    ):
        parsers = []
        for names in (train, inference):
            parser = ConfigParser()
            parser.read_config([str(bundle / "configs" / name) for name in names])
            parsers.append(parser)
        for knob in ("spacing_mm", "roi_size", "overlap", "intensity", "network_def"):
            states = [_stated(parser, knob) for parser in parsers]
            assert states[0] == states[1], (train, knob)


INFERENCE_BRATS = ("inference.yaml", "inference_sigmoid.yaml", "inference_brats.yaml")


def _stated(parser: ConfigParser, knob: str) -> Any:
    value = parser[knob]
    return value if isinstance(value, dict) else parser.get_parsed_content(knob)


def test_inference_of_brain_tumors_needs_their_regions(bundle, data_of, tmp_path):
    data = data_of(["brats.yaml"])
    given = {"dataset_dir": data, "output_dir": tmp_path / "out", "load_pretrain": False, **TINY["distill-dsm"]}
    names = [INFERENCE_BRATS[0], INFERENCE_BRATS[2]]
    done = bundle_run(bundle, names, tmp_path / "cwd", succeed=False, **given)
    assert "inference_brats.yaml stands behind inference_sigmoid.yaml" in done.stderr
    assert not (tmp_path / "out").exists()


# ---- what ships -----------------------------------------------------------------------------------------------------


def test_the_network_has_at_most_28_percent_of_the_3d_networks_parameters(bundle, workflow):
    def parameters(names: tuple[str, ...], **full: Any) -> int:
        return sum(p.numel() for p in get(workflow(bundle, names, **full), "network_def").parameters())

    ours = parameters(("train.yaml",), **{"network_def::channels": [16, 32, 64, 128, 128]})
    other = parameters(("train.yaml", "unet3d.yaml"), **{"network_def::filters": [32, 64, 128, 180]})
    assert set(TINY_UNET3D) == {"network_def::filters"}
    assert ours == sum(p.numel() for p in DSMUNet(1, 3).parameters()) == 1_216_283
    assert ours <= 0.28 * other
