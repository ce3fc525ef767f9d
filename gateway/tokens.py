"""How many tokens a text or a chat request is, counted with OpenAI's own tiktoken and without a network.

Two answers to "how long is this prompt?": `bound_prompt` is never too low and costs microseconds; `count_prompt`
is close and costs 0.1 to 0.2 ms a kB. The hold takes the bound and asks for the count only near a limit.

`make install` plants tiktoken's rank files in `<environment>/share/ailb/tiktoken` (scripts/plant_tokenizer.py), and
nothing is downloaded here: a missing or damaged file is `RanksMissing`. Importing this module is cheap; tiktoken
(25 ms) and an encoding (0.1 to 0.3 s, 30 to 80 MB) are loaded once a process, by the first count or by `preload`.

Counting releases the GIL. Do texts beyond some 50 kB on a thread: 20 MB of one letter take 3 s.
"""

import hashlib
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from tiktoken import Encoding

DEFAULT_ENCODING: Final = "o200k_base"
"""For every model that tiktoken does not know: the encoding of OpenAI's current ones."""

RANKS: Final[Mapping[str, tuple[str, str]]] = {
    # encoding: (name in tiktoken's cache, the SHA-1 of the URL; SHA-256 that tiktoken_ext.openai_public pins)
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}

# Framing, from OpenAI's cookbook ("How to count tokens with tiktoken", num_tokens_from_messages).
_PER_MESSAGE: Final = 3
_PER_NAME: Final = 1
_REPLY_PRIMING: Final = 3

# An image, in tokens: (start of the model's name, at detail "low", at any other). Its size in pixels is not looked at,
# so each is the most an image can be at that model: OpenAI scales to a short side of 768 and a long one of 2 048, which
# is at most 8 tiles of 512 (85 + 8 * 170; its documentation's 2 048 x 4 096 example has 6 tiles, 1 105), or caps at
# 1 536 or 2 500 patches times a factor, where "low" changes nothing.
# Sources: platform.openai.com/docs/guides/images-vision#calculating-costs, platform.claude.com/docs/en/vision.
_IMAGE: Final = (
    ("gpt-4o-mini", 2_833, 48_169),  # 2 833 + 8 * 5 667: a cheap model's many tokens
    ("gpt-4.1-mini", 2_489, 2_489),  # 1 536 * 1.62
    ("gpt-4.1-nano", 3_779, 3_779),  # 1 536 * 2.46
    ("o4-mini", 2_642, 2_642),  # 1 536 * 1.72
    ("gpt-5", 3_779, 3_779),  # gpt-5-nano as documented, 1 536 * 2.46; later ones 2 500 * 1.2
    ("claude", 4_784, 4_784),  # 2 576 pixels on the long side, Opus 4.7 and later; earlier ones 1 600
)
_IMAGE_ELSEWHERE: Final = (85, 1_445)
_IMAGE_ORIGINAL: Final = 12_000
"""Detail "original" (gpt-5.4 and later): at most 10 000 patches, 1.2 tokens each."""

_AUDIO_BYTES_PER_TOKEN: Final = 100
"""OpenAI counts a token for 100 ms of a user's audio; MP3 at its lowest rate, 8 kbit/s, is 100 bytes of that."""
_PDF_BYTES_PER_TOKEN: Final = 4
"""An estimate, no bound: a PDF is read as text and as page images; dense small ones come to 5 bytes a token."""
_FILE_BY_REFERENCE: Final = 20_000
"""A file of which only an id or URL is here: ten pages, each an image (1 105) and 900 tokens of text. An estimate."""

