"""Small networks between student and teacher: adapters that bring features to the shape they are compared in."""

from monai_kd.networks.adapters import AutoAdapter, PointwiseAdapter, ResizeAdapter, StandardizeAdapter
from monai_kd.networks.aligned import AlignedNetwork
from monai_kd.networks.chain import AdapterChain
from monai_kd.networks.encode_decode import EncodeDecode
from monai_kd.networks.projection import GridPool, ProjectionHead
from monai_kd.networks.review_fusion import ReviewFusion
from monai_kd.networks.routing import RouteModalities
from monai_kd.networks.select_classes import SelectClasses
from monai_kd.networks.tokens_to_map import TokensToMap

__all__ = [
    "AdapterChain",
    "AlignedNetwork",
    "AutoAdapter",
    "EncodeDecode",
    "GridPool",
    "PointwiseAdapter",
    "ProjectionHead",
    "ResizeAdapter",
    "ReviewFusion",
    "RouteModalities",
    "SelectClasses",
    "StandardizeAdapter",
    "TokensToMap",
]
