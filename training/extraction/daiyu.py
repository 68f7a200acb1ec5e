"""The bundled Lin Daiyu rows: aliases and judgement for 红楼梦 on top of `rules`.

The transcription has its commas; what it has lost are the inner quotation marks, which come as `…- and are put back,
and single characters, which came out as signs of another script. A row with such a sign is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.extraction.novels import first_sentences, last_sentences, write_persona
from training.extraction.rules import Line, Pair, extract, novel, pair, to_alpaca, without

PERSONA = "林黛玉"
ALIASES = {
    PERSONA: "黛玉 林黛玉 颦儿 颦丫头 林姑娘 林妹妹 潇湘妃子".split(),
    "贾宝玉": "宝玉 贾宝玉 宝二爷 怡红公子".split(),
    "薛宝钗": "宝钗 薛宝钗 宝姐姐 宝姑娘 宝丫头 蘅芜君".split(),
    "史湘云": "湘云 史湘云 云妹妹 云丫头 史大姑娘".split(),
    "王熙凤": "凤姐 凤姐儿 王熙凤 熙凤 凤丫头 琏二奶奶".split(),
    "贾探春": "探春 三姑娘 三妹妹".split(),
    "贾迎春": "迎春 二姑娘".split(),
    "贾惜春": "惜春 四姑娘".split(),
    "贾母": "贾母 老太太 老祖宗".split(),
    "王夫人": "王夫人 太太".split(),
    "薛姨妈": "薛姨妈 姨妈 姨太太".split(),
    "李纨": "李纨 李宫裁 宫裁 大嫂子 稻香老农".split(),
    "薛宝琴": "宝琴 琴妹妹".split(),
    "邢岫烟": "岫烟 邢岫烟".split(),
    "李嬷嬷": "李嬷嬷 李妈妈".split(),
    "刘姥姥": "刘姥姥 刘老老".split(),
    **{name: [] for name in "紫鹃 雪雁 袭人 晴雯 香菱 妙玉 鸳鸯 平儿 麝月 莺儿 贾政 邢夫人 周瑞家的".split()},
}
FIRST_HEADING = "第一回甄士隐"
LEFT_OUT = Path(__file__).parent / "left_out" / "daiyu.txt"

MIN_REPLY, MAX_REPLY, MIN_PROMPT, MAX_PROMPT = 4, 80, 2, 100


def daiyu_rows(rows: Sequence[str], document: str = "") -> list[dict[str, str]]:
    """Alpaca rows of Lin Daiyu from a corpus in which 红楼梦 is one of the novels.

    A prompt may lose its first sentences and a reply its last ones, never a part of a sentence. Raises ValueError if
    the novel is not there.
    """
    start, end = novel(rows, FIRST_HEADING)
    kept = []
    for item in pair(extract(rows[start:end], ALIASES, document), PERSONA):
        prompt, reply = _requoted(item.prompt.text), _requoted(item.reply.text)
        if not isinstance(item.prompt, Line) or not _sound(prompt) or not _sound(reply):
            continue
        prompt, reply = last_sentences(prompt, MAX_PROMPT), first_sentences(reply, MAX_REPLY)
        if len(prompt) >= MIN_PROMPT and len(reply) >= MIN_REPLY:
            kept.append(Pair(replace(item.prompt, text=prompt), replace(item.reply, text=reply), item.scene))
    return without(to_alpaca(kept), LEFT_OUT)


# --- which rows are good ---

_ODD = re.compile(r"[^\u4e00-\u9fff。！？；：、，《》“”…—]")  # * and letters of other scripts; marks that stayed open
_TOLD = re.compile("[道曰云说]：|笑道|问道")
# Quarrels that speak of dying, and words too coarse for a visitor who only asked how she is.
_HARSH = re.compile("死|杀|放屁|蝗|蹄子|赌|奴婢")


def _requoted(text: str) -> str:
    text = re.sub(r"(?<=-)[`'](?=[^`'-]{1,16}-)", "`", text)
    return re.sub(r"[`']([^`'-]{1,16})-", r"“\1”", text)


def _sound(text: str) -> bool:
    return not (_ODD.search(text) or _TOLD.search(text) or _HARSH.search(text)) and text[-1] in "。！？"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the bundled Lin Daiyu rows; a few seconds."""
    write_persona("training.extraction.daiyu", str(main.__doc__), "红楼梦", daiyu_rows, argv)


if __name__ == "__main__":
    main()