# Parameters of the body that are no part of the prompt. Whatever is not named here, and is text, counts: a field that
# we do not know passes to the upstream, where it may well be prompt (vLLM's `documents`, `chat_template`).
_NOT_PROMPT: Final = frozenset(
    {"messages", "model", "metadata", "user", "stop", "logit_bias", "modalities", "audio", "stream_options"}
    | {"prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "reasoning_effort"}
    | {"verbosity", "tool_choice", "function_call", "prediction", "stop_sequences", "thinking"}
)

_CLAUDE_TOOLS: Final = 530
"""What Anthropic adds to a prompt with tools, at most (platform.claude.com/docs/en/agents-and-tools/tool-use/overview,
"Pricing")."""
# Claude's tokenizers are not public. Measured against reconstructions of them (the project's trial of libraries), in
# tokens of o200k: English 1.06 and 1.43, code 1.15 and 1.48, Russian 1.73, Chinese 1.43.
_CLAUDE_OLD: Final = re.compile(r"claude-(2|3|instant|(sonnet|haiku)-4|opus-4(-[0-6]\b|-20|$))")
"""Up to 4.6; Opus 4.7 and later have another tokenizer."""
_CLAUDE_FACTORS: Final = (1.25, 1.5, 1.75)
"""Of old models, of new ones, and of text that is mostly not Latin."""

_PIECE: Final = 50_000
"""Characters given to tiktoken at once. A long text of one kind is counted faster in pieces (4 MB of "a": 0.5 s, whole
1.3 s), and o200k's pattern panics on a million spaces: a `PanicException`, which no `except Exception` catches."""
_WINDOW: Final = 5_000
"""Characters at a piece's end that are searched for a border."""
_SEAM: Final = 4
"""Tokens added where a text had to be cut without a border: byte-pair merging is greedy, so two halves can come out
shorter than the whole. Twice the worst seen in 144 000 random cuts (2)."""

# Where both encodings surely end a pre-token: a letter before an ASCII character that is neither letter nor apostrophe
# ("'s" belongs to the word), or before CJK punctuation. Cut there, a text has exactly the tokens of the whole.
_BORDER: Final = re.compile(
    r"[A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]"
    r"(?=[\0-&(-@\[-`{-\x7f\u3001\u3002\uff0c\uff01\uff1f])"
)

_encodings: dict[str, "Encoding"] = {}
_loading = Lock()


class RanksMissing(RuntimeError):
    """The planted rank file of an encoding is not there, or is not the one that tiktoken expects."""

    def __init__(self, encoding: str, path: Path) -> None:
        super().__init__(f"no valid tokenizer ranks for {encoding} at {path}: run `make install`")


@lru_cache(maxsize=1024)
def encoding_name(model: str) -> str:
    """The encoding of `model`, by tiktoken's official table; a `provider/` in front is ignored.

    Unknown models are `o200k_base`, and so are those of encodings that are not planted (GPT-2, davinci: retired).
    """
    from tiktoken.model import encoding_name_for_model

    for name in (model, model.rpartition("/")[2]):
        try:
            found = encoding_name_for_model(name)
        except KeyError:
            continue
        return found if _planted(found) in RANKS else DEFAULT_ENCODING
    return DEFAULT_ENCODING


def ready(model: str) -> bool:
    """Whether the encoding of `model` is loaded: if not, the next count takes 0.2 s and belongs on a thread."""
    return _planted(encoding_name(model)) in _encodings


def preload(model: str = "") -> None:
    """Load the encoding of `model` (0.1 to 0.3 s) before the first request needs it.

    Raises `RanksMissing`.
    """
    _encoding(_planted(encoding_name(model)))


def count(text: str, model: str) -> int:
    """Tokens of `text` as plain text: `<|endoftext|>` in it is characters, never the special token.

    Exact up to 50 000 characters, and beyond them wherever the text has borders between words to be cut at; a longer
    run without any (one letter, base64, spaces) is overcounted by a few tokens a piece, never undercounted.
    Raises `RanksMissing`.
    """
    encoding = _encoding(_planted(encoding_name(model)))
    if len(text) <= _PIECE:
        return _count_piece(encoding, text)
    counted = sum(_count_piece(encoding, piece) + seam for piece, seam in _pieces(text))
    return min(counted, _utf8_bytes(text))  # the seams may not lift the count above the bound


def count_prompt(body: Mapping[str, object], model: str) -> int:
    """Tokens of a chat request, OpenAI's or Anthropic's: its text counted, framing and media by constants.

    Close for text. Tools and response formats count as their JSON, and images as the most they can be, so both are
    estimates from above. Never more than `bound_prompt(body, model)`. Raises `RanksMissing`.
    """
    texts, fixed = _prompt(body, model)
    if not is_claude(model):
        return fixed + sum(count(text, model) for text in texts)
    counted = sum(count(text, model) for text in texts)
    return fixed + min(math.ceil(counted * _claude_factor(model, texts)), sum(map(_utf8_bytes, texts)))


@lru_cache(maxsize=1024)
def measure(model: str) -> tuple[object, ...]:
    """What of `model` decides how long a prompt is: models that agree in it count every prompt alike."""
    name = model.rpartition("/")[2]
    claude = (True, _CLAUDE_OLD.match(name) is not None) if is_claude(model) else (False, False)
    return encoding_name(model), claude, _image_of(name)


def is_claude(model: str) -> bool:
    return model.rpartition("/")[2].startswith("claude")


def _claude_factor(model: str, texts: list[str]) -> float:
    old, new, foreign = _CLAUDE_FACTORS
    if sum(map(_utf8_bytes, texts)) > 1.5 * sum(map(len, texts)):
        return foreign
    return old if _CLAUDE_OLD.match(model.rpartition("/")[2]) else new


def bound_prompt(body: Mapping[str, object], model: str = "") -> int:
    """The most tokens a chat request's prompt can be, OpenAI's or Anthropic's: the UTF-8 bytes of its text, framing,
    media by constants.

    Byte-level BPE never makes more tokens than there are bytes. Without `model`, images count as at most models;
    some are dearer (gpt-4o-mini, Claude), so give it where it is known. PDFs and files by id are estimates.
    """
    texts, fixed = _prompt(body, model)
    return fixed + sum(map(_utf8_bytes, texts))


def _prompt(body: Mapping[str, object], model: str) -> tuple[list[str], int]:
    """The texts of a prompt, and the tokens of everything in it that is not text."""
    texts: list[str] = []
    fixed = _REPLY_PRIMING
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in messages:
            fixed += _PER_MESSAGE + _message(message, model, texts)
    elif messages:
        _text(messages, texts)
    for name, value in body.items():
        if name == "system" and isinstance(value, list):  # Anthropic's
            fixed += sum(_part(part, model, texts) for part in value)
        elif name not in _NOT_PROMPT:
            _text(value, texts)
    if body.get("tools") and is_claude(model):
        fixed += _CLAUDE_TOOLS
    return texts, fixed


def _message(message: object, model: str, texts: list[str]) -> int:
    """Append the message's texts, its role and every field that we do not know included; returns its other tokens."""
    if not isinstance(message, dict):
        _text(message, texts)
        return 0
    fixed = 0
    for name, value in message.items():
        if name == "content" and isinstance(value, list):
            for part in value:
                fixed += _part(part, model, texts)
        else:
            _text(value, texts)
            fixed += _PER_NAME if name == "name" else 0
    return fixed


def _part(part: object, model: str, texts: list[str]) -> int:
    """Append a content part's text; returns its other tokens."""
    match part:
        case {"type": "text", "text": str(text)}:
            texts.append(text)
            return 0
        case {"type": "image_url", "image_url": {"detail": detail}}:
            return _image_tokens(detail, model)
        case {"type": "image_url"}:
            return _image_tokens("auto", model)
        case {"type": "input_audio", "input_audio": {"data": str(data)}}:
            return _decoded_bytes(data) // _AUDIO_BYTES_PER_TOKEN + 1
        case {"type": "file", "file": {"file_data": str(data), **rest}}:
            _text(rest, texts)
            size = _decoded_bytes(data)
            return size // _PDF_BYTES_PER_TOKEN + _IMAGE_ELSEWHERE[1] if _is_pdf(data, rest.get("filename")) else size
        case {"type": "file", "file": dict()}:
            return _FILE_BY_REFERENCE
        case {"source": dict(source), **rest}:  # Anthropic's images and documents
            return _source(source, rest, model, texts)
        case {"type": "tool_result", "content": list(parts), **rest}:
            _text(rest, texts)
            return sum(_part(each, model, texts) for each in parts)
        case {"type": "thinking", "thinking": str(text)}:
            texts.append(text)  # its signature is none
            return 0
        case _:
            _text(part, texts)
            return 0


def _source(source: Mapping[object, object], rest: Mapping[object, object], model: str, texts: list[str]) -> int:
    """Of an Anthropic block with a `source`: base64, a URL, a file's id, or text."""
    if rest.get("type") == "image":
        return _image_tokens("auto", model)
    _text({name: value for name, value in rest.items() if name != "cache_control"}, texts)
    match source:
        case {"type": "base64", "data": str(data)}:
            return _decoded_bytes(data) // _PDF_BYTES_PER_TOKEN + _IMAGE_ELSEWHERE[1]
        case {"type": "url" | "file"}:
            return _FILE_BY_REFERENCE
    _text(source, texts)
    return 0


def _image_tokens(detail: object, model: str) -> int:
    if detail == "original":
        return _IMAGE_ORIGINAL
    low, high = _image_of(model.rpartition("/")[2])
    return low if detail == "low" else high


def _image_of(name: str) -> tuple[int, int]:
    """An image at detail "low", and at any other."""
    return next(((low, high) for prefix, low, high in _IMAGE if name.startswith(prefix)), _IMAGE_ELSEWHERE)


def _decoded_bytes(base64: str) -> int:
    return len(base64) * 3 // 4


def _is_pdf(data: str, filename: object) -> bool:
    """`JVBERi` is the base64 of `%PDF-`."""
    return data.startswith(("data:application/pdf", "JVBERi")) or str(filename).lower().endswith(".pdf")


def _text(value: object, texts: list[str]) -> None:
    """Append a string as it is and a structure as its JSON; numbers, booleans and null are no prompt."""
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, dict | list) and value:
        texts.append(_json(value))


