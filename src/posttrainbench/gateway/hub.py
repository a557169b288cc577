"""The door to the model hub: speaks its protocol below `/hub/`, decides by repository, file and content, logs each file.

Inside, `HF_ENDPOINT` names it. No credential is asked for: the listener is in the run's own namespace. The host's token goes
to the hub and no further; what a client sends as one is dropped. docs/hub.md says what is served.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp import web

from posttrainbench.errors import PTBError
from posttrainbench.gateway import policy as requests
from posttrainbench.gateway.hub_config import HubConfig, shape_of
from posttrainbench.gateway.hub_files import Answered, Cache, File, Hub, Unavailable, cached_pieces
from posttrainbench.gateway.hub_keep import Copy, Keeper
from posttrainbench.gateway.hub_messages import (
    Sums,
    lfs,
    mapping,
    origins_of,
    passed_on,
    read_body,
    refusal,
    wanted_range,
    without_xet,
)
from posttrainbench.gateway.hub_policy import Relation
from posttrainbench.gateway.hub_requests import PREFIX, Ask, Repo, read
from posttrainbench.gateway.policy import Refusal

if TYPE_CHECKING:
    from posttrainbench.gateway.context import Context

_LARGEST_ANSWER = 32 * 2**20
_LARGEST_CONFIG = 2**20
_KEPT_FACTS = 4096
_FACTS_S = 600.0
# lines on refusals and on metadata beyond these numbers are thinned or left out: the log is for reading
_REFUSALS_IN_FULL, _THINNED, _METADATA_IN_FULL = 20_000, 1000, 20_000
_ANSWERS_AT_A_TIME = 4
_QUIET = (
    f"{PREFIX}/api/agent-harnesses",
    f"{PREFIX}/v1/telemetry",
    f"{PREFIX}/api/telemetry",
    f"{PREFIX}/api/whoami-v2",
)


async def handle(request: web.BaseRequest, context: Context) -> web.StreamResponse:
    """Serve one request below `/hub/`. Called only where `context.config.hub` is set."""
    try:
        door = context.part("hub", Door)
    except PTBError as error:
        # the harness has looked before the run; a policy file can vanish afterwards
        context.log("hub", what="setup", allowed=False, rule="setup", error=str(error))
        return refusal(503, "The door of the model hub is not set up in this run.")
    return await door.serve(request)


class Door:
    """The hub door of one run.

    Raises:
        ConfigurationError: settings or policy that cannot be.
    """

    def __init__(self, context: Context) -> None:
        self.config = HubConfig.from_json(context.config.hub or {})
        self.policy = self.config.rules()
        self.context = context
        self.cache = Cache(root=Path(self.config.cache)) if self.config.cache else None
        self.hub = Hub(context, self.config)
        self.keeper = Keeper(context.directory, self.config)
        self.now = 0
        self.refusals = 0
        self.noted: set[tuple[str, str, str, str]] = set()
        self._facts: OrderedDict[tuple[str, str, str], tuple[float, File]] = OrderedDict()
        self._private: dict[str, bool] = {}
        self._relations: OrderedDict[tuple[str, str, str], Relation] = OrderedDict()
        self._answers = asyncio.Semaphore(_ANSWERS_AT_A_TIME)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        ask: Ask | None = None
        line: dict[str, Any] = {"method": request.method[:20]}
        try:
            requests.check_headers(request.raw_headers)
            if request.raw_path.startswith(_QUIET):
                return refusal(404, "not served")
            if self.context.full("hub"):
                # nothing is handed out without a line about it
                raise Refusal("log-full", 503, "The log of this run's downloads is full; there is no hub any more.")
            try:
                ask = read(request.method, request.raw_path.removeprefix(PREFIX))
            except UnicodeDecodeError:
                raise Refusal("hub-path", 400, "a path that is not UTF-8") from None
            if ask.repo is not None:
                self.policy.check_repo(ask.repo)
            if ask.what == "file":
                return await self._file(request, ask, line)
            return await self._metadata(request, ask)
        except Refusal as refused:
            self._refused(request, ask, line, refused)
            said = refused.message
            if refused.status == 403:
                said = f"Refused by the hub policy {self.policy.name!r} of this run, rule {refused.kind!r}: {said}"
            return refusal(refused.status, said, code="RefusedByPolicy", **{"X-PTB-Rule": refused.kind})
        except Answered as answered:
            self._log(ask, line, allowed=True, status=answered.status, complete=False, error="the hub refused")
            return passed_on(answered)
        except Unavailable as error:
            self._log(ask, line, allowed=True, status=504, complete=False, error=str(error)[:200])
            return refusal(504, f"The model hub does not answer ({error}); try again later.")

    # the log

    def _log(self, ask: Ask | None, line: dict[str, Any], **more: Any) -> None:
        if ask is not None and ask.repo is not None:
            line = {
                "what": ask.what, "repo": ask.repo.name, "type": ask.repo.kind, "revision": ask.revision[:100],
                "file": ask.path[:500], **line,
            }  # fmt: skip
        elif ask is not None:
            line = {"what": ask.what, "query": ask.query[:300], **line}
        self.context.log("hub", **line, **more)

    def _refused(self, request: web.BaseRequest, ask: Ask | None, line: dict[str, Any], refusal: Refusal) -> None:
        self.refusals += 1
        if self.refusals > _REFUSALS_IN_FULL and self.refusals % _THINNED:
            return
        more: dict[str, Any] = {"refused_so_far": self.refusals} if self.refusals > _REFUSALS_IN_FULL else {}
        if ask is None:
            more["path"] = request.raw_path[:300]
        self._log(ask, line, allowed=False, rule=refusal.kind, status=refusal.status, complete=False, **more)

    def _note(self, ask: Ask) -> None:
        """One line for each thing that is asked about, however often."""
        key = (ask.what, ask.repo.key if ask.repo else ask.query[:300], ask.revision, ask.path)
        if key not in self.noted and len(self.noted) < _METADATA_IN_FULL:
            self.noted.add(key)
            self._log(ask, {}, allowed=True, status=200)

    # what revisions mean

    def _pinned(self, repo: Repo, revision: str) -> str:
        """A commit where this run or the host's cache knows it; the same revision means the same all through a run."""
        revision = revision or "main"
        if revision == "main" and self.config.revision and repo.key == self.config.base.casefold():
            return self.config.revision
        found = self.cache.commit(repo, revision) if self.cache else None
        return found or revision

    # metadata

    async def _metadata(self, request: web.BaseRequest, ask: Ask) -> web.StreamResponse:
        body = await read_body(request) if request.method == "POST" else None
        repo = ask.repo
        if repo is None:
            path = f"/api/{ask.path}"
        else:
            revision = self._pinned(repo, ask.revision) if ask.what != "refs" else ""
            verb = {"info": "revision"}.get(ask.what, ask.what)
            if ask.what == "info" and not ask.revision and revision == "main":
                path = repo.api
            else:
                path = "/".join(filter(None, (repo.api, verb, quote(revision, safe=""), quote(ask.path))))
        async with self._answers:
            try:
                data, headers = await self.hub.json(
                    path + (f"?{ask.query}" if ask.query else ""),
                    self.policy.check_repo,
                    limit=_LARGEST_ANSWER,
                    body=body,
                    kind=request.headers.get("Content-Type", "")[:100],
                )
            except (Unavailable, Answered):
                listed = None if ask.repo is None or await self._hidden(ask.repo) else self._from_cache(ask)
                if listed is None:
                    raise
                data, headers = (
                    json.dumps(listed).encode(),
                    {"x-repo-commit": self._pinned(repo, ask.revision) if repo else ""},
                )
            clean = await asyncio.to_thread(without_xet, data)
        self._note(ask)
        sent = {"Content-Type": "application/json"}
        sent |= {
            name: headers[name.lower()] for name in ("X-Repo-Commit", "X-Total-Count") if headers.get(name.lower())
        }
        if (further := self._further(headers.get("link", ""), request)) is not None:
            sent["Link"] = further
        return web.Response(body=b"" if request.method == "HEAD" else clean, headers=sent)

    def _further(self, link: str, request: web.BaseRequest) -> str | None:
        """The link to the next page, through this door; others (to the chunked storage) are left out."""
        found = re.search(r'<([^<>]+)>\s*;\s*rel="?next"?', link)
        path = self.hub.of_hub(found[1]) if found else None
        host = request.headers.get("Host", "127.0.0.1")
        return None if path is None else f'<http://{host}{PREFIX}{path}>; rel="next"'

    def _from_cache(self, ask: Ask) -> Any:
        """Information or list of files of what the host has, for a hub that cannot be reached or will not say."""
        if self.cache is None or ask.repo is None or ask.what not in ("info", "tree"):
            return None
        commit = self._pinned(ask.repo, ask.revision)
        files = self.cache.files(ask.repo, commit)
        if not files:
            return None
        if ask.what == "tree":
            below = [file for file in files if not ask.path or file.path.startswith(f"{ask.path}/")]
            return [
                {"type": "file", "path": file.path, "size": file.size, "oid": file.etag} | lfs(file) for file in below
            ]
        names = [{"rfilename": file.path} for file in files]
        known = {"id": ask.repo.name, "modelId": ask.repo.name, "sha": commit, "siblings": names}
        return {**known, "tags": [], "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0}

    # files

    async def _file(self, request: web.BaseRequest, ask: Ask, line: dict[str, Any]) -> web.StreamResponse:
        assert ask.repo is not None
        file = await self._known(ask.repo, self._pinned(ask.repo, ask.revision), ask.path)
        line |= {"commit": file.commit, "size": file.size, "etag": file.etag, "source": file.source}
        if file.repo.name != ask.repo.name:
            line["now"] = file.repo.name
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": file.commit, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if file.size is not None and file.hash and len(file.hash) == 64:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(file.size)}
        if request.method == "HEAD":
            # facts only; the refusal comes with the content, where clients repeat its words to their user
            self._note(replace(ask, what="head"))
            head = web.StreamResponse(headers=headers)
            head.content_length = file.size
            await head.prepare(request)
            await head.write_eof()
            return head
        for repo in {ask.repo, file.repo}:
            self.policy.check_file(repo, ask.path)
        self.policy.check_content(file.hash)
        if self.policy.is_weight(file.repo, ask.path, file.size) and not self.policy.excepted(file.repo):
            relation = await self._relation(file)
            for repo in {ask.repo, file.repo}:
                self.policy.check_weights(repo, relation, self.config.shape)
        if self.now >= self.config.connections:
            raise Refusal("busy", 503, f"More than {self.config.connections} downloads are under way; wait for some.")
        self.now += 1
        try:
            return await self._send(request, ask, file, headers, line)
        finally:
            self.now -= 1

    async def _known(self, repo: Repo, revision: str, path: str) -> File:
        """Size and hash of a file, from the host's cache or the hub."""
        if self.cache and (found := self.cache.file(repo, revision, path)):
            if await self._hidden(repo):
                raise Answered(status=404, headers={"X-Error-Code": "RepoNotFound"})
            return found
        key = (f"{repo.kind}:{repo.name}", revision, path)
        kept = self._facts.get(key)
        if kept is not None and time.monotonic() - kept[0] < _FACTS_S:
            return kept[1]
        found = await self.hub.head(repo, revision, path, self.policy.check_repo)
        if self.cache and (here := self.cache.file(found.repo, found.commit, path)):
            return here
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            self._facts[key] = (time.monotonic(), found)
            while len(self._facts) > _KEPT_FACTS:
                self._facts.popitem(last=False)
        return found

    async def _hidden(self, repo: Repo) -> bool:
        """Whether the hub shows a repository to nobody: then the host's copy is private, and stays so.

        Where no hub has answered in this run (a machine without a network), what the host has is taken for public.
        """
        if repo.key == self.config.base.casefold():
            return False
        key = f"{repo.kind}:{repo.key}"
        if key not in self._private:
            try:
                await self.hub.json(repo.api, self.policy.check_repo, limit=_LARGEST_ANSWER)
                self._private[key] = False
            except Answered as answered:
                self._private[key] = answered.headers.get("X-Error-Code") != "GatedRepo"
            except Unavailable:
                return self.hub.answered
            while len(self._private) > _KEPT_FACTS:
                self._private.pop(next(iter(self._private)))
        return self._private[key]

    async def _relation(self, file: File) -> Relation:
        """What a repository says that it was made from, and the shapes in the configurations beside a file.

        Raises:
            Refusal: it cannot be found out now, so nothing is handed out.
        """
        folder = posixpath.dirname(file.path)
        key = (f"{file.repo.kind}:{file.repo.key}", file.commit, folder)
        if key in self._relations:
            return self._relations[key]
        try:
            info = mapping(await self._small(f"{file.repo.api}/revision/{quote(file.commit, safe='')}"))
            places = {
                posixpath.join(each, name) for each in {"", folder} for name in ("config.json", "adapter_config.json")
            }
            found = [await self._small(file.repo.resolve(file.commit, place)) for place in sorted(places)]
        except Unavailable as error:
            raise Refusal(
                "hub-unchecked", 503, f"What this file is cannot be checked now ({error}); try later."
            ) from None
        configs = [mapping(each) for each in found]
        origins = [*origins_of(info), *(each.get("base_model_name_or_path") for each in configs)]
        relation = Relation(
            origins=tuple(name for name in origins if isinstance(name, str)),
            shapes=tuple(shape for each in configs if (shape := shape_of(each))),
        )
        self._relations[key] = relation
        while len(self._relations) > _KEPT_FACTS:
            self._relations.popitem(last=False)
        return relation

    async def _small(self, path: str) -> Any:
        """A JSON file or answer of the hub; `None` where there is none."""
        try:
            data, _ = await self.hub.json(path, self.policy.check_repo, limit=8 * _LARGEST_CONFIG)
            return json.loads(data)
        except Answered as error:
            if error.status in (404, 413):
                return None
            raise Unavailable(f"HTTP {error.status}") from None
        except (ValueError, RecursionError):
            return None

    async def _send(
        self, request: web.BaseRequest, ask: Ask, file: File, headers: dict[str, str], line: dict[str, Any]
    ) -> web.StreamResponse:
        begin, end = wanted_range(request.headers, file)
        whole = begin == 0 and end == file.size
        status = 206 if not whole and file.size is not None else 200
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{(end or 0) - 1}/{file.size}"
            line["range"] = [begin, end]
        pieces = (
            self.hub.pieces(file, begin, end, self.policy.check_repo)
            if file.place is None
            else cached_pieces(file.place, begin, end or 0)
        )
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = None if end is None else end - begin
        sums = Sums(file, whole=whole or file.size is None)
        state: dict[str, Any] = {"sent": 0, "complete": False, "allowed": True, "rule": "", "error": None}
        began = time.monotonic()
        copy = self.keeper.begin(file, whole=whole)
        try:
            await self._stream(request, response, pieces, sums, state, copy)
        except (Unavailable, Answered, Refusal) as error:
            if not response.prepared:
                raise
            # the answer has begun: the client sees it cut, and asks for the rest or gives up
            refused = isinstance(error, Refusal)
            state |= {"allowed": not refused, "rule": error.kind if isinstance(error, Refusal) else ""}
            state["error"] = (error.kind if isinstance(error, Refusal) else str(error))[:200]
            response.force_close()
            if request.transport is not None:
                request.transport.abort()
        except (ConnectionError, asyncio.CancelledError):
            state["error"] = "the client went away"
            raise
        finally:
            if copy is not None:
                copy.drop()
            if response.prepared:
                seconds = round(time.monotonic() - began, 3)
                self._log(ask, line, **state, **sums.found(), status=status, seconds=seconds)
        return response

    async def _stream(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        pieces: AsyncIterator[bytes],
        sums: Sums,
        state: dict[str, Any],
        copy: Copy | None,
    ) -> None:
        """Hand the pieces on; the last one only when the whole is what it was said to be."""
        held: bytes | None = None
        async for piece in pieces:
            if not response.prepared:
                await response.prepare(request)
            if held is not None:
                await response.write(held)
                state["sent"] += len(held)
            sums.update(piece)
            if copy is not None:
                copy.write(piece)
            held = piece
        sums.end()
        if sums.verified is False:
            raise Unavailable("the content is not what its hash says")
        self.policy.check_content(sums.sha256, sums.git)
        if not response.prepared:
            await response.prepare(request)
        if held is not None:
            await response.write(held)
            state["sent"] += len(held)
        await response.write_eof()
        state["complete"] = True
        if copy is not None:
            copy.end(sums.sha256)
