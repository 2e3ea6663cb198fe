"""Training beside TRL, same models, data, batches and precision: `python benchmarks/training.py [--models small medium]`.

LoRA (r 8 on all linear layers) on random Llama-shaped models of 4 and 25 million parameters, float32, one thread; chats of uneven
length (log-normal). Each measurement is a process of its own, tools take turns, and a ratio is one of the same turn. SFT, DPO and reward
models; TRL in several of its settings, of which the best counts. Time is the processor's, as one thread never waits and other work may
share the machine. Losses of both are compared step by step. Writes `benchmarks/results/training_TASK.json` and `.md`. Exit code 1 if a
claim does not hold.

TRL must be importable (it is a development dependency).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

from side_by_side import LORA, SHAPES, VOCABULARY, in_child, judge, machine, random_llama, ratio, step_marks

BATCH = 8
RATE, BETA = 1e-3, 0.1
PLAIN = "plumbline"
"""As its stage trains by default: SFT in packed rows."""
PADDED = "plumbline, padded"
KNOWN = "plumbline, reference known"
OURS = {"sft": [PLAIN, PADDED], "dpo": [PLAIN, KNOWN], "rewardModel": [PLAIN]}
REGROUPED = "length-grouped"
"""A setting whose batches hold other rows than ours: shown, and not compared with."""
PRECOMPUTED = "precomputed reference"
"""Its reference pass is not counted in its time; ours is compared with TRL's plain setting, as is the one of ours that does not count it."""
TRL: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "padded": {},
        REGROUPED: {"train_sampling_strategy": "group_by_length"},
        "packed": {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1},  # about the tokens of a batch
        "padded, chunked head": {"loss_type": "chunked_nll"},
    },
    "dpo": {
        "padded": {},
        PRECOMPUTED: {"precompute_ref_log_probs": True},
    },
    "rewardModel": {
        "padded": {},  # RewardTrainer's rows have no "input_ids" to group by
    },
}
LIMITS = {
    "sft small": {PLAIN: 2.0},
    "sft medium": {PLAIN: 1.8},
    "dpo small": {PLAIN: 2.3, KNOWN: 3.0},
    "dpo medium": {PLAIN: 2.3, KNOWN: 3.0},
    "rewardModel small": {PLAIN: 2.0},
    "rewardModel medium": {PLAIN: 2.0},
}
MAX_LENGTH, MICRO_BATCH_TOKENS = 2048, 8192
UNITS = {"sft": "tokens", "dpo": "pairs", "rewardModel": "pairs"}
LOSS_TOLERANCE = 1e-3


def model_and_rows(shape: str, task: str, steps: int) -> tuple[Any, Any, list[Any]]:
    """A PEFT model, its tokenizer and chats (sft) or pairs (all else), the same in every process."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY - 4)} | {
        "<s>": VOCABULARY - 4,
        "</s>": VOCABULARY - 3,
        "u": VOCABULARY - 2,
        "a": VOCABULARY - 1,
    }
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # TRL scores the last token that is not padding, so that its reward models must pad with one that texts do not end with
    pad = f"w{VOCABULARY - 5}" if task == "rewardModel" else "</s>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token=pad)
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}u {{ m.content }} a {% else %}{{ m.content }} </s> {% endif %}{% endfor %}"
    base = random_llama(shape, eos_token_id=VOCABULARY - 3, bos_token_id=VOCABULARY - 4, pad_token_id=VOCABULARY - 3)
    adapter = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **LORA))
    draw = random.Random(1)

    def text(mean: float) -> str:
        return " ".join(f"w{draw.randrange(2000)}" for _ in range(max(2, min(600, int(draw.lognormvariate(mean, 0.8))))))

    def turn(role: str, mean: float) -> list[dict[str, str]]:
        return [{"role": role, "content": text(mean)}]

    rows: list[Any] = []
    for _ in range(BATCH * steps):
        prompt = turn("user", 3.5)
        if task == "sft":
            rows.append(prompt + turn("assistant", 4.2))
        else:
            rows.append({"prompt": prompt, "chosen": turn("assistant", 4.0), "rejected": turn("assistant", 4.0)})
    return adapter, tokenizer, rows


def warm(model: Any) -> None:
    """One small pass, so that no tool's first step pays for what libraries set up once."""
    import torch

    model(torch.arange(32)[None]).logits.sum().backward()
    model.zero_grad()


