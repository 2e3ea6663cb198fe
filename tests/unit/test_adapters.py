"""Every way to train a model: what is learned is what PEFT loads, what engines run, and what the next stage starts from."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel

from plumbline.api.base import ArtifactType
from plumbline.api.stages.preference import PreferenceSpec
from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.api.stages.sft import EmbeddingsSpec, SftSpec
from plumbline.api.stages.training import AdapterSpec, OptimizerSpec, ParallelismSpec, TrainingSpec
from plumbline.artifacts import Workspace
from plumbline.builtin import skills
from plumbline.errors import InvalidInput
from plumbline.external import TINY
from plumbline.models.load import (
    adapter_type,
    load_base,
    load_for_generation,
    load_merged,
    load_tokenizer,
    load_with_adapters,
)
from plumbline.models.reference import ModelReference
from plumbline.models.virtual_tokens import table
from plumbline.rollout.engine import Request, Sampling, build_engine, generate
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.openai_requests import ChatCompletionRequest
from plumbline.stages import preference
from plumbline.stages import sft as sft_stage
from plumbline.training.batch import MicroBatch, Sequence, collate, micro_batches
from plumbline.training.encode import encode_chat
from plumbline.training.engine import TrainEngine
from plumbline.training.model import CAUSAL, TargetLogProbs, build_trainable
from plumbline.training.objectives.sft import sft
from plumbline.training.optimizer import adamw, paged_adamw
from plumbline.training.reward_model import HEAD, Rewards
from plumbline.training.tuning import TrainingJob
from plumbline.training.world import World
from support.preferences import ALONE, dataset, rows, written
from support.ranks import run_ranks

REFERENCE = ModelReference(TINY, dtype="float32")
RATES = {"lora": 1e-2, "prefix": 3e-2, "prompt": 3e-2, "ia3": 3e-2, "none": 1e-3}
VIRTUAL = ("prefix", "prompt")


def chats(count: int, seed: int = 0) -> list[Sequence]:
    tokenizer = load_tokenizer(REFERENCE)
    return [
        encode_chat(tokenizer, [{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.answer}], 128)
        for t in skills.tasks(count, split="train", seed=seed)
    ]


def batches(count: int = 8) -> list[MicroBatch]:
    return micro_batches([[sequence] for sequence in chats(count)], micro_batch_tokens=256)


def trainable(reference: ModelReference = REFERENCE, **adapter: Any) -> TargetLogProbs:
    spec = TrainingSpec(adapter=AdapterSpec(**adapter) if adapter else None, max_length=128)
    return build_trainable(reference, spec, "sft")


def tuned(model: TargetLogProbs, rate: float, steps: int = 2, **engine: Any) -> TrainEngine:
    """The model after so many steps, whose loss falls."""
    made = TrainEngine(model, OptimizerSpec(schedule="constant", warmup_ratio=0.0), ALONE, **engine)
    losses = [made.step(batches(), sft, rate)["loss"] for _ in range(steps)]
    assert losses == sorted(losses, reverse=True)
    return made


def published(folder: Path, name: str, fill: Callable[[Path], Any]) -> ModelReference:
    """A Model artifact with whatever `fill` writes."""
    workspace, fingerprint = Workspace(str(folder)), (name * 64)[:64]
    workspace.acquire(fingerprint, "test")
    with workspace.create(
        kind="sft", fingerprint=fingerprint, stage="sft", type=ArtifactType.MODEL, inputs={}, holder="test"
    ) as writer:
        fill(writer.folder)
        load_tokenizer(REFERENCE).save_pretrained(str(writer.folder / "tokenizer"))
    return ModelReference(TINY, None, "float32", workspace.uri, "sft", fingerprint)


def handed_over(folder: Path, name: str, engine: TrainEngine) -> ModelReference:
    """The artifact of a trained adapter."""

    def fill(to: Path) -> None:
        (to / "adapter").mkdir()
        tensors = {key: tensor.contiguous() for key, tensor in engine.adapter().items()}
        save_file(tensors, to / "adapter" / "adapter_model.safetensors")
        (to / "adapter" / "adapter_config.json").write_text(json.dumps(engine.model.adapter_config()))

    return published(folder, name, fill)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrainEngine, ModelReference]]:
    """Method → a model after two steps, and its artifact."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, method in {"1": "lora", "2": "prefix", "3": "prompt", "4": "ia3"}.items():
        engine = tuned(trainable(method=method), RATES[method])
        made[method] = engine, handed_over(folder, name, engine)
    return made


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "ia3"])
def test_what_is_trained_is_what_peft_loads_and_engines_run(
    method: str, models: dict[str, tuple[TrainEngine, ModelReference]]
) -> None:
    engine, reference = models[method]
    base = load_base(REFERENCE)
    frozen = {name.replace("base_layer.", ""): p for name, p in engine.model.base.named_parameters() if not p.requires_grad}
    for name, p in base.named_parameters():
        assert torch.equal(frozen[name], p), f"{name} is of the frozen base"

    loaded = PeftModel.from_pretrained(load_base(REFERENCE), reference.adapter_folder()).eval()
    ids = torch.tensor([chats(1)[0].ids])
    with torch.no_grad():
        logits = loaded(ids, use_cache=False).logits
        torch.testing.assert_close(logits, engine.model.causal(ids, use_cache=False).logits)
        assert (logits[:, -ids.shape[1] :] - base(ids).logits).abs().max() > 0.05, "training has changed something"
        if method in VIRTUAL:
            with pytest.raises(InvalidInput, match="cannot be merged"):
                load_merged(reference)
        else:
            torch.testing.assert_close(load_merged(reference)(ids).logits, logits, atol=1e-4, rtol=1e-4)

    model, prefix = load_for_generation(reference)
    assert (prefix is None) == (method not in VIRTUAL)
    prompts = [tuple(sequence.ids[:n]) for sequence, n in zip(chats(3), (5, 17, 9), strict=True)]
    answers = build_engine(model, None, [], slots=2, max_length=100, prefix=prefix)
    found = generate(answers, [Request(f"{i}", p, Sampling(temperature=0, max_tokens=8)) for i, p in enumerate(prompts)])
    for prompt, completion in zip(prompts, found, strict=True):
        asked = torch.tensor([prompt])
        expected = loaded.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=8, eos_token_id=[]
        )
        assert completion.tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "ia3"])
