"""Experiment trackers beside the run's own files. Each is imported only when the configuration names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tutelage.errors import ConfigError


class Tracker(Protocol):
    """Something that keeps named figures by step."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record `figures` of `step`."""

    def close(self) -> None:
        """Write out what is pending."""


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, run_path: Path) -> None:
        module = _require("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(log_dir=str(run_path / "tensorboard"))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record `figures` of `step`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is pending."""
        self._writer.close()


class WandbLike:
    """Weights & Biases, and trackio, which has the same three calls."""

    def __init__(self, package: str, run_path: Path, config: Mapping[str, Any]) -> None:
        self._module = _require(package, package)
        self._module.init(project="tutelage", name=run_path.name, config=dict(config))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record `figures` of `step`."""
        self._module.log(dict(figures), step=step)

    def close(self) -> None:
        """Write out what is pending."""
        self._module.finish()


def open_trackers(names: Sequence[str], run_path: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Open the trackers that the configuration names.

    Raises:
        ConfigError: a tracker's package is not installed.
    """
    return [TensorBoard(run_path) if name == "tensorboard" else WandbLike(name, run_path, config) for name in names]


def _require(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(
            f"the tracker {extra!r} is not installed", mend=f"pip install 'tutelage[{extra}]', or clear run.trackers"
        ) from None
