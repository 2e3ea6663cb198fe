"""ROUGE-L, BLEU, BERTScore and supported facts, against values computed by hand or by the reference implementations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.errors import InvalidInput
from plumbline.evaluation.metrics.bertscore import Encoder, bert_score, unrelated
from plumbline.evaluation.metrics.bleu import corpus_bleu, sentence_bleu
from plumbline.evaluation.metrics.rouge import rouge_l
from plumbline.evaluation.metrics.support import claims_of, supported_facts
from support.encoders import WORDS, encoder_folder

# ROUGE-L


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        # As rouge_score 0.1.2 has them, with its stemmer.
        ("The cats were running quickly", "a cat runs quick", 4 / 9),
        ("They organised national elections in 1999.", "national organisation of an election, 1999", 6 / 12),
        ("dying flies skies", "the fly died in the sky", 4 / 9),
        ("a b c d", "d c b a", 2 / 8),
        ("Don't!", "don t", 1.0),
        ("", "a", 0.0),
        ("?!", "?!", 0.0),
        # What that one drops.
        ("今天天气好", "今天天气很好", 10 / 11),
        ("où est le café", "OÙ EST le thé", 6 / 8),
    ],
)
def test_rouge_l(candidate: str, reference: str, expected: float) -> None:
    assert rouge_l(candidate, reference) == pytest.approx(expected, abs=1e-12)


@given(st.text(alphabet="abc dé今", max_size=30), st.text(alphabet="abc dé今", max_size=30))
def test_rouge_l_is_symmetric_and_in_its_range(one: str, other: str) -> None:
    assert rouge_l(one, other) == rouge_l(other, one)
    assert 0 <= rouge_l(one, other) <= 1
    assert rouge_l(one, one) in (0, 1)


# BLEU


def test_corpus_bleu_by_hand() -> None:
    """n-grams in common: 5 and 6 of 12, 3 and 5 of 10, 1 and 4 of 8, 0 and 3 of 6; both texts are as long as their references."""
    candidates = ["the cat sat on the mat", "a big dog ran to me"]
    references = [["the cat sits on the mat"], ["a big dog ran to me", "never"]]
    expected = math.exp(sum(math.log(share) for share in (11 / 12, 8 / 10, 5 / 8, 3 / 6)) / 4)
    found = corpus_bleu(candidates, references)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert "tok:13a" in found.signature
    short = corpus_bleu(["the cat sat on"], [["the cat sat on the mat"]])
    assert short.value == pytest.approx(math.exp(1 - 6 / 4), abs=1e-9)  # the brevity penalty


def test_bleu_of_equal_and_chinese_texts() -> None:
    assert sentence_bleu("今天天气很好", ["今天天气很好"], "zh") == pytest.approx(1)
    assert sentence_bleu("a b", ["a b"]) == pytest.approx(1)
    assert sentence_bleu("x y", ["a b"]) == 0
    for wrong in (([], []), (["a"], [[]]), (["a"], [["a"], ["b"]])):
        with pytest.raises(ValueError, match="needs references"):
            corpus_bleu(*wrong)
    with pytest.raises(ValueError, match="at least one reference"):
        sentence_bleu("a", [])


# BERTScore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder"))


CANDIDATES = ["the cat sat on the mat .", "a big dog", "cats"]
REFERENCES = [["the cats is on the mat ."], ["a small dog , running"], ["the dog"]]


def by_hand(folder: Path, layer: int, candidate: str, reference: str, weight: dict[int, float] | None) -> list[float]:
    """P, R and F1 by the definition, one text at a time and in plain loops."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    sides = []
    for text in (candidate, reference):
        ids = tokenizer.encode(text)
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].double().tolist()
        sides.append((ids, [[x / math.sqrt(sum(y * y for y in state)) for x in state] for state in states]))

    def mean(of: int, to: int) -> float:
        total = weights = 0.0
        for token, state in zip(*sides[of], strict=True):
            w = (0.0 if token in (2, 3) else 1.0) if weight is None else weight.get(token, weight[-1])
            best = max(sum(x * y for x, y in zip(state, other, strict=True)) for other in sides[to][1])
            total, weights = total + w * best, weights + w
        return total / weights

    precision, recall = mean(0, 1), mean(1, 0)
    return [precision, recall, 2 * precision * recall / (precision + recall)]


@pytest.mark.parametrize("layer", [4, 2])
@pytest.mark.parametrize("idf", [False, True])
def test_bert_score_equals_the_definition(folder: Path, layer: int, idf: bool) -> None:
    encoder = Encoder(str(folder), layer)
    found = bert_score(encoder, CANDIDATES, REFERENCES, idf=idf)
    weight = None
    if idf:
        sets = [set(encoder.tokens(text)) for [text] in REFERENCES]
        weight = {token: math.log(4 / (sum(token in one for one in sets) + 1)) for token in range(5 + len(WORDS))}
        weight[-1] = math.log(4)
    for i, (candidate, [reference]) in enumerate(zip(CANDIDATES, REFERENCES, strict=True)):
        expected = by_hand(folder, layer, candidate, reference, weight)
        assert [found.precision[i], found.recall[i], found.f1[i]] == pytest.approx(expected, abs=1e-4)
    assert found.hash.startswith(f"{folder.name}_L{layer}_")
    assert found.hash.endswith("_idf" if idf else "_no-idf")


def test_bert_score_does_not_depend_on_the_batch(folder: Path) -> None:
    encoder = Encoder(str(folder))
    together = bert_score(encoder, CANDIDATES, REFERENCES)
    for i in range(len(CANDIDATES)):
        alone = bert_score(encoder, CANDIDATES[i : i + 1], REFERENCES[i : i + 1])
        assert alone.f1[0] == pytest.approx(together.f1[i], abs=1e-5)


