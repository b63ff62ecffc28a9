"""monai_kd: knowledge distillation for medical image segmentation, as MONAI bundles."""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = (
    "data",
    "distillers",
    "engines",
    "export",
    "handlers",
    "hub",
    "inferers",
    "losses",
    "metrics",
    "teachers",
    "visualize",
)


def __getattr__(name: str) -> ModuleType:
    """Load a subpackage when it is first named: bundle configurations write ``$import monai_kd`` once."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
