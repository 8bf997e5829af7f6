#!/bin/sh
# What journals, leases and fencing cost while nothing fails: tokens/s of this program against one without them, in
# interleaved pairs, each a new cluster of two stages on two workers.
#
# TRAMONTANE is the program; UNPROTECTED the one without, which is built from the last commit and
# deploy/unprotected.patch if it is not given. HTTP is the address to serve on, PAIRS how many pairs; arguments go to
# `tramontane bench serve`.
set -eu

program=${TRAMONTANE:-target/release/tramontane}
http=${HTTP:-127.0.0.1:18080}
pairs=${PAIRS:-10}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
demo=""
stop() {
    if [ -n "$demo" ]; then
        kill "$demo" 2>/dev/null || true
        wait "$demo" 2>/dev/null || true
        demo=""
    fi
}
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

without=${UNPROTECTED:-}
if [ -z "$without" ]; then
    target=${CARGO_TARGET_DIR:-$here/../target}/unprotected
    rm -rf "$target/source"
    mkdir -p "$target/source"
    git -C "$here/.." archive HEAD | tar -x -C "$target/source"
    (cd "$target/source" && GIT_CEILING_DIRECTORIES="$target/source/.." git apply "$here/unprotected.patch" &&
        CARGO_TARGET_DIR="$target" "${CARGO:-cargo}" build --release --locked --workspace)
    without=$target/release/tramontane
fi

# Starts a cluster of the program, measures it and stops it.
measure() {
    name=$1
    binary=$2
    shift 2
    "$binary" demo --coordinators 1 --workers 2 --stages 2 --expert-groups 1 --http "$http" \
        --data-dir "$work/$name" --serve >"$work/$name.log" 2>&1 &
    demo=$!
    if ! "$binary" bench serve --url "http://$http" --ready-within-s 240 --concurrency 8 --requests 64 \
        --prompt-tokens 16 --output-tokens 64 --warm-up 8 --seed 1 --json "$work/$name.json" "$@" >"$work/bench.log" 2>&1; then
        cat "$work/$name.log" "$work/bench.log" >&2
        exit 1
    fi
    stop
    sed -n 's/.*"tokens_per_second":\([0-9.]*\).*/\1/p' "$work/$name.json"
    rm -rf "${work:?}/$name" "$work/$name.json"
}

printf '%-6s %14s %14s %10s\n' pair "with tok/s" "without tok/s" "lower by"
pair=1
while [ "$pair" -le "$pairs" ]; do
    # Who is first changes from pair to pair.
    if [ $((pair % 2)) = 1 ]; then
        measure with "$program" "$@" >"$work/with.rate"
        measure without "$without" "$@" >"$work/without.rate"
    else
        measure without "$without" "$@" >"$work/without.rate"
        measure with "$program" "$@" >"$work/with.rate"
    fi
    awk -v pair="$pair" -v with="$(cat "$work/with.rate")" -v without="$(cat "$work/without.rate")" \
        'BEGIN { printf "%-6s %14.1f %14.1f %9.2f%%\n", pair, with, without, 100 * (1 - with / without) }' | tee -a "$work/pairs"
    pair=$((pair + 1))
done
awk '{ sub("%", "", $4); print $4 }' "$work/pairs" | sort -n | awk '{ of[NR] = $1 }
    END { m = NR % 2 ? of[(NR + 1) / 2] : (of[NR / 2] + of[NR / 2 + 1]) / 2
          printf "median: %.2f%% lower with journals, leases and fencing\n", m }'
