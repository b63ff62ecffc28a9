"""The bundle gkd at work: stages train and hand on, overlays and knobs count, other images arrive, PNG comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, bundle_run
from flows import causes, checksum, first_batches, get, ready, validated
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism
from PIL import Image

from monai_kd.handlers.scalars import raw_scalars
from monai_kd.visualize.documents import GKD_SHIFTS

SMALL = {"epochs": 1, "batch_size": 2, "num_samples": 2, "patch_size": [32, 32]}
STAGES = ("teacher", "scratch", "autoencoder", "alignment")
PARTS = ("intra_only", "inter_only", "graphs_only", "cross_only", "contrastive", "anchor_only", "cached_teacher")
CONTROLS = ("baseline", "augmentation", "logit_kd", "views_kd")
FROZEN = ("teacher", "aligned")


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "bundles" / "gkd"


def student_after(flow: ConfigWorkflow, iterations: int = 3) -> float:
    first_batches(ready(flow), iterations)
    return checksum(get(flow, "network").parameters())


# ---- stages and overlays --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        (),
        *((f"{name}.yaml",) for name in (*STAGES, *PARTS, *CONTROLS, "photometry", "polyps", "liver")),
        *((data, f"{name}.yaml") for data in ("polyps.yaml", "liver.yaml") for name in STAGES),
    ],
    ids=lambda names: "+".join(name.split(".")[0] for name in names) or "train",
)
def test_every_overlay_moves_every_weight_of_what_it_trains_and_scores_it(bundle, workflow, names):
    patch = {"patch_size": [32, 32, 1]} if "liver.yaml" in names else {}
    if {"autoencoder.yaml", "alignment.yaml"} & set(names):
        patch["roi_size"] = "$@patch_size[:2]"  # their own, in place of the tiny one
    flow = ready(workflow(bundle, ("train.yaml", *names), **{**SMALL, **patch}))
    network = get(flow, "network")
    before = {key: value.clone() for key, value in network.named_parameters()}
    batches = first_batches(flow, 3)
    assert all(torch.isfinite(batch["image"]).all() for batch in batches)
    still = [key for key, value in network.named_parameters() if torch.equal(value, before[key])]
    # a convolution before batch normalization has a bias without effect; its gradient is rounding, or nothing
    assert [key for key in still if not key.endswith("bias")] == []
    evaluator = get(flow, "validate::evaluator")
    evaluator.run()
    assert 0.0 <= evaluator.state.metrics["val_mean_dice"] <= 1.0
    assert ("pixels" in evaluator.state.case_summary) == ("liver.yaml" not in names)


def test_distillation_leaves_teacher_and_alignment_networks_alone(bundle, workflow):
    flow = ready(workflow(bundle, ("train.yaml",), **SMALL))
    before = {name: {key: value.clone() for key, value in get(flow, name).state_dict().items()} for name in FROZEN}
    first_batches(flow, 2)
    for name in FROZEN:
        assert all(torch.equal(value, before[name][key]) for key, value in get(flow, name).state_dict().items())


def test_the_method_and_its_controls_start_from_the_scratch_student_and_see_the_same_patches(bundle, workflow):
    seen = {}
    for name in ("train", *CONTROLS, "anchor_only"):
        files = ("train.yaml", *((f"{name}.yaml",) if name != "train" else ()))
        flow = ready(workflow(bundle, files, **SMALL))
        scratch = torch.load(get(flow, "scratch_path"), weights_only=True)
        state = get(flow, "network").state_dict()
        assert all(torch.equal(value, scratch[key]) for key, value in state.items())
        seen[name] = first_batches(flow, 2)
    first = seen.pop("train")
    for batches in seen.values():
        for ours, theirs in zip(first, batches, strict=True):
            for key in ("image", "label", "views"):
                assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key]))


def test_strong_photometry_changes_the_image_and_leaves_the_patch_where_it_is(bundle, workflow):
    plain, strong = (
        first_batches(ready(workflow(bundle, ("train.yaml", "baseline.yaml", *more), **SMALL)), 2)
        for more in ((), ("photometry.yaml",))
    )
    for ours, theirs in zip(plain, strong, strict=True):
        same = {
            key: torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in ("image", "label")
        }
        assert same == {"image": False, "label": True}


def test_arms_that_are_compared_share_the_schedule(bundle, workflow):
    hashes = {}
    others = [(f"{name}.yaml",) for name in (*CONTROLS, *(part for part in PARTS if part != "cached_teacher"))]
    for name in ((), *others, ("baseline.yaml", "photometry.yaml"), ("logit_kd.yaml", "photometry.yaml")):
        files = ("train.yaml", *name)
        flow = ready(workflow(bundle, files, **SMALL))
        (record,) = (
            handler.content for handler in get(flow, "train::handlers") if type(handler).__name__ == "TrainingRecord"
        )
        hashes[name] = record["schedule_hash"]
    assert len(set(hashes.values())) == 1, hashes


def test_stored_outputs_of_the_teacher_give_the_terms_of_the_live_one(bundle, workflow):
    stored = ready(workflow(bundle, ("train.yaml", "cached_teacher.yaml"), **SMALL, bank_draws=2))
    (batch, *_) = first_batches(stored, 1)
    assert len(batch["image"]) == SMALL["batch_size"] * SMALL["num_samples"]
    assert len(get(stored, "train::dataset")) == 2 * 4 * SMALL["num_samples"]
    live = ready(workflow(bundle, ("train.yaml",), **SMALL))
    given = {key: torch.as_tensor(batch[key]) for key in ("image", "label", "views")}
    extra = {key: batch[key] for key in ("teacher_latents", "teacher_logits")}
    found = []
    for flow, more in ((stored, extra), (live, {})):
        distiller = get(flow, "distiller").eval()
        distiller.student.load_state_dict(torch.load(get(flow, "scratch_path"), weights_only=True))
        found.append(distiller(**given, **more).terms)
    assert found[0].keys() == found[1].keys() == {"seg", "intra", "inter", "cross_encoder", "cross_decoder"}
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)
    assert get(stored, "train::trainer").state.epoch_length == get(live, "train::trainer").data_loader.__len__()


def test_missing_weights_of_a_stage_stop_before_any_data_is_read(bundle, workflow):
    for name in ("scratch_path", "teacher_path", "alignment_path"):
        flow = workflow(bundle, ("train.yaml",), **SMALL, dataset_dir="nowhere", **{name: "gone.pt"})
        with pytest.raises(Exception, match=r"\w") as caught:
            ready(flow)
        assert "weights 'gone.pt' do not exist; train them first" in causes(caught.value), name


# ---- knobs ----------------------------------------------------------------------------------------------------------

KNOBS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"clip_limit": 0.0}, ()),
    ({"diameter": 100}, ()),
    ({"warm_up": 0.5}, ()),
    ({"weight_decay": 10.0}, ()),
    ({"num_samples": 3}, ()),
    ({"schedules": {"intra": {"ramp": 1.0}}}, ()),
    ({"latent_channels": 64}, ()),
    ({"latent_length": 1}, ()),
    ({"grid": 4}, ()),
    ({"latent_hidden": 32}, ()),
    ({"anchor_photometry": "@strong_photometry"}, ()),
    ({"strong_photometry::transforms::5::std": 2.0}, ("photometry.yaml",)),
    ({"freeze_alignment": False}, ()),
    ({"graph_form": "contrastive"}, ()),
    ({"graph_center": True}, ()),
    ({"graph_tau": 1.0}, ("contrastive.yaml",)),
    ({"graph_scope": "views"}, ("contrastive.yaml",)),
    ({"bank_draws": 1}, ("cached_teacher.yaml",)),
    ({"loss::lambda_ce": 0.5}, ()),
]


@pytest.mark.parametrize(("changed", "names"), KNOBS, ids=lambda value: "-".join(value))
def test_a_knob_changes_what_is_learned(bundle, workflow, changed, names):
    base = student_after(workflow(bundle, ("train.yaml", *names), **{**SMALL, "epochs": 2}))
    assert student_after(workflow(bundle, ("train.yaml", *names), **{**SMALL, "epochs": 2, **changed})) != base


def test_detached_skips_count_where_skips_carry_a_gradient(bundle, workflow):
    net = {"_target_": "monai_kd.networks.nets.PlainUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    given = {**SMALL, "network_def": {**net, "channels": [4, 8, 8, 8]}, "student_features": 8}
    found = [student_after(workflow(bundle, ("train.yaml",), **given, detach_skips=detached)) for detached in (0, 1)]
    assert found[0] != found[1]


def test_windows_of_validation_count(bundle, workflow):
    def logits(**overrides: Any) -> float:
        set_determinism(0)
        return validated(ready(workflow(bundle, ("train.yaml",), **{**SMALL, "diameter": 100, **overrides})))

    base = logits()
    assert logits() == base
    assert logits(roi_size=[48, 48]) != base
    assert logits(overlap=0.0) != base


def test_every_shift_changes_the_photograph_and_only_that(bundle, workflow, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"never opened")
    files = ("train.yaml", "evaluate.yaml", "shifts.yaml")

    def item(**overrides: Any) -> dict[str, torch.Tensor]:
        set_determinism(0)
        flow = workflow(bundle, files, ckpt_path=str(tmp_path / "weights.pt"), **overrides)
        found = get(flow, "validate::dataset")[0]
        return {key: torch.as_tensor(found[key]) for key in ("image", "label", "fov")}

    plain = item(shift={"_target_": "Identityd", "keys": "image"})
    names = list(get(workflow(bundle, files, ckpt_path="x"), "shifts"))
    assert len(names) >= 5
    assert set(GKD_SHIFTS) == {"retina", *(f"retina_{name}" for name in names)}  # the table has them all
    images = [plain["image"]]
    for name in names:
        shifted = item(shift_name=name)
        assert torch.equal(shifted["label"], plain["label"])
        assert torch.equal(shifted["fov"], plain["fov"])
        assert torch.equal(shifted["image"], item(shift_name=name)["image"]), "the same for every model"
        assert all((shifted["image"] - other).abs().mean() > 0.01 for other in images), name
        images.append(shifted["image"])


# ---- inference ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_photographs_of_any_format_become_png_masks_of_their_own_size(bundle, data_for, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    first, second = (Image.open(path).convert("RGB") for path in sorted(data_for("gkd", images=True).iterdir()))
    first.save(folder / "a.png")
    second.resize((130, 110)).save(folder / "b.jpg", quality=95)
    first.save(folder / "c.tif")
    given = {**TINY["gkd"], "dataset_dir": folder, "output_dir": tmp_path / "out", "load_pretrain": False}
    bundle_run(bundle, ["inference.yaml"], tmp_path / "cwd", **given)
    masks = {path.name: np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").iterdir())}
    assert list(masks) == ["a_seg.png", "b_seg.png", "c_seg.png"]
    assert {name: mask.shape for name, mask in masks.items()} == {
        "a_seg.png": first.size[::-1],
        "b_seg.png": (110, 130),
        "c_seg.png": first.size[::-1],
    }
    for name, mask in masks.items():
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}, name
    assert np.array_equal(masks["a_seg.png"], masks["c_seg.png"])
    corner = 4
    assert not masks["a_seg.png"][:corner, :corner].any(), "outside of the field of view"


class Blur(torch.nn.Module):
    """Fully convolutional, reaches 3 pixels far."""

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(0)) / 7
        self.register_buffer("kernel", kernel)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(image, [3] * 4, mode="replicate")
        return torch.nn.functional.conv2d(padded, self.kernel)


def test_windows_leave_no_seam(bundle, workflow):
    flow = workflow(bundle, ("train.yaml",), roi_size=[64, 64])
    image = torch.randn(1, 1, 160, 150, generator=torch.Generator().manual_seed(1))
    image = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    network = Blur()
    with torch.no_grad():
        whole, windows = network(image), get(flow, "validate::inferer")(image, network)
    step = (whole[..., 1:] - whole[..., :-1]).abs().mean()
    # a window's border differs by its padding, and the Gaussian weighs it down; not at the border of the image, where
    # MONAI's least weight makes all windows alike
    error = (windows - whole).abs()[..., 16:-16, 16:-16]
    assert error.max() < 0.1 * step
    hard = get(workflow(bundle, ("train.yaml",), roi_size=[64, 64], overlap=0.0), "validate::inferer")
    with torch.no_grad():
        seams = (hard(image, network) - whole).abs()[..., 16:-16, 16:-16]
    assert seams.max() > 10 * error.max(), "the check can fail"


def test_losses_of_a_batch_have_a_name_each(bundle, workflow):
    flow = ready(workflow(bundle, ("train.yaml",), **SMALL))
    trainer, found = get(flow, "train::trainer"), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: found.append(raw_scalars(engine.state.output)))
    first_batches(flow, 2)
    assert {"seg", "intra", "inter", "cross_encoder", "cross_decoder", "loss"} <= found[0].keys()
    assert all(np.isfinite(value) for value in found[0].values())
