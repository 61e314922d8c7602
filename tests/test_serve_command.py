"""`sampan serve` as a process: its line, its signals, its page in a browser."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run_cli
from server_engine import Scripted, serving
from test_serve import client
from test_serve_refusals import CHAT, HELLO, refused

from sampan.runtime import Session
from sampan.runtime.server.app import PAGE

MAIN = "from sampan.cli import main; main()"
SLOW = "from sampan.runtime import sampling; import time; choose = sampling.Sampler.choose\n" \
    "sampling.Sampler.choose = lambda self, logits: (time.sleep(0.1), choose(self, logits))[1]\n"  # fmt: skip


class Served:
    """The command, and the address that it printed."""

    def __init__(self, *arguments: str, code: str = MAIN) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", *arguments, "--port", "0", "--threads", "1"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.line)
        self.url = found[0] if found else ""

    def end(self, number: int) -> tuple[int, str]:
        """Exit code and standard error after a signal."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture
def start(gguf: Callable[[str, str], Path]) -> Iterator[Callable[..., Served]]:
    """`start(*options)` → the command over the trained model."""
    running = []

    def begin(*options: str, code: str = MAIN) -> Served:
        running.append(Served(str(gguf("trained", "q8_0")), *options, code=code))
        return running[-1]

    yield begin
    for served in running:
        served.process.kill()
        served.process.communicate()


def test_the_command_serves_and_ends_on_a_signal(start: Callable[..., Served]) -> None:
    served = start("--context", "128")
    assert re.fullmatch(r"serving trained-q8_0 on http://127\.0\.0\.1:\d+\n", served.line)
    ai = client(served.url)
    answer = ai.chat.completions.create(model="trained-q8_0", messages=HELLO, max_tokens=5, temperature=0)
    assert answer.choices[0].message.content
    assert ai.models.list().data[0].model_extra["context_length"] == 128
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):  # a connection without a request holds up nothing
        assert served.end(signal.SIGTERM) == (0, "")


def test_an_interrupt_ends_it_as_it_ends_other_commands(start: Callable[..., Served]) -> None:
    served = start()
    assert served.url
    assert served.end(signal.SIGINT) == (130, "\nerror: interrupted\n")


def test_sigterm_finishes_what_runs_and_refuses_what_waits(start: Callable[..., Served]) -> None:
    served = start(code=SLOW + MAIN)
    events: list[Any] = []

    def ask() -> None:
        never = {"logit_bias": {}, "temperature": 1.5, "seed": 1}
        for event in client(served.url).chat.completions.create(
            model="trained-q8_0", messages=HELLO, max_tokens=20, stream=True, extra_body=never
        ):
            events.append((time.monotonic(), event))

    running = threading.Thread(target=ask)
    running.start()
    while len(events) < 2:
        time.sleep(0.01)
    late: list[Any] = []

    def wait() -> None:
        body = json.dumps(CHAT).encode()
        headers = {"content-type": "application/json"}
        try:
            urllib.request.urlopen(urllib.request.Request(f"{served.url}/v1/chat/completions", body, headers))
        except urllib.error.HTTPError as e:
            late.append((e.code, dict(e.headers), json.loads(e.read())))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while "sampan_requests_waiting 1" not in urllib.request.urlopen(f"{served.url}/metrics").read().decode():
        time.sleep(0.01)
    told = time.monotonic()
    code, err = served.end(signal.SIGTERM)
    running.join()
    waiting.join()
    assert (code, err) == (0, "")
    assert events[-1][0] > told and events[-1][1].choices[0].finish_reason in ("stop", "length")
    refused(late[0], 503, "about to end")


