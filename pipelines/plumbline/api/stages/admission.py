"""Who may ask a served model, and how much."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plumbline.api.base import WHOLE, NonNegativeInt, ObjectName, PositiveInt, SpecModel

API_KEYS = "PLUMBLINE_API_KEYS"
"""Environment variable that holds the path of the file of API keys."""

DaySeconds = Annotated[int, Field(ge=1, le=86_400), WHOLE]


class ApiKeysSpec(SpecModel):
    """A file of hashed API keys, as `plumbline keys new` writes it. Replicas read it again within seconds of a change."""

    secret: ObjectName
    """Name of the Secret that holds the file. It is mounted into the Pods, read-only. A local run reads the file whose path is in the
    environment variable PLUMBLINE_API_KEYS."""
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=253)] = "keys.yaml"
    """The file's key in the Secret."""


class AuditSpec(SpecModel):
    """A line of JSON for each request: time, id, name of the key, path, model, status, tokens, seconds."""

    folder: Annotated[str, Field(pattern=r"^/", max_length=1024)] | None = None
    """Absolute path of a folder that the replicas can write; each appends to a file of its own, and opens it anew when it is moved
    away. Unset: the replicas' standard output."""
    prompts: bool = False
    """Keep what was asked and answered, too. It may be personal data."""


class AdmissionSpec(SpecModel):
    """What a request must bring and may take. Limits per key are of the whole deployment: each replica grants its share."""

    api_keys: ApiKeysSpec | None = None
    """Keys, one of which every request must carry (`Authorization: Bearer …`). Unset: anybody may ask."""
    requests_per_minute: PositiveInt | None = None
    """Requests of one key, unless the key's own entry says otherwise; without keys, of all callers together. Unset: no limit."""
    tokens_per_minute: PositiveInt | None = None
    """Tokens of one key, read and drawn, likewise."""
    max_concurrent_requests: PositiveInt | None = None
    """Requests of one key at the same time, likewise."""
    max_queued: NonNegativeInt = 256
    """Requests that may wait in one replica, beside the `maxOngoingRequests` that it works on. Further ones are sent away with 429 and the
    time after which to come again."""
    timeout_seconds: DaySeconds = 600
    """Longest time for one request from its first byte to the answer's last. Then it is ended: with 504, or a stream with an error
    event."""
    audit: AuditSpec | None = None
    """Log of requests. Unset: none."""

    def secret_files(self) -> dict[str, tuple[str, str]]:
        """Environment variable that names the file → (Secret, key in it)."""
        return {API_KEYS: (self.api_keys.secret, self.api_keys.key)} if self.api_keys else {}
