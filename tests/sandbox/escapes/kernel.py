"""Ways by way of the kernel: settings, the clock, modules, keys, system calls of other kinds."""

# ruff: noqa: PTH123
# system calls are what is tried here, not paths

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
import socket
import struct
import time

from .common import ORDERS, Escaped, NotHere, add, all_refused, attempt, call

FILTER = "system call filter"
CAPABILITY = "no capabilities"
OWNER = "they belong to the host's root"


def _write(path: str, text: str = "x") -> None:
    handle = os.open(path, os.O_WRONLY)
    os.write(handle, text.encode())
    os.close(handle)


add("kernel settings (/proc/sys)", OWNER, lambda: all_refused(*(lambda p=p: _write(f"/proc/sys/{p}") for p in (
    "kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/printk", "kernel/sysrq", "vm/overcommit_memory",
    "vm/drop_caches", "fs/file-max", "fs/suid_dumpable", "net/ipv4/ip_forward", "net/ipv4/ip_unprivileged_port_start",
    "user/max_user_namespaces", "fs/binfmt_misc/register"))))  # fmt: skip


def _read(path: str) -> None:
    with open(path, "rb") as file:
        if not file.read(1):
            raise OSError(errno.ENODATA, "covered by an empty file")


add("sysrq-trigger, kcore, kmsg, kpagecount", OWNER, lambda: all_refused(
    lambda: _write("/proc/sysrq-trigger", "h"), lambda: _write("/dev/kmsg", ORDERS["token"]),
    *(lambda p=p: _read(p) for p in (
        "/proc/kcore", "/proc/kmsg", "/proc/kpagecount", "/proc/vmcore", "/proc/slabinfo", "/proc/timer_list"))))  # fmt: skip
add("the kernel's messages", FILTER, lambda: call("syslog", 3, ctypes.create_string_buffer(4096), 4096))
add("the clock", CAPABILITY, lambda: all_refused(
    lambda: time.clock_settime(time.CLOCK_REALTIME, 0), lambda: call("settimeofday", ctypes.create_string_buffer(16), None),
    lambda: call("adjtimex", ctypes.create_string_buffer(struct.pack("=Iiq", 0x4000, 0, 10_000_000) + b"\0" * 200)),
    lambda: call("clock_adjtime", 0, ctypes.create_string_buffer(struct.pack("=Iiq", 1, 0, 0) + b"\0" * 200))))  # fmt: skip
add("host and domain name", CAPABILITY, lambda: all_refused(
    lambda: socket.sethostname(ORDERS["token"]), lambda: call("setdomainname", ctypes.c_char_p(b"x"), 1)))  # fmt: skip
add("restarting the machine", FILTER, lambda: call("reboot", 0xFEE1DEAD, 0x28121969, 0, None))
add("loading a kernel or a module", FILTER, lambda: all_refused(
    lambda: call("kexec_load", 0, 0, None, 0), lambda: call("init_module", None, 0, ctypes.c_char_p(b"")),
    lambda: call("finit_module", 0, ctypes.c_char_p(b""), 0)))  # fmt: skip
add("programs in the kernel (bpf)", FILTER, lambda: call("bpf", 0, ctypes.create_string_buffer(128), 128))
add("watching the machine (perf_event_open)", FILTER, lambda: call(
    "perf_event_open", ctypes.create_string_buffer(struct.pack("=IIQ", 1, 128, 0) + b"\0" * 112), 0, -1, -1, 0))  # fmt: skip
add("holding up the kernel's page faults (userfaultfd)", FILTER, lambda: call("userfaultfd", 0))
add("the kernel's keyrings, shared by all runs", FILTER, lambda: all_refused(
    lambda: call("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(ORDERS["token"].encode()), b"x", 1, -4),
    lambda: call("keyctl", 0, -4, 1), lambda: call("keyctl", 11, 0, None, 0)))  # fmt: skip
add("ports and memory of devices", CAPABILITY, lambda: all_refused(
    lambda: call("iopl", 3), lambda: call("ioperm", 0x3F8, 8, 1), lambda: os.open("/dev/port", os.O_RDWR)))  # fmt: skip
add("hanging up the terminal", CAPABILITY, lambda: call("vhangup"))


def _machine_code(code: bytes) -> int:
    """Run a few bytes of machine code in a child; gives its result, or minus the signal that ended it."""
    if platform.machine() != "x86_64":
        raise NotHere("written for x86_64")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, struct.pack("=i", function()))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return -1000 - os.WTERMSIG(status)
    (result,) = struct.unpack("=i", os.read(reader, 4))
    return int(result)


@attempt("system calls of 32-bit programs (int 0x80)", FILTER)
def compat() -> str:
    result = _machine_code(bytes.fromhex("b814000000cd80c3"))  # getpid
    if result == -1000 - signal.SIGSEGV:
        return "this kernel has none"
    if result >= 0:
        raise Escaped(f"answered {result}")
    return os.strerror(-result)


@attempt("system calls of the x32 kind", FILTER)
def x32() -> str:
    result = _machine_code(bytes.fromhex("b8270000400f05c3"))  # getpid
    if result >= 0:
        raise Escaped(f"answered {result}")
    return os.strerror(-result)


@attempt("kernel addresses", OWNER)
def addresses() -> str:
    with open("/proc/kallsyms") as file:
        first = file.readline().split()
    if first and int(first[0], 16):
        raise Escaped("they can be read")
    return "zeros"


@attempt("a program from memory (memfd) with more rights", "it is as confined as any")
def from_memory() -> str:
    handle = os.memfd_create("x")
    with open("/usr/bin/id", "rb") as file:
        os.write(handle, file.read())
    os.fchmod(handle, 0o4755)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(writer, 1)
        os.execve(handle, ["id", "-u"], {})
    os.close(writer)
    seen = os.read(reader, 100).strip().decode()
    if seen != str(os.getuid()):
        raise Escaped(f"user {seen}")
    return "runs, as the same user"
