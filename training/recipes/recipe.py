"""What the keys of another trainer's recipe become here. Every key is mapped to fields of TrainConfig, or means nothing
here and says why, or is refused with what to use instead; defaults of theirs apply where the recipe is silent.

A table maps a key to a Rule; the rules that tables are made of are below."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adapters.errors import Invalid, nearest
from training.config import TrainConfig

Fields = dict[str, object]  # of TrainConfig
WHOLE_BASE = 10**9  # as max_length, the largest there may be: all that the base reads


@dataclass(frozen=True)
class Keys:
    """A recipe's values by key, their defaults included, and the fields of ours that the command line sets itself."""

    values: Mapping[str, Any]
    ours: frozenset[str] = frozenset()

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)


Rule = Callable[[Any, Keys], Fields | str]  # (value, the whole recipe) → fields, or why there are none


class Unsupported(Exception):
    """A value that cannot be done here; the message says what to use instead."""


@dataclass(frozen=True)
class Dialect:
    """The recipes of one trainer. `defaults` gives theirs for a recipe, which may depend on what it says."""

    title: str
    rules: Mapping[str, Rule]
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]]
    aliases: Mapping[str, str] = field(default_factory=dict)  # older names and their present ones

    def knows(self, key: str) -> bool:
        return key in self.rules or key in self.aliases


@dataclass(frozen=True)
class Line:
    """What became of one key. `default`: theirs, which the recipe did not mention; `differs`: theirs, and not to be
    had here; `refused`: the recipe asks for what is not supported."""

    key: str
    value: Any
    outcome: Literal["mapped", "nothing", "default", "differs", "refused"]
    text: str


@dataclass(frozen=True)
class Recipe:
    """Fields of TrainConfig, and how they came about."""

    title: str
    source: str
    values: Fields
    lines: list[Line]
    is_ours: bool = False  # written in fields of TrainConfig

    def report(self) -> Iterator[str]:
        """For people: each key and what it became, then what was taken from their defaults."""
        if self.is_ours:
            return
        yield f"{self.source}: a recipe for {self.title}"
        given = [line for line in self.lines if line.outcome in ("mapped", "nothing", "refused")]
        width = max((len(_short(line)) for line in given), default=0)
        marks = {"mapped": "→", "nothing": "·", "refused": "✗"}
        yield from (f"  {_short(line):<{width}}  {marks[line.outcome]} {line.text}" for line in given)
        defaults = [line for line in self.lines if line.outcome in ("default", "differs")]
        if defaults:
            yield f"not said there, so as {self.title} has it:"
            width = max(len(_short(line)) for line in defaults)
            yield from (f"  {_short(line):<{width}}  → {line.text}" for line in defaults)

    def refuse(self) -> None:
        """Raises Invalid that names every key that is not supported, each with the way out."""
        refused = [line for line in self.lines if line.outcome == "refused"]
        if refused:
            keys = "; ".join(f"{line.key}: {line.text}" for line in refused)
            raise Invalid(f"{self.source}: not supported here: {keys}", param=refused[0].key)


def translate(
    dialect: Dialect, given: Mapping[str, Any], source: str, ours: Mapping[str, str] | Iterable[str] = ()
) -> Recipe:
    """`given` as fields of ours; those in `ours` stay the caller's. As a mapping it says by which option they were
    set: the field's own, or one that stands in its place. Raises Invalid for a value that is none (a word for
    a number) and for two keys that contradict each other."""
    set_here = dict(ours) if isinstance(ours, Mapping) else {name: name for name in ours}
    asked = _by_present_name(dialect, given, source)
    try:
        theirs = dialect.defaults({name: value for name, (_, value) in asked.items()})
    except ValueError as error:
        raise Invalid(f"{source}: {error}") from error
    keys = Keys({**theirs, **{name: value for name, (_, value) in asked.items()}}, frozenset(set_here))
    values: Fields = {}
    by: dict[str, str] = {}  # field → the key that set it
    lines: list[Line] = []

    for name, (key, value) in asked.items():
        outcome = _apply(dialect, name, key, value, keys, source)
        if isinstance(outcome, Unsupported):
            kept = name in theirs and _same(value, theirs[name])
            lines.append(Line(key, value, "differs" if kept else "refused", str(outcome)))
            continue
        fields = outcome if isinstance(outcome, dict) else {}
        for target, new in fields.items():
            if target in by and values[target] != new:
                raise Invalid(
                    f"{source}: {by[target]} and {key} contradict each other ({values[target]} and {new} as {target}); "
                    "keep one of them",
                    param=key,
                )
            by[target] = key
        values |= fields
        lines.append(Line(key, value, "mapped" if fields else "nothing", _told(outcome, set_here)))

    lines += [Line(key, None, "nothing", "not set") for key, value in given.items() if value is None]
    for name, value in theirs.items():
        if name in asked:
            continue
        outcome = _apply(dialect, name, name, value, keys, source)
        if isinstance(outcome, Unsupported):
            lines.append(Line(name, value, "differs", str(outcome)))
        elif isinstance(outcome, dict):
            new = {target: chosen for target, chosen in outcome.items() if target not in {*values, *set_here}}
            values |= new
            different = {target: chosen for target, chosen in new.items() if chosen != _default(target)}
            if different:
                lines.append(Line(name, value, "default", _told(different, {})))
    return Recipe(dialect.title, source, {k: v for k, v in values.items() if k not in set_here}, lines)


