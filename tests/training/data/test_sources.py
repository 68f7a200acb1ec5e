"""What names a data set may have, and what LLaMA-Factory's `dataset_info.json` says of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Invalid, NotFound
from training.config import TrainConfig
from training.data.dataset import read_sources
from training.data.formats import Document, Example, PreferencePair
from training.data.sources import absolute, files_of, sources_at, sources_of
from training.runs.run_data import check_data

INFO: dict[str, Any] = {
    "plain": {"file_name": "plain.json"},
    "named": {"file_name": "named.jsonl", "columns": {"prompt": "q", "response": "a", "system": "who", "history": "h"}},
    "chats": {
        "file_name": "chats.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "turns", "tools": "functions"},
        "tags": {
            "role_tag": "who",
            "content_tag": "says",
            "user_tag": "me",
            "assistant_tag": "you",
            "observation_tag": "world",
            "function_tag": "act",
            "system_tag": "rule",
        },
    },
    "openai": {"file_name": "openai.jsonl", "formatting": "openai"},
    "ranked": {
        "file_name": "ranked.jsonl",
        "ranking": True,
        "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    },
    "tagged": {
        "file_name": "tagged.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "ok"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "text": {"file_name": "text.txt", "columns": {"prompt": "text"}},
    "some": {"file_name": "plain.json", "num_samples": 2},
    "more": {"file_name": "plain.json", "num_samples": 7},
    "folder": {"file_name": "folder"},
    "hub": {"hf_hub_url": "owner/from-hub", "ms_hub_url": "owner/from-hub"},
    "fetched": {"hf_hub_url": "owner/fetched-set"},
    "pictures": {"file_name": "plain.json", "columns": {"prompt": "instruction", "images": "images"}},
    "odd": {"file_name": "plain.json", "columns": {"promt": "instruction"}},
    "gone": {"file_name": "gone.json"},
}


@pytest.fixture
def info(tmp_path: Path) -> Path:
    def lines(name: str, *rows: Any) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    plain = [{"instruction": f"q{n}", "input": "", "output": "a", "system": "unlisted"} for n in range(4)]
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    lines("named.jsonl", {"q": "Hi", "a": "Ho", "who": "Be brief.", "h": [["b", "c"]], "instruction": "no"})
    act = {"who": "act", "says": '{"name": "look", "arguments": {}}'}
    turns = [{"who": "rule", "says": "Be brief."}, {"who": "me", "says": "Rain?"}, act]
    lines(
        "chats.jsonl",
        {"turns": [*turns, {"who": "world", "says": "rain"}, {"who": "you", "says": "Yes."}], "functions": "[]"},
        {"turns": [{"who": "gpt", "says": "unknown here"}]},
    )
    lines("openai.jsonl", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    lines("ranked.jsonl", {"q": "Hi", "good": "Ho", "bad": "No"})
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    lines("tagged.jsonl", {"messages": chat, "ok": False})
    (tmp_path / "text.txt").write_text("once upon a time\n")
    lines("folder/a.jsonl", {"instruction": "1", "output": "a"})
    lines("folder/b.jsonl", {"instruction": "2", "output": "b"})
    lines("fetched-set.jsonl", {"instruction": "1", "output": "a"})
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(INFO))
    return path


def read(info: Path, name: str, **options: Any) -> Any:
    return read_sources(sources_at([Path(f"{info}:{name}")]), **options)


def contents(row: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


def test_only_the_columns_of_an_entry_are_read(info: Path) -> None:
    assert contents(read(info, "plain").rows[0][1]) == [("user", "q0"), ("assistant", "a")]
    ((_, named),) = read(info, "named").rows
    assert contents(named) == [
        ("system", "Be brief."),
        ("user", "b"),
        ("assistant", "c"),
        ("user", "Hi"),
        ("assistant", "Ho"),
    ]


def test_tags_say_who_speaks(info: Path) -> None:
    found = read(info, "chats")
    ((_, chat),) = found.rows
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["tool_calls"][0]["function"]["name"] == "look"
    (bad,) = found.bad
    assert (bad.place.line, bad.field) == (2, "turns[1]")
    assert bad.reason.startswith("unknown role 'gpt'; the list's tags: act, me, rule")


def test_entries_of_every_kind_are_what_they_say(info: Path) -> None:
    def only(name: str) -> Any:
        ((_, row),) = read(info, name).rows
        return row

    assert contents(only("openai")) == [("user", "q"), ("assistant", "a")]
    pair = only("ranked")
    assert isinstance(pair, PreferencePair) and (pair.chosen, pair.rejected) == ("Ho", "No")
    labelled = only("tagged")
    assert isinstance(labelled, PreferencePair) and (labelled.chosen, labelled.rejected) == (None, "a")
    assert only("text") == Document("once upon a time", only("text").place)
    assert [row.messages[0]["content"] for _, row in read(info, "folder").rows] == ["1", "2"]
    assert isinstance(only("fetched"), Example)  # downloaded by hand, under the hub's name


def test_num_samples_are_drawn_by_the_seed(info: Path) -> None:
    def drawn(name: str, seed: int) -> list[str]:
        return [row.messages[0]["content"] for _, row in read(info, name, seed=seed).rows]

    assert drawn("some", 1) == drawn("some", 1) and len(drawn("some", 1)) == 2
    assert len({tuple(drawn("some", seed)) for seed in range(9)}) > 1
    assert sorted(drawn("more", 1))[::2] == ["q0", "q1", "q2", "q3"] or len(set(drawn("more", 1))) == 4
    assert len(drawn("more", 1)) == 7


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("plane", NotFound, "has no data set 'plane'; did you mean 'plain'"),
        ("hub", Invalid, r"data set 'hub' is not among the files here \(owner/from-hub\); download it"),
        ("gone", NotFound, r"gone\.json does not exist"),
        ("pictures", Invalid, "data set 'pictures' has images, and only text is learned"),
        ("odd", Invalid, r"odd\.columns\.promt: Extra inputs"),
    ],
)
def test_what_a_list_cannot_give_is_refused_by_name(info: Path, name: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        sources_at([Path(f"{info}:{name}")])


def test_a_list_without_a_name_says_how_to_name_one(info: Path) -> None:
    with pytest.raises(Invalid, match=r"name one of them behind a colon, like dataset_info\.json:plain"):
        read_sources([info])


def test_a_register_of_hub_sets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps([{"ms_dataset_id": "a/b", "hf_dataset_id": "c/d"}]))
    with pytest.raises(Invalid, match="a list of hub datasets, not a dataset"):
        read_sources([path])
    with pytest.raises(Invalid, match="a list of data sets is an object"):
        sources_at([Path(f"{path}:a")])


def test_names_after_a_comma_and_dataset_dir_mean_the_same(info: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(info.parent)
    commas = TrainConfig(name="n", data=(Path("dataset_info.json:plain"), Path("named"), Path("text.txt")))
    plain, named, text = sources_of(commas)
    assert [source.paths[0].name for source in (plain, named, text)] == ["plain.json", "named.jsonl", "text.txt"]
    moved = absolute(commas)
    monkeypatch.chdir("/")
    assert [source.paths for source in sources_of(moved)] == [plain.paths, named.paths, text.paths]
    directory = TrainConfig(name="n", dataset=("plain", "named"), dataset_dir=info.parent)
    assert [source.paths for source in sources_of(directory)] == [plain.paths, named.paths]
    assert files_of([plain, named, text]) == [info.parent / n for n in ("plain.json", "named.jsonl", "text.txt")] + [
        info
    ]


def test_a_run_reads_what_the_names_stand_for(tiny_base: Path, info: Path) -> None:
    asked = TrainConfig(name="n", base=str(tiny_base), dataset=("some", "named"), dataset_dir=info.parent, val_split=0)
    dataset = check_data(asked.model_copy(update={"data_weights": (1.0, 2.0)})).main
    assert [row.source for row in dataset.rows] == [0, 0, 1]
    training, _ = dataset.split(0, seed=0)
    assert [row.source for row in training] == [0, 1, 1]


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({}, "data"),
        ({"dataset": ("a",)}, "dataset_dir"),
        ({"data": ("a.json", "b.json"), "data_weights": (1.0,)}, "data_weights"),
    ],
)
def test_what_is_missing_is_named(values: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as caught:
        sources_of(TrainConfig(name="n", **values))
    assert caught.value.param == param
