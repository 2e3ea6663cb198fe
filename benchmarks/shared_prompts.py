"""Updates of groups whose prompt is laid out once, beside each answer with its prompt: `python benchmarks/shared_prompts.py`.

Forward and backward pass of 8 prompts with 8 answers each, LoRA (r 8 on all linear layers) on random Llama-shaped models of 4 and 25
million parameters, float32, one thread. Prompts have 64 to 256 tokens, answers about 64 (log-normal). Both layouts are our own: the
groups in packed rows, and single sequences in buckets of like length; they take turns in one process, and a ratio is one of the same
turn. Time is the processor's, as one thread never waits and other work may share the machine. Also compares the gradients. Writes
`benchmarks/results/shared_prompts.json` and `.md`. Exit code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from typing import Any

from side_by_side import LORA, SHAPES, VOCABULARY, judge, machine, random_llama, ratio

PROMPTS, ANSWERS, SHORTEST, LONGEST, MEAN = 8, 8, 64, 256, 64
MICRO_BATCH_TOKENS = 8192
SHARED, ALONE = "prompt once", "prompt with each answer"
LIMIT = 1.3
TOLERANCE = 1e-5
"""Of the gradients' distance, as a part of their norm."""


def model_of(shape: str) -> Any:
    """The model as it is trained, the adapter away from its start, where half of the gradients are zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    from plumbline.training.model import TargetLogProbs

    model = TargetLogProbs(get_peft_model(random_llama(shape), LoraConfig(task_type="CAUSAL_LM", **LORA)))
    for name, p in model.trainable().items():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    return model


def groups(seed: int) -> list[tuple[int, list[Any]]]:
    """(prompt length, the answers' sequences) of each prompt."""
    from plumbline.training.batch import Sequence

    draw = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(count)]

    found = []
    for _ in range(PROMPTS):
        prompt = tokens(draw.randint(SHORTEST, LONGEST))
        answers = [tokens(max(2, min(4 * MEAN, round(MEAN * draw.lognormvariate(-0.125, 0.5))))) for _ in range(ANSWERS)]
        group = [
            Sequence([*prompt, *answer], [False] * len(prompt) + [True] * len(answer), {"advantage": draw.gauss(0, 1)})
            for answer in answers
        ]
        found.append((len(prompt), group))
    return found


def layout(seed: int, method: str) -> list[Any]:
    from plumbline.training.batch import micro_batches, share

    units = []
    for length, group in groups(seed):
        units += share(group, length, MICRO_BATCH_TOKENS) if method == SHARED else [[sequence] for sequence in group]
    return micro_batches(units, micro_batch_tokens=MICRO_BATCH_TOKENS)


def update(model: Any, batches: list[Any]) -> tuple[float, Any]:
    """(seconds, gradient of every trained weight) of Σ advantage · log-probability over answer tokens; layout included in neither."""
    import torch

    start = time.process_time()
    for batch in batches:
        logps = model(batch)
        (logps * batch.per_sequence["advantage"][batch.sequence]).sum().backward()
    seconds = time.process_time() - start
    gradient = torch.cat([p.grad.flatten() for p in model.trainable().values() if p.grad is not None])
    model.zero_grad()
    return seconds, gradient


def main() -> int:
    import torch

    from plumbline.training.world import keep_freed_memory

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()

    table: list[dict[str, Any]] = []
    claims: list[tuple[bool, str]] = []
    for shape in options.models:
        model = model_of(shape)
        seconds: dict[str, list[float]] = {SHARED: [], ALONE: []}
        tokens, apart = dict.fromkeys(seconds, 0), 0.0
        update(model, layout(0, SHARED)[:1])  # what libraries set up once
        for seed in range(options.repeats):
            gradients = {}
            for method in sorted(seconds, reverse=seed % 2 == 0):
                batches = layout(seed, method)
                took, gradients[method] = update(model, batches)
                seconds[method].append(took)
                tokens[method] += sum(batch.tokens for batch in batches)
            apart = max(apart, float((gradients[SHARED] - gradients[ALONE]).norm() / gradients[ALONE].norm()))
        for method, took in seconds.items():
            row = {"tokens": tokens[method] // options.repeats, "seconds": round(statistics.median(took), 3)}
            table.append({"model": shape, "layout": method, **row})
            print(table[-1], flush=True)
        times, spread = ratio(seconds[ALONE], seconds[SHARED])
        claims += [
            (
                times >= LIMIT,
                f"{shape}: with shared prompts an update is {times:.2f} ({spread}) times as fast (at least {LIMIT})",
            ),
            (apart <= TOLERANCE, f"{shape}: gradients differ by {apart:.1g} of their norm (allowed {TOLERANCE})"),
        ]
    here = machine()
    head = f"8 prompts with 8 answers each, LoRA, one thread, float32\n\n{here}"
    columns = ("model", "layout", "tokens computed", "seconds of an update")
    return judge("shared_prompts", head, columns, table, claims, machine=here)


if __name__ == "__main__":
    sys.exit(main())
