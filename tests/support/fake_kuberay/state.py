"""The run's ConfigMap, as the programs of the run write it."""

from __future__ import annotations

import asyncio
import json

from plumbline.api.report import StageReport, stage_key
from plumbline.api.run import AlignmentRun
from plumbline.graph import build_graph
from plumbline.plan import Plan
from plumbline_operator import names
from support.rest import CONFIG_MAPS, Object, Rest


class StateFile:
    """ConfigMaps of runs. One that is gone is waited for: the operator makes it anew."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def write(self, namespace: str, run: str, data: dict[str, str]) -> None:
        """One merge patch."""
        while await self._rest.patch(CONFIG_MAPS, namespace, names.state(run), {"data": data}) is None:
            await asyncio.sleep(0.1)

    async def report(self, namespace: str, run: str, stage: str, report: StageReport) -> None:
        """Unless a later attempt has spoken."""
        text = (await self._data(namespace, run)).get(stage_key(stage))
        if text is not None:
            try:
                if json.loads(text)["attempt"] > report.attempt:
                    return
            except (ValueError, KeyError, TypeError):
                pass
        await self.write(namespace, run, {stage_key(stage): report.model_dump_json(by_alias=True, exclude_none=True)})

    async def plan(self, namespace: str, run: str, key: str) -> Plan | None:
        """The RUN.json under a key, or None where there is none."""
        text = (await self._data(namespace, run)).get(key)
        if text is None:
            return None
        value = json.loads(text)
        found = AlignmentRun.model_validate(value["run"], by_name=False, by_alias=True)
        graph = build_graph(found.spec)
        return Plan(found, graph, value["fingerprints"], value["identities"], value["workspace"])

    async def _data(self, namespace: str, run: str) -> Object:
        found = await self._rest.get(CONFIG_MAPS, namespace, names.state(run))
        data: Object = (found or {}).get("data") or {}
        return data
