"""More tokens: encodings become shorter and mean the same; rows begin as means and can be trained alone or with an adapter."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from plumbline.api.crd import render
from plumbline.api.stages.extend_tokenizer import ExtendTokenizerSpec
from plumbline.api.stages.sft import EmbeddingsSpec, SftSpec
from plumbline.api.stages.training import OptimizerSpec, ParallelismSpec
from plumbline.artifacts import ArtifactCorrupt
from plumbline.builtin import skills
from plumbline.errors import InvalidInput
from plumbline.external import TINY, tiny_folder
from plumbline.models.corpus import TEXT, gather
from plumbline.models.embeddings import Embeddings, with_new_rows
from plumbline.models.extend import BATCH, batches, extend, unknown_id
from plumbline.models.fertility import fertility, total
from plumbline.models.load import load_base
from plumbline.models.reference import ModelReference
from plumbline.stages.extend_tokenizer import _lines
from plumbline.training.batch import Sequence, collate
from plumbline.training.embeddings import trained_embeddings
from plumbline.training.engine import TrainEngine
from plumbline.training.model import build_trainable
from plumbline.training.objectives.sft import sft
from plumbline.training.world import World
from support.ports import free_port

TRICKY = [
    "hello, world 12345 and\tdef f(x):\n    return x ** 2  # 注释\n",
    "表情😀👩‍👩‍👧‍👦与Ａ全角，é é ﬁ",
    "<|user|>问题<|assistant|>回答<|end|>",
    "  two  spaces, trailing ",
    "नमस्ते دنیا می‌شود \u0000\u200b",
]
ENGLISH = [task.prompt for task in skills.tasks(400, split="train", seed=3)] + [
    "the letters of a word and the sum of numbers"
]


def chinese(count: int, seed: int) -> list[str]:
    """Sentences of made-up words of Chinese characters, some far more frequent than others."""
    rng = random.Random(seed)
    characters = [chr(0x4E00 + 37 * i) for i in range(120)]
    words = ["".join(rng.choices(characters, k=rng.choice((1, 2, 2, 3)))) for _ in range(80)]
    return [
        "，".join("".join(rng.choices(words, range(80, 0, -1), k=6)) for _ in range(3)) + "。" + str(rng.random())
        for _ in range(count)
    ]


def byte_level() -> dict[str, Any]:
    return json.loads((tiny_folder() / "tokenizer.json").read_text())


def with_late_specials() -> dict[str, Any]:
    """Special tokens behind the vocabulary, as Llama 3 and Qwen have them, and words that are tokens taken whole."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(ENGLISH, trainer)
    tokenizer.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>"])
    return json.loads(tokenizer.to_str())


