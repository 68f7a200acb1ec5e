"""Gradio's events as its own page sends them, without a browser."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from uuid import uuid4

import httpx

Event = dict[str, Any]  # a dependency of Gradio's /config
Message = dict[str, Any]  # of an event's stream


def in_loop(test: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Runs an async function to its end. On a thread of its own: Playwright keeps a loop running on this one."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, test(*args, **kwargs)).result()

    return run


@dataclass
class PageClient:
    """One page of one visitor. Values given to events are by the component's elem_id; the rest is as on a new page."""

    http: httpx.AsyncClient  # its base_url is the server, its cookies the visitor's
    session: str = field(default_factory=lambda: uuid4().hex[:11])
    config: dict[str, Any] = field(default_factory=dict)

    async def open(self) -> None:
        await self.http.get("/")  # which may set a cookie
        answer = await self.http.get("/config")
        answer.raise_for_status()
        self.config = answer.json()

    @property
    def events(self) -> list[Event]:
        return list(self.config["dependencies"])

    def event(self, elem_id: str, kind: str = "click") -> Event:
        """The event that `kind` on a component sets off."""
        component = next(each["id"] for each in self.config["components"] if each["props"].get("elem_id") == elem_id)
        return next(event for event in self.events if [component, kind] in [list(pair) for pair in event["targets"]])

    def data_of(self, event: Event, values: dict[str, Any]) -> list[Any]:
        """What the page would send. A name that is no elem_id is looked for in labels, which name their word."""
        by_id = {each["id"]: each for each in self.config["components"]}
        return [_value(by_id[id], values) for id in event["inputs"]]

    async def join(self, event: Event, data: list[Any], session: str = "") -> httpx.Response:
        body = {"data": data, "fn_index": event["id"], "session_hash": session or self.session}
        return await self.http.post("/gradio_api/queue/join", json=body | {"event_data": None, "trigger_id": None})

    async def messages(self) -> AsyncIterator[Message]:
        """The stream of this page's events, until Gradio closes it."""
        query = {"session_hash": self.session}
        async with self.http.stream("GET", "/gradio_api/queue/data", params=query) as stream:
            if stream.status_code != 200:
                raise httpx.HTTPStatusError("refused", request=stream.request, response=stream)
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    async def run(self, event: Event, **values: Any) -> list[Message]:
        """The messages of one event, the last of which says how it ended. Keys of `values` are elem_ids with "_" for
        "-"."""
        named = {name.replace("_", "-"): value for name, value in values.items()}
        joined = await self.join(event, self.data_of(event, named))
        joined.raise_for_status()
        return [message async for message in self.messages()]


EMPTY = {"textbox": "", "number": 0}  # what these send when there is nothing in them


def _value(component: dict[str, Any], values: dict[str, Any]) -> Any:
    props = component["props"]
    if props.get("elem_id") in values:
        return values[props["elem_id"]]
    if "max_tokens" in str(props.get("label")) and "max-tokens" in values:
        return values["max-tokens"]
    value = props.get("value")
    return EMPTY.get(component["type"]) if value is None else value


def succeeded(messages: list[Message]) -> bool:
    ends = [message for message in messages if message["msg"] == "process_completed"]
    return len(ends) == 1 and ends[0]["success"]


def said_in(messages: list[Message]) -> str:
    """Everything the messages carry, as text."""
    return json.dumps(messages, ensure_ascii=False)
