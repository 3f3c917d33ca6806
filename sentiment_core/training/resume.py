"""Resume a run that was stopped: its checkpoints lie beside the bundle until it finishes."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sentiment_core.errors import UserError
from sentiment_core.runtime import storage

# In the run's folder: its settings, and what Ray writes of its checkpoints.
REQUEST, SNAPSHOT = "request.json", "checkpoint_manager_snapshot.json"
# In the folder of a distillation: the texts as the teacher scored them, and the student until it is compared.
SCORED, STUDENT = "scored", "student"
STUDENT_REQUEST = "student.json"  # what decides that student: its settings and rows
# Settings that do not affect the result: they may differ when a run is resumed.
RESUME_MAY_CHANGE = ("out", "device", "checkpoint_minutes", "max_failures", "tensorboard")


@dataclass(frozen=True)
class ResumableRun:
    """The folder that holds a run's checkpoints until it finishes."""

    folder: str
    is_resumable: Callable[[str], bool]  # whether a folder holds something to resume from; may raise `UserError`

    @classmethod
    def of_training(cls, out: str) -> "ResumableRun":
        """Return the run of a training that writes its bundle to `out`."""
        return cls(_folder_beside(out, "_training-"), _has_training_checkpoint)

    @classmethod
    def of_search(cls, out: str) -> "ResumableRun":
        """Return the run of a search that writes its best bundle to `out`."""
        return cls(_folder_beside(out, "_tuning-"), lambda folder: storage.exists(storage.join(folder, "run")))

    @classmethod
    def of_distillation(cls, out: str) -> "ResumableRun":
        """Return the run of a distillation that writes its bundle to `out`."""
        return cls(_folder_beside(out, "_distilling-"), _has_distilled)

    @property
    def has_checkpoint(self) -> bool:
        """Return whether the run can be resumed. Raises `UserError` if its checkpoint is damaged."""
        return self.is_resumable(self.folder)

    @contextlib.contextmanager
    def open(self, request: dict[str, Any], defaults: dict[str, Any]) -> Iterator[str]:
        """Give the run's folder; delete it afterwards, unless the run broke off with a checkpoint.

        Args:
            request: All that decides the result, as JSON can hold it.
            defaults: Of settings that an older version did not have.

        Raises:
            UserError: The folder holds a checkpoint of a run with another request.
        """
        self._check_request(*json.loads(json.dumps([request, defaults])))  # as they are read again
        try:
            yield self.folder
        except BaseException:
            with contextlib.suppress(OSError, UserError):  # the first error says more than the store's
                if not self.has_checkpoint:
                    storage.delete_folder(self.folder)
            raise
        storage.delete_folder(self.folder)

    def _check_request(self, request: dict[str, Any], defaults: dict[str, Any]) -> None:
        """Write down the request of a new run; refuse to resume a run with another one."""
        path = storage.join(self.folder, REQUEST)
        if not self.has_checkpoint:
            storage.delete_folder(self.folder)
            storage.write_file(path, json.dumps(request, indent=2).encode())
            return
        try:
            before = defaults | json.loads(storage.read_file(path))
        except (OSError, ValueError):
            before = {}
        if different := find_differences(before, request):
            changes = ", ".join(f"{name}: {before.get(name)!r} there, {request[name]!r} now" for name in different)
            raise UserError(
                f"{self.folder} holds a checkpoint made with other settings ({changes}). Rerun with the old settings "
                "to resume, or delete the folder to start over."
            )


def find_differences(before: dict[str, Any], request: dict[str, Any]) -> list[str]:
    """Return the names of what a request asks for otherwise than a request before; some settings do not count."""
    return [name for name in request if before.get(name) != request[name] and name not in RESUME_MAY_CHANGE]


def _folder_beside(out: str, prefix: str) -> str:
    return storage.join(storage.parent(out), prefix + storage.absolute(out).rpartition("/")[2])


def _has_distilled(folder: str) -> bool:
    """Return whether a teacher has scored texts, or a student has been trained, at least in part."""
    student = storage.join(folder, STUDENT)
    is_begun = any(storage.is_occupied(storage.join(folder, name)) for name in (SCORED, STUDENT))
    return is_begun or ResumableRun.of_training(student).has_checkpoint


def _has_training_checkpoint(folder: str) -> bool:
    if not storage.exists(folder) or not any(SNAPSHOT in stamp.path for stamp in storage.list_stamps(folder)):
        return False
    try:
        json.loads(storage.read_file(storage.join(folder, "run", SNAPSHOT)))
    except (OSError, ValueError):  # written in place: a run that died just then leaves half of it
        raise UserError(
            f"{folder} holds a training that cannot be resumed: its {SNAPSHOT} is damaged. Delete the folder to start "
            "over."
        ) from None
    return True
