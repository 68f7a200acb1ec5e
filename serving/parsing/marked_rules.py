"""Rules for formats whose calls begin with a marker."""

import json
import re
from collections.abc import Sequence

from serving.parsing.calls import Spell


def marked_rules(
    opening: str, body: str, functions: Sequence[str], spell: Spell, *, several: bool, between: str = "\n"
) -> str:
    """`calls` and its parts. `body` is what follows the marker and may use `function`, one of `functions`."""
    choice = " | ".join(f"function{number}" for number in range(len(functions)))
    return (
        f"calls: {spell(opening)} call_body" + (f' ("\\n" {spell(opening)} call_body)*' if several else "") + "\n"
        f"call_body: {body}\n"
        f"function: {choice}\n" + "".join(functions)
    )


def offered_rules(opening: str, spell: Spell) -> str:
    """`offered`: text and, after each marker, a `call_body`."""
    pattern = re.escape(opening).replace("/", "\\/")
    free = f"FREE_TEXT: /(?s:.*)/ & ~/(?s:.*){pattern}(?s:.*)/\n"
    if spell(opening) != json.dumps(opening):  # a special token, which ends any text
        return f"offered: FREE_TEXT ({spell(opening)} call_body FREE_TEXT)*\n{free}"
    return f"offered: (up_to_call call_body)* FREE_TEXT\nup_to_call[lazy]: /(?s:.*){pattern}/\n{free}"
