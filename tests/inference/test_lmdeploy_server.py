"""lmdeploy's real server with thumbtune's patches, over real HTTP; only TurboMind is replaced.

The replacement is in lmdeploy_on_cpu.py. Three servers start once for all tests: internvl2-tiny, a
random model with a SentencePiece tokenizer and, for comparison, internvl2-tiny without the patches.
"""

from __future__ import annotations

import json
import pickle
import shutil
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import torch
from pydantic import SecretStr

from benchmarks.random_checkpoint import Size, write_random
from inference.chat_format.template import pictures
from inference.chat_format.token_ids import token_ids
from inference.engines.cpu.engine import ChatEngine
from inference.engines.http_client import HttpEngine, Sizes
from inference.engines.lmdeploy.kv_budget import BLOCK_TOKENS
from inference.images.opening import open_picture
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import IMAGENET_STD
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.samples import sample_pictures
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Answer, Delta, Picture, PictureError, Prompt, PromptTooLong, Role, Sampling, Turn
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings
from tests.inference.test_internvl2_tokenizer import FOLDER
from tests.support.hostile import plant, planted, ran
from tests.support.lmdeploy_serving import HEADERS, KEY, Served, part, started
from tests.support.small_checkpoints import write_small
from tests.support.talks import ONE_TOKEN, PICTURES, picture, talks
from training.data.row_parser import parse_row
from training.xtuner.encoding import Encoder

SMALL = Size(64, 1, 1, 64, 64, 1, 1, 1, 64, image_size=56, max_tiles=5)
FEW_TILES = 3
FEW_BLOCKS = 24
"""KV blocks for fewer tokens than the model's positions, so the session is shorter."""
WORKER = ("-m", "tests.support.lmdeploy_on_cpu")
BLOCKS = ("--settings", '{"blocks": 200}')
STOCK = (
    "import sys, types; patches = types.SimpleNamespace(patch_lmdeploy=lambda **_: {}); "
    "sys.modules['inference.engines.lmdeploy.patches'] = patches; "
    "from tests.support.lmdeploy_on_cpu import main; main()"
)
REFUSING = "import sys; sys.argv.pop(1); from inference.engines.lmdeploy.server import main; main()"
"""The worker itself, without what replaces TurboMind, which it does not come to load."""
OTHER_VERSION = f"import importlib.metadata; importlib.metadata.version = lambda name: '0.99.0'; {REFUSING}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    folder = tmp_path_factory.mktemp("lmdeploy")
    small = folder / "small"
    # It never generates an end token, so each answer goes on to its limit.
    write_random(SMALL, small, tokenizer=load_tokenizer(FOLDER))
    generation = small / "generation_config.json"
    own = {"top_k": 3, "top_p": 0.1, "temperature": 0.2, "repetition_penalty": 1.5}
    generation.write_text(json.dumps(json.loads(generation.read_text()) | own))
    hostile = Path(shutil.copytree(CHECKPOINT, folder / "hostile"))
    for checkpoint in (small, hostile):
        plant(checkpoint)
    few_blocks = ("--settings", json.dumps({"blocks": FEW_BLOCKS}))
    with ExitStack() as stack:
        found = {
            "tiny": started(folder, "tiny", hostile, WORKER, *BLOCKS),
            "sentencepiece": started(folder, "sentencepiece", small, WORKER, "--tiles", str(FEW_TILES), *few_blocks),
            "stock": started(folder, "stock", CHECKPOINT, ("-c", STOCK), *BLOCKS),
        }
        serving = {name: stack.enter_context(context) for name, context in found.items()}
        for served in serving.values():
            served.until_ready()
        yield serving


def test_no_code_of_a_checkpoint_runs(servers: dict[str, Served]) -> None:
    """No configuration, tokenizer or model code from a checkpoint runs, with either kind of tokenizer."""
    for name in ("tiny", "sentencepiece"):
        assert planted(servers[name].model)
        assert not ran(servers[name].model), name


