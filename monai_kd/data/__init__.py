"""Embedded demo data, case lists and splits."""

from monai_kd.data.phantoms import make_phantoms, phantom_case
from monai_kd.data.splits import CaseSplit, case_id, default_dataset_dir, default_split_file, labelled_cases

__all__ = [
    "CaseSplit",
    "case_id",
    "default_dataset_dir",
    "default_split_file",
    "labelled_cases",
    "make_phantoms",
    "phantom_case",
]
