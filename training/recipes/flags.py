"""Flags of other trainers on `bianlian train`: told apart from ours by their underscores.

ms-swift and LLaMA-Factory write `--lora_rank 8`, ours are `--lora-r 8`. Flags that are ours but for the underscores
(`--learning_rate`) are ours as long as none beside them is foreign. `lora_rank=8` after a recipe is LLaMA-Factory's."""

import re
from collections.abc import Collection, Sequence

_OVERRIDE = re.compile(r"([a-z][a-z0-9_]*)=(.*)", re.DOTALL)
_FLAG = re.compile(r"--([A-Za-z][A-Za-z0-9_-]*)(?:=(.*))?", re.DOTALL)

Foreign = dict[str, str | list[str] | bool]


def split_flags(words: Sequence[str], ours: Collection[str], theirs: Collection[str]) -> tuple[list[str], Foreign]:
    """`words` of a command line as (those for our parser, foreign flags by name).

    `ours` are our flags without dashes in front (`lora-r`), `theirs` all foreign names. Once one flag is foreign, names
    that both have (`--seed`) are read as foreign, too: that line was written for the other trainer. Beside a recipe
    file they stay ours."""
    names = [match[1] for word in words if (match := _FLAG.fullmatch(word))]
    overrides = {position for position in range(len(words)) if _is_override(words, position, theirs)}
    if not overrides and not any(_is_foreign(name, ours) for name in names):
        return [_hyphened(word, ours) for word in words], {}
    if "config" in names:
        theirs = set(theirs) - set(ours)
    kept: list[str] = []
    foreign: Foreign = {}
    position = 0
    while position < len(words):
        word = words[position]
        if position in overrides:
            name, _, given = word.partition("=")
            foreign[name] = given
            position += 1
            continue
        position += 1
        match = _FLAG.fullmatch(word)
        if match is None or ("_" not in match[1] and match[1] not in theirs):
            kept.append(word)  # a flag of ours, or the value of one
            continue
        values = [] if match[2] is None else [match[2]]
        while match[2] is None and position < len(words) and not (position in overrides or words[position][:2] == "--"):
            values.append(words[position])
            position += 1
        name = match[1].replace("-", "_")
        value: str | list[str] | bool = values if len(values) > 1 else values[0] if values else True
        foreign[name] = value
    return kept, foreign


def _is_override(words: Sequence[str], position: int, theirs: Collection[str]) -> bool:
    """Not so when it is the value of the flag before it."""
    match = _OVERRIDE.fullmatch(words[position])
    before = _FLAG.fullmatch(words[position - 1]) if position else None
    return bool(match and match[1] in theirs and (before is None or before[2] is not None))


def _is_foreign(name: str, ours: Collection[str]) -> bool:
    return "_" in name and name.replace("_", "-") not in ours


def _hyphened(word: str, ours: Collection[str]) -> str:
    match = _FLAG.fullmatch(word)
    if match and match[1] not in ours and match[1].replace("_", "-") in ours:
        return word.replace(match[1], match[1].replace("_", "-"), 1)
    return word
