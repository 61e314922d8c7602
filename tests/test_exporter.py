"""`--exporter optimum`: what it refuses, and (slow: makes its environment with pip once) what it exports."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import run_cli
from onnx_peer import relative
from reference import MULTIPLE, assert_close, reference

from sampan import runtime
from sampan.checkpoint import open_folder
from sampan.convert import environments
from sampan.convert.exported import Request, _generation, convert_exported
from sampan.convert.exporters import optimum
from sampan.convert.generation import resolve
from sampan.convert.tokenizer import read_tokenizer
from sampan.errors import InputError

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
SMALL = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": None,
    "eos_token_id": 2035, "pad_token_id": None,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-tied": (
        "LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}, "tie_word_embeddings": True}
    ),
    "glm": (
        "GlmConfig",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
}  # fmt: skip
CONVERT = ("--to", "onnx", "--exporter", "optimum")


@pytest.fixture(scope="session")
def environment() -> Path:
    """Made once for a user: the tests share the cache that the program uses."""
    return environments.make(optimum.ENVIRONMENT, optimum.ENVIRONMENT.place)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny model for each row of the table."""
    place = tmp_path_factory.mktemp("foreign")
    with pytest.MonkeyPatch.context() as patch:
        for name, (config, changes) in MODELS.items():
            patch.setitem(tiny.MODELS, name, tiny.Tiny(config, SMALL | {"tie_word_embeddings": False} | changes))
            tiny.build(name, place / name)
        yield place


def ids() -> list[int]:
    return np.random.default_rng(3).integers(0, 2000, 70).tolist()


def logits(folder: Path) -> Any:
    with runtime.open(folder) as session:
        return session.logits(ids())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_exports_equal_transformers(name: str, checkpoints: Path, environment: Path, tmp_path: Path) -> None:
    """The whole command; then logits through our runtime against the transformers of the tests."""
    source = checkpoints / name
    done = run_cli("convert", str(source), *CONVERT, "--quant", "fp32", "-o", str(tmp_path / "fp32"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["export"]
    assert 0 < found["largest_error"] < found["largest_allowed"]
    exact = reference(source, ids())
    assert_close(logits(tmp_path / "fp32"), exact)
    out = tmp_path / "int4"
    done = run_cli("convert", str(source), *CONVERT, "--quant", "int4", "-o", str(out))
    assert done.returncode == 0 and "4.50 bits per weight" in done.stdout, done.stderr
    assert 1e-3 < relative(logits(out), exact.logits) < 0.4
    manifest = json.loads((out / "manifest.json").read_text())
    assert (
        manifest["graph"] == "optimum"
        and manifest["family"] == json.loads((source / "config.json").read_text())["model_type"]
    )
    assert not list(tmp_path.glob("*.export*")) and not list(tmp_path.glob("*.unfinished"))
    done = run_cli("run", str(out), "Hello", "--max-tokens", "4", "--temperature", "0")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.slow
def test_the_folder_runs_in_onnxruntime_genai(checkpoints: Path, environment: Path, tmp_path: Path) -> None:
    import onnxruntime_genai as genai

    done = run_cli("convert", str(checkpoints / "llama"), *CONVERT, "--quant", "fp32", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    model = genai.Model(str(tmp_path / "out"))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=100)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([ids()], np.int32))
    last = np.array(generator.get_output("logits")).reshape(-1, 2048)[-1]
    exact = reference(checkpoints / "llama", ids())
    assert np.abs(last - exact.logits[-1]).max() < MULTIPLE * exact.own


@pytest.mark.slow
def test_a_misread_config_is_noticed(
    checkpoints: Path, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the rewriting, Optimum's transformers takes its own rope: the comparison must say so."""
    monkeypatch.setattr(optimum, "old_style", lambda config, where: dict(config))
    with pytest.raises(InputError, match=r"model\.onnx, in one piece: expected the logits of transformers within .*"):
        optimum.export(open_folder(checkpoints / "llama-tied"), environment, tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "baichuan"}, r"model_type: expected one that Optimum knows: .*glm.*llama.*, found 'baichuan'"),
        ({"architectures": ["YiForCausalLM"]}, r"architectures: expected LlamaForCausalLM with model_type llama"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\..*: expected every tensor of the model, found none"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\..*: expected only tensors that the model has"),
        ({"hidden_act": "sloth"}, r"its export of this checkpoint failed: .*sloth"),
    ],
)
def test_what_is_refused_inside(
    change: dict[str, Any], text: str, checkpoints: Path, environment: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoints / "llama", source)
    tiny.edit_json(source / "config.json", **change)
    (source / "modeling_yi.py").write_text("raise SystemExit('code of the checkpoint ran')")
    tiny.edit_json(source / "config.json", auto_map={"AutoModelForCausalLM": "modeling_yi.YiForCausalLM"})
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(InputError, match=text):
        optimum.export(open_folder(source), environment, work, None)


