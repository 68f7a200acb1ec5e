"""The bundled Sun Wukong rows: aliases and judgement for 西游记 on top of `rules`.

The transcription we cut from has no commas at all. They are put back by `commas`, which learns from the other novels of
the same corpus. Sentences about which it wavers are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from training.extraction.commas import Commas
from training.extraction.novels import first_sentences, last_sentences, write_persona
from training.extraction.rules import Line, Pair, extract, novel, pair, to_alpaca, without

PERSONA = "孙悟空"
ALIASES = {
    PERSONA: "孙悟空 悟空 行者 孙行者 行者孙 大圣 孙大圣 齐天大圣 猴王 美猴王 石猴 那猴 老孙 孙长老".split(),
    "猪八戒": "猪八戒 八戒 呆子 悟能 猪悟能 老猪 天蓬元帅".split(),
    "沙僧": "沙僧 沙和尚 悟净 沙悟净".split(),
    "唐僧": "唐僧 三藏 长老 师父 玄奘 圣僧 唐三藏 唐长老 唐御弟".split(),
    "观音菩萨": "菩萨 观音 观音菩萨".split(),
}
FIRST_HEADING = "第一回灵根育孕"
LEFT_OUT = Path(__file__).parent / "left_out" / "wukong.txt"
TWO_MONKEYS = ("第五十七回", "第五十八回")  # 行者 is also the impostor there
WHOLE_WORDS = (  # no comma inside
    "弼马温 金箍棒 天罡 地煞 高徒 还丹 花果山 水帘洞 筋斗云 火眼金睛 阎罗王 太上老君 玉皇大帝 玉帝 王母 如来 "
    "牛魔王 铁扇公主 罗刹女 红孩儿 芭蕉扇 紧箍咒 紧箍儿咒 唐王 东土大唐 土地 山神 龙王 哪吒 托塔天王 二郎 "
    "太白金星 金星 猢狲 天蓬 须菩提 白骨精 妖精 妖怪 妖魔 口说无凭 天不收 地不管"
).split()

MIN_REPLY, MAX_REPLY, MIN_PROMPT, MAX_PROMPT = 6, 120, 4, 100
MIN_CUT_REPLY = 12  # a reply that lost sentences should still say something
MAX_CLAUSE = 16  # characters without punctuation; beyond it the commas are not all back
# Of the perceptron's least certain gap in a sentence. Replies are what is learned, so they are held to more.
PROMPT_MARGIN, REPLY_MARGIN = 0.5, 1.25


def wukong_rows(rows: Sequence[str], document: str = "") -> list[dict[str, str]]:
    """Alpaca rows of Sun Wukong from a corpus in which 西游记 stands among other, fully punctuated novels.

    A prompt may lose its first sentences and a reply its last ones, never a part of a sentence.
    """
    start, end = novel(rows, FIRST_HEADING)
    names = [*WHOLE_WORDS, *(name for aliases in ALIASES.values() for name in aliases)]
    commas = Commas(rows, [row for index, row in enumerate(rows) if not start <= index < end], names)
    kept = []
    for item in pair(extract(rows[start:end], ALIASES, document), PERSONA):
        if not _sound(item):
            continue
        prompt = last_sentences(item.prompt.text, MAX_PROMPT, partial(_restored, commas, PROMPT_MARGIN))
        reply = first_sentences(
            item.reply.text, MAX_REPLY, partial(_restored, commas, REPLY_MARGIN), least_cut=MIN_CUT_REPLY
        )
        long_enough = len(prompt) >= MIN_PROMPT and len(reply) >= MIN_REPLY
        if long_enough and not _is_verse(prompt) and not _is_verse(reply):
            kept.append(Pair(replace(item.prompt, text=prompt), replace(item.reply, text=reply), item.scene))
    return without(to_alpaca(kept), LEFT_OUT)


# --- which rows are good ---

_ODD = re.compile(r"[^\u4e00-\u9fff。！？；：、，《》…—]")  # □ * digits, nested or lost quotation marks
_TOLD = re.compile(
    "[道曰云]：|(?:行者|大圣|八戒|三藏|沙僧|长老|唐僧)(?:[笑闻即便忙喝叫骂答]?道|听说|闻言)|且听下回|诗曰|听我道|你听我说："
)
# Speaking in disguise, or somebody else after all: he calls nobody 大圣 or 哥哥.
_NOT_HIMSELF = re.compile(
    "[他那]孙(?:行者|悟空|大圣)|者行孙|行者孙|是小钻风|[我孩]儿(?!子)|父王|奴家|贫[道僧]|奶奶|夫人|小神|"
    "(?:^|[。！？])(?:大圣|哥[哥呀啊呵]|好哥|师兄|悟空)"
)


def _sound(item: Pair) -> bool:
    texts = (item.prompt.text, item.reply.text)
    return (
        isinstance(item.prompt, Line)
        and not item.scene.startswith(TWO_MONKEYS)
        and not any(_ODD.search(text) or _TOLD.search(text) or text[-1] not in "。！？" for text in texts)
        and not _NOT_HIMSELF.search(item.reply.text)
        and "变！" not in item.reply.text  # a spell, said to a hair
    )


def _restored(commas: Commas, min_margin: float, sentence: str) -> str | None:
    """The sentence with commas, or None where they are doubtful or too few."""
    better, margin = commas.restore(sentence)
    longest = max(map(len, re.split("[。！？；：、，]", better)))
    return better if margin >= min_margin and longest <= MAX_CLAUSE else None


def _is_verse(text: str) -> bool:
    lengths = [len(part) for part in re.split("[。！？；，、：]", text) if part]
    return any(len(set(lengths[i : i + 4])) == 1 and lengths[i] in (5, 7, 14) for i in range(len(lengths) - 3))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the bundled Sun Wukong rows; about two minutes of one core."""
    write_persona("training.extraction.wukong", str(main.__doc__), "西游记", wukong_rows, argv)


if __name__ == "__main__":
    main()
