#!/usr/bin/env bash
# What the tests of the podman back end need: a small Debian image, made once and kept in /var/tmp/ptb-podman-UID.
#
#   scripts/podman_lab.sh          make the image for the user who calls; prints its name
#   scripts/podman_lab.sh user     (root) also an ordinary user, ptb-podman, with the image; prints the user's name
#   scripts/podman_lab.sh labelled an image that brings its own Python, as `ptb image build` makes them; prints its name
#   scripts/podman_lab.sh clean    remove image, user and files
set -euo pipefail

image=localhost/ptb-contract
user=ptb-podman
place=/var/tmp/ptb-podman-$(id -u)

fail() { echo "podman_lab: $*" >&2; exit 1; }

as_user() { # a clean environment and a home of the user's own
  local home; home=$(getent passwd $user | cut -d: -f6)
  (cd "$home" && setpriv --reuid $user --regid $user --init-groups env -i HOME="$home" PATH="$PATH" TMPDIR="$home" "$@")
}

if [ "${1:-}" = clean ]; then
  podman rmi --force $image $image-labelled >/dev/null 2>&1 || true
  if [ "$(id -u)" = 0 ] && getent passwd $user >/dev/null; then
    home=$(getent passwd $user | cut -d: -f6)
    as_user podman system reset --force >/dev/null 2>&1 || true
    userdel $user && rm -rf "$home"
  fi
  rm -rf "$place"
  exit 0
fi

command -v podman >/dev/null || fail "podman is not installed: scripts/test_tools.sh"
mkdir -p "$place"
exec 9>"$place/lock"
flock 9

if ! podman image exists $image; then
  if [ ! -s "$place/rootfs.tar" ]; then
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is not installed: scripts/test_tools.sh"
    # the release of this machine where it is Debian, so that this machine's Python fits when it is bound in
    release=$(. /etc/os-release; [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}" || true)
    mmdebstrap --variant=minbase --include=python3,hostname,procps,ca-certificates "${release:-bookworm}" \
      "$place/rootfs.tar.new" >"$place/mmdebstrap.log" 2>&1 || fail "mmdebstrap: $(tail -n 1 "$place/mmdebstrap.log")"
    mv "$place/rootfs.tar.new" "$place/rootfs.tar"
    chmod 644 "$place/rootfs.tar"
  fi
  podman import --quiet "$place/rootfs.tar" $image >/dev/null || fail "podman import failed"
fi

if [ "${1:-}" = labelled ] && ! podman image exists $image-labelled; then
  podman build --quiet --network none --pull=never --tag $image-labelled - >/dev/null 2>"$place/build.log" <<EOF \
    || fail "podman build: $(tail -n 1 "$place/build.log")"
FROM $image
RUN mkdir -p /opt/posttrainbench/bin && ln -s /usr/bin/python3 /opt/posttrainbench/bin/python \
  && echo /opt/posttrainbench/src >/usr/lib/python3/dist-packages/posttrainbench.pth
LABEL org.posttrainbench.python=/opt/posttrainbench/bin/python
VOLUME /var/lib/db
ENV LEAK=from-image
EOF
fi

if [ "${1:-}" = user ]; then
  [ "$(id -u)" = 0 ] || fail "only root can make another user"
  if ! getent passwd $user >/dev/null; then
    # gets its ranges in /etc/subuid and /etc/subgid with it
    useradd --create-home --home-dir /var/tmp/ptb-podman-home --shell /usr/sbin/nologin $user
  fi
  # with the default, vfs, every start copies the image
  as_user mkdir -p .config/containers
  [ -e /var/tmp/ptb-podman-home/.config/containers/storage.conf ] \
    || printf '[storage]\ndriver = "overlay"\n' | as_user tee .config/containers/storage.conf >/dev/null
  as_user podman image exists $image || {
    [ -s "$place/rootfs.tar" ] || podman export "$(podman create $image true)" >"$place/rootfs.tar"
    as_user podman import --quiet "$place/rootfs.tar" $image >/dev/null || fail "podman import as $user failed"
  }
  echo $user
elif [ "${1:-}" = labelled ]; then
  echo $image-labelled
else
  echo $image
fi
