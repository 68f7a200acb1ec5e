"""From rows to tokens: check, report, split, render.

Everything a user should know about a data set before minutes or hours are spent on it comes out of here as one
Report; what is wrong with it is refused here. How files are read and rows understood is left to `files.py` and
`formats.py`."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer
from training.files import BadRow, Place
from training.formats import DataFile, Document, Example, Format, PreferencePair, read_data

MAX_BAD_SHARE = 0.05
NOT_LEARNED = -100  # the label that loss functions pass over
_LISTED = 10  # bad rows a report lists; the rest are counted


@dataclass(frozen=True)
class TrainingRow:
    """Tokens and, at the same places, what is learned from them: the token itself or NOT_LEARNED."""

    input_ids: list[int]
    labels: list[int]
    place: Place

    @property
    def learned_tokens(self) -> int:
        return sum(label != NOT_LEARNED for label in self.labels)


@dataclass(frozen=True)
class Lengths:
    """Tokens a row has."""

    shortest: int
    median: int
    p95: int
    longest: int
    total: int
    learned: int

    @classmethod
    def of(cls, rows: Sequence[TrainingRow]) -> "Lengths":
        lengths = sorted(len(row.input_ids) for row in rows) or [0]

        def at(share: float) -> int:
            return lengths[min(len(lengths) - 1, int(share * len(lengths)))]

        learned = sum(row.learned_tokens for row in rows)
        return cls(lengths[0], at(0.5), at(0.95), lengths[-1], sum(lengths), learned)


@dataclass(frozen=True)
class Report:
    """What was found in the files, and what a training run would make of it."""

    formats: dict[str, Format]  # by file
    good: int
    bad: list[BadRow]
    duplicates: int  # rows equal to an earlier one; they are trained on, and never split from it
    shortened: int  # rows whose last turns were left out to fit max_length
    too_long: list[BadRow]  # rows left out because not even their first answer fits
    max_length: int
    lengths: Lengths
    end_of_turn_share: float  # of the conversations, those whose answers all end with a learned end of turn
    system_prompt: str | None  # the one system message that all rows share
    with_tools: int
    with_reasoning: int

    @property
    def bad_share(self) -> float:
        return len(self.bad) / max(1, self.good + len(self.bad) + len(self.too_long))

    def refuse(self, *, strict: bool) -> None:
        """Raises Invalid when these rows should not be trained on."""
        wrong = [*self.bad, *self.too_long]
        if strict and wrong:
            raise Invalid(f"{wrong[0]} (--strict allows no such row; {_count(len(wrong), 'row')} like this)")
        if self.bad_share > MAX_BAD_SHARE:
            raise Invalid(
                f"{len(self.bad)} of {self.good + len(self.bad)} rows cannot be used, more than "
                f"{MAX_BAD_SHARE:.0%}; the first: {self.bad[0]}. `bianlian data check` lists them",
                param="data",
            )
        if not self.good:
            reason = f"; the first: {wrong[0]}" if wrong else ""
            raise Invalid(f"no row is left to train on{reason}", param="data")

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for path, format in self.formats.items():
            yield f"{path}: {format}"
        yield f"rows: {self.good} good, {len(self.bad)} bad ({self.bad_share:.1%}), {self.duplicates} duplicates"
        kinds = Counter(row.kind for row in self.bad)
        if kinds["empty"]:
            yield f"empty: {_count(kinds['empty'], 'row')} with an empty question or answer, left out"
        yield from _listing(self.bad)
        n = self.lengths
        yield (
            f"tokens a row: {n.shortest} to {n.longest}, median {n.median}, 95% up to {n.p95}; "
            f"{n.total:,} in all, {n.learned:,} learned"
        )
        if self.shortened:
            yield f"shortened: {_count(self.shortened, 'row')} lost last turns beyond {self.max_length} tokens"
        if self.too_long:
            yield f"too long: {_count(len(self.too_long), 'row')} left out"
            yield from _listing(self.too_long)
        yield f"end of turn learned in {self.end_of_turn_share:.1%} of conversations"
        if self.end_of_turn_share < 1:
            yield (
                "  the rest never learn to stop: the base's chat template ends an answer with no token "
                "that stops generation"
            )
        if self.system_prompt is not None:
            yield f"system prompt: {self.system_prompt}"
        if self.with_tools:
            yield f"tools: {_count(self.with_tools, 'row')} list tools, which are not shown to the model yet"
        if self.with_reasoning:
            yield f"reasoning: {_count(self.with_reasoning, 'row')} carry reasoning, which is not learned yet"


def _listing(rows: Sequence[BadRow]) -> Iterator[str]:
    yield from (f"  {row}" for row in rows[:_LISTED])
    if len(rows) > _LISTED:
        yield f"  and {len(rows) - _LISTED} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Dataset:
    """Rendered rows and the report on them."""

    rows: list[TrainingRow]
    report: Report

    def split(self, share: float, seed: int) -> tuple[list[TrainingRow], list[TrainingRow]]:
        """(training, validation) rows: `share` of the distinct rows, picked by `seed`, are for validation. Equal
        rows stay together, so that nothing is validated on what was learned. Keeps one row for training, and one
        for validation where `share` is not 0."""
        groups: dict[tuple[int, ...], list[TrainingRow]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row.input_ids), []).append(row)
        picked = list(groups.values())
        random.Random(seed).shuffle(picked)
        held_out = min(len(picked) - 1, max(1, round(share * len(picked)))) if share else 0
        ids = {id(row) for group in picked[:held_out] for row in group}
        return [row for row in self.rows if id(row) not in ids], [row for row in self.rows if id(row) in ids]


def load_dataset(
    paths: Iterable[Path],
    renderer: ChatRenderer,
    *,
    format: Format | Literal["auto"] = "auto",
    system: str | None = None,
    max_length: int,
) -> Dataset:
    """Read, check and render all files. Raises Invalid or NotFound for a file that cannot be read at all, and for
    preference data; whether the rest is good enough is `Report.refuse`'s to say."""
    files = [read_data(path, format) for path in paths]
    bad = [row for file in files for row in file.bad]
    examples = list(_trainable(files, bad, renderer))
    if system is not None:
        examples = [row.with_system(system) if isinstance(row, Example) else row for row in examples]
    rows: list[TrainingRow] = []
    too_long: list[BadRow] = []
    shortened = 0
    ends = 0
    for example in examples:
        if isinstance(example, Document):
            rows += _render_document(example, renderer, max_length)
            continue
        try:
            row = render(example, renderer)
        except Invalid as error:
            bad.append(BadRow(example.place, "", error.message))
            continue
        ends += _learns_to_stop(row, renderer.stop_token_ids)
        fitting = fit(row, max_length, renderer.stop_token_ids)
        if fitting is None:
            reason = f"{len(row.input_ids)} tokens, and its first answer ends beyond max-length {max_length}"
            too_long.append(BadRow(example.place, "", reason))
            continue
        shortened += fitting is not row
        rows.append(fitting)
    conversations = [row for row in examples if isinstance(row, Example)]
    report = Report(
        formats={str(file.path): file.format for file in files},
        good=len({row.place for row in rows}),
        bad=bad,
        duplicates=len(rows) - len({tuple(row.input_ids) for row in rows}),
        shortened=shortened,
        too_long=too_long,
        max_length=max_length,
        lengths=Lengths.of(rows),
        end_of_turn_share=ends / len(conversations) if conversations else 1.0,
        system_prompt=_shared_system(conversations) or system,
        with_tools=sum(bool(row.tools) for row in conversations),
        with_reasoning=sum(bool(row.reasoning) for row in conversations),
    )
    return Dataset(rows, report)


