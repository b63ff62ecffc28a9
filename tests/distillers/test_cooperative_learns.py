"""The whole method learns: four made-up tumors by heart, and a loss that stays where it is when distillation starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import PrepareBatchExtraInput
from monai.utils import set_determinism

from monai_kd.data import brats_phantom_case
from monai_kd.distillers import CooperativeDistiller, CooperativeTeachers, Term
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers import AverageWeights, ClipGradients, PerformanceWeights
from monai_kd.losses import DiceJaccardCE, PerformanceKL, SoftLogitKL
from monai_kd.metrics import confusion_matrix, region_dice
from monai_kd.networks import RouteModalities
from monai_kd.networks.nets import ChannelAttentionResUNet, CooperativeFusion

pytestmark = pytest.mark.slow
MODALITIES = ("flair", "t1ce", "t2", "t1")
TEACHERS = ("flair", "t2", "t1")  # the student sees t1ce
REGIONS = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}
CHANNELS = (4, 8, 12, 16)
SIZE = (24, 24, 24)  # the least that holds a rim
EPOCHS, SWITCH = 36, 10  # of 2 iterations; the last one without distillation


def make_case(index: int) -> dict[str, torch.Tensor]:
    values = {"necrotic_core": 1, "edema": 2, "enhancing_tumor": 3}
    case = brats_phantom_case(0, index, MODALITIES, SIZE, values=values)
    brain = case.image[0] != 0
    channels = [
        (channel - channel[brain].mean()) / channel[brain].std() * brain for channel in case.image.astype(float)
    ]
    return {"image": torch.tensor(np.stack(channels)).float(), "label": torch.tensor(case.label)[None].long()}


def make_distiller() -> CooperativeDistiller:
    def network(channel: str) -> RouteModalities:
        return RouteModalities(ChannelAttentionResUNet(3, 1, 4, CHANNELS, 1, reduction=4), [MODALITIES.index(channel)])

    seg = DiceJaccardCE()
    targets = [f"teachers/{name}" for name in TEACHERS]
    terms = {
        "seg": Term(seg, weight=0.75),
        "kd": Term(PerformanceKL(3, REGIONS), target=targets, weight=0.15, inputs={"available": "available"}),
        "side_seg": Term(seg, "student/side_1", weight=0.07),
        "side_kd": Term(SoftLogitKL(4.0), "student/side_1", "teachers/fused", weight=0.03),
        "cooperation": Term(seg, "teachers/fused", weight=0.08),
        **{f"teach_{name}": Term(seg, f"teachers/{name}") for name in TEACHERS},
    }
    fusion = CooperativeFusion(3, [CHANNELS[1]] * 3, 4, reduction=4)
    group = CooperativeTeachers({name: network(name) for name in TEACHERS}, {"fused": fusion}, {"fused": "decoder_2"})
    return CooperativeDistiller(network("t1ce"), group, terms, staged=True, input_shape=[1, 4, *SIZE])


class Training:
    """The student's part of the loss of each iteration, and Dice of the training cases at the end."""

    def __init__(self) -> None:
        set_determinism(0)
        self.cases = [make_case(index) for index in range(4)]
        self.distiller = make_distiller()
        student, teachers = self.distiller.student, self.distiller.group
        self.average = AverageWeights(student, decay=0.9)
        self.losses: list[float] = []
        trainer = DistillationTrainer(
            device="cpu",
            max_epochs=EPOCHS,
            train_data_loader=DataLoader(Dataset(self.cases), batch_size=2, shuffle=True),
            network=self.distiller,
            optimizer=torch.optim.AdamW(self.distiller.parameters(), lr=1e-2),
            prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label"}),
            train_handlers=[
                ClipGradients({"student": student, "teachers": teachers}),
                PerformanceWeights(self.distiller),
                self.average,
            ],
            decollate=False,
        )
        trainer.add_event_handler(Events.EPOCH_STARTED, self._switch)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        trainer.run()

    def _switch(self, engine: Any) -> None:
        for name in ("kd", "side_kd"):
            self.distiller.terms[name].factor = float(engine.state.epoch > SWITCH)

    def _note(self, engine: Any) -> None:
        of_student = ("seg", "kd", "side_seg", "side_kd")
        self.losses.append(sum(engine.state.output[f"weighted/{name}"].item() for name in of_student))

    def dice(self, network: Any) -> dict[str, float]:
        image, label = (torch.stack([case[key] for case in self.cases]) for key in ("image", "label"))
        network.eval()
        with torch.no_grad():
            pred = network(image).argmax(dim=1, keepdim=True)
        values, _ = region_dice(confusion_matrix(pred, label, 4), REGIONS)
        return dict(zip(REGIONS, values.tolist(), strict=True))


@pytest.fixture(scope="module")
def training() -> Training:
    return Training()


def test_the_student_learns_the_training_tumors_by_heart(training):
    assert training.dice(training.distiller.student)["whole_tumor"] > 0.8
    assert training.dice(training.average.average)["whole_tumor"] > 0.8


def test_the_loss_stays_where_it_is_when_distillation_starts(training):
    before, after = training.losses[2 * SWITCH - 1], training.losses[2 * SWITCH :]
    assert len(after) == 2 * (EPOCHS - SWITCH)
    assert before < after[0] < 3 * before
    assert max(after) < 1.0
    assert after[-1] < before


def test_known_wrong_summed_over_voxels_distillation_would_drown_the_labels(training):
    """The reference's form: a sum over voxels, times T in place of T^2, at T = 20."""
    image, label = (torch.stack([case[key] for case in training.cases]) for key in ("image", "label"))
    with torch.no_grad():
        views = training.distiller.views(image, label)
        summed = PerformanceKL(3, REGIONS, temperature=20.0, reduction="batchmean")
        value = summed(views["student/logits"], [views[f"teachers/{name}"] for name in TEACHERS], label) / 20.0
    assert 0.15 * value.item() > 500 * training.losses[-1]


def test_teachers_learn_what_their_modality_shows(training):
    """FLAIR shows the whole tumor best, and no teacher the enhancing rim as the student's T1ce does."""
    whole, _, rim = training.distiller.terms["kd"].loss.dice.T
    assert whole.argmax() == TEACHERS.index("flair")
    assert training.dice(training.distiller.student)["enhancing_tumor"] > rim.max()