def test_the_next_stage_goes_on_with_it_and_has_it_for_its_reference(
    method: str, models: dict[str, tuple[TrainEngine, ModelReference]]
) -> None:
    engine, reference = models[method]
    after = engine.log_probs(batches())
    following = TrainEngine(trainable(reference), OptimizerSpec(), ALONE, keep_reference=True)
    for ours, theirs in zip(following.log_probs(batches()), after, strict=True):
        torch.testing.assert_close(ours, theirs)
    following.step(batches(), sft, RATES[method])
    with following.reference():
        for ours, theirs in zip(following.log_probs(batches()), after, strict=True):
            torch.testing.assert_close(ours, theirs)
    bare = TrainEngine(TargetLogProbs(load_base(REFERENCE)), OptimizerSpec(), ALONE).log_probs(batches())
    off = max(float((one - other).abs().max()) for one, other in zip(bare, after, strict=True))
    assert off > 0.05, "the adapter switched off is another policy than the reference"
    with pytest.raises(InvalidInput, match="has an adapter already"):
        trainable(reference, method=method)


def test_whole_weights_are_trained_from_the_merged_input_model(
    models: dict[str, tuple[TrainEngine, ModelReference]],
) -> None:
    lora, reference = models["lora"]
    model = trainable(reference, method="none")
    named = model.trainable()
    assert {name.removeprefix(CAUSAL) for name in named} == {name for name, _ in load_base(REFERENCE).named_parameters()}
    assert {p.dtype for p in named.values()} == {torch.float32}
    assert (model.adapter_config(), model.adapter(named)) == (None, {})
    start = {name: p.detach().clone() for name, p in named.items()}
    engine = TrainEngine(model, OptimizerSpec(), ALONE)
    for ours, theirs in zip(engine.log_probs(batches()), lora.log_probs(batches()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    tuned(model, RATES["none"])
    assert all(not torch.equal(p, start[name]) for name, p in model.trainable().items())
    bfloat = build_trainable(
        ModelReference(TINY, dtype="bfloat16"), TrainingSpec(adapter=AdapterSpec(method="none"), max_length=128), "sft"
    )
    assert bfloat.compute_dtype == torch.bfloat16
    assert {p.dtype for p in bfloat.trainable().values()} == {torch.float32}


@pytest.mark.parametrize("method", VIRTUAL)
@pytest.mark.parametrize("again", [False, True], ids=["", "layers again"])
def test_values_and_gradients_of_virtual_tokens_are_pefts_own(method: str, again: bool) -> None:
    model = trainable(method=method, virtual_tokens=7)
    texts = chats(3)
    batch = collate([[row] for row in texts])
    parallelism = ParallelismSpec(activation_checkpointing=again)
    engine = TrainEngine(copy.deepcopy(model), OptimizerSpec(), ALONE, parallelism)
    logps = engine.model(batch)
    logps.sum().backward()
    expected = []
    for i, row in enumerate(texts):
        logits = model.causal(torch.tensor([row.ids]), use_cache=False).logits[0, -len(row.ids) : -1]
        own = logits.log_softmax(-1).gather(1, torch.tensor(row.ids[1:])[:, None])[:, 0]
        expected.append(own[torch.tensor(row.trained[1:])])
        torch.testing.assert_close(logps[batch.sequence == i], expected[-1], atol=1e-4, rtol=1e-4)
    torch.cat(expected).sum().backward()
    ours, theirs = table(engine.model.causal).grad, table(model.causal).grad  # type: ignore[arg-type]
    assert theirs is not None
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", VIRTUAL)
def test_virtual_tokens_begin_as_text(method: str) -> None:
    """The model then answers as one that has read that text."""
    text = "Answer in one word, please."
    ids = load_tokenizer(REFERENCE)(text, add_special_tokens=False)["input_ids"]
    model = trainable(method=method, virtual_tokens=len(ids), init_text=text)
    base, row = load_base(REFERENCE), chats(1)[0]
    batch = collate([[row]])
    with torch.no_grad():
        logps = base(torch.tensor([ids + row.ids])).logits[0, len(ids) : -1].log_softmax(-1)
    expected = logps.gather(1, torch.tensor(row.ids[1:])[:, None])[:, 0][torch.tensor(row.trained[1:])]
    torch.testing.assert_close(model(batch), expected, atol=1e-4, rtol=1e-4)
    twice = trainable(method=method, virtual_tokens=2 * len(ids), init_text=text)
    assert table(twice.causal).shape[0] == 2 * len(ids)  # type: ignore[arg-type]


def test_packing_with_virtual_tokens_is_wrong_in_peft_and_refused_here() -> None:
    one, other = chats(2)
    packed = collate([[one, other]])
    model = get_peft_model(load_base(REFERENCE), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)).eval()
    with torch.no_grad():
        alone = model(torch.tensor([other.ids]), use_cache=False).logits[0]
        together = model(packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
    assert (together[len(one.ids) :] - alone).abs().max() > 0.05, "PEFT reads packed rows without a word"
    with pytest.raises(ValueError, match="a row of several would be read wrongly"):
        TargetLogProbs(model)(packed)
    spec = SftSpec(adapter=AdapterSpec(method="prefix"), max_length=128)
    assert spec.packing is None
    assert build_trainable(REFERENCE, spec, "sft", spec.packing).virtual_tokens == 20
    with pytest.raises(InvalidInput, match=r"sft\.packing: packed chats would share one row's virtual tokens"):
        build_trainable(REFERENCE, spec, "sft", True)


def test_packing_with_a_cache_is_wrong_in_transformers_and_right_here() -> None:
    one, other = chats(2)
    packed, base = collate([[one, other]]), load_base(REFERENCE)
    with torch.no_grad():
        alone = base(torch.tensor([other.ids]), use_cache=False).logits[0]
        with_cache = base(packed.input_ids, position_ids=packed.position_ids).logits[0, len(one.ids) :]
        assert (with_cache - alone).abs().max() > 0.05, "with a cache the second sequence sees the first"
        model = TargetLogProbs(base)
        states = model.hidden(packed, torch.arange(len(one.ids), packed.input_ids.numel()))
        torch.testing.assert_close(base.get_output_embeddings()(states), alone, atol=1e-4, rtol=1e-4)


def test_pissa_switched_off_is_no_reference_but_its_start_is() -> None:
    model = trainable(init="pissa", rank=8)
    engine = TrainEngine(model, OptimizerSpec(), ALONE, keep_reference=True)
    engine.step(batches(), sft, 1e-2)
    bare = TrainEngine(TargetLogProbs(load_base(REFERENCE)), OptimizerSpec(), ALONE).log_probs(batches())
    with engine.reference():
        kept = engine.log_probs(batches())
    assert isinstance(model.causal, PeftModel)
    with model.causal.disable_adapter():
        off = engine.log_probs(batches())
    for ours, wrong, expected in zip(kept, off, bare, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        assert (wrong - expected).abs().max() > 0.05, "PiSSA has taken its start out of the base"


def unquantized(model: TargetLogProbs) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """The plain base with the values that the four bits stand for, and the bits of each weight."""
    from bitsandbytes.functional import dequantize_4bit

    base, bits = load_base(REFERENCE), {}
    plain = dict(base.named_parameters())
    for name, p in model.base.named_parameters():
        if hasattr(p, "quant_state"):
            own = name.replace("base_layer.", "")
            plain[own].data = dequantize_4bit(p.data, p.quant_state)
            bits[own] = p.data.clone()
    return base, bits


def test_qlora_trains_a_lora_beside_four_bits_and_hands_over_one_of_the_plain_base(tmp_path: Path) -> None:
    model = trainable(quantization="nf4", rank=4)
    base, bits = unquantized(model)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in bits} >= {"q_proj", "o_proj", "down_proj"}
    with torch.no_grad():  # B starts at zero, which would hide the gradient of A
        for name, p in model.trainable().items():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    TrainEngine(model, OptimizerSpec(), ALONE).log_probs(batches())  # evaluation must not re-lay the weights

    dense = trainable(rank=4)
    for name, p in dense.base.named_parameters():
        if not p.requires_grad:
            p.data = base.get_parameter(name.replace("base_layer.", "")).data
    for name, p in dense.trainable().items():
        p.data = model.trainable()[name].detach().clone()
    (batch,) = micro_batches([[sequence] for sequence in chats(4)], micro_batch_tokens=10**6)[:1]
    for one in (model, dense):
        one(batch).sum().backward()
    for name, p in model.trainable().items():
        torch.testing.assert_close(p.grad, dense.trainable()[name].grad, atol=1e-3, rtol=1e-3)
        p.grad = None

    engine = tuned(model, 1e-3)
    assert all(torch.equal(bits[name], now) for name, now in unquantized(model)[1].items())
    reference = handed_over(tmp_path, "5", engine)
    assert adapter_type(reference) == "LORA"
    loaded = PeftModel.from_pretrained(base, reference.adapter_folder()).eval()
    for ours, theirs in zip(
        engine.log_probs(batches()),
        TrainEngine(TargetLogProbs(loaded), OptimizerSpec(), ALONE).log_probs(batches()),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    merged = load_merged(reference).get_parameter("model.layers.0.self_attn.q_proj.weight")
    assert not torch.equal(merged, load_base(REFERENCE).get_parameter("model.layers.0.self_attn.q_proj.weight"))
    following = trainable(reference, method="lora", quantization="nf4")  # as RUN.json spells it
    assert following.trainable().keys() == model.trainable().keys()
    assert "Linear4bit" in {type(module).__name__ for module in following.modules()}


def test_what_the_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"optimizer\.paged: pages move between a CUDA GPU's memory.* runs on cpu"):
        adamw([], OptimizerSpec(paged=True), torch.device("cpu"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InvalidInput, match=r"sft\.adapter\.quantization: nf4 needs bitsandbytes; install plumbline\[qlora\]"
    ):
        trainable(quantization="nf4")
    with pytest.raises(InvalidInput, match=r"optimizer\.paged: needs bitsandbytes"):
        adamw([], OptimizerSpec(paged=True), torch.device("cuda"))


def test_the_paged_optimizer_makes_the_same_steps_and_can_be_saved() -> None:
    """On a CPU it pages nothing, but computes and keeps its state as on a GPU."""
    spec, torn = OptimizerSpec(learning_rate=1e-2, weight_decay=0.1), []
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3)) for _ in range(3)]
    kept: dict[str, torch.Tensor] = {}
    for i, p in enumerate(weights):
        groups = [{"params": [p], "ratio": 1.0}]
        make: Callable[[], torch.optim.Optimizer] = lambda groups=groups, i=i: (  # noqa: E731
            adamw(groups, spec, torch.device("cpu")) if i == 0 else paged_adamw(groups, spec)
        )
        optimizer = make()
        for step in range(4):
            if i == 2 and step == 2:  # as a checkpoint does
                kept = {key: value.clone() for key, value in optimizer.state[p].items()}
                optimizer = make()
                optimizer.state[p].update(kept)
            p.grad = torch.cos(p.detach() * (step + 1))
            optimizer.step()
        torn.append(p.detach())
    assert set(kept) == {"step", "state1", "state2"}
    torch.testing.assert_close(torn[1], torn[0])
    assert torch.equal(torn[2], torn[1])


