"""Putting back the commas of a text that has lost them: a small averaged perceptron that learns from texts of the same
kind which still have theirs. No chance in it: the same input gives the same bytes every time."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

_STOPS = "。！？；：、‘’“”《》—…\n"
# Sentence openings whose comma needs no guessing: a name called before 你/我/莫…, and words that stand alone.
_VOCATIVE = re.compile(
    r"(?:(?<=[。！？；：])|^)(?:(?:师父|师兄|师弟|哥哥|哥[啊呵呀]|兄弟|贤弟|徒弟[啊呀们]?|八戒|沙僧|呆子|孙?悟空|行者|菩萨|"
    r"孙?大圣|大王|老爷|爷爷|陛下|国王|长老|祖师|老儿|老官儿?|施主|女菩萨|列位|老星|大仙|妖[精怪]|泼[怪魔猴]|娘子|公公|"
    r"婆婆|太子|殿下|公主|和尚|猴子|猴头)(?=[你我他莫休且请快这那怎今])|"
    r"(?:也罢|罢了|多谢|造化|不打紧|没奈何)(?!了|[我你他]的))(?=[\u4e00-\u9fff])"
)


class Commas:
    """Averaged perceptron over the gaps between characters: is there a comma here?

    `texts` give character statistics only; `teachers` must have their commas. `names` are words without a comma inside.
    """

    def __init__(self, texts: Iterable[str], teachers: Iterable[str], names: Iterable[str] = ()) -> None:
        self._characters: Counter[str] = Counter()
        self._pairs: Counter[str] = Counter()
        for text in texts:
            bare = re.sub("[，\n]", "", text)
            self._characters.update(bare)
            self._pairs.update(a + b for a, b in zip(bare, bare[1:], strict=False))
        self._total = self._characters.total()
        self._cohesion = cache(self._count_cohesion)
        self._names = re.compile("|".join(sorted(set(names), key=lambda name: (-len(name), name))))
        passages = [text for text in teachers if "，" in text]
        speeches = [speech for text in passages for speech in _speeches(text)]
        self._weights = self._learn([*passages, *passages, *speeches, *speeches])  # the closer kin last

    def restore(self, text: str) -> tuple[str, float]:
        """The text with commas, and the margin of the least certain decision (infinite if there was none)."""
        tokens = re.findall("俺?老孙|.", text)
        bare = "".join(token if len(token) == 1 else "我" for token in tokens)  # the teachers never say 老孙
        padded, since, margin = f"$$${bare}$$$", 0, math.inf
        whole = {i for found in self._names.finditer(bare) for i in range(found.start() + 1, found.end())}
        called = {found.end() for found in _VOCATIVE.finditer(bare)}
        out: list[str] = []
        for index, token in enumerate(tokens):
            if token in _STOPS:
                since = 0
            elif index == 0 or tokens[index - 1] in _STOPS:
                since = 1
            elif index in whole:
                since += 1
            elif index in called:
                out.append("，")
                since = 1
            else:
                score = sum(self._weights.get(key, 0.0) for key in self._features(padded, index + 3, since))
                margin = min(margin, abs(score))
                since = 1 if score > 0 else since + 1
                out.append("，" if score > 0 else "")
            out.append(token)
        return "".join(out), margin

    def _learn(self, texts: Iterable[str]) -> dict[str, float]:
        weights: Counter[str] = Counter()
        moments: Counter[str] = Counter()  # sum of update × step, for the average over all steps
        step = 0
        for text in texts:
            bare, commas = _without_commas(text)
            padded, since = f"$$${bare}$$$", 0
            for index, character in enumerate(bare):
                if character in _STOPS or index == 0 or bare[index - 1] in _STOPS:
                    since = int(character not in _STOPS)
                    continue
                keys = self._features(padded, index + 3, since)
                expected = index in commas
                step += 1
                if (sum(weights.get(key, 0) for key in keys) > 0) != expected:
                    change = 1 if expected else -1
                    for key in keys:
                        weights[key] += change
                        moments[key] += change * step
                since = 1 if expected else since + 1
        return {key: (weight * step - moments[key]) / step for key, weight in weights.items()}

    def _features(self, text: str, gap: int, since: int) -> tuple[str, ...]:
        """Characters around the gap, how well they stick together, and the distance to the stops around."""
        a, b, c, x, y, z = list(text[gap - 3 : gap + 3])
        until = next(n for n in range(10) if n == 9 or text[gap + n] in _STOPS or text[gap + n] == "$")
        here, left, right = self._cohesion(c, x), self._cohesion(b, c), self._cohesion(x, y)
        since = min(since, 12)
        return (
            *(f"1{c}", f"2{x}", f"3{b}{c}", f"4{c}{x}", f"5{x}{y}", f"6{a}{b}{c}", f"7{b}{c}{x}"),
            *(f"8{c}{x}{y}", f"9{x}{y}{z}", f"A{b}{c}{x}{y}"),
            *(f"B{since}", f"C{until}", f"D{since}{x}", f"E{since}{c}", f"F{since},{until}"),
            *(f"G{here}", f"H{here},{left}", f"I{here},{right}", f"J{left},{here},{right}"),
        )

    def _count_cohesion(self, left: str, right: str) -> int:
        """Pointwise mutual information in bits, rounded and clipped; -4 for pairs seen once or never."""
        seen = self._pairs[left + right]
        if seen < 2:
            return -4
        bits = math.log2(seen * self._total / (self._characters[left] * self._characters[right]))
        return max(-3, min(9, round(bits)))


def _speeches(text: str) -> list[str]:
    found = (speech.replace("\n", "") for speech in re.findall("“([^“”]{6,400})”", text))
    return [speech for speech in found if "，" in speech]


def _without_commas(speech: str) -> tuple[str, set[int]]:
    parts = speech.split("，")
    ends = [sum(map(len, parts[: index + 1])) for index in range(len(parts) - 1)]
    return "".join(parts), set(ends)
