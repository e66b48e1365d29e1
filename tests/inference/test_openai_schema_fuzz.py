"""Every body of a chat API request is either parsed or refused with an error message."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from inference.engines.cpu.openai_schema import ApiError, parse
from tests.support.generating import picture

FIELDS = (
    *("model", "messages", "user", "stop", "stream", "stream_options", "seed", "n", "tools"),
    *("temperature", "top_p", "top_k", "max_tokens"),
)
PICTURE = f"data:image/jpeg;base64,{b64encode(picture(1).data).decode()}"

numbers = st.one_of(st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.booleans())
texts = st.one_of(
    st.text(st.characters(codec=None)),
    st.sampled_from(
        ("user", "assistant", "system", "text", "image_url", "tiny", "Image-1: ", "<IMG_CONTEXT>", PICTURE)
    ),
    st.sampled_from(("data:;base64,", "data:image/png;base64,@", "data:image/png;base64,AAA", "file:///etc/passwd")),
)
anything = st.recursive(
    st.one_of(st.none(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=20,
)
parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
    st.fixed_dictionaries(
        {"type": st.just("image_url")},
        optional={
            "image_url": st.one_of(
                texts, st.fixed_dictionaries({}, optional={"url": texts, "max_dynamic_patch": numbers})
            )
        },
    ),
    anything,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(("user", "assistant", "system", "developer", "tool"))},
    optional={"content": st.one_of(texts, st.lists(parts, max_size=4), anything)},
)
requests = st.fixed_dictionaries(
    {"messages": st.one_of(st.lists(st.one_of(messages, anything), max_size=4), anything)},
    optional={name: anything for name in FIELDS if name != "messages"},
)


def served_or_refused(body: bytes) -> None:
    try:
        parse(body, "tiny", "")
    except ApiError as error:
        assert 400 <= error.status < 500
        json.dumps(error.body()).encode()
        assert len(str(error)) < 2000


@given(st.binary())
@example(b"[" * 100_000)
@example(b'{"messages": [], "seed": ' + b"9" * 5000 + b"}")
def test_any_bytes_are_served_or_refused(body: bytes) -> None:
    """Any bytes are parsed or refused: invalid or unreadable JSON gives an HTTP 4xx error."""
    served_or_refused(body)


@given(st.one_of(anything, requests))
def test_any_json_is_served_or_refused(fields: Any) -> None:
    """Any JSON is parsed or refused, whatever the types, values and shapes, and even with unpaired surrogates."""
    served_or_refused(json.dumps(fields).encode())


@given(st.sampled_from(FIELDS), st.integers(1, 2000))
@example("user", 900)
@example("model", 900)
def test_any_depth_is_served_or_refused(name: str, depth: int) -> None:
    """Validation handles every nesting depth that the JSON parser accepts."""
    nested = b"[" * depth + b"]" * depth
    question = b'"messages": [{"role": "user", "content": "Hi"}]'
    served_or_refused(b'{%s, "%s": %s}' % (question, name.encode(), nested))
