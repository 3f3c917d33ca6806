"""One canonical Arrow type for what Parquet itself cannot tell apart."""

import pyarrow as pa


def canonical_type(kind: pa.DataType) -> pa.DataType:
    """Return the usual type of a column's values, at any depth.

    Dictionaries become their values; the large or viewed kinds of text, bytes and lists become the usual kind.
    """
    is_kind = pa.types
    if is_kind.is_dictionary(kind):
        return canonical_type(kind.value_type)
    if is_kind.is_large_string(kind) or is_kind.is_string_view(kind):
        return pa.string()
    if is_kind.is_large_binary(kind) or is_kind.is_binary_view(kind):
        return pa.binary()
    if is_kind.is_list(kind) or is_kind.is_large_list(kind):
        return pa.list_(_canonical_field(kind.value_field))
    if is_kind.is_fixed_size_list(kind):
        return pa.list_(_canonical_field(kind.value_field), kind.list_size)
    if is_kind.is_struct(kind):
        return pa.struct([_canonical_field(field) for field in kind])
    if is_kind.is_map(kind):
        return pa.map_(_canonical_field(kind.key_field), _canonical_field(kind.item_field))
    return kind


def _canonical_field(field: pa.Field) -> pa.Field:
    return field.with_type(canonical_type(field.type))
