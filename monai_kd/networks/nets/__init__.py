"""Segmentation networks that MONAI lacks, with ``(in_channels, out_channels)`` as MONAI names them."""

from monai_kd.networks.nets.channel_attention_res_unet import ChannelAttentionResUNet
from monai_kd.networks.nets.cooperative_fusion import CooperativeFusion
from monai_kd.networks.nets.dsm_unet import DSMUNet
from monai_kd.networks.nets.insert_depth_shift import insert_depth_shift
from monai_kd.networks.nets.slice_stack import SliceStack

__all__ = ["ChannelAttentionResUNet", "CooperativeFusion", "DSMUNet", "SliceStack", "insert_depth_shift"]
