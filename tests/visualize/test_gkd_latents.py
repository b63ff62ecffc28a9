"""From photographs and weights to the tables of latents: what is cut, measured, recorded and shown."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, RandGaussianNoise, RandScaleIntensity, RandShiftIntensity
from torch import nn

from monai_kd.data import make_vessel_phantoms
from monai_kd.handlers.provenance import file_sha256
from monai_kd.metrics import frechet_semantic_distance
from monai_kd.visualize import write_tables
from monai_kd.visualize.latents_table import latents_markdown, latents_table


def network(cosine: float, fsd: float) -> dict[str, Any]:
    distances = {"value": 100 * fsd, "relative": fsd, "by_chance": 0.125}
    return {
        "cosine": {"contrast": cosine, "noise": 0.5},
        "sample_cosine": 0.25,
        "silhouette": -0.0625,
        "reliance": 0.00123,
        "source_variance": 100.0,
        "fsd": {"STARE": distances, "DRIVE": {**distances, "relative": 2 * fsd}},
    }


RECORD: dict[str, Any] = {
    "seed": 7,
    "source": "CHASE_DB1",
    "targets": ["STARE", "DRIVE"],
    "patch_size": [128, 96],
    "patches": {"CHASE_DB1": 64, "STARE": 60, "DRIVE": 62},
    "photographs": {"CHASE_DB1": 8, "STARE": 20, "DRIVE": 19},
    "views": ["contrast", "noise"],
    "latent": [128, 16],
    "chance_rounds": 20,
    "networks": {"teacher": network(0.875, 0.25), "student before": network(0.75, 0.5)},
}


@pytest.fixture(scope="module")
def benchmark(repository: Path) -> Iterator[ModuleType]:
    """The benchmark's module: what it measures is what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        yield importlib.import_module("gkd_latents")


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_networks_stand_under_each_other():
    table = latents_markdown(RECORD)
    assert "| network | cosine, contrast | cosine, noise | of samples | silhouette of views | bottleneck |" in table
    assert "| teacher | 0.875 | 0.500 | 0.250 | -0.062 | 0.0012 |" in table
    assert "| student before | 0.750 |" in table
    assert "| network | FSD, STARE | relative | by chance | FSD, DRIVE | relative | by chance |" in table
    assert "| teacher | 25 | 0.250 | 0.125 | 25 | 0.500 | 0.125 |" in table
    assert "| student before | 50 | 0.500 | 0.125 | 50 | 1.000 | 0.125 |" in table
    assert "64 patches of 128 x 96 pixels of 8 test photographs of CHASE_DB1" in table
    assert "2 views (seed 7). Latents of 128 x 16 numbers." in table
    assert "STARE 60 patches of 20 photographs; DRIVE 62 patches of 19 photographs." in table


def test_tables_follow_their_file_and_documents_ask_for_it(tmp_path):
    path = tmp_path / "gkd" / "latents.json"
    assert latents_table(path) == "No results recorded."
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"latents\.json' is no record of latents: KeyError"):
        latents_table(path)
    path.write_text(json.dumps(RECORD))
    page = tmp_path / "page.md"
    page.write_text("<!-- >>> results: gkd_latents -->\n<!-- <<< results -->")
    assert write_tables(tmp_path, [page]) == [page]
    assert "| teacher | 0.875 |" in page.read_text()
    other = copy.deepcopy(RECORD)
    other["networks"]["teacher"]["cosine"]["contrast"] = 0.125
    path.write_text(json.dumps(other))
    assert write_tables(tmp_path, [page]) == [page]
    assert "| teacher | 0.125 |" in page.read_text()


# ---- patches --------------------------------------------------------------------------------------------------------


def test_grid_lies_in_the_middle_of_the_field_of_view(benchmark):
    field = torch.zeros(40, 60)
    field[4:36, 10:49] = 1  # 32 x 39: two patches of 16 down, two across and 7 left over
    assert benchmark.grid_corners(field, (16, 16)) == [(4, 13), (4, 29), (20, 13), (20, 29)]
    field[4:36, 10:59] = 1  # 49 across: three, and one left over
    assert {x for _, x in benchmark.grid_corners(field, (16, 16))} == {10, 26, 42}
    # a field that is cut off: no patch leaves the image
    assert benchmark.grid_corners(torch.ones(40, 16), (16, 16)) == [(4, 0), (20, 0)]
    with pytest.raises(ValueError, match=r"\(40, 15\) pixels holds no patch of \(16, 16\)"):
        benchmark.grid_corners(torch.ones(40, 15), (16, 16))


