"""What models say of rows: likelihood ratios, embeddings and scores, on the built-in model and small ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plumbline.data.scoring as scoring
from plumbline.api.curation.selection import DeitaSpec, EmbeddingSpec, IfdSpec, ScorerSpec, SelectSpec, TaggerSpec
from plumbline.data.filters.judge import judge_calls
from plumbline.data.row import Row
from plumbline.data.scoring import DeitaScorer, DigitScorer, Embedder, IfdScorer, count_tokens, encode_answers, make_scorer
from plumbline.data.selection.tagger import tag_rows
from plumbline.errors import InvalidInput
from plumbline.external import TINY, tiny_folder
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from support.teacher import Teacher

BASE = ModelReference(TINY, dtype="float32")
WHERE = "spec.stages[0].curate.select"
TEMPLATE = "How hard is {prompt}, answered {answer}? Score: "


def chat(*texts: str) -> Row:
    roles = ("user", "assistant") * len(texts)
    return Row({"messages": [{"role": r, "content": c} for r, c in zip(roles, texts, strict=False)]})


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    turns = {"chosen": chosen, "rejected": rejected}
    answers = {name: [{"role": "assistant", "content": text}] for name, text in turns.items()}
    return Row({"prompt": [{"role": "user", "content": prompt}], **answers})


ROWS = [
    chat("Reverse the word cat.", "tac"),
    chat("Say hello.", "Hello! " * 40),
    chat("Name a colour.", "red", "Another?", "blue, which is the colour of the sea"),
    chat("x", "y"),
    chat("Count from one to five, please, in words.", "one two three four five"),
]


def mean_loss(ids: list[int], answer: int) -> float:
    """Of the last `answer` tokens, by the model's own loss."""
    labels = torch.tensor([[-100] * (len(ids) - answer) + ids[-answer:]])
    with torch.no_grad():
        return float(load_base(BASE)(input_ids=torch.tensor([ids]), labels=labels).loss)


def test_the_ratio_is_that_of_the_models_own_losses() -> None:
    tokenizer = load_tokenizer(BASE)
    ratio = IfdScorer(IfdSpec(), BASE, WHERE)(ROWS)["ratio"]
    for row, found in zip(ROWS, ratio, strict=True):
        if len(row.answers) > 1:
            continue
        answer = tokenizer(row.answers[0], add_special_tokens=False)["input_ids"]
        prompt = tokenizer(f"<|user|>{row.prompts[0]}<|assistant|>")["input_ids"]
        given = mean_loss([*prompt, *answer], len(answer))
        alone = mean_loss([tokenizer.eos_token_id, *answer], len(answer))
        assert found == pytest.approx(given / alone, rel=1e-4)
    assert np.ptp(ratio) > 0.05


def test_answers_of_a_chat_are_measured_where_they_stand() -> None:
    tokenizer = load_tokenizer(BASE)
    pieces = encode_answers(tokenizer, ROWS[2].content["messages"])
    texts = ["<|user|>Name a colour.<|assistant|>", "red", "<|end|><|user|>Another?<|assistant|>", ROWS[2].answers[1]]
    assert [ids for piece in pieces for ids in piece] == tokenizer(texts)["input_ids"]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = load_tokenizer(BASE)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InvalidInput, match="changes earlier turns"):
        encode_answers(tokenizer, ROWS[2].content["messages"])


def test_ratios_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = IfdScorer(IfdSpec(), BASE, WHERE)
    together = scorer(ROWS)["ratio"]
    alone = np.concatenate([scorer([row])["ratio"] for row in ROWS])
    assert np.allclose(together, alone, rtol=1e-4)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    assert np.allclose(together, scorer(ROWS)["ratio"], rtol=1e-4)


