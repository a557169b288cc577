"""The few steps between the harness and bwrap. Runs as its own program: `python -I -S launcher.py FD`.

It is a program and not a function called after fork, because the harness may have threads and large memory, and because
nothing of the harness (environment, open files) may reach what comes after. `FD` holds the plan as JSON (see `main`).

As root it makes a private mount namespace and binds every source into a small staging directory there, since the
sandbox's user cannot walk through directories such as /root (0700); then it gives up root for good. bwrap itself must
never run as root: its sandbox could remount /usr read-write and write to the host. All mounts made here vanish with the
processes that use this namespace.
"""

# ruff: noqa: PTH102, PTH123
# pathlib would be most of the time that this program takes to start.

import ctypes
import json
import os
import resource
import signal
import stat
import sys

OVERLAY_FAILED = 124
FAILED = 125
GATE = 9  # the shell inside can only name single digits
_OOM_SCORE = 500

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode() or None),
        f"mount {kind or 'bind'} on {target}",
    )


def _die_with(parent: int) -> None:
    """Be killed when the harness dies; and end now if that has happened before the kernel knew the wish."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl(PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(FAILED)


def _be_first_to_die() -> None:
    """When the whole machine is short of memory, the kernel is to choose the sandbox and not the harness.

    Set with CAP_SYS_RESOURCE, as root usually has it, the value is also the least that the sandbox can give itself.
    """
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            if int(file.read()) < _OOM_SCORE:
                file.seek(0)
                file.write(str(_OOM_SCORE))
    except OSError:
        pass  # no reason not to run


def _stage(directory: str, binds: list[str], overlays: list[dict[str, str]], uid: int) -> None:
    """Bind `binds` to directory/0.. and mount `overlays` on directory/o0.., in a mount namespace of our own."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare(mounts) needs CAP_SYS_ADMIN: run the harness as an ordinary user")
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    # Opened before the staging directory is covered, which may hide a source; bound through the descriptor, so that
    # odd characters in a path cannot matter.
    sources = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in binds]
    layers = [{key: os.open(path, os.O_PATH | os.O_CLOEXEC) for key, path in layer.items()} for layer in overlays]
    _mount("ptb-staging", directory, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
    for index, source in enumerate(sources):
        target = f"{directory}/{index}"
        if stat.S_ISDIR(os.fstat(source).st_mode):
            os.mkdir(target, 0o755)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(f"/proc/self/fd/{source}", target, "", _MS_BIND | _MS_REC)
    for index, layer in enumerate(layers):
        target = f"{directory}/o{index}"
        os.mkdir(target, 0o755)
        try:
            _overlay(target, layer, uid)
        except OSError as error:
            print(f"overlay: {error}", file=sys.stderr)
            sys.exit(OVERLAY_FAILED)


def _overlay(target: str, layer: dict[str, int], uid: int) -> None:
    """Mount an overlay and give it to `uid`, whoever owns the lower files.

    With `metacopy` a change of owner copies no data up, only the inode: 1000 files take tens of milliseconds.
    """
    options = ",".join(f"{key}=/proc/self/fd/{layer[key]}" for key in ("lowerdir", "upperdir", "workdir"))
    _mount("overlay", target, "overlay", _MS_NOSUID | _MS_NODEV, options + ",metacopy=on")
    for _, directories, files, descriptor in os.fwalk(target, follow_symlinks=False):
        os.chown(descriptor, uid, uid)
        for name in files + directories:
            os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)


def _drop_root(uid: int) -> None:
    """Become `uid` for good: no groups, no capabilities, none to be gained by exec."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # past the last capability this kernel knows
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)  # from 0 to another: the kernel clears all capability sets
    except OSError as error:
        raise OSError(
            error.errno, f"cannot become user {uid} (a container with few users?): {error.strerror}"
        ) from None


def main() -> None:
    """Do what the plan says and become bwrap.

    Plan: `parent` (pid of the harness), `command` (bwrap and its arguments), `gate` (descriptor moved to `GATE`),
    `cgroups` (cgroup.procs files to join), `processes` (RLIMIT_NPROC or null), and with root `uid`, `stage` (directory
    to cover), `binds` and `overlays` (`lowerdir`, `upperdir`, `workdir`).
    """
    plan_descriptor = int(sys.argv[1])
    with open(plan_descriptor, "rb") as file:
        plan = json.load(file)
    _die_with(plan["parent"])
    try:
        for path in plan["cgroups"]:
            with open(path, "w") as file:
                file.write("0")
        _be_first_to_die()
        if plan["stage"]:
            _stage(plan["stage"], plan["binds"], plan["overlays"], plan["uid"])
        if plan["uid"] is not None:
            _drop_root(plan["uid"])
            _die_with(plan["parent"])  # a change of user resets it
        if plan["processes"] is not None:
            hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
            wanted = plan["processes"] if hard == resource.RLIM_INFINITY else min(plan["processes"], hard)
            resource.setrlimit(resource.RLIMIT_NPROC, (wanted, wanted))
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
            resource.setrlimit(limit, (0, 0))  # a machine may let its users have real-time priorities
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(NO_NEW_PRIVS)")
        os.umask(0o022)
        os.chdir("/")
        os.dup2(plan["gate"], GATE, inheritable=True)
        os.close(plan["gate"])
        os.execve(plan["command"][0], plan["command"], {})
    except OSError as error:
        print(f"launcher: {error}", file=sys.stderr)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
