"""What tests of the bundled base's recipe share: a tiny shape, a tokenizer and corpus files of a few sentences."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from training.pretrain.corpus import Document, said
from training.pretrain.recipe import Shape
from training.pretrain.tokenizer import train_tokenizer

SHAPE = Shape(hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=1, head_dim=16)
CONTEXT = 128


def tokenizer_of(documents: Sequence[Document]) -> PreTrainedTokenizerFast:
    return train_tokenizer(("\n".join(said(document)) for document in documents), vocab_size=420, context=CONTEXT)


def write_documents(documents: Sequence[Document], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
