"""Bundles as things to keep in step, pack and share."""

from monai_kd.hub.calibrate import Calibration, TermPull, calibrate_terms
from monai_kd.hub.checksums import write_checksums
from monai_kd.hub.compare import Comparison, ModelScores, compare_cases
from monai_kd.hub.doctor import Finding, diagnose
from monai_kd.hub.fetch import fetch_bundle
from monai_kd.hub.hugging_face_push import (
    PushedBundle,
    hugging_face_card,
    lay_out_for_hugging_face,
    push_to_hugging_face,
)
from monai_kd.hub.index import index_bundles
from monai_kd.hub.materialize import materialize_run
from monai_kd.hub.pack import Packed, pack_bundle
from monai_kd.hub.shared_blocks import sync_bundles
from monai_kd.hub.stages import Stage, read_stages, run_stages
from monai_kd.hub.taps import BundleTaps, bundle_taps
from monai_kd.hub.teacher_folder import make_teacher
from monai_kd.hub.verify import Check, verify_bundle

__all__ = [
    "BundleTaps",
    "Calibration",
    "Check",
    "Comparison",
    "Finding",
    "ModelScores",
    "Packed",
    "PushedBundle",
    "Stage",
    "TermPull",
    "bundle_taps",
    "calibrate_terms",
    "compare_cases",
    "diagnose",
    "fetch_bundle",
    "hugging_face_card",
    "index_bundles",
    "lay_out_for_hugging_face",
    "make_teacher",
    "materialize_run",
    "pack_bundle",
    "push_to_hugging_face",
    "read_stages",
    "run_stages",
    "sync_bundles",
    "verify_bundle",
    "write_checksums",
]
