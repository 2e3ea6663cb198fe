"""A model takes the place of another in a real deployment, under load: no request fails."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import ray
import torch
from peft import LoraConfig, get_peft_model

from plumbline.api.base import ArtifactType
from plumbline.api.stages.release import ReleaseSpec, ShadowSpec
from plumbline.artifacts import Workspace
from plumbline.external import TINY
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.serving.chat import ServedModel
from plumbline.serving.release.controller import NAMESPACE, ReleaseArguments
from plumbline.serving.release.record import Record, Records, Version
from support.patience import PATIENCE, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

RULES = ReleaseSpec(
    shadow=ShadowSpec(percent=100, min_requests=20),
    steps=[50],
    hold_seconds=1,
    min_requests=20,
    max_latency_ratio=100,  # a model that was just loaded may be slow at first, and no test here is about that
)


def tuned(folder: Path, fingerprint: str, chat_template: str | None = None, end: str | None = None) -> ModelReference:
    """A Model artifact with a random adapter."""
    base = ModelReference(TINY)
    torch.manual_seed(len(fingerprint) + ord(fingerprint[0]))
    workspace = Workspace(str(folder))
    workspace.acquire(fingerprint, "test")
    with workspace.create(
        kind="sft", fingerprint=fingerprint, stage="sft", type=ArtifactType.MODEL, inputs={}, holder="test"
    ) as writer:
        lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(load_base(base), lora)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.001)
        model.save_pretrained(writer.folder / "adapter")
        tokenizer = load_tokenizer(base)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        if end is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokenizer.encode(end))[-1]
        tokenizer.save_pretrained(writer.folder / "tokenizer")
    return ModelReference(TINY, workspace=workspace.uri, kind="sft", fingerprint=fingerprint)


def version(reference: ModelReference) -> Version:
    return Version(fingerprint=f"serve-{reference.fingerprint}", model=asdict(ServedModel("m", reference, 32)))


@dataclass
class Load:
    """Clients that ask without a pause, and what came of it."""

    url: str
    clients: int = 6
    answered: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(i,)) for i in range(self.clients)]

    def _client(self, number: int) -> None:
        client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=PATIENCE)
        messages: Any = [{"role": "user", "content": f"Reverse the letters q k {'abcdef'[number % 6]}."}]
        i = 0
        while not self._over.is_set():
            i += 1
            try:
                ask: Any = {"model": "m", "messages": messages, "max_tokens": 24, "temperature": 0, "user": f"{number} {i}"}
                if number % 2:
                    fingerprints = {chunk.system_fingerprint for chunk in client.chat.completions.create(**ask, stream=True)}
                    (fingerprint,) = fingerprints  # one model from the first token to the last
                else:
                    fingerprint = client.chat.completions.create(**ask).system_fingerprint
                self.answered[fingerprint or ""] += 1
            except Exception as error:
                self.failed.append(repr(error))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@dataclass
class Endpoint:
    """A deployment with one model that can be replaced."""

    url: str
    arguments: ReleaseArguments

    @property
    def controller(self) -> Any:
        return ray.get_actor(self.arguments.actor, NAMESPACE)

    @property
    def records(self) -> Records:
        return Records(self.arguments.workspace, self.arguments.run, self.arguments.stage)

    @property
    def record(self) -> Record:
        found = self.records.read()
        assert found is not None
        return found

    def propose(self, version: Version, rules: ReleaseSpec | None) -> None:
        told = rules.model_dump_json(by_alias=True) if rules else None
        ray.get(self.controller.propose.remote(version.model_dump_json(by_alias=True), told))

    def phase(self) -> str | None:
        """What the controller says; None while it comes back."""
        try:
            return str(ray.get(self.controller.state.remote()).phase)
        except ray.exceptions.RayActorError:
            return None

    def until(self, holds: Callable[[], bool]) -> None:
        wait_for(holds, why=lambda: self.record.words())

    def until_phase(self, *phases: str) -> Record:
        self.until(lambda: self.record.phase in phases)
        return self.record


@contextmanager
def serving(folder: Path, first: Version, rules: ReleaseSpec | None = None, replicas: int = 1) -> Iterator[Endpoint]:
    from plumbline.serving.local import deployment

    arguments = ReleaseArguments(
        workspace=str(folder), run="run", stage="live", version=first, rules=rules, holder=uuid.uuid4().hex
    )
    with deployment(
        [], application="release", port=None, replicas=replicas, max_ongoing_requests=16, release=arguments
    ) as url:
        yield Endpoint(url, arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Version]:
    template = load_tokenizer(ModelReference(TINY)).chat_template
    refusing = "{% if 'letters' in messages[-1].content %}{{ raise_exception('what is a letter?') }}{% endif %}" + template
    return {
        "a": version(tuned(folder, "a" * 20)),
        "b": version(tuned(folder, "b" * 20)),
        "broken": version(tuned(folder, "c" * 20, chat_template=refusing)),
        "mute": version(tuned(folder, "f" * 20, end="The letters")),
    }


@pytest.fixture(scope="module")
def endpoint(ray_session: str, folder: Path, models: dict[str, Version]) -> Iterator[Endpoint]:
    with serving(folder, models["a"]) as found:
        yield found


def served(endpoint: Endpoint) -> str:
    client = openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0, timeout=PATIENCE)
    return {card.id: card.fingerprint for card in client.models.list()}["m"]  # type: ignore[attr-defined]


def test_a_good_model_goes_from_shadow_to_everyone_without_a_failed_request(
    endpoint: Endpoint, models: dict[str, Version]
) -> None:
    with Load(endpoint.url) as load:
        endpoint.until(lambda: load.answered["a" * 20] > 5)
        endpoint.propose(models["b"], RULES)
        endpoint.until(lambda: load.answered["b" * 20] > 0)
        found = endpoint.until_phase("full", "rolledBack")
        endpoint.until(lambda: load.answered["b" * 20] > 20)
    assert load.failed == []
    assert (found.phase, found.stable, found.previous) == ("full", models["b"], models["a"]), found.words()
    assert set(load.answered) == {"a" * 20, "b" * 20}
    assert served(endpoint) == "b" * 20
    assert [line.phase for line in found.history[-4:]] == ["loading", "shadow", "canary", "full"]


@pytest.mark.parametrize(("bad", "why"), [("broken", "errors: "), ("mute", "shorter answers: ")])
def test_a_bad_model_is_rolled_back_by_itself_and_no_user_sees_it(
    endpoint: Endpoint, models: dict[str, Version], bad: str, why: str
) -> None:
    with Load(endpoint.url) as load:
        endpoint.propose(models[bad], RULES)
        found = endpoint.until_phase("rolledBack", "canary", "full")
    assert load.failed == []
    assert found.reason.startswith(why), found.words()
    assert set(load.answered) == {"b" * 20}
    endpoint.propose(models[bad], RULES)  # the run is started again as it is
    assert endpoint.record.phase == "rolledBack"


def test_a_model_that_cannot_be_loaded_leaves_the_present_one_alone(endpoint: Endpoint, models: dict[str, Version]) -> None:
    lacking = ModelReference(TINY, workspace=endpoint.arguments.workspace, kind="sft", fingerprint="d" * 20)
    with Load(endpoint.url) as load:
        endpoint.propose(version(lacking), None)
        found = endpoint.until_phase("rolledBack")
    assert load.failed == []
    assert "cannot be loaded" in found.reason
    assert "is gone" in found.reason
    assert set(load.answered) == {"b" * 20}


def test_a_killed_controller_resumes_and_rollback_by_hand_brings_the_model_before(
    endpoint: Endpoint, models: dict[str, Version]
) -> None:
    patient = RULES.model_copy(update={"min_requests": 10**6})
    with Load(endpoint.url) as load:
        endpoint.propose(models["a"], patient)
        endpoint.until_phase("canary")
        endpoint.until(lambda: load.answered["a" * 20] > 3)
        ray.kill(endpoint.controller, no_restart=False)
        endpoint.until(lambda: load.answered["a" * 20] > 12)  # replicas go on as they were
        endpoint.until(lambda: endpoint.phase() == "canary")
        endpoint.records.ask(None)
        endpoint.until_phase("rolledBack")
        endpoint.records.ask("a" * 20)  # and now it is wanted, by the fingerprint that answers show
        found = endpoint.until_phase("full")
        assert (found.stable, found.previous) == (models["a"], models["b"])
        endpoint.records.ask(None)
        endpoint.until(lambda: endpoint.record.stable == models["b"])
    assert load.failed == []
    assert endpoint.record.refused[models["a"].fingerprint] == "by hand"


def test_without_rules_a_model_is_replaced_at_once(endpoint: Endpoint, models: dict[str, Version], folder: Path) -> None:
    newer = version(tuned(folder, "e" * 20))
    with Load(endpoint.url) as load:
        endpoint.propose(newer, None)
        endpoint.until(lambda: load.answered["e" * 20] > 5)
    assert load.failed == []
    assert endpoint.record.stable == newer
