"""`normalise` of `curate`: what is repaired in rows of every format."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plumbline.api.base import PositiveInt, SpecModel, validated_by


class NormaliseSpec(SpecModel):
    """Repairs beyond what every row gets: Unicode NFC, plain newlines, alternating roles, no empty turn."""

    model_config = validated_by(
        ("has(self.systemText) == (self.system in ['fill', 'replace'])", "systemText goes with system: fill or replace")
    )

    system: Literal["keep", "drop", "fill", "replace"] = "keep"
    """System prompts: `fill` sets systemText where a row has none, `replace` in every row."""
    system_text: str | None = Field(default=None, min_length=1, max_length=4000)
    """The system prompt of `fill` and `replace`."""
    html: Literal["keep", "markdown"] = "keep"
    """Answers that are HTML throughout: `markdown` converts them; those of ShareGPT's format always are, as FastChat did."""
    run_on: Literal["cut", "drop", "keep"] = "cut"
    """Answers that run on into the next generated task ("6. Instruction: …", as some of Alpaca's): `cut` keeps what is before."""
    cut_off: Literal["mark", "drop", "keep"] = "mark"
    """Answers that seem to stop within a sentence. A guess, so `mark` only notes the operation `cut off` in the row."""
    placeholders: dict[str, Annotated[str, Field(max_length=1000)]] = Field(default={}, max_length=64)
    """Values for `{{name}}` in texts, such as name and author of the model."""
    unfilled: Literal["drop", "keep"] = "drop"
    """Rows in which a `{{name}}` is left outside code."""
    max_tokens: PositiveInt | None = None
    """Split chats of more tokens, as the run's tokenizer and chat template count, between exchanges; preferences of
    more are dropped, and text stays. Unset: nothing is split, and training cuts what is too long."""
    refuse_licences: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default=[], max_length=64)
    """Drop rows whose licence fits one of these globs; case, spaces and hyphens do not matter. `*-nc*` refuses
    non-commercial ones, `unknown` those that state none."""

    def problems(self) -> list[tuple[str, str]]:
        """(field below this block, sentence) for each contradiction."""
        needs = self.system in ("fill", "replace")
        if needs and self.system_text is None:
            return [("systemText", f"system: {self.system} needs the text")]
        if not needs and self.system_text is not None:
            return [("systemText", f"not used with system: {self.system}; set system: fill or replace, or leave it out")]
        return []
