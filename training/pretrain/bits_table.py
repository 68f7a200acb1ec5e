"""Bits per byte of several models, and of an n-gram trained on the same text, over every corpus file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.progress import Progress
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.errors import Invalid
from training.pretrain.bits import DIALOGUES, bits_per_byte, held_out
from training.pretrain.corpus import Document, is_held_out, read_documents, said
from training.pretrain.ngram import ORDER, NGram

NGRAM = f"{ORDER}-gram"
MEAN = "mean of the dialogues"


def measure(
    models: Sequence[Path], data: Path, *, limit: int | None, ngram_limit: int | None, device: str, progress: Progress
) -> dict[str, Any]:
    """{"bytes": {file: held-out bytes}, "bits_per_byte": {model: {file or MEAN: bits}}}. `limit`: bytes of held-out
    text read from each file at most; `ngram_limit`: of training text the n-gram learns from each."""
    names = label(models)
    files = {path.name.partition(".")[0]: path for path in sorted(data.glob("*.jsonl*"))}
    if not files:
        raise Invalid(f"there are no corpus files (NAME.jsonl or NAME.jsonl.gz) in {data}", param="data")
    texts = {name: list(_first(held_out(path), limit)) for name, path in files.items()}
    sizes = {name: sum(map(_size, documents)) for name, documents in texts.items() if documents}
    found: dict[str, dict[str, float]] = {}

    learning = progress.add_task(f"{NGRAM}: learning", total=ORDER)
    trained = chain.from_iterable(_first(_trained_on(path), ngram_limit) for path in files.values())
    ngram = NGram.train(trained, level_done=lambda: progress.advance(learning))
    scoring = progress.add_task(f"{NGRAM}: scoring", total=sum(sizes.values()))
    found[NGRAM] = {}
    for name, size in sizes.items():
        found[NGRAM][name] = ngram.bits_per_byte(texts[name])
        progress.advance(scoring, size)
    del ngram

    for label_, path in names.items():
        scoring = progress.add_task(label_, total=sum(sizes.values()))
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()
        found[label_] = {}
        for name, size in sizes.items():
            found[label_][name] = bits_per_byte(model, tokenizer, texts[name])
            progress.advance(scoring, size)
    for bits in found.values():
        dialogues = [bits[name] for name in DIALOGUES if name in bits]
        if len(dialogues) == len(DIALOGUES):
            bits[MEAN] = sum(dialogues) / len(dialogues)
    return {"bytes": sizes, "bits_per_byte": found}


def label(models: Sequence[Path]) -> dict[str, Path]:
    """A short name for each model: its directory's, or the whole path where two directories are called alike."""
    names = [path.resolve().name for path in models]
    return {str(path) if names.count(name) > 1 else name: path for name, path in zip(names, models, strict=True)}


def bits_table(figures: dict[str, Any]) -> Table:
    """Bits per byte, a file a row and a model a column: lower is better."""
    found = figures["bits_per_byte"]
    table = Table(box=MARKDOWN)  # to be pasted into the model card
    for name in ("held-out text of", "bytes", *found):
        table.add_column(name, justify="left" if name == "held-out text of" else "right", no_wrap=True)
    for file, size in figures["bytes"].items():
        table.add_row(file, f"{size:,}", *(f"{bits[file]:.3f}" for bits in found.values()))
    if all(MEAN in bits for bits in found.values()):
        table.add_row(MEAN, "", *(f"{bits[MEAN]:.3f}" for bits in found.values()))
    return table


def _first(documents: Iterator[Document], limit: int | None) -> Iterator[Document]:
    """Documents until they are `limit` bytes or more."""
    size = 0
    for document in documents:
        yield document
        size += _size(document)
        if limit is not None and size >= limit:
            return


def _trained_on(path: Path) -> Iterator[Document]:
    return (document for document in read_documents(path) if not is_held_out(document))


def _size(document: Document) -> int:
    return sum(len(text.encode()) for text in said(document))
