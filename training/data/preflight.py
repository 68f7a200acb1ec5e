"""Everything to know about data before a run: what is wrong with it, what is odd about it, what it will cost, and how
the model will see it. One result for command line, API and UI; nothing is trained, and the base's weights are not
read."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import BaseModel

from adapters.base_model import pick_device
from adapters.errors import Invalid
from adapters.renderer import ChatRenderer
from adapters.settings import Device
from training.base_info import read_base
from training.config import Method, Objective, Plan, TrainConfig, max_length_for, plan_for
from training.data.dataset import NOT_LEARNED, Dataset, ReadRows, TrainingRow, read_sources, render_rows
from training.data.files import BadRow, Place
from training.data.formats import Document, Example, Format, PreferencePair, Row
from training.data.preferences import PreferenceDataset, PreferenceRow, one_sided, render_preferences, unsplit
from training.data.privacy import PrivateKind, find_private
from training.data.report import Report
from training.data.similar import near_duplicates
from training.data.sources import sources_of
from training.estimate import Estimate, Work, estimate

Script = Literal["zh", "en", "ja", "other"]
_BARS = 12  # of the histogram
_SHORT = 2  # letters and digits below which an answer is very short

Rendered = Dataset | PreferenceDataset


class Finding(BaseModel):
    """Something about one row, and where it is."""

    file: str
    line: int
    row: int | None = None  # where several share a line
    field: str = ""
    reason: str

    @classmethod
    def of(cls, bad: BadRow) -> "Finding":
        return cls.at(bad.place, bad.reason, bad.field)

    @classmethod
    def at(cls, place: Place, reason: str, field: str = "") -> "Finding":
        return cls(file=place.path, line=place.line, row=place.row, field=field, reason=reason)

    def __str__(self) -> str:
        return str(BadRow(Place(self.file, self.line, self.row), self.field, self.reason))


class PrivateFinding(Finding):
    """Personal data; `shown` is the value with most of it hidden."""

    kind: PrivateKind
    shown: str


class Bar(BaseModel):
    """Rows with `start` to `end` tokens, both included."""

    start: int
    end: int
    rows: int


class Histogram(BaseModel):
    """Tokens a row has, as it is learned."""

    bars: list[Bar]
    shortest: int
    median: int
    p95: int
    longest: int
    total: int
    learned: int


class Piece(BaseModel):
    """A stretch of tokens as text. Special tokens are spelled out."""

    text: str
    learned: bool


class PreviewRow(BaseModel):
    """A row as the model will see it; `part` says which side of a preference."""

    file: str
    line: int
    part: Literal["", "chosen", "rejected", "wanted", "unwanted"] = ""
    pieces: list[Piece]


class Preflight(BaseModel):
    """What is known before a run. Lists are whole; whoever shows them may shorten them."""

    formats: dict[str, Format]  # by file
    objectives: list[Objective]  # those the rows are for
    refused: str | None  # why training would not begin
    good: int
    bad: list[Finding]
    shortened: list[Finding]  # rows of which whole turns are left out
    too_long: list[Finding]  # rows left out
    max_length: int
    lengths: Histogram
    end_of_turn_share: float  # of conversations; training needs 1.0
    without_end_of_turn: list[Finding]
    duplicates: int  # rows equal to an earlier one
    near_duplicates: list[Finding]
    short_answers: list[Finding]
    scripts: dict[Script, int]  # rows by what most of their letters are
    private: list[PrivateFinding]
    system_prompt: str | None
    with_tools: int
    with_reasoning: int
    reasoning_left_out: int
    training_rows: int
    validation_rows: int
    method: Method  # the one that was asked for
    plan: dict[str, int | float | bool | str]  # the numbers a run would train with
    reasons: dict[str, str]  # why, for those that were chosen here
    estimates: list[Estimate]  # of all methods; empty when no row is left
    preview: list[PreviewRow]


def count_rows(findings: Iterable[Finding]) -> int:
    """Rows that something was found in."""
    return len({(one.file, one.line, one.row) for one in findings})


def preflight(config: TrainConfig, *, device: Device = "auto", preview_rows: int = 3) -> Preflight:
    """Look at the data of `config` on its base. Blocks for as long as reading takes, and a few seconds of measuring.

    Raises Invalid or NotFound for files that cannot be read at all; data that training would refuse is a result."""
    base = read_base(config.base)
    max_length = max_length_for(config, base.max_model_len)
    read = read_sources(sources_of(config), max_samples=config.max_samples, seed=config.seed)
    objectives = _objectives(read.rows)
    rendered = _render(read, objectives, config, base.renderer, max_length)
    report = rendered.report
    training, validation = _split(rendered, config)
    plan = plan_for(
        config,
        hidden_size=base.hidden_size,
        max_model_len=base.max_model_len,
        rows=len(training),
        on_cuda=pick_device(device).type == "cuda",
    )
    answers = [(row.place, text) for _, row in read.rows for text in _answers(row)]
    return Preflight(
        formats=report.formats,
        objectives=objectives,
        refused=_refusal(rendered, objectives, config) or _unsplit(rendered, validation, config),
        good=report.good,
        bad=[Finding.of(row) for row in report.bad],
        shortened=[Finding.of(row) for row in report.shortened],
        too_long=[Finding.of(row) for row in report.too_long],
        max_length=max_length,
        lengths=_histogram(report, [len(ids) for ids, _ in map(_tokens, rendered.rows)]),
        end_of_turn_share=report.end_of_turn_share,
        without_end_of_turn=[Finding.of(row) for row in report.unending],
        duplicates=report.duplicates,
        near_duplicates=list(_near_duplicates([row for _, row in read.rows])),
        short_answers=[
            Finding.at(place, f"very short answer: {text.strip()!r}")
            for place, text in answers
            if sum(map(str.isalnum, text)) < _SHORT
        ],
        scripts=dict(Counter(script_of("\n".join(_texts(row))) for _, row in read.rows)),
        private=list(_private([row for _, row in read.rows])),
        system_prompt=report.system_prompt,
        with_tools=report.with_tools,
        with_reasoning=report.with_reasoning,
        reasoning_left_out=report.reasoning_left_out,
        training_rows=len(training),
        validation_rows=len(validation),
        method=config.method,
        plan={name: value for name, value in vars(plan).items() if name != "reasons"},
        reasons=dict(plan.reasons),
        estimates=estimate(base.config, config, plan, _work(training, plan), device=device) if training else [],
        preview=preview(rendered.rows[:preview_rows], base.renderer),
    )


def preview_of(config: TrainConfig, rows: int) -> list[PreviewRow]:
    """The first `rows` rows of the data as the model will see them, and nothing else looked at."""
    base = read_base(config.base)
    read = read_sources(sources_of(config), max_samples=config.max_samples, seed=config.seed)
    read = ReadRows(read.rows[:rows], [], read.formats)
    max_length = max_length_for(config, base.max_model_len)
    rendered = _render(read, _objectives(read.rows), config, base.renderer, max_length)
    if not rendered.rows:
        wrong = [*rendered.report.bad, *rendered.report.too_long]
        raise Invalid(f"none of these rows can be learned; the first: {wrong[0]}" if wrong else "no row to show")
    return preview(rendered.rows[:rows], base.renderer)


def _objectives(rows: Iterable[tuple[int, Row]]) -> list[Objective]:
    """What the rows can be used for."""
    kinds = {type(row) for _, row in rows}
    if kinds == {PreferencePair}:
        pairs = [row for _, row in rows if isinstance(row, PreferencePair)]
        both = all(row.chosen is not None and row.rejected is not None for row in pairs)
        return ["dpo", "orpo", "kto"] if both else ["kto"]
    return ["pretrain"] if kinds == {Document} else ["sft"]


def _render(
    read: ReadRows, objectives: Sequence[Objective], config: TrainConfig, renderer: ChatRenderer, max_length: int
) -> Rendered:
    if "kto" in objectives:
        single = config.objective == "kto" or objectives == ["kto"]
        return render_preferences(
            read,
            renderer,
            objective="kto" if single else "dpo",
            system=config.system,
            max_length=max_length,
            weights=config.data_weights,
        )
    return render_rows(
        read,
        renderer,
        system=config.system,
        max_length=max_length,
        mask_history=config.mask_history,
        thinking=config.thinking,
        weights=config.data_weights,
    )


def _split(rendered: Rendered, config: TrainConfig) -> tuple[Sequence[object], Sequence[object]]:
    if not rendered.rows:
        return [], []
    return rendered.split(0 if config.validation_data else config.val_split, config.seed)


def _refusal(rendered: Rendered, objectives: Sequence[Objective], config: TrainConfig) -> str | None:
    asked = config.objective if "objective" in config.model_fields_set else None
    if asked and asked not in objectives:
        return f"--objective {asked} does not go with these rows; they are for {' or '.join(objectives)}"
    try:
        rendered.report.refuse(strict=config.strict)
    except Invalid as error:
        return error.message
    if isinstance(rendered, PreferenceDataset) and (objectives == ["kto"] or asked == "kto"):
        return one_sided(rendered.rows) or None
    return None


def _unsplit(rendered: Rendered, validation: Sequence[object], config: TrainConfig) -> str | None:
    if validation or config.validation_data or not config.val_split:
        return None
    return unsplit(rendered.rows)


def _tokens(row: object) -> tuple[list[int], list[bool]]:
    """Tokens of a rendered row, and which of them are learned."""
    match row:
        case TrainingRow():
            return row.input_ids, [label != NOT_LEARNED for label in row.labels]
        case PreferenceRow():
            longest = max(row.answers, key=lambda answer: len(answer.answer_ids))
            prompt, answer = longest.prompt_ids, longest.answer_ids
            return longest.input_ids, [False] * len(prompt) + [True] * len(answer)
    raise TypeError(f"{type(row).__name__} is no rendered row")


def _work(rows: Sequence[object], plan: Plan) -> Work:
    counted = [_tokens(row) for row in rows]
    tokens = sum(len(ids) for ids, _ in counted)
    longest = max(len(ids) for ids, _ in counted)
    return Work(len(rows), tokens, min(longest, plan.max_length), sum(sum(learned) for _, learned in counted) / tokens)


def _histogram(report: Report, lengths: Sequence[int]) -> Histogram:
    longest = max(lengths, default=0)
    width = max(1, -(-longest // _BARS))
    counted = Counter((length - 1) // width for length in lengths)
    bars = [
        Bar(start=number * width + 1, end=(number + 1) * width, rows=counted[number])
        for number in range(-(-longest // width))
    ]
    n = report.lengths
    return Histogram(
        bars=bars,
        shortest=n.shortest,
        median=n.median,
        p95=n.p95,
        longest=n.longest,
        total=n.total,
        learned=n.learned,
    )


# --- what rows say ---


def _texts(row: Row) -> Iterator[str]:
    match row:
        case Document():
            yield row.text
        case Example():
            for message in row.messages:
                yield message["content"]
                for call in message.get("tool_calls", []):
                    yield json.dumps(call["function"], ensure_ascii=False)
                if thoughts := message.get("reasoning_content"):
                    yield thoughts
        case PreferencePair():
            yield from (message["content"] for message in row.prompt)
            yield from (text for text in (row.chosen, row.rejected) if text is not None)


def _answers(row: Row) -> Iterator[str]:
    """What is learned of a conversation, calls left out: those are short by nature."""
    match row:
        case Example():
            for message, learned in zip(row.messages, row.learn, strict=True):
                if learned and "tool_calls" not in message:
                    yield message["content"]
        case PreferencePair():
            yield from (text for text in (row.chosen, row.rejected) if text is not None)


def _near_duplicates(rows: Sequence[Row]) -> Iterator[Finding]:
    for later, earlier in near_duplicates(["\n".join(_texts(row)) for row in rows]):
        yield Finding.at(rows[later].place, f"nearly the same as {rows[earlier].place}")


def _private(rows: Sequence[Row]) -> Iterator[PrivateFinding]:
    for row in rows:
        for kind, shown in dict.fromkeys(one for text in _texts(row) for one in find_private(text)):
            yield PrivateFinding(
                file=row.place.path,
                line=row.place.line,
                row=row.place.row,
                reason=f"{kind} {shown}",
                kind=kind,
                shown=shown,
            )


def script_of(text: str) -> Script:
    """The language most of the text points to: kana make it ja, else Chinese characters zh, else words in Latin letters
    en, whatever language they write. A word counts as one and a half characters, about what it takes in Chinese."""
    counted = Counter(map(_alphabet, _words(text)))
    kana, han = counted["kana"], counted["han"]
    words: dict[Script, float] = {"zh": kana + han, "en": 1.5 * counted["latin"], "other": 1.5 * counted["other"]}
    best = max(words, key=lambda script: words[script])
    if not words[best]:
        return "other"
    return "ja" if best == "zh" and 10 * kana > han else best


def _words(text: str) -> Iterator[str]:
    """Single characters where there are no spaces between words, first letters of the others."""
    before = ""
    for character in text:
        alphabet = _alphabet(character) if character.isalpha() else ""
        if alphabet in ("kana", "han") or (alphabet and alphabet != before):
            yield character
        before = alphabet


def _alphabet(character: str) -> str:
    if "\u3040" <= character <= "\u30ff":
        return "kana"
    if "\u3400" <= character <= "\u9fff":
        return "han"
    return "latin" if character.isascii() or unicodedata.name(character, "").startswith("LATIN") else "other"


# --- preview ---


def preview(rows: Sequence[object], renderer: ChatRenderer) -> list[PreviewRow]:
    """Rendered rows as text, cut where learning begins and ends."""
    shown: list[PreviewRow] = []
    for row in rows:
        match row:
            case TrainingRow():
                ids, learned = _tokens(row)
                shown.append(_preview(row.place, "", ids, learned, renderer))
            case PreferenceRow():
                both = row.chosen_ids is not None and row.rejected_ids is not None
                parts = ("chosen", "rejected") if both else ("wanted" if row.wanted else "unwanted",)
                for part, answer in zip(parts, row.answers, strict=True):
                    learned = [False] * len(answer.prompt_ids) + [True] * len(answer.answer_ids)
                    shown.append(_preview(row.place, part, answer.input_ids, learned, renderer))
    return shown


def _preview(
    place: Place, part: str, ids: Sequence[int], learned: Sequence[bool], renderer: ChatRenderer
) -> PreviewRow:
    pieces: list[Piece] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[start]:
            pieces.append(Piece(text=renderer.tokenizer.decode(list(ids[start:end])), learned=learned[start]))
            start = end
    return PreviewRow.model_validate({"file": place.path, "line": place.line, "part": part, "pieces": pieces})
