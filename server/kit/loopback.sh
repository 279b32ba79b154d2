#!/bin/sh
# A whole deployment on one machine, from the installed wheel: a coordinator and two organisations' nodes with TLS and
# enrolled keys, three rounds of the embedded base. Every line is what an operator types; only the fingerprint is
# compared by a program here and by telephone elsewhere.
#
#   sh loopback.sh [FOLDER] [PORT]          ROUNDS=3 by default
set -eu
folder=${1:-$(mktemp -d)}
port=${2:-18443}
rounds=${ROUNDS:-3}
here=$(dirname "$0")
export FEDPEFT_HOME="$folder/home"
mkdir -p "$folder"

field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

started=""
trap 'for process in $started; do kill "$process" 2>/dev/null || true; done; wait' EXIT INT TERM

echo "1. Records of two organisations, as if they were their own"
fedpeft data write "$folder/data" --set federation.nodes=2 --set data.samples=96 --set data.test_samples=32

echo "2. The coordinator"
fedpeft server init --host 127.0.0.1 --port "$port"
fedpeft server up 2> "$folder/server.log" &
started="$started $!"

echo "3. The nodes: keys, policy, data, and a place in the federation"
for name in bank hospital; do
    home="$FEDPEFT_HOME/node/$name"
    token=$(fedpeft server enroll "$name" --json | field token)
    fingerprint=$(fedpeft node init "$name" --policy research-pilot --json | field fingerprint)
    fedpeft node data add notes "$folder/data/$name.jsonl" --budget-id "$name-notes" --no-preview --home "$home"
    fedpeft node join "127.0.0.1:$port" --token "$token" --home "$home" --wait 120 &
    joining=$!
    until fedpeft server approve "$name" --fingerprint "$fingerprint" 2> /dev/null; do sleep 2; done
    wait "$joining"
    fedpeft node run --home "$home" 2> "$folder/$name.log" &
    started="$started $!"
done

echo "4. A run"
fedpeft server submit "$here/run.toml" --name first --set "federation.rounds=$rounds" \
    --eval-data "$folder/data/test.jsonl"
fedpeft server status first --watch

echo "5. What left, and what the nodes kept of it"
fedpeft server status first
for name in bank hospital; do
    fedpeft node outbox verify --home "$FEDPEFT_HOME/node/$name"
done
echo "adapter: $FEDPEFT_HOME/server/coordinator/runs/first/adapter"
