package corpus

// files.go reads the messages that lie on the machine as files.

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
)

const (
	fileLimit = 16 << 20 // bytes of one message
	listLimit = 30 * time.Second

	// enmimeModule is the module whose test data we read.
	enmimeModule = "github.com/jhillyerd/enmime/v2"
)

func spamassassin(t testing.TB) []Message {
	t.Helper()
	const pattern = "/usr/share/doc/spamassassin/examples/sample-*.txt*"
	return debianFiles(t, "spamassassin", "spamassassin", pattern)
}

func python(t testing.TB) []Message {
	t.Helper()
	const pattern = "/usr/lib/python3.*/test/test_email/data/msg_*.txt"
	return debianFiles(t, "python", "libpython3.11-testsuite", pattern)
}

// debianFiles reads what a Debian package holds.
func debianFiles(t testing.TB, source, debianPackage, pattern string) []Message {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatalf("corpus: %v", err)
	}
	if len(paths) == 0 {
		peers.Missing(t, pattern, "run `make test-deps`, or install Debian's package "+debianPackage+
			" (where /etc/dpkg keeps files under /usr/share/doc from being unpacked, allow these)")
	}
	var messages []Message
	for _, path := range paths {
		if m, ok := readMessage(t, source, filepath.Base(path), path); ok {
			messages = append(messages, m)
		}
	}
	return messages
}

// enmime reads all test data of the module that look like a message or a part of
// one. The files of its encoder are named .golden.
func enmime(t testing.TB) []Message {
	t.Helper()
	dir := moduleDir(t, enmimeModule)
	var messages []Message
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.Contains(path, "testdata") {
			return err
		}
		if ext := filepath.Ext(path); ext != ".raw" && ext != ".golden" {
			return nil
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if m, ok := readMessage(t, "enmime", name, path); ok {
			messages = append(messages, m)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("corpus: read test data of %s: %v", enmimeModule, err)
	}
	return messages
}

// moduleDir returns where the go command keeps a module that our go.mod requires.
func moduleDir(t testing.TB, module string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), listLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		peers.Missing(t, "the source of "+module, "run `go mod download "+module+"` in this module, and the test from its tree")
	}
	return dir
}

// readMessage reads a file, gzipped or not. It reports false for a file that does
// not begin with a header field and so is no message.
func readMessage(t testing.TB, source, name, path string) (Message, bool) {
	t.Helper()
	stored, err := readFile(path)
	if err != nil {
		t.Fatalf("corpus: read message: %v", err)
	}
	m := Message{Name: name, Source: source, Raw: normalise(stored)}
	first, _, _ := bytes.Cut(m.Raw, []byte("\r\n"))
	field, _, ok := bytes.Cut(first, []byte(":"))
	return m, ok && len(field) > 0 && !bytes.ContainsAny(field, " \t")
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(r, fileLimit))
}
