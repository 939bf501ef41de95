"""What is stored as JSON: records whose fields are checked when they are read."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from channelwise.errors import ResultsFileError
from channelwise.io.atomic import write
from channelwise.io.reading import read

Model = TypeVar("Model", bound=BaseModel)


class Record(BaseModel):
    """Base of everything stored: unknown fields and non-finite numbers are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def write_json(path: str | os.PathLike[str], record: BaseModel) -> None:
    """Write a record as indented JSON, atomically."""
    write(path, (record.model_dump_json(indent=2, exclude_none=True) + "\n").encode())


def read_json(path: str | os.PathLike[str], kind: type[Model]) -> Model:
    """Read a record written by :func:`write_json`, or by hand; a ResultsFileError names what is wrong with it."""
    path = Path(path)
    try:
        return kind.model_validate_json(read(path))
    except ValidationError as error:
        title = kind.model_config.get("title", kind.__name__)
        raise ResultsFileError(
            f"{path} is damaged or not a {title} file: {first_problem(error)}. Restore it, or have it written anew."
        ) from error


def checksum(content: Any) -> str:
    """Of plain JSON, whatever the order of its keys; tells damage, not intent."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def first_problem(error: ValidationError) -> str:
    """The first finding of pydantic as one short phrase."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
