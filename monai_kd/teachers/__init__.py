"""Teachers: the network and the weights of any MONAI bundle."""

from monai_kd.teachers.contract import check_teacher
from monai_kd.teachers.load import LoadReport, load_report, load_teacher

__all__ = ["LoadReport", "check_teacher", "load_report", "load_teacher"]