def sentencepiece_bpe() -> dict[str, Any]:
    """Llama 2's kind: ▁ for spaces, no pre-tokenizer, bytes for characters that it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    specials = ["<unk>", "<|end|>", "<|user|>", "<|assistant|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(ENGLISH, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["id"] < 4]
    return definition


def unigram() -> dict[str, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([*ENGLISH, *("".join(chinese(1, seed)) for seed in range(3))], trainer)
    tokenizer.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>"])
    return json.loads(tokenizer.to_str())


BPES = [byte_level, with_late_specials, sentencepiece_bpe]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", [*BPES, unigram])
def test_an_encoding_is_the_old_one_with_pieces_drawn_together(kind: Callable[[], dict[str, Any]]) -> None:
    definition, texts = kind(), chinese(300, seed=1)
    old = Tokenizer.from_str(json.dumps(definition))
    made = extend(definition, texts, 150, 0.98, 16)
    new = Tokenizer.from_str(json.dumps(made.definition))
    assert len(made.parts) == 150
    assert 0 < made.characters < 150
    assert made.first == old.get_vocab_size(with_added_tokens=True)
    assert unknown_id(definition) == {byte_level: None, with_late_specials: None}.get(kind, 0)
    shorter = 0
    for text in [*texts[:50], *chinese(50, seed=2), *TRICKY, *ENGLISH[:50]]:
        before, after = ids_of(old, text), ids_of(new, text)
        expanded = [part for i in after for part in (made.parts[i - made.first] if i >= made.first else (i,))]
        if kind is not unigram:
            assert expanded == before, text
        if unknown_id(definition) not in before:  # what is unknown is lost in the old encoding
            assert new.decode(after) == old.decode(before)
        if max(after) < made.first:
            assert after == before
        # Unknown characters in a row are one token before.
        shorter += len(after) < 0.7 * (len(text) if kind is unigram else len(before))
    assert shorter >= 50
    for name in ("<|end|>", "<|user|>", "<|assistant|>"):
        assert new.token_to_id(name) == old.token_to_id(name)
        assert ids_of(new, f"a{name}") == ids_of(old, f"a{name}")


@pytest.mark.parametrize("kind", [*BPES, unigram])
def test_every_new_token_can_come_out_of_a_text(kind: Callable[[], dict[str, Any]]) -> None:
    """Merges that no encoding ever applies would waste rows of the embeddings."""
    texts = chinese(300, seed=5)
    made = extend(kind(), texts, 150, 0.98, 16)
    new = Tokenizer.from_str(json.dumps(made.definition))
    alone = [i for i in range(made.first, made.first + 150) if new.decode([i]).strip() and "\ufffd" not in new.decode([i])]
    assert len(alone) > 75
    reached = sum(i in ids_of(new, "a" + new.decode([i]).strip() + "a") or i in ids_of(new, new.decode([i])) for i in alone)
    assert reached == len(alone)


def test_tokens_are_letters_of_bounded_length_and_digits_stay_single() -> None:
    texts = ["编程语言" * 12 + f"，价格{i % 10}23元！" for i in range(200)]
    made = extend(byte_level(), texts, 500, 1.0, 4)
    new = Tokenizer.from_str(json.dumps(made.definition))
    shown = [new.decode([made.first + i]) for i in range(made.characters, len(made.parts))]
    assert {"编程语言", "价格"} <= set(shown)
    assert all(word.isalpha() and len(word) <= 4 for word in shown)
    assert [new.decode([i]) for i in ids_of(new, "价格123")[1:]][-3:] == ["1", "2", "3"]
    assert len(made.parts) < 500, "there is no more to learn"


def test_the_same_texts_give_the_same_tokens_and_fewer_give_a_beginning() -> None:
    texts = chinese(200, seed=7)
    made, again = (extend(byte_level(), texts, 120, 0.9, 16) for _ in range(2))
    assert made == again
    fewer = extend(byte_level(), texts, 60, 0.9, 16)
    assert fewer.parts[:57] == made.parts[:57], "the last place may be too few for a character's bytes"


def test_extending_twice(shared: Path) -> None:
    first = extend(byte_level(), chinese(200, seed=1), 80, 0.95, 16)
    texts = real_texts(shared)[:100]
    second = extend(first.definition, texts, 80, 0.95, 16)
    one, two = (Tokenizer.from_str(json.dumps(made.definition)) for made in (first, second))
    assert second.first == first.first + 80
    for text in texts[:30]:
        after = ids_of(two, text)
        expanded = [part for i in after for part in (second.parts[i - second.first] if i >= second.first else (i,))]
        assert expanded == ids_of(one, text)


def real_texts(shared: Path) -> list[str]:
    with gzip.open(shared / "alpaca_zh" / "alpaca_zh_00000_03252.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [record["instruction"] + record["output"] for record in map(json.loads, lines)]


def test_real_chinese_takes_far_fewer_tokens_a_character(shared: Path) -> None:
    texts = real_texts(shared)
    learn, held_out = texts[100:], texts[:100]
    made = extend(byte_level(), learn, 3000, 0.9995, 16)
    old, new = (Tokenizer.from_str(json.dumps(definition)) for definition in (byte_level(), made.definition))
    found = fertility(old, new, made.first, held_out)
    assert found.before.tokens / found.characters > 2.5
    assert found.after.tokens / found.characters < 1.0
    assert found.after.pieces < 0.1 * found.before.pieces
    assert found.after.tokens == sum(len(ids_of(new, text)) for text in held_out)
    assert found.new <= found.after.tokens
    assert 300 < len(found.used) <= 3000
    for text in held_out:
        assert new.decode(ids_of(new, text)) == old.decode(ids_of(old, text)) == text


GEORGIAN = ["ქართული", "ენა", "არის", "ერთი", "უძველესი", "ენათაგანი", "და", "მისი", "ანბანი", "თავისებურია"]


def georgian(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(GEORGIAN, k=8)) for _ in range(count)]


def with_pieces_across_characters() -> dict[str, Any]:
    """A byte-level vocabulary that saw a little Georgian: some pieces end within a letter, some begin with a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=268, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator([*georgian(20, seed=1), *ENGLISH[:2]], trainer)
    return json.loads(tokenizer.to_str())


