"""Making the bundled base: what goes into its rows, and that stopping changes nothing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from adapters.errors import Invalid
from tests.pretraining import CONTEXT, SHAPE, tokenizer_of, write_documents
from training.pretrain.__main__ import RECIPES
from training.pretrain.corpus import Document, PackedRows, Stage, is_held_out, pack, said
from training.pretrain.recipe import follow, read_recipe
from training.pretrain.tokenizer import IM_END, IM_START
from training.pretrain.train import Pretrainer, Schedule, attention_mask, build_model, next_token_loss

WORDS = "river stone lamp bread winter garden 河水 石头 灯火 面包 冬天 花园".split()
LENGTH = 48


def text(number: int) -> Document:
    return {"text": f"Note {number}: {WORDS[number % 12]} and {WORDS[number // 12 % 12]}."}


def chat(number: int) -> Document:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"{number} 是 {WORDS[number % 12]}。"},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": f"Then {number + 1}."},
        ]
    }


NOTES = [text(number) for number in range(300)]
CHATS = [chat(number) for number in range(100)]
TOKENIZER = tokenizer_of([*NOTES, *CHATS])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_documents(NOTES, tmp_path / "corpus" / "notes.jsonl.gz")
    write_documents(CHATS, tmp_path / "corpus" / "chats.jsonl")
    return tmp_path / "corpus"


def packed(corpus: Path, stage: Stage = "pretrain", *, rows: int = 80, seed: int = 1) -> PackedRows:
    return pack({"notes": 0.5, "chats": 0.5}, [corpus], TOKENIZER, stage, rows=rows, length=LENGTH, seed=seed)


def pieces(rows: PackedRows) -> Iterator[tuple[list[int], list[bool]]]:
    """Tokens and learned flags of every document of every row."""
    for tokens, learned, documents in zip(rows.tokens, rows.learned, rows.documents, strict=True):
        for number in np.unique(documents):
            own = documents == number
            yield tokens[own].tolist(), learned[own].tolist()


def test_held_out_documents_are_in_no_row(corpus: Path) -> None:
    held_out = [document for document in (*NOTES, *CHATS) if is_held_out(document)]
    assert 2 <= len(held_out) <= 20
    seen = "".join(TOKENIZER.decode(tokens) for tokens, _ in pieces(packed(corpus, rows=2000)))
    for document in held_out:
        assert said(document)[0] not in seen
    for document in NOTES:  # read a dozen times: nothing else is left out
        assert is_held_out(document) or said(document)[0] in seen


def test_one_seed_gives_the_same_rows_and_another_gives_others(corpus: Path) -> None:
    once, again, other = packed(corpus), packed(corpus), packed(corpus, seed=2)
    for name in ("tokens", "learned", "documents"):
        assert np.array_equal(getattr(once, name), getattr(again, name))
    assert not np.array_equal(once.tokens, other.tokens)


def test_tokens_follow_the_mixture(corpus: Path) -> None:
    shares = {"notes": 0.25, "chats": 0.75}
    rows = pack(shares, [corpus], TOKENIZER, "pretrain", rows=200, length=LENGTH, seed=1)
    marks = set(TOKENIZER.convert_tokens_to_ids([IM_START, IM_END]))
    in_chats = sum(len(tokens) for tokens, _ in pieces(rows) if marks & set(tokens))
    assert in_chats / rows.tokens.size == pytest.approx(0.75, abs=0.03)


def test_chat_learns_the_assistants_words_and_its_end_of_turn_only(corpus: Path) -> None:
    wanted = [
        [token for message in document["messages"][1::2] for token in TOKENIZER.encode(message["content"] + IM_END)]
        for document in CHATS
    ]
    rows = pack({"chats": 1.0}, [corpus], TOKENIZER, "chat", rows=20, length=3 * LENGTH, seed=1)
    whole = 0
    for tokens, learned in pieces(rows):
        assert TOKENIZER.decode(tokens[:1]) == IM_START  # a row never opens in the middle of a conversation
        said = [token for token, is_learned in zip(tokens, learned, strict=True) if is_learned]
        assert any(reply[: len(said)] == said for reply in wanted)  # the row's end may cut the last document
        whole += said in wanted
    assert whole >= 20


def test_pretraining_learns_every_token(corpus: Path) -> None:
    assert packed(corpus).learned.all()


def loss_of_second(first: Sequence[int], second: Sequence[int], *, hidden_from_it: bool) -> float:
    """Loss over the second document of a row, but for its first token, which is guessed before it begins."""
    torch.manual_seed(1)
    model = build_model(SHAPE, TOKENIZER, CONTEXT)
    model.set_attn_implementation("eager")
    tokens = torch.tensor([[*first, *second]])
    documents = torch.tensor([[0] * len(first) + [1] * len(second)])
    learned = torch.tensor([[False] * (len(first) + 1) + [True] * (len(second) - 1)])
    mask = attention_mask(documents if hidden_from_it else torch.zeros_like(documents), torch.float32)
    with torch.inference_mode():
        hidden = model.model(input_ids=tokens[:, :-1], attention_mask=mask[..., :-1, :-1]).last_hidden_state
        return float(next_token_loss(hidden, model.get_input_embeddings().weight, tokens[:, 1:], learned[:, 1:]))


def test_the_loss_of_a_document_does_not_change_with_its_neighbour() -> None:
    one, other, document = list(range(20, 40)), list(range(60, 80)), list(range(100, 130))
    assert loss_of_second(one, document, hidden_from_it=True) == loss_of_second(other, document, hidden_from_it=True)
    # What the mask is for: without it the neighbour shows.
    assert loss_of_second(one, document, hidden_from_it=False) != loss_of_second(other, document, hidden_from_it=False)


class Stopped(Exception):
    pass


def pretrainer(rows: PackedRows, directory: Path) -> Pretrainer:
    torch.manual_seed(7)
    return Pretrainer(
        build_model(SHAPE, TOKENIZER, CONTEXT),
        TOKENIZER,
        rows,
        Schedule(3e-3, warmup_steps=2, final=0.1),
        directory,
        batch_rows=4,
        device=torch.device("cpu"),
        compiled=False,
    )


@pytest.mark.parametrize("at", [4, 6], ids=["between two saves", "right after one"])
def test_a_run_stopped_and_resumed_equals_an_uninterrupted_one(
    corpus: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = packed(corpus, rows=40)
    whole = pretrainer(rows, tmp_path / "whole")
    whole.run(save_every=3)

    stopped = pretrainer(rows, tmp_path / "stopped")
    step = stopped._train_step

    def until() -> float:
        if stopped.step == at:
            raise Stopped
        return step()

    monkeypatch.setattr(stopped, "_train_step", until)
    with pytest.raises(Stopped):
        stopped.run(save_every=3)
    resumed = pretrainer(rows, tmp_path / "stopped")
    resumed.run(save_every=3)

    assert resumed.step == whole.step == 10
    wanted = whole.model.state_dict()
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, wanted[name]), name
    losses = [json.loads(line) for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {row["step"]: row["loss"] for row in losses} == {row["step"]: row["loss"] for row in expected}
    assert expected[-1]["loss"] < expected[0]["loss"]


RECIPE = """
vocab_size = 420
context = 128
tokenizer_characters = 20_000
shape = {hidden_size = 32, intermediate_size = 48, layers = 2, heads = 2, kv_heads = 1, head_dim = 16}
mixtures = {some = {notes = 1, chats = 3}}

