package wasmhost_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// edited is a guest whose module was changed.
func edited(edit func(m *wasmtest.Module)) []byte { return wasmtest.Guest{Edit: edit}.Bytes() }

// without is a guest that lacks an export.
func without(name string) []byte {
	return edited(func(m *wasmtest.Module) {
		m.Exports = slices.DeleteFunc(m.Exports, func(e wasmtest.Export) bool { return e.Name == name })
	})
}

// as is a guest that exports something else under a name.
func as(name string, kind byte) []byte {
	return edited(func(m *wasmtest.Module) {
		m.Exports = slices.DeleteFunc(m.Exports, func(e wasmtest.Export) bool { return e.Name == name })
		m.Table = &wasmtest.Limits{Min: 1}
		m.Exports = append(m.Exports, wasmtest.Export{Name: name, Kind: kind})
	})
}

// typed is a guest that has a function of another type under a name.
func typed(name, sig string, code ...wasmtest.Code) []byte {
	m := &wasmtest.Module{Memory: &wasmtest.Limits{Min: 1}}
	m.Exports = []wasmtest.Export{{Name: abi.ExportMemory, Kind: wasmtest.KindMemory}}
	for _, f := range []struct{ name, sig string }{{abi.ExportInit, "i>l"}, {abi.ExportHook, "ii>l"}, {abi.ExportInitialize, ">"}} {
		if f.name == name {
			f.sig = sig
		}
		m.Func(f.name, f.sig, "", append(slices.Clip(code), wasmtest.Trap())...)
		m.ExportFunc(f.name)
	}
	return m.Bytes()
}

// importing is a guest with one import more.
func importing(module, name, sig string) []byte {
	return edited(func(m *wasmtest.Module) { m.Import(module, name, sig) })
}

// manifest is a guest with a manifest.
func manifest(text string) []byte {
	return edited(func(m *wasmtest.Module) {
		m.Sections = append(m.Sections, wasmtest.Section{Body: append(wasmtest.Vec([]byte("mg1.manifest")), text...)})
	})
}

// section is a module that begins with a section whose content is given.
func section(id byte, body ...byte) []byte {
	return slices.Concat([]byte("\x00asm\x01\x00\x00\x00"), []byte{id}, wasmtest.Vec(body))
}