@pytest.fixture
def tiny(servers: dict[str, Served]) -> Served:
    return servers["tiny"]


async def deltas_of(engine: HttpEngine, prompt: Prompt) -> list[Delta]:
    async with aclosing(engine.answer(prompt)) as stream:
        return [delta async for delta in stream]


async def answer(engine: HttpEngine, prompt: Prompt) -> Answer:
    last = (await deltas_of(engine, prompt))[-1].answer
    assert last is not None
    return last


def question(text: str, *shown: Picture, sampling: Sampling = ONE_TOKEN) -> Prompt:
    return Prompt(INTERNVL2.system, (Turn(Role.USER, text, shown),), chat="chat", sampling=sampling)


@pytest.mark.parametrize(
    ("name", "side", "most", "tokens_per_tile"), [("tiny", 112, 4, 16), ("sentencepiece", 56, FEW_TILES, 4)]
)
async def test_turbomind_gets_the_token_ids_of_the_chat_format(
    servers: dict[str, Served], name: str, side: int, most: int, tokens_per_tile: int
) -> None:
    """TurboMind gets the chat format's token IDs and picture positions for every conversation and tokenizer."""
    served, tokenizer = servers[name], load_tokenizer(servers[name].model)
    async with served.client() as engine:
        for prompt in talks():
            sizes = [open_picture(each.data).size for each in pictures(prompt)]
            tiling = Tiling(side=side, tokens=tokens_per_tile, max_tiles=most)
            counts = [tiling.count_tokens(*size) for size in sizes]
            ids, spans = token_ids(prompt, counts, tokenizer, INTERNVL2)
            usage = (await answer(engine, prompt)).usage
            given = served.given()[-1]
            assert given["input_ids"] == ids, prompt.turns[-1].text
            assert given["positions"] == [[span.start, len(span)] for span in spans]
            assert usage.prompt_tokens == len(ids)


@pytest.mark.parametrize(("name", "tiles"), [("tiny", 0), ("sentencepiece", FEW_TILES)])
async def test_turbomind_gets_the_token_ids_of_the_training(servers: dict[str, Served], name: str, tiles: int) -> None:
    """For a LLaVA row with placeholders after its questions, TurboMind gets the same token IDs as in training.

    Serving and training both place the pictures before the questions.
    """
    row = {
        "system": "You are Pixel.",
        "image": ["1", "2", "3"],
        "conversations": [
            {"from": "human", "value": "这是什么？\n<image>"},
            {"from": "gpt", "value": "A cup."},
            {"from": "human", "value": "And these?\n<image>\n<image>"},
            {"from": "gpt", "value": "Two cups."},
        ],
    }
    lesson = parse_row(row, where="", system="")
    sizes = tuple(open_picture(PICTURES[int(file)].data).size for file in lesson.pictures)
    turns = [
        replace(turn, pictures=tuple(PICTURES[int(each.sha256)] for each in turn.pictures)) for turn in lesson.turns
    ]
    async with servers[name].client() as engine:
        await answer(engine, Prompt(lesson.system, tuple(turns[:-1]), chat="chat", sampling=ONE_TOKEN))
    trained = Encoder(servers[name].model, tiles=tiles).prompt_ids(replace(lesson, sizes=sizes))
    assert servers[name].given()[-1]["input_ids"] == trained


async def test_turbomind_gets_the_pixels_of_stock_lmdeploy(servers: dict[str, Served]) -> None:
    """TurboMind gets the same prompts as with unpatched lmdeploy, and the same pixels up to a grey level."""
    prompts = [prompt for prompt in talks() if prompt.turns[-1].text][-6:]
    for name in ("tiny", "stock"):
        async with servers[name].client() as engine:
            for prompt in prompts:
                await answer(engine, prompt)
    ours, stock = (servers[name].given()[-len(prompts) :] for name in ("tiny", "stock"))
    assert any(given["patches"] for given in stock)
    for key in ("input_ids", "positions", "shapes"):
        assert [given[key] for given in ours] == [given[key] for given in stock]
    for one, other in zip(ours, stock, strict=True):
        assert one["patches"] == pytest.approx(other["patches"], abs=1 / 255 / min(IMAGENET_STD))


