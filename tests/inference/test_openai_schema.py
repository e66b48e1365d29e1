"""Parsing requests to the OpenAI-compatible chat API, and the errors for invalid ones."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from inference.chat_format.template import parts
from inference.engines.cpu.openai_schema import ApiError, ChatRequest, parse
from inference.internvl2.families import INTERNVL2
from inference.messages import Picture, Role, Sampling, Turn

CAT, DOG = Picture.of(b"cat", "image/png"), Picture.of(b"dog", "image/jpeg")


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(picture: Picture, **more: object) -> dict[str, Any]:
    url = f"data:{picture.media_type};base64,{b64encode(picture.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, **more}}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def read(*messages: Any, **fields: Any) -> ChatRequest:
    return parse(json.dumps({"messages": list(messages), **fields}).encode(), "tiny", INTERNVL2.system)


def test_a_minimal_request_has_openai_s_defaults_and_the_official_system_text() -> None:
    """A minimal request gets the official system text and OpenAI's defaults.

    Temperature and top_p are 1, there is no seed, and streaming is off.
    """
    request = read({"role": "user", "content": "Hi"})
    assert request.prompt.system == INTERNVL2.system
    assert request.prompt.turns == (Turn(Role.USER, "Hi"),)
    sampling = request.prompt.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (1, 1, 0, None)
    assert (request.stream, request.include_usage, request.tiles) == (False, False, ())


def test_every_parameter_is_read() -> None:
    """Every parameter of a request is read, and a null field counts as missing."""
    request = read(
        {"role": "system", "content": "Be kind."},
        user(image(CAT, max_dynamic_patch=6), text("What?")),
        {"role": "assistant", "content": "A cat."},
        user(text("Sure?")),
        model="tiny",
        temperature=0,
        top_p=0.5,
        top_k=8,
        seed=-3,
        max_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
        user="chat 1",
        tools=None,
    )
    assert request.prompt.system == "Be kind."
    assert request.prompt.chat == "chat 1"
    assert request.prompt.turns == (
        Turn(Role.USER, "What?", (CAT,)),
        Turn(Role.ASSISTANT, "A cat."),
        Turn(Role.USER, "Sure?"),
    )
    sampling = request.prompt.sampling
    assert sampling == Sampling(temperature=0, top_p=0.5, max_new_tokens=7, seed=-3, top_k=8)
    assert request.tiles == (6,)
    assert request.stream and request.include_usage


@pytest.mark.parametrize("turn", [Turn(Role.USER, "Which?", (CAT, DOG)), Turn(Role.USER, "Which?", (CAT,))])
def test_parts_of_the_product_s_client_parse_to_the_same_turn(turn: Turn) -> None:
    """A turn sent by thumbtune's client parses to an equal turn, without picture labels in the question."""
    content = [text(part) if isinstance(part, str) else image(part) for part in parts(turn)]
    assert read(user(*content)).prompt.turns == (turn,)


def test_pictures_move_before_the_text() -> None:
    """Pictures at any position in a request are moved in front of the text, as in training."""
    request = read(user(text("Look: "), image(CAT), text("and "), image(DOG), text("?")))
    assert request.prompt.turns == (Turn(Role.USER, "Look: and ?", (CAT, DOG)),)


def test_an_unpaired_surrogate_is_replaced() -> None:
    """Unpaired surrogates, which JSON allows but no tokenizer accepts, are replaced with U+FFFD."""
    body = rb'{"messages": [{"role": "user", "content": "a\ud83cb \ud83d\ude00"}]}'
    assert parse(body, "tiny", "").prompt.turns[0].text == "a\ufffdb 😀"


QUESTION = {"role": "user", "content": "Hi"}
IMAGE_URL = "messages[0].content[0].image_url.image_url"


