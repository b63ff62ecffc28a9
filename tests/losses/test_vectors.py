"""Every published value and gradient that our losses must meet, from kd_vectors.json, in float32 within 1e-6."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from monai_kd.losses import (
    AttentionTransfer,
    ChannelWiseKL,
    CorrelationDistillation,
    DecoupledKL,
    FeatureMimic,
    IntraClassVariation,
    KnowledgeReview,
    RegionAffinity,
    SoftBernoulliKL,
    SoftLogitKL,
)
from monai_kd.networks import ReviewFusion

VECTORS = json.loads((Path(__file__).parent / "kd_vectors.json").read_text(encoding="utf-8"))
INPUTS = {name: torch.tensor(values) for name, values in VECTORS["inputs"].items()}
TOLERANCE = 1e-6
Vector = Callable[[dict[str, Tensor]], Tensor]


def on(loss: nn.Module, *names: str) -> Vector:
    """The loss of named inputs."""
    return lambda inputs: loss(*(inputs[name] for name in names))


def foreground(inputs: dict[str, Tensor]) -> Tensor:
    return ChannelWiseKL(4.0, include_background=False)(inputs["S3"], inputs["T3"])


def aligned(loss: nn.Module) -> Vector:
    """The loss after the 1x1 convolution of the vectors from 2 to 3 channels."""

    def value(inputs: dict[str, Tensor]) -> Tensor:
        weight = torch.tensor([[0.5, -0.25], [0.1, 0.3], [-0.4, 0.2]])
        mapped = torch.einsum("oc,bcij->boij", weight, inputs["FS"]) + torch.tensor([0.1, -0.2, 0.0]).view(1, 3, 1, 1)
        return loss(mapped, inputs["FT"])

    return value


def numbered(conv: nn.Conv2d, number: int) -> None:
    """The weights of the vectors: flat index k of the q-th convolution holds ((3k + q) mod 7 - 3) / 10."""
    index = torch.arange(conv.weight.numel(), dtype=torch.float32)
    with torch.no_grad():
        conv.weight.copy_((((3 * index + number) % 7 - 3) / 10).view_as(conv.weight))


def fusion(inputs: dict[str, Tensor]) -> tuple[ReviewFusion, list[Tensor], list[Tensor]]:
    """The two-stage chain of the vectors, mid channels 2: deep FS (2 -> 3), shallow F4S (1 -> 2)."""
    student, teacher = [inputs["FS"], inputs["F4S"][:, :1]], [inputs["FT"], inputs["F4T"]]
    adapter = ReviewFusion(mid_channels=2)
    adapter.build([value.shape for value in student], [value.shape for value in teacher])
    for stage in adapter.stages:
        numbered(stage.reduce.conv, 0)
        numbered(stage.restore.conv, 1)
        if stage.attention is not None:
            numbered(stage.attention, 2)
            with torch.no_grad():
                stage.attention.bias.copy_(torch.tensor([0.1, -0.1]))
    return adapter, student, teacher


def chain(training: bool) -> Vector:
    def value(inputs: dict[str, Tensor]) -> Tensor:
        adapter, student, teacher = fusion(inputs)
        return KnowledgeReview()(adapter.train(training)(student, teacher), teacher)

    return value


def chain_sum(stage: int) -> Vector:
    def value(inputs: dict[str, Tensor]) -> Tensor:
        adapter, student, teacher = fusion(inputs)
        return adapter.eval()(student, teacher)[stage].sum()

    return value


def volume(inputs: dict[str, Tensor]) -> Tensor:
    return ChannelWiseKL(4.0)(inputs["S3"][..., None], inputs["T3"][..., None])


CASES: dict[str, Vector] = {
    **{f"kd_pixelmean_T{t}": on(SoftLogitKL(t), "S3", "T3") for t in (1, 2, 4)},
    **{f"kd_mmrazor_mean_T{t}": on(SoftLogitKL(t, reduction="elementmean"), "S3", "T3") for t in (1, 2, 4)},
    **{f"kd_mmrazor_batchmean_T{t}": on(SoftLogitKL(t, reduction="batchmean"), "S3", "T3") for t in (1, 2, 4)},
    "kd_pixelmean_T2_batch2": on(SoftLogitKL(2), "S3b", "T3b"),
    "kd_pixelmean_T2_ignore255": on(SoftLogitKL(2), "S3", "T3", "Yign"),
    "kd_binary_sigmoid_T1": on(SoftBernoulliKL(1), "S1", "T1"),
    "kd_binary_sigmoid_T2": on(SoftBernoulliKL(2), "S1", "T1"),
    "kd_pixelmean_C2_T2": on(SoftLogitKL(2), "S2", "T2"),
    "kd_C2_T4": on(SoftLogitKL(4), "S2", "T2"),
    "kd_resize_student_bilinear_T2": on(SoftLogitKL(2), "S3", "T4"),
    "kd_multilabel_sigmoid_T2": on(SoftBernoulliKL(2), "S3", "T3"),
    "lskd_T2": on(SoftLogitKL(2, standardize=True), "S3", "T3"),
    "dkd_pixelmean_T4_a1_b8": on(DecoupledKL(1, 8, 4), "S3", "T3", "Y"),
    "dkd_tckd_T4": on(DecoupledKL(1, 0, 4), "S3", "T3", "Y"),
    "dkd_nckd_T4": on(DecoupledKL(0, 1, 4), "S3", "T3", "Y"),
    "dkd_pixelmean_T1_a1_b0.5": on(DecoupledKL(1, 0.5, 1), "S3", "T3", "Y"),
    "dkd_pixelmean_T1_a1_b1": on(DecoupledKL(1, 1, 1), "S3", "T3", "Y"),
    "dkd_tckd_T1": on(DecoupledKL(1, 0, 1), "S3", "T3", "Y"),
    "dkd_nckd_T1": on(DecoupledKL(0, 1, 1), "S3", "T3", "Y"),
    "dkd_C2_T4_a1_b8": on(DecoupledKL(1, 8, 4), "S2", "T2", "Y2"),
    "dkd_ignore255_T4_a1_b8": on(DecoupledKL(1, 8, 4), "S3", "T3", "Yign"),
    "dkd_extreme_T1_a1_b8": on(DecoupledKL(1, 8, 1), "Sx", "Tx", "Yx"),
    "dist_official_S3": on(CorrelationDistillation(), "S3", "T3"),
    "dist_official_S3b": on(CorrelationDistillation(), "S3b", "T3b"),
    "dist_inter_only_S3": on(CorrelationDistillation(beta=1, gamma=0), "S3", "T3"),
    "dist_intra_only_S3": on(CorrelationDistillation(beta=0, gamma=1), "S3", "T3"),
    "dist_tau4_S3": on(CorrelationDistillation(temperature=4), "S3", "T3"),
    "dist_C2_inter": on(CorrelationDistillation(beta=1, gamma=0), "S2", "T2"),
    "dist_C2_intra": on(CorrelationDistillation(beta=0, gamma=1), "S2", "T2"),
    "dist_C1_sigmoid_intra": on(CorrelationDistillation(sigmoid=True), "S1", "T1"),
    "at_mean_p2": on(AttentionTransfer(reduction="elementmean"), "FS", "FT"),
    "at_sum_p2": on(AttentionTransfer(), "FS", "FT"),
    "at_mean_p2_batch2": on(AttentionTransfer(reduction="elementmean"), "FSb", "FTb"),
    "imd_p4": on(AttentionTransfer(p=4), "FS", "FT"),
    "at_poolmap_mismatch_samplemean": on(AttentionTransfer(), "F4S", "FT"),
    "cwd_ignore_bg_T4": foreground,
    "cwd_channel_kl_T1": on(ChannelWiseKL(1.0), "S3", "T3"),
    "cwd_channel_kl_T4": on(ChannelWiseKL(4.0), "S3", "T3"),
    "cwd_batch2_T4": on(ChannelWiseKL(4.0), "S3b", "T3b"),
    "cwd_C1_T4": on(ChannelWiseKL(4.0), "S1", "T1"),
    "cwd_5d_T4": volume,
    "cwd_feat_align1x1_T1": aligned(ChannelWiseKL(1.0)),
    "fitnet_mse_align1x1": aligned(FeatureMimic()),
    "pkd_mse_pearson": lambda inputs: FeatureMimic(standardize=True)(inputs["FSb"], inputs["FTb"][:, :2]),
    "hcl_2x2": on(KnowledgeReview(), "FS", "FT2c"),
    "hcl_4x4": on(KnowledgeReview(), "F4S", "F4T"),
    "hcl_6x6": on(KnowledgeReview(), "F6S", "F6T"),
    "reviewkd_chain_bn_eval": chain(training=False),
    "reviewkd_chain_bn_train": chain(training=True),
    "reviewkd_abf_deep_sum_eval": chain_sum(0),
    "reviewkd_abf_shallow_sum_eval": chain_sum(1),
    "ifvd_S": on(IntraClassVariation(), "FS", "FT", "Y"),
    "rad_region_affinity_pairs": on(RegionAffinity(), "FS", "FT", "Y"),
}
# those whose value has no gradient to speak of, by definition (ranks of two classes)
GRADIENTS: dict[str, tuple[nn.Module, tuple[str, ...]]] = {
    "kd_pixelmean_T2_dS": (SoftLogitKL(2), ("T3",)),
    "cwd_T4_dS": (ChannelWiseKL(4.0), ("T3",)),
    "dkd_T4_a1_b8_dS": (DecoupledKL(1, 8, 4), ("T3", "Y")),
    "dist_S3_dS": (CorrelationDistillation(), ("T3",)),
}


def test_every_vector_has_a_case():
    assert set(CASES) == set(VECTORS["expected"])
    assert len(CASES) == 59
    assert set(GRADIENTS) | {"dist_C2_inter_dS_maxabs"} == set(VECTORS["gradients"])


@pytest.mark.filterwarnings("ignore:.*beta has no effect")
@pytest.mark.filterwarnings("ignore:.*inter")
@pytest.mark.parametrize("name", VECTORS["expected"])
def test_value_is_met_in_float32(name):
    value = CASES[name](INPUTS)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(VECTORS["expected"][name], abs=TOLERANCE)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_is_met_in_float32(name):
    loss, others = GRADIENTS[name]
    student = INPUTS["S3"].clone().requires_grad_()
    loss(student, *(INPUTS[other] for other in others)).backward()
    assert (student.grad - torch.tensor(VECTORS["gradients"][name])).abs().max() < TOLERANCE


@pytest.mark.filterwarnings("ignore:.*inter")
def test_correlation_of_two_classes_has_no_gradient_between_them():
    student = INPUTS["S2"].clone().requires_grad_()
    CorrelationDistillation(beta=1, gamma=0)(student, INPUTS["T2"]).backward()
    assert student.grad.abs().max() < 1e-6
