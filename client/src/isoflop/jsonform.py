"""Messages as JSON for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def to_dict(message: Message) -> dict[str, object]:
    """A message as what `json.dumps` takes, in protobuf's JSON form with one difference.

    Field names are those of the contract, enumerations their names, and fields without
    presence are there even when they are 0 or empty. The difference: 64-bit integers are
    numbers, not strings, as tokens are counted in them. `google.protobuf.json_format` reads it.
    """
    return {
        field.name: _value(
            getattr(message, field.name), field.enum_type.values_by_number if field.enum_type else None
        )
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _value(value: object, enum: Mapping[int, Any] | None) -> object:
    if isinstance(value, Mapping):  # Its order is of no meaning, and not always the same.
        return {str(key): _value(value[key], None) for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_value(item, enum) for item in value]
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Message):
        return to_dict(value)
    if enum is not None and isinstance(value, int):
        known = enum.get(value)
        return known.name if known else value
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