@pytest.mark.parametrize("kind", [with_pieces_across_characters, sentencepiece_bpe, byte_level])
def test_words_take_in_the_space_before_them_and_letters_are_whole(kind: Callable[[], dict[str, Any]]) -> None:
    definition = kind()
    made = extend(definition, georgian(300, seed=2), 300, 1.0, 16)
    old, new = (Tokenizer.from_str(json.dumps(each)) for each in (definition, made.definition))
    held_out = georgian(20, seed=3)
    found = fertility(old, new, made.first, held_out)
    assert found.before.pieces > 100
    assert found.after.pieces == 0
    assert found.after.tokens == 20 * 8, "one token a word, with its space"
    for text in held_out:
        after = ids_of(new, text)
        assert [part for i in after for part in (made.parts[i - made.first] if i >= made.first else (i,))] == ids_of(
            old, text
        )
        assert new.decode(after) == old.decode(ids_of(old, text))


@pytest.mark.parametrize("kind", BPES)
def test_joiners_do_not_break_words(kind: Callable[[], dict[str, Any]]) -> None:
    definition, texts = kind(), ["می\u200cخواهم و نمی\u200cخواهم"] * 40
    made = extend(definition, texts, 100, 1.0, 16)
    old, new = (Tokenizer.from_str(json.dumps(each)) for each in (definition, made.definition))
    found = fertility(old, new, made.first, texts[:1])
    assert found.after.pieces == 0
    if kind is sentencepiece_bpe:  # GPT-2's pattern cuts a word at the joiner
        assert found.after.tokens == 2 + 1


def test_a_normaliser_may_take_characters_apart() -> None:
    """NFC, as in Qwen, writes these letters as two."""
    definition = byte_level() | {"normalizer": {"type": "NFC"}}
    texts = ["\u0958\u095b \u095e\u0958"] * 30
    made = extend(definition, texts, 40, 1.0, 16)
    old, new = (Tokenizer.from_str(json.dumps(each)) for each in (definition, made.definition))
    assert fertility(old, new, made.first, texts).after.pieces == 0
    assert new.decode(ids_of(new, texts[0])) == old.decode(ids_of(old, texts[0]))


def test_older_files_write_merges_as_one_string() -> None:
    older = byte_level()
    older["model"]["merges"] = [" ".join(pair) for pair in older["model"]["merges"]]
    assert extend(older, chinese(50, seed=1), 20, 0.9, 16) == extend(byte_level(), chinese(50, seed=1), 20, 0.9, 16)


def test_texts_are_encoded_so_many_characters_at_a_time() -> None:
    """An encoding takes a hundred times the memory of its text."""
    texts = ["long" * 15_000, *(["short"] * 100_000), "long" * 100_000, "end"]
    found = list(batches(texts))
    assert [text for batch in found for text in batch] == texts
    assert all(len(batch) == 1 or sum(map(len, batch)) <= BATCH for batch in found)
    assert len(found) < 8


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    extend(byte_level(), chinese(50, seed=1), 100, 0.98, 16, lambda done, total: told.append((done, total)))
    assert len({total for _, total in told}) == 1
    assert [done for done, _ in told] == list(range(1, told[0][1] + 1))


