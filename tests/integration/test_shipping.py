"""A bundle's way to its user: packed, served over HTTP, downloaded by MONAI and by us, verified, run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundle_folders import tree
from commands import bundle_run, monai_bundle
from file_server import FileServer
from monai.transforms import LoadImage

from monai_kd.hub import fetch_bundle, index_bundles, pack_bundle, verify_bundle

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", ["teacher", "student", "distill-dsm", "mtcm-kd", "gkd", "mtms-kd"])
def test_a_packed_bundle_arrives_whole_and_segments_like_the_original(repository, data_for, tmp_path, name):
    (tmp_path / "www").mkdir()
    packed = pack_bundle(repository / "bundles" / name, tmp_path / "www")
    with FileServer(tmp_path / "www") as web:
        index = tmp_path / "www" / "model_info.json"
        assert index_bundles([packed.path], web.url, index) == [f"{name}_v0.1.0"]
        assert json.loads(index.read_text())[f"{name}_v0.1.0"]["sha256"] == packed.sha256
        fetched = fetch_bundle(f"{web.url}/model_info.json", tmp_path / "ours", name)
        address = f"{web.url}/{packed.path.name}"
        place = str(tmp_path / "theirs")
        monai_bundle(tmp_path / "cwd", "download", "--name", name, "--url", address, "--bundle_dir", place)
    assert tree(fetched) == tree(tmp_path / "theirs" / name)
    failed = [check for check in verify_bundle(fetched, None, None) if not check.passed]
    assert failed == []
    labels = []
    images = data_for(name, images=True)
    for bundle in (repository / "bundles" / name, fetched):
        out = tmp_path / f"out{len(labels)}"
        bundle_run(bundle, ["inference.yaml"], tmp_path / "cwd", dataset_dir=images, output_dir=out)
        labels.append([np.asarray(LoadImage()(path)) for path in sorted(Path(out).glob("*_seg.*"))])
    assert len(labels[0]) == len(labels[1]) == 2
    assert all(np.array_equal(one, other) for one, other in zip(*labels, strict=True))
