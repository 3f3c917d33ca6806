"""A folder of bundles, one of which is current: `current.json` in it says which, since when, and which were before.

Each change is one write of that file, so whoever asks gets the bundle before it or the one after. Bundles are never
changed or deleted: to go back is to name an earlier one.
"""

import datetime
import json
from dataclasses import asdict, dataclass

from sentiment_core.config import REQUIRED, setting
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.runtime import storage

CURRENT = "current.json"


@dataclass(frozen=True)
class Decision:
    """A bundle was made the current one, or refused."""

    bundle: str  # name of its folder in the registry
    digest: str
    when: str  # UTC
    kind: str  # "promoted", "back" or "refused"
    reason: str


@dataclass(frozen=True)
class PromoteSettings:
    models: str = setting(REQUIRED, "folder or URI with the bundles, each in a folder of its own", "DIR")
    bundle: str | None = setting(None, "name of the bundle's folder in --models: make this one current")
    back: bool = setting(False, "make the bundle current again that was before the current one")
    reason: str = setting("by hand", "a few words on why, kept with the decision", "TEXT")


def promote(settings: PromoteSettings) -> str:
    """Do as asked; returns the history for the terminal. Raises `UserError`."""
    if settings.bundle and settings.back:
        raise UserError("--bundle and --back are both given; expected one of them")
    if settings.bundle:
        decide(settings.models, settings.bundle, "promoted", settings.reason)
    if settings.back:
        before = standing(history(settings.models))
        if len(before) < 2:
            raise UserError(f"--back: {settings.models} has no bundle before the current one; name one with --bundle")
        decide(settings.models, before[-2], "back", settings.reason)
    decisions = history(settings.models)
    if not decisions:
        raise UserError(f"--models {settings.models} has no {CURRENT} yet; make one of its bundles current: --bundle")
    lines = [f"{d.when}  {d.kind:8}  {d.bundle}  {d.digest[:12]}  {d.reason}" for d in decisions]
    return "\n".join([*lines, f"current: {standing(decisions)[-1]}"])


def history(models: str) -> list[Decision]:
    """All decisions, oldest first; none of a folder that is no registry. Raises `UserError` if that cannot be told."""
    place = storage.join(models, CURRENT)
    try:
        return [Decision(**each) for each in json.loads(storage.read_file(place))["decisions"]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error}; check the place and the credentials") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{place} is damaged; delete it and make a bundle current with jobs/promote.py") from None


def standing(decisions: list[Decision]) -> list[str]:
    """The names of the bundles that were promoted and not gone back from; the last is the current one."""
    names: list[str] = []
    for decision in decisions:
        if decision.kind == "promoted" and names[-1:] != [decision.bundle]:
            names.append(decision.bundle)
        if decision.kind == "back" and len(names) > 1:
            names.pop()
    return names


def resolve(model: str) -> str:
    """The place of the bundle that `--model` names: of a registry the current one, else that place itself."""
    names = standing(history(model))
    return storage.join(model, names[-1]) if names else model


def decide(models: str, name: str, kind: str, reason: str, current: str | None = None) -> None:
    """Note a decision on the bundle in folder `name`, which holds if the one in `current` (its place) is the current
    one. Raises `UserError` for a folder that is no bundle, or whose labels are not those of the current one, and where
    another decision was made meanwhile."""
    info, files = bundle.read_files(storage.join(models, name))
    decisions = history(models)
    names = standing(decisions)
    now = storage.join(models, *names[-1:])
    if (kind == "back" and names[-2:-1] != [name]) or (current and now != current):
        raise UserError(f"--models {models}: {now} has become the current bundle meanwhile; look, and run again")
    if kind == "promoted" and names:
        labels = bundle.read_info(storage.join(models, names[-1])).labels
        if info.labels != labels:
            raise UserError(
                f"bundle {name} has the labels {', '.join(info.labels)}; expected those of the current one, "
                f"{', '.join(labels)}; a model with other labels needs a --models folder, and an output, of its own"
            )
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    decisions.append(Decision(name, bundle.digest_of(files), when, kind, reason))
    content = json.dumps({"decisions": [asdict(decision) for decision in decisions]}, indent=2, ensure_ascii=False)
    storage.write_file(storage.join(models, CURRENT), content.encode())
