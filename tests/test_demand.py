"""What a model asks of a device, as `sampan plan` reckons it: against arithmetic that is written out here, and against
what engines' own files say.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from sampan.checkpoint import open_folder
from sampan.convert.demand import Choice, choices
from sampan.demand import Demand
from sampan.files import read_json
from sampan.runtime import device as devices
from sampan.runtime import predict
from sampan.runtime.memory import asks, need


def chosen(folder: Path, quant: str, *, target: str | None = None, context: int | None = None, to: str = "") -> Choice:
    """The one choice of a format, the one for processors where there is no target."""
    found = choices(open_folder(folder), context, [target] if target else [], [quant])
    (choice,) = (c for c in found if c.target == target and c.format == (to or ("onnx" if target else "gguf")))
    return choice


def demand(folder: Path, quant: str, **options: Any) -> Demand:
    choice = chosen(folder, quant, **options)
    assert choice.demand is not None, choice.refused
    return choice.demand


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


@pytest.mark.slow
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
