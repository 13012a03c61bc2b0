"""One schema for the tables of several sources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from direct_anneal.data.formats.tables import read_schema
from direct_anneal.errors import InputError

_HUGGING_FACE = b"huggingface"


def common_schema(paths: Sequence[Path], format: str) -> pa.Schema:
    """Return one schema that holds every column of the tables; the key-value metadata is the first one's.

    Raises:
        InputError: a column's types, or the names of its class labels, differ.
    """
    schemas: list[pa.Schema] = []
    common = pa.schema([])
    labels: dict[str, Any] = {}
    for path in paths:
        schema = read_schema(path, format)
        if schema is None:
            continue
        try:
            common = pa.unify_schemas([common, schema], promote_options="default") if schemas else schema
        except pa.ArrowException as error:
            raise InputError(_disagreement(path, format, " ".join(str(error).split()))) from error
        schemas.append(schema)
        for name, feature in hugging_face_features(schema).items():
            # The types agree, but the numbers stand for other labels.
            if _class_labels(feature) != labels.setdefault(name, _class_labels(feature)):
                raise InputError(_disagreement(path, format, f"the class labels of {name!r} differ"))
    if len(schemas) <= 1:
        return common
    everywhere = set(common.names).intersection(*(schema.names for schema in schemas))
    fields = [field if field.name in everywhere else field.with_nullable(True) for field in common]
    return pa.schema(fields, _merged_metadata(common, schemas))


def _disagreement(path: Path, format: str, reason: str) -> str:
    return (
        f"{path.as_posix()} must have the same column types as the {format} sources before it, but has not ({reason}): "
        "convert the column, or select from the two in separate runs"
    )


def _merged_metadata(common: pa.Schema, schemas: Sequence[pa.Schema]) -> dict[bytes, bytes]:
    """Return the first schema's metadata, with Hugging Face features of all columns, or none if some are unknown."""
    features: dict[str, Any] = {}
    for schema in schemas:
        for name, feature in hugging_face_features(schema).items():
            if schema.field(name).type == common.field(name).type:
                features.setdefault(name, feature)
    metadata = dict(common.metadata or {})
    metadata.pop(_HUGGING_FACE, None)
    if features and features.keys() == set(common.names):
        described = {"info": {"features": {name: features[name] for name in common.names}}}
        metadata[_HUGGING_FACE] = json.dumps(described).encode("utf-8")
    return metadata


def hugging_face_features(schema: pa.Schema) -> dict[str, Any]:
    """Return the description of each column that `datasets` keeps in a schema's metadata; empty without one."""
    try:
        features = json.loads((schema.metadata or {}).get(_HUGGING_FACE, b"{}"))["info"]["features"].items()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # whatever others have put there
        return {}
    return {name: feature for name, feature in features if name in schema.names}


def _class_labels(feature: Any) -> Any:
    return feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
