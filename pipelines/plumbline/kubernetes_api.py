"""Meeting the Kubernetes API: the client, and its errors in words. The client library is imported when it is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.errors import InvalidInput, one_line

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

TIMEOUT = (5, 20)  # seconds to connect, and to wait for an answer
MERGE_PATCH = "application/merge-patch+json"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def connect(context: str | None = None) -> tuple[ApiClient, str]:
    """A client and its default namespace: of the kubeconfig, or of the Pod that this runs in where there is none.

    Args:
        context: of the kubeconfig; None takes the current one.

    Raises:
        InvalidInput: no cluster is configured, or the kubeconfig cannot be read or has no such context.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    configuration.retries = False  # the callers know better when trying again makes sense
    given = os.environ.get("KUBECONFIG")
    file = given or str(Path("~/.kube/config").expanduser())
    in_pod = context is None and "KUBERNETES_SERVICE_HOST" in os.environ and not given and not Path(file).exists()
    try:
        if in_pod:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return client.ApiClient(configuration), (ACCOUNT / "namespace").read_text().strip()
        contexts, current = config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
        config.load_kube_config(file, context, configuration)  # type: ignore[no-untyped-call]
    except Exception as error:  # a broken file makes the client stumble in many ways
        hint = f"set KUBECONFIG (now {file}), or --context to one that `kubectl config get-contexts` lists"
        raise InvalidInput(f"no cluster is configured: {one_line(error)}; {hint}") from error
    chosen = next((one for one in contexts if one["name"] == context), current)
    return client.ApiClient(configuration), chosen["context"].get("namespace") or "default"


def words(error: BaseException) -> str:
    """What the API server said, or why it cannot be reached."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        try:
            said = json.loads(error.body or "")["message"]
        except (TypeError, ValueError, KeyError):
            said = error.reason
        return f"{said} ({error.status})"
    if isinstance(error, HTTPError):
        return f"the API server does not answer: {one_line(error)}"
    return one_line(error)
