"""Dialogue extraction by rules, for Chinese fiction that marks speech with quotation marks.

A document becomes scenes, a scene becomes lines and narration in reading order, and a line by the persona
is paired with what was said to them just before. A speaker the rules cannot name stays None and is never
paired: a wrong speaker teaches a persona somebody else's manner. Whether a row is *good* the caller judges.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

Aliases = Mapping[str, Sequence[str]]  # canonical name -> the names the text uses for it

SCENE_GAP = 400  # characters of narration after which an answer no longer answers
MERGE_GAP = 16  # characters of narration a speaker may be interrupted by; after more he often means another
RESUME_GAP = 40  # characters within which 「又道：」 still means the one who spoke last
PAIR_GAP = 60  # characters of narration between a line and its answer
MAX_LEAD = 40  # characters between a subject and the speech; in more, somebody else may have come in
MAX_QUOTE = 800  # a longer quotation is one whose closing mark was lost


@dataclass(frozen=True, slots=True)
class Source:
    """Where a text begins: document name, paragraph (row) index and character offset in it, both from 0."""

    document: str
    paragraph: int
    offset: int


@dataclass(frozen=True, slots=True)
class Line:
    """What one speaker said without being answered; `speaker` is None where the rules cannot tell."""

    speaker: str | None
    text: str
    source: Source


@dataclass(frozen=True, slots=True)
class Narration:
    """Text between lines, without the clause that only announces the next speaker."""

    text: str
    source: Source


@dataclass(frozen=True, slots=True)
class Scene:
    """Lines and narration in reading order, under the last chapter heading seen ("" before the first)."""

    title: str
    events: tuple[Line | Narration, ...]

    @property
    def lines(self) -> list[Line]:
        """The spoken events alone."""
        return [event for event in self.events if isinstance(event, Line)]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the persona's reply; the prompt is a Narration only where nobody spoke before."""

    prompt: Line | Narration
    reply: Line
    scene: str


def extract(paragraphs: Iterable[str], aliases: Aliases, document: str = "") -> list[Scene]:
    """Read consecutive paragraphs of one document into scenes.

    A quotation, or a speaker and the quotation he announces, may run over a paragraph's end. Consecutive
    lines by one speaker are merged unless more than MERGE_GAP characters of narration stand between them.
    """
    page = _Page(paragraphs, document)
    names = _Names(aliases)
    scenes: list[Scene] = []
    builder = _SceneBuilder("")
    done = 0
    for quote in [*_quotes(page.text), None]:
        between = page.text[done : quote.start - 1 if quote else len(page.text)]
        turn = _last_break(between)
        if turn is not None or len(between) > SCENE_GAP:
            heading = turn.heading if turn and turn.heading else builder.title
            scenes.append(builder.scene())
            builder = _SceneBuilder(heading)
            skipped = turn.end if turn else between.rfind("。", 0, -1) + 1
            done, between = done + skipped, between[skipped:]
        if quote is None:
            builder.narrate(between, page.source(done))
            break
        text = page.text[quote.start : quote.end].replace("\n", "").strip()
        after = page.text[quote.end + 1 : quote.end + 25]
        cue = _read_cue(between, after, names, builder.last_speaker) if quote.closed else _Cue(None, 0, True)
        builder.narrate(between[: len(between) - cue.length], page.source(done))
        if cue.spoken:
            builder.say(Line(cue.speaker, text, page.source(quote.start)))
        else:  # a name, an inscription, a thought: part of what is told
            builder.narrate(text, page.source(quote.start))
        done = quote.end + 1 if quote.closed else quote.end
    scenes.append(builder.scene())
    return [scene for scene in scenes if scene.events]


def pair(scenes: Iterable[Scene], persona: str, narration: bool = False) -> Iterator[Pair]:
    """Pair each of the persona's lines with the line before it, by another known speaker in the same scene.

    With `narration`, a line that opens its scene is paired with the narration before it instead.
    """
    for scene in scenes:
        prompt: Line | Narration | None = None
        told = 0  # characters of narration since the last line
        for event in scene.events:
            if isinstance(event, Narration):
                told += len(event.text)
                if narration and not isinstance(prompt, Line):
                    prompt = event
                continue
            if event.speaker == persona and prompt is not None and _asks(prompt, persona, told):
                yield Pair(prompt, event, scene.title)
            prompt, told = event, 0


