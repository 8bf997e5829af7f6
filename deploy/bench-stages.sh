#!/bin/sh
# Measures a cluster of one worker and one of two stages on this machine, one after the other, and prints the ratio.
#
# TRAMONTANE is the program, HTTP the address to serve on, CONCURRENCY how many requests are in flight, one measurement
# for each; arguments go to `tramontane bench serve`.
set -eu

program=${TRAMONTANE:-target/release/tramontane}
http=${HTTP:-127.0.0.1:18080}
levels=${CONCURRENCY:-1 8 32}
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

# Starts a cluster of so many workers, a stage each, measures it and stops it.
measure() {
    workers=$1
    shift
    "$program" demo --coordinators 1 --workers "$workers" --stages "$workers" --expert-groups 1 --http "$http" \
        --data-dir "$work/$workers" --serve >"$work/$workers.log" 2>&1 &
    demo=$!
    for level in $levels; do
        # Four for each in flight, and at least eight.
        requests=$((level > 1 ? 4 * level : 8))
        if ! "$program" bench serve --url "http://$http" --ready-within-s 240 --concurrency "$level" \
            --requests "$requests" --warm-up "$level" --seed "$level" --json "$work/$workers-$level.json" "$@"; then
            cat "$work/$workers.log" >&2
            exit 1
        fi
    done
    stop
}

tokens_per_second() {
    sed -n 's/.*"tokens_per_second":\([0-9.]*\).*/\1/p' "$work/$1-$2.json"
}

first_token_ms() {
    sed -n 's/.*"ttft_ms":{[^}]*"p50":\([0-9.]*\).*/\1/p' "$work/$1-$2.json"
}

measure 1 "$@"
measure 2 "$@"
echo
printf '%-12s %16s %16s %8s %18s %18s\n' concurrency "1 worker tok/s" "2 stages tok/s" ratio "1 worker ttft p50" "2 stages ttft p50"
for level in $levels; do
    awk -v c="$level" -v one="$(tokens_per_second 1 "$level")" -v two="$(tokens_per_second 2 "$level")" \
        -v first="$(first_token_ms 1 "$level")" -v second="$(first_token_ms 2 "$level")" \
        'BEGIN { printf "%-12s %16.1f %16.1f %8.2f %15.0f ms %15.0f ms\n", c, one, two, two / one, first, second }'
done
