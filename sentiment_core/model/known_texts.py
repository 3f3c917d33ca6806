"""Texts that have labels already: those of earlier samples, of other labelled data, and of a model's training."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from sentiment_core.data import files, iceberg, labelled
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.runtime import storage

COMPARED_CHARACTERS = 30_000  # of a text: spreadsheets cut cells at 32,767


def hash_text(text: str) -> bytes:
    """Hash a text for comparison, without regard to the white space between its words."""
    return _hash(" ".join(text.split()))


def hash_cell(text: str) -> bytes:
    """Hash a text as `hash_text` does, by so much of it as a spreadsheet keeps."""
    return _hash(" ".join(text.split())[:COMPARED_CHARACTERS])


def _hash(words: str) -> bytes:
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def hash_texts_of(paths: Iterable[str], text_columns: Sequence[str]) -> set[bytes]:
    """Hash the texts of labelled data as cells, with or without labels. Raises `UserError`."""
    hashes: set[bytes] = set()
    for path in paths:
        try:
            hashes.update(map(hash_cell, labelled.read_texts(path, Columns(tuple(text_columns)))))
        except UserError as error:
            raise UserError(f"--exclude: {str(error).replace('; choose with --text-column', '')}") from None
    return hashes


def hash_training_texts(bundle_path: str, with_evaluation: bool = True) -> tuple[set[bytes], str]:
    """Hash the texts that a bundle was trained and chosen on as cells, if they are still where they were.

    Of a cascade also those of its models. Texts that a teacher answered have no labels of people, and are not among
    them. `with_evaluation`: as for `read_training_texts`.

    Returns:
        The hashes, and a sentence that says what was read, or why nothing was.
    """
    if not bundle_path or not storage.exists(storage.join(bundle_path, bundle.CARD)):
        unread = "its training data was not left out; give it with --exclude"
        return set(), f"the bundle that scored is not at hand ({bundle_path or 'no path noted'}): {unread}"
    info = bundle.read_info(bundle_path)
    parts = bundle.PARTS if info.is_cascade else ()
    infos = [info, *(bundle.read_info(storage.join(bundle_path, part)) for part in parts)]
    read = [read_training_texts(part, with_evaluation=with_evaluation, hash_as=hash_cell) for part in infos]
    hashes = set().union(*(texts for texts, _ in read))
    if reasons := list(dict.fromkeys(reason for _, own in read for reason in own)):
        unread = "; ".join(reasons)
        return hashes, f"the bundle that scored: {unread}; rows of it were not left out; give it with --exclude"
    paths = list(dict.fromkeys(path for part in infos for path in _paths(part)))
    if not paths:
        return set(), "the bundle that scored learned from a teacher, without labels: no text was left out"
    return hashes, f"texts of the bundle's training data were left out ({', '.join(paths)})"


def read_training_texts(
    info: BundleInfo,
    with_taught: bool = False,
    with_evaluation: bool = True,
    hash_as: Callable[[str], bytes] = hash_text,
) -> tuple[set[bytes], list[str]]:
    """Hash the texts of a model's training rows, as far as these are still where they were.

    Those of a bundle that it was trained further from are among them.

    Args:
        info: Record of the model.
        with_taught: Also read the texts that a teacher answered.
        with_evaluation: Also read its evaluation rows, where these are not held out of the training data.
        hash_as: How to hash a text.

    Returns:
        The hashes, and a sentence about each place that could not be read, or that none is noted.
    """
    hashes, reasons = _read_own_texts(info, with_taught, with_evaluation, hash_as)
    followed: set[str] = set()
    while (first := os.path.expanduser(info.training.encoder.name)) and first not in followed:
        if not os.path.isfile(os.path.join(first, bundle.CARD)):
            break
        followed.add(first)
        try:
            before = bundle.read_info(first)
        except UserError as error:
            reasons.append(f"{first}, which it started from, cannot be read ({error})")
            break
        if before == info:  # it was moved to that path
            break
        info = before
        if _paths(info) or info.distillation.texts.place:  # else nothing is noted, as of any other encoder
            of_first, unread = _read_own_texts(info, with_taught, True, hash_as)
            hashes |= of_first
            reasons += [f"of {first}, which it started from: {reason}" for reason in unread]
    return hashes, reasons


def _read_own_texts(
    info: BundleInfo, with_taught: bool, with_evaluation: bool, hash_as: Callable[[str], bytes]
) -> tuple[set[bytes], list[str]]:
    """Hash the texts of one training; arguments and result as for `read_training_texts`."""
    training, taught = info.training, info.distillation.texts.place
    paths = [*_paths(info), *([taught] if with_taught and taught else [])]
    if not paths and not taught:
        return set(), ["what it was trained on is not noted"]
    if not with_evaluation and training.eval_data.place != training.data.place:
        paths = [path for path in paths if path != training.eval_data.place]
    columns = training.settings.get("text_column", "text")
    read_as = Columns(
        (columns,) if isinstance(columns, str) else tuple(columns),
        csv_separator=training.settings.get("csv_separator"),
        csv_encoding=training.settings.get("csv_encoding"),
    )
    hashes: set[bytes] = set()
    reasons = []
    for path in paths:
        try:
            if _is_absent(path):
                reasons.append(f"its training data {path} is not at hand")
                continue
            hashes.update(map(hash_as, labelled.read_texts(path, read_as)))
        except UserError as error:
            reasons.append(f"its training data cannot be read ({error})")
    return hashes, reasons


def find_seen(
    texts: Sequence[str], infos: Mapping[str, BundleInfo], compared: Collection[str] = ()
) -> tuple[np.ndarray, list[str]]:
    """Find the texts that models were trained, evaluated or taught on, where these are at hand.

    Args:
        texts: The texts, n of them.
        infos: Records of the models, by what a message calls them.
        compared: Names of those whose evaluation rows the texts are, which does not count.

    Returns:
        (n,) bool, and a sentence about each place that could not be read.
    """
    seen: set[bytes] = set()
    unread = []
    for name, info in infos.items():
        if name in compared and info.training.data.place == info.training.eval_data.place:
            continue  # held out of one file with the training rows, which nothing tells apart
        hashes, reasons = read_training_texts(info, with_taught=True, with_evaluation=name not in compared)
        seen |= hashes
        unread += [f"{name}: {reason}; make sure that --data has no row of it" for reason in reasons]
    return np.array([hash_text(text) in seen for text in texts], bool), unread


def _paths(info: BundleInfo) -> list[str]:
    """Return the paths of the rows with labels that a model was made with."""
    places = (info.training.data.place, info.training.eval_data.place)
    return list(dict.fromkeys(path for path in places if path and path != info.distillation.texts.place))


def _is_absent(path: str) -> bool:
    """Return whether there is nothing at a path. Of globs and catalogs only reading tells."""
    return not (files.is_glob(path) or path.startswith(iceberg.SCHEME) or storage.exists(path))