def _asks(prompt: Line | Narration, persona: str, told: int) -> bool:
    return isinstance(prompt, Narration) or (prompt.speaker not in (None, persona) and told <= PAIR_GAP)


def to_alpaca(pairs: Iterable[Pair], system: str = "", sources: bool = False) -> list[dict[str, str]]:
    """Alpaca rows (instruction, input, output), with `system` if given and the reply's place if `sources`.

    Pairs that repeat both texts are kept once; a reply that recurs after another prompt is kept.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for item in pairs:
        row = {"instruction": item.prompt.text, "input": "", "output": item.reply.text}
        if system:
            row["system"] = system
        if sources:
            place = item.reply.source
            row["source"] = f"{place.document}:{place.paragraph}:{place.offset}"
        rows.setdefault((row["instruction"], row["output"]), row)
    return list(rows.values())


def read_paragraphs(path: Path) -> list[str]:
    """The lines of a text file, or the `text` of each row of a JSONL file; either may be gzipped.

    Raises ValueError naming file and line for a row without a `text` string.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    if ".jsonl" not in path.suffixes:
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'{path}:{number}: expected an object like {{"text": "..."}}')
        texts.append(row["text"])
    return texts


def novel(rows: Sequence[str], heading: str) -> tuple[int, int]:
    """First row of the novel whose first chapter is headed `heading`, and the row after its last.

    The next novel begins with the next row that is headed 第一回. Raises ValueError if no row contains the heading."""
    start = next((index for index, row in enumerate(rows) if heading in row), None)
    if start is None:
        raise ValueError(f"no row contains {heading!r}: is the novel in this corpus?")
    following = (i for i in range(start + 1, len(rows)) if rows[i].startswith("第一回") and heading not in rows[i])
    return start, next(following, len(rows))


def without(rows: Iterable[dict[str, str]], path: Path) -> list[dict[str, str]]:
    """The rows whose reply is not a line of the file, which lists what a reader found to be no answer.

    Lines that begin with # are comments."""
    left_out = {line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")}
    return [row for row in rows if row["output"] not in left_out]


# --- from text to quotations ---


class _Page:
    """The paragraphs as one text, which remembers where each began."""

    def __init__(self, paragraphs: Iterable[str], document: str) -> None:
        parts = list(paragraphs)
        self.text = "\n".join(parts)
        self._document = document
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part) + 1)

    def source(self, position: int) -> Source:
        index = bisect_right(self._starts, position) - 1
        return Source(self._document, index, position - self._starts[index])


@dataclass(frozen=True, slots=True)
class _Quote:
    start: int  # first character after the opening mark
    end: int  # the closing mark, or where an unclosed quotation is given up
    closed: bool


_CLOSER = {"“": "”", "「": "」", "『": "』", '"': '"'}
_HEADING = r"^[ \u3000]*第[一二三四五六七八九十百千零○〇\d]+[回章节][^\n。，]{0,40}$"
_BREAK = re.compile(rf"(?P<heading>{_HEADING})|且听下回分解|^[ \u3000]*(?:却说|且说|话说|话表)", re.MULTILINE)


def _quotes(text: str) -> Iterator[_Quote]:
    """Outermost quotations; marks of another kind inside one belong to its text."""
    opening, start = "", -1
    for mark in re.finditer('[“”「」『』"]', text):
        sign, position = mark.group(), mark.start()
        if start < 0:
            if sign in _CLOSER:
                opening, start = sign, position + 1
            continue
        # Transcriptions often close with the opening mark: 「……不说罢。“又冷笑道：“」
        closes = sign == _CLOSER[opening] or (sign == opening and text[position - 1] in "。！？…")
        if closes or sign == opening:
            lost = position - start > MAX_QUOTE or _BREAK.search(text[start:position]) is not None
            closed = closes and not lost
            yield _Quote(start, position, closed)
            start = -1 if closes else position + 1


@dataclass(frozen=True, slots=True)
class _Turn:
    heading: str
    end: int


def _last_break(narration: str) -> _Turn | None:
    heading, end = "", -1
    for found in _BREAK.finditer(narration):
        heading = (found["heading"] or heading).strip()
        end = found.end() if found["heading"] else found.start()
    return _Turn(heading, end) if end >= 0 else None


# --- from quotations to speakers ---

