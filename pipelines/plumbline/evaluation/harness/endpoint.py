"""A model of ours as lm-evaluation-harness sees one: its requests are our questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.data.row import Message
from plumbline.evaluation.benchmarks.benchmark import Item, user
from plumbline.evaluation.client import TOO_LONG, Question, Sampling
from plumbline.evaluation.conversations import Ask, item_seed
from plumbline.evaluation.journal import Reply

STOPS = 4
"""So many strings end a chat answer at an endpoint; the others end it here."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")


class EndpointModel(LM):
    """One model under evaluation.

    Args:
        ask: questions → one reply each.
        model: its name at the endpoint.
        fingerprint: what tells its content from another's.
        task: for its seed, temperature and longest answer.
        temperature: where neither the task nor the harness says.
        chat: contexts are chats, as `apply_chat_template` writes them.
        greedy: of likelihoods, tell whether greedy sampling would write the same.

    Attributes:
        replies: place of the item among those that are asked → replies to its requests.
        longest: tokens that a request asked for at most.
    """

    def __init__(
        self, ask: Ask, model: str, fingerprint: str, task: TaskSpec, temperature: float, chat: bool, greedy: bool
    ) -> None:
        super().__init__()
        self._ask, self._task, self._temperature = ask, task, temperature
        self._chat, self._greedy = chat, greedy
        self._question = partial(Question, model, fingerprint)
        self.replies: dict[int, list[Reply]] = {}
        self.longest = 0

    @property
    def tokenizer_name(self) -> str:
        """Part of names of the harness's cache of prompts, which is not used."""
        return "chat"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as JSON: its template is the endpoint's."""
        return json.dumps(chat_history, ensure_ascii=False)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Likelihood of each continuation; those of one context are one question."""
        together: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(requests):
            together.setdefault((request.task_name, request.doc_id, request.args[0]), []).append(number)
        nothing = Sampling(0.0, 0, 0)
        questions = [
            self._question(
                user(context), nothing, choices=tuple(requests[number].args[1] for number in numbers), greedy=self._greedy
            )
            for (*_, context), numbers in together.items()
        ]
        found: list[tuple[float, bool]] = [(float("-inf"), False)] * len(requests)
        for numbers, reply in zip(together.values(), self._ask(questions), strict=True):
            self._keep(requests[numbers[0]], reply)
            if reply.finish_reason != TOO_LONG:
                for number, value in zip(numbers, json.loads(reply.text), strict=True):
                    found[number] = (value[0], bool(value[1])) if self._greedy else (value, False)
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Never called: such tasks are refused when they are loaded, as a perplexity is no share of items."""
        raise TypeError("perplexities are not asked for")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Written answers, which end before the first stop string."""
        tries: Counter[int] = Counter()
        questions, stops = [], []
        for request in requests:
            context, wanted = request.args[0], dict(request.args[1])
            until = wanted.get("until") or []
            stop = tuple(filter(None, [until] if isinstance(until, str) else until))
            messages: list[Message] = json.loads(context) if self._chat else user(context)
            questions.append(
                self._question(messages, self._sampling(context, wanted, stop, tries[id(request)]), plain=not self._chat)
            )
            stops.append(stop)
            tries[id(request)] += 1
        found = []
        for request, stop, reply in zip(requests, stops, self._ask(questions), strict=True):
            self._keep(request, reply)
            found.append(_before(reply.text, stop))
        return found

    def _sampling(self, context: str, wanted: dict[str, Any], stop: tuple[str, ...], sample: int) -> Sampling:
        length = next((int(wanted[name]) for name in LENGTHS if wanted.get(name)), self._task.max_tokens)
        self.longest = max(self.longest, length)
        own = float(wanted.get("temperature", self._temperature)) if wanted.get("do_sample") else 0.0
        temperature = own if self._task.temperature is None else self._task.temperature
        seed = item_seed(self._task, Item(context, [], ""), sample=sample)
        return Sampling(temperature, min(length, self._task.max_tokens), seed, stop[:STOPS], wanted.get("top_p"))

    def _keep(self, request: Instance, reply: Reply) -> None:
        assert request.doc_id is not None, "every request is of an item"
        self.replies.setdefault(request.doc_id, []).append(reply)


def _before(text: str, stop: Sequence[str]) -> str:
    return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))]
