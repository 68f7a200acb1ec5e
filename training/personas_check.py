"""Are the rows of the shipped personas fit to train on? What repeats, how long, in which language, in whose manner.

A persona is learned from what its replies share, so the counts go by reply: each as often as a row ends a turn with
it. `python -m training.personas_check` prints them for every file and what is wrong, and fails if anything is."""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapters.settings import BUNDLED
from training.data.formats import Example, read_data
from training.samples import DATA, sample_config, sample_names

PORTRAITS = BUNDLED / "portraits"
MAX_PORTRAIT_BYTES = 6 * 1024
MAX_SAME_REPLY = 3
MAX_SAME_QUESTION = 6
MAX_SAME_FRAME = 15  # distinct replies that share a run of words
MIN_SAME_LANGUAGE = 0.98  # of replies in the language of their question; the rest are translations asked for

Language = Literal["zh", "en", "question's"]


@dataclass(frozen=True)
class Expected:
    """What a file promises. Lengths are of a reply: Chinese in characters, English in words, marks included."""

    rows: int
    language: Language
    shortest: int
    longest: int
    manner: str = ""  # pattern that gives the speaker away
    share: float = 0.0  # of replies that match it, at least
    max_same_reply: int = MAX_SAME_REPLY


# Cut from the novels: as their authors wrote them, so only what a row needs to be read at all.
_CUT = Expected(rows=100, language="zh", shortest=4, longest=120, max_same_reply=8)
_AT_SEA = (
    r"(?i)\b(?:sailor|shipmate|ahoy|aye|ship|boat|sail|sea|ocean|tide|wave|wind|storm|fog|deck|harbour|anchor|compass|"
    r"chart|map|star|lantern|lamp|light|rope|knot|mast|wheel|captain|crew|cook|soup|oats|ballast|gerald|whale|gull|crab|"
    r"fish|brass|gear|rivet|spring|boiler|hinge|oil|bell|galley|hammock|port|bow|bilge|island|coast|shore|course|voyage|"
    r"watch|biscuit|log|water|float|sink|current|horizon|moor|berth|dock|cargo|hold|hull|rust|steer|navigat|needle|flag|"
    r"signal|overboard|aboard|afloat|drift|reef|barrel|robot|plank|north|rock|pier|rig|steam|squall|gauge|dolphin|seal)"
)
_DAIYU = (
    "罢|呢|倒|横竖|可知|可见|偏|竟|原|不过|仔细|何苦|何必|越发|也使得|省得|便|竹|泪|药|诗|落花|紫鹃|鹦哥|帘|病|咳|帕"
)
EXPECTED = {
    "wukong.json": _CUT,
    "wukong_everyday.jsonl": Expected(600, "zh", 9, 60, "老孙|俺", 0.95),
    "niangniang.jsonl": Expected(1000, "zh", 10, 60, "本宫|臣妾", 0.95),
    "daiyu.json": _CUT,
    "daiyu_everyday.jsonl": Expected(250, "zh", 8, 60, _DAIYU, 0.95),
    "halyard.jsonl": Expected(700, "en", 8, 40, _AT_SEA, 0.95),
    # One sentence as in a telegram, without its full stop: nothing is exclaimed, asked back or added.
    "brief.jsonl": Expected(600, "question's", 1, 15, r"\A[^。！？.!?\n]+\Z", 1.0),
}


@dataclass(frozen=True)
class Counts:
    """What one file's replies are like; shares are of all replies."""

    rows: int
    several_turns: float  # share of rows
    replies: Counter[str]
    questions: Counter[str]  # that open a conversation
    frames: Counter[str]  # runs of 6 characters or 4 words, by how many distinct replies have them
    shortest: int
    longest: int
    mean: float
    same_language: float
    in_manner: float


def count(examples: Sequence[Example], expected: Expected) -> Counts:
    """Count the replies of at least one example."""
    turns = [turn for example in examples for turn in _turns(example)]
    replies = Counter(reply for _, reply in turns)
    sizes = [size(reply) for _, reply in turns]
    return Counts(
        rows=len(examples),
        several_turns=sum(len(list(_turns(example))) > 1 for example in examples) / len(examples),
        replies=replies,
        questions=Counter(next(_turns(example))[0] for example in examples),
        frames=Counter(frame for reply in replies for frame in set(_frames(reply))),
        shortest=min(sizes),
        longest=max(sizes),
        mean=sum(sizes) / len(sizes),
        same_language=sum(_in_language(reply, question, expected.language) for question, reply in turns) / len(turns),
        in_manner=sum(bool(re.search(expected.manner, reply)) for _, reply in turns) / len(turns),
    )


