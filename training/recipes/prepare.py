"""A recipe and the command line's options as one: what `bianlian train` asks of the two."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.recipes.hub_names import default_name
from training.recipes.read import read_recipe
from training.recipes.recipe import Line, Recipe

# What the command line names in place of others of the recipe.
_REPLACES = {"data": ("dataset", "dataset_dir", "max_samples", "data_weights"), "dataset": ("data", "max_samples")}


def with_recipe(
    options: Mapping[str, Any], given: Collection[str], path: Path | None, foreign: Mapping[str, Any]
) -> tuple[dict[str, Any], Recipe]:
    """Options with the recipe's values where the command line is silent, and the recipe to report.

    `given` are the options that the command line names itself. Raises what `read_recipe` raises; keys that are not
    supported are for `Recipe.refuse`, after its report."""
    replaced = {name: option for option in given for name in _REPLACES.get(option, ())}
    recipe = read_recipe(path, foreign, replaced | {name: name for name in given})
    merged = {**options, **recipe.values}
    if not merged.get("name") and not recipe.is_ours:
        merged["name"] = default_name(str(merged["base"]), str(merged.get("method", "lora")))
        line = Line("output_dir", "by its model", "default", f"name {merged['name']} (choose another with --name)")
        recipe = replace(recipe, lines=[*recipe.lines, line])
    return merged, recipe


def fit_length(max_length: int, base: Path) -> int:
    """`max_length`, but at most what the base in `base` reads: other trainers take it for a bound, not a demand."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return min(max_length, int(config.get("text_config", config).get("max_position_embeddings") or max_length))
