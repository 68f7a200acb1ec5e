"""What cutting a persona out of a novel takes whoever it is: as many whole sentences as fit, and the command line."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from training.extraction.rules import read_paragraphs, write_rows

Mend = Callable[[str], str | None]  # a sentence as it should read; None: it cannot be used


def _as_it_is(sentence: str) -> str:
    return sentence


def last_sentences(text: str, most: int, mend: Mend = _as_it_is) -> str:
    """As much of the end as reads well and has at most `most` characters; what was said last is what gets answered."""
    kept = ""
    for sentence in reversed(_sentences(text)):
        better = mend(sentence)
        if better is None or len(better + kept) > most:
            break
        kept = better + kept
    return kept


def first_sentences(text: str, most: int, mend: Mend = _as_it_is, *, least_cut: int = 0) -> str:
    """As much of the beginning as reads well and has at most `most` characters. "" when sentences were lost and fewer
    than `least_cut` are left."""
    kept = ""
    for sentence in _sentences(text):
        better = mend(sentence)
        if better is None or len(kept + better) > most:
            return kept if len(kept) >= least_cut else ""
        kept += better
    return kept


def _sentences(text: str) -> list[str]:
    return re.findall("[^。！？]*[。！？]+”?", text)


def write_persona(
    module: str,
    description: str,
    novel: str,
    rows_of: Callable[[Sequence[str], str], list[dict[str, str]]],
    argv: Sequence[str] | None,
) -> None:
    """`python -m MODULE CORPUS OUTPUT`. `rows_of` takes the corpus's paragraphs and its name."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("corpus", type=Path, help=f'.jsonl(.gz) rows {{"text": ...}}: {novel} among other novels')
    parser.add_argument("output", type=Path, help="the JSON file to write")
    args = parser.parse_args(argv)
    try:
        rows = rows_of(read_paragraphs(args.corpus), args.corpus.name)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_rows(rows, args.output)
    print(f"{len(rows)} rows → {args.output}")