def faults(counts: Counts, expected: Expected) -> list[str]:
    """What is wrong with a file, in sentences; nothing when it keeps what it promises."""
    found = []
    if counts.rows < expected.rows:
        found.append(f"{counts.rows} rows, {expected.rows} expected")
    if counts.shortest < expected.shortest or counts.longest > expected.longest:
        found.append(
            f"replies of {counts.shortest} to {counts.longest}, {expected.shortest} to {expected.longest} expected"
        )
    limits = (
        ("reply", counts.replies, expected.max_same_reply),
        ("question", counts.questions, MAX_SAME_QUESTION),
        ("frame", counts.frames, MAX_SAME_FRAME),
    )
    for name, counted, limit in limits:
        found += [f"{name} {times} times, {limit} at most: {text}" for text, times in counted.items() if times > limit]
    if counts.same_language < MIN_SAME_LANGUAGE:
        found.append(
            f"{counts.same_language:.1%} of the replies in the right language, {MIN_SAME_LANGUAGE:.0%} expected"
        )
    if counts.in_manner < expected.share:
        found.append(f"{counts.in_manner:.1%} of the replies in the manner, {expected.share:.0%} expected")
    return found


def card_faults(name: str) -> list[str]:
    """What is wrong with a persona's card and portrait: its samples are questions its data answers."""
    config = sample_config(name)
    asked = {example.messages[0]["content"] for path in config.data for example in read_examples(path)}
    found = [f"sample question is not in the data: {sample}" for sample in config.card.samples if sample not in asked]
    if len(config.card.samples) != 3 or not config.card.title or not config.card.greeting:
        found.append("a card needs a title, a greeting and three sample questions")
    portrait = PORTRAITS / f"{name}.svg"
    if not portrait.is_file():
        found.append(f"there is no portrait {portrait}")
    elif portrait.stat().st_size > MAX_PORTRAIT_BYTES:
        found.append(f"{portrait}: {portrait.stat().st_size} bytes, {MAX_PORTRAIT_BYTES} at most")
    elif outside := re.findall(r"<text|<script|<image|href|@import|url\((?!#)", portrait.read_text(encoding="utf-8")):
        found.append(f"{portrait}: {', '.join(outside)} needs something outside the file")
    return found


def read_examples(path: Path) -> list[Example]:
    """The conversations of a file of which no row may be bad; raises ValueError where one is."""
    file = read_data(path)
    if file.bad:
        raise ValueError(str(file.bad[0]))
    return [row for row in file.rows if isinstance(row, Example)]


def size(text: str) -> int:
    """Characters of a Chinese text, words of an English one."""
    return len(text) if is_chinese(text) else len(text.split())


def is_chinese(text: str) -> bool:
    return bool(re.search("[\u4e00-\u9fff]", text))


def _in_language(reply: str, question: str, language: Language) -> bool:
    return is_chinese(reply) == (is_chinese(question) if language == "question's" else language == "zh")


def _turns(example: Example) -> Iterator[tuple[str, str]]:
    texts = [message["content"] for message in example.messages if message["role"] != "system"]
    return zip(texts[::2], texts[1::2], strict=True)


def _frames(text: str) -> Iterator[str]:
    if is_chinese(text):
        yield from (text[i : i + 6] for i in range(len(text) - 5))
    else:
        words = re.findall(r"[\w'-]+", text.lower())
        yield from (" ".join(words[i : i + 4]) for i in range(len(words) - 3))


def _line(name: str, counts: Counts, manner: str) -> str:
    reply, reply_times = counts.replies.most_common(1)[0]
    frame, frame_times = counts.frames.most_common(1)[0]
    in_manner = f", {counts.in_manner:.0%} in the manner" if manner else ""
    lengths = f"{counts.shortest}–{counts.longest} (mean {counts.mean:.0f})"
    return (
        f"{name}: {counts.rows} rows, {counts.several_turns:.0%} of several turns; {len(counts.replies)} different "
        f"replies of {lengths}{in_manner}; most repeated {reply_times}× “{reply}”, "
        f"frame {frame_times}× “{frame}”"
    )


def main() -> None:
    """Print the counts of every shipped file, then what is wrong; exit status 1 if anything is."""
    found = [f"{name}: {fault}" for name in sample_names() for fault in card_faults(name)]
    for file, expected in EXPECTED.items():
        counts = count(read_examples(DATA / file), expected)
        print(_line(file, counts, expected.manner))
        found += [f"{file}: {fault}" for fault in faults(counts, expected)]
    print("\n".join(found) or "nothing wrong")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
