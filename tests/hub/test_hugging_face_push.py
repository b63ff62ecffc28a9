"""A bundle as a Hugging Face repository, pushed with the real client to a stand-in on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from integration.hub_stand_in import HubStandIn

from monai_kd.hub.hugging_face_push import (
    LATEST_TAG,
    PushedBundle,
    hugging_face_card,
    lay_out_for_hugging_face,
    push_to_hugging_face,
)

REPO = "someone/student"


@pytest.fixture
def bundle(repository: Path, tmp_path: Path) -> Path:
    """A copy of the student with what trainings leave in the folder."""
    ignore = shutil.ignore_patterns("runs", "eval", "previous", "exported", "*.onnx", "*.ts")
    copied = shutil.copytree(repository / "bundles" / "student", tmp_path / "student", ignore=ignore)
    for name in ("runs/one/run.json", "models/previous/model.pt", "eval/image_seg.nii.gz"):
        (copied / name).parent.mkdir(parents=True)
        (copied / name).write_text("{}")
    return copied


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    constants = pytest.importorskip("huggingface_hub", reason="pip install 'monai_kd[hub]'").constants
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubStandIn() as server:
        yield server


def push(hub: HubStandIn, bundle: Path, **options) -> PushedBundle:
    return push_to_hugging_face(bundle, REPO, token=hub.token, endpoint=hub.url, **options)


def set_metadata(bundle: Path, **values) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_card_starts_with_license_library_and_tags_and_goes_on_with_the_model_card(bundle):
    _, front_matter, card = hugging_face_card(bundle).split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "license": "apache-2.0",
        "library_name": "monai",
        "pipeline_tag": "image-segmentation",
        "tags": ["monai", "monai_kd", "medical", "segmentation", "knowledge-distillation"],
    }
    assert card.lstrip().startswith("# Model overview\n")


def test_relative_links_of_the_card_lead_to_the_same_files_from_the_root(bundle):
    docs = bundle / "docs" / "README.md"
    docs.write_text("[a](data_license.txt) ![b](../x.png) [c](https://e.org/y.md) [d](#data) [e](z.md#part)\n")
    card = hugging_face_card(bundle)
    assert card.endswith(
        "[a](docs/data_license.txt) ![b](x.png) [c](https://e.org/y.md) [d](#data) [e](docs/z.md#part)\n"
    )


def test_layout_holds_the_bundle_and_its_card_and_leaves_the_bundle_alone(bundle, tmp_path):
    before = files(bundle)
    out = files(lay_out_for_hugging_face(bundle, tmp_path / "out" / "repository"))
    left = {"runs/one/run.json", "models/previous/model.pt", "eval/image_seg.nii.gz"}
    assert out.pop("README.md").decode() == hugging_face_card(bundle)
    assert out == {name: content for name, content in before.items() if name not in left}
    assert files(bundle) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["repository"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("configs/metadata.json", FileNotFoundError, "has no configs/metadata.json"),
        ("docs/README.md", FileNotFoundError, "has no docs/README.md"),
        ("models/model.pt", FileNotFoundError, "model.pt"),
    ],
)
def test_layout_of_an_incomplete_bundle_is_refused_and_leaves_nothing(bundle, tmp_path, name, error, message):
    (bundle / name).unlink()
    with pytest.raises(error, match=message):
        lay_out_for_hugging_face(bundle, tmp_path / "out" / "repository")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_metadata_without_a_license_is_refused_by_name(bundle, tmp_path):
    set_metadata(bundle, license=None)
    with pytest.raises(ValueError, match="has license None"):
        lay_out_for_hugging_face(bundle, tmp_path / "out")


def test_layout_does_not_overwrite_a_folder(bundle, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="give the name of a new folder"):
        lay_out_for_hugging_face(bundle, tmp_path / "out")


def test_push_makes_a_private_repository_whose_version_and_latest_tag_name_the_bundle(hub, bundle, tmp_path):
    pushed = push(hub, bundle)
    stored = hub.repositories[REPO]
    assert stored.private
    assert pushed == PushedBundle(REPO, "0.1.0", stored.tags["0.1.0"], True)
    assert stored.tags == {"0.1.0": pushed.commit, LATEST_TAG: pushed.commit}
    content = dict(stored.commits[pushed.commit])
    content.pop(".gitattributes")
    assert content == files(lay_out_for_hugging_face(bundle, tmp_path / "out"))
    assert any(method == "PUT" for method, _ in hub.requests), "the weights go through LFS"


def test_latest_tag_moves_to_a_new_version_and_removed_files_stay_in_the_old_one(hub, bundle):
    first = push(hub, bundle)
    set_metadata(bundle, version="0.2.0")
    (bundle / "configs" / "baseline.yaml").unlink()
    second = push(hub, bundle)
    stored = hub.repositories[REPO]
    assert stored.tags == {"0.1.0": first.commit, "0.2.0": second.commit, LATEST_TAG: second.commit}
    assert "configs/baseline.yaml" in stored.commits[first.commit]
    assert "configs/baseline.yaml" not in stored.commits[second.commit]


def test_an_older_version_pushed_later_does_not_become_the_latest(hub, bundle):
    set_metadata(bundle, version="0.3.0")
    newest = push(hub, bundle)
    set_metadata(bundle, version="0.2.9")
    older = push(hub, bundle)
    assert (newest.latest, older.latest) == (True, False)
    assert hub.repositories[REPO].tags[LATEST_TAG] == newest.commit


def test_pushing_the_same_version_again_changes_nothing(hub, bundle):
    first = push(hub, bundle)
    commits = len(hub.repositories[REPO].commits)
    assert push(hub, bundle) == first
    assert len(hub.repositories[REPO].commits) == commits


@pytest.mark.parametrize("lost", [{"0.1.0", LATEST_TAG}, {LATEST_TAG}])
def test_a_push_that_stopped_before_its_tags_is_completed_by_the_next_one(hub, bundle, lost):
    first = push(hub, bundle)
    for tag in lost:
        del hub.repositories[REPO].tags[tag]
    assert push(hub, bundle) == first
    assert set(hub.repositories[REPO].tags) == {"0.1.0", LATEST_TAG}


def test_a_published_version_with_other_content_is_refused_and_stays(hub, bundle):
    first = push(hub, bundle)
    (bundle / "docs" / "data_license.txt").write_text("other terms")
    with pytest.raises(ValueError, match=r"already has version 0.1.0 with other content \(docs/data_license.txt\)"):
        push(hub, bundle)
    assert hub.repositories[REPO].branches["main"] == first.commit


def test_a_license_that_the_hub_does_not_know_is_refused_before_anything_is_uploaded(hub, bundle):
    set_metadata(bundle, license="Ask us")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        push(hub, bundle)
    assert hub.repositories[REPO].tags == {}


def test_a_wrong_token_is_one_clear_line(hub, bundle):
    with pytest.raises(RuntimeError, match=r"^the Hub did not take 'someone/student' version 0.1.0: .*401"):
        push_to_hugging_face(bundle, REPO, token="hf_wrong", endpoint=hub.url)


def test_an_unreachable_hub_is_one_clear_line(hub, bundle):
    with pytest.raises(RuntimeError, match="did not take"):
        push_to_hugging_face(bundle, REPO, token="hf_x", endpoint="http://127.0.0.1:1")


def test_a_repository_without_an_owner_is_refused(bundle):
    with pytest.raises(ValueError, match="it must be OWNER/NAME"):
        push_to_hugging_face(bundle, "student")
