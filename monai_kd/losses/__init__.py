"""Distillation losses: pure comparisons of a student tensor with a teacher tensor."""

from monai_kd.losses.attention import AttentionTransfer
from monai_kd.losses.channel_wise import ChannelWiseKL
from monai_kd.losses.cosine_distance import CosineDistance
from monai_kd.losses.dice_jaccard_ce import DiceJaccardCE
from monai_kd.losses.dist import CorrelationDistillation
from monai_kd.losses.dkd import DecoupledKL
from monai_kd.losses.feature_mimic import FeatureMimic
from monai_kd.losses.intra_class import IntraClassVariation
from monai_kd.losses.multi_scale_contrastive import ContrastQueues, MultiScaleContrastive
from monai_kd.losses.multi_teacher import MultiTeacherKL
from monai_kd.losses.on_labelled import OnLabelled
from monai_kd.losses.performance import PerformanceKL, performance_weights
from monai_kd.losses.region_affinity import RegionAffinity
from monai_kd.losses.relation_graphs import CompleteGraph, StarGraph
from monai_kd.losses.relative_error import RelativeSquaredError
from monai_kd.losses.review import KnowledgeReview
from monai_kd.losses.soft_logits import SoftBernoulliKL, SoftLogitKL
from monai_kd.losses.voxelwise import VoxelLoss
from monai_kd.losses.weighting import BoundaryWeighting, ClassBalance, ForegroundWeighting, TeacherErrorGate

__all__ = [
    "AttentionTransfer",
    "BoundaryWeighting",
    "ChannelWiseKL",
    "ClassBalance",
    "CompleteGraph",
    "ContrastQueues",
    "CorrelationDistillation",
    "CosineDistance",
    "DecoupledKL",
    "DiceJaccardCE",
    "FeatureMimic",
    "ForegroundWeighting",
    "IntraClassVariation",
    "KnowledgeReview",
    "MultiScaleContrastive",
    "MultiTeacherKL",
    "OnLabelled",
    "PerformanceKL",
    "RegionAffinity",
    "RelativeSquaredError",
    "SoftBernoulliKL",
    "SoftLogitKL",
    "StarGraph",
    "TeacherErrorGate",
    "VoxelLoss",
    "performance_weights",
]
