"""`thumbtune fetch` downloads, resumes and verifies checkpoints; the test hub has the real hubs' APIs."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from bot.cli.fetch import fetch
from inference.hub.download import download
from inference.hub.listing import Hub, HubError, list_files
from storage.model_manifest import verify
from tests.support.hub_server import COMMIT, HubServer

WEIGHTS = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "internvl_chat"}\n',
    "empty.txt": b"",
    "sub/tokenization.py": b"# code\n" * 20,
    WEIGHTS: random.Random(1).randbytes(3_000_000),
}


@pytest.fixture(autouse=True)
def no_hub_but_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Clear the machine's own hub token and proxy settings from the environment."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("HF_TOKEN", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for variable in (name, name.upper()):
            monkeypatch.delenv(variable, raising=False)


async def _fetch(
    hub: HubServer,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: Hub = Hub.HUGGING_FACE,
    revision: str = "",
) -> str:
    """Run `thumbtune fetch` against `hub` in this process and return its output."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.url)
    with redirect_stdout(io.StringIO()) as printed:
        await fetch(directory, source, hub.repo, revision)
    return printed.getvalue()


def _contents(directory: Path) -> dict[str, bytes]:
    ours = ("manifest.json", "fetched-from.json")
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in ours)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


async def test_our_hub_is_one_for_huggingface_hub(tmp_path: Path) -> None:
    """The test hub also works with the official huggingface_hub client."""
    async with HubServer(FILES) as hub:
        folder = await asyncio.to_thread(
            snapshot_download, hub.repo, endpoint=hub.url, cache_dir=tmp_path / "cache", max_workers=1
        )
        assert _contents(Path(folder)) == FILES


@pytest.mark.parametrize("source", list(Hub))
async def test_a_checkpoint_comes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Hub) -> None:
    """A fetched checkpoint has a manifest and all the files of a single commit, and the next step is printed."""
    directory = tmp_path / "models" / "InternVL2-2B"
    async with HubServer(FILES) as hub:
        shown = await _fetch(hub, directory, monkeypatch, source)
        assert _contents(directory) == FILES
        assert all(hub.sent(path) == len(content) for path, content in FILES.items())
        if source is Hub.HUGGING_FACE:
            asked = [each.path for each in hub.requests if "/resolve/" in each.path]
            assert asked and all(f"/resolve/{COMMIT}/" in path for path in asked)
    verify(directory)
    assert [each.name for each in directory.parent.iterdir()] == [directory.name]
    assert f"THUMBTUNE_INFERENCE__MODEL={directory}" in shown


async def test_running_again_sends_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching a complete folder again checks it locally, without a request to the hub."""
    async with HubServer(FILES) as hub:
        await _fetch(hub, tmp_path / "m", monkeypatch)
        asked = len(hub.requests)
        assert "Nothing was downloaded" in await _fetch(hub, tmp_path / "m", monkeypatch)
        assert len(hub.requests) == asked


@pytest.mark.parametrize("source", list(Hub))
async def test_a_broken_connection_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Hub
) -> None:
    """After two broken connections in one download, the rest is requested by range; no byte is sent twice."""
    async with HubServer(FILES, cut_after={WEIGHTS: [1_000_000, 500_000]}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.url)
        found = await list_files(source, hub.repo)
        seen: list[int] = []
        await download(found, tmp_path, lambda _, done: seen.append(done), pause=0)
        assert _contents(tmp_path) == FILES
        assert hub.sent(WEIGHTS) == len(FILES[WEIGHTS])
        ranges = hub.ranges_asked()
    assert set(ranges) == {"bytes=1000000-", "bytes=1500000-"}
    assert seen == sorted(seen) and seen[-1] == found.size


async def test_a_run_that_was_broken_off_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted download leaves no model folder, and the next attempt requests only what is missing."""
    directory, part = tmp_path / "m", tmp_path / "m.incomplete" / f"{WEIGHTS}.part"
    async with HubServer(FILES, cut_after={WEIGHTS: [2_000_000, *[0] * 99]}) as hub:
        running = asyncio.create_task(_fetch(hub, directory, monkeypatch))
        while not hub.ranges_asked() and not running.done():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not directory.exists()
        assert part.stat().st_size == 2_000_000
        hub.cut_after.clear()
        hub.requests.clear()
        await _fetch(hub, directory, monkeypatch)
        assert _contents(directory) == FILES
        assert hub.sent("config.json") == 0
        assert hub.sent(WEIGHTS) == 1_000_000
        assert set(hub.ranges_asked()) == {"bytes=2000000-"}


@pytest.mark.parametrize("source", list(Hub))
async def test_a_branch_that_moves_on_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Hub
) -> None:
    """A download keeps to the commit it began with, even if the branch moves on.

    The commit is recorded and shown.
    """
    directory = tmp_path / "m"
    moved = {**FILES, "config.json": b"{}", WEIGHTS: random.Random(2).randbytes(3_000_000)}
    async with HubServer(FILES, cut_after={WEIGHTS: [2_000_000, *[0] * 99]}) as hub:
        running = asyncio.create_task(_fetch(hub, directory, monkeypatch, source))
        while not hub.ranges_asked() and not running.done():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        hub.move(moved, "f" * 40)
        hub.cut_after = {WEIGHTS: [500_000]}
        shown = await _fetch(hub, directory, monkeypatch, source)
        assert _contents(directory) == FILES
        assert f"{hub.repo} at {COMMIT}: 4 files" in shown
        assert f"({hub.repo} at {COMMIT})" in await _fetch(hub, directory, monkeypatch, source)
        await _fetch(hub, tmp_path / "newest", monkeypatch, source)
        assert _contents(tmp_path / "newest") == moved
        await _fetch(hub, tmp_path / "pinned", monkeypatch, source, COMMIT)
        assert _contents(tmp_path / "pinned") == FILES
    noted = {"source": source, "repo": hub.repo, "revision": "", "commit": COMMIT}
    assert json.loads((directory / "fetched-from.json").read_text()) == noted
    verify(directory)


