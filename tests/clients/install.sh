#!/bin/sh
# Installs what the tests of whole clusters need beside Rust: install.sh TARGET-DIRECTORY [soak]
#
# A virtual environment with the Python clients of OpenAI and Mistral and jsonschema in TARGET-DIRECTORY/python-clients,
# and openssl, which makes certificates; for `make soak` another one with schemathesis and a validator of OpenAPI
# documents in TARGET-DIRECTORY/python-soak. On Debian and Ubuntu packages that are missing are installed.
set -eu

OPENAI="openai>=2,<3"
JSONSCHEMA="jsonschema>=4,<5"
MISTRAL="mistralai>=3,<4"
SCHEMATHESIS="schemathesis>=4.32,<5"
OPENAPI_VALIDATOR="openapi-spec-validator>=0.9,<0.10"

if [ $# -eq 1 ]; then
    environment=$1/python-clients
    packages_of="$OPENAI $MISTRAL $JSONSCHEMA"
    modules="jsonschema, openai, mistralai.client"
elif [ $# -eq 2 ] && [ "$2" = soak ]; then
    environment=$1/python-soak
    packages_of="$SCHEMATHESIS $OPENAPI_VALIDATOR"
    modules="schemathesis, openapi_spec_validator"
else
    echo "usage: $0 TARGET-DIRECTORY [soak]" >&2
    exit 2
fi

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
if "$environment/bin/python" -c "import $modules" 2>/dev/null; then
    exit 0
fi
echo "making $environment"
rm -rf "$environment"
mkdir -p "$1"
python3 -m venv "$environment"
# shellcheck disable=SC2086 # a list of words
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check $packages_of
