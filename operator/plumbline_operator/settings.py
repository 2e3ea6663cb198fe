"""Every setting of the operator, with its default's reason."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

_FROM_FILE = ConfigDict(alias_generator=to_camel, extra="forbid")


class InvalidSettings(Exception):
    """The settings file is wrong; the text says where and how."""


@dataclass(frozen=True)
class StagePods:
    """How the Pods of runs look, as far as runs do not say.

    Attributes:
        image: stage image; it holds the same version of Plumbline as the operator.
        image_pull_policy: `IfNotPresent`, `Always` or `Never`.
        image_pull_secrets: names of Secrets.
        ray_version: Ray's version in the image; KubeRay needs it for token authentication.
        claim: PersistentVolumeClaim for runs whose workspace is a path and that name no claim.
        accelerators: accelerator type (as in `cluster.workers[].accelerator`) → node labels of the nodes that have it.
        network_policy: make one NetworkPolicy for the Pods of each run.
        kuberay_namespace: where KubeRay's operator runs; it must reach the dashboards of Ray clusters.
        pod_template: laid over every Pod template, below what runs say.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FROM_FILE

    image: str = "plumbline:latest"
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    ray_version: str = "2.60.0"
    claim: str | None = None
    accelerators: dict[str, dict[str, str]] = field(default_factory=dict)
    network_policy: bool = False
    kuberay_namespace: str = "kuberay-system"
    pod_template: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Patience:
    """Times in seconds.

    Attributes:
        retry_base, retry_limit: attempt n+1 begins retry_base · 2^(n-1) after failure n, at most retry_limit.
        unreachable: a Ray dashboard that cannot be reached for so long fails the attempt. KubeRay 1.7 itself gives up after
            300 s, earlier versions never.
        result: how long after success the result may take to appear in the run's ConfigMap.
        ending: how long Pods of an earlier attempt may take to end after their grace period; then their node is gone, and
            the attempt number fences whatever still runs there.
        healthy: how long a new endpoint may take to become healthy: image pull, nodes, loading a large model.
        recheck: how often something that is missing is looked for again.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FROM_FILE

    retry_base: float = 10.0
    retry_limit: float = 600.0
    unreachable: float = 360.0
    result: float = 30.0
    ending: float = 300.0
    healthy: float = 1800.0
    recheck: float = 10.0


@dataclass(frozen=True)
class Settings:
    """All of them, as the settings file has them in camelCase.

    Attributes:
        stage_pods: how the Pods of runs look.
        patience: how long to wait for what.
        readable_secrets: Secrets whose existence may be checked before a start; the operator's Role names them.
        progress_interval: seconds between status writes of one run that only tell of progress.
        audit_interval: seconds between comparisons of what the watches told with what there is.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FROM_FILE

    stage_pods: StagePods = field(default_factory=StagePods)
    patience: Patience = field(default_factory=Patience)
    readable_secrets: tuple[str, ...] = ()
    progress_interval: float = 10.0
    audit_interval: float = 120.0


def read(path: Path | None) -> Settings:
    """Settings from a JSON file; all defaults without one.

    Raises:
        InvalidSettings: the file cannot be read, or a key or value is wrong.
    """
    if path is None:
        return Settings()
    try:
        return TypeAdapter(Settings).validate_python(json.loads(path.read_text()))
    except OSError as error:
        raise InvalidSettings(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise InvalidSettings("\n".join(_in_words(path, details) for details in error.errors(include_url=False))) from None
    except ValueError as error:
        raise InvalidSettings(f"{path}: not JSON: {error}") from None


def _in_words(path: Path, details: Any) -> str:
    where = ".".join(str(part) for part in details["loc"])
    if details["type"] == "unexpected_keyword_argument":
        groups = {"stagePods": StagePods, "patience": Patience}
        known = groups[str(details["loc"][0])] if len(details["loc"]) > 1 else Settings
        keys = ", ".join(to_camel(one.name) for one in fields(known))
        return f"{path}: {where}: unknown key; known are {keys}"
    return f"{path}: {where}: {details['msg']}, not {details['input']!r}"
