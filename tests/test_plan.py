"""`sampan plan`: numbers against arithmetic that is written out here, and against what engines' own files say."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner
from conftest import run_cli
from machines import PI5, write

from sampan import qnn
from sampan.checkpoint import open_folder
from sampan.cli import cli
from sampan.convert.demand import ALL, Choice, choices
from sampan.demand import Demand
from sampan.errors import InputError
from sampan.files import read_json
from sampan.runtime import device as devices
from sampan.runtime import predict
from sampan.runtime.machine import look
from sampan.runtime.memory import asks, need

GB = 10**9


def chosen(folder: Path, quant: str, *, target: str | None = None, context: int | None = None, to: str = "") -> Choice:
    """The one choice of a format, the one for processors where there is no target."""
    found = choices(open_folder(folder), context, [target] if target else [], [quant])
    (choice,) = (c for c in found if c.target == target and c.format == (to or ("onnx" if target else "gguf")))
    return choice


def demand(folder: Path, quant: str, **options: Any) -> Demand:
    choice = chosen(folder, quant, **options)
    assert choice.demand is not None, choice.refused
    return choice.demand


# ── What a model asks for ──


def test_a_tiny_model_by_hand() -> None:
    """4 layers of q 512 × 256, k and v 256 × 256, o 256 × 512, three of 512 × 256; 2,048 words, tied; norms in f32."""
    matrices = 4 * (2 * 512 * 256 + 2 * 256 * 256 + 3 * 512 * 256)
    words, norms = 2048 * 256, 4 * (2 * 256 + 2 * 128) + 256
    found = demand(tiny.FIXTURE, "q8_0")
    assert found.read == found.weights == (matrices + words) * 34 // 32 + 4 * norms
    assert (found.products, found.head) == (matrices, words)
    assert found.cell == 4 * 2 * (128 + 128) * 2, "layers, key heads, keys and values, float16"
    assert found.attention == 4 * 4 * (128 + 128), "layers, heads, keys and values"
    assert found.operations(3) == 2 * (3 * matrices + words + (1 + 2 + 3) * found.attention)
    assert demand(tiny.FIXTURE, "q8_0", to="onnx").cell == 2 * found.cell, "float32"


def sparse(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """A checkpoint of true sizes that takes no room: a header, and a hole where the weights are."""
    folder.mkdir()
    for name in tiny.TOKENIZER_FILES:
        (folder / name).write_bytes((tiny.FIXTURE / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(read_json(tiny.FIXTURE / "config.json") | config))
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)
    return folder


def test_the_size_of_qwen3_0_6b_by_hand(tmp_path: Path) -> None:
    """config.json of Qwen/Qwen3-0.6B: 28 layers, hidden 1024, 16 heads and 8 key heads of 128, 3072, 151,936 words."""
    config = {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "vocab_size": 151936, "max_position_embeddings": 40960, "layer_types": None,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (151936, 1024), "model.norm.weight": (1024,)}
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (2048, 1024), "self_attn.k_proj.weight": (1024, 1024),
        "self_attn.v_proj.weight": (1024, 1024), "self_attn.o_proj.weight": (1024, 2048),
        "self_attn.q_norm.weight": (128,), "self_attn.k_norm.weight": (128,), "input_layernorm.weight": (1024,),
        "post_attention_layernorm.weight": (1024,), "mlp.gate_proj.weight": (3072, 1024),
        "mlp.up_proj.weight": (3072, 1024), "mlp.down_proj.weight": (1024, 3072),
    }  # fmt: skip
    shapes |= {f"model.layers.{n}.{k}": s for n in range(28) for k, s in layer.items()}
    folder = sparse(tmp_path / "qwen3", config, shapes)
    found = demand(folder, "q8_0")
    # 28 × (2048·1024 + 2·1024·1024 + 1024·2048 + 3·3072·1024) = 440,401,920, and the head 155,582,464
    assert (found.products, found.head) == (440_401_920, 155_582_464)
    # 595,984,384 values at 34 bytes for 32, and 65,536 norms of 4 bytes
    assert found.read == found.weights == 633_495_552
    assert found.cell == 114_688, "28 layers × 8 heads × 256 × 2 bytes"
    assert found.attention == 114_688, "28 layers × 16 heads × 256"
    assert predict.needed(found, 4096) - found.weights - 4 * 512 * (151936 + 8 * 1024 + 3 * 3072) == (
        114_688 * 4096 + 2 * 512 * 4096 + (32 << 20) + 256 * 151936
    ), "the mask of a batch has 2 bytes for each cell"
    # 17.1 GB/s × 0.75 ÷ 633,495,552 bytes, and × 0.45 ÷ (those and 4096 cells)
    pi = predict.predict(devices.find("pi5"), found, 4096)
    assert pi.decode.high == pytest.approx(20.2, abs=0.1) and pi.decode.low == pytest.approx(6.97, abs=0.01)
    npu = demand(folder, "int4", target="qnn-v79")
    assert npu.cell == 57_344, "8 bits"
    assert npu.parts[0] > (440_401_920 * 17 // 32 + 155_582_464) and npu.weights > 2 * npu.parts[0]


def test_of_experts_the_chosen_ones_are_read(model: Callable[[str], Path]) -> None:
    """6 experts of three 256 × 256, of which 2 are chosen; a router in f32; a head beside the embedding."""
    found = demand(model("qwen3_moe"), "q8_0")
    attention, expert, router = 393_216, 3 * 256 * 256, 6 * 256
    read = 4 * (attention + 2 * expert) * 34 // 32 + 4 * 4 * router + 4 * (4 * 768 + 256) + 2048 * 256 * 34 // 32
    assert found.read == read + 256 * 34 // 32, "and one row of the embedding"
    assert found.products == 4 * (attention + 2 * expert + router) and found.head == 2048 * 256
    assert found.weights == found.read + 4 * 4 * expert * 34 // 32 + 2047 * 256 * 34 // 32


@pytest.mark.everyday("trained", "qwen3_5-mtp", "kimi_linear")
@pytest.mark.parametrize(
    "name", ["trained", "trained-kimi", "qwen2-f32-gqa4", "qwen3_moe", "qwen3_next", "qwen3_5-mtp", "kimi_linear"]
)
def test_it_is_what_the_file_will_need(
    gguf: Callable[[str, str], Path], model: Callable[[str], Path], name: str
) -> None:
    """From the plan, as `need` finds it in the header of the file, which is held to llama.cpp's own allocations."""
    file, found = gguf(name, "q8_0"), demand(model(name), "q8_0")
    wanted = need(file, 300)
    assert found.files == file.stat().st_size
    assert found.cache(512) == wanted.cache
    assert 0 <= wanted.weights - found.weights < 32 * 200, "but for the padding of tensors"
    assert predict.needed(found, 300) + wanted.weights - found.weights == wanted.total
    read = asks(file)[0]
    assert 0 <= read.read - found.read < 32 * 200
    assert (read.products, read.head, read.attention) == (found.products, found.head, found.attention)
    assert (read.files, read.cell, read.state) == (found.files, found.cell, found.state)


