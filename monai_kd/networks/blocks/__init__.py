"""Building blocks of networks that MONAI lacks."""

from monai_kd.networks.blocks.channel_gate import ChannelGate
from monai_kd.networks.blocks.pre_activation import PreActivationResBlock
from monai_kd.networks.blocks.steady_norm import SteadyGroupNorm, SteadyInstanceNorm

__all__ = ["ChannelGate", "PreActivationResBlock", "SteadyGroupNorm", "SteadyInstanceNorm"]
