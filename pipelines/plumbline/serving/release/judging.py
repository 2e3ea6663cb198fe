"""A judge on a sample of shadows: is the new model's answer better than that of the model before?"""

from __future__ import annotations

from plumbline.api.stages.release import ReleaseJudgeSpec
from plumbline.api.synthesis.teacher import JUDGE_KEY
from plumbline.data.row import Chat
from plumbline.data.synthesis.endpoint import Endpoint, key_of
from plumbline.data.synthesis.program import Request, Sampling
from plumbline.evaluation.judges.pairwise import pairwise_prompt, read_verdict
from plumbline.evaluation.judges.rating import request_of

WHERE = "serve.release.judge"
MAX_TOKENS = 512  # of a verdict, reasons included
TIMEOUT_SECONDS = 120.0
DELAYS = (1.0, 4.0)  # seconds before a further try
WINS = {"1": 1.0, "Tie": 0.5, "2": 0.0}
SWAPPED = {"1": 0.0, "Tie": 0.5, "2": 1.0}


class Judge:
    """Asks in both orders, as a judge may favour a place."""

    def __init__(self, spec: ReleaseJudgeSpec) -> None:
        """Raises InvalidInput where its key is missing."""
        key = key_of(spec.key_secret, JUDGE_KEY, WHERE)
        self._endpoint = Endpoint(spec.endpoint, spec.model, where=WHERE, key=key, timeout=TIMEOUT_SECONDS, delays=DELAYS)

    async def win(self, chat: Chat, candidate: str, stable: str) -> float | None:
        """1 where the candidate's answer is better, 0 where it is worse, between them where the verdicts differ; None without two
        verdicts that can be read.

        Raises:
            PlumblineError: the judge wants no calls now, or never.
        """
        points = []
        async with self._endpoint.session() as session:
            for first, second, worth in ((candidate, stable, WINS), (stable, candidate, SWAPPED)):
                asked = pairwise_prompt(request_of(chat), first, second)
                request = Request([{"role": "user", "content": asked}], Sampling(0.0, MAX_TOKENS, 0), judge=True)
                reply = await self._endpoint.complete(session, request)
                verdict = read_verdict(reply.text) if reply.problem is None and reply.finish_reason != "length" else None
                if verdict is None:
                    return None
                points.append(worth[verdict])
        return sum(points) / len(points)
