"""Rollouts of the slot engine beside static `model.generate`: `python benchmarks/rollout.py [--models small medium]`.

Random Llama-shaped models of 4 and 25 million parameters, float32, one thread. 64 prompts of 8 to 192 tokens, and 8 such prompts with 8
samples each; answers are sampled and end by themselves, as one token in 64 ends a text, or at 192 tokens. `generate`
gets all prompts as one batch, padded on the left, and the adapter merged into its weights, where PEFT's own layers would cost it more;
the engine gets the adapter as a trainer sends it. They take turns, a ratio of tokens a second is one of the same turn, and time is the
processor's, as one thread never waits and other work may share the machine. Greedy answers of both are compared token by token, and the
log-probabilities of sampled ones with the trainer's. Writes `benchmarks/results/rollout.json` and `.md`. Exit code 1 if a claim does not
hold.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import time
from typing import Any

from side_by_side import LORA, SHAPES, VOCABULARY, judge, machine, random_llama, ratio

ENDS = list(range(VOCABULARY - 32, VOCABULARY))
"""Tokens that end a text; of a random model's, as likely as all others."""
SHORTEST, LONGEST, ANSWER = 8, 192, 192
CASES = {"64 ragged prompts": (64, 1, 2.2), "8 prompts with 8 samples": (8, 8, 2.7)}
"""Name → prompts, samples of each, how many times as fast."""
OURS, STATIC = "plumbline", "generate"
TOLERANCE = 1e-5


def models_of(shape: str) -> tuple[Any, Any]:
    """The base, and the same with an adapter that is away from its start."""
    from peft import LoraConfig, get_peft_model

    base = random_llama(shape, eos_token_id=ENDS, pad_token_id=0, bos_token_id=1).eval()
    lora = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **LORA)
    return base, get_peft_model(copy.deepcopy(base), lora).eval()


def prompts_of(count: int, seed: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [
        tuple(draw.randrange(2, ENDS[0]) for _ in range(draw.randint(SHORTEST, LONGEST))) for _ in range(count)
    ]  # fmt: skip


def ours(engine: Any, prompts: list[tuple[int, ...]], samples: int, temperature: float, seed: int) -> list[Any]:
    """Completions, those of one prompt together."""
    from plumbline.rollout.engine import Request, Sampling, generate

    requests = [
        Request(
            f"{i}/{k}", prompt, Sampling(temperature=temperature, max_tokens=ANSWER, seed=seed * 10_000 + i * samples + k)
        )
        for i, prompt in enumerate(prompts)
        for k in range(samples)
    ]
    return generate(engine, requests)


def static(model: Any, prompts: list[tuple[int, ...]], samples: int, temperature: float, seed: int) -> list[list[int]]:
    """The same of transformers, each answer up to its end."""
    import torch

    torch.manual_seed(seed)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.inference_mode():
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=ANSWER, num_return_sequences=samples,
            **(sampling if temperature else {"do_sample": False}),
        )[:, width:].tolist()  # fmt: skip
    ends = [next((i for i, token in enumerate(answer) if token in ENDS), len(answer) - 1) for answer in found]
    return [answer[: end + 1] for answer, end in zip(found, ends, strict=True)]


def gap(trained: Any, prompts: list[tuple[int, ...]], answers: list[Any]) -> float:
    """Largest distance between the engine's log-probability of a token and the trainer's."""
    import torch

    from plumbline.training.batch import Sequence, micro_batches

    units = [
        [Sequence([*prompt, *a.tokens], [False] * len(prompt) + [True] * len(a.tokens), {"engine": a.logprobs})]
        for prompt, a in zip(prompts, answers, strict=True)
    ]
    with torch.no_grad():
        return max(
            float((trained(batch) - batch.per_target["engine"]).abs().max())
            for batch in micro_batches(units, micro_batch_tokens=8192)
        )


def main() -> int:
    import torch
    from peft import get_peft_model_state_dict

    from plumbline.rollout.engine import build_engine
    from plumbline.rollout.slots import SlotEngine
    from plumbline.training.model import TargetLogProbs

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    table: list[dict[str, Any]] = []
    claims: list[tuple[bool, str]] = []
    for shape in options.models:
        base, adapted = models_of(shape)
        merged = copy.deepcopy(adapted).merge_and_unload()
        engine = build_engine(base, adapted.peft_config["default"], ENDS, 64, max_length=LONGEST + ANSWER)
        assert isinstance(engine, SlotEngine)
        engine.load_adapter(get_peft_model_state_dict(adapted), 0)
        trained = TargetLogProbs(adapted)
        for model, ask in ((engine, ours), (merged, static)):
            ask(model, prompts_of(2, 99), 1, 1.0, 0)  # what libraries set up once
        for case, (count, samples, limit) in CASES.items():
            speeds: dict[str, list[float]] = {OURS: [], STATIC: []}
            lengths: dict[str, list[int]] = {OURS: [], STATIC: []}
            apart = 0.0
            for seed in range(options.repeats):
                prompts = prompts_of(count, seed)
                for tool in sorted(speeds, reverse=seed % 2 == 0):
                    start = time.process_time()
                    if tool == OURS:
                        completions = ours(engine, prompts, samples, 1.0, seed)
                        answers = [completion.tokens for completion in completions]
                    else:
                        answers = static(merged, prompts, samples, 1.0, seed)
                    seconds = time.process_time() - start
                    speeds[tool].append(sum(map(len, answers)) / seconds)
                    lengths[tool] += map(len, answers)
                apart = max(apart, gap(trained, [prompt for prompt in prompts for _ in range(samples)], completions))
            for tool, found in speeds.items():
                row = {
                    "tokensPerSecond": round(statistics.median(found), 1),
                    "meanAnswer": round(statistics.mean(lengths[tool]), 1),
                }
                table.append({"model": shape, "case": case, "tool": tool, **row})
                print(table[-1], flush=True)
            times, spread = ratio(speeds[OURS], speeds[STATIC])
            prompts = prompts_of(count, 0)
            greedy = [completion.tokens for completion in ours(engine, prompts, 1, 0.0, 0)]
            same = sum(a == b for a, b in zip(greedy, static(merged, prompts, 1, 0.0, 0), strict=True))
            claims += [
                (times >= limit, f"{shape}, {case}: {times:.2f} ({spread}) times the tokens a second (at least {limit})"),
                (same == count, f"{shape}, {case}: {same} of {count} greedy answers are those of generate"),
                (
                    apart <= TOLERANCE,
                    f"{shape}, {case}: log-probabilities are within {apart:.1g} of the trainer's ({TOLERANCE})",
                ),
            ]
    here = machine()
    columns = ("model", "case", "tool", "answer tokens a second", "mean length of an answer")
    return judge("rollout", f"Sampling answers, one thread, float32\n\n{here}", columns, table, claims, machine=here)


if __name__ == "__main__":
    sys.exit(main())
