"""Checkpoints as strangers have them: what transformers loads is converted, to the same values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - makes bfloat16 known to numpy and safetensors
import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf
from safetensors.numpy import load_file, save_file

from sampan.checkpoint import INDEX, SINGLE, open_folder
from sampan.convert.conversion import prepare
from sampan.convert.family import families, read_architecture
from sampan.errors import InputError

Tensors = dict[str, Any]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.FIXTURE, tmp_path / tiny.FIXTURE.name))  # the name is in the metadata


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The fixture as q8_0."""
    return converted(tiny.FIXTURE, tmp_path_factory.mktemp("plain") / "m.gguf")


def converted(folder: Path, out: Path) -> bytes:
    to_gguf(folder, out, "q8_0")
    return out.read_bytes()


def change(folder: Path, edit: Callable[[Tensors], Tensors | None]) -> None:
    """Edit the tensors of a folder's one file."""
    tensors = load_file(folder / SINGLE)
    save_file(edit(tensors) or tensors, folder / SINGLE, metadata={"format": "pt"})


def notes(folder: Path, tmp_path: Path) -> list[str]:
    return prepare(open_folder(folder), tmp_path / "n.gguf", "gguf", "q8_0").notes


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        prepare(open_folder(folder), folder.parent / "n.gguf", "gguf", "q8_0")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shard(folder: Path, tensors: Tensors, count: int, *, listed: Callable[[str], bool] = lambda name: True) -> None:
    """Write shards and an index that lists some of their tensors."""
    names = list(tensors)
    weight_map = {}
    for n in range(count):
        file, keys = f"model-{n + 1:05d}-of-{count:05d}.safetensors", names[n::count]
        save_file({k: tensors[k] for k in keys}, folder / file, metadata={"format": "pt"})
        weight_map |= {k: file for k in keys if listed(k)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


# two sets of weights


def test_one_file_beside_shards_is_taken_as_transformers_does(copy: Path, plain: bytes, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tensors = load_file(copy / SINGLE)
    shard(copy, {k: v * np.ones((), v.dtype) * 0 if "norm" in k else v for k, v in tensors.items()}, 3)
    loaded = AutoModelForCausalLM.from_pretrained(copy).state_dict()["model.norm.weight"].float().numpy()
    np.testing.assert_array_equal(loaded, tensors["model.norm.weight"].astype(np.float32))
    assert converted(copy, tmp_path / "m.gguf") == plain
    (note,) = notes(copy, tmp_path)
    assert note == (
        "model.safetensors is taken, as transformers does, not the shards that model.safetensors.index.json beside it "
        "names"
    )


def test_a_stale_index_does_no_harm(copy: Path, plain: bytes, tmp_path: Path) -> None:
    shard(copy, load_file(copy / SINGLE), 2)
    for file in copy.glob("model-*.safetensors"):
        file.unlink()
    assert converted(copy, tmp_path / "m.gguf") == plain


def test_a_tensor_that_the_index_forgot_counts(copy: Path, plain: bytes, tmp_path: Path) -> None:
    shard(copy, load_file(copy / SINGLE), 2, listed=lambda name: name != "model.norm.weight")
    (copy / SINGLE).unlink()
    assert converted(copy, tmp_path / "m.gguf") == plain
    assert notes(copy, tmp_path) == [
        "model.safetensors.index.json does not list model.norm.weight, which its shards hold"
    ]


# heads


def test_a_tied_config_with_a_head_of_its_own(copy: Path, tmp_path: Path) -> None:
    """As if the config said that the two are not tied."""
    from transformers import AutoModelForCausalLM

    assert json.loads((copy / "config.json").read_text())["tie_word_embeddings"] is True

    def edit(t: Tensors) -> None:
        t["lm_head.weight"] = t["model.embed_tokens.weight"].copy()
        t["lm_head.weight"][5, 5] += 1

    change(copy, edit)
    head = AutoModelForCausalLM.from_pretrained(copy).state_dict()["lm_head.weight"].float().numpy()
    np.testing.assert_array_equal(head, load_file(copy / SINGLE)["lm_head.weight"].astype(np.float32))
    found = converted(copy, tmp_path / "tied.gguf")
    assert notes(copy, tmp_path) == [
        "the head is written, since it is not the embedding, although tie_word_embeddings is true"
    ]
    tiny.edit_json(copy / "config.json", tie_word_embeddings=False)
    assert converted(copy, tmp_path / "untied.gguf") == found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_copy_of_the_embedding_is_no_head_of_its_own(dtype: str, copy: Path, plain: bytes, tmp_path: Path) -> None:
    change(copy, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].astype(dtype)})
    assert converted(copy, tmp_path / "m.gguf") == plain


