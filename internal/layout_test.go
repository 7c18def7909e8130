// Package internal_test holds the tests about the tree itself: who imports whom, and what
// is documented.
package internal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/penstock/penstock"

// row is a package and what it may import. A package imports only rows above it: the
// table is the reading order of the whole house.
type row struct {
	pkg   string
	ours  string // space-separated; a trailing /... stands for a folder
	third string // prefixes of import paths
	why   string // printed when an import breaks the row
}

// layout is the import table.
var layout = []row{
	{"mail/smtp", "", "golang.org/x/net/idna",
		"the protocol as a library: a program without the gateway can use it"},
	{"mail/smtp/sasl", "mail/smtp", "github.com/emersion/go-sasl golang.org/x/text",
		"how a client proves who it is; knows no store of users"},
	{"mail/smtp/sasl/users", "mail/smtp/sasl", "golang.org/x/crypto",
		"a file of users; a program that checks passwords elsewhere needs none of its hashes"},
	{"internal/metrics", "", "github.com/prometheus/client_golang",
		"figures in Prometheus' form, read where they are counted; what counts need not know it"},
	{"guest-sdk/abi", "", "",
		"names and numbers; guests carry it, so it imports nothing at all"},
	{"guest-sdk/filter", "guest-sdk/abi", "",
		"compiled into every guest, which must stay small"},
	{"guest-sdk/manifest", "guest-sdk/abi", "",
		"what a filter says of itself, for those who build filters and those who show it"},
	{"", "", "",
		"embeds the sources that authors of filters need and nothing else"},
	{"filters", "", "",
		"embeds the built filters and nothing else"},
	{"mail/message", "mail/smtp", "",
		"header fields as bytes; knows no MIME library, which would write mail anew"},
	{"mail/parts", "mail/message", "golang.org/x/text/encoding/htmlindex",
		"what a message is made of; it looks and never writes, so it knows no MIME library"},
	{"mail/auth", "mail/message mail/smtp", "github.com/emersion/go-msgauth/dkim",
		"who a message is from; knows neither who sends it nor where keys are kept"},
	{"resolver", "", "github.com/miekg/dns",
		"the only package that knows the DNS library: what others see are types of its own, so that the library can be replaced"},
	{"store", "mail/smtp", "",
		"what a driver must do; knows none"},
	{"store/embedded", "store mail/smtp", "github.com/cockroachdb/pebble/v2",
		"a directory; the only package that knows Pebble"},
	{"store/postgres", "store mail/smtp", "github.com/jackc/pgx",
		"a database; the only package that knows pgx"},
	{"policy", "mail/smtp mail/message", "",
		"the words of policy: no WebAssembly, no sockets, so that a Go function can be a filter"},
	{"policy/account", "policy internal/metrics", "",
		"the books on what filters do, for metrics and for who administers them; so that policy itself knows no figures"},
	{"internal/match", "", "",
		"many patterns at once; knows no mail"},
	{"policy/guest", "guest-sdk/abi internal/match policy mail/smtp mail/message mail/parts", "",
		"the host's side of the ABI without WebAssembly, shared by wasmhost and filtertest"},
	{"internal/netguard", "", "",
		"addresses, and who may be connected to; what connects for others brings its own dialer"},
	{"policy/errand", "internal/netguard mail/message mail/smtp policy/guest resolver store", "",
		"what filters may do beyond their sessions; the one place where they reach names, web servers and the store"},
	{"guest-sdk/filtertest", "guest-sdk/abi guest-sdk/filter policy policy/guest mail/smtp mail/message", "",
		"runs a filter natively; what runs modules stays out"},
	{"wasmhost/meter", "guest-sdk/abi", "",
		"reads and rewrites what strangers upload: knows bytes and nothing that runs them, so that all of it can be fuzzed"},
	{"wasmhost", "guest-sdk/abi guest-sdk/manifest policy policy/guest mail/smtp mail/message wasmhost/meter", "github.com/tetratelabs/wazero golang.org/x/sys",
		"the only package that knows wazero"},
	{"delivery/mtasts", "internal/netguard resolver", "",
		"policies of domains; a small interface keeps them, so that it knows no store"},
	{"gateway", "policy mail/smtp mail/smtp/sasl mail/message", "github.com/pires/go-proxyproto",
		"receiving; it never imports delivery: what it needs of the far side is its own interface Relay"},
	{"delivery/mx", "internal/netguard mail/smtp resolver", "",
		"where mail for a domain goes; knows no connections, so that a question about a domain costs none"},
	{"delivery/tlsrpt", "internal/netguard mail/message mail/parts mail/smtp resolver", "",
		"reports about TLS, those we send and those we get; who stores and mails them is behind interfaces of its own"},
	{"delivery/dane", "resolver", "",
		"TLSA records and certificates; of use to a program that connects by other means"},
	{"delivery", "delivery/dane delivery/mtasts delivery/mx delivery/tlsrpt mail/smtp mail/smtp/sasl mail/message resolver store", "golang.org/x/net/idna golang.org/x/net/proxy golang.org/x/sys golang.org/x/time/rate",
		"sending; it never imports gateway, and satisfies its interface without knowing it"},
	{"certs", "mail/smtp", "golang.org/x/net/idna golang.org/x/net/netutil github.com/caddyserver/certmagic github.com/mholt/acmez/v3 go.uber.org/zap",
		"certificates; knows no mail listener. The only package that knows certmagic, acmez below it, and zap, which certmagic logs with"},
	{"admin/api", "", "",
		"the words that server and client of the admin API share; a client elsewhere needs nothing else"},
	{"admin", "admin/api", "golang.org/x/net/netutil",
		"HTTP and tokens; what it shows and changes is behind interfaces of its own, so it knows no mail and no WebAssembly"},
	{"admin/client", "admin/api", "",
		"speaks to a gateway that runs elsewhere, so it knows nothing of one"},
	{"internal/config", "", "github.com/knadh/koanf go.yaml.in/yaml/v3 golang.org/x/net/idna",
		"reads the configuration into its own types; cmd/gateway turns them into Options"},
	{"filters/build", "filters guest-sdk/manifest", "",
		"compiles the filters that ship; needs their names, and what they say of themselves"},
	{"filters/...", "guest-sdk/filter", "",
		"guests: they see the SDK alone, like any author's"},
	{"cmd/gateway", "admin admin/api admin/client certs delivery delivery/dane delivery/mtasts delivery/mx delivery/tlsrpt resolver store store/embedded store/postgres filters gateway guest-sdk/abi guest-sdk/manifest internal/config internal/metrics mail/auth mail/message mail/smtp mail/smtp/sasl mail/smtp/sasl/users policy policy/account policy/errand policy/guest wasmhost",
		"github.com/spf13/cobra golang.org/x/sys golang.org/x/term",
		"the one place that knows everybody"},
}

