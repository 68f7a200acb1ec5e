"""From corpus files to packed training rows: read, mix by weight, render in ChatML, cut to length.

Everything is decided by the seed, so a run can be resumed at any step by rebuilding the same rows."""

import gzip
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from training.pretrain.tokenizer import END_OF_TEXT, IM_END, IM_START

Stage = Literal["pretrain", "chat"]
Document = dict[str, Any]  # {"text": str} or {"messages": [{"role", "content"}, ...]}
HELD_OUT_ONE_IN = 50


@dataclass(frozen=True)
class PackedRows:
    tokens: NDArray[np.uint16]  # (rows, length + 1)
    learned: NDArray[np.bool_]  # (rows, length + 1): True where the token is a target
    documents: NDArray[np.uint16]  # (rows, length + 1): which document of its row a token belongs to


def said(document: Document) -> list[str]:
    """The texts of a document, without roles and marks."""
    return [document["text"]] if "text" in document else [m["content"] for m in document["messages"]]


def is_held_out(document: Document) -> bool:
    """Two documents in a hundred are never trained on, chosen by what they say: the choice holds for every
    seed, order and later version of a file."""
    return zlib.crc32("\n".join(said(document)).encode()) % HELD_OUT_ONE_IN == 0


def read_documents(path: Path) -> Iterator[Document]:
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def find_source(name: str, directories: list[Path]) -> Path:
    for directory in directories:
        for suffix in (".jsonl.gz", ".jsonl"):
            if (directory / (name + suffix)).is_file():
                return directory / (name + suffix)
    raise FileNotFoundError(f"no {name}.jsonl(.gz) in {', '.join(map(str, directories))}")


def texts_for_tokenizer(mixture: dict[str, float], directories: list[Path], characters: int) -> Iterator[str]:
    """Text in the proportions of the mixture, `characters` in all at most."""
    for name, share in mixture.items():
        left = int(characters * share)
        for document in read_documents(find_source(name, directories)):
            if is_held_out(document):
                continue
            text = "\n".join(said(document))
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


class _Renderer:
    """Documents → (token ids, learned flags). Chat learns the assistant's words and its end-of-turn token;
    the pre-training stage learns every token, which also teaches the format."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stage: Stage):
        self.tokenizer = tokenizer
        self.learn_all = stage == "pretrain"
        self.end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)

    def render(self, document: Document) -> tuple[list[int], list[bool]]:
        if "text" in document:
            ids = [*self._encode(document["text"]), self.end_of_text]
            return ids, [True] * len(ids)
        ids, learned = [], []
        for message in document["messages"]:
            head = self._encode(f"{IM_START}{message['role']}\n")
            body = self._encode(message["content"] + IM_END)
            tail = self._encode("\n")
            spoken = self.learn_all or message["role"] == "assistant"
            ids += head + body + tail
            learned += [self.learn_all] * len(head) + [spoken] * len(body) + [self.learn_all] * len(tail)
        return ids, learned

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _endless(path: Path, rng: random.Random) -> Iterator[Document]:
    documents = [document for document in read_documents(path) if not is_held_out(document)]
    while True:
        rng.shuffle(documents)
        yield from documents


def pack(
    mixture: dict[str, float],
    directories: list[Path],
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    *,
    rows: int,
    length: int,
    seed: int,
) -> PackedRows:
    """`rows` rows of `length` + 1 tokens. Sources are drawn so that token shares follow the mixture; every
    row begins at the start of a document, and what a document has beyond the row's end opens no other row
    in the chat stage (a reply without its question would teach noise) but continues in pre-training."""
    rng = random.Random(seed)
    sources = {name: _endless(find_source(name, directories), random.Random(f"{seed}/{name}")) for name in mixture}
    spent = dict.fromkeys(mixture, 0)
    renderer = _Renderer(tokenizer, stage)
    packed: list[_Row] = []
    row = _Row([], [], [])
    while len(packed) < rows:
        # The source furthest behind its share comes next; a little noise keeps rows from looking alike.
        name = min(mixture, key=lambda n: spent[n] / mixture[n] * rng.uniform(0.9, 1.1))
        ids, learned = renderer.render(next(sources[name]))
        spent[name] += len(ids)
        row.append(ids, learned)
        while len(row.tokens) > length and len(packed) < rows:
            head, row = row.cut(length + 1, keep=1 if stage == "pretrain" else None)
            packed.append(head)
    order = np.random.default_rng(seed).permutation(rows)
    return PackedRows(
        np.array([row.tokens for row in packed], dtype=np.uint16)[order],
        np.array([row.learned for row in packed], dtype=np.bool_)[order],
        np.array([row.documents for row in packed], dtype=np.uint16)[order],
    )


@dataclass
class _Row:
    tokens: list[int]
    learned: list[bool]
    documents: list[int]

    def append(self, ids: list[int], learned: list[bool]) -> None:
        number = self.documents[-1] + 1 if self.documents else 0
        self.tokens += ids
        self.learned += learned
        self.documents += [number] * len(ids)

    def cut(self, at: int, keep: int | None) -> tuple["_Row", "_Row"]:
        """The first `at` tokens, and a new row: with the last `keep` of them and all that follow, or empty."""
        head = _Row(self.tokens[:at], self.learned[:at], self.documents[:at])
        if keep is None:
            return head, _Row([], [], [])
        rest = at - keep
        first = self.documents[rest]
        return head, _Row(self.tokens[rest:], self.learned[rest:], [n - first for n in self.documents[rest:]])
