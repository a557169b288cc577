"""The parts that need no sandbox: filter, arguments, devices, runtime paths."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.sandbox import Spec, python_runtime
from posttrainbench.sandbox.command import Bwrap, bwrap_arguments
from posttrainbench.sandbox.gpu import gpu_arguments, gpu_indices
from posttrainbench.sandbox.seccomp import build_filter

ALLOW = 0x7FFF0000
X86, ARM = 0xC000003E, 0xC00000B7


def judge(program: bytes, architecture: int, number: int, argument: int = 0, protocol: int = 0) -> int:
    """Interpret the filter as the kernel does; gives the errno, or 0 for allowed."""
    data = {0: number, 4: architecture, 16: argument, 32: protocol}
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        operation, true, false, operand = code[at]
        at += 1
        if operation == 0x20:
            accumulator = data[operand]
        elif operation == 0x06:
            return 0 if operand == ALLOW else operand & 0xFFFF
        else:
            holds = accumulator == operand if operation == 0x15 else accumulator >= operand
            at += true if holds else false


@pytest.mark.parametrize(
    ("machine", "architecture", "socket", "bpf", "read"),
    [("x86_64", X86, 41, 321, 0), ("aarch64", ARM, 198, 280, 63)],
)
def test_filter(machine, architecture, socket, bpf, read):
    program = build_filter(machine)
    for family in (1, 2, 10, 16):
        assert judge(program, architecture, socket, family) == 0
    for family in (2, 10):
        assert all(judge(program, architecture, socket, family, protocol) == 0 for protocol in (1, 6, 17, 58))
        for protocol in (33, 132, 136, 255, 262):  # DCCP, SCTP, UDP-Lite, raw, MPTCP
            assert judge(program, architecture, socket, family, protocol) == errno.EPROTONOSUPPORT
    assert judge(program, architecture, socket, 16, 16) == judge(program, architecture, socket, 1, 5) == 0
    for family in (0, 17, 38, 40, 44):  # packet, alg, vsock, xdp
        assert judge(program, architecture, socket, family) == errno.EAFNOSUPPORT
    assert judge(program, architecture, bpf) == errno.EPERM
    assert judge(program, architecture, read) == 0
    for number in (425, 426, 427):
        assert judge(program, architecture, number) == errno.ENOSYS
    assert judge(program, 0x40000003, read) == errno.EPERM  # i386 calls
    memfd_create = 319 if machine == "x86_64" else 279
    assert judge(program, architecture, memfd_create) == 0  # CUDA needs it
    if machine == "x86_64":
        assert judge(program, architecture, 0x40000000 | socket, 40) == errno.ENOSYS


def test_filter_for_unknown_processor():
    with pytest.raises(InfrastructureError, match="riscv64"):
        build_filter("riscv64")


def arguments(spec: Spec, **fields: object) -> list[str]:
    given = {"bwrap": Bwrap("/usr/bin/bwrap", (0, 11), frozenset({"--overlay", "--disable-userns"})), "layers": {}}
    sources = {path: f"/from{path}" for path in {**spec.ro, **spec.rw}}
    return bwrap_arguments(spec, **{**given, "sources": sources, **fields}, attach=lambda _: 50, info=51)


def position(found: list[str], *wanted: str) -> int:
    at = [i for i in range(len(found)) if tuple(found[i : i + len(wanted)]) == wanted]
    assert len(at) == 1, (wanted, found)
    return at[0]


def test_order_of_binds():
    spec = Spec(
        argv=["x"],
        ro={"/home/agent/work/data": Path("/a"), "/opt/v": Path("/b")},
        rw={"/home/agent/work": Path("/c")},
        hide=["/opt/v/h"],
    )
    found = arguments(spec)
    order = [
        position(found, "--tmpfs", "/home"),
        position(found, "--bind", "/from/home/agent/work", "/home/agent/work"),
        position(found, "--ro-bind", "/from/home/agent/work/data", "/home/agent/work/data"),
        position(found, "--remount-ro", "/"),
    ]
    assert order == sorted(order)


def test_overlay_by_bwrap_itself():
    layer = {"lowerdir": "/l", "upperdir": "/u", "workdir": "/w"}
    found = arguments(Spec(argv=["x"], caches={"/c": Path("/l")}), layers={"/c": layer})
    position(found, "--overlay-src", "/l", "--overlay", "/u", "/w", "/c")


def test_old_bwrap_gets_no_new_option():
    found = arguments(Spec(argv=["x"]), bwrap=Bwrap("/usr/bin/bwrap", (0, 4), frozenset()))
    assert "--disable-userns" not in found


def test_gpu_devices(tmp_path):
    for name in (
        "nvidia0",
        "nvidia1",
        "nvidia10",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia-caps/nvidia-cap1",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert gpu_indices(tmp_path) == [0, 1, 10]
    found = gpu_arguments([1], tmp_path)
    for name in ("nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps/nvidia-cap1"):
        position(found, "--dev-bind", str(tmp_path / name), f"/dev/{name}")
    position(found, "--ro-bind", "/sys", "/sys")
    assert "/dev/nvidia0" not in found
    assert "/dev/nvidia-modeset" not in found  # not there, not bound
    assert gpu_arguments([], tmp_path) == []
    with pytest.raises(ConfigurationError, match=r"GPU 2 .*0, 1, 10"):
        gpu_arguments([2], tmp_path)


def test_python_runtime_covers_every_link_of_the_interpreter():
    binds = python_runtime()
    here = Path(sys.executable)
    for _ in range(20):
        assert any(here.is_relative_to(bind) for bind in [*binds, "/usr"]), here
        if not here.is_symlink():
            break
        here = Path(sys.executable).parent / here.readlink() if not here.readlink().is_absolute() else here.readlink()
    assert all(host.exists() for host in binds.values())
    assert not any(Path(path).is_relative_to("/usr") for path in binds)


def test_editable_install_binds_the_package_only():
    import posttrainbench

    package = Path(posttrainbench.__file__).parent
    assert not any(package.is_relative_to(path) and Path(path) != package for path in python_runtime()) or (
        package.is_relative_to(sys.prefix)
    )


def test_import_is_light():
    code = (
        "import sys; before=set(sys.modules); import posttrainbench.sandbox; heavy={'numpy','torch','click','ctypes'};"
        "print(sorted(m for m in set(sys.modules)-before if m.split('.')[0] in heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
