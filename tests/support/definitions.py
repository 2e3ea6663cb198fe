"""Types that an API server is to know."""

from __future__ import annotations

import time

from kubernetes import client

from support.rest import Object

PATIENCE = 120


def establish(extensions: client.ApiextensionsV1Api, definition: Object) -> None:
    """Create a CustomResourceDefinition, and return when the server knows its type."""
    extensions.create_custom_resource_definition(definition, _preload_content=False)
    name, deadline = definition["metadata"]["name"], time.monotonic() + PATIENCE
    while not any(
        one.type == "Established" and one.status == "True"
        for one in extensions.read_custom_resource_definition(name).status.conditions or []
    ):
        assert time.monotonic() < deadline, f"{name} was not established"
        time.sleep(0.05)
