"""Text as it arrives: whole characters, and stop strings not shown even in part."""

import pytest
from transformers import AutoTokenizer

from serving.engine.detokenizer import Detokenizer
from tests.tiny import TOKENIZER

TEXT = "你好，世界！👩‍🚀 naïve café — 𠮷野家\n  two  spaces"


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def pieces(tokenizer: object, text: str, stop: list[str] | None = None) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(tokenizer, stop or [])
    out = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        out.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    out.append(detokenizer.finish())
    return out, detokenizer


def test_pieces_join_to_the_text_and_never_hold_half_a_character(tokenizer: object) -> None:
    parts, _ = pieces(tokenizer, TEXT)
    assert "".join(parts) == TEXT
    assert not any("\ufffd" in part for part in parts)


def test_nothing_of_a_stop_string_is_shown(tokenizer: object) -> None:
    for stop in ("世界", "naïve café", "two", "你"):
        parts, detokenizer = pieces(tokenizer, TEXT, [stop, "never"])
        assert detokenizer.stopped
        assert "".join(parts) == TEXT[: TEXT.index(stop)]


def test_what_only_looks_like_a_stop_string_is_shown_in_the_end(tokenizer: object) -> None:
    parts, detokenizer = pieces(tokenizer, "say two  spac", ["two  spaces"])
    assert "".join(parts) == "say two  spac" and not detokenizer.stopped


def test_a_broken_character_at_the_end_is_shown_as_such(tokenizer: object) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    first_byte = tokenizer.encode("𠮷", add_special_tokens=False)[0]
    assert detokenizer.push(first_byte) == "" and detokenizer.finish() == "\ufffd"


def test_a_text_cut_inside_a_character_ends_before_it(tokenizer: object) -> None:
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    for length in range(len(tokens) + 1):
        detokenizer = Detokenizer(tokenizer, ["never"])
        text = "".join(detokenizer.push(token) for token in tokens[:length]) + detokenizer.finish(cut=True)
        assert TEXT.startswith(text) and "\ufffd" not in text
        assert text == tokenizer.decode(tokens[:length]).rstrip("\ufffd")
