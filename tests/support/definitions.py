"""Types that an API server is to know."""

from __future__ import annotations

from kubernetes import client

from support.patience import wait_for
from support.rest import Object


def establish(extensions: client.ApiextensionsV1Api, definition: Object) -> None:
    """Create a CustomResourceDefinition, and return when the server knows its type."""
    extensions.create_custom_resource_definition(definition, _preload_content=False)
    name = definition["metadata"]["name"]
    wait_for(
        lambda: any(
            one.type == "Established" and one.status == "True"
            for one in extensions.read_custom_resource_definition(name).status.conditions or []
        ),
        why=lambda: f"{name} was not established",
    )
