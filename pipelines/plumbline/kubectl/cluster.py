"""What the commands ask the Kubernetes API: runs, their Pods, logs, events and reports."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from plumbline.api import labels
from plumbline.api.report import StageReport, stage_key
from plumbline.api.run import GROUP, PLURAL, VERSION
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.kubernetes_api import MERGE_PATCH, TIMEOUT, connect, words

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

COMPONENT = "app.kubernetes.io/component"
OURS = ("ray-head", "plan")
"""Containers that run our programs. A service mesh may put its own before them."""
SHOWN_NAMES = 20
Run = dict[str, Any]
"""An AlignmentRun as the API server has it. Its status may come from another version, so it is read field by field."""


class NotFound(PlumblineError):
    """The API server knows no such thing."""


class NotStarted(PlumblineError):
    """The Pod is there; its container is not yet."""


class Refused(InvalidInput):
    """The API server does not let us."""


@contextmanager
def asking() -> Iterator[None]:
    """The client's errors as sentences for people."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        kind = {401: Refused, 403: Refused, 404: NotFound}.get(error.status or 0, PlumblineError)
        raise kind(words(error)) from error
    except HTTPError as error:
        raise PlumblineError(words(error)) from error


class Cluster:
    """One namespace of a cluster.

    Args:
        context: of the kubeconfig; None takes the current one.
        namespace: None takes that of the context.

    Raises:
        InvalidInput: no cluster is configured.
    """

    def __init__(self, context: str | None = None, namespace: str | None = None) -> None:
        from kubernetes import client

        api, default = connect(context)
        self.context, self.namespace = context, namespace or default
        self._objects, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def runs(self) -> list[Run]:
        """All runs of the namespace.

        Raises:
            InvalidInput: the cluster does not know the type.
        """
        try:
            with asking():
                found: Any = self._objects.list_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, _request_timeout=TIMEOUT
                )
        except NotFound:
            raise InvalidInput(
                "this cluster knows no AlignmentRun; install Plumbline's chart, or `plumbline crd | kubectl apply --server-side -f -`"
            ) from None
        return list(found["items"])

    def run(self, name: str) -> Run:
        """One run.

        Raises:
            InvalidInput: there is none of this name; with names that are near.
        """
        try:
            with asking():
                found: Any = self._objects.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=TIMEOUT
                )
        except NotFound:
            names = [run["metadata"]["name"] for run in self.runs()]
            raise InvalidInput(f"no run '{name}' in namespace '{self.namespace}'; {near(name, names)}") from None
        return dict(found)

    def patch(self, name: str, change: dict[str, Any]) -> None:
        """Merge a change into a run."""
        with asking():
            self._objects.patch_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, change, _content_type=MERGE_PATCH, _request_timeout=TIMEOUT
            )

    def events(self, run: Run) -> list[dict[str, str]]:
        """Events about a run, the latest last: time, type, reason, message. None where we may not read them."""
        try:
            with asking():
                found: Any = self._core.list_namespaced_event(
                    self.namespace,
                    field_selector=f"involvedObject.name={run['metadata']['name']}",
                    _request_timeout=TIMEOUT,
                )
        except Refused:
            return []
        rows = [
            {
                "time": (event.last_timestamp or event.event_time or event.metadata.creation_timestamp).isoformat(),
                "type": event.type or "Normal",
                "reason": event.reason or "",
                "message": event.message or "",
            }
            for event in found.items
            if event.involved_object.uid == run["metadata"]["uid"]
        ]
        return sorted(rows, key=lambda row: row["time"])

    def pod(self, run: Run, **wanted: str) -> V1Pod | None:
        """The latest Pod of a run with these labels, which go by their short names in `SELECTORS`."""
        selector = [f"{labels.RUN_UID}={run['metadata']['uid']}"]
        selector += [f"{SELECTORS[name]}={value}" for name, value in wanted.items()]
        with asking():
            found: Any = self._core.list_namespaced_pod(
                self.namespace, label_selector=",".join(selector), _request_timeout=TIMEOUT
            )
        pods: list[Any] = found.items
        return max(pods, key=lambda pod: pod.metadata.creation_timestamp, default=None)

    def logs(self, pod: V1Pod, follow: bool) -> Iterator[bytes]:
        """The log of our container in a Pod, in pieces.

        Raises:
            NotStarted: it has none yet.
        """
        from kubernetes.client import ApiException

        assert pod.metadata is not None
        assert pod.spec is not None
        containers = [container.name for container in pod.spec.containers]
        with asking():
            try:
                answer: Any = self._core.read_namespaced_pod_log(
                    str(pod.metadata.name),
                    self.namespace,
                    container=next((name for name in containers if name in OURS), containers[0]),
                    follow=follow,
                    _preload_content=False,
                    _request_timeout=(TIMEOUT[0], 24 * 3600) if follow else TIMEOUT,
                )
            except ApiException as error:
                if error.status == 400:
                    raise NotStarted(words(error)) from error
                raise
            try:
                yield from answer.stream(amt=None, decode_content=True)
            finally:
                answer.release_conn()

    def report(self, run: Run, stage: str) -> StageReport | None:
        """The last word of a stage, where there is one that can be read."""
        selector = f"{labels.RUN_UID}={run['metadata']['uid']},{COMPONENT}=state"
        try:
            with asking():
                found = self._core.list_namespaced_config_map(
                    self.namespace, label_selector=selector, _request_timeout=TIMEOUT
                )
        except Refused:
            return None
        for state in found.items:
            text = (state.data or {}).get(stage_key(stage))
            try:
                return StageReport.model_validate_json(text, by_name=False, by_alias=True) if text else None
            except ValidationError:
                return None
        return None


SELECTORS = {"stage": labels.STAGE, "node": "ray.io/node-type", "component": COMPONENT}
"""Short names of the labels that tell Pods apart."""


def near(name: str, names: list[str]) -> str:
    """`did you mean …?`, or what there is."""
    close = difflib.get_close_matches(name, names, n=1)
    if close or not names:
        return f"did you mean '{close[0]}'?" if close else "there is none"
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"there are: {', '.join(names[:SHOWN_NAMES])}{more}"
