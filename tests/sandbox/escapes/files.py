"""Ways to other files: writing what is read-only, mounts, device nodes, links, set-user-id programs."""

# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH118, PTH120, PTH123, PTH208, PTH211
# system calls are what is tried here, not paths

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import struct
import subprocess

from .common import ORDERS, Escaped, NotHere, add, all_refused, attempt, call, checked, libc

READ_ONLY = "read-only binds"
CAPABILITY = "no capabilities"
_AT_FDCWD = -100


def _write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))


def _base(name: str = "config.json") -> str:
    return os.path.join(ORDERS["model"], name)


add("writing to the system", READ_ONLY, lambda: all_refused(
    *(lambda p=p: _write(f"{p}/{ORDERS['token']}") for p in ("/", "/usr", "/usr/bin", "/etc", "/usr/local/bin"))))  # fmt: skip
add("changing system files", READ_ONLY, lambda: all_refused(
    *(lambda p=p: _write(p) for p in ("/etc/passwd", "/etc/ld.so.cache", "/usr/bin/env", "/etc/resolv.conf"))))  # fmt: skip
add("changing the shared base model", READ_ONLY, lambda: all_refused(
    lambda: _write(_base()), lambda: os.truncate(_base(), 0), lambda: os.unlink(_base()), lambda: os.chmod(_base(), 0o777),
    lambda: os.rename(_base(), _base("x")), lambda: _write(_base("new")), lambda: os.utime(_base())))  # fmt: skip
add("a hard link to a read-only file, to write there", "links end at mounts", lambda: all_refused(
    lambda: os.link(_base(), "stolen"), lambda: os.link("/usr/bin/su", "/tmp/su")))  # fmt: skip
add("replacing the deadline", READ_ONLY, lambda: all_refused(
    lambda: _write("/run/ptb/deadline"), lambda: os.unlink("/run/ptb/deadline"),
    lambda: os.rename("/run/ptb", "/run/old"), lambda: os.rmdir("/run/ptb")))  # fmt: skip


@attempt("re-opening a read-only file for writing by its descriptor", READ_ONLY)
def reopen() -> None:
    handle = os.open(_base(), os.O_RDONLY)
    os.close(os.open(f"/proc/self/fd/{handle}", os.O_RDWR))


@attempt("the harness's own packages", READ_ONLY)
def packages() -> None:
    import posttrainbench

    _write(os.path.join(os.path.dirname(posttrainbench.__file__), "sitecustomize.py"))


def _mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int) -> None:
    checked(libc.mount(source, target, kind, ctypes.c_ulong(flags), None))


add("remounting read-write", CAPABILITY, lambda: all_refused(
    *(lambda p=p: _mount(None, p, None, 0x20 | 0x1000) for p in (b"/", b"/usr", ORDERS["model"].encode()))))  # fmt: skip
add("mounting", CAPABILITY, lambda: all_refused(
    lambda: _mount(b"x", b"/tmp", b"tmpfs", 0), lambda: _mount(b"/", b"/tmp", None, 0x1000 | 0x4000),
    lambda: _mount(b"proc", b"/tmp", b"proc", 0), lambda: _mount(b"cgroup", b"/tmp", b"cgroup2", 0),
    lambda: _mount(b"/dev/vda", b"/tmp", b"ext4", 0), lambda: _mount(b"sysfs", b"/tmp", b"sysfs", 0)))  # fmt: skip
add("unmounting what covers something", CAPABILITY, lambda: all_refused(
    *(lambda p=p: call("umount2", ctypes.c_char_p(p), 2) for p in (b"/tmp", b"/home/agent", b"/usr", b"/proc", b"/"))))  # fmt: skip
add("mounts by the new calls (open_tree, fsopen, move_mount)", CAPABILITY, lambda: all_refused(
    lambda: call("open_tree", _AT_FDCWD, ctypes.c_char_p(b"/usr"), 1), lambda: call("fsopen", ctypes.c_char_p(b"tmpfs"), 0),
    lambda: call("fspick", _AT_FDCWD, ctypes.c_char_p(b"/usr"), 0),
    lambda: call("move_mount", os.open("/usr", os.O_PATH), ctypes.c_char_p(b""), _AT_FDCWD, ctypes.c_char_p(b"/tmp"), 4),
    lambda: call("mount_setattr", _AT_FDCWD, ctypes.c_char_p(b"/usr"), 0x8000,
                 ctypes.create_string_buffer(struct.pack("=QQQQ", 0, 1, 0, 0)), 32)))  # fmt: skip
add("pivot_root and chroot", CAPABILITY, lambda: all_refused(
    lambda: call("pivot_root", ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(b"/tmp")), lambda: os.chroot("/tmp")))  # fmt: skip


@attempt("out through the root of process 1", "the host's root is unmounted")
def root_of_init() -> str:
    for top in ("/proc/1/root", "/proc/1/cwd", "/proc/self/root"):
        for path in (f"{top}{ORDERS['secret']}", f"{top}/../../../..{ORDERS['secret']}", f"{top}/oldroot"):
            if os.path.lexists(path):
                raise Escaped(f"{path} is there")
    return "nothing of the host's there"


