"""Whether what a run names is there: checked before a Job starts that could only wait for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from plumbline.api.run import RunSpec
from plumbline_operator.cluster import ApiError, Cluster
from plumbline_operator.kinds import LOCAL_QUEUES, RESOURCES, Resource
from plumbline_operator.settings import Settings

log = logging.getLogger(__name__)
REMEMBERED = 300.0  # seconds that a positive answer holds


class References:
    """Looks up claims, queues and those Secrets that the operator may read."""

    def __init__(self, cluster: Cluster, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._settings, self._clock = cluster, settings, clock
        self._there: dict[tuple[str, str, str], float] = {}

    async def missing(self, namespace: str, spec: RunSpec) -> tuple[tuple[str, str], ...]:
        """(kind, name) of what the run names and does not exist."""
        return tuple([one for one in self._named(spec) if not await self._exists(namespace, *one)])

    def _named(self, spec: RunSpec) -> Iterator[tuple[str, str]]:
        path = "://" not in spec.workspace.uri or spec.workspace.uri.startswith("file://")
        claim = spec.workspace.persistent_volume_claim or (self._settings.stage_pods.claim if path else None)
        if claim is not None:
            yield "PersistentVolumeClaim", claim
        if spec.queue_name is not None:
            yield "LocalQueue", spec.queue_name
        for secret in (spec.workspace.credentials_secret, spec.model.token_secret):
            if secret is not None and secret in self._settings.readable_secrets:
                yield "Secret", secret

    async def _exists(self, namespace: str, kind: str, name: str) -> bool:
        now = self._clock()
        if self._there.get((kind, namespace, name), 0.0) > now:
            return True
        resources = LOCAL_QUEUES if kind == "LocalQueue" else (RESOURCES[kind],)
        if not any([await self._answers(resource, namespace, name) for resource in resources]):
            return False
        self._there[kind, namespace, name] = now + REMEMBERED
        return True

    async def _answers(self, resource: Resource, namespace: str, name: str) -> bool:
        try:
            await self._cluster.get(resource, namespace, name)
        except ApiError as error:
            if error.not_found:
                return False
            if error.status != 403:
                raise
            # Not being allowed to look is no reason to refuse the run: its Pods will say what they lack.
            log.warning("%s '%s' cannot be looked up: %s", resource.kind, name, error)
        return True
