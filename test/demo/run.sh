#!/usr/bin/env bash
# Builds the demo and runs it; `make demo` calls this. Everything that it writes
# is in one temporary folder, which the demo removes at its end. Needs Go.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v go >/dev/null; then
  echo 'demo: Go is missing; install it from https://go.dev/dl/ and run this again' >&2
  exit 1
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/cproxy-demo.XXXXXX")
trap 'rm -rf "$dir"' EXIT
echo 'demo: building'
CGO_ENABLED=0 go build -buildvcs=false -o "$dir/" ./cmd/cproxy-server ./cmd/cproxy-client ./test/demo

# From here on the demo owns the folder; exec leaves no shell between it and
# Ctrl-C.
exec "$dir/demo" "$dir"