def test_what_cannot_be_served_is_one_line(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    model = str(gguf("trained", "q8_0"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in (
            ([model, "--host", "0.0.0.0"], "needs --api-key"),  # noqa: S104 - it is what is refused
            ([model, "--port", port], f"--port {port}: Address already in use"),
            ([model, "--cors", "example.org"], "--cors: expected an origin"),
            ([model, "--host", "no.such.host.invalid"], "--host no.such.host.invalid: "),
            ([str(tmp_path / "none.gguf")], "no such file"),
        ):
            result = run_cli("serve", *arguments, SAMPAN_API_KEY="")
            assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
            assert result.stdout == ""


def test_without_its_packages_the_server_says_what_to_add(gguf: Callable[[str, str], Path]) -> None:
    code = "import sys; sys.modules['uvicorn'] = None\n" + MAIN
    command = [sys.executable, "-c", code, "serve", str(gguf("trained", "q8_0")), "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stderr.endswith('pip install "sampan[server]"\n'), result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""


# The page

DRIVER = """
const wait = async what => { for (let i = 0; i < 200 && !what(); i++) await new Promise(done => setTimeout(done, 50)); };
const told = { wide: document.documentElement.scrollWidth, room: innerWidth, lang: document.documentElement.lang };
(async () => {
  await wait(() => model);
  told.model = at("model").textContent;
  told.dark = getComputedStyle(document.body).backgroundColor;
  at("text").value = "<b>你好</b>";
  at("send").click();
  told.stop = at("send").textContent;
  await wait(() => !running);
  told.answer = document.querySelector(".assistant > div").textContent;
  told.thought = document.querySelector("details > div").textContent;
  told.user = document.querySelector(".user").innerHTML;
  told.wideWithAnswer = document.querySelector("main").scrollWidth - document.querySelector("main").clientWidth;
  at("text").value = "again";
  at("send").click();
  await wait(() => !running);
  told.second = document.querySelectorAll(".assistant")[1].lastChild.textContent;
  told.turns = turns.length;
  at("text").value = "slow";
  at("send").click();
  await wait(() => document.querySelectorAll(".assistant")[2]?.textContent.length > 20);
  at("send").click();
  await wait(() => !running);
  told.stopped = turns.length;
  at("tongue").click();
  told.other = [document.documentElement.lang, at("send").textContent];
  told.small = Math.min(...[...document.querySelectorAll("button:not([hidden])")]
    .filter(b => b.offsetHeight).map(b => Math.min(b.offsetHeight, b.offsetWidth)));
  at("fresh").click();
  told.fresh = [turns.length, document.querySelectorAll(".turn").length];
  parent.postMessage(JSON.stringify(told), "*");
})().catch(e => parent.postMessage(JSON.stringify({ error: String(e), told }), "*"));
"""


def say(text: str) -> str:
    """A long word, markup, reasoning; what was asked, turned round."""
    asked = text.split("[user]")[-1].split("\n")[0]
    if asked == "slow":
        return "slow " * 700
    return "Hm.\n</think>\n\n" + f"<i>{asked[::-1]}</i> " + "long" * 100


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    page = PAGE.read_text()
    assert not re.search(r'(src|href)=(?!"data:,")|url\(|https?://|innerHTML|eval\(|\sstyle=|\son\w+="', page)
    words = re.findall(r"^  (?:en|zh): \{(.*?)\},$", page, re.MULTILINE | re.DOTALL)
    assert len(words) == 2
    en, zh = (re.findall(r"(\w+): \"", w) for w in words)
    assert en == zh


@pytest.mark.parametrize(("language", "dark"), [("zh-CN", False), ("en-GB", True)])
def test_the_page_works_on_a_phone(tmp_path: Path, language: str, dark: bool) -> None:
    """In a real browser, in a frame as wide as a phone; the frame's own script is let in by a policy of the test."""
    browser = os.environ.get("CHROMIUM", "chromium")
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}<think>{# </think> #}"
    with serving(Session(Scripted(say, seconds=0.002, template=template))) as (url, service):
        page = PAGE.read_text().replace("</script>", DRIVER + "</script>")
        from sampan.runtime.server import app

        with pytest.MonkeyPatch.context() as patch:
            driven = tmp_path / "page.html"
            driven.write_text(page)
            patch.setattr(app, "PAGE", driven)
            with serving(service.session) as (url, _):
                phone = tmp_path / "phone.html"
                phone.write_text(FRAME.replace("URL", url))
                command = [
                    browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                    "--disable-background-networking", "--disable-component-update", f"--lang={language}",
                    f"--accept-lang={language}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                    f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", "--dump-dom", phone.as_uri(),
                ]  # fmt: skip
                try:
                    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
                except FileNotFoundError:
                    assert "CI" not in os.environ, "CI needs a browser: apt-get install chromium"
                    pytest.skip("no chromium here: set CHROMIUM to a browser's path")
    found = re.search(r"<p>(\{.*\})</p>", shown.stdout)
    assert found, shown.stdout + shown.stderr
    told = json.loads(html.unescape(found[1]))
    assert told.keys() > {"fresh"}, told
    print(told)


FRAME = """<iframe width="360" height="700" src="URL"></iframe><p></p>
<script>onmessage = e => { document.querySelector("p").textContent = e.data }</script>"""
