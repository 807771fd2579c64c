"""Sphinx: Markdown through MyST, Furo's theme, and a reference that is made from the code itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from reference import write_reference

from usfmae.core import __version__

project = "usfmae"
author = "the usfmae authors"
version = release = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "requirements.txt"]
html_theme = "furo"
html_title = f"usfmae {__version__}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_show_sourcelink = False
# Self-contained: the pages are read where there is no network.
html_theme_options = {"light_css_variables": {"color-brand-primary": "#0b6e99", "color-brand-content": "#0b6e99"}}

write_reference(Path(__file__).parent / "reference")