// TestLoadRefuses loads what is no filter. Each error wraps ErrModule, names the module,
// and says what is wrong.
func TestLoadRefuses(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<32-1)
	tests := []struct {
		name string
		wasm []byte
		want string
	}{
		{"empty", nil, `not a WebAssembly module: it begins with ""`},
		{"text", []byte("(module)"), `it begins with "(mod"`},
		{"elf", []byte("\x7fELF\x02\x01\x01\x00"), "not a WebAssembly module"},
		{"gzip", []byte{0x1f, 0x8b, 8, 0}, "not a WebAssembly module"},
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), "a WebAssembly component"},
		{"version 2", []byte("\x00asm\x02\x00\x00\x00"), "WebAssembly of version 02 00 00 00"},
		{"magic alone", []byte("\x00asm"), "version"},
		{"too large", append([]byte("\x00asm\x01\x00\x00\x00"), make([]byte, wasmhost.MaxModule)...), "the most is"},
		{"cut off", wasmtest.Guest{}.Bytes()[:100], "ends in the middle"},
		{"trailing octet", append(wasmtest.Guest{}.Bytes(), 1), "a number is broken"},
		{"unknown section", section(13, 0), "unknown section"},
		{"section with octets too many", section(1, 0, 0), "octets too many"},

		// Bombs: small modules that ask a decoder for gigabytes.
		{"types bomb", section(1, huge...), "4294967295 types, the most is"},
		{"params bomb", section(1, append([]byte{1, 0x60}, huge...)...), "parameters"},
		{"imports bomb", section(2, huge...), "imports, the most is"},
		{"functions bomb", section(3, huge...), "functions, the most is"},
		{"functions bomb under the limit", section(3, wasmtest.Uint(100_000)...), "100000 functions in 0 octets"},
		{"table bomb", section(4, append([]byte{1, 0x70, 0}, wasmtest.Uint(1<<27)...)...), "a table of 134217728 entries"},
		{"tables", section(4, append([]byte{17}, bytes.Repeat([]byte{0x70, 0, 0}, 17)...)...), "17 tables, the most is 16"},
		{"globals bomb", section(6, huge...), "globals, the most is"},
		{"exports bomb", section(7, huge...), "exports, the most is"},
		{"elements bomb", section(9, append([]byte{1, 1, 0}, huge...)...), "elements, the most is"},
		{"locals bomb", edited(func(m *wasmtest.Module) {
			m.Sections = append(m.Sections, wasmtest.Section{ID: 10, Body: slices.Concat([]byte{1, 8, 1}, huge, []byte{0x7f, 0x0b})})
		}), "a function of 4294967295 locals"},
		{"locals in many groups", section(10, slices.Concat([]byte{1}, wasmtest.Vec(slices.Concat(
			[]byte{3}, wasmtest.Uint(2000), []byte{0x7f}, wasmtest.Uint(2000), []byte{0x7e}, wasmtest.Uint(2000), []byte{0x7f, 0x0b})))...), "6000 locals"},
		{"data bomb", section(11, append([]byte{1, 1}, huge...)...), "ends in the middle"},
		{"data segments bomb", section(11, huge...), "data segments, the most is"},
		{"long name", importing("mg1", strings.Repeat("x", 5000), ">"), "a name of 5000 octets"},

		{"no memory", without(abi.ExportMemory), "lacks the export memory"},
		{"no init", without(abi.ExportInit), "lacks the export mg1_init"},
		{"no hook", without(abi.ExportHook), "lacks the export mg1_hook"},
		{"empty module", []byte("\x00asm\x01\x00\x00\x00"), "lacks the export mg1_init"},
		{"memory is a global", as(abi.ExportMemory, wasmtest.KindGlobal), "lacks the export memory"},
		{"hook is a global", as(abi.ExportHook, wasmtest.KindGlobal), "lacks the export mg1_hook"},
		{"hook is the memory", as(abi.ExportHook, wasmtest.KindMemory), "lacks the export mg1_hook"},
		{"init is a table", as(abi.ExportInit, wasmtest.KindTable), "lacks the export mg1_init"},
		{"hook of another type", typed(abi.ExportHook, "i>l"), "export mg1_hook is (i32) -> i64, want (i32, i32) -> i64"},
		{"hook without result", typed(abi.ExportHook, "ii>"), "export mg1_hook is (i32, i32) -> (), want"},
		{"init of v128", typed(abi.ExportInit, "v>l"), "export mg1_init is (v128) -> i64"},
		{"init of two results", typed(abi.ExportInit, "i>ll"), "export mg1_init is (i32) -> (i64, i64), want (i32) -> i64"},
		{"hook of a reference", typed(abi.ExportHook, "ri>l"), "export mg1_hook is (funcref, i32) -> i64"},
		{"initialize with parameter", typed(abi.ExportInitialize, "i>"), "export _initialize is (i32) -> ()"},
		{"reserved export", edited(func(m *wasmtest.Module) {
			m.Exports = append(m.Exports, wasmtest.Export{Name: "__mg_fuel", Kind: wasmtest.KindFunc, Index: 1})
		}), "names that begin with __mg are reserved"},
		{"reserved global", edited(func(m *wasmtest.Module) {
			m.Exports = append(m.Exports, wasmtest.Export{Name: "__mg_fuel", Kind: wasmtest.KindGlobal})
		}), "names that begin with __mg are reserved"},
		{"export twice", edited(func(m *wasmtest.Module) { m.ExportFunc(abi.ExportHook) }), "does not compile"},

		{"unknown import", importing("mg1", "format_disk", "i>i"), "imports mg1.format_disk, which this gateway does not have"},
		{"a newer gateway", manifest(`{"min_minor": 999}`), "needs minor version 999 of the ABI mg1, this gateway has"},
		{"a manifest that is none", manifest(`[]`), "its section mg1.manifest is not the JSON object it should be"},
		{"import of another type", importing("mg1", "log_enabled", "l>i"), "imports mg1.log_enabled as (i64) -> i32, it is (i32) -> i32"},
		{"import of env", importing("env", "abort", "iiii>"), "imports env.abort, which this gateway does not have"},
		{"another ABI", importing("mg2", "get", "iiii>i"), "speaks the ABI mg2, this gateway speaks mg1"},
		{"WASI of another type", importing(wasmtest.WASI, "fd_write", "i>i"), "imports wasi_snapshot_preview1.fd_write as (i32) -> i32"},
		{"WASI preview 0", importing("wasi_unstable", "fd_write", "iiii>i"), "imports wasi_unstable.fd_write"},
		{"import of a memory", edited(func(m *wasmtest.Module) {
			m.Memory = nil
			m.ImportOther("env", "memory", wasmtest.KindMemory, 0, 1)
		}), "imports the memory env.memory"},
		{"import of a table", edited(func(m *wasmtest.Module) { m.ImportOther("env", "t", wasmtest.KindTable, 0x70, 0, 1) }), "imports the table env.t"},
		{"import of a global", edited(func(m *wasmtest.Module) { m.ImportOther("mg1", "g", wasmtest.KindGlobal, 0x7f, 0) }), "imports the global mg1.g"},

		{"memory above the cap", wasmtest.Guest{Memory: wasmtest.Limits{Min: 1025}}.Bytes(), "does not compile"},
		{"shared memory", section(5, 1, 3, 1, 1), "limits of kind 3"},
		{"ref.func", edited(func(m *wasmtest.Module) { m.Func("ref", ">", "", wasmtest.Op(0xd2, 0, 0x1a)) }), "a reference of function 0, which is in no element segment"},
		{"bad code", edited(func(m *wasmtest.Module) { m.Func("bad", ">i", "") }), "does not compile"},
		{"call of nothing", edited(func(m *wasmtest.Module) { m.Func("bad", ">", "", wasmtest.Call("nobody")) }), "function 4294967295, there are"},
	}
	rt := newRuntime(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := rt.Load(t.Context(), "guard.wasm", tt.wasm)
			if !errors.Is(err, wasmhost.ErrModule) {
				t.Fatalf("got error %v, want one that wraps ErrModule", err)
			}
			if got := err.Error(); !strings.Contains(got, tt.want) || !strings.Contains(got, "guard.wasm") {
				t.Errorf("got error %q, want it to contain %q and the module's name", got, tt.want)
			}
			if len(err.Error()) > 10<<10 {
				t.Errorf("the error has %d octets, want fewer", len(err.Error()))
			}
		})
	}
}

