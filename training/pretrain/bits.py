"""Bits per byte of a model on the documents that training never saw: lower is better, and models with different
tokenizers compare, since the unit is the text's own bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from training.pretrain.corpus import Document, is_held_out, read_documents, said
from training.pretrain.tokenizer import END_OF_TEXT, IM_END, IM_START

DIALOGUES = ("kdconv", "smilechat", "self_dialogue_en", "topical_chat_en")


def held_out(path: Path) -> Iterator[Document]:
    return (document for document in read_documents(path) if is_held_out(document))


def scored_tokens(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    """Token ids as in training, and which of them spell the text: roles and marks are given, not guessed."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    if "text" in document:
        ids = encode(document["text"])
        return [tokenizer.convert_tokens_to_ids(END_OF_TEXT), *ids], [False] + [True] * len(ids)
    tokens: list[int] = []
    scored: list[bool] = []
    for message in document["messages"]:
        for ids, counts in (
            (encode(f"{IM_START}{message['role']}\n"), False),
            (encode(message["content"]), True),
            (encode(f"{IM_END}\n"), False),
        ):
            tokens += ids
            scored += [counts] * len(ids)
    return tokens, scored


@torch.inference_mode()
def bits_per_byte(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, documents: list[Document], *, window: int = 1024
) -> float:
    """Cross-entropy in bits over the texts' UTF-8 bytes. A document longer than `window` is read in windows that
    overlap by half, each token scored once, with at least half a window before it where there is that much."""
    bits = 0.0
    for document in documents:
        tokens, scored = scored_tokens(document, tokenizer)
        done = 1
        for start in range(0, max(1, len(tokens) - window // 2), window // 2):
            ids = torch.tensor(tokens[start : start + window])
            wanted = torch.tensor(scored[start : start + window])
            wanted[: done - start] = False
            if wanted[1:].any():
                bits += _bits(model, ids, wanted)
            done = min(len(tokens), start + window)
    size = sum(len(text.encode()) for document in documents for text in said(document))
    return bits / size


def _bits(model: nn.Module, ids: Tensor, wanted: Tensor) -> float:
    logits = model(input_ids=ids[None, :-1]).logits[0].float()
    losses = F.cross_entropy(logits, ids[1:], reduction="none")
    return float(losses[wanted[1:]].sum()) / math.log(2)
