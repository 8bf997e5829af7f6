#!/bin/sh
# Installs what the tests of whole clusters need beside Rust: install.sh TARGET-DIRECTORY
#
# A virtual environment with OpenAI's Python client and jsonschema in TARGET-DIRECTORY/python-clients, and openssl, which makes
# certificates. On Debian and Ubuntu packages that are missing are installed.
set -eu

OPENAI="openai>=2,<3"
JSONSCHEMA="jsonschema>=4,<5"

[ $# -eq 1 ] || { echo "usage: $0 TARGET-DIRECTORY" >&2; exit 2; }
environment=$1/python-clients

has_venv() {
    python3 -c "import ensurepip, venv" 2>/dev/null
}

packages=""
command -v openssl >/dev/null || packages="openssl"
if [ ! -e "$environment/bin/python" ] && ! has_venv; then
    packages="$packages python3-venv"
fi
if [ -n "$packages" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "openssl and Python 3 with venv are needed: install them" >&2
        exit 1
    fi
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        as_root=sudo
    fi
    echo "installing" $packages
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
fi
if "$environment/bin/python" -c "import jsonschema, openai" 2>/dev/null; then
    exit 0
fi
echo "making $environment with the openai client and jsonschema"
rm -rf "$environment"
mkdir -p "$1"
python3 -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$OPENAI" "$JSONSCHEMA"
