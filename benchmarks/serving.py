"""Serving beside the bare engine and `transformers serve`: `python benchmarks/serving.py [--requests 192] [--repeats 3] [--theirs-python PATH]`.

The built-in model of 1.8 million parameters, float32. 32 clients ask at the same time, each the next question as soon as it has its answer:
chats of 3 to 40 random words, answers of 8 to 64 tokens that nothing ends earlier, greedy. The same for all:

- the engine alone: our slot engine in one process, fed without HTTP, a new request for each that is done;
- plumbline: the whole of Ray Serve, through its proxies, plain and HAProxy, whole answers and streams;
- `transformers serve`, one request after the other as it does by default, and with `--continuous-batching`; after the first turn only the better.

Servers are up all the time, one per turn is asked, in turns. Figures are requests per second by the clock, and the ratio is of the same turn, as
other work may share the machine. Time to the first token is of streams, at its 99th percentile. Writes `benchmarks/results/serving.json` and
`.md`. Exit code 1 if a claim does not hold.

`transformers serve` runs in this environment unless `--theirs-python` names the Python of another one that has `transformers[serving]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelihood import WORDS
from side_by_side import judge, machine, ratio

CLIENTS = 32
LONGEST = 64
OF_ENGINE, OF_THEIRS = 0.75, 2.0
ENGINE, PLAIN, FAST = "engine alone", "plumbline, Serve's Python proxy", "plumbline, Serve's HAProxy"
THEIRS, BATCHED = "transformers serve", "transformers serve --continuous-batching"
START_SECONDS = 180
SERVES = "serves at "


@dataclass(frozen=True)
class Question:
    text: str
    tokens: int


def questions(number: int) -> list[Question]:
    """The same for everybody."""
    draw, words = random.Random(1), WORDS.split()
    return [Question(" ".join(draw.choices(words, k=draw.randint(3, 40))), draw.randint(8, LONGEST)) for _ in range(number)]


# Servers


def serve_ours(fast_proxy: bool) -> None:
    """Serve until standard input ends; tells the address."""
    from plumbline.models.reference import ModelReference
    from plumbline.ray_environment import start_local

    start_local(3, fast_proxy=fast_proxy)
    from plumbline.serving.chat import ServedModel
    from plumbline.serving.local import deployment

    model = ServedModel("tiny", ModelReference(endless_model()), LONGEST)
    with deployment([model], application="serving", port=None, replicas=1, max_ongoing_requests=CLIENTS) as url:
        print(f"{SERVES}{url}", flush=True)
        sys.stdin.read()


def endless_model() -> str:
    """The built-in model with an end token that it does not draw."""
    import shutil
    import tempfile

    from plumbline.external import tiny_folder

    folder = Path(tempfile.gettempdir()) / f"serving-benchmark-{os.getuid()}"
    if not folder.exists():
        partial = Path(tempfile.mkdtemp())
        shutil.copytree(tiny_folder(), partial, dirs_exist_ok=True)
        for name in ("config.json", "generation_config.json"):
            values = json.loads((partial / name).read_text()) if (partial / name).exists() else {}
            (partial / name).write_text(json.dumps(values | {"eos_token_id": 3}))
        partial.rename(folder)
    return str(folder)


@contextmanager
def ours(kind: str) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", kind]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        said = next((line for line in child.stdout if line.startswith(SERVES)), None)
        if said is None:
            raise SystemExit(f"{kind} did not come up; run {' '.join(command)} to see why")
        try:
            yield said.removeprefix(SERVES).strip()
        finally:
            child.communicate()


@contextmanager
def theirs(kind: str, python: str, model: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Room for four times what is asked at once; unbounded, its cache takes most of the memory of the machine.
    bounds = ("--cb-block-size", "32", "--cb-num-blocks", "1024", "--cb-max-batch-tokens", "2048")
    batched = ["--continuous-batching", *bounds] if kind == BATCHED else []
    command = [str(Path(python).parent / "transformers"), "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    child = subprocess.Popen(
        [*command, "--device", "cpu", "--dtype", "float32", *batched],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(url.replace("/v1", "/health"), timeout=5).read()
                break
            except urllib.error.HTTPError:
                break
            except OSError as error:
                if child.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{' '.join(command)} did not come up: {error}") from error
                time.sleep(0.2)
        yield url
    finally:
        child.terminate()
        child.wait()


# Turns


def bare(asked: list[Question]) -> dict[str, Any]:
    """The engine in a process of its own."""
    import torch

    from plumbline.models.load import end_tokens, load_for_generation, load_tokenizer
    from plumbline.models.reference import ModelReference
    from plumbline.rollout.engine import Request, Sampling, build_engine

    torch.set_num_threads(1)  # as Ray has it in a replica; more are slower for a model so small
    reference = ModelReference(endless_model())
    tokenizer = load_tokenizer(reference)
    model, _ = load_for_generation(reference)
    engine = build_engine(
        model, None, end_tokens(tokenizer, model), CLIENTS, max_length=model.config.max_position_embeddings
    )

    def prompt(text: str) -> tuple[int, ...]:
        chat = [{"role": "user", "content": text}]
        return tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))

    def run(asked: list[Question]) -> tuple[float, int]:
        began, waiting, done, tokens = time.perf_counter(), iter(enumerate(asked)), 0, 0

        def submit() -> None:
            for index, one in waiting:
                engine.submit(Request(str(index), prompt(one.text), Sampling(temperature=0, max_tokens=one.tokens)))
                return

        for _ in range(CLIENTS):
            submit()
        while done < len(asked):
            for token in engine.step():
                tokens += 1
                if token.finish_reason is not None:
                    done += 1
                    submit()
        return time.perf_counter() - began, tokens

    with torch.inference_mode():
        run(asked[:CLIENTS])
        seconds, tokens = run(asked)
    return {"seconds": seconds, "tokens": tokens, "first": []}


async def asked_over_http(url: str, model: str, asked: list[Question], stream: bool) -> dict[str, Any]:
    """All questions by `CLIENTS` clients: seconds, tokens and times to the first token."""
    import aiohttp

    waiting = iter(asked)
    tokens, first = 0, []

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for one in waiting:
            body = {
                "model": model, "messages": [{"role": "user", "content": one.text}], "max_tokens": one.tokens, "temperature": 0,
                "stream": stream,
            }  # fmt: skip
            began, seen = time.perf_counter(), False
            async with session.post(f"{url}/chat/completions", json=body) as response:
                if response.status != 200:
                    raise SystemExit(f"{url}: {response.status}: {await response.text()}")
                if not stream:
                    tokens += (await response.json())["usage"]["completion_tokens"]
                    continue
                async for line in response.content:
                    if (
                        not seen
                        and line.startswith(b"data: {")
                        and (json.loads(line[6:])["choices"] or [{}])[0].get("delta", {}).get("content")
                    ):
                        seen = True
                        first.append(time.perf_counter() - began)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(600)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
        return {"seconds": time.perf_counter() - began, "tokens": tokens, "first": first}


def turn(who: str, url: str | None, number: int, stream: bool) -> dict[str, Any]:
    """One turn, in a process of its own."""
    arguments = [who, url or "", str(number), str(int(stream))]
    done = subprocess.run([sys.executable, __file__, "--turn", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{who} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"rate": number / found["seconds"], **found}


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--requests",
        type=int,
        default=192,
        help="of a turn; of transformers serve a quarter, and one of each client at least",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--theirs-python", default=sys.executable, help="the Python of an environment with transformers[serving]"
    )
    parser.add_argument("--only-ours", action="store_true", help="without transformers serve; nothing is written")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--turn", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_ours(options.serve == FAST)
        return 0
    if options.turn:
        who, url, number, stream = options.turn
        asked = questions(int(number))
        if who == ENGINE:
            found = bare(asked)
        else:
            model = endless_model() if who in (THEIRS, BATCHED) else "tiny"
            asyncio.run(asked_over_http(url, model, asked[:4], False))
            found = asyncio.run(asked_over_http(url, model, asked, bool(int(stream))))
        print("\n" + json.dumps(found))
        return 0

    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        urls = {kind: stack.enter_context(ours(kind)) for kind in (PLAIN, FAST)}
        if not options.only_ours:
            model = endless_model()
            urls |= {kind: stack.enter_context(theirs(kind, options.theirs_python, model)) for kind in (THEIRS, BATCHED)}
        for turn_number in range(options.repeats):
            if turn_number == 1 and not options.only_ours:
                best = max((THEIRS, BATCHED), key=lambda who: runs[who, "answers"][0]["rate"])
                urls = {who: url for who, url in urls.items() if who in (PLAIN, FAST, best)}
            for who in (ENGINE, *urls):
                for way in ("answers", "streams") if who in (PLAIN, FAST) else ("answers",):
                    number = max(options.requests // 4, CLIENTS) if who in (THEIRS, BATCHED) else options.requests
                    found = turn(who, urls.get(who), number, way == "streams")
                    runs.setdefault((who, way), []).append(found)
                    print(f"{who}, {way}: {found['rate']:.1f} requests/s", flush=True)

    rates = {key: [one["rate"] for one in found] for key, found in runs.items()}
    table = []
    for (who, way), found in runs.items():
        first = [time for one in found for time in one["first"]]
        table.append(
            {
                "who": who,
                "way": way,
                "rate": round(statistics.median(rates[who, way]), 1),
                "of the engine": round(ratio(rates[who, way], rates[ENGINE, "answers"][: len(found)])[0], 2),
                "p50": round(1000 * statistics.median(first)) if first else "",
                "p99": round(1000 * p99(first)) if first else "",
            }
        )
    columns = ("who", "way", "requests/s", "of the engine", "first token, median ms", "first token, 99th percentile ms")
    if options.only_ours:
        print("\n".join(map(str, table)))
        return 0
    whole, spread = ratio(rates[FAST, "answers"], rates[ENGINE, "answers"])
    best = max((THEIRS, BATCHED), key=lambda who: rates[who, "answers"][0])
    times, times_spread = ratio(rates[FAST, "answers"], rates[best, "answers"])
    claims = [
        (whole >= OF_ENGINE, f"{whole:.2f} ({spread}) of the bare engine's requests/s through Serve (at least {OF_ENGINE})"),
        (times >= OF_THEIRS, f"{times:.2f} ({times_spread}) times the requests/s of {best} (at least {OF_THEIRS})"),
    ]
    here = machine()
    head = (
        f"Serving under {CLIENTS} clients\n\nAnswers of 8 to {LONGEST} tokens, float32, medians of {options.repeats} turns of "
        f"{options.requests} requests; {here}"
    )
    return judge("serving", head, columns, table, claims, machine=here)


if __name__ == "__main__":
    sys.exit(main())
