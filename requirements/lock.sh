#!/bin/sh
# Writes the lock files anew: pinned versions with hashes, and no word of where packages came from.
set -eu
cd "$(dirname "$0")"
python3 -m venv ../build/lock
../build/lock/bin/pip install -q pip-tools
for name in run dev; do
    ../build/lock/bin/pip-compile -q --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "$name.in" -o "$name.txt"
done
