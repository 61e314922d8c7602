"""Statistics of inputs: what llama.cpp's quantiser makes of them, what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stats_files
import tiny
from safetensors.numpy import load_file
from test_bytes import assert_same, quantize_with_llama, tensors

from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.errors import InputError
from sampan.gguf import Kind, Tensor, Value, encode
from sampan.quantize import get_scheme
from sampan.quantize.stats import Sums, open_stats

# dense with and without more bits, odd widths; experts; latents and heads that are cut; heads of v in another order
MODELS = {
    "qwen3_moe": ("q4_k_m", "q4_0"),
    "qwen2-f16-16-layers": ("q4_0", "iq4_xs", "q5_0"),
    "qwen3": ("q4_k_m", "q3_k_m", "iq4_nl", "q4_1", "q5_k_m", "q2_k"),
    "qwen3-odd-widths": ("q4_k_m", "q4_0"),
    "deepseek_v3": ("q4_k_m", "q4_0"),
    "qwen3_5_moe": ("q4_k_m", "q4_0"),
    "kimi_linear": ("q4_k_m", "q4_0"),
}
QUICK = ("qwen3_moe", "qwen2-f16-16-layers")
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]


@pytest.mark.everyday("qwen2-f16-16-layers")
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_llama_model_quantize_with_the_same_file(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    exact = "f32" if tiny.MODELS[name].dtype == "float16" else "bf16"
    source = gguf(name, exact)
    stats = stats_files.write(tmp_path / "stats.gguf", stats_files.made_up(source))
    imatrix = stats_files.as_llama_reads(stats)
    for scheme in MODELS[name]:
        peer, ours = tmp_path / "peer.gguf", tmp_path / "ours.gguf"
        quantize_with_llama(source, peer, get_scheme(scheme).file_type, imatrix)
        convert(prepare(open_folder(model(name)), ours, "gguf", scheme, jobs=2, stats=stats), overwrite=True)
        assert_same(tensors(ours), tensors(peer))


def test_statistics_change_bytes_and_types(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """What the comparison above rests on: with a file every 4-bit matrix is another one, and q4_0 takes other types."""
    name, stats = "qwen2-f16-16-layers", tmp_path / "stats.gguf"
    stats_files.write(stats, stats_files.made_up(gguf(name, "f32")))
    with_stats, without = tmp_path / "with.gguf", gguf(name, "q4_0")
    convert(prepare(open_folder(model(name)), with_stats, "gguf", "q4_0", stats=stats))
    a, b = tensors(with_stats), tensors(without)
    assert {n for n in a if a[n][0] != b[n][0]} == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
    assert {n for n in a if a[n][2] == b[n][2]} == {n for n in a if a[n][0] == "f32" or not n.startswith("blk.")}
    manifest = json.loads((tmp_path / "with.gguf.manifest.json").read_text())["stats"]
    assert manifest["sha256"] == hashlib.sha256(stats.read_bytes()).hexdigest() and manifest["source"] == "made up"


def test_both_files_say_the_same(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    found = stats_files.made_up(gguf("qwen3_moe", "f32"))
    for suffix in ("gguf", "safetensors"):
        stats_files.write(tmp_path / f"stats.{suffix}", found)
        out, stats = tmp_path / f"{suffix}.gguf", tmp_path / f"stats.{suffix}"
        convert(prepare(open_folder(model("qwen3_moe")), out, "gguf", "q4_0", stats=stats))
    assert (tmp_path / "gguf.gguf").read_bytes() == (tmp_path / "safetensors.gguf").read_bytes()
    read = load_file(tmp_path / "stats.safetensors")  # by the package of that name
    assert read.keys() == {f"{n}.{end}" for n in found for end in ("in_sum2", "counts")}
    np.testing.assert_array_equal(
        read["blk.0.ffn_up_exps.weight.counts"][:, 0], found["blk.0.ffn_up_exps.weight"].counts
    )


Found = dict[str, Sums]


def _value(name: str, value: float) -> Callable[[Found], None]:
    def change(found: Found) -> None:
        found[name].values[5] = value

    return change


def _replace(name: str, sums: Sums | None, to: str | None = None) -> Callable[[Found], None]:
    def change(found: Found) -> None:
        old = found.pop(name)
        if sums is not None or to is not None:
            found[to or name] = sums or old

    return change


Q, EXPERTS = "blk.1.attn_q.weight", "blk.2.ffn_down_exps.weight"
ONE = np.array([1])
REFUSED: dict[str, tuple[Callable[[Found], None], str]] = {
    "nan": (_value(Q, np.nan), rf"{Q}.in_sum2: expected numbers from 0 to 1e\+30, found nan"),
    "negative": (_value(Q, -1), rf"{Q}.in_sum2: expected numbers from 0 to 1e\+30, found -1.0"),
    "infinite": (_value(Q, np.inf), rf"{Q}.in_sum2: expected numbers from 0 to 1e\+30, found inf"),
    "negative count": (
        _replace(Q, Sums(np.ones(256), -ONE)), rf"{Q}.counts: expected numbers from 0 to 1e\+30, found -1.0",
    ),
    "a matrix is missing": (_replace(Q, None), f"expected statistics of every matrix, found none of {Q}; calibrate"),
    "another width": (
        _replace(Q, Sums(np.ones(128), ONE)), f"{Q}: expected 1 × 256 sums, found 128 with 1 counts; they are another",
    ),
    "fewer experts": (
        _replace(EXPERTS, Sums(np.ones(4 * 256), np.ones(4))),
        f"{EXPERTS}: expected 6 × 256 sums, found 1024 with 4 counts; they are another checkpoint's",
    ),
    "more layers": (
        lambda found: found.update({"blk.7.attn_q.weight": Sums(np.ones(256), ONE)}),
        "expected statistics of this checkpoint's matrices, found some of blk.7.attn_q.weight; they are another",
    ),
    "nothing": (lambda found: found.clear(), "expected statistics, tensors called .*, found none"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_refused_in_one_line(
    case: str, suffix: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    found = stats_files.made_up(gguf("qwen3_moe", "f32"))
    change, message = REFUSED[case]
    change(found)
    stats = stats_files.write(tmp_path / f"stats.{suffix}", found)
    with pytest.raises(InputError, match=message) as e:
        prepare(open_folder(model("qwen3_moe")), tmp_path / "out.gguf", "gguf", "int4", stats=stats)
    assert str(stats) in str(e.value) and "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == [stats.name]


def _gguf(tensors: list[Tensor], data: bytes, kind: str = "imatrix") -> bytes:
    return encode({"general.type": Value(Kind.STRING, kind)}, tensors) + data


def _tensor(name: str, n: int, offset: int, kind: int = 0) -> Tensor:
    return Tensor(name, (1, n), kind, offset)


BROKEN = {
    "a model": (_gguf([_tensor("a.in_sum2", 1, 0)], bytes(32), "model"), "general.type: expected imatrix, found model"),
    "beyond the end": (
        _gguf([_tensor("a.in_sum2", 10**9, 0), _tensor("a.counts", 1, 0)], bytes(32)),
        r"a.in_sum2: expected 4000000000 bytes from \d+, found a file of",
    ),
    "the same bytes again and again": (
        _gguf([_tensor(f"a{n}.{end}", 512, 0) for n in range(50) for end in ("in_sum2", "counts")], bytes(2048)),
        "expected 2048 bytes from .*, found a file of",
    ),
    "half precision": (
        _gguf([_tensor("a.in_sum2", 8, 0, 1), _tensor("a.counts", 1, 32)], bytes(64)),
        "a.in_sum2: expected float32, found number type 1",
    ),
    "no counts": (_gguf([_tensor("a.in_sum2", 8, 0)], bytes(32)), "a: expected .in_sum2 and .counts, found one of"),
    "uneven": (
        _gguf([_tensor("a.in_sum2", 8, 0), _tensor("a.counts", 3, 32)], bytes(64)),
        "a: expected an equal number of sums for every count, found 8 sums for 3 counts",
    ),
    "half a vector": (
        _gguf([_tensor("a.in_sum2", 1, 0), _tensor("a.counts", 1, 32)], np.array([1, *[0] * 7, 0.5], "<f4").tobytes()),
        "a.counts: expected whole numbers, found 0.5",
    ),
    "the old format": (b"\x01\0\0\0\x05\0\0\0blk.0", "expected a header length of at most"),
    "empty": (b"", "expected a safetensors file of at least 8 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str, tmp_path: Path) -> None:
    raw, message = BROKEN[case]
    (tmp_path / "stats").write_bytes(raw)
    with pytest.raises(InputError, match=message) as e:
        open_stats(tmp_path / "stats")
    assert "\n" not in str(e.value)


def test_a_scheme_that_cannot_use_them(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    stats = stats_files.write(tmp_path / "stats.gguf", stats_files.made_up(gguf("qwen3_moe", "f32")))
    for to, quant in (("gguf", "bf16"), ("gguf", "q8_0"), ("onnx", "q8_0")):
        with pytest.raises(InputError, match="--stats: expected a scheme that can use statistics, such as int4, found"):
            prepare(open_folder(model("qwen3_moe")), tmp_path / "out", to, quant, stats=stats)
