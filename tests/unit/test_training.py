"""The training core: layouts, gradients and resume do not change the result."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from plumbline.api.stages.training import AdapterSpec, CheckpointSpec, OptimizerSpec, ParallelismSpec, TrainingSpec
from plumbline.builtin import skills
from plumbline.errors import InvalidInput
from plumbline.external import TINY
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.training.batch import MicroBatch, Sequence, collate, micro_batches, pack, split_rows
from plumbline.training.checkpoint import CheckpointStore, CheckpointWriter
from plumbline.training.encode import encode_chat, encode_prompt
from plumbline.training.engine import TrainEngine
from plumbline.training.loop import train
from plumbline.training.model import TargetLogProbs, build_trainable
from plumbline.training.objectives.dpo import dpo
from plumbline.training.objectives.sft import sft
from plumbline.training.schedule import batch_indices, learning_rate, total_steps
from plumbline.training.world import World
from support.ranks import run_ranks

REFERENCE = ModelReference(TINY)
ALONE = World(0, 1, torch.device("cpu"))
OPTIMIZER = OptimizerSpec(learning_rate=1e-2, schedule="constant", warmup_ratio=0.0)


def chats(count: int, seed: int = 0) -> list[Sequence]:
    tokenizer = load_tokenizer(REFERENCE)
    return [
        encode_chat(tokenizer, [{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.answer}], 128)
        for t in skills.tasks(count, split="train", seed=seed)
    ]


def trainable(reference: ModelReference = REFERENCE, packing: bool = True, **adapter: Any) -> TargetLogProbs:
    return build_trainable(reference, TrainingSpec(adapter=AdapterSpec(**adapter), max_length=128), "sft", packing)


def new_engine(world: World = ALONE, **parallelism: Any) -> TrainEngine:
    model = trainable(rank=4)
    with torch.no_grad():  # B starts at zero, which would hide the gradient of A
        generator = torch.Generator().manual_seed(1)
        for name, p in model.trainable().items():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return TrainEngine(model, OPTIMIZER, world, ParallelismSpec(**parallelism))


def gradient_step(layout: list[MicroBatch], engine: TrainEngine | None = None) -> tuple[dict[str, float], torch.Tensor]:
    engine = engine or new_engine()
    metrics = engine.step(layout, sft, rate=1e-2)
    return metrics, torch.cat([p.flatten() for p in engine.full_parameters().values()])


def test_packing_padding_and_accumulation_give_the_same_step() -> None:
    units = [[sequence] for sequence in chats(24)]
    layouts = {
        "one row each, one batch": micro_batches(units, micro_batch_tokens=10**9),
        "buckets": micro_batches(units, micro_batch_tokens=100),
        "packed": micro_batches(units, micro_batch_tokens=256, row_tokens=64),
        "one by one": [collate([unit]) for unit in units],
    }
    assert len(layouts["buckets"]) > len(layouts["packed"]) > 1
    results = {name: gradient_step(layout) for name, layout in layouts.items()}
    expected, weights = results.pop("one by one")
    for name, (metrics, found) in results.items():
        assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-5), name
        assert metrics["gradNorm"] == pytest.approx(expected["gradNorm"], rel=1e-4), name
        # one AdamW step has size ~lr whatever the gradient, so weights tell sign flips and scale errors of Adam's input
        assert torch.allclose(found, weights, atol=2e-4), name


def test_layers_computed_again_give_the_same_step() -> None:
    batches = micro_batches([[s] for s in chats(12)], micro_batch_tokens=512, row_tokens=64)
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    found = []
    for again in (False, True):
        engine = new_engine(activation_checkpointing=again)
        kept = 0
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            engine.model(batches[0])
        saved = kept
        found.append((saved, engine.step(batches, sft, 1e-2), engine.full_parameters()))
    (all_of_it, metrics, parameters), (inputs_only, same, equal) = found
    assert inputs_only < all_of_it / 3
    assert metrics == same
    assert all(torch.equal(parameters[name], equal[name]) for name in parameters)


def test_packed_sequences_do_not_see_each_other() -> None:
    one, other = chats(2)
    engine = new_engine()
    alone = engine.log_probs([collate([[other]])])[0]
    packed = engine.log_probs([collate([[one, other]])])[0]
    assert torch.allclose(packed[one.targets :], alone, atol=1e-5)


def test_loss_equals_cross_entropy_of_the_plain_model() -> None:
    from plumbline.models.load import load_base

    sequence = chats(1)[0]
    ids = torch.tensor([sequence.ids])
    logits = load_base(REFERENCE)(ids).logits[0, :-1]
    wanted = [t for t in range(1, len(sequence.ids)) if sequence.trained[t]]
    expected = -torch.log_softmax(logits.float(), -1)[[t - 1 for t in wanted], ids[0, wanted]].mean()
    engine = TrainEngine(trainable(), OPTIMIZER, ALONE)  # B = 0: the base itself
    assert engine.step([collate([[sequence]])], sft, 0.0)["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_only_answers_are_trained_on() -> None:
    tokenizer = load_tokenizer(REFERENCE)
    messages = [
        {"role": "user", "content": "Reverse the letters a b c."},
        {"role": "assistant", "content": "c b a"},
        {"role": "user", "content": "What is 1 plus 2?"},
        {"role": "assistant", "content": "3"},
    ]
    everything = encode_chat(tokenizer, messages, 1000)
    trained = [i for i, t in zip(everything.ids, everything.trained, strict=True) if t]
    assert tokenizer.decode(trained).replace(" ", "") == "cba<|end|>3<|end|>"
    last = encode_chat(tokenizer, messages, 1000, "last")
    assert tokenizer.decode([i for i, t in zip(last.ids, last.trained, strict=True) if t]).strip() == "3<|end|>"
    prompt = encode_prompt(tokenizer, messages[:3])
    assert everything.ids[: len(prompt)] == prompt  # training, rollouts and serving render alike
    assert len(encode_chat(tokenizer, messages, 10).ids) == 10


def test_template_that_rewrites_history_is_refused() -> None:
    tokenizer = load_tokenizer(REFERENCE)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}[{{ m.content }}]{% endif %}{% endfor %}"
    )
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    with pytest.raises(InvalidInput, match="earlier turns"):
        encode_chat(tokenizer, turns, 100)


def test_layouts_hold_every_sequence_once_within_bounds() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(1, 50) for _ in range(300)]
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(300))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert len(rows) <= 1.1 * sum(lengths) / 64 + 1
    groups = split_rows(rows, lengths, 256)
    assert sorted(i for group in groups for row in group for i in row) == list(range(300))
    assert all(len(g) * max(sum(lengths[i] for i in row) for row in g) <= 256 for g in groups)
    assert pack([100], 64) == [[0]]  # longer than a row: alone, not lost


def test_pairs_stay_together() -> None:
    pairs = [[Sequence([1, 2, 3], [False, True, True]), Sequence([4] * n, [True] * n)] for n in (2, 9, 30)]
    made = micro_batches(pairs, micro_batch_tokens=20)
    assert sum(batch.size for batch in made) == 6
    assert all(batch.size % 2 == 0 for batch in made)
    assert all(batch.input_ids[0::2, 0].eq(1).all() and batch.input_ids[1::2, 0].eq(4).all() for batch in made)


def test_dpo_equals_the_hand_computed_value() -> None:
    batch = MicroBatch(*(torch.zeros(1, 1, dtype=torch.long) for _ in range(4)), torch.tensor([0, 0, 1]), 2)
    batch.per_sequence["reference"] = torch.tensor([-3.0, -2.0])
    logps = torch.tensor([-1.0, -1.5, -2.5], requires_grad=True)
    loss, pairs, metrics = dpo(beta=0.1, label_smoothing=0.0)(logps, batch)
    margin = 0.1 * ((-2.5 + 3.0) - (-2.5 + 2.0))  # 0.1
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(torch.tensor(margin)).item())
    assert pairs == 1
    assert metrics["rewardMargin"][0].item() == pytest.approx(margin)
    loss.backward()
    slope = 0.1 * torch.sigmoid(torch.tensor(-margin)).item()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-slope, -slope, slope])


def test_schedule_and_data_order() -> None:
    spec = OptimizerSpec(learning_rate=1.0, schedule="cosine", warmup_ratio=0.1)
    rates = [learning_rate(s, 100, spec) for s in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == 1.0 == rates[10]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    assert total_steps(100, 32, 3.0, None) == 10
    assert total_steps(100, 32, 3.0, 4) == 4
    seen = [i for step in range(10) for i in batch_indices(step, 50, 10, seed=3)]
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50] != seen[50:]
    assert batch_indices(7, 50, 10, 3) == seen[70:80]
    assert batch_indices(0, 50, 10, 4) != seen[:10]
    assert sorted(batch_indices(0, 3, 7, 0)[:6]) == [0, 0, 1, 1, 2, 2]  # a batch larger than the data


def test_without_shuffling_each_epoch_goes_in_the_order_of_the_rows() -> None:
    seen = [i for step in range(7) for i in batch_indices(step, 5, 3, seed=4, shuffle=False)]
    assert seen == [*range(5)] * 4 + [0]
    assert batch_indices(2, 5, 3, 0, shuffle=False) == [1, 2, 3], "a step's rows follow from its number alone"


def test_reference_is_the_starting_adapter() -> None:
    batch = collate([[chats(1)[0]]])
    engine = TrainEngine(new_engine().model, OPTIMIZER, ALONE, keep_reference=True)
    before = engine.log_probs([batch])[0]
    engine.step([batch], sft, 1e-2)
    after = engine.log_probs([batch])[0]
    with engine.reference():
        assert torch.equal(engine.log_probs([batch])[0], before)
    assert torch.equal(engine.log_probs([batch])[0], after)
    assert not torch.allclose(before, after, atol=1e-3)


def run_training(
    folder: Path, stop_after: int | None = None, every: int = 3, shuffle: bool = True
) -> dict[str, torch.Tensor]:
    """Eight steps; with `stop_after`, dies there as a killed process would."""
    sequences = chats(64)

    class Killed(BaseException):
        pass

    def source(step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        if step == stop_after:
            raise Killed
        units = [[sequences[i]] for i in batch_indices(step, 64, 8, 0, shuffle)]
        return [micro_batches(units, micro_batch_tokens=256, row_tokens=64)], {}

    store = CheckpointStore(str(folder))
    engine = TrainEngine(trainable(rank=4, dropout=0.1), OPTIMIZER, ALONE)
    try:
        train(engine, source, sft, 8, store, CheckpointSpec(every_steps=every), 0, lambda *_: None)
    except Killed:
        return {}
    latest = store.latest()
    assert latest is not None
    assert [row["step"] for row in latest.history] == list(range(1, 9))
    return latest.parameters


@pytest.mark.parametrize("shuffle", [True, False])
def test_resumed_run_ends_bit_equal(tmp_path: Path, shuffle: bool) -> None:
    straight = run_training(tmp_path / "straight", shuffle=shuffle)
    run_training(tmp_path / "killed", stop_after=2, shuffle=shuffle)
    run_training(tmp_path / "killed", stop_after=5, shuffle=shuffle)
    resumed = run_training(tmp_path / "killed", shuffle=shuffle)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    straight = run_training(tmp_path / "straight")
    run_training(tmp_path / "killed", stop_after=7)
    (shard,) = (tmp_path / "killed" / "step-00000006").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    latest = CheckpointStore(str(tmp_path / "killed")).latest()
    assert latest is not None
    assert latest.step == 3
    assert "damaged" in caplog.text
    state = json.loads((tmp_path / "killed" / "step-00000003" / "state.json").read_text())
    assert len(state["history"]) == 3
    resumed = run_training(tmp_path / "killed")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_loss_that_is_no_number_stops_and_keeps_the_weights() -> None:
    engine = new_engine()
    before = engine.full_parameters()

    def broken(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, dict]:  # type: ignore[type-arg]
        return logps.sum() * float("nan"), torch.tensor(1.0), {}

    bad = replace(chats(1)[0], row=17)
    with pytest.raises(InvalidInput, match=r"batch of the dataset's row 17 \(counted from 0\).*learningRate"):
        engine.step([collate([[bad]])], broken, 1e-2)
    assert all(torch.equal(value, engine.full_parameters()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"rank_stabilised": True},
        {"dora": True},
        {"init": "pissa"},
        {"init": "pissa", "rank_stabilised": True},
        {"init": "pissa", "dora": True},
    ],
)
def test_every_kind_of_adapter_learns_and_is_what_peft_loads(kind: dict[str, Any], tmp_path: Path) -> None:
    engine = TrainEngine(trainable(rank=4, **kind), OPTIMIZER, ALONE, keep_reference=True)
    start = engine.full_parameters()
    batches = micro_batches([[s] for s in chats(8)], micro_batch_tokens=512, row_tokens=64)
    losses = [engine.step(batches, sft, 1e-2)["loss"] for _ in range(6)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(start[name], p) for name, p in engine.full_parameters().items())
    with engine.reference():
        before = engine.log_probs(batches)
    bare = TargetLogProbs(get_peft_model(load_base(REFERENCE), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])))
    for ours, own in zip(before, TrainEngine(bare, OPTIMIZER, ALONE).log_probs(batches), strict=True):
        torch.testing.assert_close(ours, own, atol=2e-4, rtol=1e-4)  # the reference is the input model

    save_file({name: t.contiguous() for name, t in engine.adapter().items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(engine.model.adapter_config()))
    loaded = PeftModel.from_pretrained(load_base(REFERENCE), tmp_path)
    merged = TrainEngine(TargetLogProbs(loaded), OPTIMIZER, ALONE)
    for ours, theirs in zip(engine.log_probs(batches), merged.log_probs(batches), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_lora_plus_gives_b_a_rate_of_its_own() -> None:
    spec = OPTIMIZER.model_copy(update={"lora_plus_ratio": 16.0})
    batches = micro_batches([[s] for s in chats(8)], micro_batch_tokens=512, row_tokens=64)
    moved = []
    for one in (OPTIMIZER, spec):
        engine = TrainEngine(new_engine().model, one, ALONE)
        start = engine.full_parameters()
        engine.step(batches, sft, 1e-4)
        moved.append({name: (p - start[name]).abs().max() for name, p in engine.full_parameters().items()})
    for name, change in moved[0].items():
        assert float(moved[1][name] / change) == pytest.approx(16.0 if "lora_B" in name else 1.0, rel=1e-2)


def test_adapter_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"targetModules: nonsense match no linear module.*q_proj"):
        trainable(target_modules=["q_proj", "nonsense"])


def test_a_head_that_shares_the_embeddings_is_no_target(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tied = random_model(tmp_path / "tied", LlamaConfig(**size, tie_word_embeddings=True))
    with pytest.raises(InvalidInput, match=r"targetModules: lm_head is the output layer, whose weights this model shares"):
        trainable(tied, target_modules=["q_proj", "lm_head"])
    trainable(tied, target_modules=["q_proj"])


def test_dropout_is_for_training_only() -> None:
    engine = TrainEngine(trainable(rank=4, dropout=0.5), OPTIMIZER, ALONE)
    batch = collate([[chats(1)[0]]])
    engine.step([batch], sft, 1e-2)  # B is no longer zero, so dropout on A's input would show
    first, second = (engine.log_probs([batch])[0] for _ in range(2))
    assert torch.equal(first, second)
    losses = {engine.step([batch], sft, 0.0)["loss"] for _ in range(3)}
    assert len(losses) == 3
    assert engine.world.totals(1.0, 2) == [1.0, 2.0]


def random_model(folder: Path, config: Any) -> ModelReference:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return ModelReference(str(folder), dtype="float32")


def test_models_whose_logits_or_packing_differ_are_refused(tmp_path: Path) -> None:
    from transformers import BloomConfig, Gemma2Config

    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    size["initializer_range"] = 0.5  # logits of a size that shows
    capped = Gemma2Config(
        **size,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        final_logit_softcapping=0.05,
        max_position_embeddings=256,
    )
    with pytest.raises(InvalidInput, match="gemma2 models change their logits"):
        trainable(random_model(tmp_path / "capped", capped), target_modules=["q_proj"])
    alibi = random_model(
        tmp_path / "alibi", BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2, initializer_range=0.5)
    )
    with pytest.raises(InvalidInput, match=r"packing: packed sequences would see each other in bloom models"):
        trainable(alibi, target_modules=["query_key_value"])
    trainable(alibi, packing=False, target_modules=["query_key_value"])


def test_sequences_beyond_the_models_positions_are_refused() -> None:
    with pytest.raises(InvalidInput, match="exceeds the model's 2048 positions"):
        build_trainable(REFERENCE, TrainingSpec(max_length=4096), "spec.stages[0].sft")


def _steps(parallelism: dict[str, Any], file: str) -> None:
    world = World.current()
    units = [[s] for s in chats(20)]
    mine = micro_batches(units[world.rank :: world.size], micro_batch_tokens=64 if world.rank == 0 else 10**9)
    engine = new_engine(world, **parallelism)
    metrics = engine.step(mine, sft, 1e-2)
    weights = engine.full_parameters()
    store = CheckpointStore(str(Path(file).parent / "store"))
    writer = CheckpointWriter(store, world.rank, world.size, saver=1)
    writer.save(1, engine.pieces(), [{}], {})
    again = engine.step(mine, sft, 1e-2)
    after = engine.full_parameters()
    writer.wait()
    world.maximum(0)
    engine.restore(store.load(1))
    restored = engine.full_parameters()
    assert all(torch.equal(weights[name], restored[name]) for name in weights)
    assert engine.step(mine, sft, 1e-2) == again
    assert all(torch.equal(after[name], p) for name, p in engine.full_parameters().items())
    with_head = trainable(target_modules=["q_proj", "lm_head"])
    head = TrainEngine(with_head, OPTIMIZER, world, ParallelismSpec(**parallelism), keep_reference=True)
    start = head.log_probs(mine[:1])[0]
    head.step(mine, sft, 1e-2)
    with head.reference():
        assert torch.allclose(head.log_probs(mine[:1])[0], start, atol=1e-6)
    assert not torch.allclose(head.log_probs(mine[:1])[0], start, atol=1e-3)
    if world.rank == 0:
        torch.save({"metrics": metrics, "again": again, "weights": torch.cat([w.flatten() for w in weights.values()])}, file)


@pytest.mark.parametrize(
    "parallelism",
    [
        {"sharding": "fsdp2"},
        {"sharding": "fsdp2", "activation_checkpointing": True},
        {"sharding": "fsdp2", "cpu_offload": True},
        {"sharding": "replicate"},
    ],
    ids=["fsdp2", "fsdp2, layers again", "fsdp2, shards in memory", "replicate"],
)
def test_two_ranks_give_the_step_of_one(parallelism: dict[str, Any], tmp_path: Path) -> None:
    """Ranks with different numbers of micro-batches, under plain torch.distributed."""
    out = str(tmp_path / "rank0.pt")
    run_ranks(_steps, parallelism, out)
    found = torch.load(out, weights_only=True)
    engine = new_engine()
    units = [[s] for s in chats(20)]
    metrics, weights = gradient_step(micro_batches(units, micro_batch_tokens=10**9), engine)
    again = engine.step(micro_batches(units, micro_batch_tokens=10**9), sft, 1e-2)
    assert found["metrics"]["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
    assert found["metrics"]["gradNorm"] == pytest.approx(metrics["gradNorm"], rel=1e-4)
    assert found["metrics"]["tokens"] == metrics["tokens"]
    # Adam's first step is rate·g/(|g| + 1e-8), so that rounding shows where a gradient is all but 0: in a number or two of 54,272
    apart = (found["weights"] - weights).abs()
    assert (apart > 2e-4).sum() <= 5
    assert apart.max() < 1e-2
    assert found["again"]["loss"] == pytest.approx(again["loss"], abs=1e-3)
