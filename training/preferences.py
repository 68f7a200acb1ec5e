"""Answers to choose between, as tokens: pairs for DPO and ORPO, labelled answers for KTO. Rendered by the renderer that
serves, cut by turns and never within an answer, and reported on like any other data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer, Message
from training.dataset import ReadRows, mix, read_sources, split_rows, unusable
from training.files import BadRow, Place
from training.formats import Format, PreferencePair
from training.report import Lengths, Report
from training.sources import Source
from training.turns import assistant


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt and the two answers to it, each with its end of turn."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    place: Place
    source: int = 0  # which of the run's data sets it is from


@dataclass(frozen=True)
class LabelledRow:
    """A prompt and one answer, wanted (`label` True) or not."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool
    place: Place
    source: int = 0


R = TypeVar("R", PreferenceRow, LabelledRow)


@dataclass(frozen=True)
class Preferences(Generic[R]):
    """Rendered rows and the report on them; `weights` as in a Dataset."""

    rows: list[R]
    report: Report
    weights: tuple[float, ...] = ()

    def split(self, share: float, seed: int) -> tuple[list[R], list[R]]:
        """(training, validation) rows, as a Dataset is split; rows with the same prompt stay together."""
        training, validation = split_rows(self.rows, lambda row: tuple(row.prompt_ids), share, seed)
        if self.weights:
            training = mix(training, lambda row: row.source, self.weights, seed)
        return training, validation


def load_preferences(
    sources: Iterable[Path | Source],
    renderer: ChatRenderer,
    *,
    format: Format | Literal["auto"] = "auto",
    system: str | None = None,
    max_length: int,
    weights: Sequence[float] = (),
    max_samples: int | None = None,
    seed: int = 0,
) -> Preferences[PreferenceRow]:
    """Read, check and render files of pairs.

    Raises Invalid or NotFound for a file that cannot be read at all or holds other rows; whether the rest is good
    enough is `Report.refuse`'s to say. A row that is too long loses the earliest turns of its prompt, never a part of
    an answer; if its last question is too long still, it is left out."""
    read = read_sources(sources, format=format, max_samples=max_samples, seed=seed)
    return render_pairs(read, renderer, system=system, max_length=max_length, weights=weights)


def load_labelled(
    sources: Iterable[Path | Source],
    renderer: ChatRenderer,
    *,
    format: Format | Literal["auto"] = "auto",
    system: str | None = None,
    max_length: int,
    weights: Sequence[float] = (),
    max_samples: int | None = None,
    seed: int = 0,
) -> Preferences[LabelledRow]:
    """As `load_preferences`, for files of labelled answers; a pair is two of them."""
    read = read_sources(sources, format=format, max_samples=max_samples, seed=seed)
    return render_labelled(read, renderer, system=system, max_length=max_length, weights=weights)


def render_pairs(
    read: ReadRows,
    renderer: ChatRenderer,
    *,
    system: str | None = None,
    max_length: int,
    weights: Sequence[float] = (),
) -> Preferences[PreferenceRow]:
    """`load_preferences` on rows that are read."""
    pairs = [row for _, row in read.rows if isinstance(row, PreferencePair)]
    single = next((row for row in pairs if row.chosen is None or row.rejected is None), None)
    if single:
        raise Invalid(
            f"{single.place}: one answer with a label, where a pair of answers is needed; train on it with "
            "--objective kto",
            param="objective",
        )
    fitting, report = _fit_all(read, renderer, system, max_length)
    rows = [
        PreferenceRow(ids.prompt, ids.chosen, ids.rejected, row.place, source)
        for row, source, ids in fitting
        if ids.chosen is not None and ids.rejected is not None
    ]
    return Preferences(rows, report, tuple(weights))


def render_labelled(
    read: ReadRows,
    renderer: ChatRenderer,
    *,
    system: str | None = None,
    max_length: int,
    weights: Sequence[float] = (),
) -> Preferences[LabelledRow]:
    """`load_labelled` on rows that are read."""
    fitting, report = _fit_all(read, renderer, system, max_length)
    rows = [
        LabelledRow(ids.prompt, answer, label, row.place, source)
        for row, source, ids in fitting
        for answer, label in ((ids.chosen, True), (ids.rejected, False))
        if answer is not None
    ]
    return Preferences(rows, report, tuple(weights))


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
        if not isinstance(row, PreferencePair):
            raise Invalid(
                f"{row.place}: no answers to choose between; dpo and orpo need chosen and rejected, kto an answer with "
                "a label. Train on this with --objective sft",
                param="data",
            )
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
