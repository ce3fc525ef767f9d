"""Token counts: the bound holds for any text, the count is tiktoken's own, long texts cost bounded time."""

import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiktoken
import tiktoken_ext.openai_public
from hypothesis import given
from hypothesis import strategies as st

from gateway import tokens
from scripts import plant_tokenizer

MODELS = ("gpt-4o", "gpt-4")  # o200k_base, cl100k_base
SPECIAL = ("<|endoftext|>", "<|endofprompt|>", "<|im_start|>", "<|fim_prefix|>")

# Lone surrogates included: JSON can write them.
characters = st.characters(exclude_categories=()) | st.sampled_from(
    "的一是在不了가나다กขไ🇩🇪👩‍👧\u200d\u0301\x00\x1b\x7f\n\t"
)
texts = st.lists(st.text(characters, max_size=60) | st.sampled_from(SPECIAL), max_size=6).map("".join)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url, "detail": "low"}}, texts),
    st.builds(lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}, texts),
    st.builds(lambda data, name: {"type": "file", "file": {"file_data": data, "filename": name}}, texts, texts),
    values,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={"content": texts | st.lists(parts, max_size=3) | values, "name": texts, "tool_calls": values},
)
bodies = st.fixed_dictionaries(
    {"messages": st.lists(messages | values, max_size=4)},
    optional={"tools": values, "response_format": values, "documents": values, "temperature": st.floats(0, 2)},
)


@given(text=texts, model=st.sampled_from(MODELS))
def test_a_text_never_has_more_tokens_than_bytes(text, model):
    assert tokens.count(text, model) <= len(text.encode(errors="surrogatepass"))


@given(body=bodies, model=st.sampled_from([*MODELS, "gpt-4o-mini", "claude-opus-4-7", "openai/gpt-5-nano"]))
def test_the_bound_is_never_below_the_count(body, model):
    assert tokens.count_prompt(body, model) <= tokens.bound_prompt(body, model)


@given(text=texts, model=st.sampled_from(MODELS))
def test_the_count_is_tiktokens_own(text, model):
    official = tiktoken.get_encoding(tokens.encoding_name(model))
    assert tokens.count(text, model) == len(official.encode(text, disallowed_special=()))


@pytest.mark.parametrize("special", SPECIAL)
def test_special_tokens_in_a_text_are_characters(special):
    assert tokens.count(special, "gpt-4o") > 1


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-2024-08-06", "o200k_base"),
        ("gpt-5.1", "o200k_base"),
        ("o3", "o200k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("openai/gpt-4", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("gpt-oss-120b", "o200k_harmony"),
        ("claude-sonnet-4-5", "o200k_base"),
        ("org/team/llama3:8b", "o200k_base"),
        ("davinci", "o200k_base"),  # its ranks are not planted
        ("", "o200k_base"),
    ],
)
def test_encodings_follow_tiktokens_table(model, encoding):
    assert tokens.encoding_name(model) == encoding
    assert tokens.count("two words", model) == 2


def test_a_conversation_counts_as_the_cookbook_says():
    """The example of OpenAI's cookbook, "How to count tokens with tiktoken": 129 for gpt-3.5-turbo and gpt-4, 124 for
    gpt-4o, as the API itself answered."""
    jargon = [
        ("example_user", "New synergies will help drive top-line growth."),
        ("example_assistant", "Things working well together will increase revenue."),
        (
            "example_user",
            "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
        ),
        ("example_assistant", "Let's talk later when we're less busy about how to do better."),
    ]
    task = "You are a helpful, pattern-following assistant that translates corporate jargon into plain English."
    question = "This late pivot means we don't have time to boil the ocean for the client deliverable."
    conversation = [
        {"role": "system", "content": task},
        *({"role": "system", "name": name, "content": content} for name, content in jargon),
        {"role": "user", "content": question},
    ]
    assert tokens.count_prompt({"messages": conversation}, "gpt-4") == 129
    assert tokens.count_prompt({"messages": conversation}, "gpt-4o") == 124


