"""What a run's Pods may touch: one ConfigMap, through a ServiceAccount of the run's own."""

from __future__ import annotations

from typing import Any

from plumbline.api.report import rollback_key
from plumbline_operator import names
from plumbline_operator.builders.metadata import Object, Run
from plumbline_operator.builders.network_policy import network_policy
from plumbline_operator.observed import asked_rollback

RBAC = "rbac.authorization.k8s.io"


def access(run: Run) -> list[Object]:
    """ConfigMap (the programs fill it; in its `data` here is what they are asked for), ServiceAccount, Role, RoleBinding, NetworkPolicy."""
    state, account = names.state(run.meta.name), names.stage_account(run.meta.name)
    own = run.labels("access")
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [state], "verbs": ["get", "patch"]}
    subjects = [
        {"kind": "ServiceAccount", "name": name, "namespace": run.meta.namespace}
        for name in (account, *_other_accounts(run))
    ]
    objects: list[Object] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": run.metadata(state, run.labels("state")), **_rollbacks(run)},
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": run.metadata(account, own),
            "automountServiceAccountToken": False,  # Pods that report ask for it
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "Role",
            "metadata": run.metadata(account, own),
            "rules": [rule],
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": run.metadata(account, own),
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": account},
            "subjects": subjects,
        },
    ]
    return [*objects, network_policy(run)] if run.pods.network_policy else objects


def _rollbacks(run: Run) -> Object:
    """What annotations of the run ask of its releases, for the programs that serve: they may read nothing else than this object."""
    found = {}
    for stage in run.spec.stages:
        asked = asked_rollback(run.meta, stage.name)
        if asked is not None:
            found[rollback_key(stage.name)] = asked.model_dump_json(by_alias=True, exclude_none=True)
    return {"data": found} if found else {}


def _other_accounts(run: Run) -> list[str]:
    """Accounts that templates put in place of the run's own, as cloud identities need it; they must report too."""
    clusters = [run.spec.cluster, *(stage.cluster for stage in run.spec.stages)]
    templates: list[Any] = [run.pods.pod_template]
    templates += [cluster.head.template for cluster in clusters if cluster is not None and cluster.head is not None]
    specs = [template.get("spec") for template in templates if template]
    found = [spec.get("serviceAccountName") for spec in specs if isinstance(spec, dict)]
    return sorted({name for name in found if isinstance(name, str) and name})
