"""Objects of a JSON schema that list their properties and say nothing of others get no others.

JSON Schema allows any others then, and a model that is held to that may go on adding them until its length is reached.
Who sends such a schema (Pydantic writes them) means the listed ones; xgrammar, which most servers use, reads it so
too."""

import json
from collections.abc import Iterator
from typing import Any

_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"}
_COMBINED = {"anyOf", "oneOf", "not", "if", "dependentSchemas", "$ref", "$dynamicRef"}
_NAMED = ("properties", "$defs", "definitions")  # name → schema; elsewhere a keyword holds a schema or a list of them


def closed(text: str) -> str:
    """The schema with `additionalProperties: false` where it is meant. As it is when it combines schemas over one
    object, as each then may list a part of the properties, and when it is not JSON."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        return text
    subschemas = list(_subschemas(schema))
    listing = [sub for sub in subschemas if "properties" in sub]
    if any("allOf" in sub for sub in subschemas) or any(_COMBINED & sub.keys() for sub in listing):
        return text
    for sub in listing:
        if not _OPEN & sub.keys():
            sub["additionalProperties"] = False
    return json.dumps(schema, ensure_ascii=False)


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            yield value
            for keyword, held in value.items():
                if keyword in _NAMED:
                    waiting += held.values() if isinstance(held, dict) else []
                elif keyword not in ("enum", "const", "default", "examples"):  # values, not schemas
                    waiting.append(held)
