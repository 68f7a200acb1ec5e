"""OpenAI's published API description as a judge of what we send.

The description (openai/openai-openapi on GitHub, as JSON, gzipped or not) is not part of this repository: the
environment variable OPENAI_OPENAPI names the file, and without it the tests that need it are skipped."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

VARIABLE = "OPENAI_OPENAPI"
DESCRIPTION = os.environ.get(VARIABLE)

# Schemas that contradict the text beside them, or the service itself: null is allowed there too.
_CHOICE = "CreateCompletionResponse.properties.choices.items.properties"
CORRECTIONS = (
    # "All other chunks will also include a `usage` field, but with a null value" (stream_options.include_usage).
    "CreateCompletionResponse.properties.usage",
    # The chunks of a stream have the same schema as the whole, and no reason until the last.
    f"{_CHOICE}.finish_reason",
    # The first token of an echoed prompt has nothing before it: the service sends null, and harnesses rely on it.
    f"{_CHOICE}.logprobs.anyOf.0.properties.token_logprobs.items",
    f"{_CHOICE}.logprobs.anyOf.0.properties.top_logprobs.items",
)


class Judge:
    def __init__(self, path: Path):
        data = path.read_bytes()
        self._description = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        for place in CORRECTIONS:
            node = self._description["components"]["schemas"]
            for step in place.split("."):
                node = node[int(step) if isinstance(node, list) else step]
            node["nullable"] = True
        self._description = _in_words_of_3_1(self._description)

    def complaints(self, schema: str, value: Any) -> list[str]:
        """What is wrong with `value` as one of the description's `schema`s; [] for nothing."""
        root = self._description | {"$ref": f"#/components/schemas/{schema}"}
        return [f"{error.json_path}: {error.message[:300]}" for error in _Validator(root).iter_errors(value)]

    def assert_valid(self, schema: str, value: Any) -> None:
        found = self.complaints(schema, value)
        assert not found, f"{schema}: {found}\n{json.dumps(value, ensure_ascii=False)[:2000]}"


def _in_words_of_3_1(node: Any) -> Any:
    """OpenAPI 3.0's `nullable` and its yes or no of `exclusiveMinimum`, which the description still uses in places."""
    if isinstance(node, list):
        return [_in_words_of_3_1(part) for part in node]
    if not isinstance(node, dict):
        return node
    if node.get("exclusiveMinimum") is True:
        node = {name: part for name, part in node.items() if name != "minimum"} | {"exclusiveMinimum": node["minimum"]}
    whole = {name: _in_words_of_3_1(part) for name, part in node.items() if not (name == "nullable" and part is True)}
    return whole if len(whole) == len(node) else {"anyOf": [whole, {"type": "null"}]}


def _one_of(validator: Any, branches: Any, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    """With a discriminator only those branches count that admit the instance's, and a single one says what is wrong."""
    name = schema.get("discriminator", {}).get("propertyName")
    if name is None or not isinstance(instance, dict):
        yield from Draft202012Validator.VALIDATORS["oneOf"](validator, branches, instance, schema)
        return
    found = [branch for branch in branches if _admits(validator, branch, name, instance.get(name))]
    if len(found) == 1:
        yield from validator.descend(instance, found[0])
    elif not any(validator.evolve(schema=branch).is_valid(instance) for branch in found):
        yield ValidationError(f"{len(found)} branches have {name} {instance.get(name)!r}, and it fits none")


def _admits(validator: Any, branch: dict[str, Any], name: str, value: Any) -> bool:
    if "$ref" in branch:
        branch = validator._resolver.lookup(branch["$ref"]).contents
    if "allOf" in branch:
        return all(_admits(validator, part, name, value) for part in branch["allOf"])
    return value in branch.get("properties", {}).get(name, {}).get("enum", [value])


_Validator = extend(Draft202012Validator, {"oneOf": _one_of})
