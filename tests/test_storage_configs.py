"""What quantisers write into quantization_config: keys that say how they worked, and keys that change the numbers."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import pytest
from conftest import Pair, to_gguf

from sampan.checkpoint import open_folder
from sampan.convert.patterns import MAX_SECONDS, matcher, skipper, wildcards
from sampan.convert.quantization import read_rules, read_storage
from sampan.errors import InputError

# what transformers 5 writes when it saves a quantised model (`GPTQConfig`, `AwqConfig`)
TRANSFORMERS = {
    "tokenizer": None, "dataset": "c4", "damp_percent": 0.1, "true_sequential": True, "act_group_aware": True,
    "format": "gptq", "meta": {"quantizer": ["optimum:2"]}, "backend": "auto", "model_seqlen": None, "batch_size": 1,
    "block_name_to_quantize": None, "module_name_preceding_first_block": None, "pad_token_id": None,
    "max_input_length": None, "cache_block_outputs": True, "modules_in_block_to_quantize": None,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptqmodel-7": ("gptq-sym", encoders.GPTQMODEL_7),
    "gptqmodel-5": ("gptq-sym", encoders.GPTQMODEL_5),
    "gptqmodel-7-zeros": ("gptq", encoders.GPTQMODEL_7 | {"sym": False}),
    "gptqmodel-7-v2": ("gptq-v2",
        encoders.GPTQMODEL_7 | {"sym": False, "checkpoint_format": "gptq_v2", "format": "GPTQ_V2"}),
    "gptqmodel-7-act-order": ("gptq-act-order", encoders.GPTQMODEL_7 | {"sym": False, "desc_act": True}),
    "transformers-gptq": ("gptq-sym", encoders.GPTQ | TRANSFORMERS | {"sym": True}),
    "same-settings": ("gptq-sym",
        encoders.GPTQMODEL_7 | {"dynamic": {"+:.*mlp": {"bits": 4, "group_size": 32, "mse": 2}}}),
    "gptqmodel-7-awq": ("awq-sym", encoders.GPTQMODEL_7_AWQ),
    "gptqmodel-5-awq": ("awq", encoders.GPTQMODEL_5_AWQ),
    "transformers-awq": ("awq", encoders.AWQ | TRANSFORMERS | {"format": None, "version": "GEMM"}),
    "autoawq": ("awq", {"quant_method": "awq", "q_group_size": 32, "w_bit": 4, "version": "GEMM", "zero_point": True}),
}  # fmt: skip


def with_config(source: Path, target: Path, config: dict[str, Any]) -> Path:
    """The same weights under another quantization_config."""
    encoders.write(source, target / source.name, encoders.read(source)[0], 1, config)
    return target / source.name


@pytest.mark.parametrize("case", CONFIGS)
def test_how_a_quantiser_worked_changes_nothing(case: str, pair: Pair, tmp_path: Path) -> None:
    name, config = CONFIGS[case]
    encoded, meant = pair(name)
    to_gguf(with_config(encoded, tmp_path, config), tmp_path / "encoded.gguf", "f32")
    to_gguf(meant, tmp_path / "meant.gguf", "f32")
    assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown-key": ("gptq", {"outlier_columns": 8}, "found outlier_columns"),
    "eight-bits": ("gptq", {"bits": 8}, "bits: expected 4, found 8"),
    "another-method": ("gptq", {"method": "qqq"}, "method: expected 'gptq', found qqq"),
    "another-format": ("gptq", {"format": "gptq_p"}, "format: expected gptq or gptq_v2, found gptq_p"),
    "two-formats": ("gptq", {"checkpoint_format": "gptq_v2", "format": "gptq"},
        "quantization_config: checkpoint_format gptq_v2 and format gptq contradict each other; remove the wrong one"),
    "another-packing": ("gptq", {"pack_dtype": "int16"}, "pack_dtype: expected 'int32' or 'torch.int32', found int16"),
    "rotated": ("gptq", {"rotation": "hadamard"}, "rotation: weights that were rotated are not implemented"),
    "adapter": ("gptq", {"adapter": {"name": "lora", "rank": 8}}, "adapter: expected {}, found {'name': 'lora'"),
    "marlin": ("gptq", {"is_marlin_format": True}, "is_marlin_format: expected False, found True"),
    "other-bits-for-some": ("gptq", {"dynamic": {r"+:.*down_proj": {"bits": 8}}},
        "dynamic: expected the same settings for all modules, found +:.*down_proj: {'bits': 8}"),
    "odd-dynamic": ("gptq", {"dynamic": {".*": 8}}, "dynamic: .*: expected an object, found 8"),
    "awq-gemv": ("awq", {"version": "gemv"}, "version: expected gemm, found gemv"),
    "awq-format": ("awq", {"format": "llm-awq"}, "format: expected gemm, found llm-awq"),
    "awq-backend": ("awq", {"backend": "llm-awq"}, "backend: expected a packing in the layout gemm, found llm-awq"),
    "modelopt-awq": ("nvfp4-modelopt", {"quant_algo": "NVFP4_AWQ"}, "found modelopt/nvfp4_awq"),
    "modelopt-mixed": ("nvfp4-modelopt", {"quant_algo": "MIXED_PRECISION"}, "found modelopt/mixed_precision"),
    "modelopt-none": ("nvfp4-modelopt", {"quant_algo": None}, "quant_algo: expected one of "),
    "modelopt-groups": ("nvfp4-modelopt", {"group_size": 32}, "group_size: expected 16 or 0, found 32"),
    "modelopt-bits": ("nvfp4-modelopt", {"config_groups": encoders.modelopt("", num_bits=8)["config_groups"]},
        "weights: num_bits: expected 4, found 8"),
    "modelopt-factors": ("nvfp4-modelopt", {"pre_quant_scale": True},
        "pre_quant_scale: factors of activations are not implemented"),
    "modelopt-layers": ("fp8-modelopt", {"quantized_layers": {"a": {}}}, "quantized_layers: expected {}, found {'a':"),
    "nvfp4-groups": ("nvfp4",
        encoders.compressed("nvfp4-pack-quantized", type="float", strategy="group", group_size=16),
        "weights: expected symmetric 4-bit floats, tensor_group of 16, found 4-bit float, group of 16"),
    "fp8-fp4-experts": ("fp8-block", {"expert_dtype": "fp4"}, "expert_dtype: expected 'fp8', found fp4"),
    "look-ahead": ("gptq", {"dynamic": {r"-:(?!.*down).*": {}}},
        "dynamic: the pattern (?!.*down).* cannot be run by RE2 (invalid perl operator: (?!); write it without "
        "look-around, back-references and large counts"),
    "back-reference": ("int4", {"ignore": [r"re:(a)\1"]}, "ignore: the pattern (a)\\1 cannot be run by RE2"),
    "possessive": ("int4", {"ignore": ["re:a++"]}, "ignore: the pattern a++ cannot be run by RE2"),
    "read-otherwise": ("int4", {"ignore": ["re:a{,3}"]}, "the pattern a{,3} means something else to RE2, which runs"),
    "expression-of-awq": ("awq", {"modules_to_not_convert": ["mlp(?=x)"]},
        "modules_to_not_convert: the pattern mlp(?=x) cannot be run by RE2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_changes_numbers_is_refused(case: str, pair: Pair, tmp_path: Path) -> None:
    name, changes, line = REFUSED[case]
    source = pair(name)[0]
    config = with_config(source, tmp_path, encoders.ENCODERS[name][1] | changes)
    with pytest.raises(InputError) as caught:
        read_rules(open_folder(config))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_zero_points_against_the_config(pair: Pair, tmp_path: Path) -> None:
    folder = with_config(pair("awq")[0], tmp_path, encoders.GPTQMODEL_7_AWQ)
    with pytest.raises(InputError, match="qzeros: expected the zero point 8 everywhere, as zero_point says, found "):
        to_gguf(folder, tmp_path / "m.gguf", "f32")


NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.gate", "model.layers.1.mlp.gate_proj", "lm_head"]


@pytest.mark.parametrize(
    "entry",
    ["lm_head", "model.layers.1", "mlp.gate", "gate_proj", "layers", r"model\.layers\.1", "model.*attn", r".*\.mlp\.",
     "(lm_head|model.layers.0)", r".*\.\d+\.mlp.gate", "model.layers.[02-9]", "q_proj|gate", "^lm", "oj"],
)  # fmt: skip
def test_modules_that_are_left_out_are_those_of_transformers(entry: str) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    inside = {n for n in NAMES if f".{entry}." in f".{n}."}  # AutoAWQ and older files: names anywhere
    theirs = {n for n in NAMES if not should_convert_module(n, [entry])}
    assert {n for n in NAMES if skipper([entry], "here")(n)} == theirs | inside


@pytest.mark.parametrize(
    "text", [r".*\.1+\.mlp", r".*(q|k)_proj$", r"model\.layers\.\d\.", "lm", "x", r".*gate(_proj)?$", "(?i)LM_H"]
)
def test_the_beginning_matches_as_in_python(text: str) -> None:
    assert [matcher([text, "nothing"], "here")(n) for n in NAMES] == [re.match(text, n) is not None for n in NAMES]


@pytest.mark.parametrize("text", ["lm_head", "model.layers.1*", "*gate", "*.self_attn*", "model.layers.0", "a.b*"])
def test_wildcards_are_those_of_fnmatch(text: str) -> None:
    from fnmatch import fnmatchcase

    expected = [fnmatchcase(n, text) or f"{n}.".startswith(f"{text}.") for n in NAMES]
    assert [wildcards([text], "here")(n) for n in NAMES] == expected


def test_the_first_entry_of_dynamic_that_matches_counts(pair: Pair, tmp_path: Path) -> None:
    """A `+:` before a `-:` keeps its modules quantised; with the order turned round they are promised to be plain."""
    same = {"bits": 4}
    source = pair("gptq-sym")[0]
    right = encoders.GPTQMODEL_7 | {"dynamic": {"+:.*mlp": same, "-:.*": {}, ".*self_attn": same}}
    rules = read_rules(open_folder(with_config(source, tmp_path / "a", right)))
    assert rules[0].covers("model.layers.1.mlp.up_proj") is True
    assert rules[0].covers("model.layers.1.self_attn.q_proj") is False
    wrong = encoders.GPTQMODEL_7 | {"dynamic": {"-:.*up_proj": {}, "+:.*mlp": same}}
    with pytest.raises(InputError, match=r"up_proj\.qweight: expected plain numbers, as quantization_config lists it"):
        read_storage(open_folder(with_config(source, tmp_path / "b", wrong)))


TARGETS = encoders.TWO_GROUPS["config_groups"]["group_1"]
ENDLESS: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "ignore": lambda p: ("int4", {"ignore": [f"re:{p}"]}),
    "targets": lambda p: ("int4", {"config_groups": {"g": TARGETS | {"targets": [f"re:{p}"]}}}),
    "dynamic": lambda p: ("gptq", {"dynamic": {f"-:{p}": {}}}),
    "awq": lambda p: ("awq", {"modules_to_not_convert": [p]}),
    "fp8": lambda p: ("fp8-block", {"modules_to_not_convert": [p]}),
}
TEXTS = [
    ".*" * 10 + "!", ".*" * 499 + "!", ".*" * 500_000 + "!", "(.+)+!", "(a|.)*" * 100 + "!",
    "(" * 499 + "x" + ")" * 499, "(" * 100_000, "(.*a.{99}){9}!", "(a{1000}){1000}", "|".join(["(.*e)*!"] * 120),
]  # fmt: skip


@pytest.mark.parametrize("where", ENDLESS)
@pytest.mark.parametrize("text", TEXTS, ids=lambda t: f"{t[:12]}-{len(t)}")
def test_no_pattern_takes_long(where: str, text: str, pair: Pair, tmp_path: Path, capfd: Any) -> None:
    """Python's re takes longer than the age of the universe for the second of them."""
    name, changes = ENDLESS[where](text)
    folder = with_config(pair(name)[0], tmp_path, encoders.ENCODERS[name][1] | changes)
    start = time.monotonic()
    try:
        read_storage(open_folder(folder))
    except InputError as e:
        assert len(str(e)) < 500 and "\n" not in str(e)
    assert time.monotonic() - start < 2
    assert not capfd.readouterr().err