def test_several_adapters_stand_on_one_base(models: dict[str, tuple[TrainEngine, ModelReference]], tmp_path: Path) -> None:
    lora = models["lora"][1]
    short = handed_over(tmp_path, "6", tuned(trainable(rank=2, target_modules=["q_proj", "down_proj"]), 1e-2))
    both = load_with_adapters({"long": lora, "short": short})
    ids = torch.tensor([chats(1)[0].ids])
    with torch.no_grad():
        assert both.active_adapter == "long"
        for name, reference in {"long": lora, "short": short, "long ": lora}.items():
            both.set_adapter(name.strip())
            alone = PeftModel.from_pretrained(load_base(REFERENCE), reference.adapter_folder()).eval()
            torch.testing.assert_close(both(ids).logits, alone(ids).logits)
        prefixes = load_with_adapters({"a": models["prefix"][1], "b": models["prefix"][1]})
        prefixes.set_adapter("b")
        torch.testing.assert_close(
            prefixes(ids, use_cache=False).logits, models["prefix"][0].model.causal(ids, use_cache=False).logits
        )
    for other, said in {
        ModelReference(TINY): "'b' is a model without an adapter",
        models["ia3"][1]: "'a' is a LORA and 'b' a IA3 adapter",
        ModelReference("/elsewhere", None, "float32", short.workspace, "sft", short.fingerprint): "different weights",
    }.items():
        with pytest.raises(InvalidInput, match=said):
            load_with_adapters({"a": lora, "b": other})