def test_bert_score_of_equal_empty_long_and_many(folder: Path) -> None:
    encoder = Encoder(str(folder))
    assert bert_score(encoder, ["a cat"], [["a cat"]]).f1[0] == pytest.approx(1, abs=1e-5)
    assert bert_score(encoder, ["", "a cat"], [["a cat"], ["  "]]).f1 == (0.0, 0.0)
    long = bert_score(encoder, ["the cat " * 50], [["the cat"]])
    assert len(encoder.tokens("the cat " * 50)) == 24
    assert 0 < long.f1[0] <= 1
    best = bert_score(encoder, ["a cat"], [["blue sky", "a cat", "dog"]])
    assert best.f1[0] == pytest.approx(1, abs=1e-5)
    assert bert_score(encoder, ["a cat"], [["a dog"]]).f1[0] == pytest.approx(
        bert_score(encoder, ["a dog"], [["a cat"]]).f1[0], abs=1e-5
    )


def test_bert_score_rescaled(folder: Path) -> None:
    encoder = Encoder(str(folder))
    raw = bert_score(encoder, CANDIDATES, REFERENCES)
    baseline = unrelated(encoder, ["the sky is blue", "a dog", "on the mat !"])
    assert all(-1 < value < 1 for value in baseline)
    scaled = bert_score(encoder, CANDIDATES, REFERENCES, baseline=baseline)
    for i in range(3):
        assert scaled.precision[i] == pytest.approx((raw.precision[i] - baseline[0]) / (1 - baseline[0]))
        assert scaled.recall[i] == pytest.approx((raw.recall[i] - baseline[1]) / (1 - baseline[1]))
        assert scaled.f1[i] == pytest.approx((raw.f1[i] - baseline[2]) / (1 - baseline[2]))
    assert scaled.hash != raw.hash
    assert scaled.means[2] == pytest.approx(sum(scaled.f1) / 3)


def test_hash_tells_models_and_layers_apart(folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    copy = tmp_path / folder.name
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert Encoder(str(copy)).name(False, None) == Encoder(str(folder)).name(False, None)
    assert Encoder(str(folder)).name(False, None) == Encoder(str(folder), 3).name(False, None)  # three quarters up
    assert Encoder(str(folder), 2).name(False, None) != Encoder(str(folder), 3).name(False, None)
    model = AutoModel.from_pretrained(copy)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7, 0] += 1
    model.save_pretrained(copy)
    assert Encoder(str(copy)).name(False, None) != Encoder(str(folder)).name(False, None)


def test_bad_encoders_and_texts_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no encoder"):
        Encoder(str(tmp_path))
    with pytest.raises(InvalidInput, match="holds no encoder"):
        Encoder(str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInput, match=r"layer 5 .* does not exist; it has layers 0 to 4"):
        Encoder(str(folder), 5)
    encoder = Encoder(str(folder))
    with pytest.raises(ValueError, match="needs references"):
        bert_score(encoder, ["a"], [[]])
    with pytest.raises(ValueError, match="below 1"):
        bert_score(encoder, ["a"], [["a"]], baseline=(0.5, 1.0, 0.5))
    with pytest.raises(ValueError, match="two texts"):
        unrelated(encoder, ["a"])


# Supported facts

SOURCE = (
    "Arthur's Magazine (1844–1846) was an American literary periodical published in Philadelphia. It sold 1,500 copies for $3.50 each. "
    "In May 1846 it was merged into Godey's Lady's Book."
)


@pytest.mark.parametrize(
    ("reply", "supported", "missing"),
    [
        ("Arthur's Magazine was published in Philadelphia from 1844 to 1846.", True, ()),
        ("Arthur's Magazine was published in Boston in 1844.", False, ("Boston",)),
        ("It sold 1500 copies.", True, ()),
        ("It sold 15,000 copies.", False, ("15,000",)),
        ("Each copy cost $3.5.", True, ()),
        ("It merged with Godey's Lady's Book.", True, ()),
        ("It merged with Harper's Book.", False, ("Harper's",)),
        ("Capybaras enjoy swimming daily.", False, ("capybaras", "enjoy", "swimming", "daily")),
    ],
)
def test_a_claim_needs_its_numbers_names_and_words(reply: str, supported: bool, missing: tuple[str, ...]) -> None:
    [claim] = supported_facts(reply, SOURCE).claims
    assert (claim.supported, claim.missing) == (supported, missing)


def test_share_of_supported_claims() -> None:
    reply = "Yes.\n- The magazine was American.\n- It sold 1,500 copies, but it was printed in London.\n\nIt ended in 1846; readers mourned."
    found = supported_facts(reply, SOURCE)
    assert [claim.supported for claim in found.claims] == [True, True, False, True, False]
    assert found.share == pytest.approx(3 / 5)
    assert supported_facts("Yes. No!", SOURCE).share is None
    assert supported_facts("", SOURCE).share is None
    assert supported_facts(SOURCE, SOURCE).share == 1


def test_chinese_claims() -> None:
    source = "该杂志于1844年在费城创刊，共售出1500册。"
    assert supported_facts("该杂志在费城创刊。", source).share == 1
    assert supported_facts("该杂志于1850年在费城创刊。", source).share == 0
    assert supported_facts("大象喜欢游泳和香蕉。", source).share == 0


@given(st.text(alphabet="abBC19 .,;-'\n今é", max_size=60))
def test_every_text_supports_itself(text: str) -> None:
    assert supported_facts(text, text).share in (None, 1.0)
    assert all(claim.strip() for claim in claims_of(text))
