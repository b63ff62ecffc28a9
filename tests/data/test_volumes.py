"""Facts of volumes: what is read, and when a file is read again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_kd.data import read_volumes, volume_facts, volumes

AFFINE = np.array([[-1.0, 0, 0, 10], [0, 2.0, 0, -5], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))


def test_channels_shape_affine_and_values_are_those_of_the_file(tmp_path):
    label = np.zeros((4, 5, 6), np.uint8)
    label[0, 0, 0], label[1, 1, 1] = 2, 7
    facts = volume_facts(save(tmp_path / "label.nii.gz", label), is_label=True)
    assert (facts.channels, facts.shape, facts.values, facts.error) == (1, (4, 5, 6), (0.0, 2.0, 7.0), "")
    np.testing.assert_allclose(np.reshape(facts.affine, (4, 4)), AFFINE)
    several = volume_facts(save(tmp_path / "image.nii", np.zeros((4, 5, 6, 3), np.float32)), is_label=False)
    assert (several.channels, several.shape, several.values) == (3, (4, 5, 6), ())


def test_nan_and_infinite_voxels_are_counted(tmp_path):
    image = np.zeros((3, 3, 3), np.float32)
    image[0, 0, :2] = np.nan, np.inf
    assert volume_facts(save(tmp_path / "image.nii.gz", image), is_label=False).not_finite == 2


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_truncated_file_is_an_error_among_the_facts(tmp_path, ending):
    rng = np.random.default_rng(0)
    path = Path(save(tmp_path / f"image{ending}", rng.normal(size=(20, 20, 20)).astype(np.float32)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    facts = volume_facts(str(path), is_label=False)
    assert facts.error
    assert facts.shape == ()


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are really read."""
    names: list[str] = []
    original = volumes.volume_facts

    def counted(path, is_label):
        names.append(os.path.basename(path))
        return original(path, is_label)

    monkeypatch.setattr(volumes, "volume_facts", counted)
    return names


def test_a_second_call_reads_nothing_and_a_changed_file_is_read_again(tmp_path, reads):
    image = save(tmp_path / "image.nii.gz", np.ones((3, 3, 3), np.float32))
    label = save(tmp_path / "label.nii.gz", np.ones((3, 3, 3), np.uint8))
    first = read_volumes(tmp_path, [image], [label], progress=False)
    assert sorted(reads) == ["image.nii.gz", "label.nii.gz"]
    reads.clear()
    assert read_volumes(tmp_path, [image], [label], progress=False) == first
    assert reads == []
    os.utime(label)  # touched, the same bytes: its sha256 is enough
    assert read_volumes(tmp_path, [image], [label], progress=False) == first
    assert reads == []
    save(tmp_path / "label.nii.gz", np.full((3, 3, 3), 5, np.uint8))
    assert read_volumes(tmp_path, [image], [label], progress=False)[label].values == (5.0,)
    assert reads == ["label.nii.gz"]


def test_a_damaged_file_is_read_again_each_time(tmp_path, reads):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(b"no volume")
    for _ in range(2):
        assert read_volumes(tmp_path, [str(path)], [], progress=False)[str(path)].error
    assert reads == ["image.nii.gz"] * 2


@pytest.mark.parametrize("content", ["no json", '{"version": 0, "volumes": {}}', "[]", '{"version": 1}', "ENTRY"])
def test_an_unreadable_or_outdated_cache_is_replaced(tmp_path, reads, content):
    image = save(tmp_path / "image.nii.gz", np.ones((3, 3, 3), np.float32))
    cache = volumes.cache_file(tmp_path)
    cache.parent.mkdir(parents=True)
    if content == "ENTRY":  # of another form
        content = json.dumps({"version": 1, "volumes": {volumes._key(image, False): {"stamp": [], "sha256": ""}}})
    cache.write_text(content)
    for _ in range(2):
        read_volumes(tmp_path, [image], [], progress=False)
    assert reads == ["image.nii.gz"]


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, reads, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "file"))
    image = save(tmp_path / "image.nii.gz", np.ones((3, 3, 3), np.float32))
    for _ in range(2):
        assert read_volumes(tmp_path, [image], [], progress=False)[image].shape == (3, 3, 3)
    assert len(reads) == 2


def test_what_was_read_before_an_interruption_is_kept(tmp_path, reads, monkeypatch):
    images = [save(tmp_path / f"image{n}.nii.gz", np.ones((3, 3, 3), np.float32)) for n in range(6)]
    counted = volumes.volume_facts

    def interrupted(path, is_label):
        if len(reads) == 3:
            raise KeyboardInterrupt
        return counted(path, is_label)

    monkeypatch.setattr(volumes, "volume_facts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_volumes(tmp_path, images, [], progress=False)
    assert len(json.loads(volumes.cache_file(tmp_path).read_text())["volumes"]) > 0


def test_a_file_without_permission_is_an_error_among_the_facts(tmp_path, monkeypatch):
    image = save(tmp_path / "image.nii.gz", np.ones((3, 3, 3), np.float32))

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(volumes, "_sha256", denied)  # the tests may run as root, who may read everything
    assert "Permission denied" in read_volumes(tmp_path, [image], [], progress=False)[image].error


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_values_are_the_distinct_ones_whatever_the_type(tmp_path, kind):
    voxels = np.zeros((4, 4, 4), kind)
    voxels[0, 0, :3] = [1, 200, 7]
    path = save(tmp_path / "label.nii.gz", voxels)
    assert read_volumes(tmp_path, [], [path], progress=False)[path].values == (0, 1, 7, 200)


@pytest.mark.parametrize("odd", [0.5, -1.0, 70000.0])
def test_values_that_are_no_small_whole_numbers_are_listed_too(tmp_path, odd):
    voxels = np.zeros((4, 4, 4), np.float32)
    voxels[0, 0, 0] = odd
    path = save(tmp_path / "label.nii.gz", voxels)
    assert set(read_volumes(tmp_path, [], [path], progress=False)[path].values) == {0.0, odd}


def test_two_folders_have_two_caches(tmp_path):
    (tmp_path / "a").mkdir()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert volumes.cache_file(tmp_path / "a") != volumes.cache_file(tmp_path / "b")
