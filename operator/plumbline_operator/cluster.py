"""The Kubernetes API: the only file that writes to it. kopf reads it beside us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import aiohttp
import kopf

from plumbline.api import labels
from plumbline_operator import metrics
from plumbline_operator.kinds import BUILT_IN, RAY, RESOURCES, RUN, WORKLOADS, Resource

Object = dict[str, Any]
FIELD_MANAGER = "plumbline-operator"
CONNECT_TIMEOUT, REQUEST_TIMEOUT = 5.0, 10.0  # seconds
PAGE = 500
_AS = "application/json;as={};g=meta.k8s.io;v=v1,application/json"
METADATA, METADATA_LIST = _AS.format("PartialObjectMetadata"), _AS.format("PartialObjectMetadataList")
_METHODS = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "get": "GET", "list": "GET"}
_READS = ("get", "list")


class ApiError(Exception):
    """The API server refused. `status` is the HTTP status, `reason` Kubernetes' word for it, the text its message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason

    @property
    def not_found(self) -> bool:
        """There is no such object, or no such kind."""
        return self.status == 404

    @property
    def gone(self) -> bool:
        """There is no such object. Of a kind that it does not know (yet, while it starts) the API server says less."""
        return self.not_found and self.reason == "NotFound"

    @property
    def exists(self) -> bool:
        return self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """What was read before is no longer so; reading again helps."""
        return self.status == 409 and not self.exists


class NotLeading(Exception):
    """This process may not write: another one leads, or may lead by now."""


def login() -> kopf.ConnectionInfo:
    """Credentials of the Pod's service account, else of the kubeconfig.

    Raises:
        kopf.LoginError: neither is there.
    """
    settings = kopf.OperatorSettings()
    found = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        raise kopf.LoginError("no credentials for Kubernetes: neither a service account nor KUBECONFIG nor ~/.kube/config")
    return found


