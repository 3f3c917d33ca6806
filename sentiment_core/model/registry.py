"""The registry: a folder of bundles, one of which is current. `current.json` in it holds all decisions.

Each decision is one write of that file, so a reader gets the bundle before it or the one after. Bundles are never
changed or deleted: a rollback names an earlier one.
"""

import datetime
import json
from dataclasses import asdict, dataclass
from typing import Literal

from sentiment_core.config import REQUIRED, setting
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, source
from sentiment_core.model.naming import refuse_names
from sentiment_core.runtime import storage

CURRENT = "current.json"
Kind = Literal["promoted", "rolled_back", "refused"]
ROLLED_BACK: Kind = "rolled_back"
STORED_ROLLED_BACK = "back"  # in the file, where older versions read it


@dataclass(frozen=True)
class Decision:
    """A bundle was promoted (made the current one), made current again by a rollback, or refused."""

    bundle: str  # name of its folder in the registry
    digest: str
    when: str  # UTC
    kind: Kind
    reason: str

    @classmethod
    def from_json(cls, content: dict[str, str]) -> "Decision":
        """Read a decision, beside whose keys there may be others."""
        fields = {name: content[name] for name in cls.__dataclass_fields__}
        return cls(**fields | {"kind": ROLLED_BACK if fields["kind"] == STORED_ROLLED_BACK else fields["kind"]})  # type: ignore[arg-type]

    def to_json(self) -> dict[str, str]:
        """Return the decision as `current.json` holds it."""
        return asdict(self) | {"kind": STORED_ROLLED_BACK if self.kind == ROLLED_BACK else self.kind}


@dataclass(frozen=True)
class PromoteSettings:
    """Settings of `promote`."""

    models: str = setting(REQUIRED, "folder or URI with the bundles, each in a folder of its own", "DIR")
    bundle: str | None = setting(None, "name of the bundle's folder in --models: make this one current")
    back: bool = setting(False, "make the bundle current again that was before the current one")
    reason: str = setting("by hand", "a few words on why, kept with the decision", "TEXT")


def promote(settings: PromoteSettings) -> str:
    """Promote or roll back as the settings say, and return the history for the terminal. Raises `UserError`."""
    if settings.bundle and settings.back:
        raise UserError("--bundle and --back are both given. Give one of them.")
    if settings.bundle:
        record_decision(settings.models, settings.bundle, "promoted", settings.reason)
    if settings.back:
        stack = promotion_stack(history(settings.models))
        if len(stack) < 2:
            raise UserError(f"--back: {settings.models} has no bundle before the current one. Name one with --bundle.")
        record_decision(settings.models, stack[-2], ROLLED_BACK, settings.reason)
    decisions = history(settings.models)
    if not decisions:
        raise UserError(
            f"--models {settings.models} has no {CURRENT} yet. Make one of its bundles current with --bundle."
        )
    lines = [f"{d.when}  {d.kind:11}  {d.bundle}  {d.digest[:12]}  {d.reason}" for d in decisions]
    return "\n".join([*lines, f"current: {promotion_stack(decisions)[-1]}"])


def history(models: str) -> list[Decision]:
    """Read all decisions, oldest first; none where the folder is not a registry. Raises `UserError`."""
    path = storage.join(models, CURRENT)
    try:
        return [Decision.from_json(decision) for decision in json.loads(storage.read_file(path))["decisions"]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. Check the path and the credentials.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged. Delete it and make a bundle current with sentiment-core promote."
        ) from None


def promotion_stack(decisions: list[Decision]) -> list[str]:
    """Return the names of the bundles that were promoted and not rolled back; the last is the current one."""
    names: list[str] = []
    for decision in decisions:
        if decision.kind == "promoted" and names[-1:] != [decision.bundle]:
            names.append(decision.bundle)
        if decision.kind == ROLLED_BACK and len(names) > 1:
            names.pop()
    return names


def resolve(model: str) -> str:
    """Return the path of the bundle that `--model` names: of a registry the current one, else that path itself."""
    refuse_names(model)
    names = promotion_stack(history(model))
    return storage.join(model, names[-1]) if names else model


def record_decision(models: str, name: str, kind: Kind, reason: str, current: str | None = None) -> None:
    """Record a decision on the bundle in the folder `name` of the registry `models`.

    Raises `UserError` where the folder is not a bundle, where its labels are not those of the current bundle, and where
    another decision came between: the bundle at the path `current`, if that is given, must still be the current one.
    """
    model = source.open_model(storage.join(models, name))
    decisions = history(models)
    names = promotion_stack(decisions)
    current_path = storage.join(models, *names[-1:])
    if (kind == ROLLED_BACK and names[-2:-1] != [name]) or (current and current_path != current):
        raise UserError(
            f"--models {models}: {current_path} has become the current bundle meanwhile. Check it and run again."
        )
    if kind == "promoted" and names:
        current_info = source.open_model(storage.join(models, names[-1])).info
        labels = current_info.labels
        if model.info.problem_type != current_info.problem_type:
            kinds = ("several labels a row", "one label a row")
            own, expected = kinds if model.info.objective.several else kinds[::-1]
            raise UserError(
                f"bundle {name} gives {own}; expected {expected}, as the current one gives. Give it a --models folder "
                "and an output of its own."
            )
        if model.info.labels != labels:
            raise UserError(
                f"bundle {name} has the labels {', '.join(model.info.labels)}; expected those of the current one, "
                f"{', '.join(labels)}. Give a model with other labels a --models folder and an output of its own."
            )
    when, digest = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), bundle.digest_of(model.files)
    if history(models) != decisions:  # reading the bundles may have taken a minute
        raise UserError(f"--models {models}: another decision came meanwhile. Check it and run again.")
    decisions.append(Decision(name, digest, when, kind, reason))
    content = json.dumps({"decisions": [decision.to_json() for decision in decisions]}, indent=2, ensure_ascii=False)
    storage.write_file(storage.join(models, CURRENT), content.encode())
