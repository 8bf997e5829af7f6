#!/bin/sh
# Makes a virtual environment with the clients that tests run against a cluster: install.sh TARGET-DIRECTORY
set -eu

OPENAI="openai>=2,<3"

[ $# -eq 1 ] || { echo "usage: $0 TARGET-DIRECTORY" >&2; exit 2; }
environment=$1/python-clients
if "$environment/bin/python" -c "import openai" 2>/dev/null; then
    exit 0
fi
if ! python3 -c "import ensurepip, venv" 2>/dev/null; then
    if ! command -v apt-get >/dev/null; then
        echo "Python's venv is missing: install Python 3 with venv" >&2
        exit 1
    fi
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        as_root=sudo
    fi
    echo "installing python3-venv"
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
fi
echo "making $environment with the openai client"
rm -rf "$environment"
mkdir -p "$1"
python3 -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$OPENAI"
