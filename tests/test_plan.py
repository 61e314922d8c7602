"""`sampan plan`: what a device makes of a demand, against arithmetic that is written out here, and the command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner
from conftest import run_cli
from machines import PI5, write

from sampan import qnn
from sampan.cli import cli
from sampan.convert.demand import ALL
from sampan.demand import Demand
from sampan.errors import InputError
from sampan.files import read_json
from sampan.gguf import Kind, Value, encode, read_header
from sampan.runtime import device as devices
from sampan.runtime import memory, predict
from sampan.runtime.machine import look

GB = 10**9


# ── What a device makes of it ──

SMALL = Demand(
    files=GB, weights=GB, cell=1000, state=0, read=GB // 2, products=10**9, head=10**8, attention=1000, words=1000,
    hidden=64, inner=384, bits=4.5,
)  # fmt: skip
MADE: dict[str, Any] = {
    "name": "A board", "aliases": [], "memory": {"value": 4, "source": "x"}, "usable": {"value": 0.5, "source": "x"},
    "bandwidth": {"value": 10, "source": "x"}, "npu": None, "notes": [],
    "cores": [
        {"name": "big", "count": 2, "computes": True, "gigahertz": 2, "operations": 50, "features": [], "source": "x"},
        {"name": "little", "count": 4, "computes": False, "gigahertz": 1, "operations": None, "features": [],
         "source": "x"},
    ],
}  # fmt: skip


def made(**changes: Any) -> devices.Device:
    return devices.parse("made", MADE | changes, "made.json")


def test_speeds_by_hand() -> None:
    found = predict.predict(made(), SMALL, 2000)
    assert (found.decode.low, found.decode.high) == (10e9 * 0.45 / (0.5e9 + 2e6), 10e9 * 0.75 / 0.5e9)
    peak = 2 * 2e9 * 50
    short = 2 * (512 * 10**9 + 10**8 + 1000 * 512 * 513 // 2) / 512
    long = 2 * (2000 * 10**9 + 10**8 + 1000 * 2000 * 2001 // 2) / 2000
    assert found.prefill.high == pytest.approx(peak * 0.3 / short)
    assert found.prefill.low == pytest.approx(peak * 0.1 / long)
    assert "10.0 GB/s × 0.45 to 0.75 ÷ 500 MB to 502 MB" in found.decode.why


def test_memory_by_hand() -> None:
    """Half of 4 GiB: 2,147,483,648 bytes; contexts go up to a multiple of 256."""
    rest = 4 * 512 * (1000 + 8 * 64 + 3 * 128) + (32 << 20) + 256 * 1000
    cell = 1000 + 2 * 512  # and two bytes in the mask of a batch
    assert predict.needed(SMALL, 2000) == GB + cell * 2048 + rest
    most = (2**31 - GB - rest) // cell // 256 * 256
    assert predict.predict(made(), SMALL, most).fits == "yes"
    over = predict.predict(made(), SMALL, most + 1)
    assert over.fits == "no" and over.reason.endswith("of 2.15 GB that a model may take")


NPU: dict[str, Any] = {
    "name": "An NPU", "target": "qnn-v75", "chips": [], "tops": {"value": 10, "source": "x"},
    "reached": {"value": None, "source": "x"}, "session": {"value": 1.5, "source": "x"},
}  # fmt: skip


def test_an_npu_by_hand() -> None:
    """Its graphs look at all slots, compute logits of all tokens, and lie in one process's room."""
    parts = Demand(**{**{f: getattr(SMALL, f) for f in Demand.__slots__}, "parts": (GB // 2,)})
    found = predict.predict(made(npu=NPU), parts, 1000)
    assert found.fits == "yes"
    full = GB // 2 + 1000 * 1000
    assert (found.decode.low, found.decode.high) == (10e9 * 0.4 / full, 10e9 * 0.9 / full)
    each = 2 * (10**9 + 10**8 + 1000 * (1000 + 128))
    assert found.prefill.low == pytest.approx(10e12 * 0.03 / each)
    reached = made(npu=NPU | {"reached": {"value": 2, "source": "x"}})
    assert predict.predict(reached, parts, 1000).prefill.high == pytest.approx(2e12 / each)
    small = made(npu=NPU | {"session": {"value": 0.9, "source": "x"}})
    found = predict.predict(small, parts, 1000)
    assert found.fits == "unproved" and "need more than one session of 900 MB" in found.reason
    unknown = made(npu=NPU | {"session": {"value": None, "source": "x"}, "tops": {"value": None, "source": "x"}})
    found = predict.predict(unknown, parts, 1000)
    assert found.fits == "unproved" and found.prefill.low is None


def test_what_is_not_known_is_not_told() -> None:
    found = predict.predict(made(bandwidth={"value": None, "source": "nobody says"}, cores=[]), SMALL, 1000)
    assert found.decode == predict.Speed(None, None, "memory bandwidth: nobody says")
    assert found.prefill.high is None and found.fits == "yes"
    found = predict.predict(made(memory={"value": None, "source": "x"}), SMALL, 1000)
    assert found.fits == "unproved"


def row(name: str, bits: float, low: float | None, fits: predict.Fit = "yes", read: int = GB) -> predict.Row:
    asked = Demand(**{**{f: getattr(SMALL, f) for f in Demand.__slots__}, "bits": bits, "read": read})
    speed = predict.Speed(low, low and 2 * low, "")
    return predict.Row("gguf", None, name, asked, predict.Prediction(fits, "why", read, speed, speed))


@pytest.mark.parametrize(
    ("rows", "scheme", "why"),
    [
        ([row("a", 4.5, 20), row("b", 8.5, 12), row("c", 16, 6)], "b", "the most bits a weight"),
        ([row("a", 4.5, 6), row("b", 8.5, 3, read=2 * GB)], "a", "nothing is sure to reach 10 tokens/s"),
        ([row("a", 4.5, None), row("b", 8.5, None, read=2 * GB)], "a", "no speed can be told"),
        ([row("a", 2.6, 90), row("b", 3.5, 80), row("c", 4.5, 70, "no")], "b", "nothing of 4 bits a weight fits"),
        ([row("a", 2.6, 90, "no", 5), row("b", 4.5, 80, "no", 9)], None, "the smallest, gguf a, needs why"),
        ([predict.Row("gguf", None, "a", None, None, "no")], None, "nothing can be converted"),
    ],
)
def test_what_is_recommended(rows: list[predict.Row], scheme: str | None, why: str) -> None:
    best, said = predict.recommend(rows, 100)
    assert (best and best.scheme) == scheme and why in said


# ── Devices ──


def numbers(value: Any, where: str) -> None:
    """Every number, and every null that stands for one, lies beside a source."""
    if isinstance(value, dict):
        if any(type(v) in (int, float) for v in value.values()) or "value" in value:
            assert len(value.get("source", "")) > 10, where
        for key, v in value.items():
            numbers(v, f"{where}: {key}")
    elif isinstance(value, list):
        for v in value:
            numbers(v, where)


@pytest.mark.parametrize("name", devices.names())
def test_a_device_file(name: str) -> None:
    data = read_json(devices.FOLDER / f"{name}.json")
    numbers(data, name)
    device = devices.read(name)
    assert device.room and device.computing and re.fullmatch(r"[a-z0-9-]+", name)
    assert device.bandwidth.value is None or 5e9 < device.bandwidth.value < 1e12
    if device.npu and device.npu.target and device.npu.target.startswith("qnn"):
        assert len(qnn.versions(device.npu.target)) == 1


def test_names_of_devices_are_unique() -> None:
    found = [n for d in map(devices.read, devices.names()) for n in (d.id, *d.aliases)]
    assert len(found) == len(set(found)) and all(devices.find(n.upper().replace("-", " ")).id for n in found)
    assert {"pixel-9", "8-elite", "8-gen3", "rk3588", "pi5", "macbook-m2"} <= set(devices.names())


BAD = [
    ({"memory": 8}, "made.json: memory: expected a dict, found 8"),
    ({"memory": {"value": 8}}, "made.json: memory: source: expected a str, found none"),
    ({"memory": {"value": 8, "source": " "}}, "made.json: memory: source: expected some words, found none"),
    ({"memory": {"value": "8", "source": "x"}}, "memory: value: expected a number above 0, or null, found 8"),
    ({"memory": {"value": True, "source": "x"}}, "memory: value: expected a number above 0, or null, found True"),
    ({"speed": 1}, "made.json: expected keys that are known, found speed"),
    ({"cores": [{}]}, "made.json: cores: count: expected a number above 0, or null, found none"),
    ({"notes": [1]}, "made.json: notes: expected a list of texts"),
]


@pytest.mark.parametrize(("changes", "expected"), BAD)
def test_a_bad_device_file_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as e:
        made(**changes)
    assert expected in str(e.value)


# ── The command ──


def plan(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def test_the_page() -> None:
    page = plan(str(tiny.FIXTURE), "--device", "8-gen3", "--context", "256")
    lines = page.splitlines()
    table = lines[next(n for n, text in enumerate(lines) if "scheme" in text) :][:7]
    assert [text.split()[:3] for text in table[1:7]] == [
        ["gguf", "q4_k_m", "5.04"], ["→", "gguf", "q8_0"], ["onnx", "int4", "4.52"], ["onnx", "q8_0", "8.52"],
        ["onnx", "qnn-v75", "a16w4"], ["onnx", "qnn-v75", "a16w8"],
    ]  # fmt: skip
    assert all(text.index(" yes ") == table[1].index(" yes ") for text in table[1:7]), "it lines up"
    for word in ("take", "memory", "decode", "prefill", "NPU decode", "unproved"):
        assert re.search(rf"^{word} ", page, re.MULTILINE), word
    assert "none was measured on this device" in page


def test_json_tells_every_reason() -> None:
    data = json.loads(plan(str(tiny.FIXTURE), "--device", "pi5", "--quant", ALL, "--json"))
    assert data["context"] == 1024 and data["device"]["id"] == "pi5"
    schemes = {(r["format"], r["scheme"]) for r in data["rows"]}
    assert {("gguf", "q2_k"), ("gguf", "q4_k_m"), ("gguf", "q6_k"), ("onnx", "int4_zp")} <= schemes
    assert not schemes & {("gguf", "bf16"), ("gguf", "native"), ("onnx", "f32")}
    for found in data["rows"]:
        assert found["refused"] is None and found["fits"] == "yes"
        assert found["decode"]["low"] < found["decode"]["high"] and "GB/s" in found["decode"]["why"]
    assert data["recommended"]["scheme"] and data["why"] and data["unproved"]


def test_a_gguf_file(gguf: Callable[[str, str], Path]) -> None:
    file = gguf("trained", "q8_0")
    data = json.loads(plan(str(file), "--device", "pi5", "--json"))
    (found,) = data["rows"]
    assert (found["scheme"], found["fits"], data["context"]) == ("as it is", "yes", 1024)
    of_checkpoint = json.loads(plan(str(tiny.FIXTURE), "--device", "pi5", "--quant", "q8_0", "--json"))["rows"][0]
    assert found["decode"]["high"] == pytest.approx(of_checkpoint["decode"]["high"], rel=1e-3)
    with pytest.raises(InputError, match="--quant: expected none with a GGUF file, found q4_0"):
        plan(str(file), "--device", "pi5", "--quant", "q4_0")
    with pytest.raises(InputError, match="--context: expected at most the 1024 that the model was made for, found 102"):
        plan(str(file), "--device", "pi5", "--context", "1025")


def test_yarn_reaches_further(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    header = read_header(gguf("trained", "q8_0"))
    rope = {"type": Value(Kind.STRING, "yarn"), "factor": Value(Kind.FLOAT32, 4.0)}
    rope["original_context_length"] = Value(Kind.UINT32, 1000)
    keys = {f"qwen3.rope.scaling.{k}": v for k, v in rope.items()}
    raw = encode({**header.metadata, **keys}, header.tensors)
    (tmp_path / "m.gguf").write_bytes(raw + bytes(gguf("trained", "q8_0").stat().st_size))
    assert memory.asks(tmp_path / "m.gguf")[1:] == (1024, 4000)


def test_this_machine() -> None:
    data = json.loads(plan(str(tiny.FIXTURE), "--quant", "int4", "--json"))
    assert data["device"]["id"] == devices.HERE
    assert data["rows"][0]["prefill"]["low"] is None and "sampan bench" in data["rows"][0]["prefill"]["why"]
    rate = data["device"]["bandwidth"]["value"]
    assert rate is None or 1e8 < rate < 1e13
    assert devices.bandwidth(1, 10**6) is None, "too little memory to try"


def test_a_machine_with_other_work(tmp_path: Path) -> None:
    idle = write(tmp_path / "idle", PI5 | {"proc/loadavg": "0.10 0 0 1/1 1\n"})
    busy = write(tmp_path / "busy", PI5 | {"proc/loadavg": "3.50 0 0 1/1 1\n"})
    (here, there) = (devices.here(look(root, "aarch64")) for root in (idle, busy))
    assert here.name == "Cortex-A76" and here.room == 7200 << 20 and len(here.notes) == 1
    assert there.notes[1] == "other programs compute here, a load of 3.50 on 4 cores: it may be far slower"


def test_a_model_that_fits_nowhere() -> None:
    """Smaller schemes are tried where the usual ones do not fit."""
    page = plan(str(tiny.FIXTURE), "--device", "pi5", "--memory", "50M", code=1)
    assert "take      nothing: nothing is sure to fit: the smallest, gguf q2_k, needs 52.5 MB" in page
    assert next(text for text in page.splitlines() if " q3_k_s " in text).endswith("MB"), (
        "no speed of what does not fit"
    )
    assert "take a smaller --context or a smaller model" in page


def test_a_reason_is_told_once(tmp_path: Path) -> None:
    """Also where smaller schemes are tried after the usual ones."""
    source = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "source"))
    (source / "tokenizer.json").unlink()
    rows = json.loads(plan(str(source), "--device", "8-gen3", "--json", code=1))["rows"]
    assert [(r["format"], r["target"]) for r in rows] == [("gguf", None), ("onnx", None), ("onnx", "qnn-v75")]


def test_devices_are_listed() -> None:
    page = plan("--devices")
    assert page == plan("--device", "list")
    assert [text.split()[0] for text in page.splitlines()[1:]] == devices.names()
    assert "not known" in next(text for text in page.splitlines() if text.startswith("pixel-9"))
    assert [d["id"] for d in json.loads(plan("--devices", "--json"))] == devices.names()


@pytest.mark.everyday("arguments0-*", "arguments4-*")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "pi6"], "--device: expected one of .* devices, such as pi5.*, found 'pi6'; `sampan plan --dev.*"),
        (["--device", ""], "--device: expected one of .*, found ''"),
        (["--device", "8elit"], "--device: expected .*8elite, .*found '8elit'"),
        (["--device", "x" * 10**5], "--device: expected one of .{,300}"),
        (["--context", "1025"], "--context: expected at most the 1024 that the model was made for, found 1025"),
        (["--quant", "q9"], "--quant: expected one of .*, found 'q9'"),
        (["--memory", "much"], "--memory: expected a size such as 600M, .*found 'much'"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(arguments: list[str], expected: str) -> None:
    arguments = arguments if "--device" in arguments else [*arguments, "--device", "pi5"]
    result = run_cli("plan", str(tiny.FIXTURE), *arguments)
    assert result.returncode == 2 and re.fullmatch(f"error: {expected}.*\n", result.stderr), result.stderr
    assert result.stdout == ""


def test_no_source_and_none_that_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "static.json").write_text("{}")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    runs = "found another model that runs; give the checkpoint that it was made of"
    for arguments, expected in (([], "SOURCE: expected a checkpoint folder, a hub id or a GGUF file, found none"),
                                ([str(tmp_path)], runs), ([str(tmp_path / "onnx")], runs),
                                ([str(tmp_path / "onnx" / "model.onnx")], runs),
                                ([str(tmp_path / "x.gguf")], "expected a checkpoint folder or a hub id")):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(expected)):
            CliRunner().invoke(cli, ["plan", *arguments, "--device", "pi5"], catch_exceptions=False)
