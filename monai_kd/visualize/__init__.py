"""Tables, figures and the report of finished runs; the viewer of predictions. What draws is imported only when used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from monai_kd.visualize.curves import curves_figure, paired_figure, save_figure
from monai_kd.visualize.distillers import distillers_table
from monai_kd.visualize.distillers_figure import distillers_figure
from monai_kd.visualize.documents import write_tables
from monai_kd.visualize.domains import domains_table
from monai_kd.visualize.domains_figure import domains_figure
from monai_kd.visualize.latents import anchor_cosines, embed_latents, latents_figure, sample_cosine, view_silhouette
from monai_kd.visualize.networks import networks_table
from monai_kd.visualize.networks_figure import networks_figure
from monai_kd.visualize.overlays import overlay_figure, save_overlay
from monai_kd.visualize.records import load_records
from monai_kd.visualize.report import write_report
from monai_kd.visualize.statistics import PairedDifference, PairRefused, bootstrap_interval, paired_difference
from monai_kd.visualize.structures import Structure, bundle_classes, named_structures
from monai_kd.visualize.tables import result_groups, results_table

if TYPE_CHECKING:
    from monai_kd.visualize.comparison_gif import save_comparison_gif
    from monai_kd.visualize.meshes import structure_mesh, write_scene, write_stl
    from monai_kd.visualize.viewer import View, ViewerSettings, write_viewer
    from monai_kd.visualize.viewer_case import ViewerCase, read_case
    from monai_kd.visualize.volume_gif import save_gif
    from monai_kd.visualize.volume_page import write_page
    from monai_kd.visualize.volume_slices import save_slices, slices_figure

__all__ = [
    "PairRefused",
    "PairedDifference",
    "Structure",
    "View",
    "ViewerCase",
    "ViewerSettings",
    "anchor_cosines",
    "bootstrap_interval",
    "bundle_classes",
    "curves_figure",
    "distillers_figure",
    "distillers_table",
    "domains_figure",
    "domains_table",
    "embed_latents",
    "latents_figure",
    "load_records",
    "named_structures",
    "networks_figure",
    "networks_table",
    "overlay_figure",
    "paired_difference",
    "paired_figure",
    "read_case",
    "result_groups",
    "results_table",
    "sample_cosine",
    "save_comparison_gif",
    "save_figure",
    "save_gif",
    "save_overlay",
    "save_slices",
    "slices_figure",
    "structure_mesh",
    "view_silhouette",
    "write_page",
    "write_report",
    "write_scene",
    "write_stl",
    "write_tables",
    "write_viewer",
]

# the viewer's parts need torch and MONAI, which tables do not
_LATE = {
    "save_comparison_gif": "comparison_gif",
    "structure_mesh": "meshes",
    "write_scene": "meshes",
    "write_stl": "meshes",
    "View": "viewer",
    "ViewerSettings": "viewer",
    "write_viewer": "viewer",
    "ViewerCase": "viewer_case",
    "read_case": "viewer_case",
    "save_gif": "volume_gif",
    "write_page": "volume_page",
    "save_slices": "volume_slices",
    "slices_figure": "volume_slices",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