_VERB = "[道曰云说問问叫答喝骂嚷喊呼告奏报禀称言声教令]"
_ANNOUNCES = re.compile(rf"(?:{_VERB}[道着了声]?[：:；]|(?:道|说|问|答|喊)[，,]|[道叫喝]声?)\s*$")
_FOLLOWS = re.compile(rf"^[ ，,]*([^。！？：“”「」\n]{{1,12}}?[道说问答喊叫][道着]?)(?:[。，,！]|$)(?!\s*{_VERB})")
_NOT_ALOUD = re.compile(
    r"[想思忖诵写批]|暗[暗自笑喜道算]|沉吟|自言自语|心[中下内里]|[念贴题]|唤[做作]|呼为|"
    r"[书诗词赋偈歌赞咒叹]曰|上有|字[云道]|[书旨歌][道云]"
)
_BEFORE_SUBJECT = re.compile(
    r"^(?:[\s，,]|只见|忽见|却见|又见|但见|只听得|忽听得|只听见|慌得|唬得|急得|喜得|气得|恼得|忽然|原来|连忙|"
    r"早有|当时|须臾|旁边|一面|这里|那里|[这那个又正就便却即急忙忽遂])"
)
_OBJECT_MARKERS = "对向与把被将叫请问唤扯住见闻听教着拜望同和给骂谢看报告把到跟"
# What a verb phrase begins with: before the first of these stands a speaker we have no alias for.
_MANNER = (
    "笑问闻听见看对向与叫喝骂大又即便就慌忙急心满道曰云说答陪怒喜惊扯把上下在回近拱合拍点摇冷因忍不也"
    "都齐连跪拜高厉嚷喊奏告吩报禀执持接走转方乃称"
)
_ANOTHER_COMES = re.compile("齐[声道]|同声|俱|一齐|[只又却忽]见|听得|唤出|[走跳闪转]出一|跪[下在]")
_PRONOUN = re.compile("[他她它我你其咱]|自己|一人|二人|三人|那人|有人")


