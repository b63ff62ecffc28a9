"""Sphinx settings of the documentation: ``make docs`` builds docs/_build/html and runs the examples of the pages."""

from __future__ import annotations

import warnings
from typing import Any

import monai_kd

project = "monai_kd"
author = "The monai_kd team"
copyright = "The monai_kd team, Apache-2.0"
version = release = monai_kd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest"]
exclude_patterns = ["_build", "results/**"]

# links such as page.md#a-heading, as GitHub makes them
myst_heading_anchors = 4

# the reference is made from the docstrings: each page names a package, its __all__ names the rest
autodoc_default_options = {"members": True, "imported-members": True}
autodoc_inherit_docstrings = False  # torch's text on forward() says nothing about ours
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a described attribute is no second definition of it
napoleon_custom_sections = ["Shape"]
python_maximum_signature_line_length = 90
add_module_names = False

# only the examples in {doctest} blocks run; README and docstrings are tested elsewhere
doctest_test_doctest_blocks = ""
doctest_global_setup = "import torch; _ = torch.manual_seed(0)"

html_theme = "alabaster"
html_title = f"monai_kd {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"description": "Knowledge distillation for medical segmentation", "page_width": "1100px"}

# deprecations inside MONAI and torch are not about these pages
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)


def _skip_tuple_fields(_app: Any, _what: str, _name: str, value: Any, skip: bool, _options: Any) -> bool | None:
    """Leave out the fields of named tuples: the class's own "Attributes" describe them."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", _skip_tuple_fields)
