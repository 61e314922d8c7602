#!/usr/bin/env python3
"""Models larger than the machine: memory and time of the plan of the whole and of a conversion of its first layers.

    python benchmarks/huge.py [--work FOLDER] [--models kimi-k2,…] [--layers N] [--scheme q4_0] [--jobs N] [--plan-only]

The configs and the tensors' names, shapes and storage are the true ones; the values are made up (bell-shaped, never
zeros, which quantise many times faster), and so is a vocabulary of the right size. One layer's worth of bytes lies
on the disk: every shard of a kind (the experts 0 to 47 of a layer, say) is the same file behind a header of its own.
The whole model is opened and planned, and its first layers are converted with every read, check, hash and write; then
the run stops. Its output is laid out with holes, because the whole would not fit the disk.

Each row is a process of its own: peak is its VmHWM, CPU its user and system time, which other processes on the
machine change less than seconds. "Whole, on one core" is CPU time × values of the model / values converted.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

GROUP = 48  # experts in a shard
BLOCK = 1 << 24  # values of a kind that are made up; then they repeat

_KIMI = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2", "vocab_size": 163840, "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 64,
    "num_key_value_heads": 64, "n_shared_experts": 1, "n_routed_experts": 384, "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.827, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1,
    "moe_layer_freq": 1, "first_k_dense_replace": 1, "norm_topk_prob": True, "scoring_func": "sigmoid",
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0, "attention_bias": False,
}  # fmt: skip
_YARN = {
    "type": "yarn", "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
_INT4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": False,
    }}},
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "kimi-k2": _KIMI
    | {"max_position_embeddings": 131072, "rope_scaling": _YARN | {"factor": 32.0}, "quantization_config": _FP8},
    "kimi-k2-thinking": _KIMI
    | {"max_position_embeddings": 262144, "rope_scaling": _YARN | {"factor": 64.0}, "quantization_config": _INT4},
    "qwen3-235b-a22b-2507": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936,
        "hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 94,
        "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "max_position_embeddings": 262144, "rope_theta": 5000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": False, "attention_bias": False, "use_sliding_window": False,
    },
    "qwen2-72b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 8192,
        "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": False, "use_sliding_window": False,
    },
    "kimi-linear-48b-a3b": {
        "architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "vocab_size": 163840,
        "hidden_size": 2304, "head_dim": 72, "intermediate_size": 9216, "moe_intermediate_size": 1024,
        "num_hidden_layers": 27, "num_attention_heads": 32, "num_key_value_heads": 32, "num_experts": 256,
        "num_experts_per_token": 8, "num_shared_experts": 1, "routed_scaling_factor": 2.446, "kv_lora_rank": 512,
        "q_lora_rank": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "mla_use_nope": True,
        "num_expert_group": 1, "topk_group": 1, "moe_layer_freq": 1, "first_k_dense_replace": 1,
        "moe_renormalize": True, "moe_router_activation_func": "sigmoid", "use_grouped_topk": True,
        "model_max_length": 1048576, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "num_nextn_predict_layers": 0, "linear_attn_config": {
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128, "num_heads": 32,
            "kda_layers": [n for n in range(1, 27) if n % 4], "short_conv_kernel_size": 4,
        },
    },
    "qwen3.5-27b": {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": {
            "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 5120, "intermediate_size": 17408,
            "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256,
            "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
            "attn_output_gate": True, "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "tie_word_embeddings": False, "attention_bias": False, "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                "mrope_section": [11, 11, 10], "mrope_interleaved": True,
            },
        },
    },
}  # fmt: skip
LAYERS = {  # some minutes each
    "kimi-k2": 2, "kimi-k2-thinking": 2, "qwen3-235b-a22b-2507": 4, "qwen2-72b": 6, "kimi-linear-48b-a3b": 4,
    "qwen3.5-27b": 8,
}  # fmt: skip

Tensor = tuple[str, str, tuple[int, ...]]
"""Name, dtype, shape."""


def text(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config."""
    found: dict[str, Any] = config.get("text_config", config)
    return found


