"""AlignmentRuns on a real API server."""

from __future__ import annotations

from typing import Any

from kubernetes import client

from plumbline.api.run import GROUP, PLURAL, VERSION


class Runs:
    """AlignmentRuns in the namespace `default`, always with strict field validation."""

    def __init__(self, api: client.ApiClient) -> None:
        self.api = api
        self._objects = client.CustomObjectsApi(api)
        self._where = (GROUP, VERSION, "default", PLURAL)

    def create(self, run: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
        extra = {"dry_run": "All"} if dry_run else {}
        stored: dict[str, Any] = self._objects.create_namespaced_custom_object(
            *self._where, run, field_validation="Strict", **extra
        )
        return stored

    def replace(self, run: dict[str, Any]) -> dict[str, Any]:
        stored: dict[str, Any] = self._objects.replace_namespaced_custom_object(
            *self._where, run["metadata"]["name"], run, field_validation="Strict"
        )
        return stored

    def patch_status(self, name: str, status: dict[str, Any]) -> dict[str, Any]:
        stored: dict[str, Any] = self._objects.patch_namespaced_custom_object_status(
            *self._where, name, {"status": status}, field_validation="Strict"
        )
        return stored

    def read(self, name: str) -> dict[str, Any]:
        stored: dict[str, Any] = self._objects.get_namespaced_custom_object(*self._where, name)
        return stored

    def apply(self, run: dict[str, Any], manager: str = "kubectl") -> dict[str, Any]:
        """Server-side apply, as `kubectl apply --server-side` does it."""
        self._objects.patch_namespaced_custom_object(
            *self._where,
            run["metadata"]["name"],
            run,
            field_manager=manager,
            field_validation="Strict",
            _content_type="application/apply-patch+yaml",
        )
        return self.read(run["metadata"]["name"])  # the client does not decode a 201 to a patch
