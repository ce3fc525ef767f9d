"""Ollama as a provider: what it is sent, what becomes of what it says, and which models it has."""

import json

import pytest

from gateway.errors import InvalidRequest, StreamCut, UnsupportedParameter, UpstreamError, UpstreamTimeout
from gateway.providers import vendor
from gateway.types import Usage
from tests.gateway.providers.contract import KEY, ProviderContract, asked, completed, configured, deployed, gathered
from tests.support.upstream import answers, bytes_of, drops, hangs, sends

AT = "2026-10-01T12:00:00.123456789Z"


def line(content="", done=False, **fields):
    """A line of Ollama's, as it writes it."""
    message = {"role": "assistant", "content": content, **fields.pop("message", {})}
    told = {"model": "llama3.2", "created_at": AT, "message": message, "done": done, **fields}
    if done:
        told = {"done_reason": "stop", "prompt_eval_count": 11, "eval_count": 4, **told}
    return json.dumps(told).encode() + b"\n"


def speaks(*words):
    """A well-behaved answer, a word a line where it is streamed."""

    async def script(call):
        if call.wants_stream:
            pieces = [line(word) for word in words]
            await sends(*pieces, line(done=True))(call)
        else:
            await call.whole(200, line("".join(words), done=True))

    return script


class TestOllama(ProviderContract):
    kind = "ollama"

    def prepare(self, upstream):
        upstream.always(speaks("Hello", " there", "."))

    async def test_it_is_asked_in_its_own_dialect(self, provider, deployment, upstream):
        await completed(provider, asked(max_tokens=5), deployment)
        body = upstream.only.body
        assert upstream.only.path.endswith("/api/chat")
        assert (body["model"], body["stream"], body["options"]) == ("gpt-upstream", False, {"num_predict": 5})
        assert body["messages"] == [{"role": "user", "content": "Say it."}]
        assert upstream.only.headers["authorization"] == f"Bearer {KEY}"

    async def test_a_context_window_that_is_known_is_asked_for(self, provider, upstream):
        await completed(provider, asked(), deployed(provider.config, context_window=8192))
        assert upstream.only.body["options"] == {"num_ctx": 8192}

    def test_what_is_left_out_is_named(self, provider, deployment):
        call = provider.prepare(asked(logit_bias={"1": 2}, user="alice"), deployment)
        assert call.dropped == ("logit_bias",)
        assert not call.native

    def test_what_it_cannot_do_is_refused_before_it_is_asked(self, provider, deployment, upstream):
        with pytest.raises(UnsupportedParameter):
            provider.prepare(asked(n=2), deployment)
        assert upstream.requests == []

    def test_no_door_speaks_its_dialect(self, provider, deployment):
        with pytest.raises(NotImplementedError):
            provider.own(asked(), deployment)


@pytest.fixture
async def provider(upstream):
    provider = vendor("ollama")(configured("ollama", upstream.url, first_byte_timeout=0.5, idle_timeout=0.3))
    yield provider
    await provider.close()


@pytest.fixture
def deployment(provider):
    return deployed(provider.config)


# ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_may_be_cut_at_any_byte(provider, deployment, upstream):
    whole = line("Žluť", message={"thinking": "🦊"}) + line("oučký") + line(done=True)
    for place in range(1, len(whole), 7):
        upstream.will(sends(whole[:place], whole[place:]))
        events = await gathered(provider, asked(True), deployment)
        assert "".join(event.text for event in events) == "🦊Žluťoučký"
        assert events[-1].usage == Usage(11, 4)


async def test_a_last_line_without_its_end_is_the_last_line(provider, deployment, upstream):
    upstream.will(sends(line("Hi"), line(done=True).rstrip()))
    events = await gathered(provider, asked(True), deployment)
    assert [event.finish_reason for event in events] == [None, "stop"]


@pytest.mark.parametrize("end", ["orderly", "cut"])
async def test_a_stream_that_ends_before_it_is_done_is_cut(provider, deployment, upstream, end):
    upstream.will(sends(line("Hi"), end=end))
    with pytest.raises(StreamCut):
        await gathered(provider, asked(True), deployment)


