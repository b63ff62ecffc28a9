"""The ways in which a training step of MTCM-KD runs, for benchmarks/mtcm_step.py.

All have the same networks, batch and loss settings: those of the reference (background in the overlap terms, no
smoothing, every second voxel of the label, shares by equation 1), since only then all gradients are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from literal_mtcm import LiteralStep
from measurements import reset_peak, resident_mb
from torch import Tensor

from monai_kd.distillers import CooperativeDistiller, CooperativeTeachers, Term
from monai_kd.handlers import PerformanceWeights
from monai_kd.losses import DiceJaccardCE, PerformanceKL, SoftLogitKL
from monai_kd.networks import RouteModalities
from monai_kd.networks.nets import ChannelAttentionResUNet, CooperativeFusion

TEACHERS = ("flair", "t2", "t1")  # channels 0 to 2; the student's is 3
REGIONS = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}
CLASSES = 4
TEMPERATURE = 4.0
LEARNING_RATE = 1e-4
DICE = (0.887, 0.890, 0.837)  # of the teachers so far, by which they are weighed
Step = Callable[[Tensor, Tensor], None]


class Way(NamedTuple):
    """How a step runs.

    Attributes:
        mode: ``literal``; ``joint``: teachers learn; ``pretrained``: they do not.
        staged: teacher by teacher.
        channels_last: memory format of the weights.
        bfloat16: autocast.
    """

    mode: str
    staged: bool = False
    channels_last: bool = False
    bfloat16: bool = False

    @property
    def name(self) -> str:
        flags = ("staged", "channels_last", "bfloat16")
        return " ".join([self.mode, *(flag for flag in flags if getattr(self, flag))])


LITERAL = "literal"
WAYS = {
    way.name: way
    for way in (
        Way(LITERAL),
        Way("joint"),
        Way("joint", staged=True),
        Way("joint", channels_last=True),
        Way("joint", staged=True, channels_last=True),
        Way("pretrained"),
        Way("pretrained", channels_last=True),
        Way("joint", staged=True, bfloat16=True),
        Way("joint", staged=True, channels_last=True, bfloat16=True),
        Way("pretrained", bfloat16=True),
        Way("pretrained", channels_last=True, bfloat16=True),
    )
}


class Case(NamedTuple):
    """Sizes: edge of the cube in voxels, and channels of the first level."""

    size: int
    width: int

    @property
    def channels(self) -> list[int]:
        return [self.width * 2**level for level in range(4)]


def make_network(case: Case) -> ChannelAttentionResUNet:
    return ChannelAttentionResUNet(3, 1, CLASSES, channels=case.channels)


def make_terms(learning: bool) -> dict[str, Term]:
    """Return the terms of the student, and of the teachers where they learn."""
    seg = DiceJaccardCE(include_background=True, smooth=0.0, resampling="nearest")
    response = PerformanceKL(len(TEACHERS), REGIONS, TEMPERATURE, mode="linear")
    response.dice.copy_(torch.tensor(DICE).unsqueeze(1).expand_as(response.dice))
    views = [f"teachers/{name}" for name in TEACHERS]
    terms = {
        "seg": Term(seg, "student/logits", "label", 0.75),
        "kd": Term(response, "student/logits", views, 0.15, inputs={"available": "available"}),
        "side_seg": Term(seg, "student/side_1", "label", 0.07),
        "side_kd": Term(SoftLogitKL(TEMPERATURE), "student/side_1", "teachers/fused", 0.03),
    }
    if not learning:
        return terms
    own = {f"seg_{view}".replace("/", "_"): Term(seg, view, "label", 1.0) for view in views}
    return {**terms, **own, "cooperation": Term(seg, "teachers/fused", "label", 0.08)}


def make_distiller(case: Case, way: Way) -> CooperativeDistiller:
    """Return student and teachers, the same weights for every way."""
    torch.manual_seed(0)
    student = RouteModalities(make_network(case), [len(TEACHERS)])
    networks = {name: RouteModalities(make_network(case), [channel]) for channel, name in enumerate(TEACHERS)}
    fusion = CooperativeFusion(3, [case.channels[1]] * len(TEACHERS), CLASSES)
    learning = way.mode != "pretrained"
    distiller = CooperativeDistiller(
        student,
        CooperativeTeachers(networks, {"fused": fusion}, {"fused": "decoder_2"}),
        make_terms(learning),
        side_classes=CLASSES,
        freeze=not learning,
        staged=way.staged,
        input_shape=[1, len(TEACHERS) + 1, *[case.size] * 3],
    )
    return distiller.to(memory_format=torch.channels_last_3d) if way.channels_last else distiller


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    """Draw an image of four modalities and a label of blobs that they know something about."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, CLASSES, *[max(2, size // 16)] * 3, generator=generator)
    label = F.interpolate(coarse, size=[size] * 3).argmax(dim=1, keepdim=True)
    image = torch.randn(1, len(TEACHERS) + 1, *[size] * 3, generator=generator)
    return image + label, label


def make_step(distiller: CooperativeDistiller, way: Way) -> Step:
    """Return one iteration: forward, backward, optimizers, and the Dice that the next ones are weighed by."""
    if way.mode == LITERAL:
        weights = [0.15 * dice / sum(DICE) for dice in DICE]
        return LiteralStep(distiller, weights, TEMPERATURE, LEARNING_RATE)
    learning = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=LEARNING_RATE)
    weigh, engine = PerformanceWeights(distiller), Engine(lambda _engine, _batch: None)

    def step(image: Tensor, label: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=way.bfloat16):
            output = distiller(image, label)
        output.loss.backward()
        optimizer.step()
        weigh(engine)

    return step


def gradients(distiller: CooperativeDistiller) -> dict[str, Tensor]:
    """Return the gradient of each weight that learns.

    Raises:
        RuntimeError: one has none; names it.
    """
    found = {name: value.grad for name, value in distiller.named_parameters() if value.requires_grad}
    lacks = [name for name, value in found.items() if value is None]
    if lacks:
        raise RuntimeError(f"no gradient for {', '.join(lacks)}")
    return {name: value for name, value in found.items() if value is not None}


class Measured(NamedTuple):
    """Of one process.

    Attributes:
        seconds: of the last step on the clock.
        cpu_seconds: the same of all threads, divided by their number.
        peak_mb: largest resident size in all steps above that before the first: activations, gradients and the
            optimizers' moments, not the weights.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float


def measure(case: Case, way: Way, warm_up: bool, keep: Callable[[dict[str, Tensor]], None]) -> Measured:
    """Run one step, or a first and then the timed one, in this process; the first one's gradients go to ``keep``."""
    distiller, batch = make_distiller(case, way), make_batch(case.size)
    step = make_step(distiller, way)
    make_network(Case(8, 4))(torch.zeros(1, 1, 8, 8, 8)).sum().backward()  # loads what torch loads at first use
    before = resident_mb("VmRSS")
    reset_peak()
    for number in range(2 if warm_up else 1):
        wall, cpu = time.perf_counter(), time.process_time()
        step(*batch)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        if number == 0:
            keep(gradients(distiller))
    return Measured(seconds, cpu_seconds / torch.get_num_threads(), resident_mb("VmHWM") - before)
