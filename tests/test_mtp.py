"""The head that predicts a further token (`mtp.*`): kept in GGUF, left out of ONNX, and in the way of nobody."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import encoders
import ml_dtypes  # noqa: F401 - makes bfloat16 known to numpy and safetensors
import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf
from onnx_peer import to_onnx
from reference import Reference, assert_close
from safetensors.numpy import load_file
from test_bytes import tensors
from test_hostile import assert_refused, change
from test_logits import engine_logits, tokens
from validating import ONE, Silent, cache, findings, kld, run

from sampan.artifact import manifest_path
from sampan.checkpoint import SINGLE, open_folder
from sampan.convert.conversion import convert, prepare
from sampan.gguf import read_header
from sampan.units import human
from sampan.validate import blame as blaming
from sampan.validate.artifact import open_artifact
from sampan.validate.audit import audit
from sampan.validate.drift import Side

__all__ = ["cache"]  # a fixture
Model = Callable[[str], Path]
Gguf = Callable[[str, str], Path]
HEADS = ("qwen3_5-mtp", "qwen3_5_moe-mtp", "qwen3_next-mtp")
LEFT_OUT = "left out: the multi-token prediction head, "


def headless(source: Path, out: Path, quant: str) -> Path:
    convert(prepare(open_folder(source), out, "gguf", quant, jobs=2, mtp=False), overwrite=True)
    return out


def copied(source: Path, folder: Path, edit: Callable[[dict[str, Any]], object], **config: Any) -> Path:
    """A copy with other tensors and keys of config.json."""
    shutil.copytree(source, folder)
    change(folder, edit)
    tiny.edit_json(folder / "config.json", **config)
    return folder


@pytest.mark.parametrize("name", HEADS)
def test_the_head_changes_no_answer(name: str, model: Model, gguf: Gguf, tmp_path: Path) -> None:
    """In a scheme that gives every layer the same bits: mixes count the head among the layers, as llama.cpp does."""
    without = headless(model(name), tmp_path / "m.gguf", "q8_0")
    assert np.array_equal(engine_logits(gguf(name, "q8_0"), tokens()), engine_logits(without, tokens()))
    assert not any(n.startswith("blk.4.") for n in tensors(without))


def test_a_file_without_it_is_that_of_a_model_without_it(model: Model, gguf: Gguf, tmp_path: Path) -> None:
    found, plain = headless(model("qwen3_5-mtp"), tmp_path / "m.gguf", "q4_k_m"), gguf("qwen3_5", "q4_k_m")
    assert tensors(found) == tensors(plain)
    a, b = ({k: v for k, v in keys(p).items() if not k.startswith("general.")} for p in (found, plain))
    assert a == b


def keys(path: Path) -> dict[str, Any]:
    return {k: v.value for k, v in read_header(path).metadata.items()}


def drafted(path: Path, ids: list[int], hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits [n, vocab] of llama.cpp's draft context for tokens and the hidden states before them."""
    from llama_cpp import llama_cpp as lib

    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    params = lib.llama_model_default_params()
    params.load_mtp = True
    loaded = lib.llama_model_load_from_file(str(path).encode(), params)
    assert loaded and lib.llama_model_n_layer_nextn(loaded) == 1
    wanted = lib.llama_context_default_params()
    wanted.ctx_type, wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = lib.LLAMA_CONTEXT_TYPE_MTP, 256, 256, 256
    wanted.type_k = wanted.type_v = 0  # float32
    wanted.flash_attn_type = 0
    context = lib.llama_init_from_model(loaded, wanted)
    assert context
    batch = lib.llama_batch_init(len(ids), hidden.shape[1], 1)
    token = (ctypes.c_int32 * len(ids))(*ids)
    batch.n_tokens, batch.token = len(ids), ctypes.cast(token, type(batch.token))
    ctypes.memmove(batch.embd, np.ascontiguousarray(hidden, np.float32).ctypes.data, 4 * hidden.size)
    for i in range(len(ids)):
        batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = i, 1, 0, 1
    assert lib.llama_decode(context, batch) == 0
    words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(loaded))
    found = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), words)).copy()
    batch.token = type(batch.token)()  # ours
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(loaded)
    lib.llama_log_set(lib.llama_log_callback(), ctypes.c_void_p(0))
    return found


