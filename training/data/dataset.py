"""From rows to tokens: read, check, render, split, mix.

Everything a user should know about a data set before minutes or hours are spent on it comes out of here as one
Report; what is wrong with it is refused there. How files are read and rows understood is left to `files.py` and
`formats.py`; what pairs of answers become to `preferences.py`."""

import hashlib
import json
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer, Message, RenderedExample
from training.data.files import BadRow, Place
from training.data.formats import MAX_CHARACTERS, Document, Example, Format, PreferencePair, Row, read_data
from training.data.report import Lengths, Report
from training.data.sources import Source

NOT_LEARNED = -100  # the label that loss functions pass over
_END_OF_TEXT = "<|endoftext|>"  # after a document, where the tokenizer has it; its end of turn elsewhere
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingRow:
    """Tokens and, at the same places, what is learned from them: the token itself or NOT_LEARNED."""

    input_ids: list[int]
    labels: list[int]
    place: Place
    source: int = 0  # which of the run's data sets it is from

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def learned_tokens(self) -> int:
        return sum(label != NOT_LEARNED for label in self.labels)

    @property
    def is_text(self) -> bool:
        """Of documents: all of it is learned."""
        return NOT_LEARNED not in self.labels


@dataclass(frozen=True)
class ReadRows:
    """All files, read: rows with the number of their data set."""

    rows: list[tuple[int, Row]]
    bad: list[BadRow]
    formats: dict[str, Format]  # by file


@dataclass(frozen=True)
class Dataset:
    """Rendered rows and the report on them. `weights`, if any, are the shares of the data sets in the training rows."""

    rows: list[TrainingRow]
    report: Report
    weights: tuple[float, ...] = ()

    def split(self, share: float, seed: int) -> tuple[list[TrainingRow], list[TrainingRow]]:
        """(training, validation) rows: `share` of the distinct conversations, picked by `seed`, are for validation.
        Equal rows stay together, so that nothing is validated on what was learned. Keeps one conversation for training,
        and one for validation where `share` is not 0. Weights are for the training rows."""
        last: dict[tuple[int, Place], tuple[int, ...]] = {}  # a conversation in several rows is whole in its last
        for row in self.rows:
            last[row.source, row.place] = tuple(row.input_ids)

        def conversation(row: TrainingRow) -> Hashable:
            return tuple(row.input_ids) if row.is_text else last[row.source, row.place]

        training, validation = split_rows(self.rows, conversation, share, seed)
        if self.weights:
            training = mix(training, lambda row: row.source, self.weights, seed)
        return training, validation


def split_rows(rows: Sequence[T], key: Callable[[T], Hashable], share: float, seed: int) -> tuple[list[T], list[T]]:
    """(training, validation) rows, in their order: `share` of the groups of equal `key`, picked by `seed`, are for
    validation; at least one where `share` is not 0, and never all."""
    keys = list(dict.fromkeys(map(key, rows)))
    random.Random(seed).shuffle(keys)
    held_out = set(keys[: min(len(keys) - 1, max(1, round(share * len(keys))))] if share else [])
    return [row for row in rows if key(row) not in held_out], [row for row in rows if key(row) in held_out]


def mix(rows: Sequence[T], source: Callable[[T], int], weights: Sequence[float], seed: int) -> list[T]:
    """As many rows as there are, of each source the share its weight asks for: some rows of a source that has too many,
    picked by `seed`, and rows of one that has too few again and again, all of them before any once more.

    Raises Invalid when weights are not positive, or a source has no row."""
    if any(weight <= 0 for weight in weights):
        raise Invalid("data_weights must be above 0; leave out a data set instead", param="data_weights")
    generator = random.Random(seed)
    mixed: list[T] = []
    taken = 0.0
    for number, weight in enumerate(weights):
        own = [row for row in rows if source(row) == number]
        if not own:
            raise Invalid(f"data set {number + 1} has a weight, but no row to train on", param="data_weights")
        before, taken = round(taken * len(rows)), taken + weight / sum(weights)
        times, rest = divmod(round(taken * len(rows)) - before, len(own))
        extra = sorted(generator.sample(range(len(own)), rest))
        mixed += own * times + [own[index] for index in extra]
    return mixed