def test_another_lmdeploy_is_refused_with_advice(tmp_path: Path) -> None:
    """The server exits instead of running without access control if the lmdeploy release is unsupported.

    That release is not patched, and the log says which one to install.
    """
    with started(tmp_path, "other", CHECKPOINT, ("-c", OTHER_VERSION)) as served:
        served.until_ended()
    log = served.log.read_text()
    assert "lmdeploy 0.99.0 is installed, but this engine requires 0.18.0: install lmdeploy==0.18.0" in log


def test_an_unsupported_language_model_is_refused(tmp_path: Path) -> None:
    """If TurboMind does not support the language model, the server's log says so and names alternatives."""
    with started(tmp_path, "phi3", write_small(tmp_path / "model", "phi3-4b"), ("-c", REFUSING)) as served:
        served.until_ended()
    log = served.log.read_text()
    assert (
        'TurboMind, lmdeploy\'s engine, does not support Phi3ForCausalLM: set inference.engine = "cpu", or run' in log
    )


class Planted:
    """An object that creates the file `marker` when it is unpickled from a request."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("headers", [{}, HEADERS], ids=["without the key", "with the key"])
def test_no_request_runs_code(tiny: Served, tmp_path: Path, headers: dict[str, str]) -> None:
    """lmdeploy's /update_weights route, which unpickles its input, is unavailable even with the API key."""
    marker = tmp_path / "marker"
    planted = b64encode(pickle.dumps(Planted(marker))).decode()
    body = {"serialized_named_tensors": planted, "finished": False}
    response = httpx.post(f"{tiny.url}/update_weights", json=body, headers=headers, trust_env=False, timeout=60)
    assert not marker.exists()
    assert response.status_code == (404 if headers else 401)


@pytest.mark.parametrize(
    "route",
    ["/v1/chat/completions", "/v1/models", "/metrics", "/health", "/", "/openapi.json", "/v1/encode", "/sleep"],
)
def test_every_route_needs_the_key(tiny: Served, route: str) -> None:
    """No route answers without the API key, with a wrong key or under another host name; CORS is refused."""
    strangers: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer none"},
        {"Authorization": f"Basic {KEY}"},
        {**HEADERS, "Host": "rebound.example:80"},
        {**HEADERS, "Host": "["},
    ]
    for headers in strangers:
        for method in ("GET", "POST", "OPTIONS"):
            response = httpx.request(method, f"{tiny.url}{route}", headers=headers, trust_env=False)
            assert response.status_code in (401, 403), (method, headers, response.text)
    preflight = {**HEADERS, "Origin": "https://rebound.example", "Access-Control-Request-Method": "POST"}
    response = httpx.options(f"{tiny.url}{route}", headers=preflight, trust_env=False)
    assert not any(name.startswith("access-control") for name in response.headers)


def test_the_key_is_not_logged(tiny: Served) -> None:
    """Neither the log nor the command line contains the API key."""
    assert KEY not in tiny.log.read_text()
    assert KEY not in " ".join(tiny.command)


