"""What the site needs of Sphinx beside its own extensions: generated pages, equations as MathML, lenient names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import generators
from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.connect("builder-inited", lambda app: generators.write(Path(app.srcdir) / "_generated"))
    app.connect("missing-reference", plain_name)
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.add_transform(Names)
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


class Names(SphinxTransform):
    """Link names such as `spwnet.losses.continuity`, that pages in Markdown show as code, to the reference."""

    default_priority = 5

    def apply(self, **kwargs: Any) -> None:
        """Turn them into references."""
        for node in list(self.document.findall(nodes.literal)):
            name = node.astext()
            inside = isinstance(node.parent, addnodes.pending_xref | nodes.reference)
            if not inside and re.fullmatch(r"spwnet(\.\w+)+", name):
                link = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=name, refexplicit=True)
                node.replace_self(link)
                link += node


def mathml(latex: str, display: str = "inline") -> str:
    """Return an equation as MathML."""
    text = re.sub(r"\\arg\s*\\(min|max)", r"\\mathrm{arg\\,\1}", latex)
    bar = '<mo stretchy="false" lspace="0.05em" rspace="0.05em">&#x0007C;</mo>'
    return convert(text, display=display).replace('<mo stretchy="false">&#x0007C;</mo>', bar)


def inline(self: Any, node: nodes.math) -> None:
    """Write an equation within a line: browsers draw MathML by themselves."""
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Write an equation of its own."""
    self.body.append(f'<div class="equation">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep shapes such as (B, C, *spatial) and lengths such as |p − q| from being taken for markup."""
    for number, line in enumerate(lines):
        line = re.sub(r"(?<![*\\])\*(?=\w+[,)])", r"\\*", line)
        lines[number] = line if "\\" in line.replace("\\*", "") else line.replace("|", "\\|")


def plain_name(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Show a name in single backticks as code where the reference does not have it."""
    return content if node.get("reftype") == "obj" else None
