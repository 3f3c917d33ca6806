"""Find the scores of a work unit's texts in earlier outputs, by the texts' hashes.

An output of the same bundle and settings holds what the model says of its texts. Where a shard has changed, or its rows
stand in another file now, only texts that no such output has are computed. Which outputs are looked at, `candidates`
chooses. One that is gone, damaged or of other settings by now is passed over: its rows are computed. One that this run
has replaced meanwhile has scores just as good, but for a unit's own: what an earlier attempt computed was computed.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core.data import unit_reader
from sentiment_core.data.shards import Unit
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.scoring import content, outputs
from sentiment_core.scoring.context import ScoringContext
from sentiment_core.scoring.known_rows import NO_ANSWER, KnownRows, as_written_now
from sentiment_core.scoring.outputs import COUNTS_KEY, ORIGIN_KEY
from sentiment_core.scoring.records import Origin, UnitOrigin
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.text.arrow import deduplicate_texts
from sentiment_core.text.distinct_sketch import sketch_texts
from sentiment_core.text.text_hash import HASH_TYPE, hash_texts

CACHED_OUTPUTS = 4  # in a worker process: one that is cut into several others is looked at by one unit after another
ESTIMATED_UNITS = 8  # that a dry run reads


@dataclass(frozen=True)
class TextChunk:
    """Some of a unit's texts, each distinct one once."""

    texts: list[str | None]
    inverse: np.ndarray  # (rows,) int64: which of the texts each row holds
    hashes: pa.Array | None  # of the texts; None: they are not hashed

    def without(self, is_left_out: np.ndarray) -> "TextChunk":
        """Leave out texts and their rows; `is_left_out`: (texts,) bool."""
        if not is_left_out.any():
            return self
        left = np.flatnonzero(~is_left_out)
        position = np.cumsum(~is_left_out) - 1
        rows = self.inverse[~is_left_out[self.inverse]]
        hashes = None if self.hashes is None else self.hashes.take(pa.array(left))
        return TextChunk([self.texts[i] for i in left.tolist()], position[rows], hashes)


@dataclass(frozen=True)
class FoundAnswers:
    """Scores of a unit's texts in earlier outputs."""

    answer_of: list[np.ndarray] = field(default_factory=list)  # by chunk: (texts,) int32; none if nothing was found
    answers: pa.Table = field(default_factory=lambda: pa.table({}))  # as in `KnownRows`
    replaced: tuple[str, ...] = ()  # as in `KnownRows`


class UnitTexts:
    """A unit's texts as they are read: the known ones with their answers, the others to be computed."""

    def __init__(self, context: ScoringContext, unit: Unit) -> None:
        """Read the texts if earlier outputs may have their scores, and look them up. Raises one of `UNREADABLE`."""
        self._context = context
        self._chunks: Iterable[TextChunk] = read_chunks(context, unit)
        self._earlier = FoundAnswers()
        if context.candidates:  # which are chosen by all texts of the unit
            self._chunks = list(self._chunks)
            self._earlier = find_answers(context, unit, self._chunks)
        self._answer_of, self._hashes = [np.zeros(0, np.int32)], [pa.array([], HASH_TYPE)]

    def sketch_known(self) -> dict[str, list[int]]:
        """Sketch the texts that have a score in earlier outputs, by the models' names; nothing if none was found."""
        sketches = {}
        answers = self._earlier.answers
        for names in self._context.run.columns_of_models if len(answers) else ():
            has_score = pc.is_valid(answers[names.prefix + "confidence"]).to_numpy()
            sketches[names.model] = sketch_texts(
                text
                for chunk, answer_of in zip(self._chunks, self._earlier.answer_of, strict=True)
                for text, answer in zip(chunk.texts, answer_of.tolist(), strict=True)
                if answer != NO_ANSWER and has_score[answer]
            )
        return sketches

    def unknown_chunks(self) -> Iterator[TextChunk]:
        """Yield the texts that are to be computed, with their rows. Raises one of `UNREADABLE`."""
        for i, chunk in enumerate(self._chunks):
            nothing = np.full(len(chunk.texts), NO_ANSWER, np.int32)
            answer_of = self._earlier.answer_of[i] if self._earlier.answer_of else nothing
            self._answer_of.append(answer_of[chunk.inverse])
            if chunk.hashes is not None:
                self._hashes.append(chunk.hashes.take(pa.array(chunk.inverse)))
            unknown = chunk.without(answer_of != NO_ANSWER)
            if unknown.texts:
                yield unknown

    def known_rows(self) -> KnownRows:
        """Return what is known of the rows, once all chunks were taken."""
        text_hash = pa.concat_arrays(self._hashes) if self._context.hash_texts else None
        return KnownRows(text_hash, np.concatenate(self._answer_of), self._earlier.answers, self._earlier.replaced)


def read_chunks(context: ScoringContext, unit: Unit) -> Iterator[TextChunk]:
    """Yield a unit's texts, in parts, with their hashes where outputs have them. Raises one of `UNREADABLE`."""
    for column in unit_reader.read_texts(context.input_root, unit, context.run.text_columns, context.table):
        texts, inverse = deduplicate_texts(column)
        yield TextChunk(texts, inverse, hash_texts(texts) if context.hash_texts else None)