def shards(folder: Path) -> Iterator[tuple[str, int, list[Tensor]]]:
    """The checkpoint by shards: the kind of each, its layer, its tensors. Names and shapes from the config alone."""
    from sampan.checkpoint import Checkpoint
    from sampan.convert.architecture import tensor_specs
    from sampan.convert.family import read_architecture
    from sampan.files import read_json

    checkpoint = Checkpoint("", None, folder, read_json(folder / "config.json"), ())
    family, arch = read_architecture(checkpoint)
    stored = (checkpoint.config.get("quantization_config") or {}).get("quant_method", "")
    layers: dict[int, list[Tensor]] = {}
    experts: dict[tuple[int, int], list[Tensor]] = {}
    for spec in tensor_specs(arch):
        source = family.sources[spec.name.replace(f"blk.{spec.layer}.", "blk.{i}.", 1)][0]
        name = source.name.replace("{i}", str(spec.layer))
        if "{e}" in name:
            for e in range(spec.shape[0]):
                experts.setdefault((spec.layer, e // GROUP), []).extend(
                    stored_as(name.replace("{e}", str(e)), spec.shape[1:], stored, True)
                )
        else:
            shape = spec.shape
            if source.cut is not None:  # the rows of several tensors, cut from one: whoever comes first counts it
                cut = source.cut(arch.blocks[spec.layer])
                shape = (math.prod(shape[:-1]) // cut.take * cut.period, shape[-1])
            if not any(n == name for n, _, _ in layers.get(spec.layer, [])):
                layers.setdefault(spec.layer, []).extend(stored_as(name, shape, stored, False))
    for layer, found in layers.items():
        yield f"layer{len(found)}" if layer >= 0 else "outside", layer, found
        for (of, _), some in experts.items():
            if of == layer:
                yield f"experts{len(some)}", layer, some


def count(found: list[Tensor]) -> int:
    """Values in a shard."""
    packed = {"I32": 8}
    return sum(packed.get(d, 1) * math.prod(s) for n, d, s in found if not n.endswith(("_scale", "_shape", "_inv")))


def stored_as(name: str, shape: tuple[int, ...], stored: str, expert: bool) -> list[Tensor]:
    """A weight as bfloat16, or as codes and scales."""
    rows, columns = (*shape, 1)[:2]
    if stored == "fp8" and name.endswith(("_proj.weight", "_mqa.weight")):
        scales = (-(-rows // 128), -(-columns // 128))
        return [(name, "F8_E4M3", shape), (f"{name}_scale_inv", "F32", scales)]
    if stored == "compressed-tensors" and expert:
        return [
            (f"{name}_packed", "I32", (rows, columns // 8)), (f"{name}_scale", "BF16", (rows, columns // 32)),
            (f"{name}_shape", "I32", (2,)),
        ]  # fmt: skip
    return [(name, "F32" if name.endswith("bias") else "BF16", shape)]


def header(found: list[Tensor]) -> tuple[bytes, int]:
    """A safetensors header, as long for every shard of a kind, and the size of the file."""
    from sampan.safetensors import ITEMSIZE

    entries, end = {}, 0
    for name, dtype, shape in found:
        start, end = end, end + math.prod(shape) * ITEMSIZE[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (200 * len(found) + 200 - len(text))
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def write_kind(path: Path, found: list[Tensor]) -> None:
    """The bytes of a shard: values of their kind, repeated from another place for each tensor."""
    from sampan.safetensors import ITEMSIZE

    made = values()
    with path.open("wb") as f:
        f.write(header(found)[0])
        for name, dtype, shape in found:
            if name.endswith("_shape"):
                rows, words = found[[n for n, _, _ in found].index(name.replace("_shape", "_packed"))][2]
                f.write(np.array([rows, 8 * words], np.int32).tobytes())
                continue
            kind = "scale" if "_scale" in name else "vector" if len(shape) == 1 else "matrix"
            block, left = made[dtype, kind], math.prod(shape) * ITEMSIZE[dtype]
            at = zlib.crc32(name.encode()) % 4096 * 4096 % (len(block) // 2)
            while left:
                f.write(block[at : at + left])
                left, at = left - len(block[at : at + left]), 0


def values() -> dict[tuple[str, str], memoryview]:
    """Bytes by dtype and what they are for."""
    from sampan.convert.storage._numbers import E4M3

    bell = np.random.default_rng(1).standard_normal(BLOCK).astype(np.float32)
    finite = np.flatnonzero(np.isfinite(E4M3))
    order = finite[np.argsort(E4M3[finite], kind="stable")]
    codes = order[np.searchsorted(E4M3[order], bell * 100).clip(0, len(order) - 1)].astype(np.uint8)
    nibbles = np.rint(bell * 2.6 + 8).clip(0, 15).astype(np.uint8)

    def bf16(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    arrays = {
        ("BF16", "matrix"): bf16(bell * 0.02),
        ("BF16", "vector"): bf16(1 + bell * 0.1),
        ("BF16", "scale"): bf16(0.005 + np.abs(bell) * 0.002),
        ("F32", "scale"): 2e-4 + np.abs(bell) * 5e-5,
        ("F32", "vector"): bell,
        ("F8_E4M3", "matrix"): codes,
        ("I32", "matrix"): nibbles[::2] | nibbles[1::2] << 4,
    }
    return {key: memoryview(np.ascontiguousarray(a)).cast("B") for key, a in arrays.items()}


def write_small_files(folder: Path, config: dict[str, Any]) -> None:
    """config.json, the index, and a vocabulary of the right size in tiktoken's form."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    vocab = text(config)["vocab_size"] - 256
    pairs = [bytes([a, b]) for a in range(97, 123) for b in range(65, 91)]  # merges reach all of these and their pairs
    tokens = [*(bytes([b]) for b in range(256)), *pairs, *(a + b for a in pairs for b in pairs)][:vocab]
    lines = (f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens))
    (folder / "tiktoken.model").write_text("".join(lines))
    names = {str(vocab + i): {"content": f"[{role}OS]", "special": True} for i, role in enumerate("BE")}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({
            "tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": names, "bos_token": "[BOS]",
            "eos_token": "[EOS]",
        })
    )  # fmt: skip
    weight_map, listed = {}, []
    (folder / "headers").mkdir()
    for n, (kind, layer, found) in enumerate(shards(folder)):
        name = f"{n:05d}.safetensors"
        head, size = header(found)
        (folder / "headers" / name).write_bytes(head)
        listed.append((kind, size, layer, count(found)))
        weight_map |= {tensor: name for tensor, _, _ in found}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "headers" / "kinds.json").write_text(json.dumps(listed))


class EnoughError(Exception):
    """The layers that were asked for are done."""


def child(folder: Path, kinds: Path, out: Path, scheme: str, jobs: int, layers: int) -> None:
    """Open and plan the whole, convert its first `layers` layers, print JSON.

    The shards have their headers elsewhere; the output, too large for the disk, is laid out with holes.
    """
    from sampan.checkpoint import ShardFile, assemble, file_reader
    from sampan.convert.conversion import convert, prepare

    listed = json.loads((folder / "headers" / "kinds.json").read_text())
    wanted = [(size, values) for _, size, layer, values in listed if layer < layers]
    left = sum(size for size, _ in wanted)

    def locate(name: str) -> ShardFile:
        kind, size, *_ = listed[int(name[:5])]
        return ShardFile(kinds / kind, size, file_reader(folder / "headers" / name))

    def progress(n: int) -> None:
        nonlocal left
        left -= n
        if left <= 0:
            raise EnoughError

    start = time.monotonic()
    checkpoint = assemble(folder, str(folder), None, locate)
    conversion = prepare(checkpoint, out, "gguf", scheme, jobs=jobs)
    if layers:
        os.posix_fallocate = lambda fd, offset, size: os.truncate(fd, size)
        shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**50, 0, 2**50)  # type: ignore
        with contextlib.suppress(EnoughError):
            convert(conversion, progress=progress)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    result = {
        "tensors": sum(len(s.tensors) for s in checkpoint.shards), "peak": 1024 * int(peak[1]) if peak else 0,
        "values": sum(v for _, v in wanted) if layers else sum(v for *_, v in listed),
        "source": sum(size for size, _ in wanted) if layers else conversion.source_bytes,
        "seconds": time.monotonic() - start, "cpu": usage.ru_utime + usage.ru_stime,
    }  # fmt: skip
    print(json.dumps(result))


def run(work: Path, options: argparse.Namespace, layers: int) -> dict[str, Any]:
    """`child` in a process of its own, its output deleted."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import huge;"
        "a = sys.argv[2:]; huge.child(*map(Path, a[:3]), a[3], int(a[4]), int(a[5]))"
    )
    places = Path(__file__).parent, work / "model", work / "kinds", work / "out.gguf"
    arguments = map(str, (*places, options.scheme, options.jobs, layers))
    process = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    for left in work.glob("out.gguf*"):  # a stopped run's folder
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    if process.returncode:
        sys.exit("it failed")
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def measure(model: str, work: Path, options: argparse.Namespace) -> None:
    """Two rows of the table."""
    write_small_files(work / "model", MODELS[model])
    plan = run(work, options, 0)
    row(model, "plan", text(MODELS[model])["num_hidden_layers"], plan, "")
    if options.plan_only:
        return
    layers, kinds = options.layers or LAYERS[model], work / "kinds"
    kinds.mkdir()
    for kind, layer, found in shards(work / "model"):
        if (path := kinds / kind).exists():
            continue
        if layer < layers:
            write_kind(path, found)
        else:  # looked at and never read
            path.touch()
            os.truncate(path, header(found)[1])
    done = run(work, options, layers)
    hours = (done["cpu"] - plan["cpu"]) * plan["values"] / done["values"] / 3600
    row(model, options.scheme, layers, done, f"{hours:.1f} h")


def row(model: str, what: str, layers: int, r: dict[str, Any], whole: str) -> None:
    cells = [
        model, what, layers, r["tensors"], f"{r['values'] / 1e9:.1f}", f"{r['source'] / 1e9:.0f}",
        f"{r['seconds']:.0f} s", f"{r['cpu']:.0f} s", f"{r['peak'] / 1e6:.0f} MB", whole,
    ]  # fmt: skip
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, help="folder with room for a layer and the output (default: a temporary one)"
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--scheme", default="q4_0")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--plan-only", action="store_true")
    options = parser.parse_args()
    print("| model | | layers | tensors | 10⁹ values | GB read | seconds | CPU | peak | whole, on one core |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in options.models.split(","):
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            measure(model, Path(work), options)


if __name__ == "__main__":
    main()
