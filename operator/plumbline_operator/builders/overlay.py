"""Pod templates laid over one another.

The rule, in the manner of `kubectl patch`: maps are merged; null removes a key; lists whose items have a name are merged by it
(`KEYS`), tolerations and envFrom are added, any other list is replaced. Of two items with one name, containers are merged and
all else is replaced, because a volume or a variable has one source.
"""

from __future__ import annotations

from typing import Any

CONTAINERS = frozenset({"containers", "initContainers"})
KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
}
ADDED = frozenset({"tolerations", "envFrom"})


def lay_over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top. Neither is changed, and whatever stands in them, this raises nothing."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = lay_over(below if isinstance(below, dict) else {}, value)
        elif isinstance(value, list) and isinstance(below, list):
            merged[key] = _lists(key, below, value)
        else:
            merged[key] = value
    return merged


def _lists(key: str, base: list[Any], over: list[Any]) -> list[Any]:
    if key in ADDED:
        return [*base, *(item for item in over if item not in base)]
    if key not in KEYS:
        return over
    name = KEYS[key]
    merged = list(base)
    places = {item[name]: i for i, item in enumerate(base) if _named(item, name)}
    for item in over:
        place = places.get(item[name]) if _named(item, name) else None
        if place is None:
            merged.append(item)
        else:
            merged[place] = lay_over(merged[place], item) if key in CONTAINERS else item
    return merged


def _named(item: Any, name: str) -> bool:
    return isinstance(item, dict) and isinstance(item.get(name), str | int)