async def test_a_server_without_ranges_sends_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server ignores the requested range, the file is written again from the start."""
    async with HubServer(FILES, cut_after={WEIGHTS: [10_000]}, ranges=False) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        await download(await list_files(Hub.HUGGING_FACE, hub.repo), tmp_path, lambda *_: None, pause=0)
        assert _contents(tmp_path) == FILES


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
async def test_a_flipped_bit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A file with a wrong hash is named and deleted; the next attempt requests only that file."""
    directory = tmp_path / "m"
    async with HubServer(FILES, flipped={path}) as hub:
        with pytest.raises(HubError, match=f"{path} is damaged"):
            await _fetch(hub, directory, monkeypatch)
        assert not directory.exists()
        hub.flipped.clear()
        hub.requests.clear()
        await _fetch(hub, directory, monkeypatch)
        assert _contents(directory) == FILES
        assert hub.sent(path) == len(FILES[path])


@pytest.mark.parametrize("source", list(Hub))
@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "accept it on the repository's page"), (403, "accept it"), (404, "check --repo"), (500, "try again later")],
)
async def test_refusals_are_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Hub, status: int, words: str
) -> None:
    """The error for a missing or gated repository or a failing server says what to do; no folder is left."""
    async with HubServer(FILES, refuse_with=status) as hub:
        with pytest.raises(HubError, match=words):
            await _fetch(hub, tmp_path / "m", monkeypatch, source)
    assert not list(tmp_path.iterdir())


async def test_a_hub_out_of_reach_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a hub cannot be reached, the error names the alternatives."""
    for variable in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(HubError, match="--source modelscope"):
        await fetch(tmp_path / "m", Hub.HUGGING_FACE, "someone/model", "")
    with pytest.raises(HubError, match="--source hub"):
        await fetch(tmp_path / "m", Hub.MODELSCOPE, "someone/model", "")


async def test_a_connection_that_only_breaks_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download gives up after six connections in a row that send nothing, and keeps the bytes received."""
    async with HubServer(FILES, cut_after={WEIGHTS: [1_000, *[0] * 99]}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(HubError, match="cannot be reached"):
            await download(await list_files(Hub.HUGGING_FACE, hub.repo), tmp_path, lambda *_: None, pause=0)
    assert (tmp_path / f"{WEIGHTS}.part").read_bytes() == FILES[WEIGHTS][:1_000]


async def test_too_small_a_disk_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download larger than the free space is refused before the first byte."""
    async with HubServer(FILES, sizes={WEIGHTS: 10**16}) as hub:
        with pytest.raises(HubError, match="GB free"):
            await _fetch(hub, tmp_path / "m", monkeypatch)
        assert hub.sent(WEIGHTS) == 0


async def test_a_file_outside_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository cannot have files written outside the model's folder."""
    async with HubServer({"../evil.py": b"x"}) as hub:
        with pytest.raises(HubError, match="outside"):
            await _fetch(hub, tmp_path / "m", monkeypatch)
    assert not list(tmp_path.iterdir())


async def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with other content is refused and left unchanged."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("x")
    async with HubServer(FILES) as hub:
        with pytest.raises(HubError, match="something else"):
            await _fetch(hub, tmp_path / "m", monkeypatch)
        assert not hub.requests


async def test_the_token_stays_with_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN is sent to the hub but never to the content network that the hub redirects to."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    async with HubServer(FILES) as hub:
        await _fetch(hub, tmp_path / "m", monkeypatch)
        asked = {each.path.split("/")[1] == "cdn": each.authorization for each in hub.requests}
    assert asked == {False: "Bearer hf_secret", True: ""}


async def test_the_token_goes_before_a_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN takes precedence over an entry for the hub in ~/.netrc."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login git password other\n")
    async with HubServer(FILES) as hub:
        await _fetch(hub, tmp_path / "m", monkeypatch)
        asked = {each.path.split("/")[1]: each.authorization for each in hub.requests}
    assert asked["someone"] == "Bearer hf_secret"
    assert asked["cdn"] == ""


@pytest.mark.parametrize("source", Hub)
async def test_all_goes_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Hub) -> None:
    """File lists and files are requested through the proxy set in the environment."""
    async with HubServer(FILES) as hub:
        monkeypatch.setenv("http_proxy", hub.url)
        for variable in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN"):
            monkeypatch.setenv(variable, "http://hub.invalid")
        await fetch(tmp_path / "m", source, hub.repo, "")
    assert _contents(tmp_path / "m") == FILES


async def test_the_command_takes_its_options(tmp_path: Path) -> None:
    """`thumbtune fetch` uses the options given on the command line."""
    async with HubServer(FILES) as hub:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "bot.cli.main",
                "fetch",
                str(tmp_path / "m"),
                "--source",
                "hub",
                "--repo",
                hub.repo,
            ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "HF_ENDPOINT": hub.url},
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert _contents(tmp_path / "m") == FILES
