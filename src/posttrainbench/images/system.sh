# Build step 1, as root inside the image: what agents and evaluation need of the distribution (Debian or Ubuntu).
set -eu
umask 022
. /ptb-build/settings.sh
export DEBIAN_FRONTEND=noninteractive

apt() {
  apt-get -o Acquire::Retries=3 ${APT_CA:+-o "Acquire::https::CaInfo=$APT_CA"} "$@"
}
apt update -q
# a C compiler: triton, flashinfer and torch.compile build kernels at run time
apt install -q -y --no-install-recommends \
  bash ca-certificates coreutils curl file findutils git git-lfs grep gzip jq less openssl procps psmisc ripgrep rsync sed \
  tar unzip util-linux xz-utils zip zstd \
  build-essential cmake pkg-config python3 python3-dev python3-venv

# the user of the sandbox, so that uid 1000 has a name and a home; Ubuntu's images have a user of their own there
old=$(getent passwd 1000 | cut -d: -f1)
if [ -n "$old" ] && [ "$old" != agent ]; then userdel -r "$old" 2>/dev/null || userdel "$old"; fi
getent passwd agent >/dev/null || useradd --uid 1000 --user-group --create-home --shell /bin/bash agent

mkdir -p /opt/posttrainbench/share
dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' >/opt/posttrainbench/share/packages.txt

# nobody gains rights inside; what is mounted here is not the image's (Apptainer shows builds the host's /tmp and /var/tmp)
others=$(awk '$5 != "/" {printf "-path %s -prune -o ", $5}' /proc/self/mountinfo)
find / -xdev $others -type f -perm /6000 -exec chmod a-s {} +
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt /var/log/*.log
: >/etc/machine-id