def load_dataset(
    sources: Iterable[Path | Source],
    renderer: ChatRenderer,
    *,
    format: Format | Literal["auto"] = "auto",
    system: str | None = None,
    max_length: int,
    mask_history: bool = False,
    thinking: bool | None = None,
    weights: Sequence[float] = (),
    max_samples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read, check and render all files. Raises Invalid or NotFound for a file that cannot be read at all, and for
    preference data; whether the rest is good enough is `Report.refuse`'s to say."""
    read = read_sources(sources, format=format, max_samples=max_samples, seed=seed)
    return render_rows(
        read,
        renderer,
        system=system,
        max_length=max_length,
        mask_history=mask_history,
        thinking=thinking,
        weights=weights,
    )


def read_sources(
    sources: Iterable[Path | Source],
    *,
    format: Format | Literal["auto"] = "auto",
    max_samples: int | None = None,
    seed: int = 0,
) -> ReadRows:
    """All rows of all files. `max_samples` takes the first rows of each data set, after its own `num_samples` were
    drawn by `seed`."""
    rows: list[tuple[int, Row]] = []
    bad: list[BadRow] = []
    formats: dict[str, Format] = {}
    for number, source in enumerate(sources):
        if not isinstance(source, Source):
            source = Source((source,), format)
        own: list[Row] = []
        limit = None if source.num_samples else max_samples
        for path in source.paths:
            file = read_data(path, source.format, mapping=source.mapping, limit=limit)
            own += file.rows
            bad += file.bad
            formats[str(path)] = file.format
        if source.num_samples and own:
            own = _drawn(own, source.num_samples, random.Random(f"{seed} {number}"))
        rows += [(number, row) for row in own[:max_samples]]
    return ReadRows(rows, bad, formats)


def _drawn(rows: list[Row], count: int, generator: random.Random) -> list[Row]:
    """`count` of the rows in their order; some of them again where there are fewer."""
    times, rest = divmod(count, len(rows))
    return rows * times + [rows[index] for index in sorted(generator.sample(range(len(rows)), rest))]


def render_rows(
    read: ReadRows,
    renderer: ChatRenderer,
    *,
    system: str | None = None,
    max_length: int,
    mask_history: bool = False,
    thinking: bool | None = None,
    weights: Sequence[float] = (),
) -> Dataset:
    """Rows as tokens. `thinking` None learns thoughts where rows and template have them. Raises Invalid for preference
    data, and for thoughts that are asked for where the template has no place for them."""
    can_think = renderer.reasoning_marks is not None
    if thinking and not can_think:
        raise Invalid("thinking: the base's chat template has no place for thoughts; leave it out", param="thinking")
    work = _Rendering(renderer, max_length, learns_thoughts=can_think and thinking is not False)
    for source, row in read.rows:
        match row:
            case PreferencePair():
                raise Invalid(
                    f"{row.place}: {_not_to_repeat(row)}, or give a file of questions and answers", param="data"
                )
            case Document():
                work.document(source, row)
            case Example():
                example = row.with_system(system) if system is not None else row
                work.conversation(source, example.with_last_answer() if mask_history else example)
    report = Report(
        formats=read.formats,
        good=work.good,
        bad=[*read.bad, *work.bad],
        duplicates=len(work.whole) - len(set(work.whole)),
        shortened=work.shortened,
        too_long=work.too_long,
        max_length=max_length,
        lengths=Lengths.of((len(row.input_ids), row.learned_tokens) for row in work.rows),
        unending=work.unending,
        conversations=work.conversations,
        system_prompt=_shared_system(row for _, row in read.rows if isinstance(row, Example)) or system,
        with_tools=work.with_tools,
        with_reasoning=work.with_reasoning,
        reasoning_left_out=work.reasoning_left_out,
    )
    return Dataset(work.rows, report, tuple(weights))


def _not_to_repeat(row: PreferencePair) -> str:
    if row.chosen is None or row.rejected is None:
        return "an answer with a verdict on it, not one to repeat; train on such answers with --objective kto"
    return "answers to choose between, not to repeat; train on them with --objective dpo, orpo or kto"


class _Rendering:
    """Rows as they are rendered, and what is noticed about them."""

    def __init__(self, renderer: ChatRenderer, max_length: int, *, learns_thoughts: bool):
        self.renderer = renderer
        self.max_length = max_length
        self.learns_thoughts = learns_thoughts
        self.rows: list[TrainingRow] = []
        self.whole: list[tuple[int, ...]] = []  # each conversation or document once, also if it takes several rows
        self.good = 0  # rows of the files
        self.bad: list[BadRow] = []
        self.shortened: list[BadRow] = []
        self.too_long: list[BadRow] = []
        self.unending: list[BadRow] = []
        self.conversations = 0
        self.with_tools = 0
        self.with_reasoning = 0
        self.reasoning_left_out = 0

    def conversation(self, source: int, example: Example) -> None:
        if found := unusable(example.messages, example.fields, example.uses_tools, self.renderer):
            self.bad.append(BadRow(example.place, *found))
            return
        thinks = example.has_reasoning and self.learns_thoughts
        try:
            rows = render(example, self.renderer, thinking=thinks, source=source)
        except Invalid as error:
            self.bad.append(BadRow(example.place, "", error.message))
            return
        stops = self.renderer.stop_token_ids
        fitting = [(row, fit(row, self.max_length, stops)) for row in rows]
        kept = [short for _, short in fitting if short]
        longest = max(len(row.input_ids) for row in rows)
        if not kept:
            reason = f"{longest} tokens, and its first answer ends beyond max-length {self.max_length}"
            self.too_long.append(BadRow(example.place, "", reason))
            return
        if any(row is not short for row, short in fitting):
            reason = f"{longest} tokens; the turns beyond max-length {self.max_length} are left out"
            self.shortened.append(BadRow(example.place, "", reason))
        if not all(_learns_to_stop(row, stops) for row in kept):
            self.unending.append(BadRow(example.place, "", "an answer ends without a learned end of turn"))
        self.rows += kept
        self.whole.append(tuple(kept[-1].input_ids))
        self.good += 1
        self.conversations += 1
        self.with_tools += example.uses_tools
        self.with_reasoning += thinks
        self.reasoning_left_out += example.has_reasoning and not thinks

    def document(self, source: int, document: Document) -> None:
        """A document and its end of text, cut into rows of max_length. Short ones share rows when they are packed,
        without reading each other."""
        if found := control_token([document.text], self.renderer):
            self.bad.append(BadRow(document.place, "text", found))
            return
        ids = self._tokens(document.text)
        self.good += 1
        self.whole.append(tuple(ids))
        for start in range(0, len(ids), self.max_length):
            part = ids[start : start + self.max_length]
            if len(part) > 1:  # one token alone has nothing to be predicted from
                self.rows.append(TrainingRow(part, part, document.place, source))

    def _tokens(self, text: str) -> list[int]:
        tokenizer = self.renderer.tokenizer
        known = tokenizer.get_added_vocab()
        end = known.get(_END_OF_TEXT, tokenizer.eos_token_id)
        ids = [token for piece in pieces_of(text) for token in self.renderer.encode(piece)]
        return ids + ([end] if end is not None else [])


def pieces_of(text: str) -> Iterator[str]:
    """`text` in pieces of at most MAX_CHARACTERS, cut at the ends of lines where there are any."""
    start = 0
    while start < len(text):
        end = start + MAX_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def data_sha256(paths: Iterable[Path]) -> str:
    """One hash over the bytes of all files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def render(example: Example, renderer: ChatRenderer, *, thinking: bool = False, source: int = 0) -> list[TrainingRow]:
    """The conversation as rows: one, unless the base's template rewrites earlier turns. Without `thinking` its thoughts
    are left out."""
    messages = example.messages if thinking else tuple(map(without_thoughts, example.messages))
    rendered = renderer.examples(messages, example.learn, tools=example.tools, thinking=thinking)
    return [TrainingRow(row.ids, _labels(row), example.place, source) for row in rendered]


def _labels(row: RenderedExample) -> list[int]:
    return [token if learned else NOT_LEARNED for token, learned in zip(row.ids, row.learned, strict=True)]


def without_thoughts(message: Message) -> Message:
    if "reasoning_content" not in message:
        return message
    bare: Any = {key: value for key, value in message.items() if key != "reasoning_content"}
    return bare  # type: ignore[no-any-return]


def fit(row: TrainingRow, max_length: int, stop_token_ids: frozenset[int]) -> TrainingRow | None:
    """`row` if it fits, else its first turns up to the last answer that fits whole, end of turn included. None
    when there is no such answer: half an answer would teach to stop, or ramble on, in the middle."""
    if len(row.input_ids) <= max_length:
        return row
    for end in range(max_length, 0, -1):
        if row.labels[end - 1] in stop_token_ids:
            return replace(row, input_ids=row.input_ids[:end], labels=row.labels[:end])
    return None


def unusable(
    messages: Sequence[Message], fields: Sequence[str], uses_tools: bool, renderer: ChatRenderer
) -> tuple[str, str] | None:
    """(field, reason) when the base cannot be trained on these messages, which are from `fields` of a row; None when it
    can."""
    if uses_tools and not renderer.has_tools:
        return (
            "tools",
            "uses tools, and the base's chat template has no place for them; train a base whose template has, "
            "or leave such rows out",
        )
    # What others say is disarmed by the renderer, here as in serving; the model's own words are not.
    for message, field in zip(messages, fields, strict=True):
        if message["role"] == "assistant" and (found := control_token(_own_words(message), renderer)):
            return field, found
    return None


def _own_words(message: Message) -> Iterator[str]:
    yield message["content"]
    yield message.get("reasoning_content", "")
    for call in message.get("tool_calls", []):
        yield json.dumps(call["function"], ensure_ascii=False)


def control_token(texts: Iterable[str], renderer: ChatRenderer) -> str:
    """Says which control token of the base is spelled out in one of the texts; "" when none is."""
    found = next((token for text in texts for token in renderer.special_texts if token in text), None)
    if found is None:
        return ""
    return (
        f"contains {found}, which the base reads as a control token, so that it would learn to write one; spell it "
        "otherwise, or leave the row out"
    )


def _learns_to_stop(row: TrainingRow, stop_token_ids: frozenset[int]) -> bool:
    """Whether every learned stretch of the row ends with a token that stops generation."""
    following = [*row.labels[1:], NOT_LEARNED]
    lasts = [a for a, b in zip(row.labels, following, strict=True) if a != NOT_LEARNED and b == NOT_LEARNED]
    return bool(lasts) and all(label in stop_token_ids for label in lasts)


def _shared_system(conversations: Iterable[Example]) -> str | None:
    """The system message, when all conversations have one and the same."""
    systems: Iterator[str | None] = (
        row.messages[0]["content"] if row.messages[0]["role"] == "system" else None for row in conversations
    )
    distinct = set(systems)
    return distinct.pop() if len(distinct) == 1 else None
