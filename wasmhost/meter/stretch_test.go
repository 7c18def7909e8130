package meter_test

import (
	"bytes"
	"testing"

	"github.com/penstock/penstock/wasmhost/meter"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// Code without a loop is no longer without a check than maxStretch: each pays for itself.
func TestStretch(t *testing.T) {
	const n = 100_000
	m := &wasmtest.Module{Memory: &wasmtest.Limits{Min: 1}}
	m.Func("chase", "i>i", "", wasmtest.Op(0x20, 0), wasmtest.Op(bytes.Repeat([]byte{0x28, 0, 0}, n)...), // i32.load
		wasmtest.Op(0x03, 0x40, 0x0b)) // a loop, lest it be light
	m.ExportFunc("chase")
	read, err := meter.Read(m.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	out, err := read.Rewrite()
	if err != nil {
		t.Fatal(err)
	}
	if n := 4096; bytes.Contains(out.Wasm, bytes.Repeat([]byte{0x28, 0, 0}, n)) {
		t.Errorf("%d loads behind one another have no check between them", n)
	}
	mustCheck(t, out.Wasm)
}
