"""Refusals, in the form of OpenAI's errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sampan.errors import ChangedError, ContextLengthError, InputError, SchemaError, ToolError

LOG = logging.getLogger("sampan.server")
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusalError(Exception):
    """A request that is not answered: status, one line, and the field that is to blame."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(param: str | None, message: str, code: str | None = None) -> RefusalError:
    """A 400 that names a field."""
    return RefusalError(400, f"{param}: {message}" if param else message, param, code)


def refusal(e: InputError, *, begun: bool = False) -> RefusalError:
    """What the Session refuses: the request is to blame, or what is served; in an answer that has begun the latter."""
    if isinstance(e, ChangedError):
        LOG.error("%s", e)  # it names a path, which is no client's business
        return RefusalError(500, "the model's file was changed while it is served; start the server again")
    if begun:
        return RefusalError(500, str(e))
    if isinstance(e, SchemaError):
        return bad(
            "tools" if isinstance(e, ToolError) else "response_format", str(e).removeprefix("tools: "), "invalid_schema"
        )
    return bad(None, str(e), "context_length_exceeded" if isinstance(e, ContextLengthError) else None)
