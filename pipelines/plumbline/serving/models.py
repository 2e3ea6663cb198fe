"""The models that an application serves, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing

from plumbline.models.encoder import is_encoder
from plumbline.serving.adapters import Adapters
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.embeddings import EmbeddingModel
from plumbline.serving.engine_process import HostProcess
from plumbline.serving.openai_answers import ModelCard, OpenAIError

NAMED = 20  # models in a message
AnyModel = ChatModel | EmbeddingModel


def load(models: Sequence[ServedModel], slots: int, share: float = 1.0) -> list[AnyModel]:
    """Load models as what they are: encoders, or such as write text, each with its engine in a process of its own.

    The processes begin together; the models come one after the other, each to its part of the memory that is left.

    Args:
        models: what to load.
        slots: see `ChatModel.load`.
        share: of all together; see `ChatModel.load`.

    Raises:
        InvalidInput: one cannot be loaded; none is left behind.
    """
    with ExitStack() as failed:
        encoders = [is_encoder(model.reference) for model in models]
        hosts = [None if encoder else failed.enter_context(closing(HostProcess())) for encoder in encoders]
        loaded: list[AnyModel] = []
        for model, host in zip(models, hosts, strict=True):
            part = share / (len(models) - len(loaded))
            loaded.append(ChatModel.load(model, slots, part, host=host) if host else EmbeddingModel.load(model))
            failed.callback(loaded[-1].engine.close)
        failed.pop_all()
        return loaded


class Models:
    """Finds a served model by its name. Methods belong to one event loop.

    Args:
        models: loaded already, by name.
        adapters: loaded when they are asked for.
    """

    def __init__(self, models: Mapping[str, AnyModel], adapters: Adapters | None = None) -> None:
        self._models: dict[str, AnyModel] = dict(models)
        self._adapters = adapters

    @classmethod
    def of(cls, models: Mapping[str, AnyModel]) -> Models:
        """Models that are loaded already, by name."""
        return cls(models)

    async def find(self, name: str) -> AnyModel:
        """The model of this name; an adapter is loaded if it is not.

        Raises:
            OpenAIError: 404 `model_not_found`; see `Adapters.find` for an adapter that cannot be loaded.
        """
        found = self._models.get(name)
        if found is None and self._adapters is not None:
            found = await self._adapters.find(name)
        if found is None:
            raise self._unknown(name)
        return found

    def put(self, name: str, model: AnyModel) -> AnyModel | None:
        """Give a loaded model a name; returns the one that had it, whose answers under way go on. Nobody closes that but the caller."""
        before = self._models.get(name)
        self._models[name] = model
        return before

    def take(self, name: str) -> AnyModel:
        """Serve it no longer; returns it, as `put` does."""
        return self._models.pop(name)

    def loaded(self) -> list[AnyModel]:
        """Every model that could answer at once."""
        return [*self._models.values(), *(self._adapters.loaded() if self._adapters is not None else [])]

    def card(self, name: str) -> ModelCard:
        """What is told of one model, loaded or not.

        Raises:
            OpenAIError: 404 `model_not_found`.
        """
        model = self._models.get(name)
        if model is not None:
            return ModelCard(
                id=name,
                created=model.created,
                fingerprint=model.served.reference.fingerprint,
                max_model_len=model.max_length,
            )
        card = self._adapters.card(name) if self._adapters is not None else None
        if card is None:
            raise self._unknown(name)
        return card

    def cards(self) -> list[ModelCard]:
        """What is told of every model."""
        return [
            *(self.card(name) for name in self._models),
            *(self._adapters.cards() if self._adapters is not None else []),
        ]

    def check(self) -> None:
        """Raises PlumblineError when an engine has failed."""
        for model in self._models.values():
            model.engine.check()
        if self._adapters is not None:
            self._adapters.check()

    def close(self) -> None:
        """End the engines after their current steps."""
        for model in self._models.values():
            model.engine.close()
        if self._adapters is not None:
            self._adapters.close()

    def _unknown(self, name: str) -> OpenAIError:
        known: Collection[str] = [*self._models, *(self._adapters.known if self._adapters is not None else [])]
        names = ", ".join(f"'{one}'" for one in [*known][:NAMED]) + (", …" if len(known) > NAMED else "")
        name = name.encode(errors="replace").decode()  # halves of characters
        return OpenAIError(
            404, f"The model '{name}' does not exist; served here: {names}.", param="model", code="model_not_found"
        )
