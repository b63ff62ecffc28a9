"""Building blocks of networks that MONAI lacks."""

from monai_kd.networks.blocks.channel_gate import ChannelGate
from monai_kd.networks.blocks.enet_blocks import ENetBlock, ENetDown, ENetUp
from monai_kd.networks.blocks.inverted_residual import InvertedResidual
from monai_kd.networks.blocks.non_bottleneck_1d import NonBottleneck1D
from monai_kd.networks.blocks.pre_activation import PreActivationResBlock
from monai_kd.networks.blocks.selective_kernel import SelectiveKernelBlock, SelectiveKernelConv
from monai_kd.networks.blocks.steady_norm import SteadyGroupNorm, SteadyInstanceNorm
from monai_kd.networks.blocks.strip_pooling import StripPooling

__all__ = [
    "ChannelGate",
    "ENetBlock",
    "ENetDown",
    "ENetUp",
    "InvertedResidual",
    "NonBottleneck1D",
    "PreActivationResBlock",
    "SelectiveKernelBlock",
    "SelectiveKernelConv",
    "SteadyGroupNorm",
    "SteadyInstanceNorm",
    "StripPooling",
]
