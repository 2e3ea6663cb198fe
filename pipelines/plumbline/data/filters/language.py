"""Which language a text is in, without network: by script, by common English words, else by py3langid's model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from plumbline.api.curation.filters import LanguageSpec
from plumbline.data.filters.programming import is_code
from plumbline.data.filters.words import CODE, learned
from plumbline.data.row import Reject, Row

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNDETERMINED = "und"
"""ISO 639-2's code."""
READ = 300  # characters of a text that decide
FEWEST, FEWEST_OTHER = 20, 8  # letters, of Latin and of other scripts that languages share, below which one can only guess
# Scripts of one language each. Han without kana is Chinese.
_SCRIPTS = {
    "zh": "\u3400-\u4dbf\u4e00-\u9fff", "ja": "\u3041-\u30ff", "ko": "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3",
    "th": "\u0e01-\u0e5b", "el": "\u0370-\u03ff", "he": "\u05d0-\u05f2", "hy": "\u0531-\u058f", "ka": "\u10a0-\u10ff",
    "ta": "\u0b80-\u0bff", "te": "\u0c00-\u0c7f", "kn": "\u0c80-\u0cff", "ml": "\u0d00-\u0d7f", "gu": "\u0a80-\u0aff",
    "pa": "\u0a00-\u0a7f", "km": "\u1780-\u17ff", "lo": "\u0e80-\u0eff", "my": "\u1000-\u109f", "si": "\u0d80-\u0dff",
}  # fmt: skip
_OWN_SCRIPT = re.compile("|".join(f"(?P<{code}>[{ranges}]+)" for code, ranges in _SCRIPTS.items()))
_NO_TEXT = re.compile(r"https?://\S+|<[^<>]{1,200}>|`[^`\n]*`")
_LETTERS = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
# Frequent in English, and none of them a frequent word of another language in Latin script.
_ENGLISH = frozenset(
    [
        "the",
        "of",
        "and",
        "that",
        "with",
        "this",
        "which",
        "from",
        "are",
        "was",
        "were",
        "have",
        "has",
        "been",
        "they",
        "their",
        "there",
        "what",
        "when",
        "where",
        "who",
        "how",
        "would",
        "should",
        "could",
        "about",
        "into",
        "your",
        "you",
        "his",
        "her",
        "its",
        "it's",
        "than",
        "then",
        "these",
        "those",
        "because",
        "while",
        "does",
        "following",
    ]
)
_ENGLISH_SHARE = 0.12  # of words; running English has 0.3, "Liste der Hits: The Wall, …" less
# What short texts in one language are taken for: Wu, Cantonese, Pidgin, Scots.
_CLOSE = {"wuu": "zh", "yue": "zh", "lzh": "zh", "pcm": "en", "sco": "en"}
SURE = 0.9  # confidence that two texts in different languages need: names and terms make short ones look foreign
FEWEST_MIXED = 60  # characters that each must have, where an alphabet is shared
_ABOUT_LANGUAGE = re.compile(
    r"translat|\blanguages?\b|bilingual|transliterat|romani[sz]e|pinyin|"
    r"\b(english|french|spanish|german|italian|portuguese|dutch|russian|chinese|mandarin|cantonese|japanese|korean|arabic|"
    r"hindi|"
    r"latin|greek|hebrew|turkish|polish|swedish|norwegian|danish|finnish|czech|hungarian|vietnamese|thai|indonesian|"
    r"esperanto|swahili|urdu|bengali|persian|ukrainian|romanian|bulgarian|gaelic|irish|welsh)\b|"
    r"翻译|译成|译为|译文|语言|[英中汉法德日韩俄葡意泰越]文|[英汉法德日韩俄]语|西班牙语|葡萄牙语|意大利语|拉丁语|阿拉伯语|双语|拼音|單詞|单词|词汇|"
    r"翻訳|英語|日本語|中国語|번역|영어|한국어|traduc|traduz|übersetz|перевед|перевод",
    re.IGNORECASE,
)


def detect(text: str) -> tuple[str, float]:
    """Language of a text by its first `READ` characters that are no code, URL or markup.

    Returns:
        (ISO 639-1 code or `und`, confidence in [0, 1]). Scripts of one language and common English words count as certain.
    """
    text = text[: 4 * READ]
    if any(mark in text for mark in "`<:"):
        text = _NO_TEXT.sub(" ", CODE.sub(" ", text))
    text = text[:READ]
    words = _LETTERS.findall(text)
    letters = sum(map(len, words))
    own = Counter() if text.isascii() else _own_scripts(text)
    if own:
        code, count = own.most_common(1)[0]
        # One Han character or syllable says what two letters do.
        if 2 * count > letters - sum(own.values()):
            return code, 1.0
    if letters < (FEWEST if _LATIN.search(text) else FEWEST_OTHER):
        return UNDETERMINED, 0.0
    if sum(word in _ENGLISH for word in text.lower().split()) >= max(2.0, _ENGLISH_SHARE * len(words)):
        return "en", 1.0
    code, confidence = _model().classify(text)
    code = _CLOSE.get(code, code)
    if code in own:  # few characters of its script among names and terms in Latin letters
        return code, 1.0
    return (UNDETERMINED, 0.0) if code == "zxx" else (code, confidence)  # zxx: no linguistic content


def check_language(row: Row, spec: LanguageSpec) -> Row:
    """Note the row's language, and drop it where the spec does not want it.

    Raises:
        Reject: another language, undetermined, or prompt and answer in different ones.
    """
    prompts, answers = row.prompts, learned(row)
    prompt, answer = "\n".join(prompts[:1]), "\n".join(answers[:1])
    if prompt and is_code(CODE.sub("", answer)):  # its words are English in any language
        answer = ""
    if spec.mixed == "drop" and prompt and answer:
        pair = _clearly(prompt), _clearly(answer)
        if UNDETERMINED not in pair and pair[0] != pair[1] and not _ABOUT_LANGUAGE.search(prompt) and not is_code(answer):
            raise Reject("prompt and answer in different languages", " and ".join(pair))
    # Prompts may be long quotes and answers a word: half of what is read goes to each.
    code = _sure(f"{prompt[: READ // 2]}\n{answer}" if prompt and answer else prompt or answer, spec.min_confidence)
    if code == UNDETERMINED:
        if spec.undetermined == "drop":
            raise Reject("language undetermined")
        return row
    if spec.keep is not None and code not in spec.keep:
        raise Reject("unwanted language", code)
    return row if row.language == code else replace(row, language=code)


def _sure(text: str, min_confidence: float) -> str:
    code, confidence = detect(text)
    return code if confidence >= min_confidence else UNDETERMINED


def _clearly(text: str) -> str:
    code = _sure(text, SURE)
    return code if code in _SCRIPTS or len(text) >= FEWEST_MIXED else UNDETERMINED


def _own_scripts(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for run in _OWN_SCRIPT.finditer(text):
        found[run.lastgroup or ""] += run.end() - run.start()
    if found["ja"] * 20 > found["zh"]:  # Japanese mixes kana and Han
        found["ja"] += found.pop("zh", 0)
    return +found


@cache
def _model() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