def user(*content: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": list(content)}]}


EMPTY = tokens.bound_prompt(user())


def test_framing_of_an_empty_request():
    assert tokens.bound_prompt({"messages": []}) == 3
    assert len("user") + 3 + 3 == EMPTY


@pytest.mark.parametrize(
    ("model", "detail", "expected"),
    [
        ("gpt-4o", "low", 85),
        ("gpt-4o", "high", 1_445),
        ("gpt-4o", None, 1_445),
        ("gpt-4o", "original", 12_000),
        ("openai/gpt-4o-mini", "low", 2_833),
        ("gpt-4o-mini-2024-07-18", "auto", 48_169),
        ("anthropic/claude-opus-4-7", "low", 4_784),
    ],
)
def test_images_count_by_model_and_detail_not_by_bytes(model, detail, expected):
    image = {"url": "data:image/png;base64," + "A" * 1_000_000} | ({"detail": detail} if detail else {})
    body = user({"type": "image_url", "image_url": image})
    assert tokens.bound_prompt(body, model) - EMPTY == expected
    assert tokens.count_prompt(body, model) == tokens.count_prompt(user(), model) + expected


def test_an_image_given_as_a_bare_url_counts_as_an_image():
    assert tokens.bound_prompt(user({"type": "image_url", "image_url": "https://example.com/a.png"})) - EMPTY == 1_445


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        # 40 kB of MP3 at 8 kbit/s are 40 s, 400 tokens of 100 ms
        ({"type": "input_audio", "input_audio": {"data": "A" * 53_336, "format": "mp3"}}, 401),
        ({"type": "file", "file": {"file_data": "A" * 4_000}}, 3_000),
        (
            {"type": "file", "file": {"file_data": "A" * 4_000, "filename": "a.PDF"}},
            750 + 1_445 + len('{"filename":"a.PDF"}'),
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, 20_000),
        ({"type": "text", "text": "é"}, 2),
        ("a bare string", 13),
        ({"type": "later", "later": "text"}, len('{"type":"later","later":"text"}')),
    ],
)
def test_other_content_parts(part, expected):
    assert tokens.bound_prompt(user(part)) - EMPTY == expected


def test_whatever_may_reach_the_model_counts():
    """A field that we do not know goes upstream: it must not be a way around a budget."""
    plain = user()
    for extra in ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {"documents": ["text"]}):
        assert tokens.bound_prompt(plain | extra) - EMPTY == len(
            json.dumps(next(iter(extra.values())), separators=(",", ":"))
        )
    reasoning = {"messages": [{"role": "user", "content": [], "reasoning_content": "hm"}]}
    assert tokens.bound_prompt(reasoning) - EMPTY == 2
    settings = {"model": "gpt-4o", "user": "u", "metadata": {"k": "v"}, "temperature": 1, "stream": True, "stop": ["x"]}
    assert tokens.bound_prompt(plain | settings) == EMPTY


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("unit", ["a", " ", "\t ", "\n", "\u3000", "中", "🙂", "^", "aA", "7", "/", "e\u0301"])
def test_long_runs_of_one_kind_cost_bounded_time(model, unit):
    """tiktoken's pattern panics on a million spaces, and old versions were quadratic in "aaa…"."""
    text = unit * 200_000
    tokens.count("", model)
    started = time.process_time()
    counted = tokens.count(text, model)
    assert time.process_time() - started < 0.8
    assert (
        len(tiktoken.get_encoding(tokens.encoding_name(model)).encode_ordinary(text)) <= counted <= len(text.encode())
    )


@pytest.mark.parametrize("unit", [" ", "\t "])
def test_a_million_spaces_are_counted(unit):
    text = (unit * 1_000_000)[:1_000_000]
    assert 0 < tokens.count(text, "gpt-4o") < 600_000


def test_a_panic_of_the_tokenizer_counts_bytes(monkeypatch):
    class PanicException(BaseException):  # pyo3's, which cannot be imported, is no Exception either
        pass

    class Panics:
        def encode_ordinary(self, text):
            raise PanicException

    monkeypatch.setitem(tokens._encodings, "o200k_base", Panics())
    assert tokens.count("né", "gpt-4o") == 3


