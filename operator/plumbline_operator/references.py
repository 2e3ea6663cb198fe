"""Whether what a run names is there: checked before a Job starts that could only wait for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from plumbline.api.run import RunSpec
from plumbline_operator.builders.pods import workspace_mount
from plumbline_operator.cluster import ApiError, Cluster
from plumbline_operator.kinds import LOCAL_QUEUES, RESOURCES, Resource
from plumbline_operator.settings import Settings

log = logging.getLogger(__name__)
REMEMBERED = 300.0  # seconds that a positive answer holds
KEPT = 1000  # answers


class References:
    """Looks up claims, queues and those Secrets that the operator may read."""

    def __init__(self, cluster: Cluster, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._settings, self._clock = cluster, settings, clock
        self._answers: dict[tuple[str, str, str], tuple[bool, float]] = {}  # and until when they hold

    async def missing(self, namespace: str, spec: RunSpec) -> tuple[tuple[str, str], ...]:
        """(kind, name) of what the run names and does not exist."""
        return tuple([one for one in self._named(spec) if not await self._exists(namespace, *one)])

    def _named(self, spec: RunSpec) -> Iterator[tuple[str, str]]:
        workspace = workspace_mount(spec, self._settings.stage_pods)
        if workspace is not None:
            yield "PersistentVolumeClaim", workspace[0]
        if spec.queue_name is not None:
            yield "LocalQueue", spec.queue_name
        specs = [stage.spec for stage in spec.stages]
        of_stages = (name for one in specs for name, _ in [*one.secrets().values(), *one.secret_files().values()])
        for secret in dict.fromkeys((spec.workspace.credentials_secret, spec.model.token_secret, *of_stages)):
            if secret is not None and secret in self._settings.readable_secrets:
                yield "Secret", secret

    async def _exists(self, namespace: str, kind: str, name: str) -> bool:
        now = self._clock()
        exists, until = self._answers.get((kind, namespace, name), (False, now))
        if now < until:
            return exists
        resources = LOCAL_QUEUES if kind == "LocalQueue" else (RESOURCES[kind],)
        exists = any([await self._look(resource, namespace, name) for resource in resources])
        # A thousand runs that wait for one claim ask for it once.
        until = now + (REMEMBERED if exists else self._settings.patience.recheck / 2)
        if len(self._answers) >= KEPT:
            self._answers = {key: answer for key, answer in self._answers.items() if now < answer[1]}
        self._answers[kind, namespace, name] = exists, until
        return exists

    async def _look(self, resource: Resource, namespace: str, name: str) -> bool:
        try:
            return await self._cluster.exists(resource, namespace, name)
        except ApiError as error:
            if error.status != 403:
                raise
            # Not being allowed to look is no reason to refuse the run: its Pods will say what they lack.
            log.warning("%s '%s' cannot be looked up: %s", resource.kind, name, error)
        return True
