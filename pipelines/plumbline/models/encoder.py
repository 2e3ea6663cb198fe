"""Encoders (BERT's kind), which make one vector of a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plumbline.errors import InvalidInput, one_line
from plumbline.models.reference import ModelReference

if TYPE_CHECKING:  # imported where they are used: filters of data need no more than `input_length`
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "cls"]

# Positions of RoBERTa and its kin begin after the padding's id: 514 are for 512 tokens.
_COUNTED_FROM_PADDING = frozenset(
    {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "esm"}
)
_STEPS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers, by their classes
_LONGEST = 2**20  # tokens, where a model has no positions to count


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Attributes:
        tokenizer: with a token to pad with.
        model: in evaluation mode.
        pooling: what becomes of the last layer's states: their mean over the text's tokens (Sentence-BERT, arXiv 1908.10084),
            or that of the first token, if the model's folder says so.
        max_length: tokens of the longest text.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    pooling: Pooling
    max_length: int

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.model.config.hidden_size)

    def embed(self, texts: list[tuple[int, ...]]) -> Tensor:
        """[texts, width] float32 vectors of length 1 on the CPU, of token lists; however they are batched, up to rounding."""
        import torch

        padded = self.tokenizer.pad({"input_ids": [list(text) for text in texts]}, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            states = self.model(**padded).last_hidden_state.float()
            if self.pooling == "cls":
                pooled = states[:, 0]
            else:
                weights = padded["attention_mask"][..., None].float()
                pooled = (states * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(pooled, dim=-1).cpu()


def is_encoder(reference: ModelReference) -> bool:
    """Whether the model's `config.json` is one of an encoder alone: it fills gaps in texts and does not continue them."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    from plumbline.models.load import base_folder

    config = _config(reference.weights_folder() or base_folder(reference.base, reference.revision, weights=False))
    generates = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or ())
    decodes = generates or config.get("is_decoder") or config.get("is_encoder_decoder")
    return config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes


def load_encoder(reference: ModelReference) -> Encoder:
    """The encoder; safetensors only, no code of its repository.

    Raises:
        InvalidInput: it cannot be loaded, or its vectors are made in a way that is not known here.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from plumbline.models.load import model_folder, torch_dtype

    name = f"spec.model.base: '{reference.base}'"
    if reference.adapter_folder() is not None:
        raise InvalidInput(f"{name} is an encoder, and adapters on encoders cannot be served; serve the base")
    folder = model_folder(reference)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loaded = AutoModel.from_pretrained(
            folder,
            dtype=torch_dtype(reference.dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers and safetensors pass on what their parsers raise
        raise InvalidInput(f"{name} cannot be loaded as an encoder: {one_line(error)}") from error
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler."))  # which is not used
    if missing:
        raise InvalidInput(f"{name}: its weights lack {missing[0]} ({len(missing)} such); give a whole model")
    if tokenizer.pad_token_id is None:
        raise InvalidInput(f"{name}: its tokenizer has no token to pad with; give it a pad token")
    longest = min(_LONGEST, int(tokenizer.model_max_length))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Encoder(tokenizer, model.eval().to(device), _pooling(folder, name), input_length(model.config, longest))


def input_length(config: PretrainedConfig, most: int) -> int:
    """Tokens that a model can read at once, at most `most`."""
    config = config.get_text_config()
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return most
    if config.model_type in _COUNTED_FROM_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    return min(most, positions)


def _config(folder: Path) -> dict[str, Any]:
    found = _read_json(folder / "config.json")
    return found if isinstance(found, dict) else {}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} cannot be read: {one_line(error)}") from error


def _pooling(folder: Path, name: str) -> Pooling:
    """As sentence-transformers writes it beside its models; the mean where nothing is said."""
    listed = folder / "modules.json"
    found = _read_json(listed) if listed.exists() else []
    steps = [str(step.get("type")).rpartition(".")[2] for step in found if isinstance(step, dict)]
    unknown = [step for step in steps if step not in _STEPS]
    if unknown:
        raise InvalidInput(f"{name} makes its vectors by {unknown[0]}; only {', '.join(_STEPS)} are known")
    file = folder / "1_Pooling" / "config.json"
    if not file.exists():
        return "mean"
    modes = sorted(key for key, on in _config(file.parent).items() if key.startswith("pooling_mode_") and on is True)
    known: dict[tuple[str, ...], Pooling] = {("pooling_mode_mean_tokens",): "mean", ("pooling_mode_cls_token",): "cls"}
    if tuple(modes) not in known:
        raise InvalidInput(
            f"{name} pools by {', '.join(modes) or 'nothing'}; only one of {' and '.join(key for (key,) in known)} is known"
        )
    return known[tuple(modes)]