# names


def test_a_base_model_has_no_prefix(copy: Path, plain: bytes, tmp_path: Path) -> None:
    change(copy, lambda t: {k.removeprefix("model."): v for k, v in t.items()})
    assert converted(copy, tmp_path / "m.gguf") == plain


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_prefixes_of_training_are_refused_with_the_remedy(prefix: str, copy: Path) -> None:
    change(copy, lambda t: {prefix + k: v for k, v in t.items()})
    expected = f"names here begin with '{prefix}', which a wrapper of training put there: save the model that it wraps"
    assert refused(copy).endswith(expected)


def test_an_adapter_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"this is an adapter .* without its model: merge it into the model first"):
        open_folder(tmp_path)


def test_layers_that_predict_further_tokens_are_left_out(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    name = "deepseek_v3"
    folder = Path(shutil.copytree(model(name), tmp_path / name))
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]

    def edit(t: Tensors) -> Tensors:
        more = {k.replace("layers.1.", f"layers.{layers}."): v for k, v in t.items() if ".layers.1." in k}
        return t | more | {f"model.layers.{layers}.enorm.weight": t["model.norm.weight"]}

    change(folder, edit)
    tiny.edit_json(folder / "config.json", num_nextn_predict_layers=1)
    assert converted(folder, tmp_path / "m.gguf") == gguf(name, "q8_0").read_bytes()
    assert notes(folder, tmp_path)[0].startswith("left out: the multi-token prediction layers, ")


# configs

