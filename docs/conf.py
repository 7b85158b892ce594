"""Sphinx settings: pages in Markdown, the API from docstrings."""

from sbi_flows import __version__

project = "sbi_flows"
author = "The sbi_flows developers"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sbi_flows {__version__}"
autosummary_generate = True
autodoc_typehints = "none"  # docstrings say types in words, with shapes
autodoc_member_order = "bysource"
# Methods that scikit-learn makes for its metadata routing; their text refers to its own pages.
_OF_SKLEARN = ["get_metadata_routing", *(f"set_{of}_request" for of in ("fit", "score", "predict", "predict_proba", "transform"))]
autodoc_default_options = {"exclude-members": ", ".join(_OF_SKLEARN)}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "literal"
myst_heading_anchors = 3
# Docstrings and pages link to files of the repository, which are no pages.
suppress_warnings = ["myst.xref_missing", "ref.python"]
