"""`sampan validate` from end to end: the right check catches each fault, and the numbers are another engine's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf

from sampan.checkpoint import open_folder
from sampan.convert.binding import bind
from sampan.convert.family import read_architecture
from sampan.errors import InputError
from sampan.validate import isolated
from sampan.validate.drift import Side, measure
from sampan.validate.gguf_file import Stored, chunks, compose, dequantise, open_gguf, read_raw, read_rows
from sampan.validate.validation import Options, validate
from sampan.validate.windows import cut

ROOT = Path(__file__).parents[1]
QUICK = Options(windows=3)


class Silent:
    """Takes the place of progress bars and keeps what they were asked for."""

    asked: list[tuple[int, str, str]] = []  # noqa: RUF012 - reset by the fixture

    def __init__(self, *arguments: Any) -> None:
        self.asked.append(arguments)
        self.total, self.done = arguments[0], 0

    def __call__(self, n: int) -> None:
        self.done += n

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        assert kind is not None or self.total * 0.9 <= self.done <= self.total, self.total


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One reference cache for all tests of this file, and no memory of earlier bars."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    Silent.asked = []
    yield


def run(candidate: Path, reference: Path | str = tiny.FIXTURE, options: Options = QUICK) -> dict[str, Any]:
    report = validate(str(reference), [candidate], options, Silent)
    data: dict[str, Any] = json.loads(json.dumps(report))  # as scripts get it
    return data


def findings(report: dict[str, Any]) -> dict[str, list[str]]:
    """Check → what it found, of the checks that found something."""
    return {c["name"]: c["findings"] for c in report["candidates"][0]["checks"] if c["findings"]}


# Faults: each is found, by the check that is made for it


def rewritten(source: Path, out: Path, change: Callable[[str, bytearray, Stored], None]) -> Path:
    """A copy of a GGUF file whose tensors' bytes went through `change`."""
    out.write_bytes(source.read_bytes())
    with out.open("r+b") as f:
        for t in open_gguf(out).tensors.values():
            raw = bytearray(b"".join(read_raw(t, f.fileno(), s, n).tobytes() for s, n in chunks(t)))
            before = bytes(raw)
            change(t.name, raw, t)
            if raw != before:
                f.seek(t.offset)
                f.write(raw)
    return out


def with_metadata(source: Path, out: Path, **changes: Any) -> Path:
    """A copy with other metadata values."""
    artifact = open_gguf(source)
    metadata = dict(artifact.metadata)
    for key, value in changes.items():
        metadata[key] = replace(metadata[key], value=value)
    return compose(out, metadata, list(artifact.tensors.values()), lambda t: False)


def test_a_faithful_candidate_passes(gguf: Callable[[str, str], Path]) -> None:
    report = run(gguf("trained", "q8_0"), options=Options(windows=32))
    assert report["verdict"] == "passed"
    assert findings(report) == {}
    assert [c["name"] for c in report["candidates"][0]["checks"]] == [
        "tensors",
        "metadata",
        "tokenizer",
        "chat template",
    ]
    assert report["reference"]["floor"] == 0.0
    assert list(report["domains"]) == ["zh", "en", "code", "chat"]
    assert all(d == {"windows": 32, "scored": 4096} for d in report["domains"].values())
    assert [what for _, what, _ in Silent.asked][-2:] == ["auditing the tensors", "trained-q8_0.gguf"]


