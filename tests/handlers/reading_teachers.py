"""Teachers whose predictions are written in the image's channels, so that a test knows them to the voxel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monai_kd.distillers import CooperativeDistiller, CooperativeTeachers, Term
from monai_kd.losses import DiceJaccardCE, PerformanceKL
from monai_kd.networks import RouteModalities

NAMES = ("flair", "t2")
REGIONS = {"tumor": [1, 2], "core": [2]}


class Reads(nn.Module):
    """Predict the class index that its one channel holds; a learned scale makes it a network that trains."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.stage = nn.Identity()

    @property
    def tap_stages(self) -> dict[str, str]:
        return {"classes": "stage"}

    def forward(self, image: Tensor) -> Tensor:
        wanted = torch.arange(self.classes, device=image.device).reshape(1, -1, *[1] * (image.ndim - 2))
        return self.scale * self.stage((image.round() == wanted).to(image.dtype))


def make_group(classes: int = 3, fusions: dict[str, nn.Module] | None = None) -> CooperativeTeachers:
    networks = {name: RouteModalities(Reads(classes), [number]) for number, name in enumerate(NAMES)}
    fusions = fusions or {}
    return CooperativeTeachers(networks, fusions, dict.fromkeys(fusions, "classes"))


def make_distiller(classes: int = 3, regions: Any = None, **settings: Any) -> CooperativeDistiller:
    """The student sees the third channel."""
    torch.manual_seed(0)
    seg = DiceJaccardCE()
    kd = PerformanceKL(len(NAMES), regions or REGIONS, **settings)
    targets = [f"teachers/{name}" for name in NAMES]
    terms = {
        "seg": Term(seg),
        "kd": Term(kd, target=targets, weight=0.15, inputs={"available": "available"}),
        **{f"seg_{name}": Term(seg, f"teachers/{name}", inputs={"available": f"available/{name}"}) for name in NAMES},
    }
    student = RouteModalities(nn.Conv2d(1, classes, 1), [2])
    return CooperativeDistiller(student, make_group(classes), terms, side_stages=())


def make_case(label: list[int], flair: list[int], t2: list[int], available: tuple[int, int, int] = (1, 1, 1)) -> dict:
    """A batch of one, of rows of voxels: the label, what two teachers will say, and which channels there are."""
    image = torch.tensor([flair, t2, [0] * len(label)]).float()
    return {
        "image": image.reshape(1, 3, 1, -1),
        "label": torch.tensor(label).reshape(1, 1, 1, -1),
        "available": torch.tensor([available]),
    }
