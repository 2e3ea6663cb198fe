"""A finished model → a folder in plain Hugging Face form, which loads where neither Plumbline nor PEFT is installed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from plumbline.api.base import ArtifactType
from plumbline.artifacts import Artifact
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.lineage import family
from plumbline.models.load import (
    base_folder,
    end_tokens,
    has_virtual_tokens,
    load_base,
    load_merged,
    load_tokenizer,
    model_folder,
    stands_on,
)
from plumbline.models.model_card import Facts, model_card
from plumbline.models.reference import HEAD, HEAD_FILE, ModelReference
from plumbline.plan import Plan

SHARD = "5GB"
ADAPTERS = "adapters"
TOLERANCE = 1e-3  # of a reward, in standard deviations of all rewards


@dataclass(frozen=True)
class Finished:
    """A stage that has made a model.

    Attributes:
        plan: in which the stage is.
        stage: its name.
        artifact: what it has made.
    """

    plan: Plan
    stage: str
    artifact: Artifact

    @classmethod
    def of(cls, plan: Plan, stage: str) -> Finished:
        """The stage of a plan.

        Raises:
            InvalidInput: it makes no model.
            PlumblineError: it is not done.
        """
        node = plan.graph[stage]
        if node.output not in (ArtifactType.MODEL, ArtifactType.REWARD_MODEL):
            models = [n.name for n in plan.graph.nodes if n.output in (ArtifactType.MODEL, ArtifactType.REWARD_MODEL)]
            raise InvalidInput(
                f"stage '{stage}' makes a {node.output.value}, and only models are exported"
                + (f"; it is made from: {', '.join(models)}" if models else "")
            )
        artifact = plan.artifact(stage)
        if artifact is None:
            raise PlumblineError(
                f"stage '{stage}' is not done in {plan.workspace_uri} as the run file has it now; `plumbline run` with "
                f"--until {stage} does it"
            )
        return cls(plan, stage, artifact)

    @property
    def reference(self) -> ModelReference:
        """In float32, in which adapters are merged."""
        return replace(ModelReference.of(self.plan, self.artifact), dtype="float32")

    @property
    def rewards(self) -> bool:
        return self.artifact.type == ArtifactType.REWARD_MODEL

    def facts(self, to: Path, dtype: torch.dtype) -> Facts:
        """What the model card says."""
        reference = self.reference
        members = family([self.artifact], self.plan.workspace)
        return Facts(
            run=self.plan.name,
            stage=self.stage,
            folder=to.name,
            base=reference.base,
            revision=reference.revision,
            dtype=_name(dtype),
            members=[member.artifact for member in members if member.artifact is not None],
        )


def export_merged(model: Finished, to: Path, dtype: str | None = None) -> int:
    """Write the model with its adapter merged into the weights; a reward model as a sequence classifier of one number.

    Args:
        model: a finished stage.
        to: a folder that is not there or empty.
        dtype: of the weights: `float32`, `bfloat16` or `float16`; None: as the base's files have them.

    Returns:
        How many parameters it has.

    Raises:
        InvalidInput: the folder holds something, or the adapter cannot be merged.
        PlumblineError: there is not enough room.
    """
    with appearing(to) as folder:
        reference = model.reference
        if has_virtual_tokens(reference):
            raise InvalidInput(
                f"stage '{model.stage}' has trained virtual tokens, which stand before the text and cannot be merged into weights; "
                + ("a reward model of this kind can be asked by later stages only" if model.rewards else "add --adapters")
            )
        kind = _stored_as(reference, dtype)
        merged, tokenizer = load_merged(reference), load_tokenizer(reference)
        facts = model.facts(to, kind)
        if model.rewards:
            merged = _classifier(model, merged, tokenizer)
            facts = replace(facts, reward=model.artifact.details["reward"], padding=str(tokenizer.pad_token))
        _save(merged, tokenizer, folder, kind)
        (folder / "README.md").write_text(model_card(facts), "utf-8")
        return merged.num_parameters()


def export_adapters(models: list[Finished], to: Path, dtype: str | None = None) -> int:
    """Write the base, and below it the adapter and the tokenizer of each model: `adapters/STAGE/`, in PEFT's form.

    Args:
        models: finished stages whose adapters stand on one base.
        to, dtype: as for `export_merged`; adapters stay in float32.

    Returns:
        How many parameters the base has.

    Raises:
        InvalidInput: the folder holds something, a model has no adapter, or they stand on different bases.
        PlumblineError: there is not enough room.
    """
    with appearing(to) as folder:
        first = models[0]
        for model in models:
            if model.rewards:
                raise InvalidInput(
                    f"stage '{model.stage}' has made a reward model, whose head is no part of an adapter; leave --adapters out"
                )
            if model.reference.adapter_folder() is None:
                raise InvalidInput(f"stage '{model.stage}' has no adapter; leave --adapters out")
            if stands_on(model.reference) != stands_on(first.reference):
                raise InvalidInput(
                    f"'{first.stage}' and '{model.stage}' stand on different weights or embedding rows, so one base cannot carry "
                    "both; export them into a folder each"
                )
        reference = first.reference
        kind = _stored_as(reference, dtype)
        base = load_base(reference)
        unchanged = reference.embeddings_file() is None and reference.weights_folder() is None
        below = ModelReference(reference.base, reference.revision) if unchanged else reference
        _save(base, load_tokenizer(below), folder, kind)
        hub = reference.base.removeprefix("hf://").partition("@")[0] if reference.base.startswith("hf://") else None
        for model in models:
            source, target = model.reference.adapter_folder(), folder / ADAPTERS / model.stage
            assert source is not None
            load_tokenizer(model.reference).save_pretrained(str(target))
            shutil.copyfile(source / "adapter_model.safetensors", target / "adapter_model.safetensors")
            config: dict[str, Any] = json.loads((source / "adapter_config.json").read_text())
            if unchanged and hub is not None:
                config |= {"base_model_name_or_path": hub, "revision": reference.revision}
            else:
                config |= {"base_model_name_or_path": str(to), "revision": None}
            (target / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
        facts = [model.facts(to, kind) for model in models]
        (folder / "README.md").write_text(model_card(facts[0], facts), "utf-8")
        return base.num_parameters()


@contextmanager
def appearing(to: Path) -> Iterator[Path]:
    """A hidden folder beside `to`, which takes its place when the block ends well; else nothing is left."""
    parent = to.parent
    try:
        check_free(to)
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f".{to.name}.export-*"):  # of an export that was killed
            with _locked(left) as ours:
                if ours:
                    shutil.rmtree(left, ignore_errors=True)
        folder = parent / f".{to.name}.export-{uuid.uuid4().hex}"
        folder.mkdir()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InvalidInput(f"--to {to}: cannot be written to: {error.strerror} ({error.filename})") from error
    with _locked(folder):
        try:
            yield folder
            check_free(to)
            folder.rename(to)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_free(to: Path) -> None:
    """Refuse a place where something is.

    Raises:
        InvalidInput: it is a file, or a folder that is not empty.
    """
    if to.exists() and not to.is_dir():
        raise InvalidInput(f"--to {to}: is a file; give a folder that is not there yet")
    if to.exists() and any(to.iterdir()):
        raise InvalidInput(f"--to {to}: is not empty; give a folder that is not there yet")
    if to.is_mount():
        raise InvalidInput(f"--to {to}: is a mount point, which no finished folder can be moved to; give a folder below it")


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock; False where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _stored_as(reference: ModelReference, dtype: str | None) -> torch.dtype:
    """The asked dtype, or that of the base's files."""
    if dtype is not None:
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    config = AutoConfig.from_pretrained(
        base_folder(reference.base, reference.revision, weights=False), trust_remote_code=False
    )
    said = config.dtype or config.get_text_config().dtype
    if said is not None:
        return said if isinstance(said, torch.dtype) else getattr(torch, said)  # type: ignore[no-any-return]
    with safe_open(sorted(model_folder(reference).glob("*.safetensors"))[0], "pt") as tensors:
        kinds = (tensors.get_tensor(name).dtype for name in tensors.keys())  # noqa: SIM118 - it is no mapping
        return next((kind for kind in kinds if kind.is_floating_point), torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Configuration, settings of generation, weights in shards, tokenizer with chat template."""
    model = model.to(dtype)  # type: ignore[arg-type]
    size, room = model.get_memory_footprint(), shutil.disk_usage(folder).free
    if size > room:
        raise PlumblineError(
            f"the weights take {size / 1e9:.3g} GB, and {folder.parent} has {room / 1e9:.3g} GB free; make room or give another folder"
        )
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        settings = deepcopy(settings)
        settings.eos_token_id = end_tokens(tokenizer, model)  # answers end where those of the endpoint do
        if settings.pad_token_id is None:
            settings.pad_token_id = tokenizer.pad_token_id
        model.generation_config = GenerationConfig()  # transformers refuses to save settings that many bases have
    model.save_pretrained(str(folder), max_shard_size=SHARD)
    if settings is not None:
        settings.to_json_file(str(folder / "generation_config.json"))
    tokenizer.save_pretrained(str(folder))


def _classifier(model: Finished, causal: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The reward model as Transformers has them: a sequence classifier whose one logit is the reward, not normalised.

    The classifier reads the last token that is no padding. Where the padding token also ends answers, as in many chat models, that
    would be another one; the tokenizer gets a padding token that is not.

    Raises:
        InvalidInput: Transformers has no classifier of this kind that gives the same rewards.
    """
    kind = causal.config.model_type
    head = load_file(model.artifact.local() / HEAD_FILE)[HEAD]
    config = deepcopy(causal.config)
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    tokenizer.pad_token, tokenizer.padding_side = _padding(tokenizer, model.stage), "right"
    config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_token_id
    refused = InvalidInput(
        f"stage '{model.stage}': Transformers has no reward model (sequence classifier) for {kind} that gives its rewards"
    )
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError as error:  # Transformers knows no classifier of this kind
        raise refused from error
    score, body = getattr(classifier, "score", None), classifier.base_model_prefix
    if (
        type(score) is not nn.Linear
        or score.bias is not None
        or type(getattr(classifier, body)) is not type(causal.base_model)
    ):
        raise refused
    setattr(classifier, body, causal.base_model)
    classifier.score = nn.Linear(*reversed(head.shape), bias=False)
    classifier.score.weight.data.copy_(head)
    if not _agree(classifier.eval(), causal, head, tokenizer, float(model.artifact.details["reward"]["std"])):
        raise refused
    return classifier


def _padding(tokenizer: PreTrainedTokenizerBase, stage: str) -> str:
    """A token that is never the last of a chat."""
    chats = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}] for answer in ("Yes.", "12")]
    last = {tokenizer.convert_ids_to_tokens(_ids(tokenizer, chat)[-1]) for chat in chats}
    named = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
    known = tokenizer.get_added_vocab()
    for token in [*named, *sorted(known, key=lambda token: known[token])]:
        if token is not None and token not in last:
            return str(token)
    raise InvalidInput(
        f"stage '{stage}': every special token of the tokenizer can end an answer, so a sequence classifier would take the reward at "
        "another place; ask the model through Plumbline"
    )


def _ids(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> list[int]:
    return list(tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"])


@torch.no_grad()
def _agree(
    classifier: PreTrainedModel, causal: PreTrainedModel, head: torch.Tensor, tokenizer: PreTrainedTokenizerBase, std: float
) -> bool:
    """Whether the classifier's logits, of a padded batch, are the head's numbers of the last tokens."""
    answers = ("Yes.", "No, that is another matter altogether.")
    texts = [_ids(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]) for text in answers]
    batch = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    found = classifier(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0]
    states = [causal.get_decoder()(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1] for ids in texts]
    return bool(torch.allclose(found, torch.stack(states).float() @ head[0].float(), rtol=0, atol=TOLERANCE * std))