def test_a_zeroed_tensor(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    def zero(name: str, raw: bytearray, t: Stored) -> None:
        if name == "blk.1.ffn_up.weight":
            raw[:] = bytes(len(raw))

    report = run(rewritten(gguf("trained", "q8_0"), tmp_path / "bad.gguf", zero))
    assert report["verdict"] == "failed"
    assert findings(report) == {"tensors": ["blk.1.ffn_up.weight: nothing but zeros in rows 0 to 511"]}


def test_a_norm_off_by_one(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    def shift(name: str, raw: bytearray, t: Stored) -> None:
        if name == "blk.2.ffn_norm.weight":
            raw[:] = (np.frombuffer(raw, np.float32) + 1).tobytes()

    (found,) = findings(run(rewritten(gguf("trained", "q4_0"), tmp_path / "bad.gguf", shift)))["tensors"]
    assert re.fullmatch(r"blk\.2\.ffn_norm\.weight: far from .* relative error 0\.\d+, more than f32 explains", found)


@pytest.mark.parametrize("quant", ["q4_0", "q4_k_m"])
def test_one_row_with_flipped_nibbles(quant: str, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    def flip(name: str, raw: bytearray, t: Stored) -> None:
        if name == "blk.0.attn_q.weight":
            step, block = t.type.row_bytes(t.columns), t.type.block_bytes
            for start in range(17 * step, 18 * step, block):
                for i in range(start + block - t.type.block // 2, start + block):  # the quants end a block
                    raw[i] ^= 0xFF

    (found,) = findings(run(rewritten(gguf("trained", quant), tmp_path / "bad.gguf", flip)))["tensors"]
    assert re.match(r"blk\.0\.attn_q\.weight: row 17: relative error up to \d", found)


def test_swapped_q_and_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same_shape = tiny.MODELS["qwen3"].arguments | {
        "num_key_value_heads": tiny.MODELS["qwen3"].arguments["num_attention_heads"]
    }
    monkeypatch.setitem(tiny.MODELS, "mha", replace(tiny.MODELS["qwen3"], arguments=same_shape))
    folder = tiny.build("mha", tmp_path / "mha")
    to_gguf(folder, tmp_path / "good.gguf", "q8_0")
    good = open_gguf(tmp_path / "good.gguf")
    other = {"blk.0.attn_q.weight": "blk.0.attn_k.weight", "blk.0.attn_k.weight": "blk.0.attn_q.weight"}
    tensors = [replace(good.tensors[other.get(n, n)], name=n) for n in good.tensors]
    compose(tmp_path / "bad.gguf", good.metadata, tensors, lambda t: False)
    found = findings(run(tmp_path / "bad.gguf", folder))["tensors"]
    assert [f.split(":")[0] for f in found] == ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]
    assert all("far from the checkpoint: relative error 1.4" in f for f in found)


def test_a_wrong_rope_base(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    bad = with_metadata(gguf("trained", "q8_0"), tmp_path / "bad.gguf", **{"qwen3.rope.freq_base": 10_001.0})
    assert findings(run(bad)) == {"metadata": ["qwen3.rope.freq_base: expected 10000.0, found 10001.0"]}


def test_a_shifted_tokenizer(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    tokens = open_gguf(gguf("trained", "q8_0")).value("tokenizer.ggml.tokens")
    types = open_gguf(gguf("trained", "q8_0")).value("tokenizer.ggml.token_type")
    n = types.index(3)  # the first control token: ordinary tokens come before it
    shifted = [*tokens[1:n], tokens[0], *tokens[n:]]
    bad = with_metadata(gguf("trained", "q8_0"), tmp_path / "bad.gguf", **{"tokenizer.ggml.tokens": shifted})
    found = findings(run(bad))
    assert set(found) == {"metadata", "tokenizer", "chat template"}
    assert re.match(r"'.*': token 0: expected \[\d+, .*\] of \d+, found \[\d+, ", found["tokenizer"][0])
    assert found["metadata"][0].startswith("tokenizer.ggml.tokens: expected !, found ")


def test_a_lost_chat_template(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    bad = with_metadata(
        gguf("trained", "q8_0"), tmp_path / "bad.gguf", **{"tokenizer.chat_template": "{{ messages[0].content }}"}
    )
    found = findings(run(bad))
    assert set(found) == {"chat template"}
    assert re.match(r"conversation 1: token 0: expected \[", found["chat template"][0])


def test_missing_misshapen_and_orphan_tensors(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    good = open_gguf(gguf("trained", "q8_0"))
    tensors = dict(good.tensors)
    moved = tensors.pop("blk.0.attn_k.weight")
    tensors["blk.9.attn_k.weight"] = replace(moved, name="blk.9.attn_k.weight")
    tensors["blk.0.attn_v.weight"] = replace(tensors["blk.0.attn_v.weight"], shape=(64, 256))
    compose(tmp_path / "bad.gguf", good.metadata, list(tensors.values()), lambda t: False)
    report = run(tmp_path / "bad.gguf")
    assert [f.split(",")[0] for f in findings(report)["tensors"]] == [
        "blk.0.attn_k.weight: missing in the artifact",
        "blk.0.attn_v.weight: expected shape [256",
        "blk.9.attn_k.weight: an orphan",
    ]
    assert report["verdict"] == "failed"
    assert "llama.cpp cannot load it" in report["candidates"][0]["decisions"][-1]["text"]


def test_nan_in_a_tensor(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    def poison(name: str, raw: bytearray, t: Stored) -> None:
        if name == "output_norm.weight":
            raw[:4] = np.float32(np.nan).tobytes()

    report = run(rewritten(gguf("trained", "q8_0"), tmp_path / "bad.gguf", poison))
    assert findings(report)["tensors"] == ["output_norm.weight: NaN or Inf in row 0"]
    assert report["verdict"] == "failed"


# Numbers


def test_drift_of_the_weights_is_what_transformers_computes(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """KLD of dequantised q4_0 weights, F32 GGUF in llama.cpp, against the same weights in transformers float32."""
    import torch
    from transformers import AutoModelForCausalLM

    quantised = open_gguf(gguf("trained", "q4_0"))
    dequantise(quantised, tmp_path / "f32.gguf")
    domain = cut("en", [i * 7919 % 1200 for i in range(2000)], 8)
    exact = Side("reference", gguf("trained", "f32")).exact()
    ours = measure(exact, Side("candidate", tmp_path / "f32.gguf").exact(), [domain]).scores["en"]

    reference = AutoModelForCausalLM.from_pretrained(tiny.FIXTURE, dtype=torch.float32)
    candidate = AutoModelForCausalLM.from_pretrained(tiny.FIXTURE, dtype=torch.float32)
    checkpoint = open_folder(tiny.FIXTURE)
    parameters = dict(candidate.named_parameters())
    with torch.no_grad(), quantised.path.open("rb") as f:
        for bound in bind(checkpoint, *read_architecture(checkpoint)).tensors:
            t = quantised.tensors[bound.spec.name]
            rows = read_rows(t, f.fileno(), 0, t.rows)
            parameters[bound.pieces[0].info.name].copy_(torch.from_numpy(rows).reshape(bound.spec.shape))
        windows = torch.tensor([w[:-1] for w in domain.windows])
        p, q = (m(windows).logits[:, -domain.scored :].double().log_softmax(-1) for m in (reference, candidate))
    theirs = (p.exp() * (p - q)).sum(-1)
    assert ours.kld.mean() == pytest.approx(float(theirs.mean()), rel=0.02)
    np.testing.assert_allclose(ours.kld, theirs.numpy(), rtol=0.05, atol=1e-5)


def test_the_three_numbers(gguf: Callable[[str, str], Path]) -> None:
    report = run(gguf("trained", "q4_0"), options=replace(QUICK, parts=True))
    parts = {name: d["mean"]["kld"]["value"] for name, d in report["candidates"][0]["drift"].items()}
    assert list(parts) == ["total", "weights", "engine"]
    assert 0 < parts["engine"] < parts["weights"] < 1.5 * parts["total"]
    only = run(gguf("trained", "q4_0"), options=replace(QUICK, weights_only=True))
    assert list(only["candidates"][0]["drift"]) == ["weights"]
    assert only["candidates"][0]["drift"]["weights"]["mean"]["kld"]["value"] == pytest.approx(parts["weights"])
    assert [p.name for p in gguf("trained", "q4_0").parent.iterdir() if p.name.startswith(".")] == []


def test_the_cache_type_reaches_the_candidate(gguf: Callable[[str, str], Path]) -> None:
    drift = {
        kv: run(gguf("trained", "f32"), options=replace(QUICK, kv=kv))["candidates"][0]["drift"]["total"]["mean"]
        for kv in ("f32", "f16", "q8_0")
    }
    kld = {kv: d["kld"]["value"] for kv, d in drift.items()}
    assert kld["f32"] <= kld["f16"] < kld["q8_0"] / 10, "flash attention rounds a float32 cache too"


def test_torch_as_the_reference(gguf: Callable[[str, str], Path]) -> None:
    engine = run(gguf("trained", "q4_0"))
    torch = run(gguf("trained", "q4_0"), options=replace(QUICK, torch=True))
    assert torch["reference"]["engine"] == "torch"
    a, b = (r["candidates"][0]["drift"]["total"]["mean"]["kld"]["value"] for r in (engine, torch))
    assert a == pytest.approx(b, rel=1e-3)


def test_a_gguf_as_the_reference_and_its_floor(gguf: Callable[[str, str], Path]) -> None:
    report = run(gguf("trained", "q4_0"), gguf("trained", "bf16"))
    assert report["candidates"][0]["checks"] == []
    assert 0 < report["reference"]["floor"] < report["candidates"][0]["drift"]["total"]["mean"]["kld"]["value"] / 10


def test_two_candidates_are_compared_in_pairs(gguf: Callable[[str, str], Path]) -> None:
    text = run_cli(
        "validate", str(tiny.FIXTURE), str(gguf("trained", "q4_0")), str(gguf("trained", "q8_0")), "--max-kld", "2"
    )
    assert text.returncode == 0, text.stderr
    assert re.search(r"KLD of \S+q4_0\.gguf / \S+q8_0\.gguf: \d+\.\d+ \[.*\]: \S+q8_0\.gguf is better", text.stdout)
    assert text.stdout.splitlines()[-1].startswith("passed: ")


def test_experts_that_differ_are_counted(model: Callable[[str], Path], gguf: Callable[[str, str], Path]) -> None:
    exact, coarse = (
        run(gguf("qwen3_moe", q), model("qwen3_moe"), replace(QUICK, kv="f32"))["candidates"][0]["experts"]
        for q in ("f32", "q4_0")
    )
    assert exact[0] < 0.02
    assert 0.1 < coarse[1] < coarse[0] < 1


def test_blame_finds_the_tensor_that_was_harmed(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    good = open_gguf(gguf("trained", "q8_0"))
    harsh = open_gguf(gguf("trained", "q2_k"))
    names = {"blk.1.ffn_up.weight", "blk.3.ffn_up.weight"}
    tensors = [harsh.tensors[n] if n in names else t for n, t in good.tensors.items()]
    compose(tmp_path / "mixed.gguf", good.metadata, tensors, lambda t: False)
    blame = run(tmp_path / "mixed.gguf", options=replace(QUICK, blame=True))["blame"]
    assert blame["kinds"][0]["group"] == "ffn_up.weight"
    assert blame["kinds"][0]["share"] > 0.9
    assert {r["group"] for r in blame["layers"][:2]} == {"layer 1", "layer 3"}
    assert blame["keep"] == ["ffn_up.weight"]
    assert 0.8 < blame["kinds_sum"] < 1.2


# What decides, and what is refused


def test_exit_codes_follow_the_verdict(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    arguments = ["validate", str(tiny.FIXTURE), str(gguf("trained", "q4_0"))]
    failed = run_cli(*arguments, "--max-kld", "1e-6", "--json", str(tmp_path / "report.json"))
    assert failed.returncode == 1
    assert re.match(r"failed: \S+: KLD of the domain mean .* wanted ≤ 1e-06$", failed.stdout.splitlines()[-1])
    report = json.loads((tmp_path / "report.json").read_text())
    kld = report["candidates"][0]["drift"]["total"]["mean"]["kld"]
    between = run_cli(*arguments, "--max-kld", str((kld["value"] + kld["high"]) / 2))
    assert between.returncode == 1
    last = between.stdout.splitlines()[-1]
    assert int(re.search(r"^undecided: .*; about (\d+) scored tokens would decide$", last)[1]) > 4 * 32 * 128
    few = run_cli(*arguments, "--windows", "2")
    assert few.returncode == 1
    assert "fewer than 30 chunks in a domain, no interval" in few.stdout.splitlines()[-1]
    assert json.loads(run_cli(*arguments, "--windows", "2", "--json", "-").stdout)["verdict"] == "undecided"


def test_a_candidate_that_aborts_gets_a_failed_verdict(
    gguf: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import os
from sampan.validate import child
real = child._open
def abort(side, *rest):
    model = real(side, *rest)
    if side["role"] == "ROLE":
        os.abort()
    return model
child._open = abort
child.main()
"""
    command = [sys.executable, "-c", code.replace("ROLE", "candidate")]
    monkeypatch.setattr(isolated, "COMMAND", command)
    report = run(gguf("trained", "q8_0"))
    assert report["verdict"] == "failed"
    (decision,) = report["candidates"][0]["decisions"]
    assert decision["text"].startswith("the engine's process ended by SIGABRT while opening ")
    monkeypatch.setattr(isolated, "COMMAND", [sys.executable, "-c", code.replace("ROLE", "reference")])
    with pytest.raises(InputError, match="the reference cannot be run: the engine's process ended by SIGABRT"):
        run(gguf("trained", "q8_0"))


def test_what_cannot_be_compared(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="architecture: expected qwen3, as the reference has, found qwen2"):
        run(gguf("qwen2", "q8_0"))
    tokens = open_gguf(gguf("trained", "f32")).value("tokenizer.ggml.tokens")
    types = open_gguf(gguf("trained", "f32")).value("tokenizer.ggml.token_type")
    more = {"tokenizer.ggml.tokens": [*tokens, "more"], "tokenizer.ggml.token_type": [*types, 1]}
    bad = with_metadata(gguf("trained", "q8_0"), tmp_path / "bad.gguf", **more)
    with pytest.raises(
        InputError, match=rf"vocabulary: expected {len(tokens)} tokens, .* found {len(tokens) + 1} tokens"
    ):
        run(bad)
    with pytest.raises(InputError, match=r"nothing\.gguf: expected a GGUF file, found no such file"):
        run(tmp_path / "nothing.gguf")
    with pytest.raises(InputError, match="--reference torch: expected a checkpoint as REFERENCE, found an artifact"):
        run(gguf("trained", "q8_0"), gguf("trained", "f32"), replace(QUICK, torch=True))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "text mine: expected at least 256 tokens, found 0; give a longer text"),
        (b"hello", "text mine: expected at least 256 tokens, found 3; give a longer text"),
        ("ä".encode("latin-1") * 999, "mine.txt: expected text in UTF-8, found the byte 0xe4 at 0"),
        (None, "mine.txt: cannot be read: No such file or directory"),
    ],
)
def test_texts_that_cannot_be_used(
    data: bytes | None, line: str, gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "mine.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as e:
        run(gguf("trained", "q8_0"), options=replace(QUICK, texts=(path,)))
    assert re.sub(r"found \d+;", "found 3;", str(e.value)).removeprefix(f"{tmp_path}/") in (
        line,
        line.replace("found 0", "found 3"),
    )


def test_a_limit_on_a_domain_that_is_not_measured(gguf: Callable[[str, str], Path]) -> None:
    result = run_cli("validate", str(tiny.FIXTURE), str(gguf("trained", "q8_0")), "--max-kld", "fr=0.1")
    assert result.returncode == 2
    assert result.stderr == "error: limit: expected a domain among mean, each, zh, en, code, chat, found 'fr'\n"


# Around it


def test_convert_validate_writes_the_verdict_into_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    result = run_cli("convert", str(tiny.FIXTURE), "--quant", "q8_0", "-o", str(out), "--validate")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"passed: {out}: ")
    manifest = json.loads((tmp_path / "m.gguf.manifest.json").read_text())
    assert manifest["validation"]["verdict"] == "passed"
    assert manifest["validation"]["drift"]["total"]["mean"]["kld"]["value"] < 0.002
    assert manifest["scheme"] == "q8_0"


def test_a_split_candidate(tmp_path: Path) -> None:
    result = run_cli(
        "convert", str(tiny.FIXTURE), "--quant", "q8_0", "-o", str(tmp_path / "m.gguf"), "--split-size", "1M"
    )
    assert result.returncode == 0
    first = min(tmp_path.glob("m-00001-of-*.gguf"))
    report = run(first)
    assert findings(report) == {}
    assert len(report["candidates"][0]["tensors"]) == 46


def test_the_reference_is_made_once(gguf: Callable[[str, str], Path]) -> None:
    run(gguf("trained", "q8_0"))
    Silent.asked = []
    run(gguf("trained", "q8_0"))
    assert "preparing the reference" not in [what for _, what, _ in Silent.asked]


def test_the_long_documents_are_one_window_each(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    report = run(gguf("trained", "q8_0"), options=replace(QUICK, long=True))
    for name in ("long_zh", "long_en"):
        assert report["domains"][name]["windows"] == 1
        assert report["domains"][name]["scored"] > 8000


def test_the_page_opens_in_a_browser(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    browser = os.environ.get("CHROMIUM", "chromium")
    page = tmp_path / "report.html"
    result = run_cli("validate", str(tiny.FIXTURE), str(gguf("trained", "q4_0")), "--html", str(page))
    assert result.returncode == 0, result.stderr
    text = page.read_text()
    assert not re.search(r"(src|href)=|<script|url\(", text), "it needs nothing from elsewhere"
    try:
        shown = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--window-size=412,900",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    except FileNotFoundError:
        assert "CI" not in os.environ, "CI needs a browser: apt-get install chromium"
        pytest.skip("no chromium here: set CHROMIUM to a browser's path")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("<svg") == 4
    assert "passed: " in shown.stdout
