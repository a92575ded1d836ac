"""`GET /v1/models`: the served model, with what a client should know about it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from emu.serve.backend import ModelCard
from emu.serve.limits import Limits
from emu.serve.server import Server, unknown_model


def router(server: Server) -> APIRouter:
    """The routes of models."""
    routes = APIRouter()
    card, limits = server.card, server.limits

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that requests may name."""
        data = [model_entry(card, limits, name) for name in card.names]
        return {"object": "list", "data": data}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of the models."""
        if name not in card.names:
            raise unknown_model(name, card)
        return model_entry(card, limits, name)

    return routes


def model_entry(card: ModelCard, limits: Limits, name: str) -> dict[str, Any]:
    """An entry of the model list; fields that OpenAI's schema does not have are under `emu`."""
    language = card.config.language
    own = {
        "instruct": card.uses_dialogue(name.removeprefix(card.name)),
        "generates_images": card.generates_images,
        "max_positions": language.max_positions,
        "positions_per_image": card.config.former.num_queries + 2,
        "max_tokens": min(limits.max_tokens, language.max_positions),
        "max_images": limits.max_images,
        "max_image_bytes": limits.max_image_bytes,
        "image_side": card.config.decoder.image_size if card.config.decoder else None,
        "schedulers": list(card.schedulers),
    }
    return {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "emu",
        "emu": own,
    }
