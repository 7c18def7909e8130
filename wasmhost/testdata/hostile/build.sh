#!/bin/sh
# Builds the modules anew. They are checked in, so that tests need no compiler but Go's.
#
# Debian 12 has what it takes: apt-get install clang lld wabt. The binaries were made with
# clang 14.0.6 and wabt 1.0.32. What these proposals do must be refused by the gateway;
# wabt has to be told that it may write them.
set -eu
cd "$(dirname "$0")"

clang --target=wasm32 -O1 -mbulk-memory -nostdlib -ffreestanding -Wall -Wextra -Wl,--no-entry -Wl,--strip-debug -Wl,-z,stack-size=65536 \
	-o hostile.wasm hostile.c
chmod 644 hostile.wasm

for source in *.wat; do
	wat2wasm --debug-names --enable-multi-memory --enable-threads --enable-memory64 --enable-tail-call --enable-exceptions "$source"
done

sha256sum ./*.c ./*.wat ./*.wasm >SHA256SUMS
