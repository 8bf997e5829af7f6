#!/bin/sh
# Two measurements of one worker on this machine, each in two rounds, its sides in turn:
#
#   the time between tokens of running streams, without and with prompts of 2000 tokens, one after the other as far as
#   the streams' time goes;
#   the time to first token of prompts that share their beginning, with and without the prefix cache.
#
# TRAMONTANE is the program, MODEL the checkpoint's directory.
set -eu

program=${TRAMONTANE:-target/release/tramontane}
model=${MODEL:-cli/assets/mini-large-3}
model=$(cd "$model" && pwd)
work=$(mktemp -d)
pids=""
trap 'for pid in $pids; do kill "$pid" 2>/dev/null || true; done; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Starts a coordinator and a worker: name, base of their ports, whether there is a prefix cache.
cluster() {
    mkdir -p "$work/$1"
    echo "a-join-token-for-measuring" >"$work/$1/join-token"
    cat >"$work/$1/coordinator.toml" <<END
id = 1
cluster = "$1"
data_dir = "data"
join_token_file = "join-token"
http.listen = "127.0.0.1:$2"
rpc.listen = "127.0.0.1:$(($2 + 1))"
model = { dir = "$model", name = "model" }
initial_members = [{ id = 1, address = "127.0.0.1:$(($2 + 1))" }]
placement.kv_tokens_max = 65536
steps.prefix_cache = $3
END
    cat >"$work/$1/worker.toml" <<END
name = "worker-1"
coordinators = ["127.0.0.1:$(($2 + 1))"]
join_token_file = "join-token"
rpc.listen = "127.0.0.1:0"
model.dir = "$model"
devices = [{ memory_bytes = 1073741824 }]
END
    for role in coordinator worker; do
        "$program" "$role" --config "$work/$1/$role.toml" >"$work/$1/$role.log" 2>&1 &
        pids="$pids $!"
    done
}

bench() {
    port=$1
    shift
    "$program" bench serve --url "http://127.0.0.1:$port" --ready-within-s 120 "$@"
}

# A number of a result: file, kind of time, which.
number() {
    sed -n "s/.*\"$2\":{[^}]*\"$3\":\([0-9.]*\).*/\1/p" "$work/$1.json"
}

row() {
    awk -v name="$1" -v one="$2" -v other="$3" \
        'BEGIN { printf "%-36s %14.1f %14.1f %8.2f\n", name, one, other, other / one }'
}

cluster cached 18940 true
cluster uncached 18950 false

# Once before anything is measured.
for port in 18940 18950; do
    bench "$port" --requests 8 --concurrency 8 --output-tokens 8 --warm-up 0 --seed 99 >/dev/null
done

for round in 1 2; do
    streams="--concurrency 8 --requests 8 --prompt-tokens 32 --output-tokens 200 --warm-up 0 --seed $round"
    # shellcheck disable=SC2086
    bench 18940 $streams --json "$work/alone-$round.json" >/dev/null
    # shellcheck disable=SC2086
    bench 18940 $streams --json "$work/beside-$round.json" >/dev/null &
    running=$!
    until curl -s http://127.0.0.1:18940/metrics | grep -q '^tramontane_sequences_running.* 8$'; do
        sleep 0.2
    done
    # Not through the function, which would be a shell of its own between it and the interrupt.
    "$program" bench serve --url http://127.0.0.1:18940 --concurrency 1 --duration 1h --prompt-tokens 2000 \
        --output-tokens 1 --warm-up 0 --seed "1$round" --json "$work/prompts-$round.json" >/dev/null 2>&1 &
    prompts=$!
    wait "$running"
    kill -INT "$prompts"
    wait "$prompts" || true
    for side in cached:18940 uncached:18950; do
        bench "${side#*:}" --concurrency 1 --requests 10 --shared-prefix 768 --prefix-groups 2 --prompt-tokens 32 \
            --output-tokens 4 --warm-up 0 --seed "2$round" --json "$work/${side%:*}-$round.json" >/dev/null
    done
done
printf '%-36s %14s %14s %8s\n' "ms between tokens, 8 streams" alone "with prompts" ratio
for round in 1 2; do
    for which in p50 p99 max; do
        row "  round $round, $which" "$(number "alone-$round" tbt_ms $which)" "$(number "beside-$round" tbt_ms $which)"
    done
done
printf '%-36s %14s %14s %8s\n' "ms to first token, shared prefix" cached uncached ratio
for round in 1 2; do
    for which in mean p50 p99; do
        row "  round $round, $which" "$(number "cached-$round" ttft_ms $which)" "$(number "uncached-$round" ttft_ms $which)"
    done
done