class _Names:
    """Known names, longest first, so that 猪八戒 is not read as somebody called 猪."""

    def __init__(self, aliases: Aliases) -> None:
        self._canonical = {name: key for key, names in aliases.items() for name in (key, *names)}
        longest_first = sorted(self._canonical, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def at_start(self, text: str) -> str | None:
        found = self._pattern.match(text)
        return self._canonical[found.group()] if found else None

    def length_at_start(self, text: str) -> int:
        found = self._pattern.match(text)
        return found.end() if found else 0

    def mentions(self, text: str) -> list[tuple[str, int, int]]:
        return [(self._canonical[m.group()], m.start(), m.end()) for m in self._pattern.finditer(text)]


@dataclass(frozen=True, slots=True)
class _Cue:
    speaker: str | None
    length: int  # trailing characters of the narration which only announce the speaker
    spoken: bool


def _read_cue(before: str, after: str, names: _Names, previous: str | None) -> _Cue:
    """Who says the quotation between `before` and `after`; `previous` spoke last in this scene."""
    clause = re.split(r"[。！？；”」\n](?!\s*$)", before)[-1]
    if _ANNOUNCES.search(clause):
        if _NOT_ALOUD.search(clause):
            return _Cue(None, 0, False)
        lead = clause.strip().rstrip("：:；，,")
        subject = _subject(lead, names)
        if subject == "" and len(before) <= RESUME_GAP:  # 又道： / 笑道： go on with the one who spoke
            others = {name for name, _, _ in names.mentions(before)} - {previous}
            subject = None if others else previous
        return _Cue(subject or None, len(clause), True)
    trailing = _FOLLOWS.match(after)
    if trailing and not _NOT_ALOUD.search(trailing[1]):
        return _Cue(_subject(trailing[1], names) or None, 0, True)
    # 「”“」 with nothing between is talk by turns, of which we do not know whose turn it is.
    return _Cue(None, 0, not before.strip())


def _subject(lead: str, names: _Names) -> str | None:
    """The grammatical subject of a clause like 行者笑道; "" if it has none, None if it is doubtful."""
    clauses = [_strip_openers(part) for part in re.split("[，,]|(?<=[毕罢时间])", lead)]
    known = {name for part in clauses if (name := names.at_start(part))}
    nearest = _name_at_verb(lead, names)
    if len(known) > 1 or (known and nearest and nearest not in known):
        return None
    if known:
        name = known.pop()
        part = next(part for part in clauses if names.at_start(part))
        rest = part[names.length_at_start(part) :]
        others = names.at_start(rest) or re.match("[、的之等]", rest) or _ANOTHER_COMES.search(rest)
        return None if others or len(rest) > MAX_LEAD else name
    if nearest or _PRONOUN.search(clauses[0][:3]):
        return None
    for part in map(_strip_openers, re.split("[，,]", lead)):
        if re.match(f"[{_MANNER}]", part):
            continue
        found = re.match(rf"(.{{1,5}}?(?:大[仙王人士师将]|上人)?)(?=[{_MANNER}])", part)
        return found[1] if found else None
    return ""


def _strip_openers(part: str) -> str:
    while found := _BEFORE_SUBJECT.match(part):
        part = part[found.end() :]
    return part


def _name_at_verb(lead: str, names: _Names) -> str | None:
    """The name directly before the final verb of speech, unless it is the one spoken to (对八戒道)."""
    for name, start, end in reversed(names.mentions(lead)):
        addressed = start > 0 and lead[start - 1] in _OBJECT_MARKERS
        if re.fullmatch(rf"[{_MANNER}嘻哈呵]{{0,4}}{_VERB}{{0,2}}", lead[end:]) and not addressed:
            return name
        return None
    return None


class _SceneBuilder:
    def __init__(self, title: str) -> None:
        self.title = title
        self.last_speaker: str | None = None
        self._events: list[Line | Narration] = []

    def narrate(self, text: str, source: Source) -> None:
        shown = text.strip("\n\u3000 ，,”」』")
        if not shown:
            return
        if self._events and isinstance(last := self._events[-1], Narration):
            self._events[-1] = replace(last, text=last.text + shown)
        else:
            self._events.append(Narration(shown, source))

    def say(self, line: Line) -> None:
        if not line.text:
            return
        self.last_speaker = line.speaker
        tail = self._events[-2:]
        last = tail[-1] if tail else None
        if isinstance(last, Narration) and len(tail) == 2 and len(last.text) <= MERGE_GAP:
            last = tail[0]
        if isinstance(last, Line) and line.speaker is not None and last.speaker == line.speaker:
            kept = self._events.index(last, max(0, len(self._events) - 2))
            self._events[kept:] = [replace(last, text=last.text + line.text)]
        else:
            self._events.append(line)

    def scene(self) -> Scene:
        return Scene(self.title, tuple(self._events))


# --- command line ---


def main(argv: Sequence[str] | None = None) -> None:
    """Write the persona's Alpaca rows as JSON; prints how many."""
    parser = argparse.ArgumentParser(prog="python -m training.extraction.rules", description=main.__doc__)
    parser.add_argument("input", type=Path, help='a .txt file, or .jsonl rows {"text": ...}; .gz of either')
    parser.add_argument("persona", help="whose lines become the replies, e.g. 林黛玉")
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--alias", action="append", default=[], metavar="NAME=A,B", help="林黛玉=黛玉,颦儿; repeatable")
    parser.add_argument("--system", default="", help="system prompt for every row")
    parser.add_argument("--narration", action="store_true", help="narration is the prompt where a scene opens")
    parser.add_argument("--sources", action="store_true", help="add document:paragraph:offset to every row")
    args = parser.parse_args(argv)
    try:
        aliases = parse_aliases(args.alias)
        paragraphs = read_paragraphs(args.input)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    aliases.setdefault(args.persona, [])
    scenes = extract(paragraphs, aliases, args.input.name)
    rows = to_alpaca(pair(scenes, args.persona, args.narration), args.system, args.sources)
    write_rows(rows, args.output)
    print(f"{len(rows)} rows of {args.persona} from {len(scenes)} scenes → {args.output}")


def parse_aliases(options: Iterable[str]) -> dict[str, list[str]]:
    """`["林黛玉=黛玉,颦儿"]` as an alias table; raises ValueError for an option without `=`."""
    table: dict[str, list[str]] = {}
    for option in options:
        name, equals, rest = option.partition("=")
        if not equals or not name:
            raise ValueError(f"alias {option!r} should look like NAME=OTHER,OTHER")
        table.setdefault(name, []).extend(filter(None, re.split("[,，]", rest)))
    return table


def write_rows(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """A JSON array, one row a line, so that a changed row is a changed line."""
    body = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{body}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