def test_groups_cost_nothing() -> None:
    """With groups that capture, each of these names takes 6 ms."""
    start = time.monotonic()
    matches = matcher(["(" * 499 + ".*" + ")" * 499], "here")
    assert all(matches(f"model.layers.1.mlp.experts.{e}.gate_proj") for e in range(2000))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "patterns", [["|".join([".*[a-m]e.{9}x"] * 70)] * 20, [".*e.{900}x"] * 19], ids=["many", "counts"]
)
@pytest.mark.parametrize("make", [matcher, skipper])
def test_many_modules(
    make: Callable[[list[str], str], Callable[[str], bool]], patterns: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bound the first list takes five minutes for the modules of a model with 128 experts in 60 layers."""
    assert MAX_SECONDS <= 1.5
    monkeypatch.setattr("sampan.convert.patterns.MAX_SECONDS", 0.1)
    matches, start = make(patterns, "here"), time.thread_time()
    with pytest.raises(InputError, match="here: its patterns take too long for so many modules; write simpler ones"):
        [matches(f"model.layers.{i % 60}.mlp.experts.{i}.gate_proj") for i in range(70_000)]
    assert time.thread_time() - start < 0.5


def test_usual_patterns_are_far_from_the_bound() -> None:
    matches = matcher([rf".*layers\.{i}\.mlp\.(gate|up)_proj$" for i in range(60)], "here")
    start = time.thread_time()
    assert not any(matches(f"model.layers.{i % 60}.mlp.experts.{i}.gate_proj") for i in range(10_000))
    assert time.thread_time() - start < 0.2


def test_a_name_without_end() -> None:
    with pytest.raises(InputError, match=r"here: the module xxx.*… has a name of more than 1000 characters"):
        matcher([".*a"], "here")("x" * 1001)


def test_long_patterns() -> None:
    assert matcher(["a?" * 500], "here")("a" * 500)
    with pytest.raises(
        InputError, match=r"here: the pattern a\?a\?.*… is too long; write it in at most 1000 characters"
    ):
        matcher(["a?" * 501], "here")


def test_many_patterns(pair: Pair, tmp_path: Path) -> None:
    config = encoders.ENCODERS["int4"][1] | {"ignore": [f"re:.*{i}.*{i}!" for i in range(100_000)]}
    with pytest.raises(InputError, match="ignore: more than 20000 characters of patterns; write fewer, or name"):
        read_rules(open_folder(with_config(pair("int4")[0], tmp_path, config)))


@pytest.mark.parametrize("name", ["fp8-modelopt", "nvfp4-modelopt"])
def test_hf_quant_config(name: str, pair: Pair, tmp_path: Path) -> None:
    """What older versions of modelopt wrote beside a config.json that says nothing."""
    encoded, meant = pair(name)
    settings = encoders.ENCODERS[name][1]
    folder = tmp_path / encoded.name
    encoders.write(encoded, folder, encoders.read(encoded)[0], 1, None)
    quantization = {"quant_algo": settings["quant_algo"], "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head*"]}
    quantization |= {"group_size": 16} if name.startswith("nvfp4") else {}
    value = {"producer": {"name": "modelopt", "version": "0.23.0"}, "quantization": quantization}
    (folder / "hf_quant_config.json").write_text(json.dumps(value))
    to_gguf(folder, tmp_path / "encoded.gguf", "f32")
    to_gguf(meant, tmp_path / "meant.gguf", "f32")
    assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes()
    shutil.copy(folder / "hf_quant_config.json", tmp_path)
    plain = Path(shutil.copytree(meant, tmp_path / "plain" / meant.name))
    shutil.copy(folder / "hf_quant_config.json", plain)  # left behind by somebody who dequantised
    assert read_rules(open_folder(plain)) == ()


def test_two_formats_in_one_checkpoint(pair: Pair, tmp_path: Path) -> None:
    """Attention in FP8 and the rest in NVFP4, whose scales have the dtype of FP8 codes: `mixed-precision`."""
    encoded, meant = (p for p in pair("nvfp4"))
    fp8, fp8_meant = pair("fp8-channel")
    tensors = {k: v for k, v in encoders.read(encoded)[0].items() if "self_attn" not in k}
    tensors |= {k: v for k, v in encoders.read(fp8)[0].items() if "self_attn" in k}
    values = {k: v for k, v in encoders.read(meant)[0].items() if "self_attn" not in k}
    values |= {k: v for k, v in encoders.read(fp8_meant)[0].items() if "self_attn" in k}
    groups = {}
    for name, format_, target in (
        ("nvfp4", "nvfp4-pack-quantized", "mlp"),
        ("fp8-channel", "float-quantized", "self_attn"),
    ):
        group = encoders.ENCODERS[name][1]["config_groups"]["group_0"]
        groups[name] = group | {"format": format_, "targets": [rf"re:.*{target}\..*_proj$"]}
    config = encoders.ENCODERS["nvfp4"][1] | {"format": "mixed-precision", "config_groups": groups}
    encoders.write(encoded, tmp_path / "a" / encoded.name, tensors, 2, config)
    encoders.write(encoded, tmp_path / "b" / encoded.name, values, 1, None)
    for n in "ab":
        to_gguf(tmp_path / n / encoded.name, tmp_path / f"{n}.gguf", "f32")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