def inputs(folder: Path, quant: str, graph: str, **options: Any) -> dict[str, list[Any]]:
    """Name → shape of what a planned graph takes."""
    import onnx

    from sampan.convert.binding import bind
    from sampan.convert.family import read_architecture
    from sampan.convert.formats.onnx import FORMAT
    from sampan.convert.formats.onnx.npu import for_target
    from sampan.convert.plan import Request
    from sampan.quantize import get_scheme

    checkpoint = open_folder(folder)
    family, arch = read_architecture(checkpoint)
    form = for_target(FORMAT, options["target"]) if "target" in options else FORMAT
    request = Request(Path("x"), quant, get_scheme(quant), context=256, dry=True)
    plan = form.plan(checkpoint, family, arch, bind(checkpoint, family, arch), request)
    (data,) = (f.header for f in plan.files if f.path.name == graph)
    return {
        i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim]
        for i in onnx.ModelProto.FromString(data).graph.input
    }


@pytest.mark.everyday("trained-kimi", "kimi_linear")
@pytest.mark.parametrize("name", ["trained", "trained-kimi", "qwen3_next", "kimi_linear", "minimax_m2"])
def test_the_cache_of_a_graph_is_its_inputs(model: Callable[[str], Path], name: str) -> None:
    cell = state = 0
    for key, shape in inputs(model(name), "q8_0", "model.onnx").items():
        if key.startswith("past_key_values"):
            cell += 4 * shape[1] * shape[3]
        elif key.startswith("past_"):
            size = 4
            for n in shape:
                size *= n
            state += 2 * size
    found = demand(model(name), "q8_0", to="onnx")
    assert (found.cell, found.state) == (cell, state) and cell > 0


