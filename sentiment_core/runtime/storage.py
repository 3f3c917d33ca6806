"""Files on local disks and object stores, through pyarrow's filesystems: find, read, write whole.

A place is a local path or a URI (`s3://bucket/key`, `gs://...`). Credentials come from the usual environment.
"""

import contextlib
import fnmatch
import functools
import hashlib
import itertools
import os
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from sentiment_core.errors import UserError

Item = TypeVar("Item")
Found = TypeVar("Found")
TEMPORARY = "_tmp-"  # begins with "_": no reader of Parquet folders takes it for data
# object stores, and the option with which a file of a few MB is put there in one request
BUCKETS = {"s3": "?allow_delayed_open=true", "gs": "", "gcs": ""}
RETRY_AFTER_S = (1, 4, 15)  # that an object store is given to come to itself
# errors of a store that will not pass
FINAL = re.compile(
    r"AWS Error [A-Z_]*(DENIED|NO_SUCH|NOT_FOUND|INVALID|SIGNATURE|EXPIRED)|ExpiredToken|PERMISSION_DENIED"
)
ABANDONED_S = 3600  # a temporary file is written in seconds
UNREADABLE = (OSError, pa.ArrowException)  # what a damaged or vanished file raises
THREADS = 32  # that read small pieces side by side: they wait for the disk or the store, not for the CPU
NO_NAMES = ("", ".", "..")  # parts of a path that are no names
CHUNK = 16  # pieces that a thread takes at once: handing over each would cost as much as reading a footer


class Changed(OSError):
    """A file is no longer as planned."""


def describe(error: Exception) -> str:
    """One line; of an error that files do not raise its type too."""
    text = " ".join(str(error).split())
    expected = isinstance(error, (*UNREADABLE, UserError)) and not isinstance(error, MemoryError)
    return text if text and expected else f"{type(error).__name__}: {text}".rstrip(": ")


@dataclass(frozen=True)
class FileStamp:
    """One file below a root, and what shows that it changed."""

    path: str  # relative to the root, with "/"
    size: int  # bytes
    mtime_ns: int  # last modification, nanoseconds since 1970; 0 where the store tells none


