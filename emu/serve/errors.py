"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """Why a request is not answered: what the caller is told."""

    status: int
    message: str
    param: str | None = None  # the path of the field, such as messages.0.content.1
    code: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The body of the error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class ApiError(Exception):
    """A request that ends in a `Problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def refuse(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> ApiError:
    """The error to raise for a request that cannot be answered."""
    return ApiError(Problem(status, message, param, code))
