"""Where a training stage's figures go beside its artifact: experiment trackers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plumbline.api.base import ObjectName, SpecModel, Uri
from plumbline.api.synthesis.teacher import EndpointUrl

MLFLOW_KEY, WANDB_KEY = "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY"
"""Environment variables in which the libraries look for keys."""

TrackingUrl = Annotated[
    str, Field(pattern=r"^(https?://[^/@?#\s]+(/[^@?#\s]*)?|sqlite:////[^?#\s]+|databricks(://[\w.-]+)?)$", max_length=1024)
]
Label = Annotated[str, Field(min_length=1, max_length=200)]


class TensorBoardSpec(SpecModel):
    """Event files for TensorBoard."""

    folder: Uri | None = None
    """Folder or fsspec URI; a stage writes into `RUN/STAGE-FINGERPRINT` below it. Unset: `tensorboard` in the workspace."""


class MlflowSpec(SpecModel):
    """A run of an MLflow experiment."""

    uri: TrackingUrl
    """Tracking server (`https://…`), `databricks`, or a file that the stage's head can write: `sqlite:////shared/mlflow.db`. No key in
    it: see `keySecret`."""
    experiment: Label | None = None
    """Name of the experiment, made where there is none. Unset: the run's name."""
    key_secret: ObjectName | None = None
    """Name of the Secret whose `apiKey` is the server's bearer token. A local run reads the environment variable MLFLOW_TRACKING_TOKEN."""


class WandbSpec(SpecModel):
    """A run of a Weights & Biases project."""

    project: Label | None = None
    """Name of the project. Unset: the run's name."""
    entity: Label | None = None
    """User or team. Unset: the key's own."""
    mode: Literal["online", "offline"] = "online"
    """`offline`: files in `wandb` of the workspace, which must be a folder then, for `wandb sync`."""
    uri: EndpointUrl | None = None
    """A server of your own. Unset: that of Weights & Biases."""
    key_secret: ObjectName | None = None
    """Name of the Secret whose `apiKey` is the key. A local run reads the environment variable WANDB_API_KEY."""


class TrackingSpec(SpecModel):
    """Trackers, any number of them. One that fails is reported and never stops the training."""

    tensorboard: TensorBoardSpec | None = None
    """TensorBoard. Needs the extra `tensorboard`."""
    mlflow: MlflowSpec | None = None
    """MLflow. Needs the extra `mlflow`."""
    wandb: WandbSpec | None = None
    """Weights & Biases. Needs the extra `wandb`."""

    def secrets(self) -> dict[str, tuple[str, str]]:
        """Environment variable → (Secret, key in it)."""
        found = {
            MLFLOW_KEY: self.mlflow.key_secret if self.mlflow else None,
            WANDB_KEY: self.wandb.key_secret if self.wandb else None,
        }
        return {variable: (name, "apiKey") for variable, name in found.items() if name}

    def libraries(self) -> dict[str, tuple[str, str]]:
        """Field path → (module, extra) of the libraries that it needs."""
        found = {name: (name, name) for name in ("tensorboard", "mlflow", "wandb") if getattr(self, name) is not None}
        if self.mlflow is not None and self.mlflow.uri.startswith("sqlite:"):
            found["mlflow.uri"] = ("sqlalchemy", "mlflow")
        return found
