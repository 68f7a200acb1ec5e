"""The recipes of the personas shipped with the bundled base: which data, how long, which card."""

import tomllib

from adapters.base_model import BUNDLED_BASE
from adapters.errors import NotFound, nearest
from adapters.manifest import PersonaCard
from adapters.settings import BUNDLED
from training.config import TrainConfig

DATA = BUNDLED / "data"


def sample_config(name: str, base: str = BUNDLED_BASE) -> TrainConfig:
    """What a run needs to train the persona. NotFound for an unknown one."""
    recipes = tomllib.loads((DATA / "personas.toml").read_text(encoding="utf-8"))
    if name not in recipes:
        raise NotFound(f"there is no sample persona '{name}'{nearest(name, recipes)}")
    recipe = recipes[name]
    return TrainConfig(
        data=tuple(DATA / file for file, times in recipe["data"].items() for _ in range(times)),
        name=name,
        base=base,
        epochs=recipe["epochs"],
        lora_r=recipe["lora_r"],
        val_split=recipe["val_split"],
        card=PersonaCard(title=recipe["title"], greeting=recipe["greeting"], samples=recipe["samples"]),
    )


def sample_names() -> list[str]:
    return list(tomllib.loads((DATA / "personas.toml").read_text(encoding="utf-8")))