def test_patches_need_half_a_field_of_view_and_a_vessel(benchmark):
    image = torch.arange(3 * 4 * 4.0).reshape(1, 4, 12)
    field, label = torch.ones(1, 4, 12), torch.zeros(1, 4, 12)
    label[..., 1, 1] = label[..., 1, 5] = 1  # none in the third patch
    assert [float(patch[0, 0, 0]) for patch in benchmark.usable_patches(image, label, field, (4, 4))] == [0.0, 4.0]
    field[:, :2, 4:8] = 0  # half
    assert len(benchmark.usable_patches(image, label, field, (4, 4))) == 2
    field[:, 2, 4] = 0
    assert [float(patch[0, 0, 0]) for patch in benchmark.usable_patches(image, label, field, (4, 4))] == [0.0]
    with pytest.raises(ValueError, match=r"\[\(4, 12\), \(4, 11\), \(4, 12\)\] pixels; bring them to one grid"):
        benchmark.usable_patches(image, label[..., 1:], field, (4, 4))


def test_all_photographs_give_as_many_patches_as_they_have(benchmark):
    chosen = benchmark.spread_evenly([9, 2, 0, 9], limit=10, seed=0)
    counts = [sum(photograph == number for photograph, _ in chosen) for number in range(4)]
    assert counts == [4, 2, 0, 4]
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen) == benchmark.spread_evenly([9, 2, 0, 9], limit=10, seed=0)
    assert chosen != benchmark.spread_evenly([9, 2, 0, 9], limit=10, seed=1)
    assert len(benchmark.spread_evenly([9, 2, 0, 9], limit=100, seed=0)) == 20


def test_views_follow_the_seed_and_the_first_is_the_patch(benchmark):
    patches = torch.rand(3, 1, 8, 8)
    noise = RandGaussianNoise(prob=1.0, std=0.4)
    one, again, other = (benchmark.make_views(patches, [noise, noise], seed) for seed in (0, 0, 1))
    assert one.shape == (3, 3, 1, 8, 8)
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert torch.equal(one[:, 0], patches)
    assert not torch.equal(one[:, 1], other[:, 1])
    assert not torch.equal(one[0, 1] - patches[0], one[1, 1] - patches[1])


def test_views_have_names_of_their_own(benchmark):
    noise = RandGaussianNoise(prob=1.0)
    transforms = [noise, Compose([RandScaleIntensity(0.1), noise]), noise, RandShiftIntensity(0.1)]
    assert benchmark.view_names(transforms) == ["noise", "RandScaleIntensity", "noise 2", "RandShiftIntensity"]


# ---- latents --------------------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """Features are the image, a latent its mean; in training mode it is another."""

    def encode(self, image: torch.Tensor) -> Any:
        return image + float(self.training), None


class Latent(nn.Module):
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3))[..., None] + float(self.training)


def test_latents_are_of_each_view_in_evaluation_mode(benchmark):
    views = torch.rand(5, 3, 2, 4, 4)
    found = benchmark.latents_of(benchmark.Aligned(Mean(), Latent()), views, batch_size=4)
    torch.testing.assert_close(found, views.mean(dim=(3, 4))[..., None])


def test_measures_are_of_the_anchors_and_their_views(benchmark):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(20, 3, 2, 4, generator=generator)
    source[:, 1] = 3 * source[:, 0]
    source[:, 2] = -source[:, 0]
    near, far = (torch.randn(20, 1, 2, 4, generator=generator) + shift for shift in (0.0, 2.0))
    found = benchmark.measure(source, {"near": near, "far": far}, ["noise", "blur"], seed=0)
    assert found["cosine"] == pytest.approx({"noise": 1.0, "blur": -1.0})
    assert found["source_variance"] == pytest.approx(float(source[:, 0].flatten(1).var(dim=0).sum()))
    far_value = frechet_semantic_distance(source[:, 0], far[:, 0])
    assert found["fsd"]["far"]["value"] == pytest.approx(far_value)
    assert found["fsd"]["far"]["relative"] == pytest.approx(far_value / found["source_variance"])
    assert found["fsd"]["far"]["relative"] > 3 * found["fsd"]["far"]["by_chance"]
    assert found["fsd"]["near"]["relative"] < 2 * found["fsd"]["near"]["by_chance"]
    assert found == benchmark.measure(source, {"near": near, "far": far}, ["noise", "blur"], seed=0)


