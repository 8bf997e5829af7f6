#!/bin/sh
# How fast weights get from a file to the device, against dd reading the same file, two rounds in turn; the process's
# memory beside what the device holds; and what the planner counted for the device.
#
# TRAMONTANE is the program. MODEL is a checkpoint in one file; absent: one layer and the ends of Mistral Large 3 with
# eight experts, random weights, 4.4 GiB. HTTP is the address to serve on. Caches of files are dropped before each read
# where this may be done (as root); else files are read from memory.
set -eu

program=${TRAMONTANE:-target/release/tramontane}
http=${HTTP:-127.0.0.1:18080}
work=$(mktemp -d)
served=""
stop() {
    if [ -n "$served" ]; then
        kill "$served" 2>/dev/null || true
        wait "$served" 2>/dev/null || true
        served=""
    fi
}
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

model=${MODEL:-}
if [ -z "$model" ]; then
    model=$work/model
    "$program" checkpoint synth "$model" --shape mistral-large-3 --layers 1 --experts 8 --format fp8
fi
file=$(find "$model" -name '*.safetensors' | head -n 1)

forget() {
    sync
    if (echo 3 >/proc/sys/vm/drop_caches) 2>/dev/null; then caches="from storage"; else caches="from memory"; fi
}

round=1
while [ "$round" -le 2 ]; do
    forget
    began=$(date +%s.%N)
    dd if="$file" of=/dev/null bs=4M 2>"$work/dd"
    ended=$(date +%s.%N)
    forget
    "$program" serve --model "$model" --http "$http" >"$work/log" 2>&1 &
    served=$!
    waited=0
    until grep -q "weights are on the device" "$work/log"; do
        sleep 0.2
        waited=$((waited + 1))
        if [ "$waited" -gt 1500 ] || ! kill -0 "$served" 2>/dev/null; then
            cat "$work/log" >&2
            exit 1
        fi
    done
    loaded=$(sed -n 's/.*bytes_per_second=\([0-9]*\).*weights are on the device.*/\1/p;s/.*weights are on the device.*bytes_per_second=\([0-9]*\).*/\1/p' "$work/log" | head -n 1)
    until "$program" status --url "http://$http" >"$work/status" 2>/dev/null && grep -q ready "$work/status"; do
        sleep 0.2
        kill -0 "$served"
    done
    memory=$(sed -n 's/VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$served/status")
    "$program" status --json --url "http://$http" >"$work/status"
    held=$(sed -n 's/.*"held_bytes":\([0-9]*\).*/\1/p' "$work/status")
    planned=$(sed -n 's/.*"planned_bytes":\([0-9]*\).*/\1/p' "$work/status")
    stop
    awk -v round="$round" -v caches="$caches" -v bytes="$(wc -c <"$file")" -v began="$began" -v ended="$ended" \
        -v loaded="$loaded" -v memory="$memory" -v held="$held" -v planned="$planned" 'BEGIN {
            dd = bytes / (ended - began)
            printf "round %d, %s: dd %.0f MB/s, load %.0f MB/s, %.2f of it\n", round, caches, dd / 1e6, loaded / 1e6, loaded / dd
            printf "  memory at most %.0f MB, device %.0f MB, planned %.0f MB, %.2f %% off\n", memory * 1024 / 1e6, held / 1e6, planned / 1e6, 100 * (planned / held - 1)
        }'
    round=$((round + 1))
done
