"""What a model says, from Markdown to HTML that fetches nothing and runs nothing: tags appear as they are spelled, an
image becomes a link that somebody may click."""

from typing import Any

from markdown_it import MarkdownIt


def prose(text: str) -> str:
    """`text` as HTML."""
    return str(_MARKDOWN.render(text))


def _open_link(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    # Elsewhere, and without telling where from: the address of a conversation is its owner's.
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer")
    return str(self.renderToken(tokens, index, options, env))


_MARKDOWN = (
    MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
)
_MARKDOWN.add_render_rule("link_open", _open_link)