def find_answers(context: ScoringContext, unit: Unit, chunks: Sequence[TextChunk]) -> FoundAnswers:
    """Look the texts of a unit up in its candidates, one of these at a time."""
    hashes = [chunk.hashes for chunk in chunks if chunk.hashes is not None]
    if context.candidates is None or not hashes:
        return FoundAnswers()
    encoded = pa.concat_arrays(hashes).dictionary_encode(null_encoding="encode")
    wanted = encoded.dictionary
    answer_of = np.full(len(wanted), NO_ANSWER, np.int32)
    parts: list[pa.Table] = []
    texts = (text for chunk in chunks for text in chunk.texts)
    chosen, gone = context.candidates.choose(unit, texts)
    replaced = [context.candidates.paths[candidate].as_py() for candidate in gone]
    for candidate in chosen:
        is_gone, path = context.candidates.is_gone[candidate], context.candidates.paths[candidate].as_py()
        if not is_gone and (answer_of != NO_ANSWER).all():
            continue
        aside = context.aside.get(path)  # where it is kept once a new one has its path
        earlier = (_read_earlier(context, aside) if aside else None) or _read_earlier(context, path)
        if earlier is None or _is_of_unit(earlier.unit, unit):  # an earlier attempt's own output
            continue
        row = pc.index_in(wanted, value_set=earlier.text_hash).fill_null(NO_ANSWER).to_numpy()
        if is_gone and (row != NO_ANSWER).any() and candidate not in gone:
            replaced.append(path)
        new = np.flatnonzero((row != NO_ANSWER) & (answer_of == NO_ANSWER))
        if len(new):
            first = sum(map(len, parts))
            answer_of[new] = np.arange(first, first + len(new))
            parts.append(earlier.answers.take(pa.array(row[new])))
    of_texts = answer_of[encoded.indices.to_numpy()]
    ends = np.cumsum([len(chunk.texts) for chunk in chunks])[:-1]
    answers = pa.concat_tables(parts).combine_chunks() if parts else pa.table({})
    return FoundAnswers(np.split(of_texts, ends), answers, tuple(replaced))


@dataclass(frozen=True)
class _EarlierOutput:
    """An output whose scores may be reused."""

    unit: UnitOrigin
    text_hash: pa.Array
    answers: pa.Table  # its columns of all models


# A worker process of Ray runs many tasks. An output that was cut into several others is read once for all of them.
_earlier: OrderedDict[tuple[str, FileStamp, str], _EarlierOutput] = OrderedDict()  # the latest used last


def _read_earlier(context: ScoringContext, path: str) -> _EarlierOutput | None:
    """Read an output's hashes and scores; None if it is gone, damaged, or not what this run would make of its texts."""
    folder = context.output_folder
    try:
        stamp = storage.read_stamp(folder, path)
        key = folder, stamp, repr(context.run)
        if key not in _earlier:
            earlier = _check_earlier(context, path)
            if earlier is None or storage.read_stamp(folder, path) != stamp:  # a store reads a file in several requests
                return None
            _earlier[key] = earlier
        _earlier.move_to_end(key)
        while len(_earlier) > CACHED_OUTPUTS:
            _earlier.popitem(last=False)
        return _earlier[key]
    except Exception:  # a damaged file may raise anything
        return None


def _check_earlier(context: ScoringContext, path: str) -> _EarlierOutput | None:
    run = context.run
    names = [*run.scored_columns, run.text_hash_column]
    table = outputs.read_output(context.output_folder, path, names)
    footer = table.schema.metadata
    origin = Origin.from_json(json.loads(footer[ORIGIN_KEY]))
    counts = PassCounts.from_json(json.loads(footer[COUNTS_KEY]))
    if origin.run != run or origin.unknown_settings or content.find_fault(table, origin, counts, has_text_hash=True):
        return None
    answers = {}
    models = {model.name: model for model in context.models}
    for columns in run.columns_of_models:
        model = models[columns.model]
        no_rows = np.zeros((0, len(model.labels)), np.float32)
        nothing = ScoredRows(model.objective, model.labels, np.zeros(0, np.int8), no_rows, np.zeros(0, np.int64))
        for name, written in outputs.columns_of_model(nothing, run.probabilities).items():
            column = columns.prefix + name
            answers[column] = as_written_now(table[column], written, model.labels)
    return _EarlierOutput(origin.unit, table[run.text_hash_column].combine_chunks(), pa.table(answers))


def _is_of_unit(noted: UnitOrigin, unit: Unit) -> bool:
    """Return whether an output was made of this unit, whose plain shard has no hash yet."""
    rows = (noted.source, noted.start, noted.stop)
    return rows == (unit.source, unit.start, unit.stop) and noted.has_version(
        unit.size, unit.mtime_ns, unit.footer_hash
    )


def estimate_reused_rows(context: ScoringContext, units: Sequence[Unit]) -> int:
    """Estimate how many rows of these units will be reused, from a few units spread evenly over them."""
    if context.candidates is None or not units:
        return 0
    picked = [units[i] for i in np.unique(np.linspace(0, len(units) - 1, ESTIMATED_UNITS).astype(int)).tolist()]
    rows = reused = 0
    for unit in picked:
        try:
            chunks = list(read_chunks(context, unit))
        except UNREADABLE:  # the run itself will say so
            continue
        rows += unit.rows
        for answer_of, chunk in zip(find_answers(context, unit, chunks).answer_of, chunks, strict=False):
            reused += int((answer_of[chunk.inverse] != NO_ANSWER).sum())
    return round(sum(unit.rows for unit in units) * reused / max(1, rows))