def test_a_token_that_two_sources_use_counts_once() -> None:
    made = extend(byte_level(), chinese(100, seed=1), 60, 0.9, 16)
    old, new = (Tokenizer.from_str(json.dumps(each)) for each in (byte_level(), made.definition))
    halves = [fertility(old, new, made.first, chinese(20, seed=seed)) for seed in (1, 2)]
    both = fertility(old, new, made.first, chinese(20, seed=1) + chinese(20, seed=2))
    assert total(halves) == both


def test_other_kinds_are_refused_in_words() -> None:
    wordpiece = json.loads(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str())
    with pytest.raises(InvalidInput, match="a WordPiece tokenizer cannot be extended; BPE and Unigram tokenizers can"):
        extend(wordpiece, ["text"], 10, 1.0, 16)
    suffixed = byte_level()
    suffixed["model"]["end_of_word_suffix"] = "</w>"
    with pytest.raises(InvalidInput, match="end_of_word_suffix '</w>' cannot be extended"):
        extend(suffixed, ["text"], 10, 1.0, 16)
    gap = unigram()
    gap["added_tokens"][-1]["id"] += 5
    with pytest.raises(InvalidInput, match="are not taken"):
        extend(gap, ["text"], 10, 1.0, 16)


def test_lines_that_hold_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    context: Any = SimpleNamespace(input=lambda name: None)
    spec = ExtendTokenizerSpec(texts=[str(file)])
    for line, words in (("{", "broken JSON"), ('{"text": null}', "the record has no `text`"), ("[1]", "not an object")):
        file.write_text('{"text": "a\\nb"}\n' + line + "\n")
        with pytest.raises(InvalidInput, match=words) as caught:
            list(_lines(context, spec, "spec.stages[0].extendTokenizer"))
        assert str(caught.value).startswith(f"spec.stages[0].extendTokenizer.texts[0]: {file}:2: ")
        assert "name that stage as the dataset input" in str(caught.value)


def test_the_contract_says_the_bound_that_it_holds() -> None:
    stages = render()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["stages"]
    field = stages["items"]["properties"]["extendTokenizer"]["properties"]["maxCharacters"]
    assert field["minimum"] == 100_000
    assert "ge" not in field, "no word of OpenAPI: pydantic puts a second bound of a type beside the first"


def test_halves_of_surrogate_pairs_are_no_text() -> None:
    learn, held_out = gather([("a", f"\ud83d{i}") for i in range(50)], 0.2, 10**6)
    assert {text[0] for side in (learn, held_out) for text in side["a"]} == {"?"}


def test_texts_are_held_out_by_what_they_are() -> None:
    lines = (
        [("a", f"text {i % 900}") for i in range(1000)] + [("b", f"text {i}") for i in range(50)] + [("c", "x" * 3 * TEXT)]
    )
    learn, held_out = gather(lines, 0.2, 10**6)
    assert not {t for texts in learn.values() for t in texts} & {t for texts in held_out.values() for t in texts}
    assert 150 < len(held_out["a"]) < 250
    assert len(learn["a"]) + len(held_out["a"]) == 1000
    assert sum(len(side.get("c", [])) for side in (learn, held_out)) == 3
    fewer, _ = gather(reversed(lines), 0.2, 4000)
    assert 1000 < sum(len(t) for texts in fewer.values() for t in texts) <= 4000
    assert fewer["a"] == [t for t in reversed(learn["a"]) if t in set(fewer["a"])]


def small_model(tied: bool, rows: int) -> PreTrainedModel:
    torch.manual_seed(rows)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("rows", "after"), [(50, 56), (54, 56), (64, 64)])  # full; filled up a little; more than is needed
