"""50 adapters on one base beside a single one: `python benchmarks/adapters.py [--models small medium] [--repeats 5]`.

Random Llama-shaped models of 4 and 25 million parameters, float32, one thread, adapters of rank 8 on all linear layers. 32 clients ask the
engine thread that serves, each the next question as soon as it has its answer: prompts of 8 to 96 random tokens, greedy answers of 8 to 64
tokens that nothing ends earlier, 96 questions. The same questions to

- one adapter merged into the weights, which is how a model is served alone;
- one adapter beside the weights, the same for every request;
- 50 adapters beside the weights, each request another than the one before;
- the base without any, through the engine that could have adapters.

They take turns in one process, a ratio is one of the same turn, and time is the processor's, as other work may share the machine. A sample of
answers of the 50 is compared with each adapter's merged model alone. Writes `benchmarks/results/adapters.json` and `.md`. Exit code 1 if a
claim does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import random
import statistics
import sys
import time
from typing import Any

from side_by_side import LORA, SHAPES, VOCABULARY, judge, machine, random_llama, ratio

CLIENTS, QUESTIONS, ADAPTERS, COMPARED = 32, 96, 50, 4
PROMPT, ANSWER = (8, 96), (8, 64)
LIMIT = 0.7
MERGED, SINGLE, MIXED, BARE = "one, merged", "one, beside the weights", "50, beside the weights", "none"


def adapter_tensors(model: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    """A random adapter and its configuration."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **LORA)
    wrapped = get_peft_model(model, config)
    tensors = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(wrapped).items()}
    wrapped.unload()
    return config, tensors


def questions(seed: int, adapters: list[Any]) -> list[Any]:
    from plumbline.rollout.engine import Request, Sampling

    draw = random.Random(seed)
    return [
        Request(
            str(i),
            tuple(draw.randrange(2, VOCABULARY) for _ in range(draw.randint(*PROMPT))),
            Sampling(temperature=0, max_tokens=draw.randint(*ANSWER)),
            adapters[i % len(adapters)],
        )
        for i in range(QUESTIONS)
    ]


async def answers(engine: Any, requests: list[Any]) -> dict[str, list[int]]:
    """Tokens of each request, `CLIENTS` at a time."""
    waiting, found = iter(requests), {}

    async def client() -> None:
        for request in waiting:
            async for tokens in engine.tokens(request, stream=False):
                found[request.id] = [token.token for token in tokens]

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return found


def measured(shape: str, repeats: int) -> tuple[dict[str, list[float]], int]:
    """Requests a second of each way, turn by turn, and how many of the compared answers are those of the merged model."""
    from plumbline.rollout.engine import generate
    from plumbline.rollout.slots import SlotEngine
    from plumbline.serving.engine_thread import EngineThread

    base = random_llama(shape).eval()
    longest = PROMPT[1] + ANSWER[1]
    trained = [adapter_tensors(base, seed) for seed in range(ADAPTERS)]
    merged = SlotEngine(copy.deepcopy(base), trained[0][0], [], CLIENTS, longest)
    merged.load_adapter(trained[0][1], 0)
    mixing = SlotEngine(base, None, [], CLIENTS, longest)
    ready = [mixing.prepare_adapter(*one) for one in trained]
    threads = {"merged": EngineThread(merged, "merged"), "mixing": EngineThread(mixing, "mixing")}
    ways = {
        MERGED: ("merged", [None]), SINGLE: ("mixing", ready[:1]), MIXED: ("mixing", ready), BARE: ("mixing", [None])
    }  # fmt: skip
    speeds: dict[str, list[float]] = {way: [] for way in ways}

    async def turns() -> dict[str, list[int]]:
        for engine, adapters in ways.values():  # what is set up once
            await answers(threads[engine], questions(99, adapters)[:CLIENTS])
        for turn in range(repeats):
            for way in sorted(ways, reverse=turn % 2 == 0):
                engine, adapters = ways[way]
                start = time.process_time()
                found = await answers(threads[engine], questions(turn, adapters))
                speeds[way].append(len(found) / (time.process_time() - start))
        return await answers(threads["mixing"], questions(0, ready))

    mixed = asyncio.run(turns())
    same = 0
    for i in range(COMPARED):
        merged_alone = SlotEngine(copy.deepcopy(base), trained[i][0], [], 1, longest)
        merged_alone.load_adapter(trained[i][1], 0)
        (alone,) = generate(merged_alone, [questions(0, [None])[i]])
        same += alone.tokens == mixed[str(i)]
    for thread in threads.values():
        thread.close()
    return speeds, same


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    table: list[dict[str, Any]] = []
    claims: list[tuple[bool, str]] = []
    for shape in options.models:
        speeds, same = measured(shape, options.repeats)
        for way, found in speeds.items():
            table.append({"model": shape, "adapters": way, "requests/s": round(statistics.median(found), 2)})
            print(table[-1], flush=True)
        for single in (SINGLE, MERGED):
            part, spread = ratio(speeds[MIXED], speeds[single])
            claims.append(
                (
                    part >= LIMIT,
                    f"{shape}: 50 adapters answer {part:.2f} ({spread}) of what {single} does (at least {LIMIT})",
                )
            )
        claims.append(
            (same == COMPARED, f"{shape}: {same} of {COMPARED} answers are token by token those of the merged model alone")
        )
    here = machine()
    head = f"50 adapters on one base, 32 clients, rank {LORA['r']}, one thread, float32\n\n{here}"
    columns = ("model", "adapters", "requests per processor second")
    return judge("adapters", head, columns, table, claims, machine=here)


if __name__ == "__main__":
    sys.exit(main())
