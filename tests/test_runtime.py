"""The Session against tokenizers, plain llama.cpp loops and its own cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from sampan import runtime
from sampan.errors import ContextLengthError, InputError
from sampan.gguf import Kind, Value, encode, read_header
from sampan.runtime import Options, Sampling
from sampan.runtime.engines import _special

NASTY = (
    "", " ", "\n", "\r\n\r\n", "\t\t x", "   leading", "trailing   ", "a\n\n\n b", "don't I'LL we'Ve",
    "１２３ 123 ١٢٣ Ⅻ ½", "3.14159e-10", "日本語と中文混ぜmixed文字", "نص عربي", "हिन्दी टेक्स्ट", "ไทยไม่มีเว้นวรรค",
    "👩‍👩‍👧‍👦 🏴‍☠️ 😀", "e\u0301 é ﬁ Å", "\u200b\ufeff\u00a0x", "\0\x01\x7f", "<|im_start|>user<|im_end|>",
    "<|im_end", "<tool_call>{}</tool_call>", "<think>hm</think>", "ÀÉÎÕÜ ß ẞ ı İ", "a" * 300, "!!!???...———",
    "def f(x):\n\treturn x**2  # 平方", "한국어 조선말", "𝕌𝕟𝕚𝕔𝕠𝕕𝕖 𠮷野家", "\\n \\u0041 %s {}", "🇨🇳🇺🇸",
)  # fmt: skip


@pytest.fixture(scope="module")
def session(gguf: Callable[[str, str], Path]) -> runtime.Session:
    return runtime.open(gguf("trained", "q8_0"))


@pytest.mark.parametrize("text", NASTY)
def test_tokens_equal_the_checkpoints(text: str, session: runtime.Session) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny.FIXTURE / "tokenizer.json"))
    assert session.tokenize(text) == tokenizer.encode(text).ids


def test_a_long_text_of_special_tokens_is_cut_and_its_tokens_are_the_same(session: runtime.Session) -> None:
    """In one call llama.cpp's time grows with their number squared: 200,000 of them would take minutes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny.FIXTURE / "tokenizer.json"))
    for text in ("".join(f"<|im_start|>user\n{n}{NASTY[n % len(NASTY)]}<|im_end|>" for n in range(3000)),
                 "<|im_end|>" * 30_000, " <|im_end|> \n" * 5000, "x" * 40_000 + "<|im_end|>"):  # fmt: skip
        assert session.tokenize(text) == tokenizer.encode(text).ids


def test_no_cut_through_or_beside_what_llama_cpp_may_join() -> None:
    pad = "x" * _special.PART
    text = f"{pad}a<b>c{pad} <b>{pad}<c>{pad}<b>"
    assert _special.cut(text, ("<b>",)) == [f"{pad}a", f"<b>c{pad} <b>{pad}<c>{pad}", "<b>"]
    assert _special.cut(text, ("<b>", "a")) == _special.cut(text, ("<b>",))
    for other in ("a<", ">c", "<<b>"):
        assert _special.cut(text, ("<b>", other)) == [text]


def test_special_tokens_can_be_left_as_text(session: runtime.Session) -> None:
    assert len(session.tokenize("<|im_end|>")) == 1
    plain = session.tokenize("<|im_end|>", special=False)
    assert len(plain) > 1 and session.detokenize(plain) == "<|im_end|>"


def test_detokenize_gives_the_text_back(session: runtime.Session) -> None:
    text = "首都 is Paris 👩‍👩‍👧\n"
    assert session.detokenize(session.tokenize(text)) == text


def test_greedy_answers_equal_a_plain_llama_loop(gguf: Callable[[str, str], Path]) -> None:
    from llama_cpp import Llama

    path = gguf("trained", "f32")  # the peer cannot leave out kernels that crash, see engines/llama.py
    peer = Llama(str(path), n_ctx=256, verbose=False)
    with runtime.open(path) as session:
        for question in ("What is the capital of Peru?", "17 + 25 = ?", "讲一个狐狸的故事。"):
            prompt = session.render_chat([{"role": "user", "content": question}])
            ours = session.generate(prompt, Options(max_tokens=60, sampling=Sampling()))
            theirs = peer.create_completion(prompt, max_tokens=60, temperature=0)["choices"][0]["text"]
            assert ours == theirs and len(ours) > 5


