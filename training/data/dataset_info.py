"""LLaMA-Factory's `dataset_info.json`: names of data sets, where each lies, and which column means what.

Only what an entry names is read: a column it leaves out does not exist, as there. Entries of a hub are found when their
file lies beside the list; nothing is downloaded here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import Invalid, NotFound, nearest
from training.data.fields import RowError
from training.data.files import SUFFIXES, Object, json_type
from training.data.formats import Format, RowMapping

FILE_NAME = "dataset_info.json"


class Columns(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    messages: str | None = None
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None


class Tags(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"


_OPENAI_TAGS = Tags(
    role_tag="role",
    content_tag="content",
    user_tag="user",
    assistant_tag="assistant",
    observation_tag="tool",
    function_tag="function_call",
)


class Entry(BaseModel):
    """One data set of the list. `subset`, `split` and `folder` choose within a hub's; a file has none of them."""

    model_config = ConfigDict(extra="forbid")

    file_name: str | None = None
    hf_hub_url: str | None = None
    ms_hub_url: str | None = None
    om_hub_url: str | None = None
    script_url: str | None = None
    cloud_file_name: str | None = None
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str | None = None
    folder: str | None = None
    num_samples: int | None = Field(default=None, ge=1)
    columns: Columns | None = None
    tags: Tags | None = None

    @property
    def format(self) -> Format:
        columns = self._columns
        if self.ranking:
            return "dpo"
        if columns.kto_tag:
            return "kto"
        if self.formatting != "alpaca":
            return "sharegpt"
        return "alpaca" if columns.response else "text"

    @property
    def mapping(self) -> RowMapping:
        """A row as the file has it → a row with the names that `format` has here."""
        return self._alpaca_row if self.formatting == "alpaca" else self._turns_row

    @property
    def _columns(self) -> Columns:
        if self.columns is not None:
            return self.columns
        if self.formatting == "alpaca":
            return Columns(prompt="instruction", query="input", response="output")
        return Columns(messages="messages" if self.formatting == "openai" else "conversations")

    @property
    def _tags(self) -> Tags:
        return self.tags or (_OPENAI_TAGS if self.formatting == "openai" else Tags())

    def _alpaca_row(self, row: Object) -> Object:
        columns = self._columns
        if self.format == "text":
            return _picked(row, {"text": columns.prompt})
        return _picked(
            row,
            {
                "instruction": columns.prompt,
                "input": columns.query,
                "output": columns.response,
                "history": columns.history,
                **_beside(columns),
            },
        )

    def _turns_row(self, row: Object) -> Object:
        columns, name = self._columns, self._columns.messages or "conversations"
        turns = row.get(name)
        if not isinstance(turns, list):
            raise RowError(name, "is missing" if turns is None else f"must be a list of turns, is {json_type(turns)}")
        picked = dict(_picked(row, _beside(columns)))
        picked["conversations"] = [self._turn(turn, f"{name}[{number}]") for number, turn in enumerate(turns, 1)]
        for side in ("chosen", "rejected"):
            if isinstance(picked.get(side), Mapping):
                picked[side] = self._turn(picked[side], side)
        return picked

    def _turn(self, turn: Any, where: str) -> Object:
        tags = self._tags
        if not isinstance(turn, Mapping) or tags.role_tag not in turn:
            raise RowError(where, f"must be an object with {tags.role_tag} and {tags.content_tag}")
        roles = {
            tags.user_tag: "human",
            tags.assistant_tag: "gpt",
            tags.observation_tag: "observation",
            tags.function_tag: "function_call",
            tags.system_tag: "system",
        }
        role = roles.get(turn[tags.role_tag])
        if role is None:
            raise RowError(where, f"unknown role {turn[tags.role_tag]!r}; the list's tags: {', '.join(sorted(roles))}")
        said = {key: turn[key] for key in ("tool_calls", "reasoning_content", "tool_call_id") if turn.get(key)}
        return {"from": role, "value": turn.get(tags.content_tag), **said}


def _beside(columns: Columns) -> dict[str, str | None]:
    """Columns that both shapes have."""
    return {name: getattr(columns, name) for name in ("system", "tools", "chosen", "rejected", "kto_tag")}


def _picked(row: Object, columns: Mapping[str, str | None]) -> Object:
    return {name: row[column] for name, column in columns.items() if column and row.get(column) is not None}


def read_entry(info: Path, name: str) -> tuple[Entry, list[Path]]:
    """The data set `name` of the list `info`, and its files. Raises NotFound for a name or file that is not there, and
    Invalid for what cannot be read here (hub entries without a file, scripts, images)."""
    listed = _read_list(info)
    if name not in listed:
        raise NotFound(f"{info} has no data set '{name}'{nearest(name, listed)}", param="dataset")
    try:
        entry = Entry.model_validate(listed[name])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise Invalid(f"{info}: {where}: {first['msg']}", param="dataset") from error
    columns = entry._columns
    media = next((kind for kind in ("images", "videos", "audios") if getattr(columns, kind)), None)
    if media:
        raise Invalid(f"{info}: data set '{name}' has {media}, and only text is learned", param="dataset")
    if entry.ranking and not (columns.chosen and columns.rejected):
        raise Invalid(f"{info}: data set '{name}' is a ranking and needs columns chosen and rejected", param="dataset")
    if entry.formatting == "alpaca" and not columns.prompt:
        raise Invalid(f"{info}: data set '{name}' names no column for prompt", param="dataset")
    return entry, _files(info, name, entry)


def read_names(info: Path) -> list[str]:
    """The data sets of the list `info`. Raises as `read_entry`."""
    return list(_read_list(info))


def _read_list(info: Path) -> Mapping[str, Any]:
    try:
        listed = json.loads(info.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise NotFound(f"{info} does not exist", param="dataset") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid(f"{info} cannot be read: {error}", param="dataset") from error
    if not isinstance(listed, Mapping):
        raise Invalid(
            f"{info}: a list of data sets is an object, each with its name; this is {json_type(listed)}",
            param="dataset",
        )
    return listed


def _files(info: Path, name: str, entry: Entry) -> list[Path]:
    hub = entry.hf_hub_url or entry.ms_hub_url or entry.om_hub_url
    stems = [name] + ([hub.rsplit("/", 1)[-1]] if hub else [])
    wanted = [entry.file_name] if entry.file_name else [stem + suffix for stem in stems for suffix in SUFFIXES]
    path = next((info.parent / file for file in wanted if (info.parent / file).exists()), None)
    if path is None:
        if entry.file_name:
            raise NotFound(f"data set '{name}': {info.parent / entry.file_name} does not exist", param="dataset")
        where = hub or entry.script_url or entry.cloud_file_name or "nowhere: the entry names no file"
        raise Invalid(
            f"{info}: data set '{name}' is not among the files here ({where}); "
            f"download it and put it into {info.parent} as {name}.json, .jsonl, .csv or .parquet",
            param="dataset",
        )
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (*SUFFIXES, ".gz"))
    if not files:
        raise Invalid(f"data set '{name}': {path} holds no data file ({', '.join(SUFFIXES)})", param="dataset")
    return files