async def test_a_conversation_is_cut_to_the_session_length(servers: dict[str, Served], tmp_path: Path) -> None:
    """With few KV blocks, lmdeploy refuses long prompts, so the deployment truncates them to fit the limit."""
    served = servers["sentencepiece"]
    talk = replace(question("And now?"), turns=tuple(turn for prompt in talks() for turn in prompt.turns) * 2)
    async with served.client() as engine:
        assert await engine.sizes() == Sizes(FEW_BLOCKS * BLOCK_TOKENS, FEW_BLOCKS * BLOCK_TOKENS)
        with pytest.raises(PromptTooLong):
            await answer(engine, talk)
    async with servers["stock"].client() as engine:
        assert await engine.sizes() == Sizes(200 * BLOCK_TOKENS, 200 * BLOCK_TOKENS)
    settings = InferenceSettings(
        endpoint=served.url, api_key=SecretStr(KEY), model=str(served.model), tiles=FEW_TILES, warm_chats=0
    )
    deployment = Deployment(settings, "model", served.model, logs=tmp_path)
    await deployment.start()
    try:
        last = [delta async for delta in deployment.answer(talk)][-1].answer
    finally:
        await deployment.stop()
    assert last is not None and last.cut is not None
    assert last.cut.turns[-1] == talk.turns[-1]
    assert FEW_BLOCKS * BLOCK_TOKENS / 2 < last.usage.prompt_tokens < FEW_BLOCKS * BLOCK_TOKENS


async def test_sampling_comes_from_the_request(servers: dict[str, Served]) -> None:
    """Temperature, top_k and top_p come from the prompt, not from the checkpoint's own defaults."""
    served = servers["sentencepiece"]
    assert json.loads((served.model / "generation_config.json").read_text())["repetition_penalty"] == 1.5
    sampling = Sampling(temperature=0.7, top_p=0.6, max_new_tokens=1, top_k=9)
    async with served.client() as engine:
        await answer(engine, question("Hi", sampling=sampling))
        assert served.given()[-1]["sampling"] == [0.7, 9, 0.6, 1.0]
        await answer(engine, question("Hi", sampling=Sampling(max_new_tokens=1)))
        assert served.given()[-1]["sampling"] == [0.8, 50, 0.8, 1.0]


async def test_answers_equal_the_cpu_engine_s(tiny: Served) -> None:
    """The lmdeploy server and the CPU engine give the same answers with the same model, in both languages."""
    dice = Random(3)
    greedy = Sampling(temperature=0, max_new_tokens=32)
    prompts = [
        question(held_out(("en", "zh")[number % 2], "colour", dice), Picture.of(data), sampling=greedy)
        for number, data in enumerate(list(sample_pictures().values())[:10])
    ]
    ours = ChatEngine.open(CHECKPOINT, dtype=torch.float32, cache_bytes=2**24)
    try:
        expected = [ours.answer(ours.preprocessor.prepare(prompt))[0] for prompt in prompts]
    finally:
        ours.close()
    async with tiny.client() as engine:
        assert [(await answer(engine, prompt)).text for prompt in prompts] == expected


async def test_a_follow_up_prepares_no_picture_again(tiny: Served) -> None:
    """A follow-up question reuses a picture's tiles, encoding and prefix-cache fingerprint."""
    shown = picture(101, (320, 240)), picture(102, (320, 240))
    first = question("这是什么？", *shown)
    further = (Turn(Role.ASSISTANT, "Noise."), Turn(Role.USER, "Are you sure?"), Turn(Role.ASSISTANT, "Yes."))
    follow_up = replace(first, turns=(*first.turns, *further, Turn(Role.USER, "And this?", (picture(103),))))
    hits, misses = (tiny.metric(f"thumbtune_tile_cache_{kind}_total") for kind in ("hits", "misses"))
    async with tiny.client() as engine:
        before = await answer(engine, first)
        assert tiny.metric("thumbtune_tile_cache_misses_total") == misses + 2
        after = await answer(engine, follow_up)
    assert tiny.metric("thumbtune_tile_cache_misses_total") == misses + 3
    assert tiny.metric("thumbtune_tile_cache_hits_total") == hits + 2
    assert tiny.metric("thumbtune_tile_cache_bytes") > 0
    assert tiny.metric("thumbtune_prefill_waiting") == 0
    one, two = tiny.given()[-2:]
    assert two["fingerprints"][:2] == one["fingerprints"]
    assert len({*two["fingerprints"]}) == 3
    assert two["pixels"][:2] == one["pixels"]
    tiles = [shape[0] for shape in two["shapes"]]
    assert before.usage.encoded_tiles == sum(tiles[:2])
    async with tiny.client() as engine:
        numbers = await engine.numbers()
    assert numbers["tile_cache_hits"] == hits + 2
    assert {"tile_cache_misses", "tile_cache_bytes", "prefill_waiting", "engine_waiting"} <= numbers.keys()
    cached = after.usage.cached_tokens
    assert cached > two["positions"][0][0] + two["positions"][0][1]
    assert after.usage.encoded_tiles == sum(
        each for each, (start, length) in zip(tiles, two["positions"], strict=True) if start + length > cached
    )
    assert after.usage.encoded_tiles < sum(tiles)


