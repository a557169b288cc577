#!/usr/bin/env bash
# A command in a virtual machine: Debian 12 with systemd, control groups v2, podman with crun, for tests of what the machine at
# hand does not have. Slow where there is no KVM (start in half a minute, programs 5 to 20 times slower).
#
#   scripts/vm.sh COMMAND...            as root, in the checkout (read-only); prints its output, ends with its status
#   scripts/vm.sh --user COMMAND...     as an ordinary user in a systemd scope that may make control groups
#   scripts/vm.sh clean                 remove the image
#
# Inside, the variables of Python find this checkout and its .venv (for which the machine needs Debian 12's Python, 3.11); /out is
# $PTB_VM/out here. Needs root, mmdebstrap, qemu-system-x86. PTB_VM (default /var/tmp/ptb-vm): where the image lies, 3 GB.
# PTB_VM_ACCEL=kvm where that works. The first start fills a small image for podman (scripts/podman_lab.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(pwd)
place=${PTB_VM:-/var/tmp/ptb-vm}

fail() { echo "vm: $*" >&2; exit 2; }

[ $# -gt 0 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
if [ "$1" = clean ]; then
  rm -rf "$place"
  exit 0
fi
for program in mmdebstrap qemu-system-x86_64 mke2fs; do
  command -v $program >/dev/null || fail "$program is missing: apt-get install mmdebstrap qemu-system-x86 e2fsprogs"
done
user=
if [ "$1" = --user ]; then
  user=1
  shift
fi
mkdir -p "$place/out" "$place/order"
exec 9>"$place/lock"
flock --nonblock 9 || fail "another machine is running in $place"

if [ ! -e "$place/disk.img" ]; then
  echo "vm: making $place/disk.img (minutes)" >&2
  scripts/podman_lab.sh >/dev/null
  root=$place/root
  rm -rf "$root"
  packages=systemd,systemd-sysv,dbus-user-session,libpam-systemd,udev,kmod,linux-image-amd64,iproute2,hostname,procps,util-linux
  packages+=,bubblewrap,podman,crun,uidmap,slirp4netns,fuse-overlayfs,fuse3,squashfuse,python3,python3-venv,libgomp1,curl,openssl,git,make,gcc,libc6-dev
  packages+=,ca-certificates
  mmdebstrap --variant=minbase --include=$packages bookworm "$root" >"$place/mmdebstrap.log" 2>&1 \
    || fail "mmdebstrap: $(tail -n 1 "$place/mmdebstrap.log")"
  cat >"$root/etc/systemd/system/order.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/bash /order/run.sh
ExecStopPost=/usr/bin/systemctl poweroff --force
UNIT
  ln -s ../order.service "$root/etc/systemd/system/multi-user.target.wants/order.service"
  mkdir -p "$root/order" "$root/out" "$root/var/lib/systemd/linger" "$root/var/tmp/ptb-podman-0"
  mkdir -p "$root$here"
  printf '%s 9p trans=virtio,version=9p2000.L,msize=262144,%s 0 0\n' "checkout $here" ro,cache=loose "order /order" ro \
    "out /out" rw >"$root/etc/fstab"
  echo vm >"$root/etc/hostname"
  cp "/var/tmp/ptb-podman-$(id -u)/rootfs.tar" "$root/var/tmp/ptb-podman-0/"
  cp "$root"/boot/vmlinuz-* "$place/vmlinuz"
  cp "$root"/boot/initrd.img-* "$place/initrd"
  mke2fs -q -t ext4 -d "$root" "$place/new.img" 14G
  rm -rf "$root"
  mv "$place/new.img" "$place/disk.img"
fi

{
  printf 'export HOME=/root PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=%q/src:%q\ncd %q\n' "$here" \
    "$(ls -d "$here"/.venv/lib/python3.11/site-packages)" "$here"
  if [ -n "$user" ]; then
    cat <<'AS_USER'
loginctl enable-linger "$(scripts/podman_lab.sh user 2>/dev/null)"
id=$(id -u ptb-podman)
for _ in $(seq 600); do [ -S /run/user/$id/bus ] && break; sleep 0.1; done
copy=/var/tmp/ptb-podman-home/checkout  # pytest writes beside tests that it imports
mkdir -p $copy && cp -r tests scripts pyproject.toml $copy/ && chown -R ptb-podman $copy
as=(systemd-run --quiet --wait --pipe --collect --uid=ptb-podman --working-directory=$copy --setenv=HOME=/var/tmp/ptb-podman-home)
for name in PATH PYTHONPATH PYTHONDONTWRITEBYTECODE; do as+=("--setenv=$name=${!name}"); done
as+=("--setenv=XDG_RUNTIME_DIR=/run/user/$id" "--setenv=DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$id/bus")
as+=(systemd-run --user --scope --quiet -p Delegate=yes)
AS_USER
  else
    echo 'as=(systemd-run --scope --quiet -p Delegate=yes)'
  fi
  printf '"${as[@]}" '
  printf '%q ' "$@"
  printf '>/out/said 2>&1\necho $? >/out/status\n'
} >"$place/order/run.sh"
rm -f "$place/out/status"
: >"$place/out/said"
share() { echo "local,mount_tag=$1,path=$2,security_model=none,multidevs=remap"; }
accel=(-accel tcg,thread=multi -cpu max)
[ "${PTB_VM_ACCEL:-}" != kvm ] || accel=(-accel kvm -cpu host)
qemu-system-x86_64 -machine q35 "${accel[@]}" -smp 2 -m 5G -display none -monitor none -no-reboot -nic none \
  -kernel "$place/vmlinuz" -initrd "$place/initrd" -append "root=/dev/vda rw console=ttyS0 quiet" -serial "file:$place/console" \
  -drive "file=$place/disk.img,format=raw,if=virtio,cache=unsafe" -virtfs "$(share checkout "$here"),readonly=on" \
  -virtfs "$(share order "$place/order"),readonly=on" -virtfs "$(share out "$place/out")" </dev/null &
qemu=$!
trap 'kill $qemu 2>/dev/null || true' EXIT
tail --pid=$qemu -n +1 -f "$place/out/said"
wait $qemu || true
[ -s "$place/out/status" ] || fail "it ended without a status; see $place/console"
exit "$(cat "$place/out/status")"
