"""Where the hub door's bytes come from: the host's cache of the hub's client, and the hub itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from posttrainbench.gateway.hub_config import TOKEN, HubConfig
from posttrainbench.gateway.hub_requests import Repo, read
from posttrainbench.gateway.policy import Refusal

if TYPE_CHECKING:
    from posttrainbench.gateway.context import Context

PIECE = 2**18
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_HOPS = 6
_AGAIN = frozenset({408, 429, 500, 502, 503, 504, 520, 522, 524})
_LONGEST_PAUSE_S = 8.0
_REPO_CACHE = "/api/resolve-cache"

Check = Callable[[Repo], None]


@dataclass(frozen=True, kw_only=True)
class File:
    """What is known of one file before a byte of it is read.

    Attributes:
        repo: as the hub calls it now.
        commit: what the asked revision means.
        etag: the hub's name of the content: SHA-256 of large files, git's SHA-1 of small ones, anything of a mirror.
        size: bytes; `None` where the hub does not say.
        place: in the host's cache; `None` for the hub.
    """

    repo: Repo
    path: str
    commit: str
    etag: str
    size: int | None
    place: Path | None = None

    @property
    def source(self) -> str:
        """For the log."""
        return "upstream" if self.place is None else "cache"

    @property
    def hash(self) -> str | None:
        """`etag` where it is one."""
        return self.etag if _HASH.fullmatch(self.etag) else None


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The host's cache of the hub's client. It is trusted; the paths that are looked up in it are not."""

    root: Path

    def commit(self, repo: Repo, revision: str) -> str | None:
        """What a branch or tag meant when the host fetched the repository."""
        try:
            found = (self.root / repo.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError, ValueError):
            return None
        return found if re.fullmatch(r"[0-9a-f]{40}", found) else None

    def file(self, repo: Repo, commit: str, path: str) -> File | None:
        """A file of a commit, if the host has it whole."""
        folder = self.root / repo.folder
        try:
            place = (folder / "snapshots" / commit / path).resolve(strict=True)
            inside = place.is_relative_to(folder.resolve()) and place.is_file()
            size = place.stat().st_size
        except (OSError, ValueError, RuntimeError):
            return None
        # blobs bear the names of their content; a snapshot of plain files does not say what the hub calls them
        if not inside or place.parent.name != "blobs" or not _HASH.fullmatch(place.name):
            return None
        return File(repo=repo, path=path, commit=commit, etag=place.name, size=size, place=place)

    def files(self, repo: Repo, commit: str) -> list[File]:
        """All files of a commit that the host has."""
        top = self.root / repo.folder / "snapshots" / commit
        try:
            names = sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir())
        except OSError:
            return []
        return [found for name in names if (found := self.file(repo, commit, name))]


class Unavailable(Exception):
    """The hub gives no answer now."""


