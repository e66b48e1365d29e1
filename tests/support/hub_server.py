"""A model hub on loopback that has the APIs of the Hugging Face Hub and ModelScope and can inject faults.

Files of `LFS_BYTES` or more are served through a redirect to a content delivery network, like large
files on the real hub. `requests` records the requests; `cut_after`, `flipped` and `refuse_with` inject
faults.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha1, sha256

from aiohttp import web

from tests.support.loopback import LoopbackServer

LFS_BYTES = 1000
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERROR_CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the hub; `sent` is the number of content bytes sent in response."""

    method: str
    path: str
    range: str
    authorization: str
    sent: int


@dataclass
class HubServer(LoopbackServer):
    """A server for one repository, with its `files` by path.

    Use as an async context manager, which sets `url`. The repository's branch is at `commit`; `move` moves
    the branch to a commit with other files, and earlier files stay available under their commit IDs.
    """

    files: dict[str, bytes]
    repo: str = "someone/model"
    commit: str = COMMIT
    earlier: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """By path, the number of bytes that each of the next connections sends before it breaks."""
    flipped: set[str] = field(default_factory=set)
    """Paths of files that are sent with one wrong bit."""
    sizes: dict[str, int] = field(default_factory=dict)
    """File sizes to report instead of the real ones, by path."""
    refuse_with: int = 0
    ranges: bool = True
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of both hubs' APIs that a download uses."""
        return [
            web.get("/api/models/{owner}/{name}", self._info),
            web.get("/api/models/{owner}/{name}/revision/{revision}", self._info),
            web.get("/{owner}/{name}/resolve/{revision}/{path:.+}", self._resolve),
            web.get("/cdn/{digest}", self._content_network),
            web.get("/api/v1/models/{owner}/{name}/repo/files", self._modelscope_files),
            web.get("/api/v1/models/{owner}/{name}/repo", self._modelscope_file),
        ]

    def move(self, files: dict[str, bytes], commit: str) -> None:
        """Move the branch to a new commit with the ID `commit` and the contents `files`."""
        self.earlier[self.commit] = self.files
        self.files, self.commit = files, commit

    def _at(self, revision: str | None) -> tuple[str, dict[str, bytes]]:
        """Return the commit and the files of a revision."""
        return (revision, self.earlier[revision]) if revision in self.earlier else (self.commit, self.files)

    def sent(self, path: str) -> int:
        """Return how many bytes of a file have been sent, over all connections."""
        names = (path, f"cdn/{_sha256(self.files[path])}")
        return sum(each.sent for each in self.requests if each.path.endswith(names))

    def ranges_asked(self) -> list[str]:
        return [each.range for each in self.requests if each.range and each.method == "GET"]

    async def _info(self, request: web.Request) -> web.Response:
        self._refused(request)
        commit, files = self._at(request.match_info.get("revision"))
        siblings = [
            {
                "rfilename": path,
                "size": self.sizes.get(path, len(content)),
                "blobId": _blob(content),
                **(
                    {
                        "lfs": {
                            "sha256": _sha256(content),
                            "size": self.sizes.get(path, len(content)),
                            "pointerSize": 130,
                        }
                    }
                    if len(content) >= LFS_BYTES
                    else {}
                ),
            }
            for path, content in files.items()
        ]
        if request.query.get("blobs") != "True":
            siblings = [{"rfilename": each["rfilename"]} for each in siblings]
        self._note(request, 0)
        return web.json_response({"id": self.repo, "modelId": self.repo, "sha": commit, "siblings": siblings})

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        self._refused(request)
        path = request.match_info["path"]
        commit, files = self._at(request.match_info["revision"])
        content = files.get(path)
        if content is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(content)}"', "Accept-Ranges": "bytes"}
        if len(content) < LFS_BYTES:
            return await self._send(request, path, content, headers)
        digest = _sha256(content)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        self._note(request, 0)
        raise web.HTTPFound(f"{self.url.replace('127.0.0.1', 'localhost')}/cdn/{digest}", headers=headers)

    async def _content_network(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        all_files = [each for files in (self.files, *self.earlier.values()) for each in files.items()]
        path, content = next(each for each in all_files if _sha256(each[1]) == digest)
        return await self._send(request, path, content, {"ETag": f'"{digest}"'})

    async def _modelscope_files(self, request: web.Request) -> web.Response:
        self._refused(request)
        self._note(request, 0)
        assert request.query["Recursive"] == "True"
        commit, found = self._at(request.query["Revision"])
        files = [
            {
                "Path": path,
                "Name": path.rsplit("/")[-1],
                "Type": "blob",
                "Size": len(content),
                "Sha256": _sha256(content),
                "Revision": commit,
            }
            for path, content in found.items()
        ]
        folders = {path.rsplit("/", 1)[0] for path in found if "/" in path}
        files += [{"Path": path, "Name": path, "Type": "tree", "Size": 0, "Sha256": ""} for path in folders]
        data = {"Files": files, "LatestCommitter": {"Id": commit, "ShortId": commit[:8]}}
        return web.json_response({"Code": 200, "Message": "success", "Success": True, "Data": data})

    async def _modelscope_file(self, request: web.Request) -> web.StreamResponse:
        path = request.query["FilePath"]
        return await self._send(request, path, self._at(request.query["Revision"])[1][path], {})

    def _refused(self, request: web.Request) -> None:
        if self.refuse_with or f"{request.match_info['owner']}/{request.match_info['name']}" != self.repo:
            status = self.refuse_with or 404
            self._note(request, 0)
            response = web.Response(status=status, headers={"X-Error-Code": ERROR_CODES.get(status, "")})
            raise _Refusal(response)

    async def _send(self, request: web.Request, path: str, whole: bytes, headers: dict[str, str]) -> web.StreamResponse:
        content = bytearray(whole)
        if path in self.flipped:
            content[len(content) // 2] ^= 1
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")) if self.ranges else None
        if asked:
            start = int(asked[1])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = bytes(content[start:])
        response = web.StreamResponse(status=206 if asked else 200, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        if request.method == "HEAD":
            self._note(request, 0)
            return response
        cuts = self.cut_after.get(path, [])
        if cuts:
            body = body[: cuts.pop(0)]
            await response.write(body)
            self._note(request, len(body))
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(body)
        self._note(request, len(body))
        return response

    def _note(self, request: web.Request, sent: int) -> None:
        path = request.query.get("FilePath") or request.path
        asked = request.headers.get("Range", "")
        self.requests.append(Request(request.method, path, asked, request.headers.get("Authorization", ""), sent))


class _Refusal(web.HTTPException):
    """An error response with the status and headers of `response`."""

    def __init__(self, response: web.Response) -> None:
        self.status_code = response.status
        super().__init__(headers=response.headers)


def _sha256(content: bytes) -> str:
    return sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