// Everything that is wrong is told at once, each fault once, and not without end.
func TestLoadTellsAll(t *testing.T) {
	rt := newRuntime(t)
	_, err := rt.Load(t.Context(), "x", edited(func(m *wasmtest.Module) {
		m.Exports = nil
		m.Import("mg9", "a", ">")
		m.Import("mg9", "b", ">")
		for i := range 100 {
			m.Import("env", strings.Repeat("y", i+1), ">")
		}
	}))
	for _, want := range []string{"lacks the export memory", "lacks the export mg1_init", "lacks the export mg1_hook", "env.yyy,", "and more"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want it to contain %q", err, want)
		}
	}
	_, err = rt.Load(t.Context(), "x", edited(func(m *wasmtest.Module) {
		m.Import("mg9", "a", ">")
		m.Import("mg9", "b", ">")
	}))
	if err == nil || strings.Count(err.Error(), "speaks the ABI mg9") != 1 {
		t.Errorf("got error %v, want it to speak of the ABI once", err)
	}
}

// The module's description, and that debug information does not reach the compiler.
func TestInfo(t *testing.T) {
	most := uint32(9)
	wasm := wasmtest.Guest{
		Memory: wasmtest.Limits{Min: 2, Max: &most},
		Edit: func(m *wasmtest.Module) {
			m.Import(wasmtest.WASI, "fd_write", "iiii>i")
			m.Sections = append(m.Sections,
				wasmtest.Section{Body: append(wasmtest.Vec([]byte("mg1.manifest")), `{"name":"x"}`...)},
				wasmtest.Section{Body: append(wasmtest.Vec([]byte(".debug_info")), 1, 2, 3)},
				wasmtest.Section{Body: wasmtest.Vec([]byte(strings.Repeat("long", 1000)))},
				wasmtest.Section{Body: append(wasmtest.Vec([]byte("name")), 1, 0xff, 0xff)}, // broken: left out
			)
			m.Names = false
		},
	}.Bytes()
	m, err := newRuntime(t).Load(t.Context(), "x", wasm)
	if err != nil {
		t.Fatal(err)
	}
	got := m.Info()
	want := wasmhost.Info{
		Size: len(wasm), Memory: 2, MemoryMax: 9, Manifest: []byte(`{"name":"x"}`),
		Imports: []string{"mg1.subscribe", "wasi_snapshot_preview1.fd_write"}, Exports: []string{"mg1_hook", "mg1_init"},
	}
	if got.Size != want.Size || got.Memory != want.Memory || got.MemoryMax != want.MemoryMax ||
		!bytes.Equal(got.Manifest, want.Manifest) || !slices.Equal(got.Imports, want.Imports) || !slices.Equal(got.Exports, want.Exports) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// With a cache the second runtime takes the first one's code.
func TestCache(t *testing.T) {
	dir := t.TempDir() + "/cache"
	for range 2 {
		rt, err := wasmhost.New(t.Context(), wasmhost.Options{CacheDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rt.Load(t.Context(), "x", wasmtest.Guest{}.Bytes()); err != nil {
			t.Error(err)
		}
		if err := rt.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("cache directory: %v, %v; want mode 0700", st, err)
	}
	if _, err := wasmhost.New(t.Context(), wasmhost.Options{CacheDir: "/dev/null/x"}); err == nil {
		t.Error("a cache in a file: got no error")
	}
}

// FuzzLoad loads anything: no input makes it panic, and what is refused is the module's
// fault.
func FuzzLoad(f *testing.F) {
	f.Add(wasmtest.Guest{}.Bytes())
	f.Add(wasmtest.Guest{Start: wasmtest.Work(1), Data: map[uint32]string{100: "x"}}.Bytes())
	f.Add(as(abi.ExportInit, wasmtest.KindTable))
	f.Add(importing("mg2", "get", "iiii>i"))
	f.Add(section(9, 1, 5, 0x70, 1, 0xd2, 0, 0x0b))
	f.Add(section(6, 1, 0x7b, 0, 0xfd, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0x0b))
	rt := newRuntime(f)
	f.Fuzz(func(t *testing.T, wasm []byte) {
		m, err := rt.Load(t.Context(), "x", wasm)
		switch {
		case err == nil:
			_ = m.Info()
			if err := m.Close(t.Context()); err != nil {
				t.Error(err)
			}
		case !errors.Is(err, wasmhost.ErrModule):
			t.Errorf("got error %v, want one that wraps ErrModule", err)
		}
	})
}
