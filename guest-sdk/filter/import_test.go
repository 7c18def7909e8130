package filter_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// TestImportsAreThoseOfTheTable reads the declarations of the WebAssembly build and
// compares them with the contract: a wrong type would only show when a module that uses
// the function is loaded.
func TestImportsAreThoseOfTheTable(t *testing.T) {
	got := declared(t)
	for _, f := range abi.Imports() {
		want := signature(f)
		if got[f.Name] != want {
			t.Errorf("import %s: declared as %q, want %q", f.Name, got[f.Name], want)
		}
		delete(got, f.Name)
	}
	for name := range got {
		t.Errorf("import %s is declared, but is not in the table", name)
	}
}

// signature writes the types that an import has in Go: pointers of the table are its
// parameters called p, buf or with a p at their end.
func signature(f abi.Import) string {
	goType := map[abi.Type]string{abi.I32: "int32", abi.I64: "int64"}
	var types []string
	for _, p := range f.Params {
		typ := goType[p.Type]
		switch p.Name {
		case "p", "buf", "kp", "vp", "np", "op":
			typ = "unsafe.Pointer"
		}
		types = append(types, typ)
	}
	return "(" + strings.Join(types, ", ") + ") " + goType[f.Result]
}

func declared(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "host_wasip1.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range file.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Doc == nil {
			continue
		}
		for _, c := range fn.Doc.List {
			if name, ok := strings.CutPrefix(c.Text, "//go:wasmimport "+abi.Module+" "); ok {
				out[name] = "(" + strings.Join(typesOf(fn.Type.Params), ", ") + ") " + strings.Join(typesOf(fn.Type.Results), ", ")
			}
		}
	}
	return out
}

func typesOf(list *ast.FieldList) (types []string) {
	for _, f := range list.List {
		name := "unsafe.Pointer"
		if id, ok := f.Type.(*ast.Ident); ok {
			name = id.Name
		}
		for range max(1, len(f.Names)) {
			types = append(types, name)
		}
	}
	return types
}