def ours(
    model: Any, tokenizer: Any, rows: list[Any], task: str, steps: int, packed: bool
) -> tuple[list[float], list[float]]:
    """(seconds, loss) of each step, from chats: rendering and tokenizing included. DPO's reference pass comes first, as a step of its own."""
    import torch

    from plumbline.api.stages.training import OptimizerSpec
    from plumbline.training.batch import Sequence, micro_batches
    from plumbline.training.checkpoint import CheckpointStore
    from plumbline.training.encode import encode_chat
    from plumbline.training.engine import TrainEngine
    from plumbline.training.model import TargetLogProbs
    from plumbline.training.objectives.bradley_terry import bradley_terry
    from plumbline.training.objectives.dpo import dpo
    from plumbline.training.objectives.sft import sft
    from plumbline.training.reference import reference_log_probs
    from plumbline.training.reward_model import Rewards
    from plumbline.training.world import World

    spec = OptimizerSpec(learning_rate=RATE, schedule="constant", warmup_ratio=0.0)
    whole = Rewards(model) if task == "rewardModel" else TargetLogProbs(model)
    world = World.current()
    torch.set_num_threads(1)
    engine = TrainEngine(whole, spec, world)
    objective = {"sft": sft, "dpo": dpo(BETA), "rewardModel": bradley_terry(0.0)}[task]

    def unit(i: int) -> list[Sequence]:
        if task == "sft":
            return [encode_chat(tokenizer, rows[i], MAX_LENGTH)]
        chats = [rows[i]["prompt"] + rows[i][side] for side in ("chosen", "rejected")]
        sequences = [encode_chat(tokenizer, chat, MAX_LENGTH, "last") for chat in chats]
        for score, sequence in zip((1.0, 0.0), sequences, strict=True):
            if task == "rewardModel":
                sequence.values = {"score": score, "ranking": float(i)}
        return sequences

    marks, losses = [time.process_time()], []
    if task == "dpo":
        store = CheckpointStore(tempfile.mkdtemp())
        reference = reference_log_probs(engine, unit, list(range(len(rows))), MICRO_BATCH_TOKENS, store)
        marks.append(time.process_time())
    for step in range(steps):
        units = {i: unit(i) for i in range(step * BATCH, (step + 1) * BATCH)}
        if task == "dpo":
            for i, sequences in units.items():
                for sequence, value in zip(sequences, reference[i].tolist(), strict=True):
                    sequence.values["reference"] = value
        row_tokens = MAX_LENGTH if packed else None
        batches = micro_batches(units.values(), micro_batch_tokens=MICRO_BATCH_TOKENS, row_tokens=row_tokens)
        losses.append(engine.step(batches, objective, RATE)["loss"])
        marks.append(time.process_time())
    return [b - a for a, b in pairwise(marks)], losses


def theirs(
    model: Any, tokenizer: Any, rows: list[Any], task: str, steps: int, setting: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """The same of TRL's trainer, in the order of the rows where the setting lets it."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    from plumbline.training.encode import encode_chat

    common = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "use_cpu": True, "bf16": False,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False, "max_length": MAX_LENGTH,
    } | setting  # fmt: skip
    if task == "sft":
        encoded = [encode_chat(tokenizer, chat, MAX_LENGTH) for chat in rows]
        data = [
            {"input_ids": s.ids, "labels": [i if t else -100 for i, t in zip(s.ids, s.trained, strict=True)]}
            for s in encoded
        ]
        trainer = SFTTrainer(
            model=model, args=SFTConfig(**common), train_dataset=Dataset.from_list(data), processing_class=tokenizer
        )
    elif task == "rewardModel":
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**common),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    else:
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(beta=BETA, **common),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    marks = step_marks(trainer)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return [b - a for a, b in pairwise(marks)], losses


def with_head(model: Any, tokenizer: Any) -> Any:
    """The same weights, adapter and head as the reward model of TRL's kind."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForSequenceClassification

    from plumbline.training.reward_model import Rewards

    config = type(model.config)(**model.config.to_dict() | {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id})
    twin = LlamaForSequenceClassification(config)
    adapter = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **LORA)
    twin = get_peft_model(twin, adapter)
    known = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(Rewards(model).head.weight if ".score." in name else known[name])
    return twin