@pytest.mark.parametrize("name", ["trained", "qwen2-f32-gqa4"])
def test_the_cache_of_an_npu_is_its_inputs(model: Callable[[str], Path], name: str) -> None:
    found = inputs(model(name), "a16w8", "part-1.1.onnx", target="qnn-v75")
    shapes = [s for key, s in found.items() if key.startswith("past_")]
    assert all(256 in s for s in shapes) and shapes
    cell = sum(s[0] * s[1] * s[2] * s[3] for s in shapes) // 256
    assert demand(model(name), "int8", target="qnn-v75", context=256).cell == cell


def test_the_cache_of_latent_attention_on_an_npu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.MODELS, "dense", tiny._deepseek(first_k_dense_replace=4, v_head_dim=64))
    folder = tiny.build("dense", tmp_path / "dense")
    found = inputs(folder, "a16w8", "part-1.1.onnx", target="qnn-v75")
    cell = sum(s[0] * s[1] * s[2] * s[3] for key, s in found.items() if key.startswith("past_")) // 256
    assert demand(folder, "int8", target="qnn-v75", context=256).cell == cell > 0


def test_what_rockchip_makes_of_float16(model: Callable[[str], Path]) -> None:
    """Its compiler rounds by itself: 8 bits and a scale for each row, a cache of float16."""
    found = inputs(model("trained"), "w8a8", "part-1.1.onnx", target="rk3588")
    asked = demand(model("trained"), "int8", target="rk3588", context=256)
    cell = sum(2 * s[0] * s[1] * s[2] for key, s in found.items() if key.startswith("past_")) // 256
    assert asked.cell == cell > 0
    matrices, words = 3_145_728, 2048 * 256
    assert matrices + words < sum(asked.parts) < 1.05 * (matrices + words)
    assert 2 * sum(asked.parts) < asked.weights < 2 * sum(asked.parts) + 2 * words + 10**6


def test_what_an_npu_cannot_run_is_refused_by_name(model: Callable[[str], Path]) -> None:
    refused = chosen(model("trained-kimi"), "int8", target="qnn-v75")
    assert refused.demand is None and "blocks of the kinds dense, gqa, mla, found one of moe" in refused.refused


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


def test_devices_are_listed() -> None:
    page = plan("--devices")
    assert page == plan("--device", "list")
    assert [text.split()[0] for text in page.splitlines()[1:]] == devices.names()
    assert "not known" in next(text for text in page.splitlines() if text.startswith("pixel-9"))
    assert [d["id"] for d in json.loads(plan("--devices", "--json"))] == devices.names()


@pytest.mark.everyday("arguments0-*", "arguments3-*")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "pi6"], "--device: expected one of .* devices, such as pi5.*, found 'pi6'; `sampan plan --dev.*"),
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
    for arguments, expected in (([], "SOURCE: expected a checkpoint folder, a hub id or a GGUF file, found none"),
                                ([str(tmp_path / "x.gguf")], "expected a checkpoint folder or a hub id")):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(expected)):
            CliRunner().invoke(cli, ["plan", *arguments, "--device", "pi5"], catch_exceptions=False)
