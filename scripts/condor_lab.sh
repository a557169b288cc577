#!/usr/bin/env bash
# A real HTCondor pool of three startds on this machine, for the opt-in tests of tests/launch/test_htcondor_pool.py. As root:
#   scripts/condor_lab.sh up       # the first time debootstrap and apt, about 2 minutes and 590 MB; then 3 s
#   PTB_TEST_HTCONDOR=1 pytest tests/launch/test_htcondor_pool.py
#   scripts/condor_lab.sh run condor_status     # a program inside, as the user `tester`, in this directory
#   scripts/condor_lab.sh down     # the root stays in /var/tmp/ptb-condor for the next time, with nothing mounted
# Debian trixie (bookworm has no condor package, the pip wheel no daemons) as the root of a mount namespace of its own, by
# pivot_root: the kernel refuses user namespaces to whoever is in a chroot, so bubblewrap, and with it a cell, would not start
# there. This checkout, its interpreter and /var/tmp are bound in at their own paths, so real `run-cell` jobs work.
# Loopback only; authentication is CLAIMTOBE, so everybody on this machine can use the pool: for tests.
set -euo pipefail
R=${PTB_CONDOR_ROOT:-/var/tmp/ptb-condor}
L=/lab
PORT=${PORT:-19618}
REPO=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$REPO/.venv/bin/python}
USER_ID=1002

tree() { # a process and all that descend from it
  echo "$1"
  for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do tree "$child"; done
}

down() {
  [ -f "$R$L/master.pid" ] || return 0
  pid=$(cat "$R$L/master.pid")
  all=$(tree "$pid")
  kill -QUIT "$pid" 2>/dev/null || true
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  for left in $all; do
    # what is not in the lab's namespace any more is somebody else's process with an old number
    [ "$(readlink "/proc/$left/root" 2>/dev/null)" = / ] && [ -d "/proc/$left/root$L" ] && kill -KILL "$left" 2>/dev/null || true
  done
  rm -f "$R$L/master.pid"
}

install() {
  if [ ! -x "$R/usr/sbin/condor_master" ]; then
    debootstrap --variant=minbase --include=ca-certificates trixie "$R" "${MIRROR:-http://deb.debian.org/debian}"
  fi
  if [ ! -x "$R/usr/bin/bwrap" ]; then
    # python3 brings the libraries that an interpreter built on the host wants
    chroot "$R" apt-get install -y --no-install-recommends minicondor python3 procps bubblewrap
  fi
  chroot "$R" id tester >/dev/null 2>&1 || chroot "$R" useradd -m -u $USER_ID tester # no job runs as root
}

configure() {
  cat <<C
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
COLLECTOR_HOST = 127.0.0.1:$PORT
LOCAL_DIR = $L
LOG = $L/log
RUN = $L/run
LOCK = $L/lock
SPOOL = $L/spool
EXECUTE = $L/exec
UID_DOMAIN = local
FILESYSTEM_DOMAIN = local
TRUST_UID_DOMAIN = True
FULL_HOSTNAME = lab.local
DEFAULT_DOMAIN_NAME = local
CONDOR_IDS = 100.101
# the configuration of Debian's package is not read
RELEASE_DIR = /usr
LIB = /usr/lib/condor
LIBEXEC = /usr/libexec/condor
USE_SHARED_PORT = False
# without procd 23.9.6 crashes: its startd and starter die in KillFamily::takesnapshot (seen 2026-11 with one job in four)
USE_PROCD = True
RUNBENCHMARKS = False
BENCHMARKS_JOBLIST =
STARTD_CRON_JOBLIST =
SEC_DEFAULT_AUTHENTICATION = OPTIONAL
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, CLAIMTOBE
SEC_CLIENT_AUTHENTICATION_METHODS = FS, CLAIMTOBE
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *
ALLOW_ADVERTISE_STARTD = *
# sweeps lie in /var/tmp, which a job would not see
MOUNT_UNDER_SCRATCH =
MOUNT_PRIVATE_DEV_SHM = False
PER_JOB_NAMESPACES = False
CGROUP_ALL_DAEMONS = False
BASE_CGROUP =
# short cycles
SCHEDD_INTERVAL = 2
PERIODIC_EXPR_INTERVAL = 3
MAX_PERIODIC_EXPR_INTERVAL = 3
PID_SNAPSHOT_INTERVAL = 2
STARTER_INITIAL_UPDATE_INTERVAL = 2
STARTER_UPDATE_INTERVAL = 2
POLLING_INTERVAL = 2
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
JOB_START_DELAY = 0
NUM_CPUS = 8
MEMORY = 16000
MACHINE_RESOURCE_NAMES = GPUs
MACHINE_RESOURCE_GPUs = CUDA0
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
NUM_SLOTS_TYPE_1 = 1
STARTD_ENFORCE_DISK_LIMITS = False
START = True
SUSPEND = False
PREEMPT = False
KILL = False
use POLICY : HOLD_IF_MEMORY_EXCEEDED
C
  daemons="MASTER, COLLECTOR, NEGOTIATOR, SCHEDD"
  for n in n1 n2 n3; do
    daemons="$daemons, STARTD_${n^^}"
    cat <<C
STARTD_${n^^} = \$(STARTD)
STARTD_${n^^}_ARGS = -local-name $n
$n.STARTD_NAME = $n
$n.STARTD_LOG = $L/log/StartdLog.$n
$n.STARTD_ADDRESS_FILE = $L/log/.startd_address.$n
$n.STARTER_LOG = $L/log/StarterLog.$n
$n.EXECUTE = $L/exec-$n
C
  done
  echo "DAEMON_LIST = $daemons"
}

