"""vLLM built for rollouts and for serving, and taken only where it agrees with the model."""

from __future__ import annotations

import copy
import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from plumbline.errors import InvalidInput, PlumblineError, one_line
from plumbline.models.load import end_tokens, has_virtual_tokens, load_base, load_merged, load_tokenizer, model_folder
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import NO_ADAPTER
from plumbline.rollout.probe import disagreement
from plumbline.rollout.vllm import VllmEngine, largest_rank

SERVED_SHARE = 0.8  # of the free memory of a GPU; scoring takes some beside what vLLM counts on


def build_vllm(
    reference: ModelReference, adapter_config: LoraConfig | None, slots: int, *, max_length: int, device: str
) -> VllmEngine:
    """vLLM on a model's base, if its log-probabilities agree with the model's own: with an adapter, where there will be any.

    Args:
        reference: the model.
        adapter_config: configuration of the adapters to come; None if there will be none.
        slots: requests worked on at the same time.
        max_length: longest prompt and answer together, in tokens.
        device: `cpu` or `cuda`, what the caller may use.

    Raises:
        InvalidInput: vLLM is not there, is built for another device, or does not run this model or adapter as it should.
    """
    largest_rank(adapter_config)
    _prepare("rollout.engine", device)
    model = load_base(reference)  # on the CPU, so that the GPU is vLLM's alone
    as_it_lies = reference.embeddings_file() is None
    return _proven("rollout.engine", reference, model, as_it_lies, adapter_config, slots, max_length)


def build_served_vllm(
    reference: ModelReference, slots: int, *, device: str, share: float = 1.0, cpu_bytes: int | None = None
) -> VllmEngine:
    """vLLM on a model with its adapter merged, as any other engine has it, if its log-probabilities agree with the model's own.

    Args:
        reference: the model.
        slots: requests worked on at the same time.
        device: see `build_vllm`.
        share: part of the memory of a GPU that keys and values may take.
        cpu_bytes: see `VllmEngine`.

    Raises:
        InvalidInput: as `build_vllm` says; or the model's adapter is virtual tokens.
    """
    if has_virtual_tokens(reference):
        raise InvalidInput("serve.engine: vLLM does not know adapters of virtual tokens; set serve.engine: auto")
    _prepare("serve.engine", device)
    model = load_merged(reference)
    as_it_lies = reference.embeddings_file() is None and reference.adapter_folder() is None
    gpu_share = None
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        weights = sum(parameter.nbytes for parameter in model.parameters())
        gpu_share = (weights + share * max(SERVED_SHARE * free - weights, 0)) / total
    return _proven("serve.engine", reference, model, as_it_lies, None, slots, None, cpu_bytes=cpu_bytes, gpu_share=gpu_share)


def _prepare(field: str, device: str) -> None:
    """Make vLLM ready to be imported, and see that it can be used.

    Raises:
        InvalidInput: it is not there, or is built for another device.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would tell its makers about this machine
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise InvalidInput(
            f"{field}: vllm cannot be imported where the engine runs ({one_line(error)}); pip install "
            f"'plumbline[vllm]' there, or set {field}: auto"
        ) from error
    if current_platform.device_type != device:
        built_for = current_platform.device_type or "a device that is not here"
        raise InvalidInput(
            f"{field}: this vllm is built for {built_for}, and the engine has a {device}; "
            f"give each engine a GPU, or set {field}: auto"
        )


def _proven(
    field: str,
    reference: ModelReference,
    model: PreTrainedModel,
    as_it_lies: bool,
    adapter_config: LoraConfig | None,
    slots: int,
    max_length: int | None,
    **memory: Any,
) -> VllmEngine:
    """An engine that agrees with the model.

    Args:
        field: that asks for vLLM.
        reference: where the model comes from.
        model: the same; not kept.
        as_it_lies: it is what its folder holds. Else vLLM gets a copy of it to read.
        adapter_config, slots, max_length, memory: see `VllmEngine`.

    Raises:
        InvalidInput: vLLM does not run it as it should.
    """
    with ExitStack() as until_loaded:
        folder = model_folder(reference)
        if not as_it_lies:
            folder = Path(until_loaded.enter_context(TemporaryDirectory(prefix="plumbline-model-")))
            model.save_pretrained(folder)
        try:
            end = end_tokens(load_tokenizer(reference), model)
            engine = VllmEngine(folder, model, adapter_config, end, slots, max_length, **memory)
            reason = _disagreement(engine, model, adapter_config)
        except (PlumblineError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # any model may come here, and what it does not fit fails in ways of its own
            reason = f"vLLM does not run it ({type(error).__name__}: {one_line(error)})"
    if reason is not None:
        raise InvalidInput(f"{field}: {type(model).__name__}: {reason}; set {field}: auto")
    return engine


def _disagreement(engine: VllmEngine, model: PreTrainedModel, adapter_config: LoraConfig | None) -> str | None:
    """Compare answers to prompts of several lengths, drawn together, with the model's own log-probabilities of them.

    Args:
        engine: idle; it has the bare base afterwards.
        model: the base, which has an adapter afterwards.
        adapter_config: configuration of the adapters to come.
    """
    scored: Any = model
    if adapter_config is not None:
        scored, tensors = _adapted(model, adapter_config)
        engine.load_adapter(tensors, 0)
    reason = disagreement(engine, scored, "vLLM")
    if adapter_config is not None:
        engine.load_adapter({}, NO_ADAPTER)
    return reason


@torch.no_grad()
def _adapted(model: PreTrainedModel, config: LoraConfig) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model with a random adapter that changes each weight by a fifth of its length, and that adapter's tensors."""
    config = copy.deepcopy(config)
    config.init_lora_weights = False
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        adapted = get_peft_model(model, config).eval()
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            change = layer.get_delta_weight("default").norm()
            layer.lora_B["default"].weight *= 0.2 * layer.get_base_layer().weight.norm() / change
    return adapted, get_peft_model_state_dict(adapted, save_embedding_layers=False)
