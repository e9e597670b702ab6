#!/usr/bin/env bash
# Runs the studies of this bundle without a network: ./run.sh [STUDY ...]
# Everything is written inside this folder; what to take home is in records/. A run that was
# stopped goes on when this is started again.
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here" || exit 1
if ! sha256sum --quiet -c SHA256SUMS; then
  echo "error: files are not what was packed (listed above); unpack the archive again" >&2
  exit 1
fi
echo "all files are as they were packed"

python="${PYTHON:-python3}"
export PYTHIA_CACHE="$here/cache" PYTHIA_RESULTS="${PYTHIA_RESULTS:-$here/results}"
export PIP_NO_INDEX=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=true
if [ -d published ]; then export PYTHIA_PUBLISHED_DIR="$here/published"; fi
if [ -d packages ]; then
  "$python" -m pip install --quiet --no-index --find-links packages --target packages-installed \
    --upgrade packages/*.whl || exit 1
  site=":$here/packages-installed"
fi
export PYTHONPATH="$here/project:$here/site${site:-}${PYTHONPATH:+:$PYTHONPATH}"
export PYTHIA_COMMIT="@COMMIT@"
export PYTHONDONTWRITEBYTECODE=1  # the project's folder stays as it was packed

mkdir -p records
scale="@SCALE@"
failed=""
begin=$SECONDS
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  "$python" -m pythia_core bench kernels --json records/kernels.jsonl > records/kernels.txt 2>&1 ||
    failed="$failed bench-kernels"
  "$python" -m pythia_core bench train --device cuda --json records/train.json \
    > records/train.txt 2>&1 || failed="$failed bench-train"
fi
for study in ${*:-@STUDIES@}; do
  start=$SECONDS
  if (cd project && "$python" -m pythia_core study "$study" --scale "$scale"); then
    rm -rf "records/$study/$scale"
    mkdir -p "records/$study"
    cp -r "$PYTHIA_RESULTS/$study/$scale" "records/$study/$scale"
    echo "$study: done in $((SECONDS - start)) s"
  else
    failed="$failed $study"
    echo "$study: failed after $((SECONDS - start)) s" >&2
  fi
done
echo "$((SECONDS - begin)) s in all; take records/ home"
if [ -n "$failed" ]; then
  echo "failed:$failed" >&2
  exit 1
fi