@torch.no_grad()
def test_new_rows_are_means_and_old_logits_stay(tied: bool, rows: int, after: int, tmp_path: Path) -> None:
    parts = [(1, 2), (3, 4, 5), (49, 49), (0, 1), (2, 3), (7, 8)]
    model, ids = small_model(tied, rows), torch.randint(0, 50, (2, 9))
    before = model(ids).logits
    table, head = model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()
    made = with_new_rows(model, None, 50, parts)
    made.save(tmp_path / "embeddings.safetensors")
    read = Embeddings.load(tmp_path / "embeddings.safetensors")
    assert (read.first, read.end, read.known, read.output is None) == (50, after, 50, tied)
    read.put_into(model, "here")
    assert model.config.vocab_size == after
    torch.testing.assert_close(model(ids).logits[..., :50], before[..., :50], atol=1e-6, rtol=1e-5)
    for i, pieces in enumerate(parts):
        torch.testing.assert_close(model.get_input_embeddings().weight[50 + i], table[list(pieces)].mean(0))
        torch.testing.assert_close(model.get_output_embeddings().weight[50 + i], head[list(pieces)].mean(0))
    assert torch.equal(model.get_input_embeddings().weight[56:], table[56:])
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    again = with_new_rows(model, read, 56, [(50, 51)])
    assert (again.first, again.end, again.known) == (50, max(after, 57), 50)
    torch.testing.assert_close(again.input[6], model.get_input_embeddings().weight[[50, 51]].mean(0))
    assert torch.equal(again.input[:6], read.input[:6])


def test_rows_of_another_model_are_refused(tmp_path: Path) -> None:
    made = with_new_rows(small_model(False, 50), None, 50, [(1, 2)])
    for wrong in (small_model(True, 50), small_model(False, 40)):
        with pytest.raises(InvalidInput, match=r"spec.model.base: the embedding rows 50 to 50 of width 32 do not fit"):
            made.put_into(wrong, "spec.model.base")
    biased = small_model(False, 50)
    biased.lm_head = torch.nn.Linear(32, 50)
    with pytest.raises(InvalidInput, match="cannot be extended or trained here"):
        made.put_into(biased, "spec.model.base")
    (tmp_path / "rows").write_bytes(b"not safetensors")
    with pytest.raises(ArtifactCorrupt, match="holds no embedding rows"):
        Embeddings.load(tmp_path / "rows")


class Extended(ModelReference):
    """The built-in model with 30 new tokens, as an artifact would bring them; `SAVED` says where."""

    def embeddings_file(self) -> Path:
        return Path(os.environ["SAVED"])

    def adapter_folder(self) -> None:
        return None


@pytest.fixture
def extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extended:
    monkeypatch.setenv("SAVED", str(tmp_path / "embeddings.safetensors"))
    base = load_base(ModelReference(TINY))
    parts = [(10 + i, 40 + i) for i in range(30)]
    with_new_rows(base, None, 522, parts).save(tmp_path / "embeddings.safetensors")
    return Extended(TINY)


def sequences(count: int, seed: int = 0) -> list[Sequence]:
    rng = random.Random(seed)
    return [
        Sequence([rng.randrange(540) for _ in range(length)], [True] * length)
        for length in rng.choices(range(5, 20), k=count)
    ]


def engine_of(reference: ModelReference, embeddings: EmbeddingsSpec | None, world: World, sharding: str) -> TrainEngine:
    model = build_trainable(reference, SftSpec(max_length=64), "spec.stages[1].sft", True, embeddings)
    return TrainEngine(model, OptimizerSpec(), world, ParallelismSpec(sharding=sharding))  # type: ignore[arg-type]


ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(("rows", "alone"), [("new", True), ("new", False), ("all", True), ("all", False)])
def test_trained_rows_are_what_the_next_stage_loads(extended: Extended, rows: Any, alone: bool, tmp_path: Path) -> None:
    spec = EmbeddingsSpec(rows=rows, alone=alone)
    engine, plain = engine_of(extended, spec, ALONE, "replicate"), engine_of(extended, None, ALONE, "replicate")
    batches = [collate([[s] for s in sequences(12)])]
    start = plain.log_probs(batches)[0]
    torch.testing.assert_close(engine.log_probs(batches)[0], start, atol=1e-5, rtol=1e-5)
    losses = [engine.step(batches, sft, 1e-2)["loss"] for _ in range(4)]
    assert losses[-1] < losses[0] - 0.1
    names = {name.rpartition(".")[2] for name in engine.full_parameters()}
    assert ("input_rows" in names, "output_rows" in names, "weight" in names) == (True, True, not alone)
    assert all("lora_" in name for name in engine.adapter())
    assert bool(engine.adapter()) != alone
    made = trained_embeddings(engine.full_parameters(), extended)
    assert made is not None
    assert (made.first, made.end, made.known) == (0 if rows == "all" else 522, 552, 522)
    before = load_base(extended).get_input_embeddings().weight.detach()
    made.save(tmp_path / "embeddings.safetensors")  # where `extended` reads
    after = load_base(extended).get_input_embeddings().weight.detach()
    assert torch.equal(after[: made.first], before[: made.first])
    assert not torch.equal(after[made.first :], before[made.first :])
    if alone:
        torch.testing.assert_close(
            engine_of(extended, None, ALONE, "replicate").log_probs(batches)[0], engine.log_probs(batches)[0]
        )