def test_what_cannot_be_measured_is_nan() -> None:
    bad = {
        "prompt": [{"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}],
        "label": False,
    }
    rows = [ROWS[0], ROWS[1], Row(bad), Row(bad | {"label": True}), pair("Say hello.", "Hello!", "no")]
    ratio = IfdScorer(IfdSpec(max_tokens=60), BASE, WHERE)(rows)["ratio"]
    assert np.isnan(ratio).tolist() == [False, True, True, False, False]
    of_chat = IfdScorer(IfdSpec(), BASE, WHERE)([chat("Say hello.", "Hello!")])["ratio"]
    assert ratio[4] == pytest.approx(of_chat[0], rel=1e-4)


def test_embeddings_depend_on_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(EmbeddingSpec(), BASE, WHERE)
    texts = ["Name three colours.", "hi", "A longer text, padded less than others. " * 3, "Name three colours.", ""]
    together = embedder.embed(texts)
    assert np.allclose(together[:4], np.concatenate([embedder.embed([text]) for text in texts[:4]]), atol=1e-5)
    assert np.allclose(np.linalg.norm(together[:4], axis=1), 1, atol=1e-5)
    assert together[0] @ together[1] < 0.999 < together[0] @ together[3]
    assert not together[4].any()
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    assert np.allclose(together, embedder.embed(texts), atol=1e-5)
    cut = Embedder(EmbeddingSpec(max_tokens=8), BASE, WHERE).embed(
        ["a b c d e f g h i j k l m n", "a b c d e f g h i j k x y"]
    )
    assert np.allclose(cut[0], cut[1], atol=1e-6)
    assert embedder.embed([]).shape == (0, 192)


def test_a_digit_scorer_reads_the_probabilities_of_six_digits() -> None:
    spec = ScorerSpec(model=TINY, template=TEMPLATE, max_tokens=64)
    exchanges = [("this", "so"), ("a harder {answer} thing", "{prompt}"), ("long " * 100, "")]
    scores = DigitScorer(spec, WHERE)(exchanges)
    tokenizer = load_tokenizer(BASE)
    model = load_base(ModelReference(TINY))
    texts = ["How hard is this, answered so? Score: ", "How hard is a harder {answer} thing, answered {prompt}? Score: "]
    for text, score in zip(texts, scores, strict=False):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        weights = logits[tokenizer.convert_tokens_to_ids(list("123456"))].softmax(-1)
        assert score == pytest.approx(float(weights @ torch.arange(1.0, 7.0)), rel=1e-3)
    assert scores[2] == 3.0
    assert scores[0] != scores[1]


def test_a_tokenizer_without_digits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0, "Score": 1, "1": 2, "2": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    monkeypatch.setattr(scoring, "_tokenizer", lambda folder, where: PreTrainedTokenizerFast(tokenizer_object=words))
    with pytest.raises(InvalidInput, match=r"select.quality.template: 'builtin://tiny' does not write a digit"):
        DigitScorer(ScorerSpec(model=TINY, template="{prompt} Score "), f"{WHERE}.quality")


@pytest.mark.parametrize(("quality", "complexity"), [(None, None), (None, "prompt"), ("chat", None), ("chat", "prompt")])
def test_deita_sums_complexity_times_quality(quality: str | None, complexity: str | None) -> None:
    scorers = {
        name: ScorerSpec(model=TINY, template=template)
        for name, template, used in (("quality", TEMPLATE, quality), ("complexity", "{prompt} Score: ", complexity))
        if used
    }
    rows = [Row(row.content, score=score) for row, score in zip(ROWS, (1.0, 2.0, 4.0, None, 5.0), strict=True)]
    found = DeitaScorer(DeitaSpec(**scorers), BASE, WHERE)(rows)
    for i, row in enumerate(rows):
        pairs = list(zip(row.prompts, row.answers, strict=True))
        c = DigitScorer(scorers["complexity"], WHERE)(pairs) if complexity else np.ones(len(pairs))
        q = DigitScorer(scorers["quality"], WHERE)(pairs) if quality else np.ones(len(pairs))
        score = np.nan if row.score is None else row.score
        expected = (c * q).sum() if quality else score * c.sum() if complexity else score
        assert found["value"][i] == pytest.approx(expected, rel=1e-3, nan_ok=True)
        assert found["complexity"][i] == pytest.approx(c.mean(), rel=1e-3)
    assert found["embedding"].shape == (5, 192)


def test_a_classifier_scores_too(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_folder())
    config.num_labels, config.num_hidden_layers = 1, 1
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(tmp_path)
    found = DeitaScorer(DeitaSpec(complexity=ScorerSpec(model=str(tmp_path))), BASE, WHERE)([*ROWS, chat("x", "z")])
    assert found["complexity"][3] == pytest.approx(found["complexity"][5], rel=1e-3)  # prompts alone
    assert np.ptp(found["complexity"]) > 0


def test_methods_get_the_scorers_that_they_need() -> None:
    def scorer(**block: Any) -> scoring.Scorer | None:
        return make_scorer(SelectSpec.model_validate({"rows": 1} | block, by_name=False), BASE, WHERE)

    assert scorer(random={}) is scorer(longest={}) is scorer(tags={}) is None
    assert [type(scorer(**{name: {}})) for name in ("ifd", "deita", "kCenter")] == [IfdScorer, DeitaScorer, Embedder]


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    for spec, kind in ((IfdSpec(model=str(tmp_path)), IfdScorer), (EmbeddingSpec(model=str(tmp_path)), Embedder)):
        with pytest.raises(InvalidInput, match=r"curate.select.model: .* has no config.json"):
            kind(spec, BASE, WHERE)


def test_tokens_are_those_of_training() -> None:
    tokenizer = load_tokenizer(BASE)
    rows = [ROWS[0], pair("ab", "cd", "ef"), Row({"text": "some text"})]
    tokens, answers = count_tokens(rows, tokenizer)

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    assert tokens.tolist() == [
        count("<|user|>Reverse the word cat.<|assistant|>tac<|end|>"),
        count("<|user|>ab<|assistant|>cd<|end|>") + count("<|user|>ab<|assistant|>ef<|end|>"),
        count("some text"),
    ]
    assert answers.tolist() == [count("tac"), count("cd"), count("some text")]
    assert [len(part) for part in count_tokens([], tokenizer)] == [0, 0]


@pytest.fixture
def tagger() -> Iterator[Teacher]:
    def answer(body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        return "Tags: poetry, Word-Limit" if "poem" in prompt else "I would rather write it."

    teacher = Teacher(answer)
    yield teacher
    teacher.close()


def test_a_tagger_is_asked_once(tagger: Teacher, tmp_path: Path) -> None:
    rows = [chat("Write a poem in ten words.", "…"), chat("hi", "ho"), chat("A poem on C++", "…")]
    spec = TaggerSpec(endpoint=tagger.url, model="m")
    for _ in range(2):
        with judge_calls(spec, str(tmp_path), f"{WHERE}.tags.tagger") as calls:
            tags, problems = tag_rows(rows, spec, calls.ask)
        assert tags.tolist() == [("poetry", "word limit"), (), ("poetry", "word limit")]
        assert problems == {"unreadable tags": 1}
    assert sum(tagger.answered.values()) == 3