def measure(tool: str, shape: str, task: str, steps: int) -> dict[str, Any]:
    """In this process: tokens or pairs a second, memory above the model's and the libraries', losses."""
    import torch
    import trl.trainer.dpo_trainer
    import trl.trainer.reward_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    import plumbline.training.model  # noqa: F401

    torch.set_num_threads(1)
    model, tokenizer, rows = model_and_rows(shape, task, steps)
    if task == "rewardModel" and tool not in OURS[task]:
        model = with_head(model, tokenizer)
    warm(model)
    lengths = [sum(len(turn["content"].split()) + 2 for turn in row) if task == "sft" else 1 for row in rows]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if tool in OURS[task]:
        seconds, losses = ours(model, tokenizer, rows, task, steps, packed=task == "sft" and tool == PLAIN)
        if tool == KNOWN:
            seconds = seconds[1:]  # the reference's log-probabilities were there
    else:
        seconds, losses = theirs(model, tokenizer, rows, task, steps, TRL[task][tool])
    return {
        "unitsPerSecond": sum(lengths)
        / sum(seconds),  # of the whole run: settings that regroup rows have long steps and short ones
        "peakMegabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "losses": losses,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--tasks", nargs="+", default=list(TRL), choices=list(TRL))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        tool, shape, task = options.child
        print("\n" + json.dumps(measure(tool, shape, task, options.steps)))
        return 0

    code = 0
    for task in options.tasks:
        table: list[dict[str, Any]] = []
        claims: list[tuple[bool, str]] = []
        for shape in options.models:
            runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in (*OURS[task], *TRL[task])}
            for _ in range(options.repeats):
                for tool, found in runs.items():
                    found.append(in_child(__file__, "--steps", str(options.steps), "--child", tool, shape, task))
            for tool in runs:
                table.append(
                    {
                        "task": task,
                        "model": shape,
                        "tool": tool,
                        "unit": UNITS[task],
                        "unitsPerSecond": round(_median(runs[tool], "unitsPerSecond"), 1),
                        "peakMegabytes": round(_median(runs[tool], "peakMegabytes")),
                    }
                )
                print(table[-1], flush=True)
            claims += _claims(f"{task} {shape}", runs, [tool for tool in TRL[task] if tool not in (REGROUPED, PRECOMPUTED)])
        here = machine()
        head = f"LoRA training, one thread, float32\n\n{options.steps} steps of {BATCH} rows, medians of {options.repeats} turns; {here}"
        columns = ("task", "model", "tool", "unit", "units per second", "peak memory above the model, MB")
        code |= judge(f"training_{task}", head, columns, table, claims, machine=here)
    return code


def _median(found: list[dict[str, Any]], key: str) -> float:
    return statistics.median(one[key] for one in found)


def _claims(what: str, runs: dict[str, list[dict[str, Any]]], rivals: list[str]) -> list[tuple[bool, str]]:
    """Speed and memory of ours against TRL's best settings of each, and the distance of the losses."""
    best = max(rivals, key=lambda tool: _median(runs[tool], "unitsPerSecond"))
    least = min(_median(runs[rival], "peakMegabytes") for rival in rivals)
    claims = []
    for tool, limit in LIMITS[what].items():
        times, spread = ratio(*([one["unitsPerSecond"] for one in runs[side]] for side in (tool, best)))
        memory = _median(runs[tool], "peakMegabytes")
        claims += [
            (times >= limit, f"{what}: {tool} is {times:.2f} ({spread}) times as fast as TRL, {best} (at least {limit})"),
            (memory <= least, f"{what}: {tool} takes {memory:.0f} MB above the model, TRL's least {least:.0f}"),
        ]
    losses = [runs[tool][0]["losses"] for tool in (PLAIN, "padded")]
    gap = max(abs(a - b) for a, b in zip(*losses, strict=True))
    said = f"{what}: losses of {len(losses[0])} steps differ by at most {gap:.2g} (allowed {LOSS_TOLERANCE})"
    return [*claims, (gap <= LOSS_TOLERANCE, said)]


if __name__ == "__main__":
    sys.exit(main())
