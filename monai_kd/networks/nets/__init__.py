"""Segmentation networks that MONAI lacks, with ``(in_channels, out_channels)`` as MONAI names them."""

from monai_kd.networks.nets.alignment_network import AlignmentNetwork
from monai_kd.networks.nets.channel_attention_res_unet import ChannelAttentionResUNet
from monai_kd.networks.nets.cooperative_fusion import CooperativeFusion
from monai_kd.networks.nets.dsm_unet import DSMUNet
from monai_kd.networks.nets.enet import ENet
from monai_kd.networks.nets.erfnet import ERFNet
from monai_kd.networks.nets.insert_depth_shift import insert_depth_shift
from monai_kd.networks.nets.missformer import MISSFormer
from monai_kd.networks.nets.mobilenet_v2_unet import MobileNetV2UNet
from monai_kd.networks.nets.multi_gate_attention_unet import MultiGateAttentionUNet
from monai_kd.networks.nets.multi_task_trans_unet import MultiTaskTransUNet
from monai_kd.networks.nets.multi_task_unet import MultiTaskUNet
from monai_kd.networks.nets.official_mednext import OfficialMedNeXt
from monai_kd.networks.nets.plain_unet import PlainUNet
from monai_kd.networks.nets.resnet_fcn import ResNetFCN
from monai_kd.networks.nets.resnet_unet import ResNetUNet
from monai_kd.networks.nets.semantic_autoencoder import SemanticAutoencoder
from monai_kd.networks.nets.sk_unet import SKUNet
from monai_kd.networks.nets.slice_stack import SliceStack
from monai_kd.networks.nets.slim_unet import SlimUNet
from monai_kd.networks.nets.transunet import TransUNet

__all__ = [
    "AlignmentNetwork",
    "ChannelAttentionResUNet",
    "CooperativeFusion",
    "DSMUNet",
    "ENet",
    "ERFNet",
    "MISSFormer",
    "MobileNetV2UNet",
    "MultiGateAttentionUNet",
    "MultiTaskTransUNet",
    "MultiTaskUNet",
    "OfficialMedNeXt",
    "PlainUNet",
    "ResNetFCN",
    "ResNetUNet",
    "SKUNet",
    "SemanticAutoencoder",
    "SliceStack",
    "SlimUNet",
    "TransUNet",
    "insert_depth_shift",
]
