"""What the rule-based extractor promises, on sentences of 西游记 and 红楼梦 as transcriptions print them."""

import gzip
import json
from pathlib import Path

import pytest

from training.extraction.commas import Commas
from training.extraction.daiyu import daiyu_rows
from training.extraction.rules import (
    Line,
    Narration,
    Pair,
    Scene,
    extract,
    main,
    novel,
    pair,
    parse_aliases,
    read_paragraphs,
    to_alpaca,
    without,
)

WUKONG = "孙悟空"
ALIASES = {
    WUKONG: ["行者", "悟空", "大圣", "孙大圣", "猴王"],
    "猪八戒": ["八戒", "呆子"],
    "沙僧": ["沙和尚"],
    "唐僧": ["三藏", "长老"],
}
DAIYU = {
    "林黛玉": ["黛玉", "颦儿"],
    "贾宝玉": ["宝玉"],
    "薛宝钗": ["宝钗"],
    "王熙凤": ["凤姐"],
    "袭人": [],
}


def spoken(*paragraphs: str, aliases: dict[str, list[str]] = ALIASES) -> list[tuple[str | None, str]]:
    return [(line.speaker, line.text) for scene in extract(paragraphs, aliases) for line in scene.lines]


def paired(*paragraphs: str, persona: str = WUKONG, aliases: dict[str, list[str]] = ALIASES) -> list[Pair]:
    return list(pair(extract(paragraphs, aliases), persona))


def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(item.prompt.text, item.reply.text) for item in pairs]


@pytest.mark.parametrize(
    ("sentence", "speaker"),
    [
        ("行者笑道：“这个却是难拿。”", WUKONG),
        ("悟空就觌面狠道：“你这老儿怎么哄我？”", WUKONG),
        ("行者对八戒道：“你且在此。”", WUKONG),
        ("只见沙僧道：“大哥休说。”", "沙僧"),
        ("那呆子听见来请对沙僧道：“兄弟你还不教下书哩。”", "猪八戒"),
        ("那老者道：“还问甚？”", "老者"),
        ("坐定礼毕行者道：“列位请了。”", WUKONG),
        ("鹿力大仙上前又拜云：“万望天尊垂念。”", "鹿力大仙"),
        ("行者问曰：「你是那里来的？」", WUKONG),
        ("行者叫声“师父快走！”", WUKONG),
        ("大圣喝道：\n“泼怪休走！”", WUKONG),
    ],
)
def test_speaker_is_the_subject_of_the_announcing_clause(sentence: str, speaker: str) -> None:
    assert [name for name, _ in spoken(sentence)] == [speaker]


@pytest.mark.parametrize(
    "sentence",
    [
        "他道：“走罢。”",  # a pronoun
        "行者、八戒齐声道：“走罢。”",  # two speakers
        "行者八戒道：“走罢。”",
        "那小妖翻身醒了行者道：“走罢。”",  # a name at the verb, but another subject before it
        "行者使个眼色八戒笑道：“走罢。”",
        "行者正在嗔怪处又见金头揭谛押着一尊土地跪在面前道：“走罢。”",  # another comes in
    ],
)
def test_doubtful_speakers_stay_unknown(sentence: str) -> None:
    assert spoken(sentence) == [(None, "走罢。")]


def test_speaker_named_after_the_quotation_is_found() -> None:
    assert spoken("“你来了。”宝玉笑着说，“坐罢。”", aliases=DAIYU) == [("贾宝玉", "你来了。坐罢。")]


def test_names_thoughts_and_inscriptions_are_not_speech() -> None:
    told = "那洞唤做“水帘洞”。行者暗想道：“这厮无礼！”碑上有“齐天大圣”四字。"
    (scene,) = extract([told], ALIASES)
    assert scene.lines == []
    assert "水帘洞" in "".join(event.text for event in scene.events if isinstance(event, Narration))


def test_interrupted_speech_of_one_speaker_is_one_line() -> None:
    text = "凤姐笑道：“这里过门风倒凉快。”又告诉众人道：“你们说我回了半日的话。”又冷笑道：“我也不怕。”"
    assert spoken(text, aliases=DAIYU) == [("王熙凤", "这里过门风倒凉快。你们说我回了半日的话。我也不怕。")]