def data_sha256(paths: Iterable[Path]) -> str:
    """One hash over the bytes of all files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def render(example: Example, renderer: ChatRenderer) -> TrainingRow:
    rendered = renderer.example(example.messages, example.learn)
    labels = [token if learned else NOT_LEARNED for token, learned in zip(rendered.ids, rendered.learned, strict=True)]
    return TrainingRow(rendered.ids, labels, example.place)


def fit(row: TrainingRow, max_length: int, stop_token_ids: frozenset[int]) -> TrainingRow | None:
    """`row` if it fits, else its first turns up to the last answer that fits whole, end of turn included. None
    when there is no such answer: half an answer would teach to stop, or ramble on, in the middle."""
    if len(row.input_ids) <= max_length:
        return row
    for end in range(max_length, 0, -1):
        if row.labels[end - 1] in stop_token_ids:
            return TrainingRow(row.input_ids[:end], row.labels[:end], row.place)
    return None


def _render_document(document: Document, renderer: ChatRenderer, max_length: int) -> Iterator[TrainingRow]:
    ids = renderer.encode(document.text)
    if renderer.stop_token_ids:
        ids.append(renderer.tokenizer.eos_token_id)
    for start in range(0, len(ids), max_length):
        part = ids[start : start + max_length]
        if len(part) > 1:  # one token alone has nothing to be predicted from
            yield TrainingRow(part, part, document.place)


def _trainable(files: Iterable[DataFile], bad: list[BadRow], renderer: ChatRenderer) -> Iterator[Example | Document]:
    special = re.compile("|".join(re.escape(token) for token in _special_tokens(renderer)) or r"(?!)")
    for file in files:
        for row in file.rows:
            if isinstance(row, PreferencePair):
                raise Invalid(
                    f"{file.path}: {file.format} rows are preferences; train on them with --objective "
                    f"{'kto' if file.format == 'kto' else 'dpo (or orpo, or kto)'}",
                    param="objective",
                )
            texts = [row.text] if isinstance(row, Document) else [message["content"] for message in row.messages]
            if found := next((match for text in texts if (match := special.search(text))), None):
                bad.append(BadRow(row.place, "", f"contains {found[0]}, which the base reads as a control token"))
            else:
                yield row


def _special_tokens(renderer: ChatRenderer) -> list[str]:
    return [str(token) for token in renderer.tokenizer.all_special_tokens]


def _learns_to_stop(row: TrainingRow, stop_token_ids: frozenset[int]) -> bool:
    """Whether every learned stretch of the row ends with a token that stops generation."""
    following = [*row.labels[1:], NOT_LEARNED]
    lasts = [a for a, b in zip(row.labels, following, strict=True) if a != NOT_LEARNED and b == NOT_LEARNED]
    return bool(lasts) and all(label in stop_token_ids for label in lasts)


def _shared_system(conversations: Sequence[Example]) -> str | None:
    """The system message, when all conversations have one and the same."""
    systems = {row.messages[0]["content"] if row.messages[0]["role"] == "system" else None for row in conversations}
    return systems.pop() if len(systems) == 1 else None