def _json(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON's \ud800 can write and UTF-8 cannot
        import json

        return json.dumps(value)


def _utf8_bytes(text: str) -> int:
    # isascii() reads a flag of the string; most prompts are spared the encoding.
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _planted(encoding: str) -> str:
    """The encoding whose ranks are read: gpt-oss's differs from o200k_base in special tokens only."""
    return "o200k_base" if encoding == "o200k_harmony" else encoding


def _encoding(name: str) -> "Encoding":
    try:
        return _encodings[name]
    except KeyError:
        with _loading:  # two first requests load it once
            if name not in _encodings:
                _encodings[name] = _load(name)
            return _encodings[name]


def _load(name: str) -> "Encoding":
    # An empty variable would switch tiktoken's cache off, and the network on.
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.path.join(sys.prefix, "share", "ailb", "tiktoken")
    file, sha256 = RANKS[name]
    path = Path(folder, file)
    # Looked at before tiktoken does: it would delete a damaged file and download another.
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise RanksMissing(name, path)
    os.environ["TIKTOKEN_CACHE_DIR"] = folder
    import tiktoken

    return tiktoken.get_encoding(name)


def _pieces(text: str) -> Iterator[tuple[str, int]]:
    """Cut `text` for counting: pieces, each with the tokens to add for the cut after it."""
    start = 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        # endpos is one beyond, so that the last border may be looked ahead of.
        borders = list(_BORDER.finditer(text, end - _WINDOW, end + 1))
        if borders:
            end = borders[-1].end()
        yield text[start:end], 0 if borders else _SEAM
        start = end
    yield text[start:], 0


def _count_piece(encoding: "Encoding", text: str) -> int:
    try:
        return len(encoding.encode_ordinary(text))
    except BaseException as error:
        # tiktoken's regex engine can give up on a text we did not foresee (openai/tiktoken#15); its panic is no
        # `Exception`, cannot be imported, and would end the event loop. The bound stands in for the count.
        if type(error).__name__ != "PanicException":
            raise
        return _utf8_bytes(text)
