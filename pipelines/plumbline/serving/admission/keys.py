"""API keys: a file of their digests, read again when it changes.

    keys:
      - {name: alice, sha256: 9f86…, requestsPerMinute: 60, tokensPerMinute: 100000, expires: 2027-01-31}

Keys are 256 random bits, so there is nothing to guess and one round of SHA-256 is enough: slow hashes are for passwords, and would
make every request expensive, wrong ones too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from plumbline.api.base import PositiveInt, SpecModel
from plumbline.api.problems import field_path
from plumbline.errors import InvalidInput, one_line
from plumbline.serving.openai_answers import OpenAIError

log = logging.getLogger(__name__)

PREFIX = "plumbline-"  # so that scanners of leaked secrets, and people, know one when they see it
KEY_BYTES = 32
LOOK_SECONDS = 1.0  # between two looks at the file; the kubelet itself takes up to a minute to bring a change
MOST_BYTES = 2**20  # a Secret has no more


def _day(value: Any) -> Any:
    """YAML knows dates; JSON and quotes do not."""
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return value


class ApiKey(SpecModel):
    """One caller's key, without the key itself.

    Attributes:
        name: for people: limits, logs and metrics are by it.
        digest: SHA-256 of the key in hexadecimal; `sha256` in the file.
        requests_per_minute, tokens_per_minute, max_concurrent_requests: this key's limits; None: those of the deployment.
        expires: the last day on which it works (UTC).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$", max_length=100)]
    digest: Annotated[str, Field(alias="sha256", pattern=r"^[0-9a-f]{64}$")]
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    max_concurrent_requests: PositiveInt | None = None
    expires: Annotated[date | None, BeforeValidator(_day)] = None


class KeyRing(SpecModel):
    """All keys of a file."""

    keys: list[ApiKey]


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def new_key() -> str:
    """A random key."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file.

    Raises:
        InvalidInput: it cannot be read or is no file of keys. No value of it is repeated: it may be a key.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidInput(f"{path}: more than {MOST_BYTES} bytes; a file of keys is shorter")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = KeyRing.model_validate(found, by_name=False, by_alias=True).keys
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        words = (
            f"{field_path(first['loc'])}: {first['msg']}" if first["loc"] else "it must hold a mapping with a list `keys`"
        )
        raise InvalidInput(
            f"{path}: {words}; `plumbline keys new NAME --file FILE` writes entries as they must be"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidInput(f"{path} is not YAML; `plumbline keys new NAME --file FILE` writes one") from None
    for what, values in (("name", [key.name for key in keys]), ("sha256", [key.digest for key in keys])):
        twice = next((i for i, value in enumerate(values) if value in values[:i]), None)
        if twice is not None:
            raise InvalidInput(f"{path}: keys[{twice}].{what}: an earlier entry has the same; each must have its own")
    return keys


def write_keys(path: Path, keys: list[ApiKey]) -> None:
    """Replace the file in one step: a server may be reading it."""
    ring = KeyRing(keys=keys).model_dump(by_alias=True, exclude_none=True)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    descriptor, partial = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            yaml.safe_dump(ring, stream, sort_keys=False)
        Path(partial).chmod(mode)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


class KeyFile:
    """Looks keys up in a file as it is now. What cannot be read changes nothing: the keys before it hold.

    Args:
        path: the file.
        clock: seconds, for how often to look at the file.
        today: the day, for keys that expire.

    Raises:
        InvalidInput: the file cannot be read now.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self._path, self._clock, self._today = path, clock, today
        self._version = self._look()
        self._looked = clock()
        self._keys = {key.digest: key for key in read_keys(path)}

    def find(self, authorization: str) -> ApiKey:
        """The key of an Authorization header.

        Looked up by digest: the time that takes could tell of the digest of a guess, and nobody can choose that.

        Raises:
            OpenAIError: 401: there is none, or it is not known.
        """
        self._refresh()
        scheme, _, given = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise _refused("You did not provide an API key; send it as a header: 'Authorization: Bearer KEY'.")
        key = self._keys.get(digest(given.strip()))
        if key is None:
            raise _refused("The API key is not known here; ask who runs this endpoint for one.")
        if key.expires is not None and self._today() > key.expires:
            raise _refused(f"The API key '{key.name}' expired on {key.expires}; ask who runs this endpoint for another.")
        return key

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        version = self._look()
        if version == self._version:
            return
        self._version = version  # a broken file is told once, not every second
        try:
            self._keys = {key.digest: key for key in read_keys(self._path)}
            log.info("%s: %d API keys", self._path, len(self._keys))
        except InvalidInput as error:
            if isinstance(error.__cause__, OSError):
                self._version = None  # it is not known what stands there: a revoked key must not stay for that
            log.warning("API keys stay as they were: %s", error)

    def _look(self) -> tuple[int, int, int] | None:
        """What tells one version of the file from another. The kubelet replaces a link, so the file behind it counts."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _refused(message: str) -> OpenAIError:
    return OpenAIError(401, message, code="invalid_api_key")
