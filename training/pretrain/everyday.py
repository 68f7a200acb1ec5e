"""Write the everyday dialogues that the bundled base model, bianlian-mini, is trained on.

The dialogues are our own, written by hand for this project.  They lie in ``everyday/*.txt`` beside this
module as blocks in a plain format::

    == greeting zh            a block: its category and its language
    N: 4                      (optional) how many exchanges to draw from it (from each row, with ``T:``)
    T: 法国 / 巴黎 ; 日本 / 东京   (optional) rows for the slots {a} {b} {c} ...
    U: {a}的首都是哪里？ | {a}的首都呢？
    A: {a}的首都是{b}。 | 是{b}。

``U:`` and ``A:`` lines alternate; a block with more than one pair is a chat of several turns, and `` | ``
separates the phrasings of one line.  Lines starting with ``#`` are comments.  Small sums are written by code.

Everything is deterministic: the same files give the same output, byte for byte.

Usage: ``python -m training.pretrain.everyday [--out FILE] [--check]``
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "everyday"
DEFAULT_OUT = HERE / "everyday.jsonl"
SEED = 20240607

MAX_REPLY_CHARS = 200
MAX_SAME_REPLY = 12
MAX_SAME_OPENING = 6
#: A later turn ("Why?", "Another one, please") may recur: what it means, and its answer, come from the turns before it.
MAX_SAME_FOLLOW_UP = 40
MAX_SUMS = 350
ENGLISH_SHARE = 0.4
MIN_EXCHANGES = 20_000
MIN_MULTI_TURN = 4000

#: Frequent traditional characters whose simplified form differs; none may appear in the data.
TRADITIONAL = frozenset(
    "個們這說時來對會學國為與開關東車馬門見長風飛鳥魚龍龜麗語讀書寫聽買賣錢電話樂藥頭體點現實樣歡歲華葉萬億"
    "愛氣媽爸爺嗎麼裡裏後還沒過進遠邊從給讓誰幾當發問間題覺記憶應該訴謝請讚貓狗雞鴨豬熱涼飯麵湯雲電燈燒"
    "兒親鄰頂項順須預領顏願類顧餓館驗驚髮鬆魯鮮麥黃齊齒號處術連運達遲選適遊錯鐘鐵銀鏡陽陰陳陸隊際隨難"
    "雖雙離霧靈靜韓響頁財貴費資質贊贏趕趙躍軍輕輛輪輸轉辦農邏邁郵鄉釋針鈴鍵鎖鎮閃閉閱陣險雜經結絕統絲維"
    "綠緊線練總績織繼續罷羅義習職聯聲聰肅腦腳臉興舊藝蘇蘭蟲衛補裝製複規視觀計訂討訓許論設訪證評試詩該詳"
    "認誤課調談講謎護變豐負責貝輯歷歸殘氫決況淚淨減測漢潔灣為煙爭牆獎獨獸獻環瑪產畢畫異療盡監盤眾碼確禮"
    "種稱穩窮筆節範簡籃糧紀約紅級紙細終組綱網"
) - frozenset("爸狗罷")

_SLOT = re.compile(r"\{[^{}]*\}")
_OPENING = re.compile(r"^[a-z]|(?<=[.!?] )[a-z]")
_END = "。？！?!.~～"


@dataclass
class Block:
    """One block of a source file: the phrasings of each line of a chat, and rows for its slots."""

    category: str
    language: str
    origin: str
    lines: list[tuple[str, list[str]]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    count: int | None = None


@dataclass(frozen=True)
class Exchange:
    """One finished dialogue: its messages in order, the user first."""

    category: str
    language: str
    texts: tuple[str, ...]

    def json_line(self) -> str:
        """Return the dialogue as one line of JSON."""
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(self.texts)]
        return json.dumps({"messages": messages}, ensure_ascii=False)


def parse(text: str, origin: str) -> list[Block]:
    """Read the blocks of one source file; raise ``ValueError`` at the first malformed line."""
    blocks: list[Block] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{origin}:{number}"
        if line.startswith("== "):
            head = line[3:].split()
            if len(head) != 2 or head[1] not in ("zh", "en"):
                raise ValueError(f"{where}: expected '== category zh|en'")
            blocks.append(Block(head[0], head[1], where))
            continue
        key, colon, rest = line.partition(":")
        if not colon or not blocks:
            raise ValueError(f"{where}: unreadable line {line!r}")
        block = blocks[-1]
        if key in ("U", "A"):
            if (key == "U") != (len(block.lines) % 2 == 0):
                raise ValueError(f"{where}: U: and A: lines must alternate, U: first")
            block.lines.append((key, [part.strip() for part in rest.split(" | ")]))
        elif key == "T":
            block.rows.extend([cell.strip() for cell in row.split(" / ")] for row in rest.split(" ; "))
        elif key == "N":
            block.count = int(rest)
        else:
            raise ValueError(f"{where}: unknown key {key!r}")
    for block in blocks:
        if not block.lines or len(block.lines) % 2:
            raise ValueError(f"{block.origin}: the block does not end on an A: line")
        if len({len(row) for row in block.rows}) > 1:
            raise ValueError(f"{block.origin}: rows of different lengths")
    return blocks


def fill(text: str, row: list[str]) -> str:
    """Replace ``{a}``, ``{b}``, ... by the cells of ``row``; capitalise an English sentence opening."""
    for index, cell in enumerate(row):
        text = text.replace("{" + chr(ord("a") + index) + "}", cell)
    return _OPENING.sub(lambda match: match.group().upper(), text) if row else text


def casual(text: str, language: str) -> str:
    """Return ``text`` as someone in a hurry types it: no final mark and, in English, no first capital."""
    bare = text.rstrip(_END)
    if not bare or bare == text and language == "zh":
        return text
    first = bare.split(" ", 1)[0]
    if language == "en" and first != "I" and not first.startswith("I'") and first.isascii():
        bare = bare[0].lower() + bare[1:]
    return bare


def expand_single(users: list[str], replies: list[str], language: str, count: int | None) -> Iterator[tuple[str, str]]:
    """Pair the phrasings of a question with those of its answer, spreading both evenly."""
    forms = list(users)
    forms += [bare for bare in (casual(user, language) for user in users) if bare not in users]
    total = max(len(forms), len(replies)) if count is None else count
    total = min(total, len(forms) * len(replies))
    lap = max(len(forms), 1)
    for index in range(total):
        turn, place = divmod(index, lap)
        yield forms[place], replies[(place + turn) % len(replies)]


def expand(block: Block, rng: random.Random) -> Iterator[tuple[str, ...]]:
    """Draw the dialogues of one block."""
    for row in block.rows or [[]]:
        lines = [[fill(text, row) for text in texts] for _, texts in block.lines]
        if len(lines) == 2 and not row:
            yield from expand_single(lines[0], lines[1], block.language, block.count)
            continue
        widest = max(len(texts) for texts in lines)
        wanted = block.count if block.count is not None else (2 if row else max(widest * 2, 2))
        pools = [list(texts) for texts in lines]
        for pool in pools[::2]:
            pool.extend(bare for bare in [casual(text, block.language) for text in pool] if bare not in pool)
        seen: set[tuple[str, ...]] = set()
        for _ in range(wanted * 6):
            drawn = tuple(rng.choice(texts) for texts in pools)
            if drawn not in seen:
                seen.add(drawn)
                yield drawn
            if len(seen) >= wanted:
                break


_DIGITS = "零一二三四五六七八九"


def spoken(number: int) -> str:
    """Return a number from 0 to 99 in Chinese words."""
    tens, ones = divmod(number, 10)
    if tens == 0:
        return _DIGITS[ones]
    return ("" if tens == 1 else _DIGITS[tens]) + "十" + (_DIGITS[ones] if ones else "")


_ENGLISH_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_ENGLISH_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def spelled(number: int) -> str:
    """Return a number from 0 to 99 in English words."""
    if number < 20:
        return _ENGLISH_ONES[number]
    tens, ones = divmod(number, 10)
    return _ENGLISH_TENS[tens] + (f"-{_ENGLISH_ONES[ones]}" if ones else "")


def sums(rng: random.Random) -> Iterator[Exchange]:
    """Small additions, subtractions and multiplications, in digits and in words."""
    facts: list[tuple[int, str, int]] = []
    facts += [(a, "+", b) for a in range(1, 10) for b in range(a, 10)]
    facts += [(a + b, "-", a) for a in range(1, 10) for b in range(a, 10)]
    facts += [(a, "x", b) for a in range(2, 10) for b in range(a, 10)]
    facts += [(a * 10, "+", b * 10) for a in range(1, 5) for b in range(1, 5)]
    forms = [False] * (len(facts) * 2)
    forms[: len(facts)] = [True] * len(facts)
    jobs = list(zip(facts + facts, forms, strict=True))
    rng.shuffle(jobs)
    done: set[tuple[str, str]] = set()
    for (a, sign, b), chinese in jobs:
        answer = {"+": a + b, "-": a - b, "x": a * b}[sign]
        if chinese:
            word, mark = {"+": ("加", "+"), "-": ("减", "-"), "x": ("乘", "×")}[sign]
            asked = "等于几？" if answer < 10 else "等于多少？"
            users = [
                f"{a}{word}{b}{asked}",
                f"{a}{mark}{b}等于多少？",
                f"{a}{mark}{b}=?",
                f"{spoken(a)}{word}{spoken(b)}{asked}",
                f"{spoken(a)}{word}{spoken(b)}是多少？",
            ]
            user = rng.choice(users)
            if user in users[3:]:
                replies = [f"{spoken(a)}{word}{spoken(b)}等于{spoken(answer)}。", f"等于{spoken(answer)}。"]
            else:
                replies = [f"{a}{mark}{b}={answer}。", f"{a}{word}{b}等于{answer}。", f"等于{answer}。"]
        else:
            word = {"+": "plus", "-": "minus", "x": "times"}[sign]
            users = [
                f"What is {a} {word} {b}?",
                f"{a} {word} {b}?",
                f"What is {spelled(a)} {word} {spelled(b)}?",
            ]
            user = rng.choice(users)
            if user == users[2]:
                replies = [f"{spelled(a).capitalize()} {word} {spelled(b)} is {spelled(answer)}."]
            else:
                replies = [f"{a} {word} {b} is {answer}.", f"{a} {word} {b} equals {answer}."]
        reply = rng.choice(replies)
        if (user, reply) not in done:
            done.add((user, reply))
            yield Exchange("sums", "zh" if chinese else "en", (user, reply))
        if len(done) >= MAX_SUMS:
            return


def limited(exchanges: Iterable[Exchange]) -> Iterator[Exchange]:
    """Drop repeats, and dialogues whose opening, later turns or replies have been used often enough already."""
    seen: set[tuple[str, ...]] = set()
    openings: Counter[str] = Counter()
    follow_ups: Counter[str] = Counter()
    replies: Counter[str] = Counter()
    for exchange in exchanges:
        texts = exchange.texts
        if texts in seen:
            continue
        if openings[texts[0]] >= MAX_SAME_OPENING or any(
            follow_ups[text] >= MAX_SAME_FOLLOW_UP for text in texts[2::2]
        ):
            continue
        if any(replies[text] >= MAX_SAME_REPLY for text in texts[1::2]):
            continue
        seen.add(texts)
        openings[texts[0]] += 1
        follow_ups.update(texts[2::2])
        replies.update(texts[1::2])
        yield exchange


def balanced(exchanges: list[Exchange]) -> list[Exchange]:
    """Thin out English single exchanges, those with the most repeated replies first, down to their share.

    Every reply stays, and every phrasing of a question, as it was written or as someone in a hurry types it.
    """
    chinese = sum(exchange.language == "zh" for exchange in exchanges)
    surplus = len(exchanges) - chinese - round(chinese * ENGLISH_SHARE / (1 - ENGLISH_SHARE))
    replies = Counter(exchange.texts[1] for exchange in exchanges)
    phrasings = Counter(casual(exchange.texts[0], "en") for exchange in exchanges)
    dropped: set[tuple[str, ...]] = set()
    for least in range(max(replies.values(), default=0), 1, -1):
        for exchange in exchanges:
            texts = exchange.texts
            if len(dropped) >= surplus:
                break
            if exchange.language != "en" or len(texts) > 2 or texts in dropped:
                continue
            phrasing = casual(texts[0], "en")
            if replies[texts[1]] >= least and phrasings[phrasing] > 1:
                dropped.add(texts)
                replies[texts[1]] -= 1
                phrasings[phrasing] -= 1
    return [exchange for exchange in exchanges if exchange.texts not in dropped]


def build(source: Path = SOURCE) -> list[Exchange]:
    """Return every dialogue, shuffled with the fixed seed."""
    rng = random.Random(SEED)
    drafts: list[Exchange] = []
    for path in sorted(source.glob("*.txt")):
        for block in parse(path.read_text(encoding="utf-8"), path.name):
            for texts in expand(block, rng):
                drafts.append(Exchange(block.category, block.language, texts))
    drafts.extend(sums(rng))
    rng.shuffle(drafts)
    # Longer chats first, so that the caps on repetition cost single exchanges rather than threads.
    drafts.sort(key=lambda exchange: -len(exchange.texts))
    kept = balanced(list(limited(drafts)))
    rng.shuffle(kept)
    return kept


def faults(exchanges: list[Exchange]) -> list[str]:
    """Return what is wrong with the dialogues; nothing when they are fit to train on."""
    found: list[str] = []
    lines = [exchange.json_line() for exchange in exchanges]
    found += [f"duplicate: {line}" for line, times in Counter(lines).items() if times > 1]
    for exchange in exchanges:
        shown = " / ".join(exchange.texts)
        if not exchange.texts or len(exchange.texts) % 2:
            found.append(f"roles do not alternate up to a reply: {shown}")
        for index, text in enumerate(exchange.texts):
            if not text.strip():
                found.append(f"empty turn: {shown}")
            if text != text.strip() or "\n" in text and index % 2 == 0 or "|" in text:
                found.append(f"stray space, line break or bar: {shown}")
            if _SLOT.search(text) or "{" in text or "}" in text:
                found.append(f"unfilled slot: {shown}")
            if index % 2 and len(text) > MAX_REPLY_CHARS:
                found.append(f"reply of {len(text)} characters: {shown}")
            odd = sorted(TRADITIONAL.intersection(text))
            if odd:
                found.append(f"traditional characters {''.join(odd)}: {shown}")
    replies = Counter(text for exchange in exchanges for text in exchange.texts[1::2])
    openings = Counter(exchange.texts[0] for exchange in exchanges)
    follow_ups = Counter(text for exchange in exchanges for text in exchange.texts[2::2])
    found += [f"reply {times} times: {text}" for text, times in replies.items() if times > MAX_SAME_REPLY]
    found += [f"opening {times} times: {text}" for text, times in openings.items() if times > MAX_SAME_OPENING]
    found += [f"later turn {times} times: {text}" for text, times in follow_ups.items() if times > MAX_SAME_FOLLOW_UP]
    if len(exchanges) < MIN_EXCHANGES:
        found.append(f"only {len(exchanges)} exchanges, {MIN_EXCHANGES} wanted")
    multi = sum(len(exchange.texts) > 2 for exchange in exchanges)
    if multi < MIN_MULTI_TURN:
        found.append(f"only {multi} chats of several turns, {MIN_MULTI_TURN} wanted")
    return found


def report(exchanges: list[Exchange]) -> str:
    """Return the counts by category, language and length, and what repeats most."""
    total = max(len(exchanges), 1)
    replies = Counter(text for exchange in exchanges for text in exchange.texts[1::2])
    users = Counter(text for exchange in exchanges for text in exchange.texts[::2])
    out = [f"exchanges: {len(exchanges)}"]
    for language, times in Counter(exchange.language for exchange in exchanges).most_common():
        out.append(f"language {language}: {times} ({100 * times / total:.1f} %)")
    for turns, times in sorted(Counter(len(exchange.texts) // 2 for exchange in exchanges).items()):
        out.append(f"turns {turns}: {times}")
    for (category, language), times in sorted(
        Counter((exchange.category, exchange.language) for exchange in exchanges).items()
    ):
        out.append(f"category {category} {language}: {times}")
    out.append(f"distinct replies: {len(replies)}; distinct user messages: {len(users)}")
    out.append(f"characters: {sum(len(text) for exchange in exchanges for text in exchange.texts)}")
    out += [f"reply x{times}: {text}" for text, times in replies.most_common(8)]
    out += [f"user x{times}: {text}" for text, times in users.most_common(8)]
    return "\n".join(out)


def main(argv: list[str] | None = None) -> int:
    """Write the dialogues, or with ``--check`` count and examine them and write nothing."""
    parser = argparse.ArgumentParser(description="Write the everyday dialogues of the bundled base model.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the JSONL file to write")
    parser.add_argument("--check", action="store_true", help="examine and count; fail on any fault")
    options = parser.parse_args(argv)
    out: Path = options.out
    exchanges = build()
    content = "".join(exchange.json_line() + "\n" for exchange in exchanges)
    if options.check:
        print(report(exchanges))
        found = faults(exchanges)
        if not out.is_file():
            found.append(f"{out} is not there")
        elif out.read_text(encoding="utf-8") != content:
            found.append(f"{out} is not what the sources give; write it anew")
        for fault in found:
            print(f"FAULT {fault}", file=sys.stderr)
        return 1 if found else 0
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(content, encoding="utf-8")
    print(f"{len(exchanges)} exchanges written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