@attempt("a file of the host's by its path, and by links and dots", "it is not there")
def host_file() -> str:
    os.symlink(ORDERS["secret"], "to-host")

    def shadow() -> None:
        with open("/etc/shadow", "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != ORDERS["shadow"]:
                raise FileNotFoundError("an image's own, all of which is its user's with apptainer")

    ways = (ORDERS["secret"], "to-host", "../" * 30 + ORDERS["secret"], "/root/.ssh/id_rsa", "/etc/ssh")
    return all_refused(shadow, *(lambda p=p: os.open(p, os.O_RDONLY) for p in ways))  # type: ignore[misc]


@attempt("other runs' directories", "they are not there")
def other_runs() -> str:
    ways = (ORDERS["results"], f"/proc/1/root{ORDERS['results']}", f"/home/agent/../..{ORDERS['results']}")
    return all_refused(*(lambda p=p: os.listdir(p) for p in ways))  # type: ignore[misc]


@attempt("a file by its inode (open_by_handle_at)", "system call filter")
def by_handle() -> None:
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + b"\0" * 128)
    with contextlib.suppress(OSError):
        call("name_to_handle_at", _AT_FDCWD, ctypes.c_char_p(b"/home/agent"), handle, ctypes.byref(ctypes.c_int()), 0)
    call("open_by_handle_at", os.open("/home/agent", os.O_RDONLY), handle, os.O_RDONLY)


@attempt("making device nodes", CAPABILITY)
def device_nodes() -> str:
    devices = [(stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 254, 0), (stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 10, 232)]
    return all_refused(
        *(lambda d=d: os.mknod("node", d[0] | 0o666, os.makedev(d[1], d[2])) for d in devices)  # type: ignore[misc]
    )


@attempt("device nodes of the host's", "a /dev of its own")
def host_devices() -> str:
    names = "mem kmem port kmsg kvm fuse vda sda nvme0n1 loop0 loop-control vhost-net vsock hwrng rtc0 uinput cpu_dma_latency"
    ways = [f"/dev/{name}" for name in names.split()]
    return all_refused(*(lambda p=p: os.open(p, os.O_RDWR) for p in ways))  # type: ignore[misc]


@attempt("the terminal of whoever started the harness (TIOCSTI)", "a session of its own, pipes for files")
def terminal() -> str:
    return all_refused(
        lambda: os.open("/dev/tty", os.O_RDWR),
        *(lambda fd=fd: fcntl.ioctl(fd, 0x5412, b"x") for fd in (0, 1, 2)),  # type: ignore[misc]
        *(lambda fd=fd: os.tcsetpgrp(fd, os.getpgrp()) for fd in (0, 1, 2)),  # type: ignore[misc]
        lambda: os.open("/dev/console", os.O_RDWR),
    )


@attempt("set-user-id programs of the system", "no_new_privs, mounts without set-user-id")
def set_user_id() -> str:
    tried = []
    for command in (["su", "-c", "id -u"], ["sudo", "-n", "id", "-u"], ["mount", "-t", "tmpfs", "x", "/tmp"],
                    ["newuidmap", str(os.getpid()), "0", "0", "1"], ["pkexec", "id"], ["chsh", "-s", "/bin/sh", "root"]):  # fmt: skip
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run(command, input="", capture_output=True, text=True, timeout=15, check=False)
        tried.append(command[0])
        if done.returncode == 0 or done.stdout.strip() == "0":
            raise Escaped(f"{command[0]}: {done.stdout.strip()}")
    if not tried:
        raise NotHere("there is no such program")
    return f"{', '.join(tried)} gained nothing"


@attempt("a set-user-id program of its own", "its files belong to a user without rights")
def own_set_user_id() -> str:
    shutil.copyfile("/usr/bin/id", "myid")
    try:
        os.chown("myid", 0, 0)
    except OSError as error:
        owner = errno.errorcode[error.errno or 0]
    else:
        raise Escaped("chown to root")
    os.chmod("myid", 0o6755)
    seen = subprocess.run(["./myid", "-u"], capture_output=True, text=True, check=False).stdout.strip()
    if seen != str(os.getuid()):
        raise Escaped(f"user {seen}")
    return f"chown {owner}; it runs as user {seen}"


@attempt("file capabilities", CAPABILITY)
def file_capabilities() -> None:
    shutil.copyfile("/usr/bin/id", "capable")
    os.setxattr("capable", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0))


@attempt("immutable files and another project quota", CAPABILITY)
def attributes() -> str:
    with open("attributes", "w") as file:
        return all_refused(
            lambda: fcntl.ioctl(file, 0x40086602, struct.pack("l", 0x10)),
            lambda: fcntl.ioctl(file, 0x401C5820, struct.pack("=IIIII8x", 0, 0, 0, 4711, 0)),
        )


@attempt("watching all of a mount (fanotify)", CAPABILITY)
def fanotify() -> None:
    handle = call("fanotify_init", 0, 0)
    call("fanotify_mark", handle, 0x11, 0x20, _AT_FDCWD, ctypes.c_char_p(b"/usr"))


@attempt("swap, quota and accounting files", "system call filter")
def accounting() -> str:
    return all_refused(
        lambda: call("swapon", ctypes.c_char_p(b"/home/agent/attributes"), 0),
        lambda: call("acct", ctypes.c_char_p(b"/home/agent/attributes")),
        lambda: call("quotactl", 0x800007, ctypes.c_char_p(b"/dev/vda"), 0, 0),
    )


@attempt("control groups (release_agent, cgroup.procs)", "no control group file system inside")
def control_groups() -> str:
    ways = [f"/sys/fs/cgroup{path}" for path in ("/cgroup.procs", "/memory/cgroup.procs", "/rdma/release_agent", "/x")]
    return all_refused(*(lambda p=p: os.open(p, os.O_WRONLY) for p in ways))  # type: ignore[misc]


@attempt("settings below /sys", "no /sys, or a read-only one with GPUs")
def sys_writes() -> str:
    ways = (
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/module/x",
    )
    return all_refused(*(lambda p=p: os.open(p, os.O_WRONLY) for p in ways))  # type: ignore[misc]
