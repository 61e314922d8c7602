"""A request in, an answer out: bounds, disconnects, events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import time
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from sampan.errors import InputError

from ..lanes import Lanes
from ..session import Session
from ..stream import Chunk
from .fields import Asked
from .metrics import Metrics
from .refusals import RefusalError, bad, refusal
from .settings import BODY_SECONDS, Settings
from .turns import STOPPING, Turn, Worker

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

REASONS = {"stop": "stop", "stop_string": "stop", "tool_calls": "tool_calls", "length": "length", "context": "length"}
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"),
          (b"x-accel-buffering", b"no")]  # fmt: skip
AT_ONCE = 4  # answers that take turns where there is one lane
DISCARDED = 16 << 20  # bytes of a body beyond the limit: who still sends when we close sees no answer


class GoneError(Exception):
    """Nobody reads the answer any more."""


class Service:
    """What the endpoints share. A place is taken from the first byte of a body to the last one of its answer."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self.session, self.settings = session, settings
        self.lanes = Lanes(session)
        turns = settings.turns and len(self.lanes.sessions) == 1
        self.worker = Worker(self.lanes, session.at_once(AT_ONCE) if turns else 1)
        self.metrics = Metrics()
        self.inside = 0
        self.created = int(time.time())

    def close(self) -> None:
        """Finish what runs, refuse what waits, and give up the lanes."""
        self.worker.stop()
        self.worker.join()
        self.lanes.close()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places; refused where none is left."""
        if self.worker.stopping:
            raise STOPPING
        if self.inside >= self.settings.queue + len(self.lanes.sessions):
            seconds = min(60, max(1, math.ceil(self.worker.mean)))
            raise RefusalError(
                429, f"{self.settings.queue} requests wait already; ask again in {seconds} s", None, "queue_full",
                {"retry-after": str(seconds)},
            )  # fmt: skip
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Endpoint:
    """POST to one of the modules `chat` and `completions`; an ASGI application."""

    def __init__(self, service: Service, form: ModuleType) -> None:
        self._service, self._form = service, form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, settings = self._service, self._service.settings
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(service.place())
            except RefusalError:
                await _read(receive, 0)
                raise
            given = await body(scope, receive, settings.max_body)
            try:
                asked: Asked = self._form.parse(given, service.session, settings)
            except InputError as e:  # of the artifact: it has no template, or no meaning in its metadata
                raise refusal(e) from None
            turn = Turn(lambda session: self._form.begin(asked, session))
            reply = _Reply(self._form, asked, settings.name, send)
            watch = asyncio.create_task(_left(receive, turn))
            try:
                async with asyncio.timeout(settings.seconds):
                    service.worker.add(turn)
                    await self._answer(turn, reply)
            except TimeoutError:
                await reply.refuse(RefusalError(504, f"it took more than {settings.seconds:g} s", None, "timeout"))
            except RefusalError as e:
                await reply.refuse(e)
            except GoneError:
                service.metrics.gone()
            finally:
                turn.cancel()
                watch.cancel()

    async def _answer(self, turn: Turn, reply: _Reply) -> None:
        chunks: list[Chunk] = []
        while True:
            event = await turn.events.get()
            if isinstance(event, RefusalError):
                raise event
            if event is None or turn.left:
                raise GoneError
            chunks.append(event)
            if reply.asked.stream:
                await reply.part(event)
                await asyncio.sleep(0)  # others' turn, and time to hear that the client left
            if event.usage is not None:
                break
        self._service.metrics.answered(event.usage)
        if reply.asked.stream:
            await reply.end(event)
        else:
            await reply.whole(chunks, turn)


async def _left(receive: Receive, turn: Turn) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    turn.cancel()


class _Reply:
    """Writes one answer. A reader that takes nothing for a while is left."""

    def __init__(self, form: ModuleType, asked: Asked, model: str, send: Send) -> None:
        self._form, self.asked, self._write = form, asked, send
        self._started = False
        self._head = {
            "id": form.PREFIX + secrets.token_hex(12),
            "object": form.PART if asked.stream else form.WHOLE,
            "created": int(time.time()),
            "model": model,
        }

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                await self._write(message)
        except (TimeoutError, OSError):
            raise GoneError from None

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _event(self, value: Any, *, more: bool = True) -> None:
        if not self._started:
            await self._start(200, EVENTS)
        data = value if isinstance(value, str) else dumps(value)
        await self._send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})

    async def _choice(self, choice: dict[str, Any], reason: str | None = None) -> None:
        usage = {"usage": None} if self.asked.usage else {}
        await self._event(self._head | {"choices": [{"index": 0, "finish_reason": reason} | choice]} | usage)

    async def part(self, chunk: Chunk) -> None:
        if not self._started and (opening := self._form.first()):
            await self._choice(opening)
        if choice := self._form.part(chunk, self.asked):
            await self._choice(choice)

    async def end(self, chunk: Chunk) -> None:
        await self._choice(self._form.last(), _reason(chunk))
        if self.asked.usage:
            await self._event(self._head | {"choices": [], "usage": usage(chunk)})
        await self._event("[DONE]", more=False)

    async def whole(self, chunks: list[Chunk], turn: Turn) -> None:
        assert turn.stream is not None  # noqa: S101 - its chunks are here
        choice = {"index": 0, "finish_reason": _reason(chunks[-1])} | self._form.whole(chunks, turn.stream, self.asked)
        text = dumps(self._head | {"choices": [choice], "usage": usage(chunks[-1])}).encode()
        await self._start(200, [*JSON, (b"content-length", str(len(text)).encode())])
        await self._send({"type": "http.response.body", "body": text})

    async def refuse(self, e: RefusalError) -> None:
        """An answer that has begun ends with the error as an event, which the client raises."""
        if not self._started:
            raise e
        with contextlib.suppress(GoneError):
            await self._event(e.body(), more=False)


def _reason(chunk: Chunk) -> str:
    return REASONS[chunk.finish_reason or "stop"]


def usage(chunk: Chunk) -> dict[str, Any]:
    """The tokens of an answer, from its last chunk."""
    u = chunk.usage
    assert u is not None  # noqa: S101 - the last chunk has it
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "total_tokens": u.prompt_tokens + u.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": u.cached_tokens},
    } | ({"dropped_tokens": u.dropped_tokens} if u.dropped_tokens else {})


def dumps(value: Any) -> str:
    """Compact JSON that every parser reads."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


