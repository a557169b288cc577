"""The system call filter of the sandbox, as classic BPF: bwrap or a container's pid 1 loads it. Standard library only.

Default allow; what is refused is what a coding agent never needs and what opens a way around the other walls:

- socket families other than unix, inet, inet6 and netlink. AF_VSOCK above all: the network namespace does not cover it,
  so without a filter a guest could talk to its hypervisor (measured on kernels 6.1 and 6.18).
- internet protocols other than TCP, UDP and ICMP: for SCTP and its like the kernel loads a module into the host.
- io_uring: its socket operation would pass below the rule for `socket`.
- kernel keyrings, bpf, userfaultfd, perf, modules, kexec, swap, quota: attack surface without use.
- syslog: the kernel's messages tell of the host and of other runs, where it lets users read them.

Allowed on purpose: memfd_create (CUDA's initialisation needs it), ptrace (debuggers), ioctl and mmap (GPU drivers).
"""

from __future__ import annotations

import errno
import platform
import struct

from posttrainbench.errors import InfrastructureError

# Opcodes and return values: linux/bpf_common.h, linux/seccomp.h.
_LOAD_WORD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
# Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_2 = 0, 4, 16, 32

_X32_BIT = 0x40000000
_INTERNET = (2, 10)  # AF_INET, AF_INET6
_FAMILIES = (1, *_INTERNET, 16)  # AF_UNIX, AF_NETLINK
_PROTOCOLS = (0, 1, 6, 17, 58)  # the family's own, ICMP, TCP, UDP, ICMPv6
_IO_URING = (425, 426, 427)  # the same numbers everywhere
_CLONE3 = 435  # its flags are in memory, where a filter cannot look; without it the C library takes clone
_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET

_X86_64 = {
    "socket": 41,
    "acct": 163,
    "swapon": 167,
    "swapoff": 168,
    "syslog": 103,
    "reboot": 169,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "perf_event_open": 298,
    "open_by_handle_at": 304,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
}
_AARCH64 = {
    "socket": 198,
    "acct": 89,
    "swapon": 224,
    "swapoff": 225,
    "syslog": 116,
    "reboot": 142,
    "init_module": 105,
    "delete_module": 106,
    "quotactl": 60,
    "kexec_load": 104,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "perf_event_open": 241,
    "open_by_handle_at": 265,
    "finit_module": 273,
    "kexec_file_load": 294,
    "bpf": 280,
    "userfaultfd": 282,
}
_TABLES = {
    "x86_64": (0xC000003E, _X86_64),
    "aarch64": (0xC00000B7, _AARCH64),
    "arm64": (0xC00000B7, _AARCH64),
}
# clone, unshare, setns
_NEW_NAMESPACES = {"x86_64": (56, 272, 308), "aarch64": (220, 97, 268), "arm64": (220, 97, 268)}


def _socket_rules(number: int) -> list[tuple[int, int, int, int]]:
    """Instructions that let known families and, of the internet, known protocols on to the instruction after them."""
    size = 1 + 1 + len(_FAMILIES) + 1 + 1 + len(_PROTOCOLS) + 1
    protocols = 1 + 1 + len(_FAMILIES) + 1
    rules = [(_JUMP_EQUAL, 0, size - 1, number), (_LOAD_WORD, 0, 0, _ARGUMENT_0)]
    for family in _FAMILIES:
        target = protocols if family in _INTERNET else size
        rules.append((_JUMP_EQUAL, target - len(rules) - 1, 0, family))
    rules.append((_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT))
    rules.append((_LOAD_WORD, 0, 0, _ARGUMENT_2))
    for protocol in _PROTOCOLS:
        rules.append((_JUMP_EQUAL, size - len(rules) - 1, 0, protocol))
    rules.append((_RETURN, 0, 0, _ERRNO | errno.EPROTONOSUPPORT))
    return rules


def build_filter(machine: str | None = None, *, namespaces: bool = True) -> bytes:
    """Assemble the filter.

    Args:
        machine: as `platform.machine()` says it; default this one.
        namespaces: whether new namespaces may be made and entered. bwrap forbids them by other means, and must make some
            itself after it has read the filter; containers need the rule.

    Raises:
        InfrastructureError: there is no table of system call numbers for this processor.
    """
    machine = machine or platform.machine()
    if machine not in _TABLES:
        raise InfrastructureError(f"no system call filter for processor {machine}: use an x86_64 or aarch64 machine")
    architecture, numbers = _TABLES[machine]
    program: list[tuple[int, int, int, int]] = []

    def answer(value: int) -> None:
        program.append((_RETURN, 0, 0, value))

    def refuse_if(jump: int, operand: int, error: int) -> None:
        program.append((jump, 0, 1, operand))
        answer(_ERRNO | error)

    # A foreign ABI (i386 on x86_64) has other numbers: refuse it as a whole.
    program.append((_LOAD_WORD, 0, 0, _ARCHITECTURE))
    program.append((_JUMP_EQUAL, 1, 0, architecture))
    answer(_ERRNO | errno.EPERM)
    program.append((_LOAD_WORD, 0, 0, _NUMBER))
    if machine == "x86_64":
        refuse_if(_JUMP_GREATER_EQUAL, _X32_BIT, errno.ENOSYS)
    for number in _IO_URING:
        refuse_if(_JUMP_EQUAL, number, errno.ENOSYS)  # ENOSYS makes libraries fall back to epoll
    for name, number in numbers.items():
        if name != "socket":
            refuse_if(_JUMP_EQUAL, number, errno.EPERM)
    if not namespaces:
        clone, unshare, setns = _NEW_NAMESPACES[machine]
        refuse_if(_JUMP_EQUAL, _CLONE3, errno.ENOSYS)
        refuse_if(_JUMP_EQUAL, unshare, errno.EPERM)
        refuse_if(_JUMP_EQUAL, setns, errno.EPERM)
        program.append((_JUMP_EQUAL, 0, 4, clone))
        program.append((_LOAD_WORD, 0, 0, _ARGUMENT_0))
        refuse_if(_JUMP_SET, _NAMESPACES, errno.EPERM)
        answer(_ALLOW)
    program += _socket_rules(numbers["socket"])
    answer(_ALLOW)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
