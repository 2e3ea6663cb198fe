"""Everything that admission knows in one replica, built of plain settings."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from plumbline.api.stages.admission import API_KEYS, AdmissionSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.errors import InvalidInput
from plumbline.serving.admission.audit import Audit
from plumbline.serving.admission.backlog import Backlog
from plumbline.serving.admission.keys import ApiKey, KeyFile, digest, read_keys
from plumbline.serving.admission.limits import Callers, Limits


class AdmissionSettings(BaseModel):
    """What a replica must know to decide. Plain values.

    Attributes:
        spec: what the run says.
        keys: path of the file of API keys; None: there are none.
        owner: SHA-256 of a random key that only the process knows which put the model up: it may ask without a key from the file.
        replicas: among how many the limits are divided.
        elastic: the number of replicas changes, and so does what each may grant.
        slots: requests that a replica works on at the same time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: AdmissionSpec
    keys: str | None = None
    owner: str | None = None
    replicas: int = Field(ge=1)
    elastic: bool = False
    slots: int = Field(ge=1)

    @classmethod
    def of(
        cls, spec: ServeSpec, stage: str, *, owner: str | None = None, environment: Mapping[str, str] = os.environ
    ) -> AdmissionSettings:
        """The settings of a serve stage's deployment.

        Args:
            spec: the stage's block.
            stage: its name, for messages.
            owner: the random key itself.
            environment: names the file of keys.

        Raises:
            InvalidInput: keys are wanted, and no file is named or it cannot be read: a model is never open because somebody forgot.
        """
        wanted, path = spec.admission.api_keys, environment.get(API_KEYS)
        if wanted is not None and not path:
            raise InvalidInput(
                f"admission.apiKeys of stage '{stage}': the environment variable {API_KEYS} is not set. In a cluster it names the "
                f"mounted Secret '{wanted.secret}'; for a local run set it to a file that `plumbline keys new NAME --file FILE` "
                "wrote"
            )
        keys = Path(path).absolute() if path and wanted else None
        if keys is not None:
            read_keys(keys)  # told here, before anything starts
        scaling = spec.autoscaling
        return cls(
            spec=spec.admission,
            keys=str(keys) if keys else None,
            owner=digest(owner) if owner else None,
            replicas=max(spec.replicas, scaling.min_replicas) if scaling else spec.replicas,
            elastic=scaling is not None,
            slots=spec.max_ongoing_requests,
        )

    @property
    def places(self) -> int:
        """Requests that are in a replica at most, those included that it sends away at once."""
        return self.slots + self.spec.max_queued + SPARE


SPARE = 32  # places for requests that are refused, and for those that ask how the replica is
OWNER = "(owner)"  # no name that a key in the file can have


@dataclass(frozen=True)
class Admission:
    """A replica's admission. Its parts belong to one event loop.

    Attributes:
        keys: None: anybody may ask.
        owner: digest of the key of who put the model up.
        echoes: tell the client the id of its request. Ray Serve's proxy does so itself.
    """

    keys: KeyFile | None
    owner: str | None
    callers: Callers
    backlog: Backlog
    timeout: float
    audit: Audit | None
    clock: Callable[[], float]
    echoes: bool

    @classmethod
    def of(cls, settings: AdmissionSettings, *, echoes: bool, clock: Callable[[], float] = time.monotonic) -> Admission:
        """As the settings want it.

        Raises:
            InvalidInput: the file of keys cannot be read, or the audit's folder cannot be written.
        """
        spec = settings.spec
        limits = Limits(spec.requests_per_minute, spec.tokens_per_minute, spec.max_concurrent_requests)
        return cls(
            keys=KeyFile(Path(settings.keys), clock) if settings.keys else None,
            owner=settings.owner,
            callers=Callers(limits, settings.replicas, clock),
            backlog=Backlog(settings.slots, spec.max_queued, clock),
            timeout=spec.timeout_seconds,
            audit=Audit(spec.audit) if spec.audit else None,
            clock=clock,
            echoes=echoes,
        )

    def identify(self, authorization: str) -> ApiKey | None:
        """Whose key it is; None where none is needed.

        Raises:
            OpenAIError: 401.
        """
        if self.keys is None:
            return None
        given = authorization.removeprefix("Bearer ")
        if self.owner is not None and digest(given) == self.owner:
            return ApiKey.model_construct(name=OWNER, digest=self.owner)
        return self.keys.find(authorization)
