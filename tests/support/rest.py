"""A small asynchronous client of the Kubernetes API for programs that play controllers in tests.

It outlives restarts of the API server: a request is repeated until it is answered, a watch goes on for ever.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

Object = dict[str, Any]
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
PAUSE = 0.05
UNREACHABLE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError, OSError)


class Refused(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Kind:
    """Where objects of a kind are found."""

    api: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        parts = [self.api, f"namespaces/{namespace}" if namespace else None, self.plural, name, subresource]
        return "/" + "/".join(part for part in parts if part)


RUNS = Kind("apis/plumbline.dev/v1alpha1", "alignmentruns")
RAY_JOBS = Kind("apis/ray.io/v1", "rayjobs")
RAY_SERVICES = Kind("apis/ray.io/v1", "rayservices")
JOBS = Kind("apis/batch/v1", "jobs")
PODS = Kind("api/v1", "pods")
CONFIG_MAPS = Kind("api/v1", "configmaps")
SECRETS = Kind("api/v1", "secrets")
CLAIMS = Kind("api/v1", "persistentvolumeclaims")
EVENTS = Kind("api/v1", "events")
SERVICE_ACCOUNTS = Kind("api/v1", "serviceaccounts")
ROLES = Kind("apis/rbac.authorization.k8s.io/v1", "roles")
ROLE_BINDINGS = Kind("apis/rbac.authorization.k8s.io/v1", "rolebindings")
NETWORK_POLICIES = Kind("apis/networking.k8s.io/v1", "networkpolicies")
LEASES = Kind("apis/coordination.k8s.io/v1", "leases")
DEFINITIONS = Kind("apis/apiextensions.k8s.io/v1", "customresourcedefinitions")
WORKLOADS = Kind("apis/kueue.x-k8s.io/v1beta1", "workloads")
LOCAL_QUEUES = Kind("apis/kueue.x-k8s.io/v1beta1", "localqueues")


class Rest:
    """The API server of a kubeconfig, as the user of its current context."""

    def __init__(self, kubeconfig: str) -> None:
        value = yaml.safe_load(Path(kubeconfig).read_text())
        cluster, user = value["clusters"][0]["cluster"], value["users"][0]["user"]
        self.url = cluster["server"]
        self._token = user["token"]
        self.tls = ssl.create_default_context()
        if "certificate-authority-data" in cluster:
            self.tls.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        else:
            self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._token}"}
        self._session = aiohttp.ClientSession(
            self.url, headers=headers, connector=aiohttp.TCPConnector(ssl=self.tls, limit=64)
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Object:
        """Until it is answered.

        Raises:
            Refused: with a 4xx that will not pass by itself.
        """
        data = None if body is None else json.dumps(body)
        while True:
            try:
                timeout = aiohttp.ClientTimeout(total=20)
                async with self._session.request(
                    method, path, data=data, headers={"Content-Type": content}, timeout=timeout
                ) as answer:
                    text = await answer.text()
                    if answer.status < 300:
                        found: Object = json.loads(text)
                        return found
                    if not _passes(answer.status, text):
                        raise Refused(answer.status, text)
            except UNREACHABLE:
                pass
            await asyncio.sleep(PAUSE)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return await self.request("GET", kind.path(namespace, name))
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise

    async def create(self, kind: Kind, value: Object) -> Object:
        """The object, also where an earlier request whose answer was lost has made it."""
        namespace, name = value["metadata"]["namespace"], value["metadata"]["name"]
        try:
            return await self.request("POST", kind.path(namespace), value)
        except Refused as refusal:
            if refusal.status != 409 or (found := await self.get(kind, namespace, name)) is None:
                raise
            return found

    async def patch(self, kind: Kind, namespace: str, name: str, body: Any, subresource: str | None = None) -> Object | None:
        """Merge patch; None where the object is gone."""
        try:
            return await self.request("PATCH", kind.path(namespace, name, subresource), body, MERGE)
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise

    async def replace_status(self, kind: Kind, namespace: str, name: str, status: Object) -> None:
        """The whole status, where a merge patch would keep parts of the one before."""
        body = [{"op": "add", "path": "/status", "value": status}]
        try:
            await self.request("PATCH", kind.path(namespace, name, "status"), body, JSON_PATCH)
        except Refused as refusal:
            if refusal.status != 404:
                raise

    async def delete(self, kind: Kind, namespace: str, name: str) -> None:
        try:
            await self.request("DELETE", kind.path(namespace, name), {"propagationPolicy": "Background"})
        except Refused as refusal:
            if refusal.status != 404:
                raise

    async def follow(self, kind: Kind) -> AsyncIterator[tuple[str, Object]]:
        """Every change of every object of a kind, for ever, as (`ADDED`, `MODIFIED` or `DELETED`, object).

        A kind that the server does not serve is waited for. What vanished while nobody watched is `DELETED` too.
        """
        known: dict[str, Object] = {}
        while True:
            try:
                found = await self.request("GET", kind.path())
                listed = {one["metadata"]["uid"]: one for one in found.get("items", [])}
                for uid in [uid for uid in known if uid not in listed]:
                    yield "DELETED", known.pop(uid)
                for uid, one in listed.items():
                    yield "MODIFIED" if uid in known else "ADDED", one
                known = listed
                async for type, value in self._watch(kind, found["metadata"]["resourceVersion"]):
                    if type == "DELETED":
                        known.pop(value["metadata"]["uid"], None)
                    else:
                        known[value["metadata"]["uid"]] = value
                    yield type, value
            except (*UNREACHABLE, Refused):
                pass
            await asyncio.sleep(PAUSE * 4)

    async def _watch(self, kind: Kind, version: str) -> AsyncIterator[tuple[str, Object]]:
        parameters = {"watch": "true", "resourceVersion": version}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with self._session.get(kind.path(), params=parameters, timeout=timeout) as answer:
            if answer.status != 200:
                return
            unfinished = b""
            async for chunk in answer.content.iter_any():
                *lines, unfinished = (unfinished + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    yield event["type"], event["object"]


def _passes(status: int, text: str) -> bool:
    """Whether a refusal will pass: also that of an API server that has just started, where an administrator has no rights
    yet and types are unknown."""
    if status == 404:
        try:
            return "name" not in (json.loads(text).get("details") or {})
        except ValueError:
            return True
    return status >= 500 or status in (401, 403, 429)
