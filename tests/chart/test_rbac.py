"""Who may do what. That the operator can work under these rules is tested in tests/operator."""

from __future__ import annotations

import pytest

from support.chart import NAMESPACE, Object, one, render

SCOPES: dict[str, Object] = {
    "namespaced": {"watchNamespaces": ["team-a", "team-b"]},
    "cluster": {"scope": "cluster"},
    "all rules": {"readableSecrets": ["hub-token"], "stagePods": {"networkPolicy": True}},
}


def rules(objects: list[Object]) -> list[Object]:
    return [rule for value in objects if value["kind"] in ("Role", "ClusterRole") for rule in value["rules"]]


def operator_rules(objects: list[Object]) -> list[Object]:
    return [rule for value in objects if value["metadata"]["name"] == "plumbline" for rule in value.get("rules", ())]


@pytest.mark.parametrize("values", SCOPES.values(), ids=SCOPES)
def test_no_wildcards_and_no_power_over_pods_or_roles_beyond_use(values: Object) -> None:
    for rule in rules(render(values)):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not {"bind", "escalate", "impersonate"} & set(rule["verbs"])
        if "pods" in rule["resources"]:
            assert rule["verbs"] == ["list", "watch"]
        if {"roles", "rolebindings", "serviceaccounts"} & set(rule["resources"]):
            assert rule["verbs"] == ["get", "create", "patch"]


def test_secrets_only_by_name() -> None:
    assert not [rule for rule in rules(render()) if "secrets" in rule["resources"]]
    found = [rule for rule in rules(render({"readableSecrets": ["a", "b"]})) if "secrets" in rule["resources"]]
    assert found == [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "b"], "verbs": ["get"]}]


def test_network_policies_only_where_they_are_made() -> None:
    def may(values: Object) -> bool:
        return any("networkpolicies" in rule["resources"] for rule in rules(render(values)))

    assert not may({})
    assert may({"stagePods": {"networkPolicy": True}})


def test_namespaced_scope_has_a_role_in_each_watched_namespace_and_none_for_the_cluster() -> None:
    objects = render({"watchNamespaces": ["team-a", "team-b", "team-a"], "userRoles": {"enabled": False}})
    kinds = {value["kind"] for value in objects}
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds
    for kind in ("Role", "RoleBinding"):
        found = [v["metadata"]["namespace"] for v in objects if v["kind"] == kind and v["metadata"]["name"] == "plumbline"]
        assert found == ["team-a", "team-b"]
    subject = {"kind": "ServiceAccount", "name": "plumbline", "namespace": NAMESPACE}
    assert all(value["subjects"] == [subject] for value in objects if value["kind"] == "RoleBinding")
    arguments = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [argument for argument in arguments if "namespace" in argument] == ["--namespace=team-a", "--namespace=team-b"]


def test_without_watched_namespaces_it_is_the_releases_own() -> None:
    found = [v["metadata"]["namespace"] for v in render() if v["kind"] == "Role" and v["metadata"]["name"] == "plumbline"]
    assert found == [NAMESPACE]


def test_cluster_scope_has_one_cluster_role_and_the_lease_alone_in_its_namespace() -> None:
    objects = render({"scope": "cluster"})
    assert [value["metadata"]["name"] for value in objects if value["kind"] == "ClusterRoleBinding"] == ["plumbline"]
    assert [value["metadata"]["name"] for value in objects if value["kind"] == "Role"] == ["plumbline-lease"]
    arguments = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [argument for argument in arguments if "namespace" in argument] == ["--all-namespaces"]


def test_both_scopes_grant_the_same() -> None:
    assert operator_rules(render()) == operator_rules(render({"scope": "cluster"}))


def test_only_its_own_lease_can_be_taken() -> None:
    for release in ("plumbline", "other"):
        objects = render(name=release)
        lease = next(
            argument.removeprefix("--lease=")
            for argument in one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
            if argument.startswith("--lease=")
        )
        found = one(objects, "Role", f"{lease}-lease")["rules"]
        assert [rule.get("resourceNames") for rule in found] == [None, [lease]]
        assert [rule["verbs"] for rule in found] == [["create"], ["get", "update"]]


def test_the_operator_holds_what_it_grants_to_stage_pods() -> None:
    """RBAC lets nobody create a Role that allows more than they may themselves."""
    from plumbline.api.run import RunSpec
    from plumbline_operator.builders import build
    from plumbline_operator.desired import Access
    from plumbline_operator.observed import Meta
    from plumbline_operator.settings import StagePods

    run = Meta("default", "run", "uid", 1, 1, 0.0, None, None, {}, {})
    spec = RunSpec.model_validate(
        {
            "model": {"base": "builtin://tiny"},
            "workspace": {"uri": "work"},
            "stages": [{"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}}],
        }
    )
    held = {
        (group, resource, verb)
        for rule in operator_rules(render())
        if "resourceNames" not in rule
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    granted = {
        (group, resource, verb)
        for rule in one(build(Access(), run, spec, StagePods()), "Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted
    assert granted <= held


def test_people_get_alignment_runs_with_the_built_in_roles() -> None:
    objects = render()
    aggregated = "rbac.authorization.k8s.io/aggregate-to-"
    verbs = {}
    for name in ("viewer", "editor", "admin"):
        role = one(objects, "ClusterRole", f"plumbline-{name}")
        into = [label.removeprefix(aggregated) for label in role["metadata"]["labels"] if label.startswith(aggregated)]
        verbs[name] = (into, set(role["rules"][0]["verbs"]))
        assert role["rules"][1]["verbs"] == ["get"]
    assert verbs["viewer"] == (["view", "edit", "admin"], {"get", "list", "watch"})
    assert verbs["editor"][0] == ["edit", "admin"]
    assert verbs["admin"][0] == ["admin"]
    assert verbs["viewer"][1] < verbs["editor"][1] < verbs["admin"][1]
