"""The losses of distill-dsm and what is kept of a mask: no loss below 0, nothing chosen by the label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flows import first_batches, get, ready
from monai.data import DataLoader, MetaTensor

SMALL = {"epochs": 1, "batch_size": 1, "patch_size": [16, 16, 8]}


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "bundles" / "distill-dsm"


@pytest.mark.parametrize("names", [("train.yaml",), ("train.yaml", "sigmoid.yaml")], ids=["softmax", "sigmoid"])
def test_perfect_logits_cost_nothing_and_no_logits_less(bundle, workflow, names):
    """The reference takes the Dice of raw logits, which falls below 0 without end."""
    flow = workflow(bundle, names, **SMALL)
    terms = get(flow, "distiller").terms
    index = torch.randint(0, 3, (1, 1, 8, 8, 4), generator=torch.Generator().manual_seed(0))
    classes = torch.nn.functional.one_hot(index[:, 0], 3).movedim(-1, 1).float()
    regions = len(names) > 1
    label, truth = (classes[:, 1:], classes[:, 1:]) if regions else (index.float(), classes)
    perfect = 100 * (2 * truth - 1)

    def total(logits: torch.Tensor) -> float:
        return sum(float(term.loss(logits, label)) for term in terms.values())

    assert 0 <= total(perfect) < 1e-3
    assert total(-perfect) > 10
    for scale in (0.1, 1.0, 10.0, 1000.0):
        noise = scale * torch.randn(perfect.shape, generator=torch.Generator().manual_seed(1))
        assert total(noise) > 0.1
        assert total(perfect + noise.abs() * perfect.sign()) >= 0


@pytest.mark.parametrize("names", [("train.yaml",), ("train.yaml", "left_atrium.yaml")], ids=["1 mm", "1.25 mm"])
def test_a_mask_keeps_its_volume_through_resampling(bundle, workflow, names):
    flow = workflow(bundle, names, **SMALL, spacing_mm=[1.3, 1.3, 1.3])
    case = get(flow, "train::dataset::data")[0]
    load, first, *others = get(flow, "train::preprocessing").transforms
    raw = first(load(case))
    worked = raw
    for transform in others[:2]:  # orientation and spacing
        worked = transform(worked)
    volumes_mm3 = [float((item["label"] > 0).sum()) * np.prod(item["label"].pixdim.numpy()) for item in (raw, worked)]
    assert volumes_mm3[1] == pytest.approx(volumes_mm3[0], rel=0.05)
    assert raw["label"].shape != worked["label"].shape


def test_no_slice_is_chosen_by_the_label(bundle, workflow):
    """The reference scores the slices that hold the organ; here a label of nothing leaves the prediction as it is."""
    flow = ready(workflow(bundle, ("train.yaml",), **SMALL))
    first_batches(flow, 1)
    evaluator = get(flow, "validate::evaluator")
    data = get(flow, "validate::dataset")
    seen = []
    evaluator.network.register_forward_hook(lambda module, given, made: seen.append(given[0].clone()))
    item = data[0]
    slices = item["image"].shape[-1]
    for label in (item["label"], MetaTensor(torch.zeros_like(item["label"]), meta=item["label"].meta)):
        evaluator.data_loader = DataLoader([{"image": item["image"], "label": label}], batch_size=1)
        evaluator.run()
    half = len(seen) // 2
    assert half >= 1
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))
    assert sum(given.shape[0] * given.shape[-1] for given in seen[:half]) >= slices
