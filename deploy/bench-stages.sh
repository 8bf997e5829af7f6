#!/bin/sh
# Measures a cluster of one worker and one of two stages on this machine, one after the other, and prints the ratio.
#
# TRAMONTANE is the program, HTTP the address to serve on; arguments go to `tramontane bench`.
set -eu

program=${TRAMONTANE:-target/release/tramontane}
http=${HTTP:-127.0.0.1:18080}
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
    if ! "$program" bench --url "http://$http" --ready-within-s 240 --json "$@" >"$work/$workers.json"; then
        cat "$work/$workers.log" >&2
        exit 1
    fi
    stop
}

# The number of a field in the line of a concurrency.
field() {
    sed -n "s/.*\"concurrency\":$2,.*\"$3\":\([0-9.]*\).*/\1/p" "$work/$1.json"
}

measure 1 "$@"
measure 2 "$@"
echo
printf '%-12s %16s %16s %8s %18s %18s\n' concurrency "1 worker tok/s" "2 stages tok/s" ratio "1 worker ttft p50" "2 stages ttft p50"
for concurrency in $(sed -n 's/.*"concurrency":\([0-9]*\),.*/\1/p' "$work/1.json"); do
    one=$(field 1 "$concurrency" tokens_per_second)
    two=$(field 2 "$concurrency" tokens_per_second)
    awk -v c="$concurrency" -v one="$one" -v two="$two" \
        -v first="$(field 1 "$concurrency" first_token_ms_p50)" -v second="$(field 2 "$concurrency" first_token_ms_p50)" \
        'BEGIN { printf "%-12s %16.1f %16.1f %8.2f %15.0f ms %15.0f ms\n", c, one, two, two / one, first, second }'
done
