"""Sphinx's settings; `.ci/docs` builds. The source folder is the repository itself, so that links between README,
CONTRIBUTING and the pages of docs/ lead to the same places on a Git host and in the rendered site.
"""

from docutils.nodes import SkipNode, image, reference
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import download_reference
from sphinx.util.osutil import relative_uri

from fastlinear import __version__

project = "fastlinear"
author = "the fastlinear maintainers"
version = release = __version__

root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky = True
nitpick_ignore = [("py:class", name) for name in ("numpy.dtype", "numpy.random.Generator", "numpy.random.RandomState")]
nitpick_ignore_regex = [("py:class", r"[^.]*")]  # words in the types of numpydoc: ndarray, shape, optional

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # the anchors that Git hosts make

autodoc_typehints = "none"  # those of the compiled base are in its stub only; docstrings give shapes and dtypes
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"fastlinear {version}"
html_static_path = ["_static"]
html_css_files = ["fastlinear.css"]
html_extra_path = ["_root"]  # an index.html that leads to docs/index.html
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"


# Formulas become MathML, which browsers draw by themselves: no JavaScript, no fonts, nothing from a network.


def inline_math(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def block_math(translator, node):
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode


def close(app, docname, source):
    """doctest wants an empty line between a block's last output and the fence, readers do not."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def open_pictures(app, doctree, docname):
    """A picture that leads to its full size is opened by that link; MyST's links to files are downloads."""
    for link in list(doctree.findall(download_reference)):
        for picture in link.findall(image):
            _, file = app.env.images[picture["uri"]]
            target = relative_uri(app.builder.get_target_uri(docname), f"_images/{file}")
            link.replace_self(reference("", "", *link.children, refuri=target))


def setup(app):
    app.connect("source-read", close)
    app.connect("doctree-resolved", open_pictures)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
