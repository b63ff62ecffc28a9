"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from brain_tumors import brain_tumors
from monai.utils import set_determinism
from other_data import with_one_class
from vessels import vessel_photographs

# two threads cost more than they bring on networks this small
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _release_the_random_state() -> Iterator[None]:
    """A workflow or a test may fix it; the next test draws anew."""
    yield
    set_determinism(None)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def bundles(repository: Path) -> list[Path]:
    """Every bundle folder; the two ends of a distillation must be among them."""
    found = sorted(path.parent.parent for path in repository.glob("bundles/[!_]*/configs/metadata.json"))
    assert {"teacher", "student"} <= {path.name for path in found}
    return found


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MSD-layout folder of 6 labelled and 2 unlabelled phantoms."""
    from monai_kd.data import make_phantoms

    return make_phantoms(tmp_path_factory.mktemp("phantoms") / "data", num_train=6, num_test=2, progress=False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, or a loud skip."""
    folder = os.environ.get("MONAI_KD_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MONAI_KD_DATA is not set to a folder: this test needs real data")
    return Path(folder)


@pytest.fixture(scope="session")
def data_for(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what a bundle trains on, or with ``images=True`` what it segments: a folder, or one with ``imagesTs``."""
    made = {
        "mtcm-kd": brain_tumors(tmp_path_factory.mktemp("tumors") / "data"),
        "gkd": vessel_photographs(tmp_path_factory.mktemp("vessels") / "data"),
        "mtms-kd": (one_class := with_one_class(phantoms, tmp_path_factory.mktemp("one_class") / "data"), one_class),
    }
    return lambda bundle, images=False: made.get(bundle, (phantoms, phantoms))[images]
