"""The description of bodies in `/openapi.json`: routes read them themselves, with stricter rules than FastAPI's."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The `requestBody` of a route that takes this model as JSON."""
    return _body("application/json", _inlined(kind.model_json_schema()))


def form_body(kind: type[BaseModel], files: dict[str, Any]) -> dict[str, Any]:
    """The `requestBody` of a route that takes a form: the fields of the model, and files."""
    schema = _inlined(kind.model_json_schema())
    schema["properties"] = files | schema["properties"]
    return _body("multipart/form-data", schema)


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without references, which would have to stand elsewhere in the document."""
    definitions = schema.pop("$defs", {})

    def inline(value: Any) -> Any:
        if isinstance(value, list):
            return [inline(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inline(definitions[value["$ref"].rpartition("/")[2]])
        return {
            name: inline(each) for name, each in value.items() if name not in ("discriminator",)
        }

    return inline(schema)
