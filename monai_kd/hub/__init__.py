"""Bundles as things to keep in step, pack and share."""

from monai_kd.hub.shared_blocks import sync_bundles
from monai_kd.hub.teacher_folder import make_teacher

__all__ = ["make_teacher", "sync_bundles"]
