#!/usr/bin/env bash
# Prints the path of the newest Python that the tests run on, or of the one that PYTHON names.
#   bash launch/find_python.sh [VERSION ...]       default: 3.13 3.12 3.11, and `python3` if that is a later one
set -euo pipefail

is_usable() { # PYTHON: it can make a virtual environment. A version manager's stand-in for a program may not run at all.
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

choose() { # PYTHON
  "$1" -c 'import sys; print(sys.executable)'
  exit
}

fail() {
  printf 'find_python.sh: error: %s\n' "$*" >&2
  exit 1
}

if [[ -n "${PYTHON:-}" ]]; then
  is_usable "$PYTHON" || fail "PYTHON is $PYTHON; it must be Python 3.11 or later with the modules venv and ensurepip"
  choose "$PYTHON"
fi
versions=("${@:-3.13}")
[[ $# -gt 0 ]] || versions+=(3.12 3.11)
for version in "${versions[@]}"; do
  # Version managers have one version on the path, and all of them in such a directory.
  for python in "python$version" "${HOME:-/}"/.*/versions/"$version".*/bin/python; do
    ! is_usable "$python" || choose "$python"
  done
done
[[ $# -gt 0 ]] || ! is_usable python3 || choose python3
fail "there is no Python ${versions[*]} with the modules venv and ensurepip; PYTHON=PATH names another"
