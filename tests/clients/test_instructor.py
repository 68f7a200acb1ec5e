"""instructor: answers as Pydantic models, in the modes that need no tools."""

import instructor
import openai
from conftest import PERSONA, QUESTION
from pydantic import BaseModel, Field


class Face(BaseModel):
    name: str = Field(max_length=12)
    masks: int = Field(ge=0, le=99)


def test_a_schema_is_kept_to(url: str) -> None:
    server = openai.OpenAI(base_url=url, api_key="unused")
    client = instructor.from_openai(server, mode=instructor.Mode.JSON_SCHEMA)
    face = client.create(model=PERSONA, response_model=Face, messages=QUESTION, max_tokens=200, max_retries=0)
    assert isinstance(face, Face)


def test_partial_objects_while_the_answer_streams(url: str) -> None:
    server = openai.OpenAI(base_url=url, api_key="unused")
    client = instructor.from_openai(server, mode=instructor.Mode.JSON_SCHEMA)
    parts = list(client.create_partial(model=PERSONA, response_model=Face, messages=QUESTION, max_tokens=200))
    assert len(parts) > 1 and Face.model_validate(parts[-1].model_dump())
