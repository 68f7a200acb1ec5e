"""Answers to choose between, as tokens: pairs for DPO and ORPO, labelled answers for KTO. Rendered by the renderer that
serves, cut by turns and never within an answer, and reported on like any other data."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer, Message
from training.config import Objective
from training.dataset import NOT_LEARNED, ReadRows, TrainingRow, mix, read_sources, split_rows, unusable
from training.files import BadRow, Place
from training.formats import Document, Format, PreferencePair, Row
from training.report import Lengths, Report
from training.sources import Source
from training.turns import assistant


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
    """A prompt and both answers to it, or only one of them."""

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
    def is_pair(self) -> bool:
        return self.chosen_ids is not None and self.rejected_ids is not None

    @property
    def wanted(self) -> bool:
        """Of a single answer: the verdict."""
        return self.chosen_ids is not None

    @property
    def answer(self) -> Answer:
        return self.chosen if self.wanted else self.rejected

    @property
    def answers(self) -> list[Answer]:
        return [Answer(self.prompt_ids, ids) for ids in (self.chosen_ids, self.rejected_ids) if ids is not None]

    @property
    def num_tokens(self) -> int:
        """Tokens read to learn from it: the prompt once for each answer."""
        return sum(len(answer.input_ids) for answer in self.answers)

    def strange_answer(self, other: "PreferenceRow") -> Answer:
        """What `other` answered, as if it had been this row's prompt."""
        return Answer(self.prompt_ids, other.answer.answer_ids)

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longer answer."""
        return max(len(answer.input_ids) for answer in self.answers)

    def singly(self) -> Iterator["PreferenceRow"]:
        """A pair as two verdicts."""
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
    objective: Objective,
    format: Format | Literal["auto"] = "auto",
    system: str | None = None,
    max_length: int,
    weights: Sequence[float] = (),
    max_samples: int | None = None,
    seed: int = 0,
) -> PreferenceDataset:
    """Read, check and render files of preferences, for one of the objectives that learn from them.

    Raises Invalid or NotFound for a file that cannot be read at all or holds rows of another kind; whether the rest is
    good enough is `Report.refuse`'s to say. A row that is too long loses the earliest turns of its prompt, never a part
    of an answer; if its last question is too long still, it is left out."""
    read = read_sources(sources, format=format, max_samples=max_samples, seed=seed)
    return render_preferences(
        read, renderer, objective=objective, system=system, max_length=max_length, weights=weights
    )


def render_preferences(
    read: ReadRows,
    renderer: ChatRenderer,
    *,
    objective: Objective,
    system: str | None = None,
    max_length: int,
    weights: Sequence[float] = (),
) -> PreferenceDataset:
    """`load_preferences` on rows that are read."""
    for _, row in read.rows:
        _require_fit(row, objective)
    fitting, report = _fit_all(read, renderer, system, max_length)
    rows = [PreferenceRow(ids.prompt, ids.chosen, ids.rejected, row.place, source) for row, source, ids in fitting]
    if objective == "kto":
        rows = [single for row in rows for single in row.singly()]
        if rows and len({row.wanted for row in rows}) == 1:
            raise Invalid("kto learns from wanted and unwanted answers; all of these have the same label", param="data")
    return PreferenceDataset(rows, report, tuple(weights))


def _require_fit(row: Row, objective: Objective) -> None:
    """Invalid when the row is not of the kind that `objective` learns from."""
    if not isinstance(row, PreferencePair):
        other = "pretrain" if isinstance(row, Document) else "sft"
        raise Invalid(
            f"{row.place}: objective {objective} learns from preferences, and this row has no answers to choose "
            f"between; use --objective {other}, or a file with chosen and rejected answers",
            param="objective",
        )
    if objective != "kto" and (row.chosen is None or row.rejected is None):
        raise Invalid(
            f"{row.place}: objective {objective} compares two answers, and this row has one with a label; use "
            "--objective kto",
            param="objective",
        )


@dataclass(frozen=True)
class _Ids:
    prompt: list[int]
    chosen: list[int] | None
    rejected: list[int] | None
    left_out: int  # turns of the prompt

    @property
    def answers(self) -> list[list[int]]:
        return [ids for ids in (self.chosen, self.rejected) if ids is not None]


def _fit_all(
    read: ReadRows, renderer: ChatRenderer, system: str | None, max_length: int
) -> tuple[list[tuple[PreferencePair, int, _Ids]], Report]:
    """Rows that can be learned, each with its data set and tokens, and what was noticed about all of them."""
    bad = list(read.bad)
    too_long: list[BadRow] = []
    shortened: list[BadRow] = []
    unending: list[BadRow] = []
    fitting: list[tuple[PreferencePair, int, _Ids]] = []
    for source, row in read.rows:
        assert isinstance(row, PreferencePair)  # the caller has seen to it
        row = _with_system(row, system)
        answers = [assistant(text) for text in (row.chosen, row.rejected) if text is not None]
        if reason := unusable([*row.prompt, *answers], bool(row.tools) or _has_calls(row.prompt), renderer):
            bad.append(BadRow(row.place, "", reason))
            continue
        try:
            ids = _fitted(row, renderer, max_length)
        except Invalid as error:
            bad.append(BadRow(row.place, "", error.message))
            continue
        if ids is not None and ids.chosen == ids.rejected:
            bad.append(BadRow(row.place, "rejected", "is the same as the chosen answer"))
            continue
        if ids is None:
            reason = f"its last question and longer answer have more than max-length {max_length} tokens"
            too_long.append(BadRow(row.place, "", reason))
            continue
        if ids.left_out:
            shortened.append(BadRow(row.place, "", f"{ids.left_out} turns left out for max-length {max_length}"))
        if any(answer[-1] not in renderer.stop_token_ids for answer in ids.answers):
            unending.append(BadRow(row.place, "", "an answer ends without an end of turn"))
        fitting.append((row, source, ids))
    distinct = {(tuple(ids.prompt), *map(tuple, ids.answers)) for _, _, ids in fitting}
    systems = {row.prompt[0]["content"] if row.prompt[0]["role"] == "system" else None for row, _, _ in fitting}
    report = Report(
        formats=read.formats,
        good=len(fitting),
        bad=bad,
        duplicates=len(fitting) - len(distinct),
        shortened=shortened,
        too_long=too_long,
        max_length=max_length,
        lengths=Lengths.of(
            (len(ids.prompt) + sum(map(len, ids.answers)), sum(map(len, ids.answers))) for _, _, ids in fitting
        ),
        unending=unending,
        conversations=len(fitting),
        system_prompt=systems.pop() if len(systems) == 1 else None,
        with_tools=sum(bool(row.tools) for row, _, _ in fitting),
        reasoning_left_out=sum(row.left_out_reasoning for row, _, _ in fitting),
    )
    return fitting, report


def _fitted(row: PreferencePair, renderer: ChatRenderer, max_length: int) -> _Ids | None:
    """The row with as much of its prompt as fits before its longer answer; None when none does."""
    for prompt in _shorter(row.prompt):
        ids = renderer.prompt_ids(prompt, tools=row.tools, thinking=False)

        def answer(text: str | None, prompt: Sequence[Message] = prompt) -> list[int] | None:
            if text is None:
                return None
            return renderer.encode(renderer.reply_text(prompt, assistant(text), tools=row.tools, thinking=False))

        found = _Ids(ids, answer(row.chosen), answer(row.rejected), len(row.prompt) - len(prompt))
        if len(ids) + max(map(len, found.answers)) <= max_length:
            return found
    return None


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
