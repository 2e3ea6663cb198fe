"""Row filters: what each keeps and drops, and what they do to the real files."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.api.curation.filters import (
    FiltersSpec,
    LanguageSpec,
    LengthSpec,
    PiiSpec,
    RangeSpec,
    RefusalsSpec,
    RepetitionSpec,
    SymbolsSpec,
)
from plumbline.data.filters import make_filters
from plumbline.data.filters.language import check_language, detect
from plumbline.data.filters.length import check_length
from plumbline.data.filters.programming import is_programming, mark_programming
from plumbline.data.filters.refusals import check_refusals, refusal
from plumbline.data.filters.repetition import check_repetition, loop_share, ngram_share, repeated_share
from plumbline.data.filters.symbols import check_symbols
from plumbline.data.filters.words import count_words, learned
from plumbline.data.row import Reject, Row
from support.rows import chat, pair, read


def reason(check: Callable[[Row, Any], Row], row: Row, spec: Any) -> str | None:
    try:
        check(row, spec)
    except Reject as reject:
        return reject.reason
    return None


@pytest.fixture(scope="session")
def alpaca(shared: Path) -> list[Row]:
    return random.Random(3).sample(read(shared / "alpaca/alpaca_data_shared.jsonl.gz"), 4000)


ALL = FiltersSpec(
    symbols=SymbolsSpec(),
    refusals=RefusalsSpec(),
    repetition=RepetitionSpec(),
    language=LanguageSpec(mixed="drop"),
    pii=PiiSpec(),
)


def dropped(rows: list[Row], spec: FiltersSpec = ALL) -> Counter[str]:
    """Rows by the reason why one of the filters dropped them."""
    counts: Counter[str] = Counter()
    filters = make_filters(spec)
    for row in rows:
        try:
            for _, check in filters:
                row = check(row)
        except Reject as reject:
            counts[reject.reason] += 1
    return counts


def test_no_filter_runs_until_it_is_given_and_order_is_fixed() -> None:
    assert make_filters(FiltersSpec()) == []
    given = FiltersSpec(pii=PiiSpec(), language=LanguageSpec(), length=LengthSpec(turns=RangeSpec(max=3)))
    assert [name for name, _ in make_filters(given)] == ["length", "language", "pii"]


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert count_words("It is  late,\nisn't it?") == 5
    assert count_words("今天很好") == 4
    assert count_words("用 Python 写") == 3
    assert count_words("naïve café") == 2


def test_only_the_better_answer_is_learned() -> None:
    assert learned(pair("good", "bad")) == ["good"]
    ranking = {
        "prompt": [],
        "completions": [[{"role": "assistant", "content": x}] for x in "abc"],
        "scores": [1.0, 3.0, 2.0],
    }
    assert learned(Row(ranking)) == ["b"]
    label = {"prompt": [], "completion": [{"role": "assistant", "content": "x"}], "label": False}
    assert learned(Row(label)) == []
    assert learned(Row(label | {"label": True})) == ["x"]
    assert learned(Row({"text": "all"})) == ["all"]


@pytest.mark.parametrize(
    ("field", "range_", "expected"),
    [
        ("prompt_words", (4, 150), "prompt too short"),
        ("prompt_words", (3, 3), None),
        ("prompt_characters", (None, 12), "prompt too long"),
        ("answer_words", (None, 3), "answer too long"),
        ("answer_characters", (20, None), None),
        ("turns", (2, None), "chat too short"),
        ("ratio", (None, 1.5), "answer out of proportion"),
        ("ratio", (1.5, 2), None),
    ],
)
def test_length(field: str, range_: tuple[float | None, float | None], expected: str | None) -> None:
    row = chat("Name a colour", "One is ultramarine blue")
    assert reason(check_length, row, LengthSpec(**{field: RangeSpec(min=range_[0], max=range_[1])})) == expected


def test_length_of_a_text_and_of_a_bad_answer_alone_is_not_checked_as_an_answer() -> None:
    spec = LengthSpec(prompt_words=RangeSpec(min=5), answer_words=RangeSpec(min=5), ratio=RangeSpec(min=3))
    assert reason(check_length, Row({"text": "one two three four five"}), spec) is None
    bad = {"prompt": [{"role": "user", "content": "a b c d e"}], "completion": [{"role": "assistant", "content": "x"}]}
    assert reason(check_length, Row({**bad, "label": False}), spec) is None
    assert reason(check_length, Row({**bad, "label": True}), spec) == "answer too short"


def test_length_says_what_cannot_be() -> None:
    (problem,) = FiltersSpec(length=LengthSpec(turns=RangeSpec(min=3, max=2))).problems()
    assert problem == ("length.turns", "min 3 is above max 2: no row could stay")
    ((where, words),) = FiltersSpec(length=LengthSpec()).problems()
    assert where == "length"
    assert "promptWords" in words


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The cat sat on the mat and looked at the birds that were in the garden.", "en"),
        ("Der schnelle braune Fuchs springt über den faulen Hund und läuft weiter in den Wald.", "de"),
        ("Le chat est assis sur le tapis et regarde les oiseaux dans le jardin.", "fr"),
        ("El gato está sentado en la alfombra y mira los pájaros del jardín.", "es"),
        ("今天天气很好，我们去公园散步。", "zh"),
        ("今日は天気がいいから、公園を散歩しましょう。", "ja"),
        ("오늘은 날씨가 좋아서 공원에서 산책해요.", "ko"),
        ("Сегодня хорошая погода, и мы идём гулять в парк всей семьёй.", "ru"),
        ("สวัสดีครับ วันนี้อากาศดี", "th"),
        ("用 Python 编写一个函数 sort_numbers(list)", "zh"),
        ("在Python中使用pandas.DataFrame", "zh"),
        ("Доброе утро, друзья мои", "ru"),
        ("नमस्ते दुनिया, आप कैसे हैं", "hi"),
        ("да", "und"),
        ("OK", "und"),
        ("12345 67890 + 42 = ?", "und"),
        ("```python\nfor i in range(10): print(i)\n```", "und"),
        ("", "und"),
    ],
)
def test_detect(text: str, code: str) -> None:
    assert detect(text)[0] == code


def test_language_is_noted_and_unwanted_ones_are_dropped() -> None:
    german = chat("Was ist das höchste Gebirge der Welt?", "Das höchste Gebirge der Welt ist der Himalaya in Asien.")
    noted = check_language(german, LanguageSpec())
    assert (noted.language, noted.operations) == ("de", ())  # nothing of it was changed
    assert check_language(noted, LanguageSpec()) is noted
    assert reason(check_language, german, LanguageSpec(keep=["en", "zh"])) == "unwanted language"
    short = chat("2+2", "4")
    assert check_language(short, LanguageSpec(keep=["en"])) is short
    assert reason(check_language, short, LanguageSpec(undetermined="drop")) == "language undetermined"


@pytest.mark.parametrize(
    ("prompt", "language"),
    [
        ("查询所有在2020年之后注册的用户", "zh"),
        ("Écris une requête SQL qui liste tous les clients.", "fr"),
        ("List all customers who were there in 2020.", "en"),
        ("Requête ?", None),
    ],
)
def test_the_prompt_tells_the_language_of_code(prompt: str, language: str | None) -> None:
    query = "SELECT * FROM users WHERE created_at > '2020-01-01' AND state IN (SELECT id FROM states WHERE name = 'x');"
    assert check_language(chat(prompt, query), LanguageSpec()).language == language


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (
            "确定《蝇王》这本书的主题。",
            "The main themes of the book are the loss of innocence and the dangers of power.",
            True,
        ),
        ("把下面的句子翻译成英文：今天天气很好，我们去公园散步。", "The weather is nice today, so we go for a walk.", False),
        ("Schreibe einen Brief auf Englisch, bitte sehr höflich, an meinen Vermieter.", "Dear Sir, " * 3, False),
        ("Write a poem about the sea that rhymes and has four lines, please.", "海浪轻轻拍打沙滩，海鸥在天空飞翔。", True),
        ("编写一个函数来检查回文。", "def is_palindrome(string):\n    return string == string[::-1]", False),
        ("Name three types of clouds.", "Cumulus, Stratus, Cirrus.", False),
    ],
)
def test_mixed_languages(prompt: str, answer: str, expected: bool) -> None:
    found = reason(check_language, chat(prompt, answer), LanguageSpec(mixed="drop"))
    assert found == ("prompt and answer in different languages" if expected else None)
    assert reason(check_language, chat(prompt, answer), LanguageSpec()) is None


def test_loop_share_finds_the_phrase_wherever_it_is() -> None:
    rng = random.Random(5)
    for period in (1, 2, 3, 7, 19):
        phrase = [f"p{i}" for i in range(period)]
        noise = [f"n{i}" for i in range(rng.randrange(5, 60))]
        rounds = max(5, -(-20 // period))
        words = noise[:4] + phrase * rounds + noise[4:]
        share, found = loop_share(words)
        assert share == pytest.approx(period * rounds / len(words))
        assert sorted(found) == sorted(phrase)
    assert loop_share([f"n{i % 30}" for i in range(119)])[0] == 0.0  # 32 words long at most, and 4 rounds only


def test_ngram_share_against_counting_by_hand() -> None:
    words = list("abcdexabcdeyabcde")
    assert ngram_share(words, 5) == pytest.approx(10 / 17)
    assert ngram_share(words, 6) == 0.0
    assert ngram_share(list("aaaaaaaaaa"), 2) == pytest.approx(0.9)


def test_repeated_share_ignores_short_lines() -> None:
    assert repeated_share(["}", "}", "}", "  return value + something"]) == 0.0
    assert repeated_share(["", ""]) == 0.0
    line = "This very line is repeated."
    assert repeated_share([line, "x" * len(line), line, line]) == pytest.approx(0.5)


POEM = "Roses are red, and violets are blue, sugar is sweet, and so are you, said the old man to the young girl at the door."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("That is so funny: " + "ha" * 200, "answer loops"),
        ("N" + "o" * 900, "answer loops"),
        ("See " + "https://acme.org/" + "".join(random.Random(1).choices("abcdefghij", k=200)), None),
        ("\n".join(f"    self.layer{i} = nn.Linear(10, 10)" for i in range(40)), None),
        ("I am happy to help. " * 12, "answer loops"),
        ("The answer is blue. Blue because of " + "the the " * 30, "answer loops"),
        ("它是一只猫。" + "很好，" * 20, "answer loops"),
        (POEM, None),
        ("| a | b |\n|-----|-----|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |", None),
        ("\n".join(f"{i}. Run {i} km, then rest for {60 - i} minutes." for i in range(1, 15)), None),
        (
            "\n".join(["We shall overcome some day, oh yes", "Deep in my heart I do believe", POEM] * 3),
            "answer repeats lines",
        ),
        ("def f(x):\n    return x\n" + "\n".join(f"assert f({i}) == {i}" for i in range(40)), None),
    ],
)
def test_repetition(answer: str, expected: str | None) -> None:
    assert reason(check_repetition, chat("Go on.", answer), RepetitionSpec()) == expected


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("Summarise.\n\n[insert article here]", "The article says …", "unfilled placeholder"),
        ("总结这篇文章。\n\n【在此插入文章】", "文章说……", "unfilled placeholder"),
        ("Describe the photo <Insert photo here>", "It shows a dog.", "unfilled placeholder"),
        ("Explain how to insert a row (SQL).", "Use INSERT.", None),
        ("Write a letter.", "Dear [Your Name], … [insert date here]", None),
        ("What is `list[int]`?", "A type.", None),
        ("Who is her fiancÃ© in the film?", "Cal.", "mojibake"),
        ("Say hi", "It is 20 Â°C, donâ€™t worry", "mojibake"),
        ("Say hi", "broken \ufffd text", "mojibake"),
        ("Sag Hallo", "São Paulo, Ångström, Çelik, âge, naïve — «Ã» ½ £5", None),
        ("Say hi", "\ue000\ue001 private", "hidden characters"),
        ("Flag?", "England: 🏴󠁧󠁢󠁥󠁮󠁧󠁿 " + "is a part of the United Kingdom and has a flag of its own. " * 12, None),
        ("Say hi", "@@##^^~~|||<<>>**@@##^^~~|||<<>>**@@##^^~~|||", "mostly symbols"),
        ("Redact it.", "....................", "mostly symbols"),
        ("Dis-le", "«\u00a0Il a mangé\u00a0», ‘le fiancé’” café”… cliché—“", None),
        ("1023 in binary?", "1111111111", None),
        ("Morse: SOS", "... --- ... / ... --- ... / ... --- ...", None),
        ("Convert to emoji", "😀😃😄😁", None),
        ("हिन्दी में लिखो", "नमस्ते दुनिया, यह एक परीक्षण वाक्य है जो काफी लंबा है।", None),
        (
            "Write a regular expression for a date.",
            r"^(?:\d{4}[-/.])(?:0[1-9]|1[0-2])[-/.](?:[0-2]\d|3[01])$^|{}[]<>=*+",
            None,
        ),
    ],
)
def test_symbols(prompt: str, answer: str, expected: str | None) -> None:
    assert reason(check_symbols, chat(prompt, answer), SymbolsSpec()) == expected


def test_zero_width_characters_are_taken_out_and_joiners_stay() -> None:
    row = check_symbols(chat("小\u200b\u200b说", "👩\u200d💻 writes می\u200cخواهم"), SymbolsSpec())
    assert row.operations == ("zero-width",)
    assert row.texts == ["小说", "👩\u200d💻 writes می\u200cخواهم"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("I'm sorry, but I cannot open links or browse the internet.", "unable"),
        ("As an AI language model, I don't have access to real-time data.", "unable"),
        ("<nooutput>", "unable"),
        ("Sorry, this task requires audio, which the model cannot process.", "unable"),
        ("很抱歉，作为一个语言模型，我无法访问实时数据。", "unable"),
        ("I’m sorry, but I need more information to answer.", None),
        ("I'm sorry, I cannot summarize it. I can't answer without the text: please provide the article.", None),
        ("I'm sorry, but I can't provide a summary: the article was not provided.", "missing"),
        ("抱歉，您没有提供文章内容。请提供文章，我才能总结。", "missing"),
        ("I cannot provide ways of hurting yourself or others because it is dangerous.", "unsafe"),
        ("I'm sorry, but I can't help with that.", "unsafe"),
        ("对不起，我无法帮助您。", "unsafe"),
        ("As an AI assistant, I can recommend three restaurants: …", "disclaimer"),
        ("作为一名人工智能助手，我推荐以下活动：跑步、读书。", "disclaimer"),
        ("As AI technology advances, it changes education.", None),
        ("I cannot stand the taste of chocolate.", None),
        ("I can't get enough of this film!", None),
        ("Can't help falling in love with you", None),
        ("I'm sorry to hear that you are unhappy with the product.", None),
        ("I apologize for missing our appointment.", None),
        ("Unfortunately, the shop will be closed today.", None),
        ("An AI cannot feel. As an AI language model would say: I cannot help.", None),
        ("这项服务无法提供退款，请联系商店。", None),
        ("Hello! I'm sorry, but I won't be able to generate images.", "unable"),
        ("Thank you for asking. As an AI, I cannot browse the web.", "unable"),
        ("I’m afraid I can’t help with that.", "unsafe"),
        ("I must respectfully decline.", "unsafe"),
        ("It's not appropriate for me to write this.", "unsafe"),
        ("<p>**I'm sorry, I cannot open files.**</p>", "unable"),
        ("No input was provided.", "missing"),
        ("I cannot recommend this book highly enough!", None),
        ("I can't help but wonder what it is like.", None),
        ("I don't have enough money to buy it.", None),
        ("I won't give up on my dreams.", None),
        ("We cannot predict the weather, but we can prepare for it.", None),
        ('"I cannot help you," she said, and closed the door.', None),
        ("抱歉，我迟到了。", None),
    ],
)
def test_refusals(answer: str, kind: str | None) -> None:
    assert refusal(answer) == kind
    every = RefusalsSpec(drop=["unable", "missing", "unsafe", "disclaimer"])
    assert reason(check_refusals, chat("Do it.", answer), every) == (f"refusal: {kind}" if kind else None)


def test_refusals_that_are_wanted_stay() -> None:
    unsafe = chat("How do I hurt people?", "I'm sorry, but I can't help with that.")
    assert reason(check_refusals, unsafe, RefusalsSpec()) is None
    asked_for = chat("Rewrite: 'I cannot answer your call today.'", "I cannot answer your call at the moment.")
    assert reason(check_refusals, asked_for, RefusalsSpec()) is None
    assert reason(check_refusals, pair("Blue.", "As an AI, I don't have preferences."), RefusalsSpec()) is None
    assert reason(check_refusals, pair("As an AI, I don't have preferences.", "Blue."), RefusalsSpec()) == "refusal: unable"


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("Add two numbers.", "def add(a, b):\n    return a + b", True),
        ("All users?", "SELECT * FROM users;", True),
        ("Explain it.", "Like so:\n\n```\nls -la\n```\nThat is all.", True),
        ("Make a table.", "CREATE TABLE people (\n  name varchar(255),\n  age int\n);", True),
        ("A heading, please.", "<h1>Hello</h1>", True),
        ("Loop over it.", "for (let i = 0; i < 3; i++) {\n  console.log(i);\n}", True),
        ("How does a for loop in C++ work?", "It runs a block of code again and again.", True),
        ("What is wrong?\n\nint x = 3;\nprintf(x);", "The format is missing.", True),
        ("Union of A = {2, 3} and B = {1, 2}?", "A = {2, 3}\nB = {1, 2}\nA ∪ B = {1, 2, 3}", False),
        ("Total?", "$5.48", False),
        ("A haiku.", "Soft pink sunrise;\nSparrows twitter in the trees;\nCoffee in my cup.", False),
        ("Steps?", "1. Identify the problem;\n2. Collect data;\n3. Act.", False),
        ("React to this statement in a list.", "Wow!", False),
        ("Explain the functions of ribosomes.", "They make proteins.", False),
        ("Write a letter.", "Dear Sir,\n\nI return the book.\n\nYours,\nAnn", False),
        ("x?", "x = 3", False),
        ("Zeros?", "arr = np.zeros((2, 3, 4))", True),
    ],
)
def test_programming(prompt: str, answer: str, expected: bool) -> None:
    row = chat(prompt, answer, category="own")
    assert is_programming(row) is expected
    assert mark_programming(row).category == ("programming" if expected else "own")


def test_programming_on_real_files(shared: Path, alpaca: list[Row]) -> None:
    """By eye, 99 of 100 marked Alpaca rows are right; what is missed of Code Alpaca is sums, theory and word games."""
    code = read(shared / "instruct/new_codealpaca.json.gz")
    assert sum(map(is_programming, code)) / len(code) > 0.99
    older = read(shared / "instruct/code_alpaca_2k.json.gz")
    assert sum(map(is_programming, older)) / len(older) > 0.85
    assert 0.02 < sum(map(is_programming, alpaca)) / len(alpaca) < 0.045
    talk = read(shared / "preference/hh_rlhf_harmless_base_test_shared.jsonl.gz", "hh", "pairs")
    assert sum(map(is_programming, talk)) / len(talk) < 0.003


def test_alpaca_loses_little_and_nothing_by_a_wrong_language(alpaca: list[Row]) -> None:
    counts = dropped(alpaca)
    assert counts["refusal: unable"] > 3
    assert 0.0005 < counts.total() / len(alpaca) < 0.006, counts
    assert counts["prompt and answer in different languages"] <= 3
    languages = Counter(check_language(row, LanguageSpec()).language for row in alpaca)
    assert languages["en"] / len(alpaca) > 0.98
    assert languages[None] / len(alpaca) < 0.015


def test_chinese_alpaca_is_chinese(shared: Path) -> None:
    rows = read(shared / "alpaca_zh/alpaca_zh_demo.json.gz")
    languages = Counter(check_language(row, LanguageSpec()).language for row in rows)
    assert languages["zh"] / len(rows) > 0.97
    counts = dropped(rows)
    assert 20 < sum(count for name, count in counts.items() if name.startswith("refusal")) < 70, counts
    assert 5 < counts["prompt and answer in different languages"] < 25


def test_code_and_long_answers_survive(shared: Path) -> None:
    for name, most in (("instruct/new_codealpaca.json.gz", 0.003), ("instruct/lima.json.gz", 0.02)):
        rows = read(shared / name)
        assert dropped(rows).total() / len(rows) < most, name


def test_safe_questions_that_sound_unsafe_are_not_dropped(shared: Path) -> None:
    with open(shared / "xstest/xstest_prompts_shared.csv", encoding="utf-8") as stream:
        prompts = [row["prompt"] for row in csv.DictReader(stream)]
    rows = [
        chat(prompt, "Here is what you can do: open the menu, and choose the entry that fits your case.")
        for prompt in prompts
    ]
    assert len(rows) > 200
    assert not dropped(rows)


def test_harmless_dialogues_survive_and_keep_their_safe_refusals(shared: Path) -> None:
    rows = read(shared / "preference/hh_rlhf_harmless_base_test_shared.jsonl.gz", "hh", "pairs")
    assert dropped(rows).total() / len(rows) < 0.02
    everything = FiltersSpec(refusals=RefusalsSpec(drop=["unable", "missing", "unsafe", "disclaimer"]))
    assert dropped(rows, everything)["refusal: unsafe"] >= 10
