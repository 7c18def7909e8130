package abi

import (
	"reflect"
	"strings"
	"testing"
)

// TestHostIsTheTable compares the methods of Host with the table: a function that is added
// to one is missing in the other until somebody thinks of it.
func TestHostIsTheTable(t *testing.T) {
	host := reflect.TypeFor[Host]()
	methods := map[string]string{}
	for m := range host.NumMethod() {
		methods[host.Method(m).Name] = host.Method(m).Type.String()
	}
	for _, f := range Imports() {
		name := methodName(f.Name)
		if got, want := methods[name], methodType(f); got != want {
			t.Errorf("import %s: Host.%s is %q, want %q", f.Name, name, got, want)
		}
		delete(methods, name)
	}
	for name := range methods {
		t.Errorf("Host.%s is not in the table", name)
	}
}

// methodName turns hdr_get into HdrGet.
func methodName(name string) string {
	var b strings.Builder
	for _, word := range strings.Split(name, "_") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// methodType writes the type that a method has for an import: a pointer and the length
// behind it are one []byte.
func methodType(f Import) string {
	var types []string
	for i := 0; i < len(f.Params); i++ {
		p := f.Params[i]
		switch p.Name {
		case "p", "buf", "kp", "vp", "np", "op":
			types = append(types, "[]uint8")
			i++ // its length
		default:
			types = append(types, goType(f.Name+" "+p.Name, p.Type))
		}
	}
	return "func(" + strings.Join(types, ", ") + ") " + goType(f.Name, f.Result)
}

// goType returns the Go type of a parameter, called "function parameter", or of a
// function's result.
func goType(of string, t Type) string {
	if odd := oddTypes[of]; odd != "" {
		return odd
	}
	return map[Type]string{I32: "int32", I64: "int64"}[t]
}

// oddTypes are those that say in Go what WebAssembly cannot: a set of bits, and a number
// that is small in spite of its width.
var oddTypes = map[string]string{"subscribe hooks": "uint64", "features": "int32"}