def test_tied_rows_are_trained_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    small_model(True, 60).save_pretrained(folder)
    reference = ModelReference(str(folder))
    engine = engine_of(reference, EmbeddingsSpec(rows="all", alone=True), ALONE, "replicate")
    batch = collate([[Sequence([i % 60 for i in s.ids], s.trained)] for s in sequences(8)])
    engine.step([batch], sft, 1e-2)
    assert len(engine.full_parameters()) == 1
    made = trained_embeddings(engine.full_parameters(), reference)
    assert made is not None
    assert (made.first, made.end, made.known, made.output) == (0, 60, 60, None)
    model = load_base(reference)
    made.put_into(model, "here")
    logits = model(torch.tensor([[1, 2, 3]])).logits[0, :-1].log_softmax(-1)
    expected = engine.log_probs([collate([[Sequence([1, 2, 3], [True] * 3)]])])[0]
    torch.testing.assert_close(logits[[0, 1], [2, 3]], expected, atol=1e-5, rtol=1e-5)


def test_new_rows_need_new_tokens() -> None:
    with pytest.raises(InvalidInput, match=r"spec.stages\[1\].sft.embeddings.rows: the input model has no new tokens"):
        engine_of(ModelReference(TINY), EmbeddingsSpec(), ALONE, "replicate")
    spec = SftSpec.model_validate({"embeddings": {"alone": True}, "adapter": {"rank": 4}}, by_alias=True)
    assert [field for field, _ in spec.problems()] == ["adapter"]


def _rank(rank: int, port: int, sharding: str, rows: Any, alone: bool, out: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    engine = engine_of(Extended(TINY), EmbeddingsSpec(rows=rows, alone=alone), World.current(), sharding)
    mine = [collate([[s]]) for s in sequences(9)[rank::2]]
    for _ in range(2):
        metrics = engine.step(mine, sft, 1e-2)
    weights = engine.full_parameters()
    if rank == 0:
        torch.save({"metrics": metrics, "weights": weights}, out)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("sharding", "rows", "alone"), [("fsdp2", "new", True), ("fsdp2", "all", False), ("replicate", "new", False)]
)
def test_two_ranks_give_the_steps_of_one(sharding: str, rows: Any, alone: bool, extended: Extended, tmp_path: Path) -> None:
    port = free_port()
    out = str(tmp_path / "rank0.pt")
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(r, port, sharding, rows, alone, out)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        assert process.exitcode == 0
    found = torch.load(out, weights_only=True)
    engine = engine_of(extended, EmbeddingsSpec(rows=rows, alone=alone), ALONE, "replicate")
    for _ in range(2):
        metrics = engine.step([collate([[s]]) for s in sequences(9)], sft, 1e-2)
    assert found["metrics"]["loss"] == pytest.approx(metrics["loss"], abs=1e-4)
    weights = engine.full_parameters()
    assert found["weights"].keys() == weights.keys()
    for name, weight in weights.items():
        # Adam moves each weight by about the rate whatever the gradient; where that is rounding, its sign may differ.
        assert float((found["weights"][name] - weight).abs().mean()) < 3e-4, name