@pytest.mark.parametrize(
    ("spec", "where", "said"),
    [
        (SftSpec(adapter=AdapterSpec(method="ia3", rank=8)), "adapter.rank", "rank is an option of lora only"),
        (SftSpec(adapter=AdapterSpec(init_text="Hi")), "adapter.initText", "initText is an option of prefix, prompt only"),
        (SftSpec(adapter=AdapterSpec(method="none", quantization="nf4")), "adapter.quantization", "an option of lora only"),
        (SftSpec(adapter=AdapterSpec(init="pissa", quantization="nf4")), "adapter.init", "which nf4 has rounded"),
        (SftSpec(adapter=AdapterSpec(method="prompt"), packing=True), "packing", "set packing: false"),
        (SftSpec(adapter=AdapterSpec(method="none"), embeddings=EmbeddingsSpec()), "embeddings", "the embeddings too"),
        (
            SftSpec(adapter=AdapterSpec(quantization="nf4"), parallelism=ParallelismSpec(workers=2)),
            "adapter.quantization",
            "set parallelism.sharding: replicate",
        ),
        (
            SftSpec(optimizer=OptimizerSpec(paged=True), parallelism=ParallelismSpec(min_workers=1, max_workers=2)),
            "optimizer.paged",
            "set parallelism.sharding: replicate",
        ),
        (RlhfSpec(adapter=AdapterSpec(method="ia3")), "adapter.method", "set adapter.method: lora"),
        (RlhfSpec(adapter=AdapterSpec(quantization="nf4")), "adapter.quantization", "leave quantization out"),
    ],
)
def test_combinations_that_cannot_work_are_refused(spec: TrainingSpec, where: str, said: str) -> None:
    found = dict(spec.problems())
    assert list(found) == [where]
    assert said in found[where]


