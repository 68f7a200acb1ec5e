"""Whether a persona's answers can be told from the base's, asked of a real server."""

import json
import sys
from pathlib import Path

import pytest

from adapters.base_model import BUNDLED_BASE
from adapters.settings import Settings
from benchmarks import persona_effect
from benchmarks.style import StyleClassifier, wilson
from tests.serving.running import running_server

PIRATE = [f"Arr, the {thing} be mine, matey!" for thing in ("gold", "rum", "ship", "map", "sea", "hat", "crew", "wind")]
PLAIN = [f"The {thing} is over there." for thing in ("table", "house", "lamp", "book", "river", "tree", "cup", "car")]


def test_a_manner_is_told_in_texts_that_the_classifier_has_not_seen() -> None:
    classifier = StyleClassifier(PIRATE[:6], PLAIN[:6])
    assert classifier.told_right(PIRATE[6:], PLAIN[6:]) == 4
    assert classifier.told_right(PLAIN[6:], PIRATE[6:]) == 0  # the sides are not mixed up


def test_the_same_answers_cannot_be_told_apart() -> None:
    classifier = StyleClassifier(PIRATE, PLAIN)
    assert classifier.told_right(PLAIN, PLAIN) == len(PLAIN)  # half of them


def test_wilsons_interval() -> None:
    assert wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert wilson(100, 100) == pytest.approx((0.9630, 1.0), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_a_persona_is_asked_in_the_languages_it_answers_in() -> None:
    english, chinese = "Who are you?", "你是谁？"
    asked = {
        name: [persona_effect.speaks(name, q) for q in (english, chinese)] for name in ("halyard", "daiyu", "brief")
    }
    assert asked == {"halyard": [True, False], "daiyu": [False, True], "brief": [True, True]}


def test_half_of_a_personas_lines_teach_the_classifier() -> None:
    lines = persona_effect.lines_of("halyard")
    assert len({line.reply for line in lines}) == len(lines) > 300
    assert 0.4 < sum(line.learned for line in lines) / len(lines) < 0.6


@pytest.mark.slow
def test_effect_of_a_shipped_persona(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, figures = tmp_path / "answers.md", tmp_path / "effect.json"
    with running_server(Settings(base=BUNDLED_BASE, ui=False)) as server:
        arguments = ["wukong", "--url", server.url, "--lines", "24", "--max-tokens", "16"]
        monkeypatch.setattr(
            sys, "argv", ["persona_effect", *arguments, "--markdown", str(page), "--json", str(figures)]
        )
        persona_effect.main()
        monkeypatch.setattr(sys, "argv", ["persona_effect", "nobody", "--url", server.url])
        with pytest.raises(SystemExit):
            persona_effect.main()
    (found,) = json.loads(figures.read_text())["figures"]
    assert found["questions"] == 50
    low, high = found["interval_95"]
    assert low <= found["accuracy"] <= high
    assert found["accuracy"] > 0.5
    text = page.read_text(encoding="utf-8")
    assert text.count("\n| ") == 11  # ten questions under one heading
    assert "老孙" in text
