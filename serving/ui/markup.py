"""Text of users and models as the Chatbot shows it. Markdown stays, HTML and images do not: an image in an answer
would make the browser call another host without anybody asking."""

import re

_FENCE = re.compile(r"(`{3,})[^`]*")  # at column 0 only: deeper ones may belong to a list that ends them early
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_IMAGE = re.compile(r"!\[")


def shown(text: str) -> str:
    """`text` as Markdown that fetches nothing: tags and images appear as they are spelled."""
    parts: list[str] = []
    fence: str | None = None
    for line in re.split(r"(\r\n?|\n)", text):  # lines and the breaks between them
        if fence is not None:  # a code block shows tags as they are
            parts.append(line)
            if line.lstrip().startswith(fence):
                fence = None
        else:
            opening = _FENCE.fullmatch(line)
            fence = opening[1] if opening else None
            parts.append(_IMAGE.sub("!&#91;", _TAG.sub("&#60;", line)))
    return "".join(parts)
