"""A recipe: everything that decides what the base becomes, in one TOML file, and the run that follows it.

A run's directory holds the tokenizer, a directory a stage, and `model`. Each part is made once: the same command given
again goes on where the last one stopped, within a stage too."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import Invalid
from training.pretrain.corpus import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from training.pretrain.train import Pretrainer

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(_Strict):
    """Of a Qwen3 model with tied embeddings."""

    hidden_size: Count
    intermediate_size: Count
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count


class StageRecipe(_Strict):
    """One pass over rows of one length. The rate rises for `warmup_steps` to its peak and falls in a line to `final` of
    it at the last step."""

    name: str
    learns: Stage  # `pretrain`: every token; `chat`: the assistant's words and the end of its turn
    mixture: str  # the table with the sources' shares
    tokens: Count
    length: Count
    batch_tokens: Count
    learning_rate: float = Field(gt=0)
    warmup_steps: Count = 40
    final: float = Field(0.0, ge=0, le=1)

    @property
    def batch_rows(self) -> int:
        return max(1, self.batch_tokens // self.length)


class Recipe(_Strict):
    seed: int = 1
    vocab_size: Count
    context: Count
    tokenizer_characters: Count  # of the first stage's mixture, which the tokenizer learns from
    shape: Shape
    stages: Annotated[list[StageRecipe], Field(min_length=1)]
    mixtures: dict[str, dict[str, Share]]

    @model_validator(mode="after")
    def _names_agree(self) -> Recipe:
        for stage in self.stages:
            if stage.mixture not in self.mixtures:
                raise ValueError(f"stage {stage.name} wants the mixture {stage.mixture}; there are {[*self.mixtures]}")
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError("two stages have the same name")
        return self

    def shares(self, mixture: str) -> dict[str, float]:
        """Source name → share of the tokens, the shares adding up to 1."""
        table = self.mixtures[mixture]
        return {name: share / sum(table.values()) for name, share in table.items()}


def read_recipe(path: Path) -> Recipe:
    """Raises Invalid, naming the file and what is wrong with it. Mixtures come from `mixtures.toml` beside the recipe,
    unless it has its own."""
    try:
        given: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        if "mixtures" not in given:
            given["mixtures"] = tomllib.loads((path.parent / "mixtures.toml").read_text(encoding="utf-8"))
        return Recipe.model_validate(given)
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise Invalid(f"the recipe {path} cannot be followed: {error}", param="recipe") from error


def follow(recipe: Recipe, data: list[Path], run: Path, *, device: str, compiled: bool) -> Path:
    """Make what is not made yet; the model's directory. Blocks for hours; shows its progress on the console."""
    start = run / "tokenizer"
    if not start.exists():
        _make_tokenizer(recipe, data, start)
    for number, stage in enumerate(recipe.stages):
        directory = run / stage.name
        if not (directory / "model").exists():
            _trainer(recipe, stage, data, start, directory, recipe.seed + number, device, compiled).run()
        start = directory / "model"
    shutil.copytree(start, run / "model", dirs_exist_ok=True)
    return run / "model"


def _make_tokenizer(recipe: Recipe, data: list[Path], directory: Path) -> None:
    from training.pretrain.corpus import texts_for_tokenizer
    from training.pretrain.tokenizer import save_tokenizer, train_tokenizer

    texts = texts_for_tokenizer(recipe.shares(recipe.stages[0].mixture), data, recipe.tokenizer_characters)
    partial = directory.with_name("tokenizer.partial")
    save_tokenizer(train_tokenizer(texts, recipe.vocab_size, recipe.context), partial)
    partial.replace(directory)


def _trainer(
    recipe: Recipe,
    stage: StageRecipe,
    data: list[Path],
    start: Path,
    directory: Path,
    seed: int,
    device: str,
    compiled: bool,
) -> Pretrainer:
    """`start` is a tokenizer, for fresh weights, or the model of the stage before."""
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    from training.pretrain.corpus import pack
    from training.pretrain.train import Pretrainer, Schedule, build_model

    torch.manual_seed(seed)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(start)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True  # rows are cut later
    fresh = not (start / "config.json").exists()
    model = (
        build_model(recipe.shape, tokenizer, recipe.context)
        if fresh
        else Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
    )
    shares, rows = recipe.shares(stage.mixture), stage.tokens // stage.length
    return Pretrainer(
        model,
        tokenizer,
        pack(shares, data, tokenizer, stage.learns, rows=rows, length=stage.length, seed=seed),
        Schedule(stage.learning_rate, stage.warmup_steps, stage.final),
        directory,
        batch_rows=stage.batch_rows,
        device=torch.device(device),
        compiled=compiled,
        title=stage.name,
    )
