"""`sampan serve` as a process: its line, its signals, its page in a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run_cli
from raw_http import HELLO, ask_aside, exchange, refused, request, wait
from server_engine import Scripted, serving
from test_serve import client

from sampan.runtime import Session
from sampan.runtime.server import app
from sampan.runtime.server.app import PAGE

MAIN = "from sampan.cli import main; main()"
SLOW = "from sampan.runtime import sampling; import time; choose = sampling.Sampler.choose\n" \
    "sampling.Sampler.choose = lambda *given: (time.sleep(0.1), choose(*given))[1]\n"  # fmt: skip


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


def test_a_name_that_is_no_text(start: Callable[..., Served]) -> None:
    served = start("--name", "a\udcff")
    assert client(served.url).models.list().data[0].id == "a\ufffd"
    answer = client(served.url).chat.completions.create(model="a\ufffd", messages=HELLO, max_tokens=1)
    assert answer.model == "a\ufffd"


def test_an_interrupt_ends_it_as_it_ends_other_commands(start: Callable[..., Served]) -> None:
    served = start()
    assert served.url
    assert served.end(signal.SIGINT) == (130, "\nerror: interrupted\n")


def test_sigterm_finishes_what_runs_and_refuses_what_waits(start: Callable[..., Served]) -> None:
    served = start("--parallel", "1", code=SLOW + MAIN)
    events: list[Any] = []

    def ask() -> None:
        answer = client(served.url).chat.completions.create(
            model="trained-q8_0", messages=HELLO, max_tokens=20, stream=True, temperature=1.5, seed=1
        )
        events.extend((time.monotonic(), event) for event in answer)

    running = threading.Thread(target=ask)
    running.start()
    metrics = request("/metrics")
    wait(lambda: b"sampan_requests_running 1\n" in exchange(served.url, metrics))
    late: list[Any] = []
    waiting = ask_aside(served.url, late)
    wait(lambda: b"sampan_requests_waiting 1\n" in exchange(served.url, metrics))
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
            ([model, "--timeout", "nan"], "--timeout: expected more than 0, found nan"),
            ([model, "--shift", "5000"], "shift: expected at most 1022 tokens to keep, in a context of 1024"),
            ([str(tmp_path / "none.gguf")], "no such file"),
        ):
            result = run_cli("serve", *arguments, SAMPAN_API_KEY="")
            assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
            assert result.stdout == ""


def test_without_its_packages_the_server_says_what_to_add(gguf: Callable[[str, str], Path]) -> None:
    code = "import sys; sys.modules['uvicorn'] = None\n" + MAIN
    command = [sys.executable, "-c", code, "serve", str(gguf("trained", "q8_0")), "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "uvicorn is not installed; pip install" in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""


# The page

DRIVER = """
const told = { wide: document.documentElement.scrollWidth, room: innerWidth, lang: document.documentElement.lang };
const until = async what => {
  for (let i = 0; i < 400 && !what(); i++) await new Promise(done => setTimeout(done, 25));
  if (!what()) throw new Error("in vain: " + what);
};
const write = text => { at("text").value = text; at("send").click(); };
const last = () => [...document.querySelectorAll(".assistant")].at(-1);
const tell = () => ask("/v1/completions", { model, prompt: "TOLD" + JSON.stringify(told) });
if (self === top) {  // no window of a headless browser is as narrow as a phone
  const phone = document.createElement("iframe");
  [phone.width, phone.height, phone.frameBorder, phone.src] = [360, 740, 0, "/?phone"];
  document.body.append(phone);
} else (async () => {
  await until(() => !at("keyrow").hidden);
  at("key").value = "k";
  at("enter").click();
  await until(() => model);
  told.model = [at("model").textContent, at("keyrow").hidden];
  told.back = getComputedStyle(document.body).backgroundColor;
  write("<b>你好</b>");
  told.stop = at("send").textContent;
  await until(() => !running);
  told.answer = last().lastChild.textContent;
  told.thought = document.querySelector("details > div").textContent;
  told.user = document.querySelector(".user").textContent;
  told.over = at("talk").scrollWidth - at("talk").clientWidth;
  write("again");
  await until(() => !running);
  told.second = last().lastChild.textContent;
  write("slow");
  await until(() => last().textContent.length > 20);
  at("send").click();
  await until(() => !running);
  told.turns = turns.length;
  told.least = Math.min(...[...document.querySelectorAll("button")].filter(b => b.offsetHeight)
    .map(b => Math.min(b.offsetHeight, b.offsetWidth)));
  at("tongue").click();
  told.other = [document.documentElement.lang, at("send").textContent];
  write("x".repeat(9000));
  await until(() => document.querySelector(".bad"));
  told.bad = document.querySelector(".bad").textContent;
  told.kept = at("text").value.length;
  at("fresh").click();
  told.fresh = [turns.length, document.querySelectorAll(".turn, .bad").length];
  await tell();
})().catch(e => { told.error = String(e); tell(); });
"""


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    page = PAGE.read_text()
    assert not re.search(r'(src|href)=(?!"data:,")|url\(|https?://|innerHTML|eval\(|\sstyle=|\son\w+="', page)
    words = re.findall(r"^  (?:en|zh): \{(.*?)\},$", page, re.MULTILINE | re.DOTALL)
    assert len(words) == 2
    en, zh = (re.findall(r"(\w+): \"", w) for w in words)
    assert en == zh


def visit(url: str, folder: Path, language: str, dark: bool, done: threading.Event) -> str:
    """Have a browser open a page until `done`; what it complains of."""
    browser = os.environ.get("CHROMIUM", "chromium")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--accept-lang={language}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr",
        "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", url,
    ]  # fmt: skip
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        assert "CI" not in os.environ, "CI needs a browser: apt-get install chromium"
        pytest.skip("no chromium here: set CHROMIUM to a browser's path")
    deadline = time.monotonic() + 90
    while not done.wait(0.1) and process.poll() is None and time.monotonic() < deadline:
        pass
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert done.is_set(), err
    return "\n".join(line for line in err.splitlines() if "CONSOLE" in line)


@pytest.mark.everyday("zh-CN*")
@pytest.mark.parametrize(("language", "dark"), [("zh-CN", False), ("en-GB", True)])
def test_the_page_works_on_a_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, dark: bool) -> None:
    """A script at the end of the page's own uses it in a frame, and says what it saw in a last request."""
    told: list[dict[str, Any]] = []
    done = threading.Event()

    def say(text: str) -> str:
        if text.startswith("TOLD"):
            told.append(json.loads(text.removeprefix("TOLD")))
            done.set()
            return ""
        asked = text.split("[user]")[-1].split("\n")[0]
        thought = "Hm.\n</think>\n\n"
        return thought + ("slow " * 700 if asked == "slow" else f"<i>{asked[::-1]}</i> " + "long" * 100)

    driven = tmp_path / "page.html"
    driven.write_text(PAGE.read_text().replace("</script>", DRIVER + "</script>"))
    monkeypatch.setattr(app, "PAGE", driven)
    policy = app._policy(driven.read_text())
    framed = policy.replace("frame-ancestors 'none'", "frame-ancestors 'self'; frame-src 'self'")
    monkeypatch.setattr(app, "_policy", lambda html: framed)
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{# </think> #}<think>"
    with serving(Session(Scripted(say, seconds=0.001, template=template)), api_key="k") as (url, service):
        complaints = visit(url, tmp_path, language, dark, done)
        assert service.inside <= 1
    seen = told[0]
    assert "error" not in seen, seen
    assert seen["wide"] <= seen["room"] == 360 and seen["over"] == 0, "nothing hangs over the edge of a phone"
    assert seen["least"] >= 44, "pixels of the smallest button: a finger's"
    assert seen["lang"] == ("zh-CN" if language.startswith("zh") else "en")
    assert seen["back"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert (seen["model"], seen["stop"]) == (["tiny", True], "停止" if language.startswith("zh") else "Stop")
    assert seen["answer"] == "<i>>b/<好你>b<</i> " + "long" * 100, "what a model writes is text"
    assert (seen["thought"], seen["user"]) == ("Hm.", "<b>你好</b>")
    assert seen["second"].startswith("<i>niaga</i> ")
    assert seen["turns"] == 6, "what came before the stop is the answer"
    assert seen["other"] == (["en", "Send"] if language.startswith("zh") else ["zh-CN", "发送"])
    assert "tokens, and the context 4096" in seen["bad"] and seen["kept"] == 9000
    assert seen["fresh"] == [0, 0]
    # a request without a key, a text that was too long, and what a browser would like of a form
    known = ("status of 40", "[DOM] ")
    assert [line for line in complaints.splitlines() if not any(k in line for k in known)] == []