def _by_present_name(dialect: Dialect, given: Mapping[str, Any], source: str) -> dict[str, tuple[str, Any]]:
    """present name → (the name it was given by, value), without nulls."""
    found: dict[str, tuple[str, Any]] = {}
    for key, value in given.items():
        if value is None:
            continue
        name = dialect.aliases.get(key, key)
        if name in found and not _same(found[name][1], value):
            other, before = found[name]
            if not isinstance(before, list) or not isinstance(value, list):
                raise Invalid(f"{source}: {other} and {key} mean the same, and differ; keep one of them", param=key)
            value = [*before, *value]
        found[name] = (key, value)
    return found


def _apply(dialect: Dialect, name: str, key: str, value: Any, keys: Keys, source: str) -> Fields | str | Unsupported:
    rule = dialect.rules.get(name)
    if rule is None:
        if is_off(value):
            return "not known here, and off"
        return Unsupported(f"not a key of {dialect.title}{nearest(key, [*dialect.rules, *dialect.aliases])}")
    try:
        return rule(value, keys)
    except Unsupported as unsupported:
        return unsupported
    except ValueError as error:
        raise Invalid(f"{source}: {key}: {error}", param=key) from error


def _told(outcome: Fields | str, ours: Mapping[str, str]) -> str:
    if isinstance(outcome, str):
        return outcome
    if not outcome:
        return "as here"
    return ", ".join(
        f"{name} {_plain(name, value)}" if name not in ours else _set_here(name, ours[name])
        for name, value in outcome.items()
    )


def _set_here(name: str, option: str) -> str:
    if name == option:
        return f"{name} as the command line has it"
    return f"{name} left out: the command line has --{option.replace('_', '-')} in place of the recipe's data"


def _plain(name: str, value: object) -> str:
    if value is None or value == ():
        return "all linear layers" if name == "targets" else "as by default"
    if name == "max_length" and value == WHOLE_BASE:
        return "all that the base reads"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _default(name: str) -> object:
    return TrainConfig.model_fields[name].default


def _short(line: Line) -> str:
    if line.value is None:
        return line.key
    secret = any(word in line.key.lower() for word in ("token", "api_key", "secret"))
    shown = "…" if secret else " ".join(str(line.value).split())
    return f"{line.key}: {shown if len(shown) <= 40 else shown[:39] + '…'}"


# --- rules ---


def to(name: str, convert: Callable[[Any], object]) -> Rule:
    """The field `name`."""
    return lambda value, keys: {name: convert(value)}


def nothing(why: str) -> Rule:
    """No field, whatever the value, since it changes nothing of what is learned."""
    return lambda value, keys: why


def refused(instead: str) -> Rule:
    """Not supported when it is on."""

    def rule(value: Any, keys: Keys) -> Fields | str:
        if is_off(value):
            return "off, as here"
        raise Unsupported(instead)

    return rule


def only(*same: object, instead: str) -> Rule:
    """Not supported with another value than ours."""

    def rule(value: Any, keys: Keys) -> Fields | str:
        if any(_same(value, ours) for ours in same):
            return "as here"
        raise Unsupported(instead)

    return rule


def of_adapters(rule: Rule) -> Rule:
    """Means nothing where all weights of the base are trained."""

    def where_there_is_one(value: Any, keys: Keys) -> Fields | str:
        if "full" in (keys.get("finetuning_type"), keys.get("tuner_type")):
            return "means nothing where all weights are trained"
        return rule(value, keys)

    return where_there_is_one


def each(rule: Rule, names: str) -> dict[str, Rule]:
    """The same rule for several keys."""
    return dict.fromkeys(names.split(), rule)


# --- values, as YAML, JSON or a command line gives them ---


def is_off(value: Any) -> bool:
    return value in (None, False, 0, "", [], {}) or (
        isinstance(value, str) and value.strip().lower() in ("false", "none", "null", "no", "0", "0.0", "[]", "{}")
    )


def number(value: Any) -> float:
    """Also of `1e-4`, which YAML takes for a word. Raises ValueError."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None
    except OverflowError:
        raise ValueError(f"a number of {len(str(value))} digits is more than anything here can be") from None
    if isinstance(value, bool) or not math.isfinite(result):
        raise ValueError(f"{value!r} is not a number")
    return result


def whole(value: Any) -> int:
    result = number(value)
    if result != int(result):
        raise ValueError(f"{value!r} is not a whole number")
    return int(result)


def flag(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0", "yes", "no", "none"):
        raise ValueError(f"{value!r} is neither true nor false")
    return word in ("true", "1", "yes")


def words(value: Any) -> tuple[str, ...]:
    """Of a list, or of words between commas."""
    parts = value if isinstance(value, list | tuple) else [value]
    return tuple(word.strip() for part in parts for word in str(part).split(",") if word.strip())


def text(value: Any) -> str:
    return str(value)


def mapping(value: Any) -> dict[str, Any]:
    """Of an object, or of one written as JSON."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not an object")
    return value


def _same(one: Any, other: Any) -> bool:
    try:
        return number(one) == number(other)
    except ValueError:
        return one == other or str(one).lower() == str(other).lower() or (is_off(one) and is_off(other))
