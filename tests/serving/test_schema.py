"""Our own /openapi.json as the judge: whatever it allows is sent, whatever comes back must be what it declares."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.running import RunningServer, running_server, settings_for

EXAMPLES = 15  # an endpoint
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    settings = settings_for(tiny_base, home, adapter=[f"r8={tiny_adapters['r8']}"], max_model_len=96)
    with running_server(settings) as running:
        yield running
        running.assert_nothing_held()


@pytest.fixture(scope="module")
def api(server: RunningServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_response_is_one_the_schema_declares(api: schemathesis.BaseSchema) -> None:
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) >= 11
    for operation in operations:

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def declared(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        declared()


def test_real_answers_are_what_the_schema_declares(server: RunningServer, api: schemathesis.BaseSchema) -> None:
    """Few generated bodies name a model that exists; these do."""
    chat = {"model": "r8", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 4}
    text = {"model": "tiny", "prompt": "你好", "max_tokens": 4}
    bodies = [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"n": 2, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/completions", text | {"echo": True, "logprobs": 1}),
        ("/v1/completions", text | {"stream": True, "n": 2}),
        ("/v1/compare", {"messages": chat["messages"], "lanes": [{"model": "r8"}], "max_tokens": 4}),
        ("/v1/unload_lora_adapter", {"lora_name": "r8"}),
    ]
    for path, body in bodies:
        response = api[path]["POST"].Case(body=body, media_type="application/json").call_and_validate(checks=CHECKS)
        assert response.status_code == 200, (path, response.text)
    for path in ("/v1/models", "/health", "/ready", "/version", "/metrics"):
        assert api[path]["GET"].Case().call_and_validate(checks=CHECKS).status_code == 200
    found = api["/v1/models/{model_id}"]["GET"].Case(path_parameters={"model_id": "tiny"})
    assert found.call_and_validate(checks=CHECKS).status_code == 200
