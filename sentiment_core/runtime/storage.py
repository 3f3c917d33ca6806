"""Read, write and list files on local disks and object stores.

A path is a local path or a URI (`s3://bucket/key`, `gs://...`), opened through pyarrow's filesystems. Credentials come
from the usual environment. A file is written whole or not at all.
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

from sentiment_core.errors import UserError
from sentiment_core.runtime.failures import FileChanged

Item = TypeVar("Item")
Result = TypeVar("Result")
TEMPORARY_PREFIX = "_tmp-"  # begins with "_": readers of Parquet folders skip it
# object stores, and the URI option with which a file of a few MB is uploaded in one request
OBJECT_STORES = {"s3": "?allow_delayed_open=true", "gs": "", "gcs": ""}
RETRY_AFTER_S = (1, 4, 15)  # waits before the second, third and last attempt at an object store
# errors of a store that do not pass, however often the request is repeated
PERMANENT_ERROR = re.compile(
    r"AWS Error [A-Z_]*(DENIED|NO_SUCH|NOT_FOUND|INVALID|SIGNATURE|EXPIRED)|ExpiredToken|PERMISSION_DENIED"
)
ABANDONED_AFTER_S = 3600  # a temporary file is written in seconds
READ_THREADS = 32  # for small reads: they wait for the disk or the store, not for the CPU
CHUNK_ITEMS = 16  # items a thread takes at once: handing them over singly costs as much as reading a footer
RESERVED_NAMES = ("", ".", "..")  # parts of a path that cannot name a file


@dataclass(frozen=True)
class FileStamp:
    """Path, size and time of a file: what shows that it changed."""

    path: str  # relative to the folder that was listed, with "/"
    size: int  # bytes
    mtime_ns: int  # last modification, nanoseconds since 1970; 0 where the store does not report it


def locate(path: str) -> tuple[pa.fs.FileSystem, str]:
    """Return the filesystem of a path or URI, and the path within it.

    Raises `UserError` for an empty path and for a URI that pyarrow cannot open.
    """
    if not path.strip():
        raise UserError(f"a path is {path!r}; expected a local path, s3:// or gs://")
    scheme, separator, inner_path = path.partition("://")
    if not separator:
        return pa.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    if scheme == "hf":
        raise UserError(
            f"{path} lies on the Hugging Face hub, from which corpora are not read; download it first: "
            "hf download --repo-type dataset OWNER/NAME --local-dir FOLDER"
        )
    if scheme == "file" and inner_path.startswith("/"):
        return pa.fs.LocalFileSystem(), os.path.abspath(inner_path)
    try:
        if scheme in OBJECT_STORES:
            # the path as it is written: a "?" or "%" in it belongs to a name or a glob
            return _open_bucket(scheme, inner_path.partition("/")[0]), inner_path.rstrip("/")
        return pa.fs.FileSystem.from_uri(path.rstrip("/"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{path} cannot be opened: {error}; expected a local path, s3:// or gs://") from None


@functools.lru_cache(maxsize=64)  # the first use of a bucket asks the store for its region
def _open_bucket(scheme: str, bucket: str) -> pa.fs.FileSystem:
    return pa.fs.FileSystem.from_uri(f"{scheme}://{bucket}{OBJECT_STORES[scheme]}")[0]


def retry_transient_errors(path: str, action: Callable[[], Result]) -> Result:
    """Call `action`; on an object store retry transient errors up to three times.

    A store may throttle, time out or drop a connection. Errors that do not pass are raised at once, and so are all
    errors of a local disk. `path` only tells which of the two it is.
    """
    for delay_s in () if is_local(path) else RETRY_AFTER_S:
        try:
            return action()
        except OSError as error:
            if isinstance(error, FileNotFoundError | FileChanged) or PERMANENT_ERROR.search(str(error)):
                raise
            time.sleep(delay_s * random.uniform(0.5, 1.5))
    return action()


def map_in_threads(action: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply an action that mostly waits to all items in parallel, in their order."""
    remaining = iter(items)
    chunks = iter(lambda: list(itertools.islice(remaining, CHUNK_ITEMS)), [])
    pool = ThreadPoolExecutor(READ_THREADS)
    try:
        for results in pool.map(lambda chunk: [action(item) for item in chunk], chunks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def is_local(path: str) -> bool:
    """Return whether a path lies on a local disk."""
    return "://" not in path or path.startswith("file://")


def absolute(path: str) -> str:
    """Return the one spelling of a path: absolute if it is local, no trailing slash."""
    return locate(path)[1] if is_local(path) else path.rstrip("/")


def join(folder: str, *parts: str) -> str:
    """Join a folder or URI and the parts below it."""
    return "/".join([folder.rstrip("/"), *parts])


def parent(path: str) -> str:
    """Return the folder that holds `path`, an --out.

    Raises `UserError` for a root or a bucket, which lies in no folder.
    """
    folder, _, name = absolute(path).rpartition("/")
    if folder.endswith(":/") or not name:
        raise UserError(f"--out {path} is not in a folder; choose a path inside a folder or bucket")
    return folder or "/"


def contains(folder: str, path: str) -> bool:
    """Return whether `path` is `folder` or lies below it, whatever links name them."""
    folder, path = (os.path.realpath(locate(p)[1]) if is_local(p) else p.rstrip("/") for p in (folder, path))
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def temporary_name() -> str:
    """Return a unique temporary file name."""
    return f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def exists(path: str) -> bool:
    """Return whether there is a file or folder at `path`."""
    return _get_type(path) != pa.fs.FileType.NotFound


def is_folder(path: str) -> bool:
    """Return whether there is a folder at `path`."""
    return _get_type(path) == pa.fs.FileType.Directory


def _get_type(path: str) -> pa.fs.FileType:
    filesystem, inner_path = locate(path)
    try:
        return retry_transient_errors(path, lambda: filesystem.get_file_info(inner_path)).type
    except OSError as error:
        raise UserError(f"{path} cannot be accessed: {error}; check the path and the credentials") from None


def is_occupied(path: str) -> bool:
    """Return whether there is a file, or a folder with content, at `path`.

    Files that a dead run left under temporary names do not count as content.
    """
    filesystem, inner_path = locate(path)
    if not is_folder(path):
        return exists(path)
    try:
        infos = retry_transient_errors(path, lambda: filesystem.get_file_info(pa.fs.FileSelector(inner_path)))
    except OSError as error:
        raise UserError(f"{path} cannot be listed: {error}; check the permission to read it") from None
    return any(not info.base_name.startswith(TEMPORARY_PREFIX) for info in infos)


def list_stamps(folder: str) -> list[FileStamp]:
    """List all files below a folder, whatever their names, sorted by path.

    This is one listing, however many files there are.
    """
    filesystem, base = locate(folder)
    selector = pa.fs.FileSelector(base, recursive=True)
    return make_stamps(retry_transient_errors(folder, lambda: filesystem.get_file_info(selector)), base)


def read_stamp(folder: str, path: str) -> FileStamp:
    """Read the current stamp of one file below `folder`. Raises `FileNotFoundError`."""
    filesystem, inner_path = locate(join(folder, path))
    info = retry_transient_errors(folder, lambda: filesystem.get_file_info(inner_path))
    if info.type != pa.fs.FileType.File:
        raise FileNotFoundError(f"{path} is gone")
    return make_stamp(info, path)


def make_stamps(infos: list[pa.fs.FileInfo], base: str) -> list[FileStamp]:
    """Make stamps of the files among `infos`, sorted by their path below `base`."""
    stamps = (make_stamp(info, relative_path(info, base)) for info in infos if info.type == pa.fs.FileType.File)
    return sorted(stamps, key=lambda stamp: stamp.path)


def make_stamp(info: pa.fs.FileInfo, path: str) -> FileStamp:
    """Make the stamp of a listed file, to be named `path`."""
    return FileStamp(path, info.size, info.mtime_ns or 0)


def relative_path(info: pa.fs.FileInfo, base: str) -> str:
    """Return a listed file's path below `base`, as its store writes it."""
    try:
        path = info.path
    except UnicodeDecodeError as error:  # such a file cannot be opened, only named
        path = error.object.decode("utf-8", "replace")
    return path.removeprefix(base.rstrip("/") + "/")


def check_relative_path(path: str) -> None:
    """Refuse a relative path that would leave its folder or collide with another file.

    Object stores may hold such names. Raises `OSError`.
    """
    if any(part in RESERVED_NAMES for part in path.split("/")):
        raise OSError(f"the name {path!r} has an empty part, '.' or '..' and fits no folder; rename it")


def read_file(path: str) -> bytes:
    """Read a file; from an object store with one request."""
    filesystem, inner_path = locate(path)

    def read() -> bytes:
        with filesystem.open_input_file(inner_path) as file:  # a stream makes a request for each 256 KiB
            return file.read()

    return retry_transient_errors(path, read)


def write_file(path: str, content: bytes | pa.Buffer) -> None:
    """Write a file that appears whole or not at all.

    A local file is written under a temporary name and renamed; on an object store it is one request.
    """
    filesystem, inner_path = locate(path)

    def put() -> None:
        with filesystem.open_output_stream(inner_path) as stream:
            stream.write(content)

    if not isinstance(filesystem, pa.fs.LocalFileSystem):
        return retry_transient_errors(path, put)
    folder = os.path.dirname(inner_path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, temporary_name())
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, inner_path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def delete_file(path: str) -> None:
    """Delete a file if it is there."""
    filesystem, inner_path = locate(path)
    with contextlib.suppress(FileNotFoundError):  # another run deletes it too
        retry_transient_errors(path, lambda: filesystem.delete_file(inner_path))


def delete_folder(path: str) -> None:
    """Delete a folder with all its content if it is there."""
    filesystem, inner_path = locate(path)
    if exists(path):
        filesystem.delete_dir(inner_path)


def delete_abandoned_files(folder: str, now_ns: int) -> None:
    """Delete the temporary files that dead writers left in a local folder.

    They are those last written `ABANDONED_AFTER_S` before `now_ns` or earlier. Should a writer still live, its write
    fails and its work unit is left to the next run.
    """
    if not is_local(folder):
        return
    for subfolder, _, names in os.walk(locate(folder)[1]):
        for name in names:
            if name.startswith(TEMPORARY_PREFIX):
                path = Path(subfolder, name)
                with contextlib.suppress(OSError):  # another run deletes it too, or it is another user's
                    if path.stat().st_mtime_ns <= now_ns - ABANDONED_AFTER_S * 10**9:
                        path.unlink()


def read_folder(folder: str, patterns: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Read all files below a folder into memory, as a bundle or an encoder needs.

    With `patterns` only the files directly in the folder that match one of them. Raises `OSError`; `FileChanged` if
    the folder differs before and after.
    """
    before = list_stamps(folder)
    paths = [
        stamp.path
        for stamp in before
        if not patterns or ("/" not in stamp.path and any(fnmatch.fnmatch(stamp.path, pattern) for pattern in patterns))
    ]
    for path in paths:
        check_relative_path(path)
    contents = {path: read_file(join(folder, path)) for path in paths}
    if list_stamps(folder) != before:
        raise FileChanged(f"{folder} changed while it was read")
    return contents


@contextlib.contextmanager
def unpack_files(files: dict[str, bytes]) -> Iterator[str]:
    """Write the files of `read_folder` to a temporary local folder.

    Libraries load from one. This is how encoders and bundles reach the nodes of a cluster: through Ray's object store.
    So only the driver's node must reach the hub or the folder.
    """
    with tempfile.TemporaryDirectory(prefix="sentiment-core-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield folder


def hash_files(files: dict[str, bytes]) -> str:
    """Return the sha256 over names and contents."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()