def test_combinations_that_work_are_not() -> None:
    for spec in (
        SftSpec(),
        SftSpec(adapter=AdapterSpec(method="prefix", virtual_tokens=3, init_text="Hi"), packing=False),
        SftSpec(adapter=AdapterSpec(quantization="nf4"), parallelism=ParallelismSpec(workers=2, sharding="replicate")),
        SftSpec(adapter=AdapterSpec(quantization="nf4"), optimizer=OptimizerSpec(paged=True)),
    ):
        assert spec.problems() == []
    assert SftSpec(adapter=AdapterSpec(quantization="nf4")).libraries() == {
        "adapter.quantization": ("bitsandbytes", "qlora")
    }


def test_models_that_a_method_does_not_fit_are_refused(tmp_path: Path) -> None:
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    AutoModelForCausalLM.from_config(MistralConfig(**size, num_key_value_heads=2, sliding_window=8)).save_pretrained(
        tmp_path / "window"
    )
    for method in VIRTUAL:
        with pytest.raises(InvalidInput, match=rf"{method} needs layers that attend to all earlier tokens.*mistral"):
            trainable(ModelReference(str(tmp_path / "window")), method=method)
    AutoModelForCausalLM.from_config(LlamaConfig(**size, max_position_embeddings=140)).save_pretrained(tmp_path / "short")
    short = ModelReference(str(tmp_path / "short"))
    assert trainable(short, method="prompt", virtual_tokens=12).virtual_tokens == 12
    with pytest.raises(InvalidInput, match="128 and 13 virtual tokens exceed the model's 140 positions"):
        trainable(short, method="prefix", virtual_tokens=13)


