#!/usr/bin/env bash
# Resolve images/*.in and pyproject.toml anew into images/*.lock: exact versions, SHA-256 of every file, wheels only.
#
#     bash scripts/lock_images.sh            both
#     bash scripts/lock_images.sh cpu        one; the CPU lock follows cuda.lock in what touches models and scores
#
# Needs uv (`pip install uv`) and PyPI. The CPU build of torch is looked for at download.pytorch.org; where that cannot be
# reached, name a directory with its wheel: PTB_WHEELS=/opt/wheels bash scripts/lock_images.sh cpu
set -euo pipefail
cd "$(dirname "$0")/../src/posttrainbench/images"

lock() { # kind, Python, platform (the glibc of the base image), more options
  local kind=$1 python=$2 platform=$3
  shift 3
  echo "locking $kind" >&2
  uv --no-config pip compile "$kind.in" ../../../pyproject.toml "$@" \
    --python-version "$python" --python-platform "$platform" --only-binary :all: --generate-hashes --no-annotate --upgrade \
    --default-index https://pypi.org/simple --custom-compile-command "scripts/lock_images.sh $kind" \
    --output-file "$kind.lock" --quiet
}

cpu_torch=(--index https://download.pytorch.org/whl/cpu)
if [ -n "${PTB_WHEELS:-}" ]; then cpu_torch=(--find-links "$PTB_WHEELS"); fi

# Not all of cuda.lock: some of its versions need a newer Python than Debian 12 has.
same='accelerate|datasets|huggingface-hub|inspect-ai|inspect-evals|numpy|openai|peft|safetensors|tiktoken|tokenizers|'
same+='transformers|trl'

for kind in "${@:-cuda cpu}"; do
  for one in $kind; do
    case $one in
      cuda) lock cuda 3.12 x86_64-manylinux_2_39 ;;
      cpu) lock cpu 3.11 x86_64-manylinux_2_36 --constraint <(grep -oE "^($same)==[^ ]+" cuda.lock) "${cpu_torch[@]}" ;;
      *) echo "unknown kind $one: cuda or cpu" >&2; exit 2 ;;
    esac
  done
done