def test_speech_resumed_after_another_was_named_is_not_given_to_the_first() -> None:
    assert spoken("行者道：“好。”八戒听了欢喜。笑道：“走罢。”") == [(WUKONG, "好。"), (None, "走罢。")]


def test_quotation_closed_with_an_opening_mark_ends_there() -> None:
    text = "宝钗笑道：“还拿蝇帚子赶什么？“袭人笑道：“姑娘来了。”"
    assert spoken(text, aliases=DAIYU) == [("薛宝钗", "还拿蝇帚子赶什么？"), ("袭人", "姑娘来了。")]


def test_quotation_that_never_closes_leaves_it_and_the_next_unattributed() -> None:
    text = "行者道：“你且站住八戒道：“哥哥等我。”沙僧道：“走罢。”"
    assert [speaker for speaker, _ in spoken(text)] == [None, None, "沙僧"]


def test_quotation_runs_over_a_paragraph_end() -> None:
    assert spoken("行者道：“妖精搅扰了三年。", "我想着每家只出银一两。”") == [
        (WUKONG, "妖精搅扰了三年。我想着每家只出银一两。")
    ]


def test_line_remembers_document_paragraph_and_offset() -> None:
    paragraphs = ["却说师徒赶路。", "行者道：“师父莫怪。”三藏道：", "“徒弟说得是。”"]
    (scene,) = extract(paragraphs, ALIASES, "西游记.txt")
    for line in scene.lines:
        place = line.source
        assert place.document == "西游记.txt"
        assert paragraphs[place.paragraph][place.offset :].startswith(line.text)
    assert [line.source.paragraph for line in scene.lines] == [1, 2]


def test_reply_is_paired_with_the_line_before_it() -> None:
    text = "老者道：“还问甚？”行者道：“你这贵处地势清平。”八戒道：“难拿难拿！”行者笑道：“呆子莫怕。”"
    assert texts(paired(text)) == [("还问甚？", "你这贵处地势清平。"), ("难拿难拿！", "呆子莫怕。")]


def test_persona_other_than_wukong() -> None:
    text = "宝玉道：“妹妹这几天来做诗没有？”黛玉道：“自结社以后没大作。”"
    assert texts(paired(text, persona="林黛玉", aliases=DAIYU)) == [("妹妹这几天来做诗没有？", "自结社以后没大作。")]


def test_no_pair_across_a_chapter_heading() -> None:
    paragraphs = ["三藏道：“悟空何在？”", "第二十二回八戒大战流沙河木叉奉法收悟净", "行者道：“师父莫怪。”"]
    assert paired(*paragraphs) == []
    assert [scene.title for scene in extract(paragraphs, ALIASES)] == ["", paragraphs[1]]


def test_no_pair_across_a_storyteller_turn_or_long_narration() -> None:
    question, answer = "三藏道：“悟空何在？”", "行者道：“师父莫怪。”"
    assert paired(question + "\n且说" + answer) == []
    assert paired(question + "山路崎岖。" * 100 + answer) == []
    assert len(paired(question + "山路崎岖。" + answer)) == 1


def test_no_pair_with_an_unknown_speaker() -> None:
    assert paired("他道：“走罢。”行者道：“师父莫怪。”") == []


def test_narration_is_a_prompt_only_on_request() -> None:
    scenes = extract(["那山前狂风大作。行者道：“好风！好风！”"], ALIASES)
    assert list(pair(scenes, WUKONG)) == []
    (item,) = pair(scenes, WUKONG, narration=True)
    assert isinstance(item.prompt, Narration) and item.prompt.text == "那山前狂风大作。"


def test_narration_stays_between_lines_without_the_announcing_clause() -> None:
    (scene,) = extract(["八戒道：“走罢。”那山前狂风大作。行者道：“好风！”"], ALIASES)
    assert [type(event) for event in scene.events] == [Line, Narration, Line]
    assert scene.events[1].text == "那山前狂风大作。"


def test_alpaca_rows_keep_a_reply_that_recurs_but_not_a_repeated_pair() -> None:
    text = "八戒道：“走罢。”行者道：“呆子！”沙僧道：“大哥。”行者道：“呆子！”八戒道：“走罢。”行者道：“呆子！”"
    rows = to_alpaca(paired(text), system="你是孙悟空。")
    assert [(row["instruction"], row["output"]) for row in rows] == [
        ("走罢。", "呆子！"),
        ("大哥。", "呆子！"),
    ]
    assert all(row["input"] == "" and row["system"] == "你是孙悟空。" for row in rows)


