"""Listing of the files in a repository on a model hub, with their sizes, hashes and URLs.

The Hugging Face Hub is queried through huggingface_hub, which reads HF_ENDPOINT and HF_TOKEN; ModelScope
is queried through its HTTP API. Both use the proxies set in the environment.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp

from inference.messages import InferenceError

ORIGIN: Final = "fetched-from.json"
"""The file in a fetched checkpoint that records its origin: source, repository, revision and commit."""

MODELSCOPE: Final = "https://www.modelscope.cn"
_SECONDS: Final = 30.0
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ELSEWHERE: Final = {
    "hub": "set HF_ENDPOINT to a mirror that you can reach, or run `thumbtune fetch DIR --source modelscope`",
    "modelscope": "set MODELSCOPE_DOMAIN to a host that you can reach, or run `thumbtune fetch DIR --source hub`",
}


class HubError(InferenceError):
    """A download from a hub has failed. The error's text says what to do."""


class Hub(StrEnum):
    """The supported model hubs."""

    HUGGING_FACE = "hub"
    MODELSCOPE = "modelscope"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a repository on a model hub.

    Attributes:
        path: The path relative to the download folder, never leading outside it.
        size: The size in bytes.
        digest: The hash in hex: a SHA-256 or, if it has 40 digits, git's SHA-1 of the blob.
        url: The URL of the file.
    """

    path: str
    size: int
    digest: str
    url: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one revision, each with a URL that is pinned to a commit if the hub names one.

    Attributes:
        revision: The commit or, if the hub names none, the branch or tag that was listed.
        headers: Request headers, sent only to the hub.
    """

    source: Hub
    repo: str
    revision: str
    files: tuple[RemoteFile, ...]
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """The total size of all files in bytes."""
        return sum(each.size for each in self.files)


async def list_files(source: Hub, repo: str, revision: str = "") -> Listing:
    """Return the files of `repo` at `revision` or, if `revision` is empty, on the hub's default branch.

    Raises:
        HubError: The files cannot be listed, there are none, or a path leads outside the download folder.
    """
    found = await (_hub if source is Hub.HUGGING_FACE else _modelscope)(repo, revision)
    for each in found.files:
        _refuse_outside(each.path)
    if not found.files:
        raise HubError(f"{repo} at {found.revision} has no files: check --repo and --revision.")
    return found


def status_error(source: Hub, repo: str, status: int, revision: str = "") -> HubError:
    """Return the HubError for an HTTP error status."""
    where = f"{repo}@{revision}" if revision else repo
    if status in (401, 403):
        how = "export HF_TOKEN=…" if source is Hub.HUGGING_FACE else "use `--source hub` with a token"
        return HubError(
            f"{source} refuses {where} without authorization (HTTP {status}): check the name; if it requires a "
            f"licence, accept it on the repository's page, then {how}."
        )
    if status == 404:
        return HubError(f"{source} has no {where} (HTTP 404): check --repo (OWNER/NAME) and --revision.")
    return HubError(f"{source} responded with HTTP {status} for {where}: try again later, or {_ELSEWHERE[source]}.")


def unreachable(source: Hub, error: Exception) -> HubError:
    """Return the HubError for a server that cannot be reached or whose connections break."""
    # The libraries' own errors repeat the address and their retries; the first error of the chain has the cause.
    first = error
    while isinstance(cause := first.__cause__ or first.__context__, Exception):
        first = cause
    why = str(first) or type(first).__name__
    return HubError(f"{source} cannot be reached ({why}): check the connection, {_ELSEWHERE[source]}.")


def _refuse_outside(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or any(part in ("..", ".") for part in path.split("/")):
        raise HubError(
            f"The repository has a file {path!r}, which lies outside the folder: do not use this repository."
        )


async def _hub(repo: str, revision: str) -> Listing:
    # Otherwise every request names the installed frameworks. huggingface_hub reads the variable when imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import requests
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils._headers import build_hf_headers

    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    api = HfApi(endpoint=endpoint)
    try:
        info = await asyncio.to_thread(
            api.model_info, repo, revision=revision or None, files_metadata=True, timeout=_SECONDS
        )
    except HFValidationError as error:
        raise HubError(f"{repo!r} is not a repository name: use --repo OWNER/NAME.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise status_error(Hub.HUGGING_FACE, repo, status, revision) from error
    except (requests.RequestException, OSError) as error:  # OSError is also raised if HF_HUB_OFFLINE is set
        raise unreachable(Hub.HUGGING_FACE, error) from error
    # Every file comes from this commit, even if the branch moves in the meantime.
    commit = info.sha or revision or "main"
    files = []
    for each in info.siblings or ():
        size, digest = (each.lfs.size, each.lfs.sha256) if each.lfs else (each.size, each.blob_id)
        url = hf_hub_url(repo, each.rfilename, revision=commit, endpoint=endpoint)
        files.append(_remote_file(Hub.HUGGING_FACE, each.rfilename, size, digest, url))
    return Listing(Hub.HUGGING_FACE, repo, commit, tuple(files), build_hf_headers(library_name="thumbtune"))


async def _modelscope(repo: str, revision: str) -> Listing:
    """List the files through the HTTP API that ModelScope's own client uses.

    Source: github.com/modelscope/modelscope, modelscope/hub/api.py.
    """
    domain = os.environ.get("MODELSCOPE_DOMAIN", MODELSCOPE)
    base = f"{domain if '://' in domain else f'https://{domain}'}/api/v1/models/{repo}/repo"
    revision = revision or "master"
    query = urlencode({"Revision": revision, "Recursive": "True"})
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS), trust_env=True) as session,
            session.get(f"{base}/files?{query}") as response,
        ):
            if response.status != 200:
                raise status_error(Hub.MODELSCOPE, repo, response.status, revision)
            answer: dict[str, Any] = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise unreachable(Hub.MODELSCOPE, error) from error
    except ValueError as error:
        raise HubError(f"modelscope did not respond with JSON ({error}): try again later.") from error
    if answer.get("Code") != 200:
        raise HubError(f"modelscope refuses {repo}: {answer.get('Message')}. Check --repo and --revision.")
    # Each file names its commit; the commit of the list is often empty.
    listed = (answer["Data"].get("LatestCommitter") or {}).get("Id") or ""
    revision = listed if _COMMIT.fullmatch(listed) else revision
    files = []
    for each in answer["Data"]["Files"] or ():
        if each["Type"] == "tree":
            continue
        path, commit = each["Path"], each.get("Revision") or ""
        pinned = commit if _COMMIT.fullmatch(commit) else revision
        url = f"{base}?{urlencode({'Revision': pinned, 'FilePath': path})}"
        files.append(_remote_file(Hub.MODELSCOPE, path, each["Size"], each.get("Sha256"), url))
    return Listing(Hub.MODELSCOPE, repo, revision, tuple(files))


def _remote_file(source: Hub, path: str, size: int | None, digest: str | None, url: str) -> RemoteFile:
    if size is None or not digest:
        raise HubError(f"{source} lists no hash for {path}, so the file cannot be checked: {_ELSEWHERE[source]}.")
    return RemoteFile(path, size, digest, url)
