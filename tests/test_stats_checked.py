"""Statistics after the conversion: the audit rounds as it was rounded, a resumed run keeps them, inspect shows them."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stats_files
import tiny
from conftest import run_cli
from test_resume import journal_lines, start_slow, wait_for
from validating import ONE, Silent, cache

from sampan.calibrate.calibration import calibrate
from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.errors import InputError
from sampan.quantize.stats import Sums, open_stats, write_stats
from sampan.validate import audit as auditing
from sampan.validate.artifact import open_artifact
from sampan.validate.audit import audit
from sampan.validate.validation import validate

__all__ = ["cache"]  # a fixture of every test here


@pytest.fixture(scope="module")
def steep(gguf: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics that leave hardly anything to most columns, so that rows are rounded badly by any other measure."""
    found = stats_files.made_up(gguf("trained", "f32"))
    for sums in found.values():
        sums.values[:] = np.where(np.arange(sums.values.size) % 8 < 1, 1e6, 1e-6)
    return stats_files.write(tmp_path_factory.mktemp("stats") / "steep.safetensors", found)


@pytest.mark.parametrize("to", ["gguf", "onnx"])
def test_the_audit_rounds_with_the_same_weights(
    to: str, steep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no row may be further from the checkpoint than its own encoding makes it, the weights must be the same."""
    checkpoint, out = open_folder(tiny.FIXTURE), tmp_path / f"out.{to}"
    convert(prepare(checkpoint, out, to, "q4_0" if to == "gguf" else "int4", stats=steep))
    artifact = open_artifact(out)
    monkeypatch.setattr(auditing, "OUTLIER", 1.00001)
    assert audit(checkpoint, artifact, stats=open_stats(steep)).findings == []
    layers = {f.split(":")[0] for f in audit(checkpoint, artifact).findings}
    assert {f"blk.{i}.{n}.weight" for i in range(4) for n in ("attn_q", "ffn_up", "ffn_down")} <= layers


@pytest.mark.slow
def test_which_candidates_they_are_for(steep: Path, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    convert(prepare(open_folder(tiny.FIXTURE), out, "gguf", "q4_k_m", stats=steep))
    other = stats_files.write(tmp_path / "other.gguf", stats_files.made_up(gguf("trained", "f32"), seed=5))
    for candidate, stats, message in (
        (
            out,
            other,
            r"--stats: .*other.gguf: expected SHA-256 .* as .*out.gguf says, found .*; it was made with other",
        ),
        (
            gguf("trained", "q4_k_m"),
            steep,
            "--stats: expected a candidate that was made with them, found none by their",
        ),
    ):
        with pytest.raises(InputError, match=message):
            validate(str(tiny.FIXTURE), [candidate], replace(ONE, stats=stats), Silent)
    report = validate(str(tiny.FIXTURE), [out, gguf("trained", "q4_k_m")], replace(ONE, stats=steep), Silent)
    checks = [next(c for c in r["checks"] if c["name"] == "tensors") for r in report["candidates"]]
    assert [c["findings"] for c in checks] == [(), ()] and not any("statistics" in c["checked"] for c in checks)
    told = validate(str(tiny.FIXTURE), [out], ONE, Silent)["candidates"][0]["checks"][0]["checked"]
    assert told.endswith("made with statistics, which --stats would judge its rows by")


@pytest.mark.slow
def test_a_resumed_run_keeps_them_and_other_ones_start_again(
    steep: Path, gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    out, stats = tmp_path / "out.gguf", tmp_path / "stats.safetensors"
    stats.write_bytes(steep.read_bytes())
    options = ("--stats", str(stats), "--jobs", "1", "--max-memory", "8M")
    whole = tmp_path / "whole.gguf"
    convert(prepare(open_folder(tiny.FIXTURE), whole, "gguf", "q4_0", stats=stats))

    def kill() -> None:
        process = start_slow(tiny.FIXTURE, out, *options, quant="q4_0")
        wait_for(lambda: journal_lines(out) > 2)
        process.send_signal(signal.SIGKILL)
        process.wait()

    kill()
    done = run_cli("convert", str(tiny.FIXTURE), "--quant", "q4_0", "-o", str(out), *options)
    assert "continued an unfinished output" in done.stderr and out.read_bytes() == whole.read_bytes()
    out.unlink()
    (tmp_path / "out.gguf.manifest.json").unlink()
    kill()
    stats_files.write(stats, stats_files.made_up(gguf("trained", "f32")))
    done = run_cli("convert", str(tiny.FIXTURE), "--quant", "q4_0", "-o", str(out), *options)
    assert "started again: an unfinished output was found, but with another statistics" in done.stderr
    assert out.read_bytes() != whole.read_bytes()
    said = json.loads((tmp_path / "out.gguf.manifest.json").read_text())["stats"]
    assert said["sha256"] == open_stats(stats).sha256


def test_a_file_that_changes_meanwhile(steep: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.safetensors"
    stats.write_bytes(steep.read_bytes())
    planned = prepare(open_folder(tiny.FIXTURE), tmp_path / "out.gguf", "gguf", "q4_0", stats=stats)
    with stats.open("r+b") as f:
        f.truncate(4000)
    with pytest.raises(InputError, match=r"stats.safetensors: expected \d+ bytes at \d+, found \d+; the file changed"):
        convert(planned)
    assert not (tmp_path / "out.gguf").exists()


def test_those_of_other_weights_are_refused(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Names and widths are the same: only the SHA-256 of the shards tells, from a hub at once."""
    (shard,) = open_folder(tiny.FIXTURE).shards
    assert shard.path is not None
    digest = hashlib.sha256(shard.path.read_bytes()).hexdigest()
    said = {"source": "tiny", "source_sha256": hashlib.sha256(digest.encode()).hexdigest()}
    stats = tmp_path / "stats.safetensors"
    write_stats(stats, stats_files.made_up(gguf("trained", "f32")), said, 512)
    convert(prepare(open_folder(tiny.FIXTURE), tmp_path / "same.gguf", "gguf", "q4_0", stats=stats))
    other = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "other"))
    with (other / shard.path.name).open("r+b") as f:
        f.seek(next(iter(shard.tensors.values())).offset)
        f.write(b"\1")
    message = "stats.safetensors: source_sha256: expected [0-9a-f]{64}, of this checkpoint's shards, found .*another"
    with pytest.raises(InputError, match=message):
        convert(prepare(open_folder(other), tmp_path / "out.gguf", "gguf", "q4_0", stats=stats))
    assert not (tmp_path / "out.gguf").exists()
    listed = open_folder(tiny.FIXTURE)
    listed = replace(listed, shards=(replace(shard, sha256="0" * 64),))
    with pytest.raises(InputError, match=message):
        prepare(listed, tmp_path / "out.gguf", "gguf", "q4_0", stats=stats)


