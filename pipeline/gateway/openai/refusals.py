"""What is wrong with a request's body, in OpenAI's words."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError

from pipeline.gateway.errors import GatewayError, invalid
from pipeline.gateway.openai.requests import REFUSED

CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
}  # others: invalid_value


def explained(error: RequestValidationError) -> GatewayError:
    """The error that says most, where a value fits none of a field's types.

    It is the one found furthest inside, and of those one that is not about the type.
    """
    found = max(error.errors(), key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    if found["type"] == "json_invalid":
        return invalid(f"the body is no JSON: {found['ctx']['error']} at {found['loc'][-1]}")
    if found["loc"] == ("body",) and found["type"] != "value_error":
        return invalid("the body must be a JSON object, and its Content-Type application/json")
    path = _path(list(found["loc"][1:]), error.body, missing=found["type"] == "missing")
    param = _written(path)
    reason = next((REFUSED[name] for name in path if name in REFUSED), None)
    code = CODES.get(found["type"], "unsupported_value" if reason else "invalid_value")
    if found["type"] == "extra_forbidden":
        return invalid(f"unknown parameter {param}", param, code)
    if found["type"] == "missing":
        return invalid(f"{param} is missing", param, code)
    message = found["msg"].removeprefix("Value error, ")
    return invalid(f"{param or 'the body'}: {message}{f' ({reason})' if reason else ''}", param, code)


def _path(location: list[str | int], body: Any, *, missing: bool) -> list[str | int]:
    """The fields and places of a location, without the names of types that pydantic puts between them."""
    path: list[str | int] = []
    for place, step in enumerate(location):
        if isinstance(body, dict) and (step in body or (missing and place == len(location) - 1)):
            body = body.get(step)
        elif isinstance(body, list) and isinstance(step, int):
            body = body[step]
        else:
            continue
        path.append(step)
    return path


def _written(path: list[str | int]) -> str | None:
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return written.removeprefix(".") or None