def test_relative_distances_do_not_depend_on_the_scale_of_latents(benchmark):
    source, target = torch.randn(2, 20, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    one, ten = (benchmark.distance(a * source, a * target, a**2 * 8.0, seed=0) for a in (1.0, 10.0))
    assert ten["value"] == pytest.approx(100 * one["value"])
    assert [ten[key] for key in ("relative", "by_chance")] == pytest.approx(
        [one[key] for key in ("relative", "by_chance")]
    )


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(repository: Path, tmp_path: Path) -> Path:
    """A copy of the bundle's configuration, for small photographs and networks, with random weights."""
    (configs,) = repository.glob("bundles/*gkd/configs/train.yaml")
    content = ConfigParser.load_config_file(str(configs))
    content.update(diameter=128, patch_size=[32, 32], latent_channels=8, latent_length=4)
    content["teacher_def"]["channels"] = [4, 4, 4, 4, 8]
    folder = tmp_path / "bundle"
    for name in ("configs", "models/stages"):
        (folder / name).mkdir(parents=True)
    ConfigParser.export_config_file(content, str(folder / "configs" / "train.yaml"), fmt="yaml")
    config, files = ConfigParser(content), {"teacher": "stages/teacher", "aligned": "stages/alignment"}
    for network_id, file in files.items():
        torch.manual_seed(0)
        torch.save(config.get_parsed_content(f"{network_id}_def").state_dict(), folder / "models" / f"{file}.pt")
    student = config.get_parsed_content("network_def")
    for seed, file in enumerate(("stages/scratch", "model", "augmentation")):
        torch.manual_seed(seed)
        for weights in student.parameters():
            nn.init.normal_(weights, std=0.1)
        torch.save(student.state_dict(), folder / "models" / f"{file}.pt")
    return folder


def test_from_photographs_and_weights_to_tables_and_a_picture(benchmark, bundle, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    data = make_vessel_phantoms(tmp_path / "data", num_train=3, num_test=2, size=128, progress=False)
    monkeypatch.setenv("MONAI_KD_DATA", str(data))
    models, out = bundle / "models", tmp_path / "docs" / "gkd"
    options = ["--bundle", str(bundle), "--out", str(out), "--patches", "6", "--perplexity", "3", "--threads", "1"]
    monkeypatch.setattr(benchmark, "CHANCE_ROUNDS", 2)
    figures = []
    monkeypatch.setattr(benchmark, "save_figure", lambda figure, path: figures.append(figure) or path)
    benchmark.main([*options, "--further", f"augmentation={models / 'augmentation.pt'}"])
    record = json.loads((out / "latents.json").read_text())
    names = ["teacher", "student before", "student after", "augmentation"]
    assert list(record["networks"]) == names
    assert (record["source"], record["targets"]) == ("CHASE_DB1", ["STARE", "DRIVE"])
    assert record["patches"] == {"CHASE_DB1": 6, "STARE": 6, "DRIVE": 6}
    assert record["photographs"] == {"CHASE_DB1": 2, "STARE": 2, "DRIVE": 2}
    assert record["chance_rounds"] == 2
    assert record["views"] == ["contrast", "noise", "blur", "bias field"]
    assert record["weights"] == {
        "teacher": file_sha256(models / "stages" / "teacher.pt"),
        "student before": file_sha256(models / "stages" / "scratch.pt"),
        "alignment": file_sha256(models / "stages" / "alignment.pt"),
        "student after": file_sha256(models / "model.pt"),
        "augmentation": file_sha256(models / "augmentation.pt"),
    }
    values = [found["fsd"]["STARE"]["value"] for found in record["networks"].values()]
    assert len(set(values)) == 4  # each network's own weights
    assert all(np.isfinite(values))
    (figure,) = figures
    assert [panel.get_title(loc="left") for panel in figure.axes] == names
    assert [len(drawn.get_offsets()) for drawn in figure.axes[0].collections] == [6] * 5
    assert str(tmp_path) not in (out / "latents.json").read_text()
    assert latents_table(out / "latents.json") in capsys.readouterr().out
    # a student that does not exist is named before any photograph is read
    monkeypatch.setattr(benchmark, "cut_patches", None)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        benchmark.main([*options, "--student", str(tmp_path / "nowhere.pt")])


def test_the_command_says_what_it_needs(benchmark, monkeypatch, capsys):
    monkeypatch.delenv("MONAI_KD_DATA", raising=False)
    with pytest.raises(SystemExit):
        benchmark.main([])
    assert "set MONAI_KD_DATA to the folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--further", "teacher=other.pt"])
    assert "'teacher=other.pt' is no NAME=PATH with a name of its own" in capsys.readouterr().err
