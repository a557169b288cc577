"""Ways out by the network that do not lead through the gateway."""

# ruff: noqa: PTH115, PTH123, PTH208
# system calls are what is tried here, not paths

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct

from .common import ORDERS, Escaped, NotHere, add, all_refused, attempt, call

NAMESPACE = "an empty network namespace"
FILTER = "system call filter"
CAPABILITY = "no capabilities"
_METADATA = "169.254.169.254"


def _tcp(host: str, port: int, family: int = socket.AF_INET, *more: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        client.connect((host, port, *more))


def _udp(host: str, port: int, family: int = socket.AF_INET, **options: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        for option in options.values():
            client.setsockopt(socket.SOL_SOCKET, option, 1)
        client.sendto(b"?", (host, port))


add("TCP over IPv4", NAMESPACE, lambda: _tcp("192.0.2.1", 80))
add("TCP over IPv6", NAMESPACE, lambda: _tcp("2001:db8::1", 80, socket.AF_INET6))
add("UDP over IPv4", NAMESPACE, lambda: _udp("192.0.2.1", 53))
add("UDP over IPv6", NAMESPACE, lambda: _udp("2001:db8::1", 53, socket.AF_INET6))
add("multicast and broadcast", NAMESPACE, lambda: all_refused(
    lambda: _udp("224.0.0.251", 5353), lambda: _udp("255.255.255.255", 67, allow=socket.SO_BROADCAST)))  # fmt: skip
add("the cloud's metadata address", NAMESPACE, lambda: _tcp(_METADATA, 80))
add("link-local IPv6", NAMESPACE, lambda: _tcp("fe80::1", 80, socket.AF_INET6, 0, 1))
add("a server on the host's loopback", NAMESPACE, lambda: all_refused(
    lambda: _tcp("127.0.0.1", ORDERS["port"]), lambda: _tcp("127.0.0.2", ORDERS["port"]),
    lambda: _tcp("0.0.0.0", ORDERS["port"]), lambda: _tcp("::1", ORDERS["port"], socket.AF_INET6),
    lambda: _tcp("::ffff:127.0.0.1", ORDERS["port"], socket.AF_INET6)))  # fmt: skip
add("a name server, directly", NAMESPACE, lambda: _udp("192.0.2.53", 53))


@attempt("looking up a name", "a resolver that is not there")
def dns() -> None:
    try:
        socket.getaddrinfo(f"{ORDERS['token']}.example.com", 80)
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, str(error)) from None


@attempt("a socket of the host's by its abstract name", NAMESPACE)
def abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect("\0" + ORDERS["abstract"])


@attempt("sockets of the host's by path", "the host's directories are not there")
def host_sockets() -> str:
    paths = [
        *("/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock"),
        *("/run/dbus/system_bus_socket", "/run/systemd/private", "/dev/log", "/tmp/.X11-unix/X0"),
        *(ORDERS["socket"], f"/proc/1/root{ORDERS['socket']}"),
    ]

    def connect(path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)

    return all_refused(*(lambda path=path: connect(path) for path in paths))  # type: ignore[misc]


def _socket(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


add("raw IP packets", CAPABILITY, lambda: all_refused(
    lambda: _socket(socket.AF_INET, socket.SOCK_RAW, 255), lambda: _socket(socket.AF_INET6, socket.SOCK_RAW, 58)))  # fmt: skip
add("AF_VSOCK to the hypervisor", FILTER, lambda: _socket(40, socket.SOCK_STREAM))
add("AF_PACKET", FILTER, lambda: _socket(17, socket.SOCK_RAW))
add("AF_ALG, Bluetooth, CAN, XDP", FILTER, lambda: all_refused(
    *(lambda family=family: _socket(family, socket.SOCK_SEQPACKET) for family in (38, 31, 29, 44))))  # fmt: skip
add("protocols that load kernel modules (SCTP, DCCP, UDP-Lite)", FILTER, lambda: all_refused(
    lambda: _socket(socket.AF_INET, socket.SOCK_STREAM, 132), lambda: _socket(socket.AF_INET, 6, 33),
    lambda: _socket(socket.AF_INET6, socket.SOCK_DGRAM, 136)))  # fmt: skip


@attempt("ping", CAPABILITY)
def ping() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as client:
        client.sendto(b"\x08\0\xf7\xff\0\0\0\0", ("192.0.2.1", 0))


def _netlink(kind: int, flags: int, body: bytes, protocol: int = 0) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as link:
        link.settimeout(3)
        link.send(struct.pack("=IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
        answer = link.recv(65536)
        (code,) = struct.unpack_from("=i", answer, 16)
        if code < 0:
            raise OSError(-code, os.strerror(-code))


@attempt("adding a route", CAPABILITY)
def add_route() -> None:
    # RTM_NEWROUTE: 0.0.0.0/0 by lo
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0) + struct.pack("=HHI", 8, 4, 1)
    _netlink(24, 0x400, body)


@attempt("adding a network interface", CAPABILITY)
def add_interface() -> None:
    kind = struct.pack("=HH8s", 10, 1, b"dummy\0\0\0")
    name = struct.pack("=HH8s", 12, 3, b"ptbesc0\0")
    _netlink(16, 0x600, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + name + struct.pack("=HH", 4 + len(kind), 18) + kind)


@attempt("giving the loopback an address", CAPABILITY)
def address() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, 0x8916, struct.pack("16sHHI8x", b"lo", socket.AF_INET, 0, 0x010200C0))


@attempt("packet filter rules", CAPABILITY)
def netfilter() -> None:
    try:
        _netlink(0x0A00, 0, struct.pack("=BBH", 2, 0, 0), protocol=12)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            raise NotHere("this kernel has no nfnetlink") from None
        raise


@attempt("listing the host's sockets by netlink", NAMESPACE)
def socket_diagnosis() -> str:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as link:
        link.settimeout(3)
        body = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + b"\0" * 48
        link.send(struct.pack("=IHHII", 16 + len(body), 20, 0x301, 1, 0) + body)
        answer = link.recv(1 << 20)
    if struct.pack(">H", ORDERS["port"]) in answer:
        raise Escaped("the host's server is in the list")
    return "only its own"


@attempt("a tunnel device", "no such device node")
def tun() -> None:
    os.open("/dev/net/tun", os.O_RDWR)


@attempt("entering the namespaces of process 1", CAPABILITY)
def enter() -> str:
    return all_refused(
        *(
            lambda kind=kind: call("setns", os.open(f"/proc/1/ns/{kind}", os.O_RDONLY), 0)  # type: ignore[misc]
            for kind in ("user", "net", "mnt", "pid", "ipc", "uts", "cgroup")
        )
    )


@attempt("the namespaces above by ioctl", CAPABILITY)
def parents() -> str:
    def above(kind: str, order: int) -> None:
        found = fcntl.ioctl(os.open(f"/proc/self/ns/{kind}", os.O_RDONLY), order)
        if os.readlink(f"/proc/self/fd/{found}") == os.readlink("/proc/self/ns/user"):
            raise OSError(errno.EPERM, "it is the own one, where a container has none for itself")

    return all_refused(lambda: above("user", 0xB702), lambda: above("net", 0xB701), lambda: above("pid", 0xB702))


@attempt("a socket by io_uring", FILTER)
def io_uring() -> None:
    call("io_uring_setup", 8, ctypes.create_string_buffer(120))


@attempt("taking the gateway's port (SO_REUSEPORT, wildcard, IPv6)", "the harness listened before the command began")
def hijack() -> str:
    def listen(family: int, host: str) -> None:
        with socket.socket(family, socket.SOCK_STREAM) as server:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                server.setsockopt(socket.SOL_SOCKET, option, 1)
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind((host, 3128))
            server.listen()

    return all_refused(
        lambda: listen(socket.AF_INET, "127.0.0.1"),
        lambda: listen(socket.AF_INET, "0.0.0.0"),
        lambda: listen(socket.AF_INET6, "::"),
        lambda: listen(socket.AF_INET6, "::ffff:127.0.0.1"),
    )


@attempt("taking the gateway's listening socket itself", "no process inside ever has it")
def steal_listener() -> str:
    with open("/proc/net/tcp") as file:
        inodes = {line.split()[9] for line in file if line.split()[1] == "0100007F:0C38" and line.split()[3] == "0A"}
    holders = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            except OSError:
                continue
            if target.removeprefix("socket:[").removesuffix("]") in inodes:
                holders.append(pid)
    if holders or not inodes:
        raise Escaped(f"held by {holders}" if holders else "there is no listener to be seen, so nothing was tried")
    return "no descriptor to take"