def locate(place: str) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem of a place and the path in it. Raises `UserError` for a URI nothing here can open, or nothing."""
    if not place.strip():
        raise UserError(f"a place is {place!r}; expected a local path, s3:// or gs://")
    scheme, separator, path = place.partition("://")
    if not separator:
        return pa.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(place))
    if scheme == "file" and path.startswith("/"):
        return pa.fs.LocalFileSystem(), os.path.abspath(path)
    try:
        if scheme in BUCKETS:
            # the path as it stands: a "?" or "%" in it is part of a name or a glob
            return _bucket(scheme, path.partition("/")[0]), path.rstrip("/")
        return pa.fs.FileSystem.from_uri(place.rstrip("/"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{place} cannot be opened: {error}; expected a local path, s3:// or gs://") from None


@functools.lru_cache(maxsize=64)  # the first use of a bucket asks the store for its region
def _bucket(scheme: str, name: str) -> pa.fs.FileSystem:
    return pa.fs.FileSystem.from_uri(f"{scheme}://{name}{BUCKETS[scheme]}")[0]


def patiently(place: str, action: Callable[[], Found]) -> Found:
    """What `action` gives. An object store may throttle, time out or drop a connection: there it is tried again, up to
    three times, unless the error is one that stays."""
    for seconds in () if is_local(place) else RETRY_AFTER_S:
        try:
            return action()
        except OSError as error:
            if isinstance(error, FileNotFoundError | Changed) or FINAL.search(str(error)):
                raise
            time.sleep(seconds * random.uniform(0.5, 1.5))
    return action()


def in_parallel(action: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """What `action`, which mostly waits, gives of each item, in their order."""
    rest = iter(items)
    chunks = iter(lambda: list(itertools.islice(rest, CHUNK)), [])
    pool = ThreadPoolExecutor(THREADS)
    try:
        for found in pool.map(lambda chunk: [action(item) for item in chunk], chunks):
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)


def is_local(place: str) -> bool:
    return "://" not in place or place.startswith("file://")


def absolute(place: str) -> str:
    """The same place written the same way each time: local paths absolute, no trailing slash."""
    return locate(place)[1] if is_local(place) else place.rstrip("/")


def join(place: str, *parts: str) -> str:
    return "/".join([place.rstrip("/"), *parts])


def exists(place: str) -> bool:
    return _type(place) != pa.fs.FileType.NotFound


def is_folder(place: str) -> bool:
    return _type(place) == pa.fs.FileType.Directory


def _type(place: str) -> pa.fs.FileType:
    filesystem, path = locate(place)
    try:
        return patiently(place, lambda: filesystem.get_file_info(path)).type
    except OSError as error:
        raise UserError(f"{place} cannot be looked at: {error}; check the place and the credentials") from None


def holds_something(place: str) -> bool:
    """Whether a place is a file, or a folder with more in it than what a dead run left under temporary names."""
    filesystem, path = locate(place)
    if not is_folder(place):
        return exists(place)
    try:
        found = patiently(place, lambda: filesystem.get_file_info(pa.fs.FileSelector(path)))
    except OSError as error:
        raise UserError(f"{place} cannot be listed: {error}; check who may read there") from None
    return any(not info.base_name.startswith(TEMPORARY) for info in found)


def find_files(place: str, suffixes: tuple[str, ...]) -> tuple[str, list[FileStamp]]:
    """The root of a file, folder or glob, and the files below it, sorted by path.

    A folder gives the files with one of `suffixes`, at any depth, a single file or glob whatever it matches. Names that
    begin with "_" or "." are passed over, as Parquet readers do; those that `check_name` refuses are not. Raises
    `UserError` when nothing is there.
    """
    filesystem, path = locate(place)
    try:
        info = patiently(place, lambda: filesystem.get_file_info(path))
        if info.type == pa.fs.FileType.File:
            return absolute(place).rpartition("/")[0] or "/", [_stamp(info, info.base_name)]
        if info.type == pa.fs.FileType.Directory:
            root = absolute(place)
            files = stamps(place)
        elif any(c in place for c in "*?["):
            literal = place[: min(place.find(c) for c in "*?[" if c in place)]
            root = absolute(literal.rpartition("/")[0] if "/" in literal else ".")
            found = patiently(place, lambda: filesystem.get_file_info(ArrowFSWrapper(filesystem).glob(path)))
            base = locate(root)[1]
            files = _stamps(found, base)
            _check_no_folders(place, found, base)
            suffixes = ("",)
        else:
            raise UserError(f"{place} does not exist; expected a file, a folder, a glob or a URI")
    except OSError as error:
        raise UserError(f"{place} cannot be listed: {error}") from None
    data = [stamp for stamp in files if _is_data(stamp.path, suffixes)]
    if not data:
        wanted = ", ".join(s for s in suffixes if s)
        raise UserError(
            f"{place} holds no {wanted} file" if wanted else f"{place} matches no file; end it in /*.parquet"
        )
    return root, data


def _check_no_folders(place: str, found: list[pa.fs.FileInfo], base: str) -> None:
    """Refuse a glob that matches folders beside files: what is in them would be left out. One with "**" looks there."""
    folders = [_relative(info, base) for info in found if info.type == pa.fs.FileType.Directory]
    folders = [path for path in folders if _is_data(path, ("",))]
    if folders and len(folders) < len(found) and "**" not in place:
        raise UserError(
            f"{place} matches files and folders ({folders[0]}); expected files: end it in /*.parquet, or in "
            "/**/*.parquet for those in the folders too"
        )


def stamps(place: str) -> list[FileStamp]:
    """Of all files below a folder, whatever their names, sorted. One listing, however many files."""
    filesystem, base = locate(place)
    found = patiently(place, lambda: filesystem.get_file_info(pa.fs.FileSelector(base, recursive=True)))
    return _stamps(found, base)


def _stamps(found: list[pa.fs.FileInfo], base: str) -> list[FileStamp]:
    """Of the files among what was listed, by path below `base`, sorted."""
    files = (_stamp(info, _relative(info, base)) for info in found if info.type == pa.fs.FileType.File)
    return sorted(files, key=lambda stamp: stamp.path)


def list_folder(place: str, suffixes: tuple[str, ...]) -> list[FileStamp]:
    """The data files below a folder, sorted by path. Raises `UserError` if it cannot be listed."""
    try:
        return [stamp for stamp in stamps(place) if _is_data(stamp.path, suffixes)]
    except OSError as error:
        raise UserError(f"{place} cannot be listed: {error}; check who may read there") from None


def _is_data(path: str, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(("_", ".")) and part not in NO_NAMES for part in path.split("/"))
    return path.lower().endswith(suffixes) and not hidden


def _relative(info: pa.fs.FileInfo, base: str) -> str:
    """A listed file's path below `base`, as it is written in its store."""
    try:
        path = info.path
    except UnicodeDecodeError as error:  # nothing here can open it
        path = error.object.decode("utf-8", "replace")
    return path.removeprefix(base.rstrip("/") + "/")


def check_name(path: str) -> None:
    """Refuse a relative path, which object stores may hold, that would lead out of the folder it is written to, or to
    the place of another file. Raises `OSError`."""
    if any(part in NO_NAMES for part in path.split("/")):
        raise OSError(f"the name {path!r} has an empty part, '.' or '..' and fits no folder; rename it")


def _stamp(info: pa.fs.FileInfo, relative: str) -> FileStamp:
    return FileStamp(relative, info.size, info.mtime_ns or 0)


def stamp(place: str, relative: str) -> FileStamp:
    """The stamp of one file below `place` as it is now. Raises `FileNotFoundError`."""
    filesystem, path = locate(join(place, relative))
    info = patiently(place, lambda: filesystem.get_file_info(path))
    if info.type != pa.fs.FileType.File:
        raise FileNotFoundError(f"{relative} is gone")
    return _stamp(info, relative)


