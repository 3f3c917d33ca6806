"""Find out whether some of several files have a column that others lack."""

import contextlib

from sentiment_core.data import files, iceberg, labelled
from sentiment_core.data.readers import SUFFIXES, Columns, MissingColumn
from sentiment_core.runtime import storage


def is_folder(path: str) -> bool:
    """Return whether there is a folder at a path, which may name a table of a catalog, too. Raises `UserError`."""
    return not path.startswith(iceberg.SCHEME) and storage.is_folder(path)


def find_file_with(columns: Columns, path: str) -> str | None:
    """Return the path of a file in a folder or glob that has all these columns; None if none has.

    The files of a table have the same columns, and a single file is not asked for. Raises `UserError`.
    """
    if not files.is_glob(path) and not is_folder(path):
        return None
    data = files.find_files(path, SUFFIXES)
    for stamp in data.stamps if data.table is None else []:
        with contextlib.suppress(MissingColumn):
            return next(labelled.read_tables(storage.join(data.root, stamp.path), columns))[0]
    return None