def test_ia3_scales_what_its_paper_does_and_names_what_is_missing(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GraniteConfig, XGLMConfig

    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    for config, expected in (
        (GPTNeoXConfig(**size), {"query_key_value", "dense_4h_to_h"}),  # PEFT's own table
        (GraniteConfig(**size, num_key_value_heads=2), {"k_proj", "v_proj", "down_proj"}),  # not in it
    ):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / config.model_type)
        model = trainable(ModelReference(str(tmp_path / config.model_type)), method="ia3")
        assert {name.split(".ia3_l")[0].rpartition(".")[2] for name in model.trainable()} == expected
    xglm = XGLMConfig(vocab_size=64, d_model=32, ffn_dim=32, num_layers=1, attention_heads=2)
    AutoModelForCausalLM.from_config(xglm).save_pretrained(tmp_path / "xglm")
    with pytest.raises(InvalidInput, match="xglm models have no down_proj; use lora"):
        trainable(ModelReference(str(tmp_path / "xglm")), method="ia3")


@pytest.mark.parametrize("method", ["prefix", "prompt", "ia3", "none"])
def test_preferences_and_chats_are_learnt_in_every_way(method: str, tmp_path: Path) -> None:
    settings = {
        "adapter": AdapterSpec(method=method),  # type: ignore[arg-type]
        "optimizer": {"learning_rate": RATES[method], "schedule": "constant", "warmup_ratio": 0.0},
        "batch_size": 8,
        "max_length": 128,
    }
    pairs = PreferenceSpec.model_validate({"objective": "dpo", **settings})
    chosen = [{"messages": row["prompt"] + row["chosen"]} for row in rows("pairs", 16)]
    for work, spec, data in (
        (preference.work, pairs, dataset(tmp_path / "pairs", "pairs", 16)),
        (sft_stage.work, SftSpec.model_validate(settings), written(tmp_path / "chats", chosen)),
    ):
        store = str(tmp_path / type(spec).__name__)
        job: TrainingJob[Any] = TrainingJob(REFERENCE, data, spec, 4, store, "stage")
        work(job, ALONE, lambda *_: None)
        done = job.store.latest()
        assert done is not None
        assert done.history[-1]["loss"] < done.history[0]["loss"]
        assert (done.adapter_config is None) == (method == "none")
        if spec is pairs:  # the first step's policy is its own reference
            assert done.history[0]["rewardChosen"] == pytest.approx(0.0, abs=1e-4)
            assert done.history[-1]["rewardMargin"] > 0