[[stages]]
name = "text"
learns = "pretrain"
mixture = "some"
tokens = 4800
length = 48
batch_tokens = 192
learning_rate = 0.003

[[stages]]
name = "chat"
learns = "chat"
mixture = "some"
tokens = 1920
length = 96
batch_tokens = 192
learning_rate = 0.001
"""


def test_a_recipe_stopped_between_and_within_stages_ends_in_the_same_model(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    recipe = read_recipe(tmp_path / "recipe.toml")
    whole = follow(recipe, [corpus], tmp_path / "whole", device="cpu", compiled=False)
    assert Qwen3ForCausalLM.from_pretrained(whole).config.max_position_embeddings == 128

    steps = 0
    step = Pretrainer._train_step

    def interrupted(self: Pretrainer) -> float:
        nonlocal steps
        steps += 1
        if steps in (13, 31):  # in the first stage, and, as that goes on from its start, in the second
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Pretrainer, "_train_step", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            follow(recipe, [corpus], tmp_path / "stopped", device="cpu", compiled=False)
    again = follow(recipe, [corpus], tmp_path / "stopped", device="cpu", compiled=False)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('mixture = "some"', 'mixture = "other"', "wants the mixture other; there are .'some'"),
        ('name = "chat"', 'name = "text"', "two stages have the same name"),
        ("vocab_size", "vocabulary", "vocabulary"),
        ("length = 48", "length = 0", "length"),
    ],
)
def test_a_recipe_that_cannot_be_followed_says_why(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    with pytest.raises(Invalid, match=f"(?s)recipe.toml cannot be followed.*{complaint}"):
        read_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize("name", ["two-cores", "gpu"])
def test_our_recipes_name_only_sources_that_notice_names(name: str) -> None:
    recipe = read_recipe(RECIPES / f"{name}.toml")
    notice = (RECIPES.parents[2] / "NOTICE").read_text(encoding="utf-8")
    for mixture in recipe.mixtures:
        shares = recipe.shares(mixture)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["smilechat"] <= 0.2  # or it talks like a counsellor
        assert [source for source in shares if source not in notice] == []