def expected_drafts(source: Path, ids: list[int], hidden: np.ndarray[Any, Any]) -> Reference:
    """The same of transformers: the head is a model of one layer, for what fc makes of a token and a hidden state."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    stored = {k: torch.from_numpy(v.astype(np.float64)) for k, v in load_file(source / SINGLE).items()}
    config = AutoConfig.from_pretrained(source)
    config.num_hidden_layers, config.layer_types = 1, ["full_attention"]
    layer = {k.replace("mtp.", "model."): v for k, v in stored.items() if k.startswith(("mtp.layers.", "mtp.norm."))}
    layer |= {k: stored[k] for k in ("model.embed_tokens.weight", "lm_head.weight")}
    found = []
    for dtype in (torch.float64, torch.float32):
        head = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
        head.set_experts_implementation("eager") if hasattr(head, "set_experts_implementation") else None
        assert not any(head.load_state_dict(fused(layer, head.state_dict().keys()), strict=True))

        def normed(x: Any, name: str, dtype: Any = dtype) -> Any:
            weight = 1 + stored[f"mtp.pre_fc_norm_{name}.weight"].to(dtype)
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * weight

        with torch.no_grad():
            words = head.get_input_embeddings()(torch.tensor([ids]))
            both = [normed(words, "embedding"), normed(torch.from_numpy(hidden).to(dtype)[None], "hidden")]
            x = torch.cat(both, -1) @ stored["mtp.fc.weight"].to(dtype).T
            found.append(head(inputs_embeds=x, use_cache=False).logits[0].numpy())
    exact, single = found
    return Reference(exact, float(np.abs(single - exact).max()))


def fused(layer: dict[str, Any], names: Any) -> dict[str, Any]:
    """Experts as transformers holds them in memory."""
    import torch

    made = {k: v for k, v in layer.items() if k in names}
    for name in set(names) - set(made):
        base, _, last = name.rpartition(".")
        parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
        count = sum(re.fullmatch(rf"{re.escape(base)}\.\d+\.down_proj\.weight", k) is not None for k in layer)
        made[name] = torch.stack(
            [torch.cat([layer[f"{base}.{e}.{p}.weight"] for p in parts]) for e in range(count)]
        )  # fmt: skip
    return made


@pytest.mark.parametrize("name", HEADS)
def test_llama_cpp_drafts_with_it_as_transformers_computes(name: str, model: Model, gguf: Gguf) -> None:
    hidden = np.random.default_rng(3).standard_normal((100, 256)).astype(np.float32)
    theirs = expected_drafts(model(name), tokens()[:100], hidden)
    assert_close(drafted(gguf(name, "f32"), tokens()[:100], hidden), theirs)


def test_onnx_leaves_it_out_by_name(model: Model, tmp_path: Path) -> None:
    made = to_onnx(model("qwen3_5-mtp"), tmp_path / "mtp", "int4")
    assert made.notes[0].startswith(f"{LEFT_OUT}15 tensors")
    manifest = json.loads(manifest_path(made.out).read_text())
    assert FC in manifest["left_out"]["multi-token prediction head"]
    to_onnx(model("qwen3_5"), tmp_path / "plain", "int4")
    for file in ("model.onnx", "model.onnx.data"):
        assert (made.out / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_the_plan_says_what_it_takes(model: Model, tmp_path: Path) -> None:
    head = [t for n, (_, t) in open_folder(model("qwen3_5-mtp")).tensors().items() if n.startswith("mtp.")]
    takes = sum(np.prod(t.shape) * 34 // 32 if len(t.shape) > 1 else 4 * t.shape[0] for t in head)
    shown = run_cli("convert", str(model("qwen3_5-mtp")), "--plan", "--quant", "q8_0").stdout
    assert "blk.4.nextn.eh_proj.weight" in shown and f"prediction head takes {human(takes)} of the file" in shown
    shown = run_cli("convert", str(model("qwen3_5-mtp")), "--plan", "--no-mtp").stdout
    assert "blk.4." not in shown and LEFT_OUT in shown


HINT = "; --no-mtp leaves the head out"
FC, Q = "mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a norm is missing": (
        lambda t: t.pop("mtp.norm.weight"),
        f"expected the tensor mtp.norm.weight, found none of that name in any shard{HINT}",
    ),
    "half of fc": (
        lambda t: t.update({FC: t[FC][:, :256]}),
        f"{FC}: expected shape [256, 512], found [256, 256]{HINT}",
    ),
    "whole numbers": (lambda t: t.update({Q: t[Q].astype(np.int32)}), f"{Q}: expected a dtype among"),
    "words of its own": (
        lambda t: t.update({"mtp.embed_tokens.weight": t["model.embed_tokens.weight"]}),
        f"mtp.embed_tokens.weight: expected only tensors that qwen3_5 knows, found one that no rule claims{HINT}",
    ),
    "a second layer": (
        lambda t: t.update({Q.replace("0", "1"): t[Q]}),
        f"{Q.replace('0', '1')}: expected only tensors that qwen3_5 knows, found one that no rule claims{HINT}",
    ),
    "a layer far behind": (
        lambda t: t.update({Q.replace("0", "77"): t[Q]}),
        f"{Q.replace('0', '77')}: expected only tensors that qwen3_5 knows, found one that no rule claims{HINT}",
    ),
}  # fmt: skip


@pytest.mark.everyday("a norm is missing", "a second layer")
@pytest.mark.parametrize("fault", BROKEN)
def test_a_head_that_is_not_whole(fault: str, model: Model, tmp_path: Path) -> None:
    """It is refused in a line that says how the model itself converts."""
    edit, line = BROKEN[fault]
    folder = copied(model("qwen3_5-mtp"), tmp_path / "m", edit)
    assert_refused(folder, line)
    for form in ("gguf", "onnx"):
        (note,) = prepare(open_folder(folder), tmp_path / "o", form, "int4", mtp=False).notes
        assert note.startswith(LEFT_OUT)


@pytest.mark.parametrize(
    "config", [{"mtp_num_hidden_layers": 2}, {"mtp_num_hidden_layers": 0}, {"mtp_use_dedicated_embeddings": True}]
)
def test_heads_that_no_graph_reads_are_left_out_by_name(config: dict[str, Any], model: Model, tmp_path: Path) -> None:
    folder = copied(model("qwen3_5-mtp"), tmp_path / "m", lambda t: None, **config)
    conversion = prepare(open_folder(folder), tmp_path / "m.gguf", "gguf", "q8_0")
    assert conversion.notes[0].startswith(f"{LEFT_OUT}15 tensors")
    assert not any(t.bound.spec.name.startswith("blk.4.") for t in conversion.plan.tensors)


def test_a_head_that_config_json_alone_has(model: Model, gguf: Gguf, tmp_path: Path) -> None:
    """What transformers saves: its classes do not load the head, and the config keeps the key."""

    def drop(stored: dict[str, Any]) -> None:
        for name in [n for n in stored if n.startswith("mtp.")]:
            del stored[name]

    folder = copied(model("qwen3_5-mtp"), tmp_path / "m", drop)
    made = to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert made.notes == [
        "the multi-token prediction head that config.json names (mtp_num_hidden_layers) is not in the checkpoint"
    ]
    assert tensors(tmp_path / "m.gguf") == tensors(gguf("qwen3_5", "q8_0"))
    next_ = copied(model("qwen3_next-mtp"), tmp_path / "n", drop)
    assert prepare(open_folder(next_), tmp_path / "n.gguf", "gguf", "q8_0").notes == []


def _pictures(stored: dict[str, Any]) -> None:
    for name in [n for n in stored if n.startswith("model.")]:
        stored[name.replace("model.", "model.language_model.", 1)] = stored.pop(name)
    stored["model.visual.patch_embed.proj.bias"] = np.ones(8, np.float32)


def _inside(stored: dict[str, Any]) -> None:
    for name in [n for n in stored if n.startswith("mtp.")]:
        stored[f"model.{name}"] = stored.pop(name)


def _stacked(stored: dict[str, Any]) -> None:
    """Experts in one tensor each, in the layers and in the head."""
    for base in sorted({n[: n.index(".experts.")] for n in stored if ".experts." in n}):
        parts = {
            p: np.stack([stored.pop(f"{base}.experts.{e}.{p}_proj.weight") for e in range(6)])
            for p in ("gate", "up", "down")
        }
        stored[f"{base}.experts.gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], 1)
        stored[f"{base}.experts.down_proj"] = parts["down"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("qwen3_5-mtp", _pictures), ("qwen3_5_moe-mtp", _pictures), ("qwen3_5-mtp", _inside),
        ("qwen3_5_moe-mtp", _stacked),
    ],
)  # fmt: skip
def test_other_places_of_the_head_give_the_same_file(
    name: str, edit: Callable[[dict[str, Any]], None], model: Model, gguf: Gguf, tmp_path: Path
) -> None:
    folder = copied(model(name), tmp_path / "m", edit)
    if edit is _pictures:
        text = json.loads((folder / "config.json").read_text())
        kind = text["model_type"].removesuffix("_text")
        outer = {
            "architectures": [text["architectures"][0].replace("CausalLM", "ConditionalGeneration")],
            "model_type": kind, "text_config": text, "vision_config": {}, "tie_word_embeddings": False,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(outer))
    to_gguf(folder, tmp_path / "m.gguf", "q4_k_m")
    assert tensors(tmp_path / "m.gguf") == tensors(gguf(name, "q4_k_m"))


@pytest.mark.parametrize("encoded", [True, False], ids=["encoded", "plain"])
def test_heads_of_quantised_checkpoints(
    encoded: bool, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoded as the layers are, or copied as it was, which quantization_config need not say."""
    if encoded:
        monkeypatch.setattr(encoders, "LINEAR", re.compile(encoders.LINEAR.pattern.replace("model", "(model|mtp)")))
    config = encoders.FP8 | {"modules_to_not_convert": ["lm_head", "in_proj_a", "in_proj_b"]}
    folder, meant = encoders.encode(model("qwen3_5-mtp"), tmp_path, "fp8-block-bf16", config=config)
    assert (open_folder(folder).tensors()[Q][1].dtype == "F8_E4M3") is encoded
    for source, out in ((folder, "encoded.gguf"), (meant, "meant.gguf")):
        to_gguf(source, tmp_path / out, "q8_0")
    assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes()


