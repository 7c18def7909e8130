#!/usr/bin/env bash
# Runs the fuzz targets of all packages, one after the other: fuzz.sh TIME [PARTS].
# With PARTS only one of so many parts of them, another one with each commit: the same commit
# runs the same targets. What a target finds is left in testdata/fuzz of its package, where
# go test runs it from then on.
set -euo pipefail
time=$1 parts=${2:-1}
go=${GO:-go}
part=$(($(git rev-list --count HEAD) % parts))

list=$("$go" test -list '^Fuzz' ./...)
targets=$(awk '/^Fuzz/ { name[n++] = $1 } /^ok/ { for (i = 0; i < n; i++) print $2, name[i]; n = 0 }' <<<"$list")
[ -n "$targets" ] || { echo "no fuzz targets" >&2; exit 1; }
awk -v parts="$parts" -v part="$part" 'NR % parts == part' <<<"$targets" | while read -r package target; do
  echo "== $package $target"
  "$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" </dev/null
done
