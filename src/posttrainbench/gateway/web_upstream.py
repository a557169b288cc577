"""Connections of the web door to the outside: straight to a checked address, or through the proxy of the machine."""

from __future__ import annotations

import asyncio
import base64
import ssl
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from posttrainbench.errors import ConfigurationError
from posttrainbench.gateway.web_addresses import Resolver, resolve, system_resolver
from posttrainbench.gateway.web_http import read_head
from posttrainbench.gateway.web_names import Host, Refused
from posttrainbench.gateway.web_rules import Decision

BUFFER = 2**18


@dataclass(frozen=True, kw_only=True)
class MachineProxy:
    """The proxy without which this machine reaches nothing (its HTTPS_PROXY).

    Attributes:
        authorization: value of `Proxy-Authorization`, empty for none.
        tls: whether the proxy itself is spoken to in TLS.
    """

    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> MachineProxy:
        """Read `http://[user:password@]host:port`.

        Raises:
            ConfigurationError: it is no such URL; the message does not repeat it, for it may hold a password.
        """
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("the proxy of this machine is to be given as http://[user:password@]host:port")
        authorization = b""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = b"Basic " + base64.b64encode(pair.encode())
        tls = parts.scheme == "https"
        return cls(host=parts.hostname, port=port or (443 if tls else 80), authorization=authorization, tls=tls)


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """An open connection.

    Attributes:
        address: what was connected to; `proxy` where the machine's proxy knows the rest.
        proxy: the proxy, where it is to be told the whole URL (`http://` requests).
    """

    reader: StreamReader
    writer: StreamWriter
    address: str
    proxy: MachineProxy | None = None

    @property
    def tls(self) -> bool:
        """Whether the connection itself is TLS, as to some proxies."""
        return self.writer.get_extra_info("ssl_object") is not None


@dataclass(frozen=True, kw_only=True)
class Connector:
    """Makes connections.

    Attributes:
        limit_s: for one attempt to connect.
        proxy: the machine's; internal hosts are reached without it.
        resolver: finds addresses.
    """

    limit_s: float
    proxy: MachineProxy | None = None
    resolver: Resolver = system_resolver

    async def open(self, host: Host, port: int, decision: Decision, *, tunnel: bool) -> Upstream:
        """Connect.

        Raises:
            Refused: the host has no address, one that is not allowed, or does not answer.
        """
        if self.proxy is not None and decision.internal is None:
            # what this machine can resolve itself is checked as ever; the rest only the proxy knows
            try:
                await resolve(host, port, internal=None, resolver=self.resolver)
            except Refused as error:
                if error.rule not in ("unknown-host", "name-service"):
                    raise
            return await self._through(self.proxy, host, port, tunnel=tunnel)
        addresses = await resolve(host, port, internal=decision.internal, resolver=self.resolver)
        problem = "no answer"
        for address in addresses:
            try:
                reader, writer = await self._connect(address, port)
            except TimeoutError:
                problem = f"no answer within {self.limit_s:.0f} s"
            except OSError as error:
                problem = error.strerror or type(error).__name__
            else:
                return Upstream(reader=reader, writer=writer, address=address)
        raise Refused("no-connection", f"{host.name}:{port} cannot be reached: {problem}.", status=502)

    async def _connect(
        self, address: str, port: int, *, context: ssl.SSLContext | None = None
    ) -> tuple[StreamReader, StreamWriter]:
        opening = asyncio.open_connection(address, port, limit=BUFFER, ssl=context)
        return await asyncio.wait_for(opening, self.limit_s)

    async def _through(self, proxy: MachineProxy, host: Host, port: int, *, tunnel: bool) -> Upstream:
        try:
            context = ssl.create_default_context() if proxy.tls else None
            reader, writer = await self._connect(proxy.host, proxy.port, context=context)
        except (OSError, TimeoutError):
            raise Refused("no-connection", "The proxy of this machine cannot be reached.", status=502) from None
        if not tunnel:
            return Upstream(reader=reader, writer=writer, address="proxy", proxy=proxy)
        try:
            target = f"{host.in_url()}:{port}".encode()
            lines = [b"CONNECT " + target + b" HTTP/1.1", b"Host: " + target]
            if proxy.authorization:
                lines.append(b"Proxy-Authorization: " + proxy.authorization)
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
            head = await asyncio.wait_for(read_head(reader, response=True), self.limit_s)
            if head.line[1] != b"200":
                status = head.line[1].decode()
                raise Refused(
                    "no-connection", f"The proxy of this machine answered {status} for {host.name}.", status=502
                )
        except (OSError, EOFError, TimeoutError):
            writer.close()
            raise Refused(
                "no-connection", f"The proxy of this machine gave no way to {host.name}.", status=502
            ) from None
        except BaseException:
            writer.close()
            raise
        return Upstream(reader=reader, writer=writer, address="proxy")


async def close(writer: StreamWriter) -> None:
    """Close without waiting for a peer that does not answer."""
    writer.close()
    with suppress(OSError, TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(writer.wait_closed(), 1.0)
