#!/usr/bin/env bash
# Programs that only the tests need: a browser for the site's, Slurm for the sweeps', npm for the agent CLIs', podman,
# docker, and what scripts/apptainer_lab.sh needs. Where they cannot be installed, the tests that need them are skipped and say so.
set -uo pipefail

missing=()
command -v chromium >/dev/null && command -v chromedriver >/dev/null || missing+=(chromium chromium-driver)
command -v sbatch >/dev/null && { command -v slurmctld || [ -x /usr/sbin/slurmctld ]; } >/dev/null \
  || missing+=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge)
command -v npm >/dev/null || missing+=(npm)
command -v podman >/dev/null && command -v mmdebstrap >/dev/null && command -v newuidmap >/dev/null \
  || missing+=(podman runc uidmap slirp4netns fuse-overlayfs mmdebstrap)
command -v dockerd >/dev/null || [ -x /usr/sbin/dockerd ] || missing+=(docker.io)
command -v patchelf >/dev/null || missing+=(patchelf)
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
  echo "tests: not installed, their tests are skipped: ${missing[*]}"
  exit 0
fi
echo "tests: installing ${missing[*]}"
# services must not start by themselves: the tests start what they need, and end it
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null && "${as_root[@]}" chmod 755 $policy && made=1
fi
"${as_root[@]}" apt-get update -qq || true
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
  || echo "tests: some could not be installed; their tests are skipped"
[ -z "$made" ] || "${as_root[@]}" rm -f $policy
exit 0