@dataclass(frozen=True, kw_only=True)
class Answered(Exception):
    """The hub said no: no such file, a licence that was not accepted, and the like.

    Attributes:
        headers: those that its clients read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Hub:
    """The hub, asked through the host's proxy, and for gated repositories with the host's token."""

    def __init__(self, context: Context, config: HubConfig) -> None:
        self._context = context
        self._config = config
        self.answered = False
        """Whether the hub has answered anything in this run."""
        self._host = urlsplit(config.upstream).netloc
        self._base = urlsplit(config.upstream).path.rstrip("/")

    def url(self, path: str) -> str:
        """The address of a path of the hub."""
        return self._config.upstream + path

    def of_hub(self, url: str) -> str | None:
        """The path of an address on the hub, without what a mirror has before it; `None` for other hosts."""
        parts = urlsplit(url)
        if parts.netloc != self._host:
            return None
        return parts.path.removeprefix(self._base) + (f"?{parts.query}" if parts.query else "")

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        *,
        check: Check,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, dict[str, str]]]:
        """The hub's answer, redirections followed, and the headers of all hops together, the first of each name.

        A HEAD request is not followed to other hosts: the hub itself has said what its clients ask.

        Args:
            check: looks at every repository that a redirection leads to; raises.

        Raises:
            Answered: the hub says no.
            Unavailable: it says nothing, or that it cannot now.
            aiohttp.ClientError, TimeoutError: within the block, while the body is read.
        """
        url, seen, token = self.url(path), dict[str, str](), False
        for _ in range(_MOST_HOPS):
            response = await self._once(method, url, headers or {}, body, token=token)
            self.answered = True
            try:
                if response.status in (401, 403) and not token and response.headers.get("X-Error-Code") == "GatedRepo":
                    # shown only where a licence asks for it: what else its owner may read is not the agent's
                    token = True
                    continue
                for name, value in response.headers.items():
                    seen.setdefault(name.lower(), value)
                if response.status in _REDIRECTS and "location" in response.headers:
                    url = self._next(url, response.headers["location"], check)
                    if method != "HEAD" or self.of_hub(url) is not None:
                        continue
                elif response.status in _AGAIN:
                    raise Unavailable(f"HTTP {response.status}")
                elif response.status >= 400 and response.status != 416:
                    raise await self._no(response)
                yield response, seen
                return
            finally:
                response.release() if response.content.at_eof() else response.close()
        raise Unavailable("the hub redirects in circles")

    async def _once(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, *, token: bool
    ) -> aiohttp.ClientResponse:
        sent = {"Accept-Encoding": "identity", "User-Agent": "posttrainbench-hub-door", **headers}
        key = self._context.secrets.keys.get(TOKEN) if token else None
        if key and self.of_hub(url) is not None:
            sent["Authorization"] = f"Bearer {key}"
        try:
            return await self._context.session().request(
                method,
                url,
                data=body,
                headers=sent,
                allow_redirects=False,
                proxy=self._context.secrets.proxy if url.startswith("https://") else None,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._context.config.limits.connect_s, sock_read=self._config.idle_s
                ),
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(type(error).__name__) from None

    def _next(self, url: str, location: str, check: Check) -> str:
        target = urljoin(url, location)
        if urlsplit(target).scheme != "https" and urlsplit(url).scheme == "https":
            raise Unavailable("the hub redirects to an address that is not https")
        path = self.of_hub(target)
        if path is not None:
            # a repository that moved is judged by its present name
            if path.startswith(_REPO_CACHE):
                kind, _, rest = path.removeprefix(_REPO_CACHE).strip("/").partition("/")
                owner, name, commit, inner = (*rest.split("/", 3), "", "", "")[:4]
                path = f"/{'' if kind == 'models' else kind + '/'}{owner}/{name}/resolve/{commit}/{inner}"
            try:
                repo = read("GET", path).repo
            except (Refusal, UnicodeDecodeError):
                raise Unavailable("the hub redirects to what is not understood") from None
            if repo is not None:
                check(repo)
        return target

    async def _no(self, response: aiohttp.ClientResponse) -> Answered:
        try:
            body = await response.content.read(4096)
        except (aiohttp.ClientError, TimeoutError):
            body = b""
        named = ("X-Error-Code", "X-Error-Message", "X-Repo-Commit", "Retry-After")
        headers = {name: response.headers[name][:1000] for name in named if name in response.headers}
        return Answered(status=response.status, headers=headers, body=body)

    async def again(self, action: Callable[[], Any]) -> Any:
        """Do what `action` starts until the hub has an answer.

        Raises:
            Unavailable: it had none several times.
        """
        for number in range(1, self._config.tries + 1):
            try:
                return await action()
            except (Unavailable, aiohttp.ClientError, TimeoutError) as error:
                if number == self._config.tries:
                    raise Unavailable(str(error) or type(error).__name__) from None
                await asyncio.sleep(min(_LONGEST_PAUSE_S, 0.25 * 2**number))
        raise Unavailable("no try was made")

    async def head(self, repo: Repo, revision: str, path: str, check: Check) -> File:
        """What the hub says of a file.

        Raises:
            Answered, Unavailable: it is not to be had.
        """
        moved = [repo]

        def follow(found: Repo) -> None:
            check(found)
            moved.append(found)

        async def action() -> File:
            async with self.ask("HEAD", repo.resolve(revision, path), check=follow) as (response, seen):
                etag = seen.get("x-linked-etag") or response.headers.get("ETag") or ""
                size = seen.get("x-linked-size") or (
                    response.headers.get("Content-Length") if response.status == 200 else None
                )
                return File(
                    repo=moved[-1],
                    path=path,
                    commit=seen.get("x-repo-commit", revision),
                    etag=etag.removeprefix("W/").strip('"').lower(),
                    size=int(size) if size and size.isdigit() else None,
                )

        found: File = await self.again(action)
        return found

    async def json(
        self, path: str, check: Check, *, limit: int, body: bytes | None = None, kind: str = ""
    ) -> tuple[bytes, dict[str, str]]:
        """A short answer whole, and its headers.

        Raises:
            Answered, Unavailable: there is none.
        """

        async def action() -> tuple[bytes, dict[str, str]]:
            headers = {"Content-Type": kind} if kind else {}
            async with self.ask(
                "GET" if body is None else "POST", path, check=check, headers=headers, body=body
            ) as found:
                response, seen = found
                data = bytearray()
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > limit:
                        raise Answered(status=413, headers={"X-Error-Message": "The hub's answer is too long."})
                return bytes(data), {**seen, **{name.lower(): value for name, value in response.headers.items()}}

        found: tuple[bytes, dict[str, str]] = await self.again(action)
        return found

    async def pieces(self, file: File, begin: int, end: int | None, check: Check) -> AsyncIterator[bytes]:
        """The bytes from `begin` to `end` (exclusive), going on after cuts.

        Raises:
            Answered, Unavailable: they are not to be had.
        """
        at, tries, path = begin, 0, file.repo.resolve(file.commit, file.path)
        while end is None or at < end:
            before = at
            last = "" if end is None else str(end - 1)
            headers = {"Range": f"bytes={at}-{last}"} if at or (end is not None and end != file.size) else {}
            try:
                async with self.ask("GET", path, check=check, headers=headers) as (response, _):
                    if response.headers.get("Content-Encoding", "identity") != "identity":
                        raise Unavailable("the hub compresses what must not be compressed")
                    # a server without ranges begins anew
                    skip = at if response.status == 200 else 0
                    async for piece in response.content.iter_any():
                        if skip:
                            piece, skip = piece[skip:], max(0, skip - len(piece))
                        piece = piece if end is None else piece[: end - at]
                        if piece:
                            at += len(piece)
                            yield piece
                        if at == end:
                            return
                if end is None:
                    return
                raise Unavailable("the hub's answer ended early")
            except (Unavailable, aiohttp.ClientError, TimeoutError) as error:
                # a connection that brought something is worth another one
                tries = 1 if at > before else tries + 1
                if tries >= self._config.tries:
                    raise Unavailable(str(error) or type(error).__name__) from None
                await asyncio.sleep(min(_LONGEST_PAUSE_S, 0.25 * 2**tries))


async def cached_pieces(place: Path, begin: int, end: int) -> AsyncIterator[bytes]:
    """Bytes of a file on this machine, read beside the event loop."""
    file = await asyncio.to_thread(place.open, "rb")
    with file:
        file.seek(begin)
        while begin < end:
            piece = await asyncio.to_thread(file.read, min(4 * PIECE, end - begin))
            if not piece:
                raise Unavailable("a file in the host's cache is shorter than it was")
            begin += len(piece)
            yield piece
