"""Configuration of the MLflow backend; importing it does not import MLflow."""

from typing import Literal

from pydantic import Field

from d9d_tracker.config import TrackerConfig


class MLflowConfig(TrackerConfig):
    """Configuration of the backend that writes to MLflow.

    Attributes:
        provider: Discriminator, always ``"mlflow"``.
        experiment: Experiment of the run, created if missing; or None for what ``MLFLOW_EXPERIMENT_NAME`` says,
            ``Default`` if nothing.
        tracking_uri: The server (``http://host:port``) or store (``sqlite:///path``, which needs the full MLflow), or
            None for what the environment variable ``MLFLOW_TRACKING_URI`` says. A ``~`` in a path is the home folder.
    """

    provider: Literal["mlflow"] = "mlflow"
    experiment: str | None = Field(default=None, min_length=1)
    tracking_uri: str | None = None
