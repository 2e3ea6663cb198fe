"""TensorBoard: event files."""

from __future__ import annotations

import json
from collections.abc import Sequence

from plumbline.api.stages.tracking import TensorBoardSpec
from plumbline.training.tracking.tracker import Row, Subject, figures


class TensorBoard:
    """Event files in `FOLDER/RUN/STAGE-FINGERPRINT`, one for each attempt."""

    def __init__(self, spec: TensorBoardSpec, subject: Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = f"{spec.folder or f'{subject.workspace.uri}/tensorboard'}/{subject.run}/{subject.name}"
        there = self._last_event(folder)
        self.last = max(0, there - 1)  # of the very last step some figures may be missing
        # Readers drop what earlier files say of this step and later ones.
        self._writer = SummaryWriter(folder, purge_step=self.last + 1 if there else None, flush_secs=5)
        if not there:
            self._writer.add_text("stage", f"```json\n{json.dumps(subject.parameters, indent=1)}\n```")

    @staticmethod
    def _last_event(folder: str) -> int:
        from tensorboard.backend.event_processing.directory_watcher import DirectoryDeletedError
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        events = EventAccumulator(folder, size_guidance={SCALARS: 1})  # the last one
        try:
            events.Reload()
        except DirectoryDeletedError:
            return 0
        return max((events.Scalars(name)[-1].step for name in events.Tags()[SCALARS]), default=0)

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in figures(row).items():
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()
        self.last = int(rows[-1]["step"])

    def close(self, ok: bool) -> None:
        self._writer.close()
