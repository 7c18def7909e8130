package wasmtest_test

import (
	"bytes"
	"testing"

	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// TestNumbers has the examples of the LEB128 form that change its length.
func TestNumbers(t *testing.T) {
	for _, tt := range []struct {
		v    int64
		want []byte
	}{
		{0, []byte{0}}, {63, []byte{63}}, {64, []byte{0xc0, 0}}, {-1, []byte{0x7f}}, {-64, []byte{0x40}}, {-65, []byte{0xbf, 0x7f}},
		{624485, []byte{0xe5, 0x8e, 0x26}}, {-123456, []byte{0xc0, 0xbb, 0x78}},
		{-1 << 63, []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f}},
	} {
		if got := wasmtest.Int(tt.v); !bytes.Equal(got, tt.want) {
			t.Errorf("Int(%d): got % x, want % x", tt.v, got, tt.want)
		}
	}
	if got := wasmtest.Uint(624485); !bytes.Equal(got, []byte{0xe5, 0x8e, 0x26}) {
		t.Errorf("Uint(624485): got % x", got)
	}
}

// A module has the octets that the binary format asks for.
func TestModule(t *testing.T) {
	m := &wasmtest.Module{Memory: &wasmtest.Limits{Min: 1}, Exports: []wasmtest.Export{{Name: "m", Kind: wasmtest.KindMemory}}}
	m.Import("a", "b", "i>")
	m.Func("f", ">l", "i", wasmtest.Call("a.b", wasmtest.I32(5)), wasmtest.I64(-1))
	m.ExportFunc("f")
	want := "\x00asm\x01\x00\x00\x00" +
		"\x01\x09\x02\x60\x01\x7f\x00\x60\x00\x01\x7e" + // types (i32) -> () and () -> i64
		"\x02\x07\x01\x01a\x01b\x00\x00" + // import a.b of type 0
		"\x03\x02\x01\x01" + // a function of type 1
		"\x05\x03\x01\x00\x01" + // a memory of one page
		"\x07\x09\x02\x01m\x02\x00\x01f\x00\x01" + // exports
		"\x0a\x0c\x01\x0a\x01\x01\x7f\x41\x05\x10\x00\x42\x7f\x0b" // local i32; i32.const 5, call 0, i64.const -1
	if got := string(m.Bytes()); got != want {
		t.Errorf("got  % x\nwant % x", got, want)
	}
}
