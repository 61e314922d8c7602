"""A stand-in for the demo app's engine: it speaks protocol 1 and misbehaves where it is told to.

Run as `python android_engine.py MODE`. A model whose name is in LOADS and a question that is in CHATS have an effect
of their own; every other question is echoed, after a thought where the request wants one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

OUT = sys.stdout.buffer
KEYS = {
    "load": {"path": str, "context": int, "threads": int},
    "chat": {
        "messages": list,
        "max_tokens": int,
        "temperature": float,
        "top_p": float,
        "top_k": int,
        "seed": int,
        "variables": dict,
    },
    "stop": {"target": int},
    "stats": {},
    "quit": {},
}
lock = threading.Lock()
stopped = threading.Event()
running: list[threading.Thread] = []
mode = sys.argv[1]


def put(raw: bytes) -> None:
    """Whole lines; one byte at a time in mode `split`, so that characters arrive in pieces."""
    with lock:
        for piece in [raw[i : i + 1] for i in range(len(raw))] if mode == "split" else [raw]:
            OUT.write(piece)
            OUT.flush()


def say(event: str, number: int, **members: Any) -> None:
    put(json.dumps({"event": event, "id": number, **members}, ensure_ascii=False).encode() + b"\n")


def stray(number: int) -> None:
    """What belongs to no request that runs."""
    for other in (0, number + 7, 1 << 40):
        say("loaded", other, name="stray", context=1, nfc=True)
        say("text", other, text="stray")
        say("done", other, reason="stop", tokens=1, decode_ms=1)
        say("error", other, code="internal", message="stray")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(request: dict[str, Any]) -> str:
    """Why the request is not one of the protocol, or nothing."""
    keys = KEYS.get(request.get("op", ""))
    if keys is None or type(request.get("id")) is not int:
        return "no such request"
    found = {k: type(v) for k, v in request.items() if k not in ("op", "id")}
    if found != keys:
        return f"expected {keys}, found {found}"
    turns = request.get("messages", [])
    roles = [t["role"] for t in turns if t.keys() == {"role", "content"}]
    if len(roles) != len(turns) or roles != (["user", "assistant"] * len(turns))[: len(turns)]:
        return f"turns {turns}"
    return ""


def load(number: int, path: str, context: int) -> None:
    name = os.path.basename(path)  # noqa: PTH119 (small and quick to start)
    say("progress", number, value=0.5)
    if name == "dies.gguf":
        die()
    elif name == "memory.gguf":
        say("error", number, code="memory", message="no room for the cache")
    elif name == "bad.gguf":
        say("error", number, code="load", message="unknown architecture")
    else:
        if name == "stray.gguf":
            stray(number)
        say("progress", number, value=1)
        nfc = name == "composed.gguf"
        say("loaded", number, name="", context=context, trained_context=40960, bytes=7, threads=4, load_ms=1, nfc=nfc)


def chat(number: int, messages: list[dict[str, str]], thinks: bool) -> None:
    asked = messages[-1]["content"]
    say("prompt", number, tokens=31, cached=20)
    pieces = ["<thi", "nk>weighing", "</think>", "You said: ", asked, f" ({len(messages)})"]
    reason = "stop"
    if asked == "die":
        say("text", number, text="half an ans")
        put(b'{"event":"text","id":')
        die()
    if asked == "nonsense":
        put(b"this is no event\n")
    if asked in ("too_long", "template", "internal"):
        running.clear()
        say("error", number, code=asked, message="because")
        return
    if asked == "stray":
        stray(number)
    if asked in ("length", "context"):
        reason = asked
    for piece in pieces if thinks else pieces[3:]:
        say("text", number, text=piece)
    while asked == "forever" and not stopped.wait(0.01):
        say("text", number, text="…")
    if asked == "forever":
        reason = "stopped"
        time.sleep(0.1)
        say("text", number, text=" late")
    running.clear()  # first, since the next request may come as soon as this is read
    tokens, ms = (1e308, 1e-300) if asked == "fast" else (8, 500)
    say("done", number, reason=reason, tokens=tokens, prompt_tokens=31, cached=20, prefill_ms=4, decode_ms=ms)
    if asked == "stray":
        stray(number)
        say("text", number, text="late")
        say("done", number, reason="stop", tokens=1, decode_ms=1)


def main() -> None:
    if mode == "exits":
        sys.stderr.write("cannot find it")
        sys.exit(3)
    if mode == "silent":
        time.sleep(60)
    if mode == "slow":
        time.sleep(1)
    if mode == "noisy":
        sys.stderr.write("x" * 1_000_000 + "the end")
        sys.stderr.flush()
    if mode == "invalid":
        put(b'{"event":"ready","id":0,"protocol":1,"engine":"\xff"}\n')
    if mode == "endless":
        put(b"x" * (1 << 20) + b"x")
        time.sleep(60)
    for _ in range(2 if mode == "again" else 1):
        say("ready", 0, protocol=2 if mode == "later" else 1, engine="stand-in", features=[])
    for line in sys.stdin:
        request = json.loads(line)
        number = request["id"]
        op = request["op"]
        fault = wrong(request) or ("one chat at a time" if op == "chat" and running else "")
        if fault:
            say("error", number, code="bad_request", message=fault)
        elif op == "load":
            load(number, request["path"], request["context"])
        elif op == "chat":
            stopped.clear()
            thinks = request["variables"] == {"enable_thinking": True}
            running[:] = [threading.Thread(target=chat, args=(number, request["messages"], thinks))]
            running[0].start()
        elif op == "stop":
            stopped.set()
        elif op == "stats":
            say("stats", number, rss_bytes=12_345_678, model_bytes=7, cache_bytes=5)
        else:
            return


main()
