"""A server and many clients: queues, those who leave, slow readers, time."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import closing
from typing import Any

import pytest
from raw_http import CHAT, ask_aside, exchange, post, refused, request, wait
from server_engine import Scripted, serving

from sampan.runtime import Session
from sampan.runtime.server import endpoint
from sampan.runtime.server.endpoint import Service


def idle(service: Service) -> bool:
    return service.inside == 0 and service.worker.running == 0 and service.worker.waiting == 0


def test_a_full_queue_says_when_to_come_again() -> None:
    gate = threading.Event()
    with serving(Session(Scripted(lambda text: gate.wait(30) and "yes")), queue=2) as (url, service):
        given: list[Any] = []
        threads = [ask_aside(url, given) for _ in range(3)]
        wait(lambda: service.worker.waiting == 2 and service.inside == 3)
        late = post(url, CHAT)
        refused(late, 429, "2 requests wait already")
        assert 1 <= int(late[1]["retry-after"]) <= 60
        large = CHAT | {"messages": [{"role": "user", "content": "x" * (8 << 20)}]}  # more than a socket holds
        refused(post(url, large), 429, "2 requests wait already")
        gate.set()
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in given] == [200] * 3
        wait(lambda: idle(service))
        assert post(url, CHAT)[0] == 200
        metrics = exchange(url, request("/metrics")).decode()
        assert 'sampan_responses_total{path="/v1/chat/completions",status="429"} 2\n' in metrics
        assert "sampan_completion_tokens_total 16\n" in metrics, "four answers of three letters and an end"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_costs_a_token_at_most(stream: bool) -> None:
    engine = Scripted(lambda text: "x" * 4000, seconds=0.01)
    with serving(Session(engine)) as (url, service):
        host, port = url.removeprefix("http://").split(":")
        s = socket.create_connection((host, int(port)), timeout=30)
        s.sendall(request("/v1/chat/completions", json.dumps(CHAT | {"stream": stream}).encode()))
        wait(lambda: engine.evaluated > 5)
        s.close()
        wait(lambda: idle(service))
        done = engine.evaluated
        assert done < 1000
        time.sleep(0.1)
        assert engine.evaluated == done
        assert "sampan_clients_gone_total 1\n" in exchange(url, request("/metrics")).decode()


def test_who_leaves_the_queue_is_not_answered() -> None:
    gate, seen = threading.Event(), []

    def say(text: str) -> str:
        gate.wait(30)
        seen.append(text)
        return "yes"

    with serving(Session(Scripted(say))) as (url, service):
        given: list[Any] = []
        thread = ask_aside(url, given)
        wait(lambda: service.worker.running > 0)
        host, port = url.removeprefix("http://").split(":")
        with closing(socket.create_connection((host, int(port)), timeout=30)) as s:
            s.sendall(request("/v1/completions", b'{"prompt": "gone"}'))
            wait(lambda: service.worker.waiting == 1)
        wait(lambda: service.inside == 1)
        gate.set()
        thread.join()
        wait(lambda: idle(service))
        assert given[0][0] == 200 and len(seen) == 1 and "gone" not in seen[0]


def test_who_waits_when_the_server_ends_is_told_at_once() -> None:
    gate = threading.Event()
    with serving(Session(Scripted(lambda text: "yes" if gate.wait(30) else "no"))) as (url, service):
        running: list[Any] = []
        waiting: list[Any] = []
        threads = [ask_aside(url, running)]
        wait(lambda: service.worker.running > 0)
        threads.append(ask_aside(url, waiting))
        wait(lambda: service.worker.waiting == 1)
        service.worker.stop()
        threads[1].join(5)
        early = list(waiting)
        gate.set()
        threads[0].join()
        refused(early[0], 503, "about to end")
        assert running[0][0] == 200


@pytest.mark.slow
def test_a_slow_reader_holds_up_nobody_and_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer waits in memory; who takes nothing for a while loses it."""
    monkeypatch.setattr(endpoint, "BODY_SECONDS", 1.0)
    with serving(Session(Scripted(lambda text: "x" * 4000))) as (url, service):
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect((host, int(port)))
            body = json.dumps(CHAT | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
            s.sendall(request("/v1/chat/completions", body))
            wait(lambda: service.worker.running > 0)
            assert post(url, CHAT | {"max_tokens": 3})[0] == 200
            wait(lambda: idle(service))
            assert "sampan_clients_gone_total 1\n" in exchange(url, request("/metrics")).decode()


def test_time_is_bounded() -> None:
    with serving(Session(Scripted(lambda text: "x" * 4000, seconds=0.01)), seconds=0.5) as (url, service):
        given = post(url, CHAT)
        refused(given, 504, "more than 0.5 s")
        events = exchange(url, request("/v1/chat/completions", json.dumps(CHAT | {"stream": True}).encode()))
        last = [line for line in events.decode().splitlines() if line.startswith("data: ")][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        wait(lambda: idle(service))


def test_a_bug_of_ours_is_one_answer_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def say(text: str) -> str:
        if "bug" in text:
            raise RuntimeError("secret")
        return "yes"

    with serving(Session(Scripted(say))) as (url, _):
        given = post(url, {"messages": [{"role": "user", "content": "bug"}]})
        refused(given, 500, "internal error")
        assert "secret" not in given[2]["error"]["message"] and "secret" in caplog.text
        assert post(url, CHAT)[0] == 200


def test_no_answer_reaches_another_client() -> None:
    with serving(Session(Scripted(lambda text: text.split("[user]")[-1].split("\n")[0][::-1]))) as (url, service):
        wrong: list[Any] = []

        def ask(client: int) -> None:
            for n in range(5):
                word = f"client {client} asks {n}"
                value = {"messages": [{"role": "user", "content": word}]}
                status, _, answer = post(url, value)
                if status != 200 or answer["choices"][0]["message"]["content"] != word[::-1]:
                    wrong.append((word, answer))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        wait(lambda: idle(service))
