#!/usr/bin/env bash
# Make the pictures in these pages. Needs Chromium and runs/demo (`make demo`). The nights are those that a test plays:
#
#   KEEP=/tmp/nights .venv/bin/python -m pytest --chaos-minutes=1 tests/chaos/test_nights.py
#   docs/pictures.sh /tmp/nights
#
# Without the folder of nights it makes the other pictures only.
set -euo pipefail
nights=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."
profile=$(mktemp -d)
.venv/bin/sentiment-core serve --model runs/demo/bundle --port 8123 &
service=$!
trap 'kill $service; wait $service || true; rm -rf "$profile"' EXIT
until curl --silent --fail --output /dev/null http://127.0.0.1:8123/healthz; do
  kill -0 $service
  sleep 1
done
picture() {  # NAME WIDTH,HEIGHT ADDRESS
  chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --hide-scrollbars --user-data-dir="$profile" \
    --virtual-time-budget=10000 --window-size="$2" --screenshot="docs/images/$1.png" "$3"
}
picture serving 800,640 "http://127.0.0.1:8123/?text=The+acting+is+wonderful,+but+the+story+is+dull+and+far+too+long."
picture report 1000,760 "file://$PWD/runs/demo/report.html"
if [ -n "$nights" ]; then picture nights 1150,1300 "file://$nights/index.html"; fi