def test_empty_document_has_no_scenes() -> None:
    scenes: list[Scene] = extract([], ALIASES)
    assert scenes == [] and extract([""], {}) == []


def test_command_line_reads_gzipped_rows_and_writes_sources(tmp_path: Path) -> None:
    source, target = tmp_path / "西游记.jsonl.gz", tmp_path / "rows.json"
    with gzip.open(source, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "八戒道：“走罢。”行者道：“呆子！”"}, ensure_ascii=False) + "\n")
    main([str(source), WUKONG, str(target), "--alias", f"{WUKONG}=行者,悟空", "--sources"])
    (row,) = json.loads(target.read_text(encoding="utf-8"))
    assert (row["output"], row["source"]) == ("呆子！", "西游记.jsonl.gz:0:14")


def test_bad_row_is_reported_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "novel.jsonl"
    path.write_text('{"text": "好"}\n{"txt": "坏"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"novel\.jsonl:2: expected an object"):
        read_paragraphs(path)


def test_bad_alias_option_says_what_it_should_look_like() -> None:
    with pytest.raises(ValueError, match="NAME=OTHER"):
        parse_aliases(["行者"])


def test_restored_commas_change_nothing_but_commas() -> None:
    teachers = ["宝玉道：“妹妹，你且放心，我去去就来。”", "黛玉道：“你去罢，我不留你。”"] * 20
    text = "师父你且放心老孙去去就来。"
    restored, margin = Commas(teachers, teachers, ["师父"]).restore(text)
    assert restored == "师父，你且放心，老孙去去就来。"
    assert restored.replace("，", "") == text and margin > 0


def test_novel_ends_where_the_next_one_is_headed() -> None:
    rows = ["第一回宴桃园", "却说", "第一回甄士隐梦幻识通灵", "第二回", "第一回灵根育孕"]
    assert novel(rows, "第一回甄士隐") == (2, 4)
    assert novel(rows, "第一回灵根") == (4, 5)
    with pytest.raises(ValueError, match="第一回王教头"):
        novel(rows, "第一回王教头")


def test_replies_a_reader_named_are_left_out(tmp_path: Path) -> None:
    listed = tmp_path / "left_out.txt"
    listed.write_text("# no answers\n做什么？\n", encoding="utf-8")
    rows = [{"instruction": "晴雯。", "output": "做什么？"}, {"instruction": "做什么？", "output": "我不困。"}]
    assert without(rows, listed) == rows[1:]


def test_daiyu_is_cut_with_the_quotation_marks_she_had() -> None:
    rows = [
        "第一回甄士隐梦幻识通灵",
        "宝玉笑道：“什么`暖香-？”黛玉点头笑叹道：“你有玉，人家有`冷香-，你就没有`暖香-去配？”",
        "宝玉道：“你往那去呢？”黛玉道：“我死了。”宝玉道：“我跟了你去。”黛玉笑道：“我回家ク去。”",
        "宝玉道：“我也歪着。”林黛玉道：“你就歪着。”",
    ]
    assert daiyu_rows(rows) == [
        {"instruction": "什么“暖香”？", "input": "", "output": "你有玉，人家有“冷香”，你就没有“暖香”去配？"},
        {"instruction": "我也歪着。", "input": "", "output": "你就歪着。"},
    ]


BUNDLED = Path(__file__).parents[2] / "adapters" / "bundled" / "data"


@pytest.mark.parametrize(("name", "least"), [("wukong.json", 800), ("daiyu.json", 150)])
def test_bundled_rows_are_clean_alpaca(name: str, least: int) -> None:
    rows = json.loads((BUNDLED / name).read_text(encoding="utf-8"))
    assert len(rows) >= least
    assert all(set(row) == {"instruction", "input", "output"} and row["input"] == "" for row in rows)
    assert all(0 < len(row["instruction"]) <= 120 and 4 <= len(row["output"]) <= 120 for row in rows)
    assert len({(row["instruction"], row["output"]) for row in rows}) == len(rows)
