"""A model takes the place of another under load: 32 clients of a whole Ray Serve deployment, and how many of their requests fail.

    python benchmarks/replacement.py

Replaced at once, then in steps (shadow, half of the callers, all), then rolled back by hand, in one deployment of the tiny model with
two adapters. Half of the clients stream. A request fails that has another status than 200, breaks off, has no end, or is answered by two models.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import side_by_side

CLIENTS = 32
STEADY = 5.0  # seconds of load before, between and after
RULES = {"shadow": {"percent": 20, "minRequests": 30}, "steps": [50], "holdSeconds": 3, "minRequests": 100,
         "maxLatencyRatio": 10.0, "maxLengthRatio": 10.0, "maxRefusalIncrease": 1.0}  # fmt: skip
QUESTIONS = ["Sort the letters c a b.", "Reverse the letters q k d.", "What is 17 + 25?", "Count the letters in: plum."]


@dataclass
class Load:
    """Clients that ask without a pause."""

    url: str
    answers: list[tuple[float, float, str]] = field(default_factory=list)  # when it ended, seconds, by which model
    failures: list[str] = field(default_factory=list)
    over: bool = False

    async def client(self, session: aiohttp.ClientSession, number: int) -> None:
        turn = number
        while not self.over:
            turn += CLIENTS
            stream = number % 2 == 0
            body = {"model": "m", "messages": [{"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]}],
                    "max_tokens": 4 + 7 * (turn % 5), "temperature": 0, "stream": stream, "user": f"{turn}"}  # fmt: skip
            began = time.perf_counter()
            try:
                async with session.post(f"{self.url}/chat/completions", json=body) as answer:
                    text = await answer.text()
                    if answer.status != 200:
                        raise ValueError(f"{answer.status} {text[:200]}")
                events = [line[6:] for line in text.splitlines() if line.startswith("data: ")] if stream else [text]
                if stream and events.pop() != "[DONE]":
                    raise ValueError("a stream without an end")
                (model,) = {json.loads(event)["system_fingerprint"] for event in events}
                self.answers.append((time.perf_counter(), time.perf_counter() - began, model))
            except Exception as error:
                self.failures.append(repr(error))

    def between(self, begin: float, end: float) -> dict[str, Any]:
        found = [(seconds, model) for at, seconds, model in self.answers if begin <= at < end]
        seconds = sorted(one for one, _ in found)
        return {
            "requests/s": round(len(found) / (end - begin), 1),
            "median ms": round(1000 * statistics.median(seconds)),
            "p99 ms": round(1000 * seconds[int(0.99 * (len(seconds) - 1))]),
            "answered by": ", ".join(f"{name[0]}: {n}" for name, n in sorted(Counter(m for _, m in found).items())),
        }


def artifact(folder: Path, letter: str) -> Any:
    """A version of the tiny model with a random adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    from plumbline.api.base import ArtifactType
    from plumbline.artifacts import Workspace
    from plumbline.external import TINY
    from plumbline.models.load import load_base, load_tokenizer
    from plumbline.models.reference import ModelReference
    from plumbline.serving.chat import ServedModel
    from plumbline.serving.release.record import Version

    torch.manual_seed(ord(letter))
    base, workspace, fingerprint = ModelReference(TINY), Workspace(str(folder)), letter * 20
    workspace.acquire(fingerprint, "benchmark")
    made = {"kind": "sft", "fingerprint": fingerprint, "stage": "sft", "type": ArtifactType.MODEL}
    with workspace.create(**made, inputs={}, holder="benchmark") as writer:
        model = get_peft_model(load_base(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.002)
        model.save_pretrained(writer.folder / "adapter")
        load_tokenizer(base).save_pretrained(writer.folder / "tokenizer")
    reference = ModelReference(TINY, workspace=workspace.uri, kind="sft", fingerprint=fingerprint)
    return Version(fingerprint=letter, model=asdict(ServedModel("m", reference, 64)))


async def measure(url: str, controller: Any, records: Any, versions: list[Any]) -> tuple[Load, list[dict[str, Any]]]:
    async def until(holds: Callable[[], bool]) -> None:
        while not holds():
            await asyncio.sleep(0.1)

    load, rows, mark = Load(url), [], time.perf_counter()

    def row(what: str) -> None:
        nonlocal mark
        now = time.perf_counter()
        rows.append(
            {"while": what, "seconds": round(now - mark, 1), **load.between(mark, now), "failed": len(load.failures)}
        )
        mark = now

    first, second = versions
    limit = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limit) as session:
        clients = [asyncio.create_task(load.client(session, number)) for number in range(CLIENTS)]
        await asyncio.sleep(STEADY)  # connections, caches
        mark = time.perf_counter()
        await asyncio.sleep(STEADY)
        row("nothing changes")
        await controller.propose.remote(second.model_dump_json(by_alias=True), None)
        await until(lambda: records.read().stable == second)
        await until(lambda: load.answers[-1][2][0] == second.fingerprint)
        row("replaced at once")
        await asyncio.sleep(STEADY)
        row("nothing changes")
        await controller.propose.remote(first.model_dump_json(by_alias=True), json.dumps(RULES))
        await until(lambda: records.read().phase in ("full", "rolledBack"))
        row(f"released in steps: {', '.join(line.phase for line in records.read().history[-4:])}")
        await asyncio.sleep(STEADY)
        row("nothing changes")
        records.ask(None)
        await until(lambda: records.read().stable == second and records.read().phase == "full")
        await until(lambda: load.answers[-1][2][0] == second.fingerprint)
        row("rolled back by hand")
        await asyncio.sleep(STEADY)
        row("nothing changes")
        load.over = True
        await asyncio.gather(*clients)
    return load, rows


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import ray

    from plumbline.ray_environment import start_local
    from plumbline.serving.local import deployment
    from plumbline.serving.release.controller import ReleaseArguments, connect
    from plumbline.serving.release.record import Records

    folder = Path(tempfile.mkdtemp())
    versions = [artifact(folder, letter) for letter in "ab"]
    arguments = ReleaseArguments(
        workspace=str(folder), run="replacement", stage="live", version=versions[0], holder=uuid.uuid4().hex
    )
    start_local(3)
    try:
        options = {"application": "replacement", "port": None, "replicas": 1, "max_ongoing_requests": CLIENTS}
        with deployment([], release=arguments, **options) as url:
            records = Records(arguments.workspace, arguments.run, arguments.stage)
            load, rows = asyncio.run(measure(url, connect(arguments), records, versions))
    finally:
        ray.shutdown()
    by = Counter(model[0] for *_, model in load.answers)
    claims = [
        (
            not load.failures,
            f"no request of {len(load.answers) + len(load.failures)} failed while the model changed three times",
        ),
        (set(by) == {"a", "b"}, f"both models answered: {by['a']} and {by['b']} requests"),
        (rows[3]["while"].endswith("loading, shadow, canary, full"), "the release went through every step"),
    ]
    return side_by_side.judge(
        "replacement",
        "A model takes the place of another under load\n\n"
        f"{CLIENTS} clients that ask without a pause, half of them streaming, of one replica of the tiny model through the whole of Ray "
        "Serve; one run on this machine, clients and server together on its processors, which may have had other work at the time. "
        "`failed` counts from the beginning.",
        ["while", "seconds", "requests/s", "median ms", "p99 ms", "answered by", "failed"],
        rows,
        claims,
        machine=side_by_side.machine(),
        failures=load.failures[:20],
        rules=RULES,
    )


if __name__ == "__main__":
    sys.exit(main())
