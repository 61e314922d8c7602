"""What a server is started with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sampan.errors import InputError, wrong

BODY_SECONDS = 30.0  # for a body to arrive, and for a reader to take what was sent
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Settings:
    """`queue` counts requests that wait behind the one that is answered; `seconds` bounds one request, waiting and
    answering together; `max_tokens` bounds every answer (None: the context does). `shift` as in `Options`.
    `turns`: answers take turns, where the Session keeps what they evaluated.
    """

    name: str  # of the model
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    cors: tuple[str, ...] = ()
    queue: int = 64
    max_body: int = 2 << 20
    max_tokens: int | None = None
    seconds: float = 600.0
    shift: int | None = None
    turns: bool = False

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Raises InputError where strangers could come in, or nobody, and for a time that is none."""
        if not self.seconds > 0:
            raise wrong("--timeout", "more than 0", self.seconds)
        if not self.loopback and not self.api_key:
            raise InputError(f"--host {self.host}: others can reach this address, so it needs --api-key; give one")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise InputError("--api-key: expected printable ASCII of at least one character, found another text")
        for origin in self.cors:
            scheme, found, rest = origin.partition("://")
            if origin != "*" and not (found and scheme and rest and "/" not in rest):
                raise wrong("--cors", "an origin such as https://example.org, or *", origin)