def test_a_missing_environment_is_explained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_cli("convert", str(tiny.FIXTURE), *CONVERT, "-o", str(out), XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 2 and not out.exists()
    expected = f"error: {tmp_path}/sampan/exporter: expected the exporter's environment, found none; --make-exporter"
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1


def test_an_environment_of_other_versions_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "pins").write_text("torch==1.0")
    with pytest.raises(InputError, match=r"found one with torch==1\.0; --make-exporter makes it"):
        environments.find(optimum.ENVIRONMENT, tmp_path)


@pytest.mark.slow
def test_a_failed_environment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = replace(optimum.ENVIRONMENT, steps=(environments.Step(("--no-such-option",)),))
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    with pytest.raises(InputError, match=r"--make-exporter: .*pip.* failed with exit code 2"):
        environments.make(wanted, tmp_path / "sampan" / "exporter")
    assert not list((tmp_path / "sampan").iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "onnx", "--exporter", "tvm"), "--exporter: expected optimum, found 'tvm'"),
        (("--to", "gguf", "--exporter", "optimum"), "--to: expected onnx with --exporter, found gguf"),
        ((*CONVERT, "--plan"), "--plan: expected none with --exporter"),
        ((*CONVERT, "--split-size", "2G"), "--split-size: expected none with --exporter, found 2G"),
    ],
)
def test_options_that_do_not_fit(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    done = run_cli("convert", str(tiny.FIXTURE), *arguments, "-o", str(tmp_path / "out"))
    assert done.returncode == 2 and text in done.stderr


def test_old_style_holds_the_same_values() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    config = {"model_type": "x", "dtype": "bfloat16", "rope_parameters": rope}
    assert optimum.old_style(config, "c") == {
        "model_type": "x", "torch_dtype": "bfloat16", "rope_theta": 1e6, "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    }  # fmt: skip
    old = {"model_type": "x", "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert optimum.old_style(old, "c") == old
    with pytest.raises(InputError, match=r"c: rope_theta: expected 1000000\.0 as in rope_parameters, found 10000"):
        optimum.old_style({"rope_theta": 10000, "rope_parameters": rope}, "c")
    with pytest.raises(InputError, match="rope_parameters: expected one rope for all layers"):
        optimum.old_style({"rope_parameters": {"full_attention": rope, "sliding_attention": rope}}, "c")


def test_only_checked_positions_are_offered() -> None:
    def most(**config: Any) -> int:
        return optimum.positions({"max_position_embeddings": 8192} | config, "c", None)

    assert most() == 8192
    assert most(sliding_window=1024) == 1024
    assert most(sliding_window=1024, use_sliding_window=False) == 8192
    assert most(attention_chunk_size=512) == 512
    longrope = {"rope_type": "longrope", "short_factor": [1], "long_factor": [2]}
    assert most(rope_scaling=longrope, original_max_position_embeddings=4096) == 4096
    assert most(rope_parameters=longrope | {"original_max_position_embeddings": 2048}) == 2048
    with pytest.raises(InputError, match="--context: expected at most 1024, beyond which the graph cannot be checked"):
        optimum.positions({"max_position_embeddings": 8192, "sliding_window": 1024}, "c", 2048)


def test_a_folder_of_somebody_else_is_refused_before_the_export(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(InputError, match="expected a new folder name, found a folder with other files in it"):
        convert_exported(
            open_folder(tiny.FIXTURE), tmp_path, Request(tmp_path, "int4", overwrite=True), lambda total: print
        )


def test_a_quantised_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny.FIXTURE, source)
    tiny.edit_json(source / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(InputError, match=r"quantization_config: expected none, found .*fp8"):
        optimum.export(open_folder(source), tmp_path, tmp_path, None)


def test_ends_are_those_of_every_conversion(tmp_path: Path) -> None:
    """The tokenizer's own end comes first, those of generation_config.json after it."""
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    checkpoint = open_folder(folder)
    resolved = resolve(folder, read_tokenizer(folder, checkpoint.config["vocab_size"]))
    assert _generation(checkpoint) == resolved and len(resolved.ends) > 1
    tiny.edit_json(folder / "generation_config.json", eos_token_id=None)
    tiny.edit_json(folder / "config.json", eos_token_id=None)
    alone = _generation(open_folder(folder)).ends
    assert alone == resolved.ends[:1]
    tiny.edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(InputError, match="expected an eos_token among the added tokens, found none"):
        _generation(open_folder(folder))
