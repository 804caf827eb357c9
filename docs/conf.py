"""Sphinx configuration: Markdown pages by MyST, the API from docstrings. Build: `make docs`."""

project = "oneshot"
author = "The oneshot authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "oneshot"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Links to files of the repository (../csrc/...) are right on a code host and no pages here.
suppress_warnings = ["myst.xref_missing"]

default_role = "code"  # docstrings mark code by single backticks
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
