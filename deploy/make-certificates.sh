#!/bin/sh
# Makes a cluster's certificate authority and a certificate for each node.
#
#   deploy/make-certificates.sh DIR NAME[=HOST[,HOST...]]...
#
# NAME is who the node is: coordinator-<id>, a worker's name, or operator for people and clients. HOSTs are the
# addresses and host names by which others reach it. What is already in DIR is kept, so that nodes can be added later.
# Node NAME gets ca.pem, NAME.pem and NAME.key. ca.key signs new members: keep it off the nodes.
set -eu
umask 077

AUTHORITY_DAYS=3650
NODE_DAYS=825

fail() {
    echo "make-certificates: $1" >&2
    exit 1
}

new_key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null
}

command -v openssl >/dev/null || fail "openssl is needed: install the package openssl"
[ $# -ge 2 ] || fail "usage: $0 DIR NAME[=HOST[,HOST...]]..."
dir=$1
shift
mkdir -p "$dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -e "$dir/ca.pem" ]; then
    new_key "$work/ca.key"
    openssl req -x509 -new -key "$work/ca.key" -sha256 -days "$AUTHORITY_DAYS" -subj "/CN=Tramontane cluster" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -out "$work/ca.pem"
    mv "$work/ca.key" "$dir/ca.key"
    mv "$work/ca.pem" "$dir/ca.pem"
    echo "$dir/ca.pem: the authority, for $AUTHORITY_DAYS days"
fi
[ -e "$dir/ca.key" ] || fail "$dir/ca.key is missing: the authority's key is needed to sign"

for node in "$@"; do
    name=${node%%=*}
    hosts=""
    [ "$name" = "$node" ] || hosts=${node#*=}
    case $name in
        "" | *[!a-z0-9.-]* | [.-]*) fail "\"$name\" is no name: use a-z, 0-9, '-' and '.'" ;;
        ca) fail "\"ca\" is the authority's" ;;
    esac
    if [ -e "$dir/$name.pem" ]; then
        echo "$dir/$name.pem is kept; remove it to make it anew"
        continue
    fi
    names="DNS:$name"
    for host in $(echo "$hosts" | tr ',' ' '); do
        case $host in
            *:*) names="$names,IP:$host" ;;
            *[!0-9.]*) names="$names,DNS:$host" ;;
            *) names="$names,IP:$host" ;;
        esac
    done
    cat >"$work/extensions" <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=$names
END
    new_key "$work/$name.key"
    openssl req -new -key "$work/$name.key" -subj "/CN=$name" -out "$work/request"
    openssl x509 -req -in "$work/request" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -sha256 -days "$NODE_DAYS" \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/extensions" -out "$work/$name.pem" 2>/dev/null ||
        fail "$name: a certificate for $names cannot be made"
    mv "$work/$name.key" "$dir/$name.key"
    mv "$work/$name.pem" "$dir/$name.pem"
    echo "$dir/$name.pem: $names, for $NODE_DAYS days"
done