// testOnly packages are imported by tests alone and may import anything.
var testOnly = []string{"guest-sdk/tck", "guest-sdk/tck/goguest", "internal/bench", "internal/guests", "internal/lab", "internal/leak", "internal/memqueue", "internal/parity", "internal/parity/check", "internal/peers", "internal/corpus", "internal/testnet", "store/storetest", "wasmhost/wasmtest", "internal"}

// pkg is what go list says.
type pkg struct {
	ImportPath, Dir           string
	Standard                  bool
	GoFiles                   []string
	Imports                   []string
	TestImports, XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// name is the path within the module.
func name(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

// find returns the row of a package; -1 if it has none.
func find(pkg string) int {
	if i := slices.IndexFunc(layout, func(r row) bool { return r.pkg == pkg }); i >= 0 {
		return i
	}
	return slices.IndexFunc(layout, func(r row) bool {
		folder, ok := strings.CutSuffix(r.pkg, "/...")
		return ok && strings.HasPrefix(pkg, folder+"/")
	})
}

func TestLayout(t *testing.T) {
	for _, p := range packages(t) {
		me := name(p.ImportPath)
		if slices.Contains(testOnly, me) || strings.Contains(me, "testdata") || strings.HasPrefix(me, "examples") {
			continue
		}
		at := find(me)
		if at < 0 {
			t.Errorf("%s has no row in the import table: say in internal/layout_test.go where it belongs and why", me)
			continue
		}
		for _, imp := range p.Imports {
			checkImport(t, me, at, imp)
		}
	}
}

func checkImport(t *testing.T, me string, at int, imp string) {
	r := layout[at]
	first, _, _ := strings.Cut(imp, "/")
	switch {
	case imp == module || strings.HasPrefix(imp, module+"/"):
		other := name(imp)
		if slices.Contains(testOnly, other) {
			t.Errorf("%s imports %s, which is for tests alone", me, other)
			return
		}
		if other != "" && !slices.Contains(strings.Fields(r.ours), other) || other == "" && me != "cmd/gateway" {
			t.Errorf("%s imports %s.\n\t%s: %s", me, other, r.pkg, r.why)
		}
		if find(other) >= at {
			t.Errorf("%s imports %s, which stands below it in the table", me, other)
		}
	case strings.Contains(first, "."):
		ok := slices.ContainsFunc(strings.Fields(r.third), func(prefix string) bool {
			return imp == prefix || strings.HasPrefix(imp, prefix+"/")
		})
		if !ok {
			t.Errorf("%s imports %s.\n\t%s: %s", me, imp, r.pkg, r.why)
		}
	}
}

// TestRowsExist keeps the table from telling of rooms that are not there.
func TestRowsExist(t *testing.T) {
	all := packages(t)
	for _, r := range layout {
		if strings.HasSuffix(r.pkg, "/...") {
			continue
		}
		if !slices.ContainsFunc(all, func(p pkg) bool { return name(p.ImportPath) == r.pkg }) {
			t.Errorf("the table has a row for %s, which does not exist", r.pkg)
		}
	}
}

// parsed is a package's syntax, tests left out.
func parsed(t *testing.T, p pkg) (*token.FileSet, []*ast.File) {
	t.Helper()
	fset := token.NewFileSet()
	var files []*ast.File
	for _, f := range p.GoFiles {
		file, err := parser.ParseFile(fset, filepath.Join(p.Dir, f), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return fset, files
}

// TestDocs asks for a comment on every package and every exported name.
func TestDocs(t *testing.T) {
	for _, p := range packages(t) {
		if strings.Contains(p.ImportPath, "testdata") || len(p.GoFiles) == 0 {
			continue
		}
		fset, files := parsed(t, p)
		documented := false
		for _, f := range files {
			documented = documented || f.Doc != nil
			for _, d := range f.Decls {
				checkDecl(t, fset, d)
			}
		}
		if !documented {
			t.Errorf("package %s has no package comment", name(p.ImportPath))
		}
	}
}

func checkDecl(t *testing.T, fset *token.FileSet, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && exportedReceiver(d) {
			checkComment(t, fset, d.Pos(), d.Name.Name, d.Doc)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() {
					checkComment(t, fset, s.Pos(), s.Name.Name, either(s.Doc, d.Doc))
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() && either(either(s.Doc, s.Comment), d.Doc) == nil {
						t.Errorf("%s: %s has no comment", fset.Position(n.Pos()), n.Name)
					}
				}
			}
		}
	}
}

func either(a, b *ast.CommentGroup) *ast.CommentGroup {
	if a != nil {
		return a
	}
	return b
}

// exportedReceiver tells whether a method belongs to an exported type.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if idx, ok := typ.(*ast.IndexExpr); ok {
		typ = idx.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// checkComment asks that a comment begins with the name it is about.
func checkComment(t *testing.T, fset *token.FileSet, pos token.Pos, name string, doc *ast.CommentGroup) {
	at := fset.Position(pos)
	if doc == nil {
		t.Errorf("%s: %s has no comment", at, name)
		return
	}
	var p comment.Parser
	text := doc.Text()
	if len(p.Parse(text).Content) == 0 {
		t.Errorf("%s: the comment of %s is empty", at, name)
	}
	words := strings.Fields(text)
	if len(words) > 0 && words[0] != name && (len(words) < 2 || words[1] != name) {
		t.Errorf("%s: the comment of %s begins with %q", at, name, words[0])
	}
}

// TestInternalStaysInside: an exported signature outside of internal/ mentions no type of
// internal/, or nobody outside of this module could use it.
func TestInternalStaysInside(t *testing.T) {
	for _, p := range packages(t) {
		me := name(p.ImportPath)
		if strings.HasPrefix(me, "internal") || strings.HasPrefix(me, "cmd/") {
			continue
		}
		fset, files := parsed(t, p)
		for _, f := range files {
			for _, imp := range f.Imports {
				if !strings.Contains(imp.Path.Value, module+"/internal/") {
					continue
				}
				base := path.Base(strings.Trim(imp.Path.Value, `"`))
				for _, d := range f.Decls {
					if fn, ok := d.(*ast.FuncDecl); ok && (!fn.Name.IsExported() || !exportedReceiver(fn)) {
						continue
					}
					ast.Inspect(d, func(n ast.Node) bool {
						if _, body := n.(*ast.BlockStmt); body {
							return false
						}
						if typ, ok := n.(*ast.TypeSpec); ok && !typ.Name.IsExported() {
							return false
						}
						if sel, ok := n.(*ast.SelectorExpr); ok {
							if id, ok := sel.X.(*ast.Ident); ok && id.Name == base {
								t.Errorf("%s: exported, and speaks of %s.%s", fset.Position(sel.Pos()), base, sel.Sel.Name)
							}
						}
						return true
					})
				}
			}
		}
	}
}

// TestNoEmptyFolders: a folder without a file is a promise that nobody keeps.
func TestNoEmptyFolders(t *testing.T) {
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if base := d.Name(); base == ".git" || base == "node_modules" {
			return filepath.SkipDir
		}
		files, err := filepath.Glob(filepath.Join(p, "*"))
		hidden, _ := filepath.Glob(filepath.Join(p, ".*"))
		if len(files)+len(hidden) == 0 {
			t.Errorf("%s is empty", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