async def test_encoded_tiles_are_in_the_usage_without_streaming(tiny: Served) -> None:
    """A non-streamed response reports the same usage fields as a stream, including the encoded tiles."""
    usage = tiny.post(part(picture(110, (112, 112)).data)).json()["usage"]
    assert usage["encoded_tiles"] == 1
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


async def test_a_request_can_lower_the_tiles(tiny: Served) -> None:
    """`max_dynamic_patch` limits a picture's tiles and changes its fingerprint for the prefix cache."""
    shown = picture(120, (224, 224))
    for tiles, cut in ((None, 5), (2, 1), (1, 1)):
        async with tiny.client(tiles=tiles) as engine:
            await answer(engine, question("Count!", shown))
        assert tiny.given()[-1]["shapes"] == [[cut, 3, 112, 112]]
    assert len({tuple(given["fingerprints"]) for given in tiny.given()[-3:]}) == 3


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"url": "data:image/jpeg;base64,@@@@"}, ""),
        ({"url": "data:image/jpeg,plain"}, "base64"),
        (part(b"no picture")["image_url"], "not a picture"),
        (part(PICTURES[0].data[:-300])["image_url"], "cut off"),
        ({"url": "http://127.0.0.1:9/cat.jpg"}, "data: URLs"),
        ({"url": (CHECKPOINT / "config.json").as_uri()}, "data: URLs"),
        ({"url": str(CHECKPOINT / "config.json")}, "data: URLs"),
    ],
    ids=["base64", "plain", "text", "cut off", "loopback address", "file URL", "path"],
)
async def test_bad_pictures_are_refused(tiny: Served, broken: dict[str, str], words: str) -> None:
    """An invalid picture gets HTTP 400 with the reason, streamed or not, and the server keeps working.

    No URL is fetched, and no file is opened.
    """
    for stream in (False, True):
        refused = tiny.post({"type": "image_url", "image_url": broken}, stream=stream)
        assert refused.status_code == 400, refused.text
        assert words in refused.text
    assert tiny.post(part(PICTURES[0].data)).status_code == 200


async def test_a_bad_picture_is_a_picture_error(tiny: Served) -> None:
    """For an invalid picture, the HTTP client raises `PictureError` with a message for the sender."""
    async with tiny.client() as engine:
        with pytest.raises(PictureError, match=r"^The data is not a picture"):
            await answer(engine, question("What is this?", Picture.of(b"no picture")))


@pytest.mark.parametrize("name", ["tiny", "sentencepiece"])
async def test_a_stream_never_splits_a_character(servers: dict[str, Served], name: str) -> None:
    """A stream sends the first token at once and later ones in groups, and never splits a character.

    The joined parts equal the whole answer.
    """
    shown = PICTURES[1]
    prompt = question("这是什么？", shown, sampling=Sampling(temperature=0, max_new_tokens=48))
    async with servers[name].client() as engine:
        deltas = await deltas_of(engine, prompt)
    whole = servers[name].unstreamed(prompt)
    last = deltas[-1].answer
    assert last is not None
    texts = [delta.text for delta in deltas if delta.text]
    assert "".join(texts) == last.text == whole
    assert last.usage.completion_tokens > 8
    assert len(texts) < last.usage.completion_tokens / 2
    if name == "tiny":
        assert "\ufffd" not in last.text
        assert len(texts[0]) < 4 < len(last.text)