async def test_an_error_in_a_stream_is_told_without_the_credential(provider, deployment, upstream):
    error = json.dumps({"error": f"model runner stopped, key {KEY}"}).encode() + b"\n"
    upstream.will(sends(line("Hi"), error))
    with pytest.raises(UpstreamError, match="model runner stopped") as caught:
        await gathered(provider, asked(True), deployment)
    assert KEY not in caught.value.message


@pytest.mark.parametrize("nonsense", [b"<html>\n", b"[]\n", b'{"message": 1}\n', b"\xff\xfe\n"])
async def test_nonsense_is_a_cut_stream(provider, deployment, upstream, nonsense):
    upstream.will(sends(line("Hi"), nonsense))
    with pytest.raises(StreamCut):
        await gathered(provider, asked(True), deployment)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "the input length exceeds the context length"),
        (413, "the input length exceeds the context length"),
        (400, "input length (5000 tokens) exceeds the model's maximum context length (4096 tokens)"),
        (400, "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it"),
        (400, 'llama-server: {"error":{"type":"exceed_context_size_error"}}'),
    ],
)
async def test_a_prompt_that_is_too_long_has_the_code_that_clients_know(
    provider, deployment, upstream, stream, status, text
):
    upstream.will(answers({"error": text}, status))
    with pytest.raises(InvalidRequest) as caught:
        await (gathered if stream else completed)(provider, asked(stream), deployment)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_other_refusals_are_the_clients_with_ollamas_words(provider, deployment, upstream):
    upstream.will(answers({"error": '"llama3.2" does not support thinking'}, 400))
    with pytest.raises(InvalidRequest, match="does not support thinking") as caught:
        await completed(provider, asked(), deployment)
    assert caught.value.code is None


async def test_a_model_that_is_not_there_may_be_elsewhere(provider, deployment, upstream):
    upstream.will(answers({"error": 'model "gpt-upstream" not found'}, 404))
    with pytest.raises(UpstreamError, match="not found") as caught:
        await completed(provider, asked(), deployment)
    assert caught.value.upstream_status == 404


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"message": 1}', b'{"done": true}'])
async def test_an_answer_that_is_none_is_the_providers_fault(provider, deployment, upstream, body):
    upstream.will(answers(body))
    with pytest.raises(UpstreamError, match="was not one"):
        await completed(provider, asked(), deployment)


# ── its models ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("listed", "models"),
    [
        ({"models": []}, []),
        ({"models": None}, []),
        (
            {"models": [{"name": "llama3.2:latest", "model": "llama3.2:latest"}, {"name": "a"}]},
            ["llama3.2:latest", "a"],
        ),
        ({"models": [{"name": "nomic-embed-text:latest", "details": {"family": "nomic-bert"}}, {"model": "a"}]}, ["a"]),
        (
            {"models": [{"name": "e", "capabilities": ["embedding"]}, {"name": "c", "capabilities": ["completion"]}]},
            ["c"],
        ),
        ({"models": [{}, {"name": "a", "details": {"family": "llama"}}]}, ["a"]),
    ],
)
async def test_it_lists_the_models_that_chat(provider, upstream, listed, models):
    upstream.will(answers(listed))
    assert await provider.models() == models
    assert upstream.only.path.endswith("/api/tags")
    assert upstream.only.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (answers(b"<html>"), UpstreamError),
        (answers([]), UpstreamError),
        (answers({"error": "no"}, 500), UpstreamError),
        (answers({}, 302, location="http://127.0.0.1:1/"), UpstreamError),
        (drops(), UpstreamError),
        (bytes_of(b"not http\r\n\r\n"), UpstreamError),
        (bytes_of(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), UpstreamError),
        (hangs(), UpstreamTimeout),
    ],
)
async def test_a_server_that_does_not_say_is_an_upstream_error(provider, upstream, script, error):
    upstream.will(script)
    with pytest.raises(error):
        await provider.models()