def test_inspect_shows_them(tmp_path: Path) -> None:
    found = {"blk.0.ffn_up_exps.weight": Sums(np.ones(24), np.array([3, 0, 9]))}
    shown = run_cli("inspect", str(stats_files.write(tmp_path / "s.safetensors", found)), "--tensors", "--json")
    data = json.loads(shown.stdout)
    assert data["source"] == "made up" and (data["matrices"], data["never seen"]) == (3, 1)
    assert data["tensors"] == [{"name": "blk.0.ffn_up_exps.weight", "shape": [3, 8], "type": "f32", "bytes": 96}]
    shown = run_cli("inspect", str(stats_files.write(tmp_path / "s.gguf", found)), "--json")
    as_imatrix = json.loads(shown.stdout)
    assert as_imatrix["general.type"] == "imatrix" and as_imatrix["sampan.source"] == "made up"
    assert (as_imatrix["matrices"], as_imatrix["never seen"]) == (3, 1)
    raw = (tmp_path / "s.gguf").read_bytes()
    (tmp_path / "s.gguf").write_bytes(raw[:-40])
    assert "found a file of" in run_cli("inspect", str(tmp_path / "s.gguf")).stderr


@pytest.mark.slow
def test_they_lessen_the_drift(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """The whole way on the trained fixture: our own text, int4 with and without, no domain worse."""
    stats = tmp_path / "stats.safetensors"
    calibrate(str(gguf("trained", "f32")), stats, Silent)
    out = tmp_path / "with.gguf"
    convert(prepare(open_folder(tiny.FIXTURE), out, "gguf", "int4", stats=stats))
    candidates = [gguf("trained", "q4_k_m"), out]
    report = validate(str(tiny.FIXTURE), candidates, replace(ONE, windows=8, stats=stats), Silent)
    without, with_ = ({k: d["kld"]["value"] for k, d in c["drift"]["total"].items()} for c in report["candidates"])
    ratios = {domain: with_[domain] / without[domain] for domain in without}
    assert max(ratios.values()) < 1.05 and ratios["mean"] < 0.9, ratios
    assert all(c["checks"][0]["findings"] == () for c in report["candidates"])