@pytest.mark.parametrize(
    ("messages", "fields", "fragment", "param"),
    [
        ([], {}, "at least 1 item", "messages"),
        (["Hi"], {}, "should be a valid dictionary", "messages[0]"),
        ([QUESTION, {"role": "assistant", "content": "Hello"}], {}, "must be the user's", "messages"),
        ([{"role": "system", "content": "Be kind."}], {}, "must be the user's", "messages"),
        ([QUESTION, {"role": "system", "content": "x"}, QUESTION], {}, "must be the first", "messages[1]"),
        ([{"role": "tool", "content": "x"}], {}, "not 'tool'", "messages[0].role"),
        ([{"role": "user", "content": 5}], {}, "should be a valid list, not 5", "messages[0].content"),
        ([user({"type": "input_audio"})], {}, "'text', 'image_url'", "messages[0].content[0]"),
        ([user("Hi")], {}, "should be a valid dictionary", "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": {}})], {}, "Field required", f"{IMAGE_URL}.url"),
        (
            [user({"type": "image_url", "image_url": {"url": "http://example.org/cat.jpg"}})],
            {},
            "nothing is fetched",
            f"{IMAGE_URL}.url",
        ),
        (
            [user({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}})],
            {},
            "base64",
            f"{IMAGE_URL}.url",
        ),
        ([user(image(CAT, max_dynamic_patch=0))], {}, "or equal to 1, not 0", f"{IMAGE_URL}.max_dynamic_patch"),
        ([{"role": "assistant", "content": [image(CAT)]}, QUESTION], {}, "Only a user's", "messages[0]"),
        ([QUESTION], {"temperature": 3}, "or equal to 2, not 3", "temperature"),
        ([QUESTION], {"temperature": "hot"}, "a valid number, not 'hot'", "temperature"),
        ([QUESTION], {"temperature": float("nan")}, "not nan", "temperature"),
        ([QUESTION], {"temperature": True}, "not True", "temperature"),
        ([QUESTION], {"top_p": 1.1}, "or equal to 1, not 1.1", "top_p"),
        ([QUESTION], {"top_k": -1}, "or equal to 0, not -1", "top_k"),
        ([QUESTION], {"top_k": 1.5}, "a valid integer", "top_k"),
        ([QUESTION], {"max_tokens": 0}, "or equal to 1, not 0", "max_tokens"),
        ([QUESTION], {"max_tokens": 2.5}, "a valid integer", "max_tokens"),
        ([QUESTION], {"seed": 2**64}, "less than", "seed"),
        ([QUESTION], {"stop": "x"}, "not permitted", "stop"),
        ([QUESTION], {"stream": "yes"}, "a valid boolean, not 'yes'", "stream"),
        ([QUESTION], {"stream_options": True}, "not True", "stream_options"),
        ([QUESTION], {"n": 2}, "not permitted", "n"),
        ([QUESTION], {"tools": [{"type": "function"}]}, "not permitted", "tools"),
        ([QUESTION], {"logprobs": True}, "not permitted", "logprobs"),
        ([QUESTION], {"response_format": {"type": "json_object"}}, "not permitted", "response_format"),
    ],
)
def test_bad_requests_are_refused_with_the_field(
    messages: list[Any], fields: dict[str, Any], fragment: str, param: str
) -> None:
    """The error for an invalid request describes the mistake and names the field."""
    with pytest.raises(ApiError) as raised:
        read(*messages, **fields)
    error = raised.value.body()["error"]
    assert raised.value.status == 400
    assert fragment in error["message"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"null"])
def test_a_body_other_than_a_json_object_is_refused(body: bytes) -> None:
    """A body that is not a JSON object is refused, even one nested deeper than Python's recursion limit."""
    with pytest.raises(ApiError, match="JSON"):
        parse(body, "tiny", "")


def test_another_model_is_not_found() -> None:
    """The error for an unknown model has OpenAI's status and code, and its message names the served model."""
    with pytest.raises(ApiError, match="serves 'tiny'") as raised:
        read(QUESTION, model="gpt-4o")
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")
