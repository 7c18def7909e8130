#!/bin/sh
# Builds c.wasm, rust.wasm and as.wasm anew. They are checked in, so that tests need no
# compiler but Go's; testdata/workloads/go is built by the test.
#
# Debian 12 has what it takes: apt-get install clang lld rustc libstd-rust-dev-wasm32 npm.
# The binaries were made with clang 14.0.6, rustc 1.63.0 and assemblyscript 0.28.20.
set -eu
cd "$(dirname "$0")"

clang --target=wasm32 -O2 -nostdlib -Wall -Wextra -Wl,--no-entry -Wl,--strip-debug -Wl,-z,stack-size=16384 \
	-o c.wasm c/workloads.c

# Not the rustc that a PATH with rustup has first: that one has no wasm32.
/usr/bin/rustc --edition 2021 --target wasm32-unknown-unknown --crate-type cdylib \
	-C opt-level=3 -C lto=fat -C codegen-units=1 -C strip=symbols -C panic=abort -o rust.wasm rust/workloads.rs

asc=$(mktemp -d)
trap 'rm -rf "$asc"' EXIT
npm install --silent --no-save --prefix "$asc" assemblyscript@0.28.20
"$asc/node_modules/.bin/asc" as/workloads.ts -O3 --runtime incremental -o as.wasm

sha256sum ./*.wasm >SHA256SUMS