def read_file(place: str) -> bytes:
    filesystem, path = locate(place)

    def read() -> bytes:
        with filesystem.open_input_file(path) as file:  # a stream reads 256 KiB, a request of its own, at a time
            return file.read()

    return patiently(place, read)


def write_file(place: str, content: bytes | pa.Buffer) -> None:
    """Write a file that appears whole or not at all: a rename on a local disk, one request on an object store."""
    filesystem, path = locate(place)

    def put() -> None:
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)

    if not isinstance(filesystem, pa.fs.LocalFileSystem):
        return patiently(place, put)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, temporary_name())
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def delete_file(place: str) -> None:
    """Delete a file, if it is there."""
    filesystem, path = locate(place)
    with contextlib.suppress(FileNotFoundError):  # another run deletes it too
        patiently(place, lambda: filesystem.delete_file(path))


def delete_abandoned(place: str, now_ns: int) -> None:
    """Delete what writers that died left in a local folder under temporary names, `ABANDONED_S` before `now_ns` or
    earlier. A writer that lives all the same fails, and its unit is left to the next run."""
    if not is_local(place):
        return
    for folder, _, names in os.walk(locate(place)[1]):
        for name in names:
            if name.startswith(TEMPORARY):
                path = Path(folder, name)
                with contextlib.suppress(OSError):  # another run deletes it too, or it is another user's
                    if path.stat().st_mtime_ns <= now_ns - ABANDONED_S * 10**9:
                        path.unlink()


def read_folder(place: str, names: tuple[str, ...] = ()) -> dict[str, bytes]:
    """All files below a folder, or, with `names`, those in it that fit one of these patterns. For bundles and encoders:
    they are held in memory whole. Raises `OSError`, a `Changed` if the folder is not the same before and after."""
    before = stamps(place)
    wanted = [
        found.path
        for found in before
        if not names or ("/" not in found.path and any(fnmatch.fnmatch(found.path, name) for name in names))
    ]
    for path in wanted:
        check_name(path)
    files = {path: read_file(join(place, path)) for path in wanted}
    if stamps(place) != before:
        raise Changed(f"{place} changed while it was read")
    return files


def digest(files: dict[str, bytes]) -> str:
    """sha256 over names and contents."""
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(name.encode() + hashlib.sha256(files[name]).digest())
    return found.hexdigest()


def check_writable(place: str) -> None:
    """Refuse an output place nothing can be written to, before any work is done for it. Creates the folder."""
    probe = join(place, temporary_name())
    try:
        write_file(probe, b"")
        delete_file(probe)
    except OSError as error:
        raise UserError(f"{place} cannot be written to: {error}; choose another --out") from None


def check_lasting(place: str) -> None:
    """Refuse a relative --out in a submitted job: Ray deletes the folder such a job runs in."""
    if "://" not in place and not os.path.isabs(os.path.expanduser(place)) and "working_dir_files" in os.getcwd():
        raise UserError(f"--out {place} is relative to a folder that ends with the job; give an absolute path or a URI")


def check_space(place: str, needed: int) -> None:
    """Refuse a local output place with less than `needed` bytes free."""
    if not is_local(place):
        return
    folder = Path(locate(place)[1])
    while not folder.exists():
        folder = folder.parent
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        raise UserError(
            f"{place} has {free / 1e9:.1f} GB free and about {needed / 1e9:.1f} GB are needed; "
            "free some or choose another --out"
        )


def parent(place: str) -> str:
    """The place above. Raises `UserError` where there is none."""
    above, _, name = absolute(place).rpartition("/")
    if above.endswith(":/") or not name:
        raise UserError(f"--out {place} has no folder above it; expected a place in a bucket or folder")
    return above or "/"


def overlap(place: str, other: str) -> bool:
    """Whether `other` is `place` or lies in it, by whatever links it is named."""
    place, other = (os.path.realpath(locate(p)[1]) if is_local(p) else p.rstrip("/") for p in (place, other))
    return f"{other}/".startswith(f"{place.rstrip('/')}/")


def temporary_name() -> str:
    """A new name for what is not, or not yet, there to stay."""
    return f"{TEMPORARY}{uuid.uuid4().hex}"


def delete_folder(place: str) -> None:
    """Delete a folder with all its content, if it is there."""
    filesystem, path = locate(place)
    if exists(place):
        filesystem.delete_dir(path)


@contextlib.contextmanager
def unpacked(files: dict[str, bytes]) -> Iterator[str]:
    """The files of `read_folder` as a local folder, for libraries that load from one; gone again afterwards.

    This is how encoders and bundles reach the nodes of a cluster: through Ray's object store, so no node but the
    driver's has to reach the hub or the folder.
    """
    with tempfile.TemporaryDirectory(prefix="sentiment-core-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield folder
