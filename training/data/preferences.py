"""Answers to choose between, as tokens: pairs for DPO and ORPO, single answers with a label for KTO. Rendered by the
renderer that serves, cut by turns and never within an answer, and reported on like any other data."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer, Message
from training.data.dataset import NOT_LEARNED, ReadRows, TrainingRow, mix, read_sources, split_rows, unusable
from training.data.files import BadRow, Place
from training.data.formats import Document, Format, PreferencePair
from training.data.report import Lengths, Report
from training.data.sources import Source
from training.data.turns import assistant


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt, end of turn included."""

    prompt_ids: list[int]
    answer_ids: list[int]

    @property
    def input_ids(self) -> list[int]:
        return self.prompt_ids + self.answer_ids

    def as_row(self, place: Place) -> TrainingRow:
        return TrainingRow(self.input_ids, [NOT_LEARNED] * len(self.prompt_ids) + self.answer_ids, place)


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt and both answers to it, or only one of them: a wanted or an unwanted one."""

    prompt_ids: list[int]
    chosen_ids: list[int] | None
    rejected_ids: list[int] | None
    place: Place
    source: int = 0  # which of the run's data sets it is from

    @property
    def chosen(self) -> Answer:
        assert self.chosen_ids is not None
        return Answer(self.prompt_ids, self.chosen_ids)

    @property
    def rejected(self) -> Answer:
        assert self.rejected_ids is not None
        return Answer(self.prompt_ids, self.rejected_ids)

    @property
    def answers(self) -> list[Answer]:
        return [Answer(self.prompt_ids, ids) for ids in (self.chosen_ids, self.rejected_ids) if ids is not None]

    @property
    def wanted(self) -> bool:
        """Of a single answer: the label."""
        return self.chosen_ids is not None

    @property
    def answer(self) -> Answer:
        """The single answer."""
        return self.chosen if self.wanted else self.rejected

    @property
    def num_tokens(self) -> int:
        """Tokens read to learn from it: the prompt once for each answer."""
        return sum(len(answer.input_ids) for answer in self.answers)

    def strange_answer(self, other: "PreferenceRow") -> Answer:
        """What `other` answers, as if it had been asked this row's prompt."""
        return Answer(self.prompt_ids, other.answer.answer_ids)

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longer answer."""
        return max(len(answer.input_ids) for answer in self.answers)

    def singly(self) -> Iterator["PreferenceRow"]:
        """Each answer as a row of its own."""
        if self.chosen_ids is not None:
            yield replace(self, rejected_ids=None)
        if self.rejected_ids is not None:
            yield replace(self, chosen_ids=None)


@dataclass(frozen=True)
class PreferenceDataset:
    """Rendered rows and the report on them; `weights` as in a Dataset."""

    rows: list[PreferenceRow]
    report: Report
    weights: tuple[float, ...] = ()

    def split(self, share: float, seed: int) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
        """(training, validation) rows, as a Dataset is split; rows with the same prompt stay together."""
        training, validation = split_rows(self.rows, lambda row: tuple(row.prompt_ids), share, seed)
        if self.weights:
            training = mix(training, lambda row: row.source, self.weights, seed)
        return training, validation


def load_preferences(
    sources: Iterable[Path | Source],
    renderer: ChatRenderer,
    *,
    objective: Literal["dpo", "kto", "orpo"],
    format: Format | Literal["auto"] = "auto",
    system: str | None = None,
    max_length: int,
    weights: Sequence[float] = (),
    max_samples: int | None = None,
    seed: int = 0,
) -> PreferenceDataset:
    """Read, check and render all files. kto has rows of one answer (a pair makes two), dpo and orpo pairs.

    Raises Invalid or NotFound for a file that cannot be read at all, or holds other rows than `objective` learns from;
    whether the rest is good enough is `Report.refuse`'s to say. A row that is too long loses the earliest turns of its
    prompt, never a part of an answer; if its last question is too long still, it is left out."""
    read = read_sources(sources, format=format, max_samples=max_samples, seed=seed)
    dataset = render_preferences(
        read, renderer, objective=objective, system=system, max_length=max_length, weights=weights
    )
    if objective == "kto" and (reason := one_sided(dataset.rows)):
        raise Invalid(reason, param="data")
    return dataset


def unsplit(rows: Sequence[TrainingRow] | Sequence[PreferenceRow]) -> str:
    """Why no row can be held out for validation, where splitting has left none."""
    if len(rows) == 1:
        found = "one row cannot be split"
    elif isinstance(rows[0], PreferenceRow):
        found = f"all {len(rows)} rows answer the same prompt, and such rows stay together"
    else:
        found = f"all {len(rows)} rows are equal or of one conversation, and such rows stay together"
    return f"{found}, so that none is left to validate on; add other rows, or give --val-split 0"


def one_sided(rows: Sequence[PreferenceRow]) -> str:
    """Why kto cannot learn from these single answers; "" when it can."""
    if rows and len({row.wanted for row in rows}) == 1:
        return "kto learns from wanted and unwanted answers; all of these have the same label"
    return ""


def render_preferences(
    read: ReadRows,
    renderer: ChatRenderer,
    *,
    objective: Literal["dpo", "kto", "orpo"],
    system: str | None = None,
    max_length: int,
    weights: Sequence[float] = (),
) -> PreferenceDataset:
    """`load_preferences` on rows that are read, whatever their labels."""
    work = _Rendering(renderer, max_length, bad=list(read.bad))
    for source, row in read.rows:
        if not isinstance(row, PreferencePair):
            other = "pretrain" if isinstance(row, Document) else "sft"
            raise Invalid(
                f"{row.place}: objective {objective} learns from preferences, and these are "
                f"{read.formats[row.place.path]} rows; use --objective {other}, or chosen and rejected answers",
                param="objective",
            )
        if objective != "kto" and (row.chosen is None or row.rejected is None):
            raise Invalid(
                f"{row.place}: objective {objective} compares two answers, and this row has one; use --objective kto",
                param="objective",
            )
        work.row(source, _with_system(row, system))
    rows = [single for row in work.rows for single in row.singly()] if objective == "kto" else work.rows
    keys = {(tuple(row.prompt_ids), tuple(row.chosen_ids or ()), tuple(row.rejected_ids or ())) for row in work.rows}
    return PreferenceDataset(
        rows,
        Report(
            formats=read.formats,
            good=len(work.rows),
            bad=work.bad,
            duplicates=len(work.rows) - len(keys),
            shortened=work.shortened,
            too_long=work.too_long,
            max_length=max_length,
            lengths=Lengths.of(
                (len(answer.input_ids), len(answer.answer_ids)) for row in work.rows for answer in row.answers
            ),
            unending=work.unending,
            conversations=len(work.rows),
            system_prompt=next(iter(work.systems)) if len(work.systems) == 1 else system,
            with_tools=work.with_tools,
            reasoning_left_out=work.reasoning_left_out,
        ),
        tuple(weights),
    )


class _Rendering:
    """Rows as they are rendered, and what is noticed about them."""

    def __init__(self, renderer: ChatRenderer, max_length: int, *, bad: list[BadRow]):
        self.renderer = renderer
        self.max_length = max_length
        self.rows: list[PreferenceRow] = []
        self.bad = bad
        self.shortened: list[BadRow] = []
        self.too_long: list[BadRow] = []
        self.unending: list[BadRow] = []
        self.systems: set[str | None] = set()  # system messages of the rows
        self.with_tools = 0
        self.reasoning_left_out = 0

    def row(self, source: int, pair: PreferencePair) -> None:
        answers = [assistant(text) for text in (pair.chosen, pair.rejected) if text is not None]
        said = [name for name, text in zip(pair.fields, (pair.chosen, pair.rejected), strict=True) if text is not None]
        fields = [*(["prompt"] * len(pair.prompt)), *said]
        uses_tools = bool(pair.tools) or _has_calls(pair.prompt)
        found = unusable([*pair.prompt, *answers], fields, uses_tools, self.renderer)
        if not found and pair.chosen == pair.rejected:
            found = pair.fields[1], "the rejected answer is the same as the chosen one"
        if found:
            self.bad.append(BadRow(pair.place, *found))
            return
        try:
            fitted, left_out = self._fitted(pair, source)
        except Invalid as error:
            self.bad.append(BadRow(pair.place, "", error.message))
            return
        if fitted is None:
            answer = "longer answer" if len(answers) > 1 else "its answer"
            reason = f"its last question and {answer} have more than max-length {self.max_length} tokens"
            self.too_long.append(BadRow(pair.place, "", reason))
            return
        if left_out:
            reason = f"{left_out} turns left out for max-length {self.max_length}"
            self.shortened.append(BadRow(pair.place, "", reason))
        if any(answer.answer_ids[-1] not in self.renderer.stop_token_ids for answer in fitted.answers):
            self.unending.append(BadRow(pair.place, "", "an answer ends without an end of turn"))
        self.rows.append(fitted)
        self.systems.add(pair.prompt[0]["content"] if pair.prompt[0]["role"] == "system" else None)
        self.with_tools += bool(pair.tools)
        self.reasoning_left_out += pair.left_out_reasoning

    def _fitted(self, pair: PreferencePair, source: int) -> tuple[PreferenceRow | None, int]:
        """The row with as much of its prompt as fits before its longer answer (None: nothing does), and how many of
        its turns are left out."""
        for prompt in _shorter(pair.prompt):
            row = PreferenceRow(
                self.renderer.prompt_ids(prompt, tools=pair.tools, thinking=False),
                self._answer(prompt, pair.chosen, pair),
                self._answer(prompt, pair.rejected, pair),
                pair.place,
                source,
            )
            if row.length <= self.max_length:
                return row, len(pair.prompt) - len(prompt)
        return None, 0

    def _answer(self, prompt: Sequence[Message], text: str | None, pair: PreferencePair) -> list[int] | None:
        if text is None:
            return None
        said = self.renderer.reply_text(prompt, assistant(text), tools=pair.tools, thinking=False)
        return self.renderer.encode(said)


def _shorter(prompt: Sequence[Message]) -> Iterable[Sequence[Message]]:
    """The prompt, then without its earliest turns, each time up to a later question; the system message stays."""
    yield prompt
    head = list(prompt[:1]) if prompt[0]["role"] == "system" else []
    for index in range(len(head) + 1, len(prompt)):
        if prompt[index]["role"] == "user":
            yield [*head, *prompt[index:]]


def _with_system(row: PreferencePair, system: str | None) -> PreferencePair:
    if system is None or row.prompt[0]["role"] == "system":
        return row
    return replace(row, prompt=(Message(role="system", content=system), *row.prompt))


def _has_calls(prompt: Sequence[Message]) -> bool:
    return any(message["role"] == "tool" or "tool_calls" in message for message in prompt)