# in the namespace: everything that the jobs need, at the same paths
enter() {
  mount --bind "$R" "$R"
  for d in proc sys dev; do mount --rbind "/$d" "$R/$d"; done
  prefix=$("$PYTHON" -c 'import sys; print(sys.base_prefix)')
  for d in "$REPO" "$prefix" "$("$PYTHON" -c 'import sys; print(sys.prefix)')" /var/tmp; do
    case "$d" in /usr | /usr/*) echo "condor_lab: $PYTHON uses $d, which trixie has in another version" >&2; exit 1 ;; esac
    mkdir -p "$R$d"
    mount --bind "$d" "$R$d"
  done
  chmod 755 "$R/root" # an interpreter of root's is below it; the host's /root stays closed
  mkdir -p "$R/.old"
  cd "$R"
  pivot_root . .old
  umount -l /.old
  cd /
  echo $$ >"$L/master.pid"
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin CONDOR_CONFIG="$L/condor_config" condor_master -f
}

run() {
  here=$PWD
  pid=$(cat "$R$L/master.pid" 2>/dev/null) || { echo "condor_lab: the pool is not up" >&2; exit 1; }
  # execs all the way, so that a signal to this process is one to the program
  exec nsenter -t "$pid" -m -S $USER_ID -G $USER_ID -- \
    env -C "$here" HOME=/home/tester USER=tester LOGNAME=tester PATH=/usr/bin:/bin CONDOR_CONFIG="$L/condor_config" "$@"
}

up() {
  install
  down
  mkdir -p "$R$L"
  rm -rf "${R:?}$L"/{log,run,lock,spool,exec,exec-n1,exec-n2,exec-n3}
  mkdir -p "$R$L"/{log,run,lock,spool,exec,exec-n1,exec-n2,exec-n3,jobs}
  chown 100:101 "$R$L"/{log,run,lock,spool,exec,exec-n1,exec-n2,exec-n3}
  chmod 1777 "$R$L/jobs"
  configure >"$R$L/condor_config"
  setsid unshare --mount --propagation private "$0" enter >>"$R$L/log/out" 2>&1 </dev/null &
  for _ in $(seq 300); do
    if [ -f "$R$L/master.pid" ] && [ "$("$0" run condor_status -af Name 2>/dev/null | grep -c slot)" = 3 ] &&
      "$0" run condor_q -totals >/dev/null 2>&1; then
      echo "three startds are up"
      return
    fi
    sleep 0.1
  done
  echo "condor_lab: the pool did not come up; see $R$L/log" >&2
  down
  exit 1
}

case "${1:-}" in
  up | down | enter) "$1" ;;
  run) shift; run "$@" ;;
  *) sed -n '2,6s/^# //p' "$0"; exit 2 ;;
esac
