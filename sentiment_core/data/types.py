"""One canonical Arrow type for what Parquet itself cannot tell apart, and for what not all readers open."""

from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.compute as pc


def canonical_type(kind: pa.DataType) -> pa.DataType:
    """Return the usual type of a column's values, at any depth.

    Dictionaries become their values, and extension types such as JSON what they are stored as. The large or viewed
    kinds of text, bytes and lists become the usual kind. Nanoseconds become microseconds: Spark opens no others.
    """
    is_kind = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return canonical_type(kind.storage_type)
    if is_kind.is_dictionary(kind):
        return canonical_type(kind.value_type)
    if is_kind.is_large_string(kind) or is_kind.is_string_view(kind):
        return pa.string()
    if is_kind.is_large_binary(kind) or is_kind.is_binary_view(kind):
        return pa.binary()
    if is_kind.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if kind == pa.time64("ns"):
        return pa.time64("us")
    if is_kind.is_fixed_size_list(kind):
        return pa.list_(_canonical_field(kind.value_field), kind.list_size)
    if is_kind.is_list(kind) or is_kind.is_large_list(kind) or is_kind.is_list_view(kind):
        return pa.list_(_canonical_field(kind.value_field))
    if is_kind.is_struct(kind):
        return pa.struct([_canonical_field(field) for field in kind])
    if is_kind.is_map(kind):
        return pa.map_(_canonical_field(kind.key_field), _canonical_field(kind.item_field))
    return kind


def to_canonical(table: pa.Table, apart_from: Collection[str] = ()) -> pa.Table:
    """Cast columns to their canonical types, but for those named; what is finer than microseconds is cut off."""
    fields = [
        field if field.name in apart_from else field.with_type(canonical_type(field.type)) for field in table.schema
    ]
    columns = [  # pyarrow 26 breaks lists of nulls where it casts them to the type that they have
        column
        if column.type == field.type
        else column.cast(options=pc.CastOptions(field.type, allow_time_truncate=True))
        for column, field in zip(table.columns, fields, strict=True)
    ]
    return pa.table(columns, schema=pa.schema(fields))


def set_types(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Cast the columns that `types` names; one with only nulls may have had any type before."""
    for i, field in enumerate(table.schema):
        kind = types.get(field.name, field.type)
        if kind != field.type:
            column = table.column(i)
            only_nulls = column.null_count == len(column)
            column = pa.chunked_array([pa.nulls(len(column), kind)]) if only_nulls else column.cast(kind)
            table = table.set_column(i, field.with_type(kind), column)
    return table


def _canonical_field(field: pa.Field) -> pa.Field:
    return field.with_type(canonical_type(field.type))
