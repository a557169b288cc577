#!/usr/bin/env bash
# Make the environment in the directory $1 (default .venv) with everything that `make demo` and `make test` need, and see
# that bubblewrap is there. Fast when nothing changed. Called by the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

fail() { echo "setup: $*" >&2; exit 2; }

need_bubblewrap() {
  command -v bwrap >/dev/null && return
  if command -v apt-get >/dev/null; then
    if [ "$(id -u)" = 0 ]; then
      as_root=()
    elif sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    else
      fail "bubblewrap is missing and this user may not install it; ask an administrator for: apt-get install bubblewrap"
    fi
    echo "setup: installing bubblewrap"
    "${as_root[@]}" apt-get update -qq || true
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bubblewrap >/dev/null \
      || fail "bubblewrap could not be installed; try: apt-get install bubblewrap"
  else
    fail "bubblewrap is missing; install the package that provides the program bwrap (bubblewrap in all distributions)"
  fi
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python >= 3.11 with venv found; install one (Debian: apt-get install python3 python3-venv) or set PYTHON"
}

need_bubblewrap
stamp="$venv/.setup-of"
wanted=$(cat pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)
if [ ! -x "$venv/bin/ptb" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  python=$(find_python)
  echo "setup: making $venv (a few minutes the first time)"
  "$python" -m venv "$venv"
  # torch first and by itself: which build is right depends on the machine, TORCH=... chooses another
  "$venv/bin/python" -m pip install -q --disable-pip-version-check "${TORCH:-torch==2.13.0}"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -e '.[dev]'
  # without compiled files every start of ptb would compile what it imports
  "$venv/bin/python" -m compileall -q src || true
  echo "$wanted" > "$stamp"
fi