async def body(scope: Scope, receive: Receive, limit: int) -> Any:
    """The JSON of a request. Only JSON's own content type: a browser asks before it sends that across origins."""
    read, size = await _read(receive, limit)
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise RefusalError(415, f"content-type: expected application/json, found {kind.decode('latin-1') or 'none'}")
    if size > limit:
        allowed = f"the {limit} bytes that are allowed; --max-body sets another limit"
        raise RefusalError(413, f"the body has more than {allowed}", None, "body_too_large")
    try:
        return json.loads(read.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as e:
        raise bad(None, f"the body is no UTF-8: byte {e.start} is 0x{read[e.start]:02x}") from None
    except RecursionError:
        raise bad(None, "the body is no JSON that is read here: it is nested too deep") from None
    except ValueError as e:
        raise bad(None, f"the body is no JSON: {e}") from None


async def _read(receive: Receive, limit: int) -> tuple[bytearray, int]:
    """A body, of which more than `limit` bytes are not kept, and its size. A refusal waits for it, too."""
    read, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusalError(400, "the connection ended inside of the body")
                part = message.get("body", b"")
                size += len(part)
                read += part if size <= limit else b""
                if not message.get("more_body") or size > limit + DISCARDED:
                    return read, size
    except TimeoutError:
        raise RefusalError(408, f"the body did not come within {BODY_SECONDS:g} s") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is none of its numbers")
