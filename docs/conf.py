"""How Sphinx builds the documentation: ``nox -s docs``. Nothing is fetched from the network.

What follows from the code (settings, commands, modules) is written to ``docs/generated`` before the pages are read; git ignores
that folder.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from generate import write_pages  # noqa: E402

from lutbench import __version__  # noqa: E402

write_pages(HERE / "generated")

project = "lutbench"
author = "the authors of lutbench"
version = release = __version__

extensions = [
    "myst_nb",  # which brings MyST
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
smartquotes = False  # of --option they make another one
templates_path: list[str] = []
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", ".*")
]  # docstrings name other libraries, and parts of this one that the reference leaves out
suppress_warnings = ["myst.header"]  # pages begin at one level and go as deep as they need

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 600  # they take half a minute, on a machine that does nothing else
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"  # warnings of libraries, with paths of the machine that built the page
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True
add_module_names = False
napoleon_numpy_docstring = False

copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"lutbench {release}"
html_static_path = ["static"]
html_css_files = ["lutbench.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