@pytest.mark.parametrize("method", ["prefix", "prompt", "ia3", "none"])
def test_rewards_need_no_particular_adapter(method: str) -> None:
    model = Rewards(trainable(method=method).causal)
    batch = collate([[row] for row in chats(2)])
    rewards = model(batch)
    torch.testing.assert_close(rewards[1], model(collate([[chats(2)[1]]]))[0], atol=1e-5, rtol=1e-5)
    rewards.sum().backward()
    learnt = {name for name, p in model.trainable().items() if p.grad is not None and p.grad.any()}
    assert HEAD in learnt
    assert model.trainable().keys() - learnt == ({"causal.lm_head.weight"} if method == "none" else set())


def test_a_model_with_virtual_tokens_is_served(models: dict[str, tuple[TrainEngine, ModelReference]]) -> None:
    engine, reference = models["prefix"]
    served = ChatModel.load(ServedModel("prefix", reference, max_tokens=8), slots=2)
    positions = engine.model.base.config.max_position_embeddings
    assert served.max_length == positions - 20
    (request,) = served.read(
        ChatCompletionRequest.model_validate(
            {"model": "prefix", "messages": [{"role": "user", "content": "2+2?"}], "temperature": 0, "max_tokens": 8}
        )
    )

    async def answer() -> list[int]:
        return [token.token async for tokens in served.engine.tokens(request, stream=False) for token in tokens]

    asked = torch.tensor([request.prompt])
    expected = engine.model.causal.generate(
        input_ids=asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=8
    )
    assert asyncio.run(answer()) == expected[0, len(request.prompt) :].tolist()


def _two_ranks(file: str) -> None:
    world, found = World.current(), {}
    units = [[sequence] for sequence in chats(8)]
    mine = micro_batches(units[world.rank :: world.size], micro_batch_tokens=256)
    for method in ("prefix", "prompt", "ia3"):
        engine = TrainEngine(trainable(method=method), OptimizerSpec(), world)
        assert engine.sharded
        metrics = engine.step(mine, sft, RATES[method])
        found[method] = {"loss": metrics["loss"], "gradNorm": metrics["gradNorm"]}, engine.adapter()
    if world.rank == 0:
        torch.save(found, file)


def test_two_sharded_ranks_give_the_step_of_one(tmp_path: Path) -> None:
    run_ranks(_two_ranks, str(tmp_path / "rank0.pt"))
    for method, (metrics, adapter) in torch.load(tmp_path / "rank0.pt", weights_only=True).items():
        engine = TrainEngine(trainable(method=method), OptimizerSpec(), ALONE)
        alone = engine.step(batches(), sft, RATES[method])
        assert metrics["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert metrics["gradNorm"] == pytest.approx(alone["gradNorm"], rel=1e-3)
        for name, tensor in engine.adapter().items():
            changed = (tensor - adapter[name]).abs() > 1e-3  # AdamW's first step is as large whatever the gradient
            assert changed.float().mean() < 0.01, name