CLASSES = {
    "qwen2": "Qwen2Config", "qwen2_moe": "Qwen2MoeConfig", "qwen3": "Qwen3Config", "qwen3_moe": "Qwen3MoeConfig",
    "llama": "LlamaConfig", "mistral": "MistralConfig",
    "glm4": "Glm4Config", "deepseek_v3": "DeepseekV3Config", "qwen3_next": "Qwen3NextConfig",
    "qwen3_5": "Qwen3_5TextConfig", "qwen3_5_moe": "Qwen3_5MoeTextConfig", "kimi_linear": "KimiLinearConfig",
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    import transformers

    made = getattr(transformers, CLASSES[name])()
    for key, value in families()[name].defaults.items():
        if key in ("rope_theta", "partial_rotary_factor"):
            found = made.rope_parameters[key]
        elif key == "qkv_bias" and not hasattr(made, key):
            found = True  # Qwen2's code has the bias and no key for it
        elif value is None:
            found = None  # as many as there are heads, which the config class fills in
            assert getattr(made, key) == made.num_attention_heads
        else:
            found = getattr(made, key)
        assert found == value, key


@pytest.mark.parametrize(
    "left", ["rms_norm_eps", "hidden_act", "rope_theta", "num_key_value_heads", "tie_word_embeddings"]
)
def test_a_key_that_is_left_to_its_default(left: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    """Against the model that transformers makes of the same config."""
    from transformers import AutoConfig

    folder = Path(shutil.copytree(model("llama-linear"), tmp_path / "m"))
    tiny.edit_json(folder / "config.json", rope_parameters=None)  # and with it the theta
    tiny.edit_json(folder / "config.json", **{left: None})
    arch, theirs = read_architecture(open_folder(folder))[1], AutoConfig.from_pretrained(folder)
    (attention,) = arch.attentions
    assert (arch.norm_eps, arch.tied) == (theirs.rms_norm_eps, theirs.tie_word_embeddings)
    assert attention.kv_heads == theirs.num_key_value_heads  # type: ignore[union-attr]
    assert attention.rope.theta == theirs.rope_parameters["rope_theta"]


DEFAULT = {"rope_type": "default"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ROPES: dict[str, dict[str, Any]] = {
    "old": {"rope_theta": 5e5, "rope_scaling": YARN},
    "old, spelled type": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "new": {"rope_parameters": YARN | {"rope_theta": 5e5}},
    "new with a theta outside": {"rope_theta": 5e5, "rope_parameters": YARN},
    "a theta inside and another outside": {"rope_theta": 1e4, "rope_parameters": YARN | {"rope_theta": 5e5}},
    "old beside new": {"rope_parameters": DEFAULT | {"rope_theta": 1e4}, "rope_theta": 1e4, "rope_scaling": YARN},
    "an empty old one": {"rope_scaling": {}, "rope_parameters": YARN | {"rope_theta": 5e5}},
    "null": {"rope_scaling": None, "rope_theta": 5e5},
    "a factor of one": {"rope_scaling": {"rope_type": "default", "factor": 1.0}, "rope_theta": 5e5},
    "the original context outside": {
        "rope_theta": 5e5, "original_max_position_embeddings": 128,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
}  # fmt: skip


@pytest.mark.parametrize("spelling", ROPES)
def test_a_rope_is_what_transformers_makes_of_it(spelling: str, copy: Path) -> None:
    """Frequencies and the factor of cos and sin, in float32."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    from sampan.convert.formats.onnx.rope import tables

    tiny.edit_json(copy / "config.json", rope_parameters=None, rope_theta=None, rope_scaling=None)
    config = json.loads((copy / "config.json").read_text()) | ROPES[spelling]
    (copy / "config.json").write_text(json.dumps(config))
    theirs = AutoConfig.from_pretrained(copy)
    kind = theirs.rope_parameters["rope_type"]
    init = Qwen3RotaryEmbedding.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    inverse, factor = init(theirs) if kind == "default" else init(theirs, "cpu")
    (rope,) = read_architecture(open_folder(copy))[1].ropes
    cos, sin = tables(rope, 3)
    np.testing.assert_allclose(cos[2], np.cos(2 * inverse.numpy()) * factor, rtol=1e-5)
    np.testing.assert_allclose(sin[1], np.sin(inverse.numpy()) * factor, rtol=1e-5, atol=1e-8)


DISAGREE: dict[str, tuple[dict[str, Any], str]] = {
    "theta": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": None, "rope_scaling": YARN},
        "config.json: rope_parameters has rope_theta 1000000.0, rope_scaling beside it 10000.0; transformers reads "
        "rope_scaling alone: write it all there, or delete it",
    ),
    "kind": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "rope_scaling": YARN},
        "rope_parameters has rope_type linear, rope_scaling beside it yarn",
    ),
    "an unknown kind beside a known one": (
        {"rope_parameters": DEFAULT | {"rope_theta": 1e4}, "rope_scaling": {"rope_type": "dynamic", "factor": 2}},
        "rope_scaling: rope_type: expected default, linear, yarn or llama3, found dynamic",
    ),
    "type and rope_type": (
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
        "rope_scaling: rope_type is yarn and type is linear, two names of one value; delete the wrong one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DISAGREE)
def test_spellings_that_disagree_are_refused(case: str, copy: Path) -> None:
    changes, expected = DISAGREE[case]
    tiny.edit_json(copy / "config.json", rope_theta=None, rope_scaling=None, rope_parameters=None)
    tiny.edit_json(copy / "config.json", **changes)
    assert expected in refused(copy)


def test_numbers_of_experts_that_disagree(model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("qwen3_moe"), tmp_path / "m"))
    tiny.edit_json(folder / "config.json", num_experts=4, num_local_experts=6)
    assert "num_experts is 4 and num_local_experts is 6, two names of one value; delete the wrong one" in refused(
        folder
    )


def test_dual_chunk_attention_is_named(copy: Path, tmp_path: Path) -> None:
    """transformers and both engines leave it out: then the context is what the model was trained for."""
    chunks = {"chunk_size": 256, "local_size": 64, "original_max_position_embeddings": 256}
    tiny.edit_json(copy / "config.json", dual_chunk_attention_config=chunks)
    assert read_architecture(open_folder(copy))[1].context == 256
    assert notes(copy, tmp_path) == [
        "dual_chunk_attention_config is left out: no engine here computes it, so the context is that of the training"
    ]


def test_inspect_says_why_tensors_do_not_bind(copy: Path) -> None:
    change(copy, lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up" not in k})
    shown = json.loads(run_cli("inspect", str(copy), "--json").stdout)
    assert "expected the tensor model.layers.1.mlp.up_proj.weight, found none" in shown["not convertible"]