prose = st.lists(
    st.sampled_from(
        ["word", "Don't", "it's", "naïve", "3.14", "x1", "(foo)", "foo_bar", "日本語", "テスト", "한국어", "é\u0301"]
    ),
    min_size=30,
    max_size=200,
)


@given(
    words=prose, separator=st.sampled_from([" ", "\n", "\n\n", ", ", "。", "\t", "  "]), model=st.sampled_from(MODELS)
)
def test_a_text_cut_at_its_borders_has_the_tokens_of_the_whole(words, separator, model):
    text = separator.join(words)
    encoding = tiktoken.get_encoding(tokens.encoding_name(model))
    with pytest.MonkeyPatch.context() as small:
        small.setattr(tokens, "_PIECE", 40)
        small.setattr(tokens, "_WINDOW", 40)
        pieces = list(tokens._pieces(text))
    assert "".join(piece for piece, _ in pieces) == text
    counted = sum(len(encoding.encode_ordinary(piece)) + seam for piece, seam in pieces)
    whole = len(encoding.encode_ordinary(text))
    assert counted >= whole
    if not any(seam for _, seam in pieces):
        assert counted == whole


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("alphabet", ["ab", "abcdefghij", " \t", "!-=/.#", "\n\r ", "가나다라", "กขคงะเา", "的一是在"])
def test_a_text_cut_without_borders_is_never_undercounted(model, alphabet):
    encoding = tiktoken.get_encoding(tokens.encoding_name(model))
    rng = random.Random(alphabet)
    for _ in range(300):
        unit = "".join(rng.choices(alphabet, k=rng.choice([1, 2, 3, 5, 120])))
        text = (unit * 120)[:120]
        cut = rng.randrange(1, 120)
        halves = len(encoding.encode_ordinary(text[:cut])) + len(encoding.encode_ordinary(text[cut:]))
        assert halves + tokens._SEAM >= len(encoding.encode_ordinary(text))


def test_the_bound_costs_microseconds():
    body = {"model": "gpt-4o", "messages": [{"role": r, "content": "some text " * 25} for r in ("system", "user") * 2]}
    started = time.process_time()
    for _ in range(2_000):
        tokens.bound_prompt(body)
    assert (time.process_time() - started) / 2_000 < 50e-6  # 5 on a quiet core


def test_first_counts_of_many_threads_load_the_encoding_once(monkeypatch):
    monkeypatch.setattr(tokens, "_encodings", {})
    loads = []
    load = tokens._load

    def counted_load(name):
        loads.append(name)
        return load(name)

    monkeypatch.setattr(tokens, "_load", counted_load)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: tokens.count("two words", "gpt-4o"), range(8))) == {2}
    assert loads == ["o200k_base"]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_missing_ranks_say_what_to_do_and_nothing_is_fetched(monkeypatch, tmp_path, damage):
    path = tmp_path / tokens.RANKS["o200k_base"][0]
    if damage == "damaged":
        path.write_bytes(b"IQ== 0\n")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tokens, "_encodings", {})
    monkeypatch.setattr("tiktoken.load.read_file", lambda blobpath: pytest.fail(f"fetched {blobpath}"))
    with pytest.raises(tokens.RanksMissing, match="make install"):
        tokens.count("a", "gpt-4o")
    assert path.exists() == (damage == "damaged")


def test_names_and_hashes_of_the_ranks_are_tiktokens_own(monkeypatch):
    assert tokens.RANKS == plant_tokenizer.RANKS
    asked = {}

    class Asked(Exception):
        pass

    def ask(url, expected_hash):
        asked[url] = expected_hash
        raise Asked

    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", ask)
    for encoding, pinned in tokens.RANKS.items():
        with pytest.raises(Asked):
            getattr(tiktoken_ext.openai_public, encoding)()
        url, sha256 = asked.popitem()
        assert (hashlib.sha1(url.encode()).hexdigest(), sha256) == pinned


def test_importing_the_module_loads_neither_tiktoken_nor_django():
    code = "import sys, gateway.tokens; print({'tiktoken', 'django', 'requests'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ)
    assert shown.stdout.strip() == "set()"
    assert importlib.import_module("gateway.tokens") is tokens