@pytest.mark.slow
def test_files_with_it_and_without_it_are_what_the_checkpoint_is(model: Model, gguf: Gguf, tmp_path: Path) -> None:
    name = "qwen3_5-mtp"
    whole = run(gguf(name, "q8_0"), model(name), ONE)
    assert findings(whole) == {} and "blk.4.nextn.eh_proj.weight" in {
        t["name"] for t in whole["candidates"][0]["tensors"]
    }
    less = run(headless(model(name), tmp_path / "m.gguf", "q8_0"), model(name), ONE)
    assert findings(less) == {} and kld(less) == kld(whole)
    folder = to_onnx(model(name), tmp_path / "m", "int8").artifact
    weights = run(folder, model(name), replace(ONE, weights_only=True))
    assert findings(weights) == {} and kld(weights, "weights") < 0.01
    damaged = tmp_path / "d.gguf"
    damaged.write_bytes(gguf(name, "q8_0").read_bytes())
    with damaged.open("r+b") as f:
        f.seek(-32 * 272, 2)
        f.write(bytes(32 * 272))
    (line,) = audit(open_folder(model(name)), open_artifact(damaged)).findings
    assert line.startswith("blk.4.ffn_down.weight: ")


@pytest.mark.slow
def test_blame_does_not_look_at_what_no_run_computes(
    model: Model, gguf: Gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blaming, "drift_of", lambda *a: 1.0)
    candidate = open_artifact(gguf("qwen3_5-mtp", "q8_0"))
    exact = open_artifact(headless(model("qwen3_5-mtp"), tmp_path / "m.gguf", "f32"))
    found = blaming.blame(exact, candidate, Side("reference", exact.path), [], None, Silent, ("f32",))
    assert {r["group"] for r in found["layers"]} == {
        "token_embd.weight", "output.weight", *(f"layer {i}" for i in range(4)),
    }  # fmt: skip
    assert not any("nextn" in r["group"] for r in found["kinds"])
