"""Which modules `adapter_config.json` says are adapted, as PEFT decides it (peft.tuners.tuners_utils.
check_target_module_exists). A file whose tensors say otherwise was made for another configuration."""

import time
from collections.abc import Iterable

import regex

from adapters.errors import Invalid
from adapters.peft_config import AdapterConfig

_PATTERN_CHARACTERS = 8192
# Regular expressions come with the file, and one can be written that never ends. `re` has no way out of it.
_MATCHING_S = 2.0


def require_agreement(config: AdapterConfig, adapted: Iterable[str], modules: Iterable[str]) -> None:
    """Invalid when the configuration covers a module of the base that has no LoRA tensors, or leaves one out that has.
    `adapted` are the modules with LoRA tensors, `modules` all that could have them."""
    if config.target_modules is None or config.target_modules == "all-linear":
        return  # PEFT chose by the kind of model, and wrote nothing down
    targets = _Targets(config)
    adapted = set(adapted)
    for module in sorted({*modules, *adapted}):
        field = targets.left_out_by(module)
        if module in adapted and field and not config.ensure_weight_tying:  # PEFT then adapts the tied layer as well
            raise Invalid(
                f"the file holds LoRA for '{module}', which {field} leaves out; the configuration is another's"
            )
        if module not in adapted and not field:
            raise Invalid(
                f"target_modules covers '{module}', but the file holds no LoRA for it; the file is incomplete or the "
                "configuration another's"
            )


class _Targets:
    def __init__(self, config: AdapterConfig):
        self._config = config
        self._until = time.monotonic() + _MATCHING_S

    def left_out_by(self, module: str) -> str | None:
        """The field that leaves `module` out; None when it is adapted."""
        config = self._config
        if config.exclude_modules and self._named("exclude_modules", config.exclude_modules, module):
            return "exclude_modules"
        if any(_is_or_is_in(module, name) for name in config.modules_to_save or ()):
            return "modules_to_save"
        if not self._named("target_modules", config.target_modules or [], module):
            return "target_modules"
        # Beside a pattern for whole paths PEFT does not look at the layers.
        if isinstance(config.target_modules, list) and not self._in_layers(module):
            return "layers_to_transform"
        return None

    def _named(self, field: str, names: str | list[str], module: str) -> bool:
        """A list names ends of paths, a text is a pattern for the whole path."""
        if isinstance(names, str):
            return self._match(field, names, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def _in_layers(self, module: str) -> bool:
        layers = self._config.layers_to_transform
        if layers is None or layers == []:
            return True
        patterns = self._config.layers_pattern or []
        parents = [rf"(?:^|.*?\.){name}" for name in ([patterns] if isinstance(patterns, str) else patterns)]
        for parent in parents or [r".*?\.[^.]*"]:
            found = self._match("layers_pattern", rf"{parent}\.(?P<layer>\d+)\..*", module)
            if found:
                layer = int(found["layer"])
                return layer == layers if isinstance(layers, int) else layer in layers
        return False

    def _match(self, field: str, pattern: str, module: str) -> "regex.Match[str] | None":
        if len(pattern) > _PATTERN_CHARACTERS:
            raise Invalid(f"{field} is a pattern of {len(pattern)} characters; the limit is {_PATTERN_CHARACTERS}")
        try:
            left = max(self._until - time.monotonic(), 1e-3)
            return regex.fullmatch(pattern, module, timeout=left, concurrent=True)  # others may run meanwhile
        except regex.error as error:
            raise Invalid(f"{field} is no regular expression: {error}") from error
        except TimeoutError as error:
            raise Invalid(f"{field} takes too long to match; list the modules' names instead") from error


def _is_or_is_in(module: str, name: str) -> bool:
    return f".{name}." in f".{module}."
