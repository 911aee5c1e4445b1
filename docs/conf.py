"""How Sphinx builds the site; `make docs` runs it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import spwnet

project = "SP-WNet"
author = "The SP-WNet developers"
copyright = "The SP-WNet developers, BSD 3-Clause licence"
version = release = spwnet.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "site_parts",
]
exclude_patterns = ["_build", "_generated", "_ext"]
nitpicky = True
# Quotes and dashes are those of commands.
smartquotes = False

# A name in single backticks is linked where the reference has it, and shown as code where it has not.
default_role = "py:obj"
add_module_names = False
python_display_short_literal_types = True
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove-warn"
nb_merge_streams = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"SP-WNet {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
