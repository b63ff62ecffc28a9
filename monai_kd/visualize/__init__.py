"""Tables, figures and the report of finished runs. Matplotlib is needed, and imported, only when a figure is drawn."""

from monai_kd.visualize.curves import curves_figure, paired_figure, save_figure
from monai_kd.visualize.distillers import distillers_table
from monai_kd.visualize.distillers_figure import distillers_figure
from monai_kd.visualize.documents import write_tables
from monai_kd.visualize.networks import networks_table
from monai_kd.visualize.networks_figure import networks_figure
from monai_kd.visualize.overlays import overlay_figure, save_overlay
from monai_kd.visualize.records import load_records
from monai_kd.visualize.report import write_report
from monai_kd.visualize.statistics import PairedDifference, PairRefused, bootstrap_interval, paired_difference
from monai_kd.visualize.tables import result_groups, results_table

__all__ = [
    "PairRefused",
    "PairedDifference",
    "bootstrap_interval",
    "curves_figure",
    "distillers_figure",
    "distillers_table",
    "load_records",
    "networks_figure",
    "networks_table",
    "overlay_figure",
    "paired_difference",
    "paired_figure",
    "result_groups",
    "results_table",
    "save_figure",
    "save_overlay",
    "write_report",
    "write_tables",
]
