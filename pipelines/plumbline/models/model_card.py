"""The README.md of an exported model: what it is, how to load it, how it was made. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from plumbline import __version__
from plumbline.api.base import ArtifactType
from plumbline.artifacts import Artifact


@dataclass(frozen=True)
class Facts:
    """What a model card tells.

    Attributes:
        run, stage: that made the model.
        folder: name of the folder.
        base, revision: of the base model.
        dtype: of the weights.
        members: the artifact and what it was made from, the oldest first.
        reward: of a reward model, mean and standard deviation of its rewards, and `maxLength` in tokens.
        padding: of a reward model, its padding token.
    """

    run: str
    stage: str
    folder: str
    base: str
    revision: str | None
    dtype: str
    members: list[Artifact]
    reward: dict[str, Any] | None = None
    padding: str = ""


def model_card(facts: Facts, adapters: list[Facts] | None = None) -> str:
    """Markdown with a head that model hubs read.

    Args:
        facts: of the model, or of the first adapter's.
        adapters: of each adapter, where they lie beside the base.
    """
    hub, _, named = facts.base.removeprefix("hf://").partition("@")
    head = ["library_name: transformers", f"pipeline_tag: {'text-classification' if facts.reward else 'text-generation'}"]
    if facts.base.startswith("hf://"):
        head.append(f"base_model: {hub}")
    commit = facts.revision or named
    base = f"`{facts.base}`" + (f" (commit {commit})" if commit else "")
    title = facts.run if adapters else f"{facts.run}, {facts.stage}"
    if adapters:
        what = f"The base {base} in {facts.dtype}, and adapters of the run `{facts.run}` beside it."
    elif facts.reward:
        what = (
            f"The reward model that the stage `{facts.stage}` of the run `{facts.run}` has made of {base}, in {facts.dtype}."
        )
    else:
        what = f"What the stage `{facts.stage}` of the run `{facts.run}` has made of {base}, in {facts.dtype}. Adapters are merged in."
    parts = [
        "---\n" + "\n".join([*head, "tags: [plumbline]"]) + "\n---",
        f"# {title}",
        what + f" Exported by Plumbline {__version__}.",
        _use(facts, adapters),
        "## How it was made",
        *[table for one in adapters or [facts] for table in _made(one, titled=bool(adapters))],
    ]
    return "\n\n".join(parts) + "\n"


def _use(facts: Facts, adapters: list[Facts] | None) -> str:
    folder = facts.folder
    if facts.reward:
        mean, std = facts.reward["mean"], facts.reward["std"]
        return f"""```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSequenceClassification.from_pretrained("{folder}")
chat = [{{"role": "user", "content": "What is 2 + 2?"}}, {{"role": "assistant", "content": "4"}}]
reward = model(**tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")).logits[0, 0]
normalised = (reward - {mean!r}) / {std!r}
```

The chat ends with the answer to be judged and has at most {facts.reward["maxLength"]} tokens. Normalised rewards of the answers that it was
trained on have mean 0 and standard deviation 1. Batches are padded with `{facts.padding}`, since the reward is read at the last token that is no
padding."""
    if adapters:
        return f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{folder}")
model = PeftModel.from_pretrained(base, "{folder}/adapters/{facts.stage}")
tokenizer = AutoTokenizer.from_pretrained("{folder}/adapters/{facts.stage}")
```"""
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
chat = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "What is 2 + 2?"}}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
print(tokenizer.decode(model.generate(**chat)[0]))
```"""


def _made(facts: Facts, titled: bool) -> list[str]:
    rows = ["| stage | kind | makes | fingerprint | measured |", "|---|---|---|---|---|"]
    sources: list[str] = []
    for artifact in facts.members:
        manifest = artifact.manifest
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in sorted(artifact.metrics.items()) if _is_number(value))
        rows.append(
            f"| {manifest['stage']} | {manifest['kind']} | {artifact.type.value} | `{artifact.fingerprint}` | {numbers or '–'} |"
        )
        if artifact.type in (ArtifactType.DATASET, ArtifactType.PREFERENCE_DATASET):
            sources += [_source(source) for source in manifest["lineage"]["sources"] if "uri" in source]
    found = ([f"### adapters/{facts.stage}"] if titled else []) + ["\n".join(rows)]
    if sources:
        found.append("Data: " + "; ".join(dict.fromkeys(sources)) + ".")
    return found


def _source(source: dict[str, Any]) -> str:
    return f"`{source['uri']}`" + (f" ({source['rows']:,} rows)" if "rows" in source else "")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
