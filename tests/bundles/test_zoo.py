"""The networks of slices as teachers and students: each with every classic distiller, and from training to export."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from commands import bundle_run, tiny_overrides
from flows import causes, get, ready
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR
from monai.transforms import Compose
from other_data import with_one_class
from test_configs import NETWORKS
from torch import nn

from monai_kd.data import CaseSplit
from monai_kd.export import Limits, export_bundle
from monai_kd.hub import materialize_run
from monai_kd.networks import nets

ALL = pytest.mark.integration
QUICK: dict[str, Any] = {"patch_size": [64, 64], "epochs": 1, "num_samples": 2}
# random weights: labels flip where two classes are equally likely
ROUGH = {"onnx": Limits(max_logit_difference=1e-3, min_dice=0.9)}
DISTILLERS = ("kd", "at", "dkd", "dist", "cwd", "review")
# numbers of parameters with 1 channel and 9 classes
PARAMETERS = {
    "attention_unet": 15_076_271,
    "fcn_r18": 12_671_657,
    "fcn_r50": 47_127_337,
    "mednext_b": 10_447_625,
    "mednext_s": 5_472_233,
    "missformer": 35_452_745,
    "swin_unetr": 25_138_323,
    "transunet": 105_277_081,
    "unet_r18": 13_694_185,
    "unet_r50": 50_977_865,
}


@pytest.fixture(scope="module")
def one_class(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_one_class(phantoms, tmp_path_factory.mktemp("one_class") / "data")


def configuration(repository: Path, bundle: str, *names: str, **overrides: Any) -> ConfigParser:
    parser = ConfigParser()
    files = ("train.yaml", "slices.yaml", *(f"{name}.yaml" for name in names))
    parser.read_config([str(repository / "bundles" / bundle / "configs" / name) for name in files])
    parser.read_meta(str(repository / "bundles" / bundle / "configs" / "metadata.json"))
    for key, value in overrides.items():
        parser[key] = value
    return parser


@pytest.mark.parametrize("name", NETWORKS)
def test_the_overlay_builds_the_published_network_with_channels_and_classes_of_the_data(repository, name):
    classes = ["background", *(f"organ {number}" for number in range(8))]
    parser = configuration(repository, "teacher", f"networks/{name}", class_names=classes)
    with torch.device("cpu" if name == "swin_unetr" else "meta"):  # which asks for values of what it has drawn
        network = parser.get_parsed_content("network_def")
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    assert isinstance(network, SwinUNETR) or type(network) is getattr(nets, type(network).__name__)


def test_both_bundles_have_the_same_networks(repository):
    for name in NETWORKS:
        texts = {
            (repository / "bundles" / bundle / "configs" / "networks" / f"{name}.yaml").read_text()
            for bundle in ("teacher", "student")
        }
        assert len(texts) == 1


@pytest.mark.parametrize(("name", "distiller"), list(itertools.product(NETWORKS, DISTILLERS)))
@pytest.mark.filterwarnings("ignore:.*two classes:UserWarning")
def test_two_steps_of_every_distiller_are_finite_and_every_term_pulls(
    repository, tiny_teacher_of_slices, name, distiller
):
    files = (f"networks/{name}", f"distillers/{distiller}")
    overrides: dict[str, Any] = {"teacher_root": str(tiny_teacher_of_slices), "device": torch.device("cpu")}
    tiny = tiny_overrides("student", ("slices.yaml", f"networks/{name}.yaml"))
    parser = configuration(repository, "student", *files, **overrides, **tiny, patch_size=[64, 64])
    # what the schedule counts steps of, without reading data
    parser["train::dataloader"], parser["train::trainer::max_epochs"] = [0, 1], 1
    torch.manual_seed(0)
    found = parser.get_parsed_content("distiller")
    assert isinstance(found, nn.Module)
    optimizer, schedule = (parser.get_parsed_content(key) for key in ("optimizer", "lr_scheduler"))
    before = {key: value.clone() for key, value in found.student.named_parameters()}
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(2, 1, 64, 64, generator=generator)
        label = torch.nn.functional.interpolate(torch.rand(2, 1, 8, 8, generator=generator).round(), scale_factor=8)
        found.train()
        views = found.views(image, label)
        values = found.term_values(views)
        assert len(values) == 2
        for term, value in values.items():
            assert torch.isfinite(value), term
            found.zero_grad()
            value.backward(retain_graph=True)
            pull = sum(float(p.grad.abs().sum()) for p in found.student.parameters() if p.grad is not None)
            assert np.isfinite(pull), term
            assert pull > 0, term
        found.zero_grad()
        output = found(image, label)
        assert torch.isfinite(output.loss)
        output.loss.backward()
        optimizer.step()
        schedule.step()
    still = [key for key, value in found.student.named_parameters() if torch.equal(value, before[key])]
    assert len(still) < 0.2 * len(before), still


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_on_slices_and_is_scored_on_volumes(repository, workflow, name):
    bundle = repository / "bundles" / "teacher"
    flow = ready(workflow(bundle, ("train.yaml", "slices.yaml", f"networks/{name}.yaml"), **QUICK))
    before = {key: value.clone() for key, value in get(flow, "network").named_parameters()}
    get(flow, "train::trainer").run()
    still = [key for key, value in get(flow, "network").named_parameters() if torch.equal(value, before[key])]
    assert len(still) < 0.2 * len(before), still
    assert 0.0 <= get(flow, "validate::evaluator").state.metrics["val_mean_dice"] <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name == "unet_r18" else pytest.param(name, marks=ALL) for name in NETWORKS])
def test_a_network_is_trained_scored_materialized_exported_and_segments(repository, one_class, tmp_path, name):
    bundle, run, own, out = repository / "bundles" / "teacher", tmp_path / "run", tmp_path / "own", tmp_path / "out"
    files = ["train.yaml", "slices.yaml", f"networks/{name}.yaml"]
    tiny = {**tiny_overrides("teacher", files), **QUICK, "dataset_dir": one_class, "split_file": "", "run_dir": run}
    bundle_run(bundle, files, tmp_path / "a", ckpt_dir=tmp_path / "models", **tiny)
    scores = {**tiny, "run_dir": tmp_path / "scores", "ckpt_path": run / "model.pt"}
    bundle_run(bundle, [*files, "evaluate.yaml"], tmp_path / "b", **scores)
    assert (tmp_path / "scores" / "metrics.csv").is_file()
    materialize_run(run, own, bundle)
    bundle_run(own, ["inference.yaml"], tmp_path / "c", dataset_dir=one_class, output_dir=out)
    for image in sorted((one_class / "imagesTs").iterdir()):
        found = nibabel.load(out / f"{image.name.removesuffix('.nii.gz')}_seg.nii.gz")
        assert found.shape == nibabel.load(image).shape
        assert np.allclose(found.affine, nibabel.load(image).affine)
        assert set(np.unique(np.asarray(found.dataobj))) <= {0, 1}
    (export,) = export_bundle(own, ["onnx"], images=one_class / "imagesTr", parity_images=1, limits=ROUGH)
    assert export.path.is_file()


@pytest.mark.parametrize("bundle", ["teacher", "student"])
def test_labels_are_never_interpolated(repository, workflow, phantoms, bundle):
    """Whatever is drawn, a label holds only classes that it held before."""
    flow = workflow(
        repository / "bundles" / bundle,
        ("train.yaml", "slices.yaml"),
        class_names=["background", "anterior", "posterior"],
        dataset_dir=str(phantoms),
        patch_size=[64, 64],
        pixel_size=1.3,
    )
    transform = get(flow, "train::preprocessing")
    assert isinstance(transform, Compose)
    cases = CaseSplit(phantoms, split_file="", seed=0).cases("train")
    for _ in range(5):
        for case in cases:
            before = set(np.unique(np.asarray(nibabel.load(case["label"]).dataobj)).astype(int))
            for item in transform(case):
                values = set(np.unique(item["label"].numpy()).tolist())
                assert {int(value) for value in values} <= before
                assert all(float(value).is_integer() for value in values)


def test_a_teacher_of_volumes_is_refused_before_any_data_is_read(repository, workflow, tiny_teacher):
    flow = workflow(repository / "bundles" / "student", ("train.yaml", "slices.yaml"), teacher_root=str(tiny_teacher))
    with pytest.raises(RuntimeError) as caught:
        get(flow, "distiller")
    assert f"teacher '{tiny_teacher}' cannot take the student's patches (1, 1, 128, 128)" in causes(caught.value)
