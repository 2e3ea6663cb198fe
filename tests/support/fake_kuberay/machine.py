"""A machine for Pods of the fake cluster: the program of a container runs here, and folders stand for its volumes."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Self

from support.api_proxy import ApiProxy
from support.rest import CONFIG_MAPS, Object, Rest

FOLDER = "POD_FOLDER"  # in the environment of every process of a Pod: by it they are found
POLL = 0.05


class Machine:
    """Where Pods run. When the `with` block ends, none of their processes is left.

    Attributes:
        folder: of Pods and claims. Its path is short, because Ray puts sockets below it.
        proxy: through which programs reach the API server, as their Pod's account.
    """

    proxy: ApiProxy

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="pods-"))
        return self

    def __exit__(self, *error: object) -> None:
        while kill(self.folder):
            time.sleep(POLL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def claim(self, namespace: str, name: str) -> Path:
        """The folder of a PersistentVolumeClaim."""
        return self.folder / "claims" / namespace / name


class Pod:
    """The first container of a Pod. When the `async with` block ends, so do all its processes."""

    def __init__(self, machine: Machine, pod: Object, rest: Rest) -> None:
        meta, spec = pod["metadata"], pod["spec"]
        container = spec["containers"][0]
        self._namespace: str = meta["namespace"]
        self._rest = rest
        self.folder = machine.folder / meta["uid"][:8]
        self._config_maps: dict[str, Path] = {}
        volumes = {volume["name"]: self._volume(machine, volume) for volume in spec["volumes"]}
        self._mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        self._directory = self.here(container["workingDir"])
        self.environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "TMPDIR": self.here("/tmp"),
            **{one["name"]: self.here(one["value"]) for one in container["env"] if "value" in one},
            FOLDER: str(self.folder),
            "SPT_NOENV": "1",  # Ray's processes rename themselves; the new name shall not be written over FOLDER
        }
        if spec["automountServiceAccountToken"]:
            token = f"sa:{self._namespace}:{spec['serviceAccountName']}"
            self.environment["KUBECONFIG"] = machine.proxy.kubeconfig(self.folder, token)

    def _volume(self, machine: Machine, volume: Object) -> Path:
        folder = self.folder / volume["name"]
        if "persistentVolumeClaim" in volume:
            folder = machine.claim(self._namespace, volume["persistentVolumeClaim"]["claimName"])
        if "configMap" in volume:
            self._config_maps[volume["configMap"]["name"]] = folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def __aenter__(self) -> Self:
        await self._mirror_once()
        self._mirroring = asyncio.create_task(self._mirror())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._mirroring.cancel()
        while kill(self.folder):
            await asyncio.sleep(POLL)

    async def _mirror(self) -> None:
        while True:
            await asyncio.sleep(20 * POLL)
            await self._mirror_once()

    async def _mirror_once(self) -> None:
        """ConfigMaps, as far as they have come, whole."""
        for name, folder in self._config_maps.items():
            found = await self._rest.get(CONFIG_MAPS, self._namespace, name) or {}
            for key, text in (found.get("data") or {}).items():
                partial = folder / f".{key}"
                partial.write_text(text)
                partial.rename(folder / key)

    def here(self, path: str) -> str:
        """Where a path of the container is on this machine; anything else as it is."""
        for mount in sorted(self._mounts, key=len, reverse=True):
            if PurePosixPath(path).is_relative_to(mount):
                return str(self._mounts[mount] / PurePosixPath(path).relative_to(mount))
        return path

    def command(self, line: str) -> str:
        return shlex.join(self.here(word) for word in shlex.split(line))

    async def start(self, *command: str, **environment: str) -> asyncio.subprocess.Process:
        with (self.folder / "log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *command,
                cwd=self._directory,
                env=self.environment | environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def last_words(self) -> str:
        """The end of its log, as it becomes its termination message."""
        return (self.folder / "log").read_text(errors="replace")[-2048:]


def processes(folder: Path, words: str = "") -> list[int]:
    """Of the Pods in a folder or its subfolders, those whose command line has certain words."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            named = [Path(one.partition("=")[2]) for one in variables if one.startswith(f"{FOLDER}=")]
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if named and named[0].is_relative_to(folder) and words in command:
                found.append(int(process.name))
    return found


def kill(folder: Path, words: str = "") -> int:
    """End processes as the kubelet does it in the end; returns how many there were."""
    found = processes(folder, words)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)
