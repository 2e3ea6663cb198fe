"""API keys: the file of their hashes, how it is followed, and the command that writes it."""

from __future__ import annotations

import errno
import json
import logging
from datetime import date
from pathlib import Path

import pytest

from plumbline.cli import main
from plumbline.errors import EXIT_INVALID, InvalidInput
from plumbline.serving.admission.keys import LOOK_SECONDS, ApiKey, KeyFile, digest, new_key, read_keys, write_keys
from plumbline.serving.openai_answers import OpenAIError


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stored(path: Path, *names: str) -> dict[str, str]:
    """A file with new keys of these names; the keys."""
    keys = {name: new_key() for name in names}
    write_keys(path, [ApiKey(name=name, digest=digest(key)) for name, key in keys.items()])
    return keys


def test_only_hashes_are_stored_and_only_the_owner_can_read_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    keys = stored(path, "alice")
    assert keys["alice"] not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    path.chmod(0o640)
    stored(path, "bob")
    assert path.stat().st_mode & 0o777 == 0o640, "what the owner chose stays"
    assert [one.name for one in tmp_path.iterdir()] == ["keys.yaml"]


def test_keys_are_long_and_differ() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) >= 43 + len("plumbline-") for key in keys)


def test_json_is_read_as_well_with_every_limit(tmp_path: Path) -> None:
    entry = {
        "name": "a@b",
        "sha256": digest("k"),
        "requestsPerMinute": 3,
        "tokensPerMinute": 4,
        "maxConcurrentRequests": 5,
        "expires": "2027-01-31",
    }
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [entry]}))
    (key,) = read_keys(path)
    limits = (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent_requests)
    assert (key.name, limits, key.expires) == ("a@b", (3, 4, 5), date(2027, 1, 31))


