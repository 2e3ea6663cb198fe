"""Admission behind Ray Serve: what its proxy adds and what it must not get in the way of."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from plumbline.api.stages.admission import API_KEYS, AdmissionSpec, ApiKeysSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.serving.admission.gate import AdmissionSettings
from plumbline.serving.admission.keys import ApiKey, digest, new_key, write_keys
from plumbline.serving.admission.replicas import running_replicas
from plumbline.serving.chat import ServedModel
from plumbline.serving.local import deployment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

MODELS = [ServedModel("tiny", ModelReference(TINY), max_tokens=64)]
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Reverse the letters q k d."}],
    "max_tokens": 64,
    "temperature": 0,
}
SPEC = ServeSpec(max_ongoing_requests=2, admission=AdmissionSpec(api_keys=ApiKeysSpec(secret="keys"), max_queued=3))


def settings(path: Path, owner: str | None = None) -> AdmissionSettings:
    return AdmissionSettings.of(SPEC, "live", owner=owner, environment={API_KEYS: str(path)})


@pytest.fixture(scope="module")
def served(ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    write_keys(path, [])
    with deployment(
        MODELS, application="admitted", port=None, replicas=1, max_ongoing_requests=2, admission=settings(path, "owner's")
    ) as url:
        yield url, path


def renewed(path: Path) -> str:
    """A key that replaces all others."""
    key = new_key()
    write_keys(path, [ApiKey(name="alice", digest=digest(key))])
    return key


def when_known(url: str, key: str) -> openai.OpenAI:
    """A client whose key the server has read; the openai client asks again by itself."""
    while httpx.get(f"{url}/models", headers={"authorization": f"Bearer {key}"}, timeout=120).status_code == 401:
        pass
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def test_keys_come_and_go_while_it_serves(served: tuple[str, Path]) -> None:
    url, path = served
    old = renewed(path)
    assert when_known(url, old).chat.completions.create(**ASK).choices[0].message.content
    when_known(url, renewed(path))
    with pytest.raises(openai.AuthenticationError) as refused:
        openai.OpenAI(base_url=url, api_key=old, max_retries=0).chat.completions.create(**ASK)
    assert refused.value.code == "invalid_api_key"
    assert openai.OpenAI(base_url=url, api_key="owner's").chat.completions.create(**ASK).choices


def test_a_flood_is_sent_away_by_the_replica_and_not_by_the_proxy(served: tuple[str, Path]) -> None:
    url, path = served
    key = renewed(path)
    when_known(url, key)

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{url}/chat/completions", json=ASK, headers={"authorization": f"Bearer {key}"}, timeout=120)

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(ask, range(40)))
    assert {one.status_code for one in found} == {200, 429}
    refused = [one for one in found if one.status_code == 429]
    assert {one.json()["error"]["code"] for one in refused} == {"queue_full"}
    assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
    assert ask(0).status_code == 200


def test_an_answer_has_one_id(served: tuple[str, Path]) -> None:
    url, _ = served
    for headers in ({}, {"x-request-id": "mine"}):
        (found,) = httpx.get(f"{url}/models", headers=headers, timeout=120).headers.get_list("x-request-id")
        assert found == headers.get("x-request-id", found)


def test_replicas_are_counted(served: tuple[str, Path]) -> None:
    assert running_replicas("admitted", "ModelServer") == 1
