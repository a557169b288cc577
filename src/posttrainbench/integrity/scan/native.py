"""The C kernel, compiled where it is first used and kept in the user's cache; without a compiler there is none.

A wheel that needs no compiler to install, and no compiled file in the repository: `cc` (or `$CC`, gcc, clang) turns
`_kernel.c` into a shared library for this very processor in under two seconds. Where that fails, `reference.py` does
the same in Python. `PTB_SCAN_KERNEL=python` asks for that.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
from pathlib import Path

from posttrainbench.files import harness_cache
from posttrainbench.scratch import Scratch

SOURCE = Path(__file__).with_name("_kernel.c")
_FLAGS = ("-std=c11", "-O3", "-shared", "-fPIC", "-w")
_COMPILE_S = 120.0


class Hit(ctypes.Structure):
    """One find of the kernel; `first` and `last` are bytes of the document, right to within 64."""

    _fields_ = (
        ("doc", ctypes.c_int32),
        ("part", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("covered", ctypes.c_int32),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("score", ctypes.c_double),
    )


class Grams(ctypes.Structure):
    """`Grams` of the kernel."""

    _fields_ = (
        ("bits", ctypes.c_void_p),
        ("bit_mask", ctypes.c_uint64),
        ("slots", ctypes.c_void_p),
        ("slot_mask", ctypes.c_uint64),
        ("parts", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
    )


class Index(ctypes.Structure):
    """`Index` of the kernel."""

    _fields_ = (
        ("fold", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("grams", Grams),
        ("shorts", Grams),
        ("templates", Grams),
        ("length", ctypes.c_void_p),
        ("need", ctypes.c_void_p),
        ("template_length", ctypes.c_void_p),
        ("template_need", ctypes.c_void_p),
        ("vocabulary", ctypes.c_void_p),
        ("vocabulary_mask", ctypes.c_uint64),
        ("numerals", ctypes.c_void_p),
        ("numeral_mask", ctypes.c_uint64),
        ("marks", ctypes.c_void_p),
        ("mark_count", ctypes.c_int64),
        ("def_word", ctypes.c_uint64),
        ("stems", ctypes.c_void_p),
        ("stem_ids", ctypes.c_void_p),
        ("stem_mask", ctypes.c_uint64),
        ("posting_first", ctypes.c_void_p),
        ("posting_unit", ctypes.c_void_p),
        ("posting_weight", ctypes.c_void_p),
        ("unit_need", ctypes.c_void_p),
        ("units", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("stem_count", ctypes.c_int64),
    )


def cache_directory() -> Path:
    """Where kernels and indexes are kept: `$PTB_CACHE/scan`, else `posttrainbench/scan` in the user's cache
    directory."""
    return harness_cache() / "scan"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.machine()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {flags}"


def _compiler() -> str | None:
    names = [os.environ.get("CC", "").split()[0]] if os.environ.get("CC", "").split() else []
    return next((found for name in (*names, "cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _build(target: Path) -> str | None:
    """Compile to `target`, atomically; what went wrong, if anything did."""
    compiler = _compiler()
    if compiler is None:
        return "no C compiler (cc, gcc or clang)"
    with Scratch("kernel") as folder:
        draft = folder / "kernel.so"
        problem = ""
        for tune in (("-march=native",), ()):
            command = [compiler, *_FLAGS, *tune, str(SOURCE), "-o", str(draft)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{compiler}: {type(error).__name__}"
            if done.returncode == 0:
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                temporary = target.with_name(f".{target.name}.{os.getpid()}")
                shutil.copyfile(draft, temporary)
                temporary.chmod(0o700)
                temporary.replace(target)
                return None
            problem = f"{compiler}: {done.stderr.strip()[:200]}"
    return problem


def _ours(path: Path) -> bool:
    """Whether nobody but this user could have written the file: it is about to be loaded."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


@functools.cache
def kernel() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernel, or `None` and the reason. Compiled at most once per user, source and processor."""
    if os.environ.get("PTB_SCAN_KERNEL") == "python":
        return None, "PTB_SCAN_KERNEL=python"
    digest = hashlib.sha256(SOURCE.read_bytes() + repr((_FLAGS, _processor())).encode()).hexdigest()[:20]
    path = cache_directory() / f"kernel-{digest}.so"
    try:
        if not path.exists():
            problem = _build(path)
            if problem is not None:
                return None, problem
        if not _ours(path):
            return None, f"{path} can be written by others; remove it"
        return load(path), "compiled"
    except OSError as error:
        return None, f"{path}: {error}"


def load(path: Path) -> ctypes.CDLL:
    """A compiled kernel, with the types of its functions.

    Raises:
        OSError: it is none.
    """
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.scan_new.argtypes, library.scan_new.restype = (ctypes.POINTER(Index),), pointer
    library.scan_free.argtypes, library.scan_free.restype = (pointer,), None
    library.scan_lines.argtypes, library.scan_lines.restype = (pointer, number, pointer, pointer, number), number
    library.scan_documents.argtypes = (
        *(pointer, pointer, pointer, pointer, number),
        *(ctypes.c_int, ctypes.c_int, pointer, number, pointer, pointer),
    )
    library.scan_documents.restype = number
    library.scan_words.argtypes = (pointer, pointer, number, ctypes.c_int, pointer, pointer, number)
    library.scan_words.restype = number
    return library