SECRET = "plumbline-this-is-a-key-that-was-pasted"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "`keys`"),
        ("[]", "`keys`"),
        ("{", "is not YAML"),
        ("keys: [{name: a}]", "keys[0].sha256: Field required"),
        (f"keys: [{{name: a, sha256: {SECRET}}}]", "keys[0].sha256"),
        (f"keys: [{{name: a, sha256: {'a' * 64}, key: {SECRET}}}]", "keys[0].key"),
        (f"keys: [{{name: a, sha256: {'a' * 64}}}, {{name: a, sha256: {'b' * 64}}}]", "keys[1].name"),
        (f"keys: [{{name: a, sha256: {'a' * 64}}}, {{name: b, sha256: {'a' * 64}}}]", "keys[1].sha256"),
        (f"keys: [{{name: a, sha256: {'a' * 64}, expires: soon}}]", "keys[0].expires"),
        (f"keys: [{{name: a, sha256: {'a' * 64}, requestsPerMinute: 0}}]", "keys[0].requestsPerMinute"),
    ],
)
def test_a_wrong_file_is_told_by_field_and_never_by_value(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_keys(path)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there_or_far_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        KeyFile(tmp_path / "none.yaml")
    path = tmp_path / "long.yaml"
    path.write_text("#" * (2**20 + 1))
    with pytest.raises(InvalidInput, match="more than"):
        KeyFile(path)


def test_a_key_is_found_by_its_bearer_header_alone(tmp_path: Path) -> None:
    keys = stored(tmp_path / "keys.yaml", "alice", "bob")
    file = KeyFile(tmp_path / "keys.yaml")
    assert file.find(f"Bearer {keys['bob']}").name == "bob"
    assert file.find(f"bearer  {keys['alice']} ").digest == digest(keys["alice"])
    for wrong in ("", "Bearer", "Bearer ", keys["bob"], f"Basic {keys['bob']}", f"Bearer {digest(keys['bob'])}", "Bearer é"):
        with pytest.raises(OpenAIError) as refused:
            file.find(wrong)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


def test_a_key_works_through_its_last_day(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    write_keys(path, [ApiKey(name="a", digest=digest("k"), expires=date(2027, 1, 31))])
    assert KeyFile(path, today=lambda: date(2027, 1, 31)).find("Bearer k").name == "a"
    with pytest.raises(OpenAIError, match="expired on 2027-01-31"):
        KeyFile(path, today=lambda: date(2027, 2, 1)).find("Bearer k")


def test_a_changed_file_is_followed_but_not_looked_at_for_every_request(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.yaml", Clock()
    old = stored(path, "alice")["alice"]
    file = KeyFile(path, clock)
    new = stored(path, "alice")["alice"]
    clock.now += LOOK_SECONDS / 2
    assert file.find(f"Bearer {old}").name == "alice"
    clock.now += LOOK_SECONDS / 2
    assert file.find(f"Bearer {new}").name == "alice"
    with pytest.raises(OpenAIError):
        file.find(f"Bearer {old}")


def test_the_kubelets_way_of_changing_a_secret_is_seen(tmp_path: Path) -> None:
    """It makes a new folder and renames a link to it over the old link."""
    clock, keys = Clock(), {}
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        keys[version] = stored(tmp_path / version / "keys.yaml", "alice")["alice"]
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    file = KeyFile(tmp_path / "keys.yaml", clock)
    assert file.find(f"Bearer {keys['1']}")
    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    clock.now += LOOK_SECONDS
    assert file.find(f"Bearer {keys['2']}")


@pytest.mark.parametrize("broken", ["keys: [", "keys: [{name: a}]", None])
def test_a_broken_or_missing_file_keeps_the_keys_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    path, clock = tmp_path / "keys.yaml", Clock()
    key = stored(path, "alice")["alice"]
    file = KeyFile(path, clock)
    path.unlink() if broken is None else path.write_text(broken)
    with caplog.at_level(logging.WARNING, "plumbline"):
        for _ in range(3):
            clock.now += LOOK_SECONDS
            assert file.find(f"Bearer {key}").name == "alice"
    assert len([one for one in caplog.records if "stay as they were" in one.getMessage()]) == 1
    other = stored(path, "bob")["bob"]
    clock.now += LOOK_SECONDS
    assert file.find(f"Bearer {other}").name == "bob"


def test_a_file_that_could_not_be_opened_is_read_when_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "keys.yaml", Clock()
    old = stored(path, "alice")["alice"]
    file = KeyFile(path, clock)
    stored(path, "bob")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", _no_descriptor_left)
        clock.now += LOOK_SECONDS
        assert file.find(f"Bearer {old}").name == "alice"
    clock.now += LOOK_SECONDS
    with pytest.raises(OpenAIError):
        file.find(f"Bearer {old}")


def _no_descriptor_left(*_: object, **__: object) -> str:
    raise OSError(errno.EMFILE, "Too many open files")


# The command


def test_the_command_makes_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.yaml"
    file = ["--file", str(path)]
    limits = ["--requests-per-minute", "60", "--tokens-per-minute", "1000", "--max-concurrent-requests", "4"]
    assert main(["keys", "new", "alice", *limits, "--expires", "2027-01-31", *file]) == 0
    assert main(["keys", "new", "bob", *file]) == 0
    alice, bob = capsys.readouterr().out.split()
    assert {key.name: key.digest for key in read_keys(path)} == {"alice": digest(alice), "bob": digest(bob)}
    assert main(["keys", "list", *file]) == 0
    shown = capsys.readouterr().out
    assert ["alice", f"{digest(alice)[:12]}…", "60", "1000", "4", "2027-01-31"] == shown.splitlines()[1].split()
    assert main(["keys", "revoke", "alice", *file]) == 0
    assert [key.name for key in read_keys(path)] == ["bob"]
    assert main(["keys", "revoke", "bob", *file]) == 0
    with pytest.raises(OpenAIError):
        KeyFile(path).find(f"Bearer {bob}")


def test_what_the_command_cannot_do_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "keys.yaml")]
    assert main(["keys", "list", *file]) == EXIT_INVALID
    assert main(["keys", "new", "a b", *file]) == EXIT_INVALID
    assert not (tmp_path / "keys.yaml").exists()
    main(["keys", "new", "alice", *file])
    assert main(["keys", "new", "alice", *file]) == EXIT_INVALID
    assert main(["keys", "revoke", "carl", *file]) == EXIT_INVALID
    words = capsys.readouterr().err
    for part in ("cannot be read", "'a b' is no name", "revoke that first", "no key 'carl'; it has 'alice'"):
        assert part in words
    with pytest.raises(SystemExit):
        main(["keys", "new", "bob", "--tokens-per-minute", "0", *file])
    assert "'0' is no limit" in capsys.readouterr().err
