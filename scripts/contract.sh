#!/usr/bin/env bash
# The sandbox's test suite with one back end and image of yours, on a machine that has them:
#
#   scripts/contract.sh podman localhost/ptb:cpu
#   scripts/contract.sh docker ptb:cuda -k "not fallback"
#   scripts/contract.sh apptainer /images/ptb.sif
#
# The image needs sh, GNU coreutils, hostname and /usr/bin/python3. Further arguments go to pytest.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
backend=$1 image=$2
shift 2
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x $python ] || python=python3
$python -m posttrainbench doctor --sandbox "$backend" --image "$image"
export PTB_TEST_SANDBOX=$backend PTB_TEST_IMAGE=$image
exec $python -m pytest -q tests/sandbox/test_contract.py tests/sandbox/test_container_inside.py tests/sandbox/test_listener.py \
  tests/sandbox/test_limits.py tests/sandbox/test_teardown.py tests/sandbox/test_caches.py \
  tests/sandbox/test_probes.py::test_sound_sandbox "$@"
