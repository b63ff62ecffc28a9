"""Embedded demo data, case lists and splits."""

from monai_kd.data.brats import brats_cases
from monai_kd.data.brats_phantoms import brats_phantom_case, make_brats_phantoms
from monai_kd.data.case_names import case_id
from monai_kd.data.checks import CaseCheck, case_problems
from monai_kd.data.drawn_bank import DrawnBank
from monai_kd.data.image_masks import ImageMaskLayout, image_mask_cases
from monai_kd.data.labelled_part import labelled_part
from monai_kd.data.mixed_sampler import MixedSampler
from monai_kd.data.patients import patients_of, read_name_mapping
from monai_kd.data.phantoms import make_phantoms, phantom_case
from monai_kd.data.raster import ColorClasses, as_classes, as_color, as_grey
from monai_kd.data.slice_files import write_slices
from monai_kd.data.splits import CaseSplit, default_dataset_dir, default_split_file, labelled_cases
from monai_kd.data.targets import target_dirs
from monai_kd.data.vessel_phantoms import make_vessel_phantoms, vessel_phantom
from monai_kd.data.volumes import VolumeFacts, read_volumes, volume_facts

__all__ = [
    "CaseCheck",
    "CaseSplit",
    "ColorClasses",
    "DrawnBank",
    "ImageMaskLayout",
    "MixedSampler",
    "VolumeFacts",
    "as_classes",
    "as_color",
    "as_grey",
    "brats_cases",
    "brats_phantom_case",
    "case_id",
    "case_problems",
    "default_dataset_dir",
    "default_split_file",
    "image_mask_cases",
    "labelled_cases",
    "labelled_part",
    "make_brats_phantoms",
    "make_phantoms",
    "make_vessel_phantoms",
    "patients_of",
    "phantom_case",
    "read_name_mapping",
    "read_volumes",
    "target_dirs",
    "vessel_phantom",
    "volume_facts",
    "write_slices",
]
