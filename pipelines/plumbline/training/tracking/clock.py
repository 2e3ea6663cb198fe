"""What the clock said of each step, across the attempts of a stage."""

from __future__ import annotations

import json
import logging
import time

import fsspec

from plumbline.errors import one_line
from plumbline.training.throughput import TIMED
from plumbline.training.tracking.tracker import Row

logger = logging.getLogger(__name__)

KEPT = "throughput.json"
KEEP_EVERY = 30.0  # seconds


class Clock:
    """What the clock said of each step, kept beside the checkpoints so that an attempt that goes on has that of those before it.

    Attributes:
        rows: step → figures.
    """

    def __init__(self, checkpoints: str) -> None:
        self._filesystem, root = fsspec.core.url_to_fs(checkpoints)
        self._path = f"{root}/{KEPT}"
        self.rows: dict[int, Row] = self._read()
        self._kept = time.monotonic()

    def add(self, step: int, metrics: Row) -> None:
        timed = {name: metrics[name] for name in TIMED if name in metrics}
        if timed:
            self.rows[step] = timed
            if time.monotonic() - self._kept > KEEP_EVERY:
                self.keep()

    def keep(self) -> None:
        """Losing them would cost a curve in the report, so no error of the store is one of the training."""
        try:
            if self.rows:
                self._filesystem.makedirs(self._path.rpartition("/")[0], exist_ok=True)
                self._filesystem.pipe_file(f"{self._path}.part", json.dumps(self.rows).encode())
                self._filesystem.mv(f"{self._path}.part", self._path)
        except Exception as error:
            logger.warning("%s cannot be written: %s", self._path, one_line(error))
        self._kept = time.monotonic()

    def _read(self) -> dict[int, Row]:
        try:
            if not self._filesystem.exists(self._path):
                return {}
            return {int(step): row for step, row in json.loads(self._filesystem.cat_file(self._path)).items()}
        except Exception as error:  # damaged or out of reach
            logger.warning("%s cannot be read: %s", self._path, one_line(error))
            return {}
