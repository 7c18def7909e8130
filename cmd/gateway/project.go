package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/penstock/penstock"
	"github.com/penstock/penstock/guest-sdk/manifest"
)

// project.go: an author's filter project. The SDK travels with the gateway: its sources
// are written beside the project, which names them in a replace directive.

const sdkFolder = ".penstock"

const firstFilter = `package main

import "github.com/penstock/penstock/guest-sdk/filter"

func main() {}

func init() { newFilter().Serve() }

func newFilter() *filter.Filter {
	f := filter.New("NAME")
	f.OnRcptTo(func(w filter.Reply, r *filter.RcptEvent) {
		if r.Rcpt().Local() == "nobody" {
			w.Reject(550, "5.1.1", "nobody lives here")
		}
	})
	f.OnData(func(w filter.Reply, m *filter.Message) {
		if err := m.Header.Add("X-Greeting", "hello from NAME"); err != nil {
			m.Log(filter.LevelWarn, "no greeting", "err", err.Error())
		}
	})
	return f
}
`

const firstTest = `package main

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
)

func TestNobody(t *testing.T) {
	o := filtertest.Options{Filter: newFilter()}
	d := filtertest.Deliver(t, o, filtertest.Envelope{From: "a@example.org", To: []string{"nobody@example.com"}}, "Subject: hi\n\nhello\n")
	if d.Reply != "550 5.1.1 nobody lives here" {
		t.Errorf("reply %q", d.Reply)
	}
	d = filtertest.Deliver(t, o, filtertest.Envelope{From: "a@example.org", To: []string{"bob@example.com"}}, "Subject: hi\n\nhello\n")
	if !strings.Contains(d.Message, "X-Greeting: hello from NAME") {
		t.Errorf("message %q", d.Message)
	}
}
`

// firstManifest asks for nothing: the first filter looks at recipients and writes a field.
const firstManifest = `{"name": "NAME", "version": "0", "capabilities": []}
`

const sampleMessage = "From: Alice <alice@example.org>\r\nTo: Bob <bob@example.com>\r\nSubject: A first message\r\n" +
	"Date: Sat, 21 Nov 2026 09:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n\r\nHello Bob,\r\nthis is a message.\r\n"

func newProject(dir string, stdout io.Writer) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is there already and not empty; choose another folder", dir)
	}
	name, err := projectName(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	named := func(text string) []byte { return []byte(strings.ReplaceAll(text, "NAME", name)) }
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "main.go"), named(firstFilter), 0o644),
		os.WriteFile(filepath.Join(dir, "main_test.go"), named(firstTest), 0o644),
		os.WriteFile(filepath.Join(dir, manifest.File), named(firstManifest), 0o644),
		os.WriteFile(filepath.Join(dir, "sample.eml"), []byte(sampleMessage), 0o644),
		prepareProject(dir, name),
	)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%[1]s holds a first filter. Next:\n  cd %[1]s && go test             # the filter, natively\n  gateway filter build %[1]s\n  gateway filter test %[2]s %[3]s --rcpt nobody@example.com\n",
		dir, filepath.Join(dir, name+".wasm"), filepath.Join(dir, "sample.eml"))
	return nil
}

// projectName is the name of the folder, as a module name.
func projectName(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	name := strings.ToLower(filepath.Base(abs))
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return "", fmt.Errorf("the folder's name %q becomes the filter's: it may have letters, digits, - and _", name)
		}
	}
	return name, nil
}

// prepareProject writes the SDK's sources, and go.mod and go.sum if there are none. A go.mod that is
// there is the author's; it must know where the SDK is.
func prepareProject(dir, name string) error {
	if err := penstock.WriteModule(filepath.Join(dir, sdkFolder)); err != nil {
		return err
	}
	path := filepath.Join(dir, "go.mod")
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		mod, sum, err := penstock.ProjectFiles(name, "./"+sdkFolder)
		return errors.Join(err, os.WriteFile(path, mod, 0o644), os.WriteFile(filepath.Join(dir, "go.sum"), sum, 0o644))
	}
	if err == nil && !strings.Contains(string(have), penstock.Module) {
		err = fmt.Errorf("%s does not name the SDK; add these lines:\n\n%s", path, penstock.Requirement("./"+sdkFolder))
	}
	return err
}

// insidePenstock tells whether dir belongs to the gateway's own module, whose SDK is used
// as it stands.
func insidePenstock(dir string) bool {
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil {
			return strings.HasPrefix(string(mod), "module "+penstock.Module+"\n")
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}

func buildProject(ctx context.Context, dir, out string, stdout, stderr io.Writer) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	name, err := projectName(dir)
	if err != nil {
		return err
	}
	if !insidePenstock(abs) {
		if err := prepareProject(dir, name); err != nil {
			return err
		}
	}
	if out == "" {
		out = filepath.Join(dir, name+".wasm")
	}
	if filepath.Ext(out) != ".wasm" {
		return usageError{fmt.Errorf("-o %s: the name of a module ends in .wasm", out)}
	}
	check := func(built string) error {
		rt, module, err := loadFile(ctx, built, stderr)
		if err != nil {
			return err
		}
		defer rt.Close(ctx)
		_, err = fmt.Fprintf(stdout, "%s: %d octets, a filter that this gateway takes\n", out, module.Info().Size)
		return err
	}
	return compileGuest(ctx, dir, out, check, stderr)
}

// compileGuest runs the Go toolchain in dir. The module appears at out when it is whole and
// check, if not nil, finds nothing wrong with it: what is there already may be in use.
func compileGuest(ctx context.Context, dir, out string, check func(built string) error, stderr io.Writer) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return errors.New("the Go toolchain is not on PATH; get it from https://go.dev/dl and try again")
	}
	out, err = filepath.Abs(out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(out), ".build-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	built := filepath.Join(tmp, filepath.Base(out))
	cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-buildvcs=false", "-buildmode=c-shared", "-ldflags=-s -w", "-o", built, ".")
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOWORK=off")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build in %s: %w", dir, err)
	}
	if err := addManifest(built, dir); err != nil {
		return err
	}
	if check != nil {
		if err := check(built); err != nil {
			return err
		}
	}
	return os.Rename(built, out)
}

// addManifest puts the manifest beside the sources into the module, if there is one.
func addManifest(built, dir string) error {
	path := filepath.Join(dir, manifest.File)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	wasm, err := os.ReadFile(built)
	if err != nil {
		return err
	}
	if wasm, err = manifest.Append(wasm, text); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(built, wasm, 0o644)
}
