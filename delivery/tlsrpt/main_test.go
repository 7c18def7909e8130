package tlsrpt

import (
	"context"
	"flag"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

var update = flag.Bool("update", false, "write the files of expected output anew")

func TestMain(m *testing.M) { leak.Main(m) }

// memFiles are Files in memory.
type memFiles struct {
	mu    sync.Mutex
	files map[string][]byte
	fail  func(verb, name string) error // nil never fails
}

func newMemFiles() *memFiles { return &memFiles{files: make(map[string][]byte)} }

func (m *memFiles) failing(verb, name string) error {
	if m.fail == nil {
		return nil
	}
	return m.fail(verb, name)
}

func (m *memFiles) Write(_ context.Context, name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing("write", name); err != nil {
		return err
	}
	m.files[name] = slices.Clone(data)
	return nil
}

func (m *memFiles) Read(_ context.Context, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if data, ok := m.files[name]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}

func (m *memFiles) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing("delete", name); err != nil {
		return err
	}
	maps.DeleteFunc(m.files, func(n string, _ []byte) bool { return n == name || strings.HasPrefix(n, name+"/") })
	return nil
}

func (m *memFiles) List(_ context.Context, folder string, _ bool) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[string]bool{}
	for n := range m.files {
		if rest, ok := strings.CutPrefix(n, folder+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			found[path.Join(folder, first)] = true
		}
	}
	if len(found) == 0 {
		return nil, fs.ErrNotExist
	}
	return slices.Collect(maps.Keys(found)), nil
}

func (m *memFiles) names(folder string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for n := range m.files {
		if strings.HasPrefix(n, folder+"/") {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all
}

// zone is a resolver.DNS of texts and addresses.
type zone struct {
	resolver.DNS
	texts map[string][]string
	addrs map[string]resolver.Addrs
	fail  error
}

func (z zone) LookupTXT(_ context.Context, name string) (resolver.Result[string], error) {
	if z.fail != nil {
		return resolver.Result[string]{}, z.fail
	}
	if t, ok := z.texts[name]; ok {
		return resolver.Result[string]{Records: t}, nil
	}
	return resolver.Result[string]{}, &resolver.Error{Name: name, Type: resolver.TypeTXT, Kind: resolver.ErrNoName}
}

func (z zone) LookupAddrs(_ context.Context, name string, _ resolver.Families) (resolver.Addrs, error) {
	if a, ok := z.addrs[name]; ok {
		return a, nil
	}
	return resolver.Addrs{}, &resolver.Error{Name: name, Type: resolver.TypeA, Kind: resolver.ErrNoName}
}

func address(t testing.TB, s string) smtp.Path {
	t.Helper()
	p, err := smtp.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
