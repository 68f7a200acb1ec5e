"""Whether the model is to think, as requests say it."""

from abc import abstractmethod
from typing import Any, ClassVar, Self

from pydantic import model_validator

from serving.api.schemas import Body, Misfit


class TemplateOptions(Body):
    """Of what vLLM passes on to the chat template, the one that is known here."""

    enable_thinking: bool


class Thinking(Body):
    """Whether the model thinks, in several servers' words: of them all, `effort_field` names the one that can only
    say no."""

    effort_field: ClassVar[str]
    thinking: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @property
    @abstractmethod
    def asks_for_no_effort(self) -> bool: ...

    @property
    def _said(self) -> dict[str, bool]:
        options = self.chat_template_kwargs
        sent = {
            "thinking": self.thinking,
            "chat_template_kwargs.enable_thinking": options.enable_thinking if options else None,
            self.effort_field: False if self.asks_for_no_effort else None,
        }
        return {name: value for name, value in sent.items() if value is not None}

    @model_validator(mode="after")
    def thinking_agrees(self) -> Self:
        if len(set(self._said.values())) > 1:
            raise Misfit(f"{' and '.join(self._said)} contradict each other; send one of them", next(iter(self._said)))
        return self

    @property
    def thinking_field(self) -> str:
        """The one that says whether the model thinks."""
        return next(iter(self._said), "thinking").removesuffix(".enable_thinking")

    @property
    def thinks(self) -> bool | None:
        return next(iter(self._said.values()), None)


def without_degrees(value: Any, name: str) -> Any:
    """How much to think, which may only be not at all."""
    if value not in (None, "none"):
        raise ValueError(f"only {name} 'none' is supported: thinking has no degrees here; send thinking=true instead")
    return value
