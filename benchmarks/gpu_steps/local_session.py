"""Stand in for Ray Train in this process, so that the real training loop runs where Ray is not installed."""

import contextlib
import shutil
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch


class Broken(Exception):
    """A training that was stopped behind a checkpoint, as the death of its worker would stop it."""


class FolderCheckpoint:
    """A checkpoint in a local folder, with the methods of Ray Train's."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder

    @classmethod
    def from_directory(cls, folder: str) -> "FolderCheckpoint":
        """Take a folder as a checkpoint."""
        return cls(folder)

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        """Yield the folder."""
        yield str(self.folder)


class LocalSession:
    """The session of a single worker: its device and its latest checkpoint."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.latest: FolderCheckpoint | None = None
        self.breaks = False  # behind the next checkpoint

    def report(self, values: dict[str, float], checkpoint: FolderCheckpoint) -> None:
        """Keep a copy of the checkpoint."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(checkpoint.folder, self.folder)
        self.latest = FolderCheckpoint(self.folder)
        if self.breaks:
            raise Broken


class StubModule(types.ModuleType):
    """A module with a few real names; all others are stand-ins that do nothing."""

    def __init__(self, name: str, **names: Any) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__path__: list[str] = []
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock()


def replace_ray(session: LocalSession) -> None:
    """Put stand-ins in the place of Ray's modules for the rest of this process; references are the objects themselves.

    Raises `RuntimeError` where the training loop is imported already, with another Ray.
    """
    if "sentiment_core.training.loop" in sys.modules:
        raise RuntimeError("the training loop is imported already")
    train_torch = StubModule("ray.train.torch", get_device=lambda: session.device)
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    train = StubModule(
        "ray.train",
        torch=train_torch,
        Checkpoint=FolderCheckpoint,
        get_context=lambda: context,
        get_checkpoint=lambda: session.latest,
        report=session.report,
    )
    util_names = ("ray.util", "ray.util.placement_group", "ray.util.scheduling_strategies")
    modules = {name: StubModule(name) for name in util_names}
    modules |= {"ray.train": train, "ray.train.torch": train_torch}
    modules["ray"] = StubModule("ray", get=lambda reference: reference, train=train, util=modules["ray.util"])
    sys.modules.update(modules)
