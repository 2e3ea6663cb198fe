"""Personal data: planted values are found, what looks like them is not."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
from stdnum import luhn

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii import FINDERS, check_pii, find
from plumbline.data.row import Reject
from support.rows import chat, read

TYPES = list(FINDERS)


def found(text: str, **options: object) -> list[tuple[str, str]]:
    return [(name, text[one.start : one.end]) for name, one in find(text, TYPES, PiiSpec(**options))]


@pytest.mark.parametrize(
    ("text", "type", "value"),
    [
        ("Write to Jane.Doe+news@mail.acme.co.uk, please.", "email", "Jane.Doe+news@mail.acme.co.uk"),
        ("邮箱是zhang_wei@163.com。", "email", "zhang_wei@163.com"),
        ("<bob@acme.org>", "email", "bob@acme.org"),
        ("Call (415) 555-2671.", "phone", "(415) 555-2671"),
        ("Tel: 415-555-2671", "phone", "415-555-2671"),
        ("1-415-555-2671 is hers", "phone", "1-415-555-2671"),
        ("My phone is 4155552671", "phone", "4155552671"),
        ("+49 30 901820", "phone", "+49 30 901820"),
        ("ring +44 20 7946 0958 now", "phone", "+44 20 7946 0958"),
        ("from 85.214.132.117 port 22", "ip", "85.214.132.117"),
        ("host 2a00:1450:4001:81b::200e answers", "ip", "2a00:1450:4001:81b::200e"),
        ("card 4539 1488 0343 6467 exp", "card", "4539 1488 0343 6467"),
        ("card 4539148803436467", "card", "4539148803436467"),
        ("amex 3714-496353-98431", "card", "3714-496353-98431"),
        ("IBAN DE89 3704 0044 0532 0130 00 at", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB29NWBK60161331926819", "iban", "GB29NWBK60161331926819"),
        ("key AKIAIOSFODNN7QXAMPLE", "secret", "AKIAIOSFODNN7QXAMPLE"),
        ('api_key = "9f86d081884c7d659a2feaa0c55ad015"', "secret", "9f86d081884c7d659a2feaa0c55ad015"),
        ("Authorization: Bearer Zx8kP2mQ9vL4tR7wB3nY6cD1", "secret", "Zx8kP2mQ9vL4tR7wB3nY6cD1"),
        ("hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh", "secret", "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"),
        ("sk-abcdefGHIJ0123456789klmnopQRSTuvwx", "secret", "sk-abcdefGHIJ0123456789klmnopQRSTuvwx"),
        ("xapp-1-A012B3C4D5E-1234567890123-abcdef", "secret", "xapp-1-A012B3C4D5E-1234567890123-abcdef"),
        (
            "https://hooks.slack.com/services/T0A1B2C3D/B0A1B2C3D/Xa1b2c3d4e5f6g7h",
            "secret",
            "T0A1B2C3D/B0A1B2C3D/Xa1b2c3d4e5f6g7h",
        ),
        ("postgres://user:Xk9vQ2mP7wL4@db.acme.org:5432/x", "secret", "Xk9vQ2mP7wL4"),
        ("mailto:jane@acme.org", "email", "jane@acme.org"),
        ("邮箱:zhang@qq.com，谢谢", "email", "zhang@qq.com"),
        ("https://acme.org/leave/jane@acme.org", "email", "jane@acme.org"),
        ("schreib an jörg@müller.de!", "email", "jörg@müller.de"),
        ("Conan O'Brien: c.o'brien@acme.org", "email", "c.o'brien@acme.org"),
        ("john [at] mail [dot] acme [dot] org, please", "email", "john [at] mail [dot] acme [dot] org"),
        ("john(at)acme.org", "email", "john(at)acme.org"),
        ("john.doe AT acme DOT org", "email", "john.doe AT acme DOT org"),
        ("jane＠acme．org", "email", "jane＠acme．org"),
        ("Phone:+1-415-555-2671", "phone", "+1-415-555-2671"),
        ("tel:+14155552671", "phone", "+14155552671"),
        ("**415-555-2671** is hers", "phone", "415-555-2671"),
        ("Phone: #415-555-2671", "phone", "415-555-2671"),
        ("电话+86 13812345678，", "phone", "+86 13812345678"),
        ("0044 20 7946 0958", "phone", "0044 20 7946 0958"),
        ("+1\u00a0415\u00a0555\u20112671", "phone", "+1\u00a0415\u00a0555\u20112671"),
        ("电话 ＋８６ １３８１２３４５６７８", "phone", "＋８６ １３８１２３４５６７８"),
        ("call 555-123-4567", "phone", "555-123-4567"),
        ("服务器85.214.132.117的端口", "ip", "85.214.132.117"),
        ("DNS server 8.8.8.8", "ip", "8.8.8.8"),
        ("IPv6:2a00:1450:4001:81b::200e", "ip", "2a00:1450:4001:81b::200e"),
        ("卡号4539148803436467。", "card", "4539148803436467"),
        ("card 4539\u00a01488\u00a00343\u00a06467", "card", "4539\u00a01488\u00a00343\u00a06467"),
        ("٤٥٣٩١٤٨٨٠٣٤٣٦٤٦٧", "card", "٤٥٣٩١٤٨٨٠٣٤٣٦٤٦٧"),
        ("pay by 4111 1111 1111 1111", "card", "4111 1111 1111 1111"),
        (
            "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000",
            "iban",
            "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000",
        ),
        ("DE89-3704-0044-0532-0130-00", "iban", "DE89-3704-0044-0532-0130-00"),
        ("de89370400440532013000", "iban", "de89370400440532013000"),
        ("REF12 BE68 5390 0754 7034 this will do", "iban", "BE68 5390 0754 7034"),
        ("AB12 CDEF DE89 3704 0044 0532 0130 00", "iban", "DE89 3704 0044 0532 0130 00"),
    ],
)
def test_planted_values_are_found(text: str, type: str, value: str) -> None:
    assert found(text) == [(type, value)]


@pytest.mark.parametrize(
    "text",
    [
        "3.14159265358979323846",
        "1234567890 + 9876543210 = 11111111100",
        "Multiply 4155552671 by 2125551234.",
        "f(x) = 415-555-2671*y",
        "The numbers are 10 20 30 415 555 2671 80.",
        "ISBN 978-0-306-40615-7 and ISBN 0-306-40615-2",
        "2021-03-15 10:30:45, 15/03/2021, 1990-1994, 20210315",
        "version 10.15.7.1, v2.10.33.4, Chrome/91.0.114.124, section 12.3.4.5, 1.2.3.4",
        "localhost 127.0.0.1, router 192.168.1.1, mask 255.255.255.0, multicast 224.0.0.251",
        'torch==2.10.33.4, "version": "11.22.33.44", the version is 11.22.33.44, jquery-3.6.0.12.min.js',
        "x[::2], x[::-1], 1:2:3:4:5:6:7:8, face:b00c:1::2",
        "at 12:34:56 on device 00:1A:2B:3C:4D:5E; std::vector<a::b>; dead::beef; ratio 1:2:3",
        "logo@2x.png, git@github.com:acme/tool.git, @decorator, a @ b, x@y, //user:pw@acme.org, A@B.dot(c)",
        "4539 1488 0343 6468, 1111 1111 1111 1111, 0.4539148803436467, 978020137962412",
        "DE88 3704 0044 0532 0130 00, US12 3456 7890 1234 5678",
        'api_key = "YOUR_API_KEY_GOES_HERE"; password: correcthorsebatterystaple; token = get_token_from_file(path)',
        "123-45-6789, 555-1234, (123) 456-7890, 000-000-0000",
        "Suicide prevention: 1-800-273-8255",
        "$415,555,2671 and 415.555 and 1e415",
        "sha256 is a hash; sk-learn and hf_hub are libraries; sk-folding-cube-animation-container-wrapper",
        "token = base64_encode_string_v2_final; access_token = response2.json_data_for_user1; ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        'secret = "abcdefghijklmnop1234"; api_key = "sk-your-openai-api-key-goes-here-1234"',
        "It begins with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----, which one checks.",
        "look at amazon dot com (at 9.30), x = 415 - 555 - 2671",
        "密码长度应为16到32个字符",
    ],
)
def test_near_misses_are_left_alone(text: str) -> None:
    assert found(text) == []


def test_reserved_values_count_where_asked_for() -> None:
    text = "router 192.168.1.1, hotline 1-800-273-8255"
    assert found(text) == []
    assert [name for name, _ in found(text, reserved=True)] == ["ip", "phone"]


def test_what_is_set_aside_for_examples_counts_except_in_rows_about_programming() -> None:
    text = "Mail jane@example.com, or call (212) 555-0147; from 203.0.113.7."
    assert check_pii(chat("Go", text), PiiSpec()).answers == ["Mail [email], or call [phone]; from [ip]."]
    code = chat("Check it in Python.", 'import re\nassert is_mail("jane@example.com")\nsend("jane@acme.org")')
    assert check_pii(code, PiiSpec()).answers == [code.answers[0].replace("jane@acme.org", "[email]")]
    assert "example.com" not in check_pii(code, PiiSpec(reserved=True)).answers[0]
    with pytest.raises(Reject, match="holds email"):
        check_pii(chat("Go", text), PiiSpec(drop=["email"]))
    alone = chat("Check it in Python.", 'import re\nassert is_mail("jane@example.com")')
    assert check_pii(alone, PiiSpec(drop=["email"])) is alone


def test_a_private_key_is_found_with_its_body_and_nothing_after_it() -> None:
    body = "\n".join("".join(random.Random(i).choices(string.ascii_letters + string.digits, k=64)) for i in range(4))
    begin, end = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
    for key in (
        f"{begin}\n{body}\n{end}",
        f"{begin}\\n{body[:64]}\\n{end}",
        f"{begin}\nProc-Type: 4,ENCRYPTED\n\n{body}\n{end}",
    ):
        assert found(f"Use {key} here.") == [("secret", key)]
    assert found(f"{begin}\n{body}\n\nThen a long story follows.") == [("secret", f"{begin}\n{body}")]


def test_random_secrets_are_hardly_ever_missed() -> None:
    """Of keys drawn at random: bounds are for placeholders and names. One in 30 of 20 characters has no digit, as names have none."""
    rng = random.Random(3)
    upper, base62 = string.ascii_uppercase + "234567", string.ascii_letters + string.digits
    made = {
        "AKIA{}": (upper, 16),
        "ghp_{}": (base62, 36),
        "api_key={}": (string.hexdigits[:16], 32),
        'client_secret: "{}"': (base62, 20),
    }
    for form, (alphabet, length) in made.items():
        texts = [form.format("".join(rng.choices(alphabet, k=length))) for _ in range(500)]
        assert sum(bool(found(text)) for text in texts) >= 475, form


def test_numbers_late_in_a_long_text_are_found_and_many_values_take_no_long() -> None:
    assert found("word " * 5000 + "call 415-555-2671") == [("phone", "415-555-2671")]
    assert len(found("a@b.co " * 100_000)) == 100_000  # a quadratic search would take an hour


def test_regions_decide_which_national_numbers_count() -> None:
    text = "手机 13812345678, 138 1234 5678, (415) 555-2671"
    assert found(text, regions=["CN"]) == [("phone", "13812345678"), ("phone", "138 1234 5678")]
    assert found(text, regions=[]) == []


def test_equal_values_get_equal_placeholders_in_all_texts_of_a_row() -> None:
    row = chat(
        "Mail a@acme.org or B@acme.org, call 415-555-2671.", "I wrote to b@acme.org, then A@acme.org; (415) 555-2671."
    )
    redacted = check_pii(row, PiiSpec())
    assert redacted.texts == [
        "Mail [email] or [email 2], call [phone].",
        "I wrote to [email 2], then [email]; [phone].",
    ]
    assert redacted.operations == ("redact:email", "redact:phone")
    assert check_pii(redacted, PiiSpec()) is redacted


def test_a_type_can_drop_the_row_and_others_be_left() -> None:
    row = chat("Hi", "card 4539148803436467, mail a@acme.org")
    with pytest.raises(Reject, match="holds card") as caught:
        check_pii(row, PiiSpec(drop=["card"]))
    assert "4539" not in str(caught.value)
    assert check_pii(row, PiiSpec(redact=["email"])).answers == ["card 4539148803436467, mail [email]"]


def test_random_numbers_are_hardly_ever_cards_and_made_ones_always() -> None:
    rng = random.Random(11)
    numbers = ["".join(rng.choices(string.digits, k=16)) for _ in range(2000)]
    assert sum(bool(found(f"n {number} n")) for number in numbers) < 2000 * 0.04
    for number in numbers[:200]:
        visa = "4" + number[1:15]
        visa += luhn.calc_check_digit(visa)
        assert found(f"it is {visa}.") == [("card", visa)]


def test_precision_on_real_instructions(shared: Path) -> None:
    """All that is found in these rows of Alpaca was looked at: fictional people's mail and phone numbers, and addresses to convert."""
    rows = read(shared / "alpaca/alpaca_data_shared.jsonl.gz")
    assert len(rows) > 40_000
    touched: dict[str, int] = {}
    for row in rows[::6]:
        for operation in check_pii(row, PiiSpec()).operations:
            touched[operation] = touched.get(operation, 0) + 1
    assert set(touched) <= {"redact:email", "redact:phone", "redact:ip"}
    assert 1 <= sum(touched.values()) <= 20
