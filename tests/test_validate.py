"""`sampan validate` from end to end: numbers that another engine confirms, what decides, what is refused."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf
from validating import QUICK, Silent, aborting, cache, findings, run, with_metadata

from sampan.checkpoint import open_folder
from sampan.convert.binding import bind
from sampan.convert.family import read_architecture
from sampan.errors import InputError
from sampan.validate import isolated, reference, verdict, windows
from sampan.validate.artifact import compose, dequantise, open_gguf, read_rows
from sampan.validate.drift import Side, measure
from sampan.validate.text import text_report
from sampan.validate.validation import validate
from sampan.validate.windows import cut

__all__ = ["cache"]  # a fixture of every test here


# Numbers


def test_drift_of_the_weights_is_what_transformers_computes(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """KLD of dequantised q4_0 weights, F32 GGUF in llama.cpp, against the same weights in transformers float32."""
    import torch
    from transformers import AutoModelForCausalLM

    quantised = open_gguf(gguf("trained", "q4_0"))
    dequantise(quantised, quantised, tmp_path / "f32.gguf")
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


@pytest.mark.slow
def test_the_three_numbers(gguf: Callable[[str, str], Path]) -> None:
    report = run(gguf("trained", "q4_0"), options=replace(QUICK, parts=True))
    parts = {name: d["mean"]["kld"]["value"] for name, d in report["candidates"][0]["drift"].items()}
    assert list(parts) == ["total", "weights", "engine"]
    assert 0 < parts["engine"] < parts["weights"] < 1.5 * parts["total"]
    only = run(gguf("trained", "q4_0"), options=replace(QUICK, weights_only=True))
    assert list(only["candidates"][0]["drift"]) == ["weights"]
    assert only["candidates"][0]["drift"]["weights"]["mean"]["kld"]["value"] == pytest.approx(parts["weights"])
    assert [p.name for p in gguf("trained", "q4_0").parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.slow
def test_the_cache_type_reaches_the_candidate(gguf: Callable[[str, str], Path]) -> None:
    drift = {
        kv: run(gguf("trained", "f32"), options=replace(QUICK, kv=kv))["candidates"][0]["drift"]["total"]["mean"]
        for kv in ("f32", "f16", "q8_0")
    }
    kld = {kv: d["kld"]["value"] for kv, d in drift.items()}
    assert kld["f32"] <= kld["f16"] < kld["q8_0"] / 10, "flash attention rounds a float32 cache too"


@pytest.mark.slow
def test_torch_as_the_reference(gguf: Callable[[str, str], Path]) -> None:
    engine = run(gguf("trained", "q4_0"))
    torch = run(gguf("trained", "q4_0"), options=replace(QUICK, torch=True))
    assert torch["reference"]["engine"] == "torch"
    a, b = (r["candidates"][0]["drift"]["total"]["mean"]["kld"]["value"] for r in (engine, torch))
    assert a == pytest.approx(b, rel=1e-3)


@pytest.mark.slow
def test_a_gguf_as_the_reference_and_its_floor(gguf: Callable[[str, str], Path]) -> None:
    report = run(gguf("trained", "q4_0"), gguf("trained", "bf16"))
    assert report["candidates"][0]["checks"] == []
    floor = report["reference"]["floor"]
    assert 0 < floor < report["candidates"][0]["drift"]["total"]["mean"]["kld"]["value"] / 10
    text = text_report(report)
    assert f"drift as deployed (the reference's own floor: KLD {floor:.2g})" in text
    assert f"(the reference's own floor: KLD {floor:.2g})" in text.splitlines()[-1]


@pytest.mark.slow
def test_a_reference_that_does_not_fit_in_float32(
    gguf: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "available_memory", lambda: reference.HEADROOM + 10_000_000)
    report = run(gguf("trained", "q8_0"))
    assert report["reference"]["types"] == ["bf16"]
    assert report["reference"]["floor"] == "not measured: does not fit"


@pytest.mark.slow
def test_two_candidates_are_compared_in_pairs(gguf: Callable[[str, str], Path]) -> None:
    text = run_cli(
        "validate", str(tiny.FIXTURE), str(gguf("trained", "q4_0")), str(gguf("trained", "q8_0")), "--max-kld", "2"
    )
    assert text.returncode == 0, text.stderr
    assert re.search(r"KLD of \S+q4_0\.gguf / \S+q8_0\.gguf: \d+\.\d+ \[.*\]: \S+q8_0\.gguf is better", text.stdout)
    assert text.stdout.splitlines()[-1].startswith("passed: ")


@pytest.mark.slow
def test_experts_that_differ_are_counted(model: Callable[[str], Path], gguf: Callable[[str, str], Path]) -> None:
    exact, coarse = (
        run(gguf("qwen3_moe", q), model("qwen3_moe"), replace(QUICK, kv="f32"))["candidates"][0]["experts"]
        for q in ("f32", "q4_0")
    )
    assert exact[0] < 0.05
    assert 0.1 < coarse[1] < coarse[0] < 1


@pytest.mark.slow
def test_the_deciding_line_is_the_last(gguf: Callable[[str, str], Path]) -> None:
    """Of two candidates, that of the one which did not pass."""
    good, bad = gguf("trained", "f32"), gguf("trained", "q2_k")
    for candidates in ([good, bad], [bad, good]):
        options = replace(QUICK, windows=30, limits=(verdict.Limit("kld", "mean", 0.01),))
        report = json.loads(json.dumps(validate(str(tiny.FIXTURE), candidates, options, Silent)))
        last = text_report(report).splitlines()[-1]
        assert last.startswith("failed: ") and str(bad) in last
    with pytest.raises(InputError, match="--blame: expected one CANDIDATE, found 2"):
        validate(str(tiny.FIXTURE), [good, bad], replace(QUICK, blame=True), Silent)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_candidate_that_aborts_gets_a_failed_verdict(
    gguf: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "CODE", aborting("candidate"))
    report = run(gguf("trained", "q8_0"))
    assert report["verdict"] == "failed"
    (decision,) = report["candidates"][0]["decisions"]
    assert decision["text"].startswith("the engine's process ended by SIGABRT while opening ")
    monkeypatch.setattr(isolated, "CODE", aborting("reference"))
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
    other = {"tokenizer.ggml.tokens": [*tokens[:7], "other", *tokens[8:]]}
    bad = with_metadata(gguf("trained", "q8_0"), tmp_path / "bad.gguf", **other)
    with pytest.raises(InputError, match=r"vocabulary: expected .* at 7, as the reference has, found other$"):
        run(bad, gguf("trained", "f32"))
    with pytest.raises(InputError, match=r"nothing\.gguf: expected a GGUF file or an ONNX folder, found no such file"):
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


def test_a_text_whose_name_means_something_else(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    path = tmp_path / "mean.txt"
    path.write_text("a text " * 999)
    with pytest.raises(InputError, match=r"mean\.txt: expected a name other than mean and each, .*found mean"):
        run(gguf("trained", "q8_0"), options=replace(QUICK, texts=(path,)))


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_cannot_be_written_is_refused_at_once(option: str, tmp_path: Path) -> None:
    result = run_cli("validate", str(tiny.FIXTURE), "m.gguf", option, str(tmp_path / "none" / "report"))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {option}: expected a file name in a folder that exists, found ")


def test_default_limits_follow_the_main_type_not_the_mean(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """A 4-bit scheme on a model with a large embedding has more bits a weight, but its blocks drift as 4 bits do."""
    nominal = {q: open_gguf(gguf("trained", q)).nominal_bits for q in ("f16", "q8_0", "q6_k", "q4_k_m", "q4_0", "q2_k")}
    assert nominal == {"f16": 16, "q8_0": 8.5, "q6_k": 6.5625, "q4_k_m": 4.5, "q4_0": 4.5, "q2_k": 2.625}
    assert open_gguf(gguf("trained", "q4_k_m")).bits_per_weight > 5


@pytest.mark.slow
def test_a_limit_on_a_domain_that_is_not_measured(gguf: Callable[[str, str], Path]) -> None:
    result = run_cli("validate", str(tiny.FIXTURE), str(gguf("trained", "q8_0")), "--max-kld", "fr=0.1")
    assert result.returncode == 2
    assert result.stderr == "error: limit: expected a domain among mean, each, zh, en, code, chat, found 'fr'\n"


# Around it


@pytest.mark.slow
def test_convert_validate_writes_the_verdict_into_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    result = run_cli("convert", str(tiny.FIXTURE), "--quant", "q8_0", "-o", str(out), "--validate")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"passed: {out}: ")
    manifest = json.loads((tmp_path / "m.gguf.manifest.json").read_text())
    assert manifest["validation"]["verdict"] == "passed"
    assert manifest["validation"]["drift"]["total"]["mean"]["kld"]["value"] < 0.002
    assert manifest["scheme"] == "q8_0"


@pytest.mark.slow
def test_a_split_candidate(tmp_path: Path) -> None:
    result = run_cli(
        "convert", str(tiny.FIXTURE), "--quant", "q8_0", "-o", str(tmp_path / "m.gguf"), "--split-size", "1M"
    )
    assert result.returncode == 0
    first = min(tmp_path.glob("m-00001-of-*.gguf"))
    report = run(first)
    assert findings(report) == {}
    assert len(report["candidates"][0]["tensors"]) == 46


@pytest.mark.slow
def test_the_reference_is_made_once(gguf: Callable[[str, str], Path]) -> None:
    run(gguf("trained", "q8_0"))
    Silent.asked = []
    run(gguf("trained", "q8_0"))
    assert "preparing the reference" not in [what for _, what, _ in Silent.asked]


@pytest.mark.slow
def test_the_long_documents_are_one_window_each(
    gguf: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="since the model was made for 1 to 1024"):
        run(gguf("trained", "q8_0"), options=replace(QUICK, long=True))
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "model"))
    tiny.edit_json(folder / "config.json", max_position_embeddings=32768)
    to_gguf(folder, tmp_path / "x.gguf", "q8_0")
    # attention costs the square of the length: the whole documents, 20,000 of these tokens each, take four minutes
    whole = windows.built_in
    assert all(len(whole(f"{name}.txt")) > 8000 for name in windows.LONG)
    monkeypatch.setattr(windows, "built_in", lambda name: whole(name)[: 2500 if name.startswith("long") else None])
    report = run(tmp_path / "x.gguf", folder, replace(QUICK, long=True))
    for name in windows.LONG:
        assert report["domains"][name]["windows"] == 1
        assert report["domains"][name]["scored"] > 1000


MEASURE = """<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument, all = q => [...page.querySelectorAll(q)];
  const scale = e => e.ownerSVGElement ? e.ownerSVGElement.clientWidth / e.ownerSVGElement.viewBox.baseVal.width : 1;
  const size = e => parseFloat(getComputedStyle(e).fontSize) * scale(e);
  const smallest = Math.min(...all("p, td, th, small, text").map(size));
  document.querySelector("p").textContent = [all("svg").length, page.documentElement.scrollWidth,
    page.documentElement.clientWidth, smallest, all(".verdict")[0].textContent].join("|");
}</script>"""


@pytest.mark.slow
def test_the_page_opens_in_a_browser(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    browser = os.environ.get("CHROMIUM", "chromium")
    page = tmp_path / "report.html"
    result = run_cli("validate", str(tiny.FIXTURE), str(gguf("trained", "q4_0")), "--html", str(page))
    assert result.returncode == 0, result.stderr
    text = page.read_text()
    assert not re.search(r"(src|href)=|<script|url\(", text), "it needs nothing from elsewhere"
    phone = tmp_path / "phone.html"
    phone.write_text(f'<iframe width="360" height="800" srcdoc="{html.escape(text)}"></iframe><p></p>{MEASURE}')
    try:
        shown = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", phone.as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    except FileNotFoundError:
        assert "CI" not in os.environ, "CI needs a browser: apt-get install chromium"
        pytest.skip("no chromium here: set CHROMIUM to a browser's path")
    assert shown.returncode == 0, shown.stderr
    plots, wide, room, smallest, verdict_line = re.search(r"<p>(.*)</p>", shown.stdout)[1].split("|")
    assert int(plots) == 4 and verdict_line.startswith("passed: ")
    assert int(wide) <= int(room) <= 360, "nothing hangs over the edge of a phone"
    assert float(smallest) >= 10, "pixels of the smallest text, in plots too"
