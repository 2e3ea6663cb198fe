"""kopf, as the watcher: it tells the controller what there is and what is gone, and decides nothing.

There are no change handlers, daemons or timers, so that kopf writes nothing: no annotations, no finalizers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import kopf

from plumbline_operator.cluster import CONNECT_TIMEOUT, PAGE, REQUEST_TIMEOUT, login
from plumbline_operator.controller import Controller
from plumbline_operator.kinds import Resource
from plumbline_operator.observed import project


def registry(controller: Controller, resources: Iterable[Resource], listed: asyncio.Event) -> kopf.OperatorRegistry:
    """Handlers for all kinds.

    Args:
        listed: set when every object of every kind was told once: kopf calls no event handler before that, while indices
            are filled all along.
    """
    handlers = kopf.OperatorRegistry()
    for resource in resources:
        _register(handlers, controller, resource, listed)

    @kopf.on.login(registry=handlers)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return login()

    return handlers


def _register(handlers: kopf.OperatorRegistry, controller: Controller, resource: Resource, listed: asyncio.Event) -> None:
    @kopf.index(*resource.key, id=f"saw-{resource.plural}", registry=handlers)
    async def saw(body: kopf.Body, **_: Any) -> None:
        controller.saw(project({**body, "kind": resource.kind}))

    @kopf.on.event(*resource.key, id=f"heard-{resource.plural}", registry=handlers)
    async def heard(type: str | None, namespace: str | None, name: str, uid: str, meta: kopf.Meta, **_: Any) -> None:
        listed.set()
        if type == "DELETED":
            controller.gone(resource.kind, namespace or "", name, uid, int(meta["resourceVersion"]))


class _NoDifferences(kopf.DiffBaseStorage):
    """What changed is for change handlers, of which there are none: copying each object to find out costs most of its time."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


def settings(resources: Iterable[Resource], watched: set[tuple[str, str, str]]) -> kopf.OperatorSettings:
    """kopf's settings, each with its reason.

    Args:
        resources: the kinds.
        watched: gets (group, version, plural) of what kopf begins to list and watch. It looks once which kinds there are,
            and where an API server that starts does not know all of them yet, it is content with the others.
    """
    chosen = kopf.OperatorSettings()

    def note(resource: Any) -> bool:
        watched.add((resource.group, resource.version, resource.plural))
        return False

    chosen.watching.label_selectors[note] = ""  # kopf asks it before each list and watch
    chosen.process.ultimate_exiting_timeout = None  # it would kill the process long after a session that ended by an error
    chosen.persistence.diffbase_storage = _NoDifferences()
    chosen.posting.enabled = False  # Events are ours
    chosen.scanning.disabled = True  # no rights on namespaces and CRDs; we look for missing kinds ourselves
    chosen.networking.request_timeout = REQUEST_TIMEOUT * 3  # a list of thousands of objects takes its time
    chosen.networking.connect_timeout = CONNECT_TIMEOUT
    chosen.networking.error_backoffs = (1, 1, 2, 3, 5)
    chosen.watching.chunk_size = PAGE  # never all objects in memory at once
    chosen.queueing.idle_timeout = 1.0  # a task for each object that nothing happens to costs memory
    chosen.queueing.exit_timeout = 0.5  # nobody waits longer for the watches to end
    for resource in resources:
        if resource.selector:
            chosen.watching.label_selectors[resource.key] = resource.selector
    return chosen
