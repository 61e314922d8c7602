#!/usr/bin/env python3
"""The server under load, and what it costs one client.

    python benchmarks/serve.py load [--clients 200] [--requests 10000]
    python benchmarks/serve.py overhead MODEL [--tokens 128] [--rounds 5] [--parallel 1]
    python benchmarks/serve.py together MODEL [--tokens 64] [--rounds 3] [--parallel 4]

`load`: a model that says its question backwards, in a process of its own, behind the real server. Clients ask whole and
streamed, some read slowly, some leave, some send what is no request; a full queue is asked again after what Retry-After
says. It prints how the requests ended, the answers that were another's, and the server's memory over the run.

`overhead`: tokens a second of a streamed answer of MODEL, from its first to its last event, against those of the same
Session without a server, in alternating rounds in one process.

`together`: tokens a second of all answers together, for 1, 2 and more clients at once, from the first question to the
last answer's end: by `sampan serve --parallel 1` and by `--parallel N`, in alternating rounds. Prompts are cached.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from sampan import runtime
from sampan.runtime import EngineOptions, Options, Sampling, Session

TESTS = Path(__file__).parents[1] / "tests"
KINDS = ["whole"] * 8 + ["stream"] * 8 + ["slow", "leaves", "malformed", "large"]


def serve_forever(queue: int) -> None:
    """The process under load: it prints its address."""
    sys.path.insert(0, str(TESTS))
    from server_engine import Scripted

    from sampan.runtime.server import app
    from sampan.runtime.server.settings import Settings

    settings = Settings("tiny", port=0, queue=queue)
    sock = app.bind(settings)
    engine = Scripted(lambda text: text.split("[user]")[-1].split("\n")[0][::-1])
    service = app.service(Session(engine), settings)
    sock.listen(1024)
    print(sock.getsockname()[1], flush=True)
    app.run(service, sock)


def resident(pid: int) -> int:
    """Bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class Client:
    """One connection at a time; it counts how its requests end."""

    def __init__(self, port: int, number: int, ends: Counter[str]) -> None:
        self._port, self._number, self._ends = port, number, ends
        self._random = random.Random(number)

    async def ask(self, n: int) -> None:
        """One request, asked again while the queue is full."""
        kind = self._random.choice(KINDS)
        word = f"client {self._number} asks {n}"
        value = {"messages": [{"role": "user", "content": word}], "stream": kind in ("stream", "slow", "leaves")}
        body = json.dumps(value).encode()
        if kind == "malformed":
            body = self._random.choice([b"{", b'{"messages": "\xff"}', b"[" * 9000, b'{"messages": [], "x": 1}'])
        if kind == "large":
            body = b" " * ((2 << 20) + 1)
        while True:
            status, headers, data = await self._exchange(body, kind)
            if status != 429:
                break
            self._ends["asked again"] += 1
            await asyncio.sleep(float(headers["retry-after"]) * self._random.uniform(0.5, 1.5))
        wanted = {"malformed": 400, "large": 413}.get(kind, 200)
        if kind == "leaves":
            self._ends["left"] += 1
        elif status != wanted:
            self._ends[f"WRONG STATUS {status} for {kind}"] += 1
        elif wanted != 200:
            self._ends[f"refused {status}" if "error" in json.loads(data) else "WRONG ERROR"] += 1
        else:
            self._ends[f"answered {kind}" if self._said(data, value["stream"]) == word[::-1] else "CROSSED"] += 1

    @staticmethod
    def _said(data: bytes, stream: Any) -> str:
        if not stream:
            return str(json.loads(data)["choices"][0]["message"]["content"])
        events = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
        return "".join(e["choices"][0]["delta"].get("content") or "" for e in events)

    async def _exchange(self, body: bytes, kind: str) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=4096)
        try:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
            writer.write(head.encode() + b"content-type: application/json\r\nconnection: close\r\n\r\n" + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if line)}
            status, data = int(lines[0].split()[1]), b""
            if kind == "leaves" and status == 200:
                return status, headers, data
            while part := await reader.read(200 if kind == "slow" else 65536):
                data += part
                if kind == "slow":
                    await asyncio.sleep(0.05)
            return status, headers, data
        finally:
            writer.close()


