"""What one text says otherwise than another, by words, Chinese included."""

import pytest

from serving.word_diff import Piece, word_diff, words

TEXTS = [
    ("我今天心情不好。", "我今天心情很好！"),
    ("The quick brown fox\njumps.", "The slow brown fox\n\njumps over."),
    ("", "全是新的 👩‍👩‍👧 <b>x</b>"),
    ("一字不差", "一字不差"),
    ("  缩进\t与 Tab", "缩进 与  Tab"),
]


def test_chinese_is_cut_into_words_and_nothing_is_lost() -> None:
    assert words("臣妾参见皇上") == ["臣妾", "参见", "皇上"]
    for pair in TEXTS:
        for text in pair:
            assert "".join(words(text)) == text


@pytest.mark.parametrize(("before", "after"), TEXTS)
def test_the_pieces_make_both_texts(before: str, after: str) -> None:
    pieces = word_diff(before, after)
    assert "".join(piece.text for piece in pieces if piece.change != "inserted") == before
    assert "".join(piece.text for piece in pieces if piece.change != "deleted") == after


def test_what_is_marked_is_whole_words() -> None:
    assert word_diff("我喜欢北京。", "我喜欢上海。") == [
        Piece("same", "我喜欢"),
        Piece("deleted", "北京"),
        Piece("inserted", "上海"),
        Piece("same", "。"),
    ]
    assert word_diff("same here", "same here") == [Piece("same", "same here")]
