"""Makes `builtin://tiny`: `python -m plumbline.builtin.pretrain --out DIR [--minutes 25]`.

A 2 M parameter Llama-architecture model, trained from nothing on `skills.pretraining_documents`. It knows the
skills in notation and in prose and has never seen a chat turn: the two role markers are tokens it has no
experience of, only the end marker closes its documents. So supervised tuning has following to teach and
reinforcement learning has skill to sharpen, as with real models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plumbline.builtin import skills

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 128  # tokens a row
BATCH = 48  # rows a step
PEAK_LR = 3e-3
WARMUP = 0.02  # share of the run


def build_tokenizer(vocabulary: int = 768) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the generator's own wordings: any text can be written, digits stay single."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # An answer's first letter is then the same token as a letter within a line, as SentencePiece's dummy prefix does.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    prompts = (task.prompt for task in skills.tasks(8000, split="train", seed=0))
    documents = itertools.islice(skills.pretraining_documents(0), 8000)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(prompts, documents), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=2048, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Batches [BATCH, CONTEXT + 1] of token ids, documents one after the other with END between them."""
    end = tokenizer.convert_tokens_to_ids(END)
    buffer: list[int] = []
    need = BATCH * (CONTEXT + 1)
    for document in skills.pretraining_documents(seed):
        buffer += [*tokenizer.encode(document, add_special_tokens=False), end]
        if len(buffer) >= need:
            yield torch.tensor(buffer[:need]).view(BATCH, CONTEXT + 1)
            buffer = buffer[need:]


def notation_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 200) -> float:
    """Share of held-out tasks that the model completes rightly in notation, after one line of prose (greedy)."""
    rng = random.Random("notation")
    right = 0
    chosen = list(skills.SKILLS.values())
    for i in range(count):
        skill = chosen[i % len(chosen)]
        arguments = skills.draw(rng, skill, "heldout")
        answer = skill.solve(*arguments)
        text = "The sum of 1 and 2 is 3.\n" + skill.notation.format(*arguments, answer="").rstrip()
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        out = model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0)
        reply = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split("\n")[0]
        right += skills.is_correct(reply, answer)
    return right / count


def train(out: Path, minutes: float, seed: int) -> None:
    """Train for `minutes` of wall time and write model, tokenizer and model card to `out`."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1)
    started = time.monotonic()
    step, tokens = 0, 0
    for batch in rows(tokenizer, seed):
        progress = (time.monotonic() - started) / (60 * minutes)
        if progress >= 1:
            break
        rate = min(1.0, progress / WARMUP) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * rate
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, tokens = step + 1, tokens + batch[:, 1:].numel()
        if step % 50 == 0:
            print(f"step {step} tokens {tokens} loss {loss.item():.4f} {100 * progress:.0f} %", flush=True)
    model.eval()
    accuracy = notation_accuracy(model, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    parameters = sum(p.numel() for p in model.parameters())
    (out / "README.md").write_text(
        "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n"
        f"# builtin://tiny\n\nA Llama-architecture base model with {parameters:,} parameters, made by\n"
        "`python -m plumbline.builtin.pretrain` from nothing but `plumbline.builtin.skills`.\n\n"
        f"- Training: {step} steps, {tokens:,} tokens, seed {seed}, final loss {loss.item():.4f}.\n"
        f"- Held-out tasks completed rightly in plain notation, after one line of prose (greedy): {100 * accuracy:.1f} %.\n"
        "- It has never seen a chat turn: it does not follow instructions until it is tuned.\n"
        "- Limits: it knows eight toy skills over letters and small numbers, and nothing else.\n"
    )
    print(json.dumps({"steps": step, "tokens": tokens, "notation_accuracy": accuracy, "parameters": parameters}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.minutes, arguments.seed)
