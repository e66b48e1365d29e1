"""A model hub on loopback that accepts uploads like the Hugging Face Hub: small files in the commit, others by LFS."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, ClassVar

from aiohttp import web

from tests.support.loopback import LoopbackServer

LFS_BYTES = 1000
TOKEN = "hf_a-token-that-may-write"


@dataclass
class Repository:
    """A repository, with its `files` by path."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class PublishingHub(LoopbackServer):
    """A server with repositories by name, which accepts writes only with `TOKEN`; use as an async context manager."""

    max_bytes: ClassVar[int] = 1 << 30

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.url = ""
        self._large: dict[str, bytes] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the hub's API that an upload uses."""
        return [
            web.get("/api/models/{owner}/{name}", self._info),
            web.post("/api/repos/create", self._create),
            web.post("/api/validate-yaml", self._validate),
            web.post("/api/models/{owner}/{name}/preupload/main", self._preupload),
            web.post("/{owner}/{name}.git/info/lfs/objects/batch", self._batch),
            web.put("/large/{digest}", self._take),
            web.post("/api/models/{owner}/{name}/commit/main", self._commit),
        ]

    def _repository(self, request: web.Request) -> Repository:
        found = self.repositories.get(f"{request.match_info['owner']}/{request.match_info['name']}")
        if found is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        return found

    def _require_token(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized

    async def _info(self, request: web.Request) -> web.Response:
        found = self._repository(request)
        name = request.path.removeprefix("/api/models/")
        return web.json_response({"id": name, "private": found.private, "sha": "0" * 40, "siblings": []})

    async def _create(self, request: web.Request) -> web.Response:
        self._require_token(request)
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        self.repositories[name] = Repository(bool(asked.get("private")))
        return web.json_response({"url": f"{self.url}/{name}"})

    async def _validate(self, request: web.Request) -> web.Response:
        content = (await request.json())["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        return web.json_response({"errors": errors, "warnings": []}, status=400 if errors else 200)

    async def _preupload(self, request: web.Request) -> web.Response:
        self._require_token(request)
        self._repository(request)
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["size"] >= LFS_BYTES else "regular",
                "shouldIgnore": False,
            }
            for each in (await request.json())["files"]
        ]
        return web.json_response({"files": files})

    async def _batch(self, request: web.Request) -> web.Response:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/large/{each['oid']}"}}}
            for each in (await request.json())["objects"]
        ]
        return web.json_response({"transfer": "basic", "objects": objects})

    async def _take(self, request: web.Request) -> web.Response:
        content = await request.read()
        assert sha256(content).hexdigest() == request.match_info["digest"]
        self._large[request.match_info["digest"]] = content
        return web.Response()

    async def _commit(self, request: web.Request) -> web.Response:
        self._require_token(request)
        found = self._repository(request)
        for line in (await request.text()).splitlines():
            entry: dict[str, Any] = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    found.messages.append(value["summary"])
                case "file":
                    found.files[value["path"]] = b64decode(value["content"])
                case "lfsFile":
                    found.files[value["path"]] = self._large[value["oid"]]
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        return web.json_response({"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.url}/{name}/commit/1"})
