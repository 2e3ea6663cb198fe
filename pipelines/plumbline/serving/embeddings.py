"""One served encoder: texts in, vectors out. Concurrent requests are read together."""

from __future__ import annotations

import asyncio
import base64
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.models.encoder import Encoder, load_encoder
from plumbline.serving.chat import LONGEST_TOKEN, ServedModel
from plumbline.serving.openai_answers import Embedding, EmbeddingList, EmbeddingUsage, OpenAIError
from plumbline.serving.openai_requests import EmbeddingRequest

PASS_TOKENS = 16_384  # of one forward pass, padding included; activations of a base model stay below a gigabyte
PASS_TEXTS = 64  # of all readers in turns, so that none waits for all of another's

Tokens = tuple[int, ...]


class EmbeddingModel:
    """A loaded encoder behind its thread. Methods belong to one event loop."""

    def __init__(self, served: ServedModel, encoder: Encoder) -> None:
        self.served = served
        self.max_length = encoder.max_length
        self.created = int(time.time())
        self.engine = EncoderThread(encoder, served.name)
        self._encoder = encoder

    @classmethod
    def load(cls, served: ServedModel) -> EmbeddingModel:
        """Load the encoder, and let it read one token.

        Raises:
            InvalidInput: it cannot be loaded, or another engine is asked for.
        """
        if served.engine != "auto":
            raise InvalidInput(
                f"serve.engine: {served.engine} is for models that write text; for an encoder set serve.engine: auto"
            )
        encoder = load_encoder(served.reference)
        encoder.embed([(int(encoder.tokenizer.pad_token_id),)])
        return cls(served, encoder)

    def read(self, body: EmbeddingRequest) -> list[Tokens]:
        """The tokens of each text.

        Raises:
            OpenAIError: 400: a text is empty or too long, has unknown tokens, or vectors of another width are wanted.
        """
        if body.dimensions not in (None, self._encoder.width):
            message = f"dimensions: this model's vectors have {self._encoder.width} numbers; leave it out"
            raise OpenAIError(400, message, param="dimensions")
        if not all(body.input):
            raise OpenAIError(400, "input: a text is empty; leave it out", param="input")
        if any(len(text) > LONGEST_TOKEN * self.max_length for text in body.input):
            raise self._too_long("far too many")
        found = [self._read(text) for text in body.input]
        if not all(found):  # tokenizers that put nothing around a text make nothing of spaces
            raise OpenAIError(400, "input: a text has no tokens; leave it out", param="input")
        longest = max(map(len, found))
        if longest > self.max_length:
            raise self._too_long(str(longest))
        return found

    def _read(self, text: str | list[int]) -> Tokens:
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeError as error:
                raise OpenAIError(400, f"input: half a character cannot be read: {error}", param="input") from error
            return tuple(self._encoder.tokenizer(text)["input_ids"])
        vocabulary = self._encoder.model.get_input_embeddings().weight.shape[0]
        wrong = next((token for token in text if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise OpenAIError(400, f"input: token {wrong} must be 0 to {vocabulary - 1}", param="input")
        return tuple(text)

    def _too_long(self, tokens: str) -> OpenAIError:
        message = (
            f"This model's maximum context length is {self.max_length} tokens. However, a text has {tokens}; shorten it."
        )
        return OpenAIError(400, message, param="input", code="context_length_exceeded")

    async def embed(self, body: EmbeddingRequest, texts: list[Tokens]) -> EmbeddingList:
        """The vector of each text, in order; of length 1, as OpenAI's are."""
        vectors = await self.engine.embed(texts)
        tokens = sum(map(len, texts))
        return EmbeddingList(
            model=self.served.name,
            data=[Embedding(index=i, embedding=_written(v, body.encoding_format)) for i, v in enumerate(vectors)],
            usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        )


class _Job:
    """Texts of one request, and where their vectors wait for its reader."""

    def __init__(self, texts: Sequence[Tokens]) -> None:
        self.tokens = sum(map(len, texts))
        self.waiting = deque(enumerate(texts))  # belongs to the thread
        self.found: list[Tensor | None] = [None] * len(texts)
        self.done = asyncio.Event()
        self.left = False


class EncoderThread:
    """Runs the encoder over what waits. All methods but the thread's own belong to one event loop.

    Args:
        encoder: nobody else may call it from now on.
        name: for the thread and for messages.
    """

    def __init__(self, encoder: Encoder, name: str) -> None:
        self.failure: BaseException | None = None
        self._closed = False
        self._encoder, self._name = encoder, name
        self._jobs: set[_Job] = set()
        self._commands: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        threading.Thread(target=self._run, name=f"encoder-{name}", daemon=True).start()

    @property
    def running(self) -> int:
        """Requests that are queued or worked on."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """Those of them with a text that is not read yet."""
        return sum(bool(job.waiting) for job in list(self._jobs))

    @property
    def tokens_in_flight(self) -> int:
        """Tokens of all those."""
        return sum(job.tokens for job in list(self._jobs))

    async def embed(self, texts: Sequence[Tokens]) -> list[Tensor]:
        """[width] vectors, in order; a reader that leaves is forgotten.

        Raises:
            PlumblineError: the encoder has failed, or was closed.
        """
        self.check()
        self._loop = asyncio.get_running_loop()
        job = _Job(texts)
        self._jobs.add(job)
        self._commands.put(job)
        try:
            await job.done.wait()
            self.check()
            return [vector for vector in job.found if vector is not None]
        finally:
            job.left = True
            self._jobs.discard(job)

    def check(self) -> None:
        """Raises PlumblineError when the encoder has failed, or was closed."""
        if self._closed:
            raise PlumblineError(f"the encoder of model '{self._name}' was let go; ask again")
        if self.failure is not None:
            raise PlumblineError(f"the encoder of model '{self._name}' failed: {self.failure}") from self.failure

    def close(self) -> None:
        """End the thread after its current pass."""
        self._closed = True
        self._commands.put(None)

    def _run(self) -> None:
        jobs: list[_Job] = []
        try:
            while True:
                while not jobs or not self._commands.empty():
                    job = self._commands.get()
                    if job is None:
                        self._call(self._give_up)
                        return
                    jobs.append(job)
                jobs = [job for job in jobs if job.waiting and not job.left]
                for some in passes(in_turns(jobs)):
                    vectors = self._encoder.embed([text for _, _, text in some])
                    self._call(self._deliver, some, vectors)
        except BaseException as error:
            self.failure = error
            self._call(self._give_up)
            raise

    def _call(self, what: Any, *args: Any) -> None:
        """In the event loop."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *args)

    def _deliver(self, some: list[tuple[_Job, int, Tokens]], vectors: Tensor) -> None:
        for (job, place, _), vector in zip(some, vectors, strict=True):
            job.found[place] = vector
            if all(found is not None for found in job.found):
                job.done.set()

    def _give_up(self) -> None:
        for job in self._jobs:
            job.done.set()


def in_turns(jobs: list[_Job]) -> list[tuple[_Job, int, Tokens]]:
    """The next texts, one of each job in turn."""
    some: list[tuple[_Job, int, Tokens]] = []
    while len(some) < PASS_TEXTS and any(job.waiting for job in jobs):
        some += [(job, *job.waiting.popleft()) for job in jobs if job.waiting]
    return some


def passes(texts: list[tuple[_Job, int, Tokens]]) -> list[list[tuple[_Job, int, Tokens]]]:
    """Texts of like length together, at most `PASS_TOKENS` with padding, unless one alone is longer."""
    found: list[list[tuple[_Job, int, Tokens]]] = []
    for one in sorted(texts, key=lambda text: len(text[2])):
        if not found or (len(found[-1]) + 1) * len(one[2]) > PASS_TOKENS:
            found.append([])
        found[-1].append(one)
    return found


def _written(vector: Tensor, encoding: str) -> list[float] | str:
    """Numbers, or the base64 of little-endian float32s."""
    if encoding == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
