"""Find the data files at a path, by one rule for training and scoring.

Names that begin with "_" or "." are passed over, as readers of Parquet folders do.
"""

import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.storage import RESERVED_NAMES, FileStamp

GLOB_CHARACTERS = "*?["


def is_glob(path: str) -> bool:
    """Return whether a path holds a wildcard."""
    return any(character in path for character in GLOB_CHARACTERS)


def find_files(path: str, suffixes: tuple[str, ...]) -> tuple[str, list[FileStamp]]:
    """Find the data files at a path; return their root and their stamps.

    A folder gives the files with one of `suffixes`, at any depth, sorted by path. A single file or a glob gives what
    it matches, whatever the suffix. Files that `storage.check_relative_path` refuses are listed too. Raises `UserError`
    when there is no file.
    """
    filesystem, inner_path = storage.locate(path)
    try:
        info = storage.retry_transient_errors(path, lambda: filesystem.get_file_info(inner_path))
        if info.type == pyarrow.fs.FileType.File:
            return storage.absolute(path).rpartition("/")[0] or "/", [storage.make_stamp(info, info.base_name)]
        if info.type == pyarrow.fs.FileType.Directory:
            root = storage.absolute(path)
            stamps = storage.list_stamps(path)
        elif is_glob(path):
            root, stamps = _expand_glob(path, filesystem, inner_path)
            suffixes = ("",)
        else:
            raise UserError(f"{path} does not exist; expected a file, a folder, a glob or a URI")
    except OSError as error:
        raise UserError(f"{path} cannot be listed: {error}; check the path and the credentials") from None
    data = [stamp for stamp in stamps if is_data_file(stamp.path, suffixes)]
    if not data:
        expected = ", ".join(suffix for suffix in suffixes if suffix)
        raise UserError(
            f"{path} holds no {expected} file; check the path"
            if expected
            else f"{path} matches no file; end it in /*.parquet"
        )
    return root, data


def list_files(folder: str, suffixes: tuple[str, ...]) -> list[FileStamp]:
    """List the data files below a folder, sorted by path. Raises `UserError`."""
    try:
        return [stamp for stamp in storage.list_stamps(folder) if is_data_file(stamp.path, suffixes)]
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error}; check the permission to read it") from None


def is_data_file(path: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a relative path has one of `suffixes` and no hidden part."""
    hidden = any(part.startswith(("_", ".")) and part not in RESERVED_NAMES for part in path.split("/"))
    return path.lower().endswith(suffixes) and not hidden


def _expand_glob(path: str, filesystem: pyarrow.fs.FileSystem, inner_path: str) -> tuple[str, list[FileStamp]]:
    literal = path[: min(path.find(character) for character in GLOB_CHARACTERS if character in path)]
    root = storage.absolute(literal.rpartition("/")[0] if "/" in literal else ".")
    base = storage.locate(root)[1]
    infos = storage.retry_transient_errors(
        path, lambda: filesystem.get_file_info(ArrowFSWrapper(filesystem).glob(inner_path))
    )
    _check_no_folders(path, infos, base)
    return root, storage.make_stamps(infos, base)


def _check_no_folders(path: str, infos: list[pyarrow.fs.FileInfo], base: str) -> None:
    """Refuse a glob that matches folders beside files.

    The files in these folders would be left out. A glob with "**" looks into them.
    """
    folders = [storage.relative_path(info, base) for info in infos if info.type == pyarrow.fs.FileType.Directory]
    folders = [folder for folder in folders if is_data_file(folder, ("",))]
    if folders and len(folders) < len(infos) and "**" not in path:
        raise UserError(
            f"{path} matches files and folders ({folders[0]}); expected files: end it in /*.parquet, or in "
            "/**/*.parquet for those in the folders too"
        )