async def load(clients: int, requests: int, queue: int) -> None:
    command = [sys.executable, __file__, "server", "--queue", str(queue)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port, ends = int(process.stdout.readline()), Counter[str]()
    numbers, memory = iter(range(requests)), []
    began = time.monotonic()

    async def client(number: int) -> None:
        asks = Client(port, number, ends)
        for n in numbers:
            await asks.ask(n)
            if n % max(1, requests // 10) == 0:
                memory.append(resident(process.pid))

    await asyncio.gather(*map(client, range(clients)))
    seconds = time.monotonic() - began
    process.terminate()
    code = process.wait(60)
    print(f"{clients} clients, {requests} requests in {seconds:.0f} s; exit code {code}")
    for end, count in sorted(ends.items()):
        print(f"  {count:6} {end}")
    print("  memory, MB, at every tenth:", *(f"{m / 1e6:.1f}" for m in memory))


def overhead(model: Path, tokens: int, rounds: int, threads: int | None, parallel: int) -> None:
    sys.path.insert(0, str(TESTS))
    import openai
    from server_engine import serving

    messages: list[Any] = [{"role": "user", "content": "Tell a long story."}]
    rates: dict[str, list[float]] = {"Session": [], "server": []}
    with (
        runtime.open(model, EngineOptions(threads=threads, sequences=parallel)) as session,
        serving(session, name="m") as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as ai,
    ):
        for _ in range(rounds + 1):
            marks = []
            for chunk in session.chat(messages, options=Options(tokens, Sampling())):
                marks.append(time.perf_counter())
                last = chunk
            assert last.usage is not None
            rates["Session"].append((last.usage.completion_tokens - 1) / (marks[-1] - marks[0]))
            events = ai.chat.completions.create(
                model="m", messages=messages, stream=True, max_tokens=tokens, temperature=0, logprobs=True
            )
            marks = [time.perf_counter() for e in events if e.choices[0].logprobs]
            rates["server"].append((len(marks) - 1) / (marks[-1] - marks[0]))
    for name, values in rates.items():
        found = values[1:]
        print(f"{name}: median {median(found):.2f} tokens/s, {min(found):.2f} to {max(found):.2f}")
    ratios = [b / a for a, b in zip(rates["Session"][1:], rates["server"][1:], strict=True)]
    print(f"server / Session: median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


async def together(model: Path, tokens: int, rounds: int, threads: int | None, parallel: int) -> None:
    import openai

    command = [sys.executable, "-c", "from sampan.cli import main; main()", "serve", str(model), "--port", "0"]
    command += ["--threads", str(threads)] if threads else []
    crowds = [n for n in (1, 2, 4, 8) if n <= parallel]
    rates: dict[tuple[int, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        servers = {}
        for n in (1, parallel):
            process = stack.enter_context(
                subprocess.Popen([*command, "--parallel", str(n)], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            servers[n] = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        async def ask(ai: openai.AsyncOpenAI, client: int) -> int:
            given = await ai.chat.completions.create(
                model=model.stem, max_tokens=tokens, temperature=0,
                messages=[{"role": "user", "content": f"Tell a long story with {client + 2} cats in it."}],
            )  # fmt: skip
            assert given.usage is not None
            return given.usage.completion_tokens

        for _ in range(rounds + 1):
            for n, ai in servers.items():
                for crowd in crowds:
                    began = time.perf_counter()
                    counts = await asyncio.gather(*(ask(ai, client) for client in range(crowd)))
                    rates.setdefault((n, crowd), []).append(sum(counts) / (time.perf_counter() - began))
    for crowd in crowds:
        for n in servers:
            found = rates[n, crowd][1:]
            spread = f"{min(found):.2f} to {max(found):.2f}"
            print(f"{crowd} clients, --parallel {n}: median {median(found):.2f} tokens/s together, {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    loads = kinds.add_parser("load")
    loads.add_argument("--clients", type=int, default=200)
    loads.add_argument("--requests", type=int, default=10_000)
    loads.add_argument("--queue", type=int, default=64)
    kinds.add_parser("server").add_argument("--queue", type=int, default=64)
    for name, tokens, rounds, parallel in (("overhead", 128, 5, 1), ("together", 64, 3, 4)):
        timed = kinds.add_parser(name)
        timed.add_argument("model", type=Path)
        timed.add_argument("--tokens", type=int, default=tokens)
        timed.add_argument("--rounds", type=int, default=rounds)
        timed.add_argument("--threads", type=int)
        timed.add_argument("--parallel", type=int, default=parallel)
    a = parser.parse_args()
    if a.kind == "load":
        asyncio.run(load(a.clients, a.requests, a.queue))
    elif a.kind == "server":
        serve_forever(a.queue)
    elif a.kind == "overhead":
        overhead(a.model, a.tokens, a.rounds, a.threads, a.parallel)
    else:
        asyncio.run(together(a.model, a.tokens, a.rounds, a.threads, a.parallel))


if __name__ == "__main__":
    main()
