"""Preference rows: a prompt with a wanted and an unwanted answer (dpo, orpo), or with one answer and a verdict (kto).
Rendered by the renderer that serves, so that the prompt is, to the token, what an adapter will be asked."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer, Message
from training.dataset import NOT_LEARNED, Lengths, Report, TrainingRow
from training.files import BadRow, Place
from training.formats import DataFile, Document, Example, Format, PreferencePair, read_data


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
    """Both answers, or only one of them."""

    prompt_ids: list[int]
    chosen_ids: list[int] | None
    rejected_ids: list[int] | None
    place: Place

    @property
    def chosen(self) -> Answer:
        assert self.chosen_ids is not None
        return Answer(self.prompt_ids, self.chosen_ids)

    @property
    def rejected(self) -> Answer:
        assert self.rejected_ids is not None
        return Answer(self.prompt_ids, self.rejected_ids)

    @property
    def wanted(self) -> bool:
        """Of a single answer: the verdict."""
        return self.chosen_ids is not None

    @property
    def answer(self) -> Answer:
        return self.chosen if self.wanted else self.rejected

    def strange_answer(self, other: "PreferenceRow") -> Answer:
        """What `other` answered, as if it had been this row's prompt."""
        return Answer(self.prompt_ids, other.answer.answer_ids)

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids or []), len(self.rejected_ids or []))

    def singly(self) -> Iterator["PreferenceRow"]:
        """A pair as two verdicts."""
        if self.chosen_ids is not None:
            yield PreferenceRow(self.prompt_ids, self.chosen_ids, None, self.place)
        if self.rejected_ids is not None:
            yield PreferenceRow(self.prompt_ids, None, self.rejected_ids, self.place)


@dataclass(frozen=True)
class PreferenceDataset:
    rows: list[PreferenceRow]
    report: Report

    def split(self, share: float, seed: int) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
        """(training, validation) rows: `share` of the prompts, picked by `seed`, are for validation, with everything
        that answers them. Keeps one prompt for training, and one for validation where `share` is not 0."""
        prompts = sorted({tuple(row.prompt_ids) for row in self.rows})
        random.Random(seed).shuffle(prompts)
        held_out = set(prompts[: min(len(prompts) - 1, max(1, round(share * len(prompts))))] if share else [])
        training = [row for row in self.rows if tuple(row.prompt_ids) not in held_out]
        return training, [row for row in self.rows if tuple(row.prompt_ids) in held_out]


def load_preferences(
    paths: Iterable[Path],
    renderer: ChatRenderer,
    *,
    objective: Literal["dpo", "kto", "orpo"],
    format: Format | Literal["auto"] = "auto",
    system: str | None = None,
    max_length: int,
) -> PreferenceDataset:
    """Read, check and render all files. Raises Invalid or NotFound for a file that cannot be read, or that is no
    preference data of the kind `objective` learns from."""
    files = [read_data(path, format) for path in paths]
    bad = [row for file in files for row in file.bad]
    rows: list[PreferenceRow] = []
    too_long: list[BadRow] = []
    for file in files:
        for pair in _pairs(file, objective):
            try:
                row = render_preference(pair, renderer, system)
            except Invalid as error:
                bad.append(BadRow(pair.place, "", error.message))
                continue
            if row.length > max_length:
                reason = f"{row.length} tokens with its longer answer, beyond max-length {max_length}"
                too_long.append(BadRow(pair.place, "", reason))
            elif row.chosen_ids == row.rejected_ids:
                bad.append(BadRow(pair.place, "rejected", "is the same as the chosen answer"))
            else:
                rows += row.singly() if objective == "kto" else [row]
    if objective == "kto" and rows and len({row.wanted for row in rows}) == 1:
        raise Invalid("kto learns from wanted and unwanted answers; all of these have the same label", param="data")
    return PreferenceDataset(rows, _report(files, rows, bad, too_long, max_length, system))


def render_preference(pair: PreferencePair, renderer: ChatRenderer, system: str | None = None) -> PreferenceRow:
    """Raises Invalid when the template refuses the messages."""
    prompt = list(pair.prompt)
    if system is not None and prompt[0]["role"] != "system":
        prompt.insert(0, Message(role="system", content=system))
    ids = renderer.prompt_ids(prompt)

    def answer(text: str | None) -> list[int] | None:
        if text is None:
            return None
        if found := next((token for token in map(str, renderer.tokenizer.all_special_tokens) if token in text), None):
            raise Invalid(f"contains {found}, which the base reads as a control token")
        messages = [*prompt, Message(role="assistant", content=text)]
        learn = [False] * len(prompt) + [True]
        rendered = renderer.example(messages, learn)
        assert rendered.ids[: len(ids)] == ids  # the renderer's promise
        return rendered.ids[len(ids) :]

    return PreferenceRow(ids, answer(pair.chosen), answer(pair.rejected), pair.place)


def _pairs(file: DataFile, objective: str) -> Iterator[PreferencePair]:
    for row in file.rows:
        if isinstance(row, Example | Document):
            other = "pretrain" if isinstance(row, Document) else "sft"
            raise Invalid(
                f"{file.path}: objective {objective} learns from preferences, and these are {file.format} rows; use "
                f"--objective {other}, or a file with chosen and rejected answers",
                param="objective",
            )
        if objective != "kto" and (row.chosen is None or row.rejected is None):
            raise Invalid(
                f"{row.place}: objective {objective} compares two answers, and this row has one; use --objective kto",
                param="objective",
            )
        yield row


def _report(
    files: Sequence[DataFile],
    rows: Sequence[PreferenceRow],
    bad: list[BadRow],
    too_long: list[BadRow],
    max_length: int,
    system: str | None,
) -> Report:
    answers = [answer for row in rows for answer in ([row.chosen] if row.chosen_ids else [])]
    answers += [row.rejected for row in rows if row.rejected_ids]
    systems = {_system(pair) for file in files for pair in file.rows if isinstance(pair, PreferencePair)}
    shared = next(iter(systems), None)
    keys = {(tuple(row.prompt_ids), tuple(row.chosen_ids or ()), tuple(row.rejected_ids or ())) for row in rows}
    return Report(
        formats={str(file.path): file.format for file in files},
        good=len({row.place for row in rows}),
        bad=bad,
        duplicates=len(rows) - len(keys),
        shortened=0,
        too_long=too_long,
        max_length=max_length,
        lengths=Lengths.of([answer.as_row(rows[0].place) for answer in answers]),
        end_of_turn_share=1.0,
        system_prompt=shared if len(systems) == 1 and shared else system,
        with_tools=0,
        with_reasoning=0,
    )


def _system(pair: PreferencePair) -> str | None:
    return pair.prompt[0]["content"] if pair.prompt[0]["role"] == "system" else None
