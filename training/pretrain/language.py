"""Which of the two languages of the bundled base a text is in."""

import re
from typing import Literal

Language = Literal["zh", "en"]
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_LATIN = re.compile(r"[A-Za-z][A-Za-z'’]*")


def language_of(text: str) -> Language | None:
    """Chinese when at least half of what is said is Chinese characters, the rest being Latin words; None when it
    says neither, as a number does."""
    chinese, latin = len(_CHINESE.findall(text)), len(_LATIN.findall(text))
    if not chinese and not latin:
        return None
    return "zh" if chinese >= latin else "en"
