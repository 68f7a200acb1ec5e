"""How chat templates mark what a model thinks before it answers: `<think>…</think>` and its relatives."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningMarks:
    opening: str
    closing: str

    def inside(self, prompt: str) -> bool:
        """Whether the prompt itself ends inside the thoughts of the turn to come."""
        return prompt.rstrip().endswith(self.opening)

    def around(self, reasoning: str, prompt: str) -> str:
        """What a model says first after `prompt` when it thinks `reasoning`: its thoughts and their end. Thoughts
        that the prompt has begun are ended even when there are none."""
        thought = reasoning.strip("\n")
        if not self.inside(prompt):
            return f"{self.opening}\n{thought}\n{self.closing}\n\n" if thought else ""
        begin = "" if prompt.endswith("\n") else "\n"
        return begin + (f"{thought}\n" if thought else "") + f"{self.closing}\n\n"


KNOWN_MARKS = (
    ReasoningMarks("<think>", "</think>"),
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),
)


def marks_in(template: object) -> ReasoningMarks | None:
    """The marks a chat template (text, or several by name) knows of, None when it has no place for thoughts."""
    source = "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template)
    return next((marks for marks in KNOWN_MARKS if marks.closing in source), None)
