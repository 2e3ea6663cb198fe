"""Among how many replicas the limits are divided when their number follows the load: the one file of admission that knows Ray."""

from __future__ import annotations

import asyncio
import logging

from ray import serve

from plumbline.serving.admission.limits import Callers

log = logging.getLogger(__name__)
LOOK_SECONDS = 10.0


async def follow_replicas(callers: Callers) -> None:
    """Divide by as many replicas as run, for ever. For a task of a replica."""
    context = serve.get_replica_context()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            running = await asyncio.to_thread(running_replicas, context.app_name, context.deployment)
        except Exception as error:  # Serve's controller is away: what was known last holds
            log.warning("limits stay divided as they were: %s", error)
        else:
            callers.divide(max(1, running))


def running_replicas(application: str, deployment: str) -> int:
    """Replicas that take requests."""
    states = serve.status().applications[application].deployments[deployment].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")
