"""GRPO beside TRL: `python benchmarks/grpo.py [--models small] [--repeats 3]`.

The same random Llama-shaped models, LoRA, prompts, group size and lengths as in `benchmarks/training.py`; 8 prompts × 8 answers of 64 tokens a step, in one thread
and float32. Each measurement is a process of its own, tools take turns, and a ratio is one of the same turn. Answers are drawn at
random, so tokens a second are compared, not losses. Prints bytes of a weight sync too. Writes `benchmarks/results/grpo.json` and `.md`; exit code 1 if
a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from typing import Any

from side_by_side import SHAPES, in_child, judge, machine, ratio, step_marks
from training import model_and_rows, warm

PROMPTS, GROUP, ANSWER, RATE, CLAIM = 8, 8, 64, 1e-4, 3.0
TOOLS = ("plumbline", "TRL, generate")


def reward(tokens: list[int]) -> float:
    """Something that differs between answers: the share of even tokens."""
    return sum(token % 2 == 0 for token in tokens) / max(1, len(tokens))


def ours(model: Any, tokenizer: Any, chats: list[Any], steps: int) -> tuple[float, int]:
    """(seconds, answer tokens)."""
    import copy

    import torch

    from plumbline.api.stages.rlhf import RlhfOptimizerSpec, RlhfSpec, SamplingSpec
    from plumbline.rollout.actors import lora_config
    from plumbline.rollout.engine import Request, Sampling, build_engine, generate
    from plumbline.rollout.groups import Group, Sample
    from plumbline.training.encode import encode_prompt
    from plumbline.training.engine import TrainEngine
    from plumbline.training.model import TargetLogProbs
    from plumbline.training.reinforcement import Learner, objective_of
    from plumbline.training.world import World

    spec = RlhfSpec(
        prompts_per_step=PROMPTS, group_size=GROUP, max_length=2048, sampling=SamplingSpec(max_tokens=ANSWER),
        optimizer=RlhfOptimizerSpec(learning_rate=RATE),
    )  # fmt: skip
    base = copy.deepcopy(model.get_base_model())
    base = _plain(base)
    world = World.current()
    torch.set_num_threads(1)
    trainer = TrainEngine(TargetLogProbs(model), spec.optimizer, world)
    config = trainer.model.adapter_config()
    assert config is not None
    prompts = [tuple(encode_prompt(tokenizer, chat)) for chat in chats]
    longest = max(map(len, prompts)) + ANSWER + 1
    rollout = build_engine(base.eval(), lora_config(config), [], slots=PROMPTS * GROUP, max_length=longest)
    learner, objective = Learner(spec, trainer, prompts), objective_of(spec)
    began, tokens = time.process_time(), 0
    for step in range(steps):
        rollout.load_adapter(trainer.adapter(), step)
        rows = range(step * PROMPTS, (step + 1) * PROMPTS)
        requests = [
            Request(f"{row}/{k}", prompts[row], Sampling(1.0, 1.0, ANSWER, 1000 * row + k))
            for row in rows
            for k in range(GROUP)
        ]
        answers = iter(generate(rollout, requests))
        groups = []
        for row in rows:
            found = [next(answers) for _ in range(GROUP)]
            groups.append(Group(row, row, [Sample.of(c, {}, reward(c.tokens)) for c in found]))
            tokens += sum(len(c.tokens) for c in found)
        updates, _ = learner.learn(step, groups)
        for batches in updates:
            trainer.step(batches, objective, RATE)
    return time.process_time() - began, tokens


def _plain(base: Any) -> Any:
    """The base without PEFT's layers."""
    for module in list(base.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "base_layer"):
                setattr(module, name, child.base_layer)
    return base


def theirs(model: Any, tokenizer: Any, chats: list[Any], steps: int) -> tuple[float, int]:
    """The same of TRL's trainer in its plain setting."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    counted = [0]

    def rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
        counted[0] += sum(map(len, completion_ids))
        return [reward(ids) for ids in completion_ids]

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, max_steps=steps,
        max_completion_length=ANSWER, learning_rate=RATE, lr_scheduler_type="constant", beta=0.0, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, logging_steps=1,
        temperature=1.0, dataloader_pin_memory=False, generation_kwargs={"eos_token_id": None},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, args=config, reward_funcs=rewards, train_dataset=Dataset.from_list([{"prompt": chat} for chat in chats]),
        processing_class=tokenizer,
    )  # fmt: skip
    marks = step_marks(trainer)
    trainer.train()
    return marks[-1] - marks[0], counted[0]


def measure(tool: str, shape: str, steps: int) -> dict[str, Any]:
    """In this process."""
    import torch

    torch.set_num_threads(1)
    model, tokenizer, rows = model_and_rows(shape, "dpo", steps)
    warm(model)
    chats = [row["prompt"] for row in rows][: PROMPTS * steps]
    seconds, tokens = (ours if tool == TOOLS[0] else theirs)(model, tokenizer, chats, steps)
    adapter = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() * 4 for p in model.parameters()) - adapter
    return {"tokensPerSecond": tokens / seconds, "syncBytes": adapter, "wholeBytes": whole}


def main() -> int:
    """Measure, write, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["small"], choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("\n" + json.dumps(measure(*options.child, options.steps)))
        return 0
    claims, table = [], []
    for shape in options.models:
        runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in TOOLS}
        for _ in range(options.repeats):
            for tool in TOOLS:
                runs[tool].append(in_child(__file__, "--steps", str(options.steps), "--child", tool, shape))
        times, spread = ratio(*([one["tokensPerSecond"] for one in found] for found in runs.values()))
        for tool, found in runs.items():
            speed = round(statistics.median(one["tokensPerSecond"] for one in found), 1)
            table.append({"model": shape, "tool": tool, "tokensPerSecond": speed})
            print(table[-1], flush=True)
        one = runs[TOOLS[0]][0]
        claims.append(
            (times >= CLAIM, f"{shape}: {times:.2f} ({spread}) times TRL's answer tokens a second (at least {CLAIM})")
        )
        share = one["wholeBytes"] / one["syncBytes"]
        claims.append(
            (share > 10, f"{shape}: a weight sync has {one['syncBytes']:,} bytes, {share:.0f} times less than the weights")
        )
    here = machine()
    head = f"{PROMPTS} prompts × {GROUP} answers of {ANSWER} tokens, {options.steps} steps, medians of {options.repeats} turns; {here}"
    columns = ("model", "tool", "answer tokens per second")
    return judge("grpo", f"GRPO, one thread, float32\n\n{head}", columns, table, claims, machine=here)


if __name__ == "__main__":
    sys.exit(main())
