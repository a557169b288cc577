#!/usr/bin/env bash
# What the tests of the apptainer back end need: apptainer, and an image file made of that of scripts/podman_lab.sh.
#
#   scripts/apptainer_lab.sh          prints the directory of the program and the image's path
#   scripts/apptainer_lab.sh clean    remove what was made
#
# Where apptainer is not installed, root gets it from Debian's unstable release, the only one that has it, into a directory of
# its own: its programs are made to use the C library that comes with them, and nothing of this machine is changed. Without
# setuid, so it runs as on a cluster that allows user namespaces.
set -euo pipefail

place=/var/tmp/ptb-apptainer
cd "$(dirname "$0")/.."

fail() { echo "apptainer_lab: $*" >&2; exit 1; }

if [ "${1:-}" = clean ]; then
  rm -rf $place
  exit 0
fi

mkdir -p $place
exec 9>$place/lock
flock 9
if command -v apptainer >/dev/null; then
  bin=$(dirname "$(command -v apptainer)")
else
  root=$place/root
  bin=$root/usr/bin
  if [ ! -e $place/made ]; then
    [ "$(id -u)" = 0 ] || fail "apptainer is not installed, and only root can get it"
    command -v mmdebstrap >/dev/null && command -v patchelf >/dev/null || fail "mmdebstrap or patchelf is missing: scripts/test_tools.sh"
    rm -rf $root
    # mirrors that are copies of a day are past their date
    mmdebstrap --variant=extract --include=apptainer,squashfuse,squashfs-tools \
      --aptopt='Acquire::Check-Valid-Until "false"' sid $root >$place/log 2>&1 || fail "mmdebstrap: $(tail -n 1 $place/log)"
    starter=$(ls $root/usr/lib/*/apptainer/bin/starter)
    library=${starter%/apptainer/bin/starter}
    loader=$(ls "$library"/ld-linux-*)
    for program in $bin/{apptainer,mksquashfs,unsquashfs,squashfuse,squashfuse_ll} "$starter"; do
      patchelf --set-interpreter "$loader" --set-rpath "$library" --force-rpath "$program"
    done
    # it looks for its files beside its programs: once as if they were in usr, once as if in usr/lib
    for folder in etc var; do
      ln -sfn ../$folder $root/usr/$folder
      ln -sfn ../../$folder $root/usr/lib/$folder
    done
    touch $place/made
  fi
fi
image=$place/contract.sif
if [ ! -e $image ]; then
  scripts/podman_lab.sh >/dev/null
  podman save --quiet --format oci-archive --output $place/image.tar localhost/ptb-contract >/dev/null
  PATH=$bin:$PATH apptainer build $image.new oci-archive://$place/image.tar >$place/build.log 2>&1 \
    || fail "apptainer build: $(tail -n 1 $place/build.log)"
  rm $place/image.tar
  chmod 644 $image.new
  mv $image.new $image
fi
echo "$bin $image"
