"""Teachers: the network and the weights of any model folder, and wrappers that make it fit the student."""

from monai_kd.teachers.contract import check_teacher
from monai_kd.teachers.ensemble import EnsembleTeacher
from monai_kd.teachers.imagenet_vit import load_imagenet_vit
from monai_kd.teachers.load import load_teacher
from monai_kd.teachers.plain_weights import load_weights
from monai_kd.teachers.published_mednext import load_published_mednext
from monai_kd.teachers.published_missformer import load_published_missformer
from monai_kd.teachers.published_transunet import load_published_transunet
from monai_kd.teachers.report import LoadReport, load_report
from monai_kd.teachers.wrappers import (
    MapClasses,
    PadToMultiple,
    Reorient,
    Resample,
    RescaleIntensity,
    SelectChannels,
    unwrap,
)

__all__ = [
    "EnsembleTeacher",
    "LoadReport",
    "MapClasses",
    "PadToMultiple",
    "Reorient",
    "Resample",
    "RescaleIntensity",
    "SelectChannels",
    "check_teacher",
    "load_imagenet_vit",
    "load_published_mednext",
    "load_published_missformer",
    "load_published_transunet",
    "load_report",
    "load_teacher",
    "load_weights",
    "unwrap",
]