class Cluster:
    """A client of the Kubernetes API, for one event loop.

    Args:
        may_write: asked before each write; where it says no, the write raises `NotLeading`.

    All methods raise `ApiError`, `aiohttp.ClientError` or `TimeoutError`.
    """

    def __init__(self, may_write: Callable[[], bool] = lambda: True) -> None:
        self._may_write = may_write
        self._credentials: kopf.ConnectionInfo | None = None
        self._session: aiohttp.ClientSession | None = None
        self._login = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._log_in(None)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, kind: str | Resource, namespace: str, name: str) -> Object:
        resource = kind if isinstance(kind, Resource) else RESOURCES[kind]
        return await self._do("get", resource, namespace, name)

    async def exists(self, resource: Resource, namespace: str, name: str) -> bool:
        """Whether there is such an object. What a Secret holds is not asked for."""
        try:
            await self._do("get", resource, namespace, name, accept=METADATA)
        except ApiError as error:
            if error.not_found:
                return False
            raise
        return True

    async def create(self, value: Object) -> Object:
        resource, namespace = RESOURCES[value["kind"]], value["metadata"]["namespace"]
        return await self._do("create", resource, namespace, body=value, query={"fieldManager": FIELD_MANAGER})

    async def update(self, value: Object) -> Object:
        """Replace an object; it holds the resourceVersion that was read."""
        resource, meta = RESOURCES[value["kind"]], value["metadata"]
        return await self._do("update", resource, meta["namespace"], meta["name"], body=value)

    async def apply(self, value: Object, uid: str) -> Object:
        """Apply a whole object on the server's side, if it still is the one with that UID."""
        meta = value["metadata"]
        body = {**value, "metadata": {**meta, "uid": uid}}
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        kind = "application/apply-patch+yaml"  # JSON is YAML
        return await self._do("patch", RESOURCES[value["kind"]], meta["namespace"], meta["name"], kind, body, query)

    async def hand_over(self, live: Object) -> None:
        """Make server-side apply the owner of what was created, so that it can also take fields away."""
        meta = live["metadata"]
        for index, entry in enumerate(meta.get("managedFields") or ()):
            created = entry.get("operation") == "Update" and not entry.get("subresource")
            if entry.get("manager") == FIELD_MANAGER and created:
                change = {"op": "replace", "path": f"/metadata/managedFields/{index}/operation", "value": "Apply"}
                await self.patch_json(live["kind"], meta["namespace"], meta["name"], meta["resourceVersion"], [change])

    async def merge(self, kind: str, namespace: str, name: str, body: Object) -> Object:
        """Merge-patch."""
        return await self._do("patch", RESOURCES[kind], namespace, name, "application/merge-patch+json", body)

    async def patch_json(
        self, kind: str, namespace: str, name: str, version: str, changes: list[Object], subresource: str = ""
    ) -> Object:
        """JSON-patch the version that was read: the answer is a conflict where there is a later one."""
        lock = {"op": "replace", "path": "/metadata/resourceVersion", "value": version}
        content = "application/json-patch+json"
        query = {"fieldManager": FIELD_MANAGER}
        return await self._do("patch", RESOURCES[kind], namespace, name, content, [lock, *changes], query, subresource)

    async def write_status(self, namespace: str, name: str, version: str, status: Object) -> Object:
        """Replace the status of a run."""
        change = {"op": "add", "path": "/status", "value": status}
        return await self.patch_json(RUN.kind, namespace, name, version, [change], "status")

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> Object:
        """Delete the object with that UID; what it owns goes after it."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        return await self._do("delete", RESOURCES[kind], namespace, name, body=options)

    async def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object by a list of one: needs no right that watching does not need."""
        query = {"fieldSelector": f"metadata.name={name}"}
        if resource.selector:
            query["labelSelector"] = resource.selector
        found = await self._do("list", resource, namespace, query=query)
        items = found.get("items") or []
        return {**items[0], "kind": resource.kind, "apiVersion": resource.group_version} if items else None

    async def metadata(self, resource: Resource, namespace: str | None) -> AsyncIterator[Object]:
        """Metadata of all objects of a kind that the operator watches, page by page."""
        query = {"limit": str(PAGE)}
        if resource.selector:
            query["labelSelector"] = resource.selector
        while True:
            page = await self._do("list", resource, namespace, query=query, accept=METADATA_LIST)
            for item in page.get("items") or ():
                yield item["metadata"]
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            query["continue"] = token

    async def pods(self, namespace: str, run_uid: str, stage: str) -> list[Object]:
        """Pods of a stage as they are now: the watch of Pods may be behind that of RayJobs."""
        query = {"labelSelector": f"{labels.RUN_UID}={run_uid},{labels.STAGE}={stage}"}
        found = await self._do("list", RESOURCES["Pod"], namespace, query=query)
        return [{**item, "kind": "Pod", "apiVersion": "v1"} for item in found.get("items") or ()]

    async def served(self) -> frozenset[Resource]:
        """Which of the kinds that the operator watches the API server has; of two versions the later one."""
        found = set(BUILT_IN)
        listed: dict[str, set[str]] = {}
        for resource in (RUN, *RAY, *WORKLOADS):
            if any(resource.kind == other.kind for other in found):
                continue
            if resource.group_version not in listed:
                listed[resource.group_version] = await self._plurals(resource.group_version)
            if resource.plural in listed[resource.group_version]:
                found.add(resource)
        return frozenset(found)

    async def _plurals(self, group_version: str) -> set[str]:
        try:
            answer = await self._request("get", "discovery", f"/apis/{group_version}")
        except ApiError as error:
            if error.not_found:
                return set()
            raise
        return {one["name"] for one in answer.get("resources") or ()}

    async def _do(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str = "",
        content: str = "application/json",
        body: Object | list[Object] | None = None,
        query: dict[str, str] | None = None,
        subresource: str = "",
        accept: str = "application/json",
    ) -> Object:
        if verb not in _READS and not self._may_write():
            raise NotLeading
        path = resource.path(namespace, name, subresource)
        what = f"{resource.plural}/{subresource}" if subresource else resource.plural
        return await self._request(verb, what, path, content, body, query, accept)

    async def _request(
        self,
        verb: str,
        what: str,
        path: str,
        content: str = "application/json",
        body: Object | list[Object] | None = None,
        query: dict[str, str] | None = None,
        accept: str = "application/json",
    ) -> Object:
        for again in (True, False):
            credentials, session = self._credentials, self._session
            assert credentials is not None
            assert session is not None
            headers = {"Accept": accept, "Content-Type": content, **credentials.as_http_headers()}
            data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
            url = credentials.server.rstrip("/") + path
            try:
                async with session.request(_METHODS[verb], url, params=query, data=data, headers=headers) as response:
                    answer = await response.read()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError):
                metrics.API_REQUESTS.labels(verb, what, "none").inc()
                raise
            metrics.API_REQUESTS.labels(verb, what, str(status)).inc()
            if status == 401 and again:  # the token was rotated
                await self._log_in(credentials)
                continue
            if status >= 400:
                raise _error(status, answer)
            value: Object = json.loads(answer)
            return value
        raise AssertionError("the second answer returns or raises")

    async def _log_in(self, refused: kopf.ConnectionInfo | None) -> None:
        async with self._login:
            if self._credentials is not refused:
                return  # another request did it meanwhile
            fresh = login()
            old, self._credentials = self._session, fresh
            connector = aiohttp.TCPConnector(limit=32, ssl=fresh.as_ssl_context())
            timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
            agent = {"User-Agent": FIELD_MANAGER}
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, headers=agent, proxy=fresh.proxy_url, trust_env=fresh.trust_env
            )
            if old is not None:  # its requests in hand end by themselves or are made again
                asyncio.get_running_loop().call_later(REQUEST_TIMEOUT, lambda: asyncio.ensure_future(old.close()))


def _error(status: int, answer: bytes) -> ApiError:
    try:
        value = json.loads(answer)
        return ApiError(status, value.get("reason") or "", value.get("message") or "")
    except (ValueError, AttributeError):  # a proxy's answer, not the API server's
        return ApiError(status, "", answer[:300].decode(errors="replace"))
