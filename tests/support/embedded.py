"""Runs of the real command, as a user would start it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plumbline.models.reference import ModelReference

# Small enough for a test, and with every kind of training in it; a checkpoint every few steps.
RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: small}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages:
    - name: data
      curate: {sources: [{uri: "builtin://skills", limit: 400}]}
    - name: sft
      sft:
        maxSteps: 12
        batchSize: 16
        maxLength: 96
        optimizer: {learningRate: 2.0e-3}
        checkpoint: {everySteps: 4}
        parallelism: {workers: 2}
    - name: align
      rlhf:
        steps: 6
        promptsPerStep: 8
        groupSize: 4
        maxLength: 96
        sampling: {maxTokens: 12}
        optimizer: {learningRate: 1.0e-3}
        checkpoint: {everySteps: 2}
        parallelism: {workers: 2, sharding: replicate}
        rollout: {workers: 2}
    - name: check
      inputs: {model: align, baselines: [base, sft]}
      evaluate:
        tasks: [{name: skills, benchmark: skills, limit: 60, maxTokens: 12}]
        gates: [{task: skills, baseline: base, minEffect: -1.0}]
    - name: live
      serve: {}
"""

Watch = Callable[[dict[str, Any]], bool]


def reference(workspace: Path, kind: str, stage: str) -> tuple[ModelReference, dict[str, Any], Path]:
    """A finished model of a stage on the built-in base, its manifest and its folder."""
    for path in workspace.glob(f"artifacts/{kind}/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["stage"] == stage:
            found = ModelReference("builtin://tiny", None, "auto", str(workspace), kind, manifest["fingerprint"])
            return found, manifest, path.parent
    raise AssertionError(f"no {kind} of {stage}")


class Runs:
    """Starts `plumbline run --json` in a folder and reads its events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}

    def file(self, text: str = RUN, name: str = "run.yaml") -> Path:
        path = self.folder / name
        path.write_text(text.replace("WORKSPACE", str(self.folder / "workspace")))
        return path

    def start(self, file: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "plumbline.cli", "run", str(file), "--json", *options]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment, start_new_session=True
        )

    def begin_with(self, workspace: Path, *kinds: str) -> None:
        """Take over what another run has made in stages of these kinds: a run of the same spec finds it cached."""
        for kind in kinds:
            shutil.copytree(workspace / "artifacts" / kind, self.folder / "workspace" / "artifacts" / kind)

    def plan(self, file: Path, *options: str) -> dict[str, bool]:
        """Stage → whether it is cached."""
        command = [sys.executable, "-m", "plumbline.cli", "plan", str(file), "--json", *options]
        out = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=True).stdout
        return {row["stage"]: row["cached"] for row in json.loads(out)["stages"]}

    def run(self, file: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
        """To its end: exit code, events, standard error."""
        process = self.start(file, *options)
        out, err = process.communicate(timeout=840)
        return process.returncode, [json.loads(line) for line in out.splitlines()], err

    def interrupt(self, file: Path, when: Watch, number: signal.Signals, *options: str) -> tuple[int, str]:
        """Until an event satisfies `when`, then send a signal: exit code and standard error."""
        process = self.start(file, *options)
        assert process.stdout is not None
        for line in process.stdout:
            if when(json.loads(line)):
                process.send_signal(number)
                break
        _, err = process.communicate(timeout=300)
        return process.returncode, err