def test_a_cached_prefix_changes_nothing(gguf: Callable[[str, str], Path]) -> None:
    with runtime.open(gguf("trained", "q8_0")) as warm:
        first = warm.tokenize("The capital of France is")
        warm.generate(first, Options(max_tokens=3, sampling=Sampling()))
        evaluated = []
        evaluate = warm._engine.evaluate

        def spy(tokens: list[int], wanted: int) -> np.ndarray:
            evaluated.append(len(tokens))
            return evaluate(tokens, wanted)

        warm._engine.evaluate = spy  # type: ignore[method-assign]
        longer = [*first, *warm.tokenize(" Paris. The capital of Peru is")]
        answer = warm.generate(longer, Options(max_tokens=8, sampling=Sampling()))
        assert evaluated[0] < len(longer), "the prefix was evaluated again"
    with runtime.open(gguf("trained", "q8_0")) as cold:
        assert cold.generate(longer, Options(max_tokens=8, sampling=Sampling())) == answer


@pytest.mark.slow
def test_slices_hold_the_logits_of_the_last_positions(gguf: Callable[[str, str], Path]) -> None:
    tokens = [*range(100, 800), *range(100, 400)]
    options = runtime.EngineOptions(kv="f32", flash_attention=False, context=1024)
    with runtime.open(gguf("trained", "f32"), options) as exact:
        whole = exact.logits(tokens)
        assert whole.shape == (1000, exact.vocab)
        np.testing.assert_allclose(exact.logits(tokens[:1]), whole[:1], atol=1e-4)
        for first in (1, 127, 999):
            sliced = list(exact.logit_slices(tokens, first=first))
            assert max(map(len, sliced)) <= 16
            np.testing.assert_allclose(np.concatenate(sliced), whole[first:], atol=1e-4)


def test_options_reach_the_engine(gguf: Callable[[str, str], Path]) -> None:
    tokens = list(range(100, 160))
    results = []
    for kv, flash in itertools.product(("f32", "f16"), (False, True)):
        options = runtime.EngineOptions(context=128, kv=kv, flash_attention=flash, threads=1)  # type: ignore[arg-type]
        with runtime.open(gguf("trained", "f32"), options) as s:
            assert s.context == 128
            results.append(s.logits(tokens))
    exact = results[0]
    assert all(0 < np.abs(r - exact).max() < 0.5 for r in results[1:]), "an option changed nothing"


def test_sampling_defaults_come_from_the_checkpoint(session: runtime.Session) -> None:
    assert session.sampling == Sampling(temperature=pytest.approx(0.2), top_k=20, top_p=pytest.approx(0.9))


def test_seeds(session: runtime.Session) -> None:
    hot = Sampling(temperature=1.5)
    prompt = session.tokenize_chat([{"role": "user", "content": "讲一个女孩的故事。"}])

    def answer(seed: int) -> str:
        return session.generate(prompt, Options(max_tokens=40, sampling=hot, seed=seed))

    assert answer(1) == answer(1)
    assert len({answer(s) for s in range(4)}) > 1


def test_generation_stops_at_the_context(gguf: Callable[[str, str], Path]) -> None:
    with runtime.open(gguf("trained", "q8_0"), runtime.EngineOptions(context=32)) as s:
        tokens = s.tokenize("A fox lived near the river. " * 9)[:28]
        assert len(list(s.stream(tokens, Options(max_tokens=100)))) <= 32 - len(tokens) == 4
        with pytest.raises(
            ContextLengthError, match="the prompt has 40 tokens, and the context 32; --context gives it up to 1024"
        ):
            s.logits(list(range(40)))


def test_bad_prompts(session: runtime.Session) -> None:
    with pytest.raises(InputError, match="prompt: expected at least one token, found none"):
        session.generate("")
    with pytest.raises(InputError, match="prompt: expected token ids from 0 to 2047, found 9999"):
        session.logits([1, 9999])


def test_a_model_without_template(model: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    from conftest import to_gguf

    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    tiny.edit_json(folder / "tokenizer_config.json", chat_template=None)
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    with (
        runtime.open(tmp_path / "m.gguf") as s,
        pytest.raises(InputError, match="the artifact has no chat template; use"),
    ):
        s.render_chat([{"role": "user", "content": "x"}])
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    to_gguf(folder, tmp_path / "n.gguf", "q8_0")
    with runtime.open(tmp_path / "n.gguf") as s:
        assert s.render_chat([{"role": "user", "content": "x"}]) == "x!"


@pytest.mark.parametrize("value", ["abc", float("nan")])
def test_a_key_of_another_kind(value: str | float, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Of those that the engine reads itself, since llama.cpp's graphs do not."""
    source, key = gguf("trained", "q8_0"), "qwen3.rope.scaling.yarn_beta_fast"
    header = read_header(source)
    kind = Kind.STRING if isinstance(value, str) else Kind.FLOAT32
    data = source.read_bytes()[header.data_start :]
    (bad := tmp_path / "bad.gguf").write_bytes(
        encode({**header.metadata, key: Value(kind, value)}, list(header.tensors)) + data
    )
    with pytest.raises(InputError, match=f"^{key}: expected a number, found {value}$"):
        runtime.open(bad)
