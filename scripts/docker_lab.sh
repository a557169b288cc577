#!/usr/bin/env bash
# What the tests of the docker back end need: a daemon, and the image of scripts/podman_lab.sh in it.
#
#   scripts/docker_lab.sh start    prints DOCKER_HOST and the image's name. A daemon that answers is used; else one is started,
#                                  as root, without a bridge or firewall rules, on a socket and with storage of its own
#   scripts/docker_lab.sh stop     ends the daemon that was started, unless tests use it; its storage, with the image, stays
#   scripts/docker_lab.sh clean    removes that too
set -euo pipefail

image=localhost/ptb-contract
place=/var/tmp/ptb-docker-$(id -u)
run=/run/ptb-docker
cd "$(dirname "$0")/.."

fail() { echo "docker_lab: $*" >&2; exit 1; }

answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

alive() { [ -s $run/pid ] && [ "$(cat "/proc/$(cat $run/pid)/comm" 2>/dev/null)" = dockerd ]; }

case "${1:-}" in
stop | clean)
  # tests that use it hold a lock on that file
  if alive && flock --nonblock --exclusive $run/used true; then
    pid=$(cat $run/pid)
    kill "$pid"
    for _ in $(seq 150); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
  fi
  [ "$1" = stop ] || rm -rf "$place" $run
  exit 0
  ;;
start) ;;
*) fail "start, stop or clean" ;;
esac

command -v docker >/dev/null || fail "docker is not installed: scripts/test_tools.sh"
mkdir -p "$place"
exec 9>"$place/lock"
flock 9
if ! answers; then
  export DOCKER_HOST=unix://$run/socket
  if ! alive; then
    [ "$(id -u)" = 0 ] || fail "no docker daemon answers, and only root can start one"
    command -v dockerd >/dev/null || fail "dockerd is not installed: scripts/test_tools.sh"
    mkdir -p -m 700 $run
    # away from the caller: it holds neither its files nor its terminal
    setsid dockerd --bridge=none --iptables=false --ip6tables=false --ip-masq=false --data-root "$place/data" \
      --exec-root $run/exec --pidfile $run/pid --host "$DOCKER_HOST" </dev/null >"$place/log" 2>&1 9>&- &
  fi
  for _ in $(seq 300); do
    answers && break
    sleep 0.1
  done
  answers || fail "dockerd does not start: $(tail -n 1 "$place/log")"
fi
if ! docker image inspect $image >/dev/null 2>&1; then
  scripts/podman_lab.sh >/dev/null
  podman save $image | docker load --quiet >/dev/null || fail "the image could not be loaded"
fi
echo "${DOCKER_HOST:-} $image"
