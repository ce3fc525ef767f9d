"""What is asked of the servers; what a right answer to it is, replies.py reads."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

CHAT_PATH = "/v1/chat/completions"
MESSAGES_PATH = "/v1/messages"
OPENAI_MODEL = "gpt-4o-mini"
# Of these two upstream.c has the streams; which names they are asked for by is its own affair.
CLAUDE_MODEL = "claude-haiku-4-5"
OLLAMA_MODEL = "llama3.2"
# upstream.c's default, and the length of the stream in the bar.
CHUNKS = 30
# A finish chunk, a usage chunk and [DONE] follow the content.
EVENTS = CHUNKS + 3
# message_start and content_block_start before it, content_block_stop, message_delta and message_stop behind.
MESSAGES_EVENTS = CHUNKS + 5
# A translated stream's CPU, as a multiple of the untranslated one's.
MOST_OF_TRANSLATION = 1.5

MESSAGES = [
    {
        "role": "system",
        "content": "You are the assistant of a small accounting firm. Answer in one sentence and name your source.",
    },
    {
        "role": "user",
        "content": "Our office moved in March, and the landlord of the old place still holds the deposit. In which "
        "account do we keep it until it is paid back, and does the accrued interest belong to this year's income?",
    },
]


@dataclass(frozen=True)
class Scenario:
    """One request, sent over and over.

    `events` is 0 for a plain answer; `bar` is CPU as a multiple of the bare consumer's, or of the untranslated
    stream's; `weight` is how many chats it is worth, so that rounds last alike; `delay_us` is the upstream's pause
    between two chunks.
    """

    name: str
    title: str
    body: str
    events: int
    bar: float | None
    weight: float
    delay_us: int = 0
    path: str = CHAT_PATH

    @property
    def saturates(self) -> bool:
        """Whether its closed loop keeps a server busy, so that a throughput can be read from it."""
        return self.delay_us == 0

    @property
    def of_anthropic(self) -> bool:
        """Whether it is asked in Anthropic's dialect; else in OpenAI's."""
        return self.path == MESSAGES_PATH

    @property
    def ending(self) -> str | None:
        """What an answer must hold to have come to its end; a plain one says its length."""
        if not self.events:
            return None
        return "event: message_stop" if self.of_anthropic else "data: [DONE]"


def chat_body(model: str, **extra: object) -> str:
    """A chat request of about half a kilobyte."""
    request = {"model": model, "messages": MESSAGES, "max_tokens": 64, "temperature": 0.2, **extra}
    return msgspec.json.encode(request).decode()


def messages_body(model: str, **extra: object) -> str:
    """The same in Anthropic's dialect."""
    system, *messages = MESSAGES
    limits = {"max_tokens": 64, "temperature": 0.2}
    request = {"model": model, "system": system["content"], "messages": messages, **limits, **extra}
    return msgspec.json.encode(request).decode()


# Usage is asked for, so that the gateway and the bare servers get and forward the same bytes.
STREAM_BODY = chat_body(OPENAI_MODEL, stream=True, stream_options={"include_usage": True})

CHAT = Scenario("chat", "chat", chat_body(OPENAI_MODEL), 0, 1.6, weight=1)
STREAM = Scenario("stream", f"{CHUNKS}-chunk stream", STREAM_BODY, EVENTS, 2.0, weight=2)
# No bar, for judgement only: events that arrive one by one cannot be parsed and sent together, as those of real models
# arrive. 20 ms is a model that writes 50 tokens a second.
SPACED = Scenario(
    "spaced", f"{CHUNKS}-chunk stream, 20 ms apart", STREAM_BODY, EVENTS, None, weight=12, delay_us=20_000
)

# Of AILB alone, whose doors and providers need not speak the same dialect; no bare server translates. What comes from
# the provider is to the word what STREAM gets. The multiple is of the first, taken in the same rounds.
UNTRANSLATED = Scenario("openai-openai", "OpenAI door, OpenAI provider", STREAM_BODY, EVENTS, None, weight=2)
TRANSLATED = (
    Scenario(
        "openai-anthropic",
        "OpenAI door, Anthropic provider",
        chat_body(CLAUDE_MODEL, stream=True, stream_options={"include_usage": True}),
        EVENTS,
        MOST_OF_TRANSLATION,
        weight=2,
    ),
    Scenario(
        "openai-ollama",
        "OpenAI door, Ollama provider",
        chat_body(OLLAMA_MODEL, stream=True, stream_options={"include_usage": True}),
        EVENTS,
        MOST_OF_TRANSLATION,
        weight=2,
    ),
    Scenario(
        "anthropic-openai",
        "Anthropic door, OpenAI provider",
        messages_body(OPENAI_MODEL, stream=True),
        MESSAGES_EVENTS,
        MOST_OF_TRANSLATION,
        weight=2,
        path=MESSAGES_PATH,
    ),
    Scenario(
        "anthropic-anthropic",
        "Anthropic door, Anthropic provider",
        messages_body(CLAUDE_MODEL, stream=True),
        MESSAGES_EVENTS,
        None,
        weight=2,
        path=MESSAGES_PATH,
    ),
)
