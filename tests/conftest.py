"""Shared fixtures. One Ray for the whole pytest process: starting one takes seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.embedded import Runs

# A shell's background job ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine, and of what else it does, than of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[str]:
    """Address of a local Ray with four logical CPUs; this process is connected to it."""
    import ray

    from plumbline.ray_environment import start_local

    address = start_local(cpus=4)
    yield address
    ray.shutdown()
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data files for tests; without it those tests are skipped."""
    folder = Path(os.environ.get("PLUMBLINE_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared data: set PLUMBLINE_SHARED or put shared/ beside the repository")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """The real command in a folder of the test's own."""
    return Runs(tmp_path)
