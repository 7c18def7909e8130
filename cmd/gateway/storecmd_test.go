package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// TestStoreCommands moves a store with a message and a file from one folder to another with
// the program's commands, twice, and finds what is broken in it.
func TestStoreCommands(t *testing.T) {
	dir := t.TempDir()
	config := func(name string) string {
		path := filepath.Join(dir, name+".yaml")
		text := "hostname: mx.example.org\nlisteners:\n  - {name: mx, address: 127.0.0.1:0}\nbackends:\n  b: {addresses: ['smtp://127.0.0.1:1'], tls: off, mode: queue}\nroutes:\n  - {domains: [example.org], backend: b}\n" +
			"store: {driver: embedded, path: ./" + name + "}\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	gateway := func(want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != want {
			t.Fatalf("gateway %s: exit %d, want %d\n%s%s", strings.Join(args, " "), code, want, out.String(), errs.String())
		}
		return out.String() + errs.String()
	}
	has := func(text string, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if !strings.Contains(text, p) {
				t.Errorf("got %q, want it to have %q", text, p)
			}
		}
	}
	one, two, archive := config("one"), config("two"), filepath.Join(dir, "all.tar")
	has(gateway(1, "store", "check", "-c", one), "there is no store at", "store.path")
	if _, err := os.Stat(filepath.Join(dir, "one")); err == nil {
		t.Error("a check made a store")
	}

	s, err := embedded.Open(filepath.Join(dir, "one"), embedded.Options{})
	if err != nil {
		t.Fatal(err)
	}
	has(gateway(1, "store", "check", "-c", one), "in use by another process")
	content := "Subject: kept\r\n\r\n" + strings.Repeat("a line of a large message\r\n", 20_000)
	id := keepOne(t, s.Queue(), content)
	if err := s.Files().Write(t.Context(), "acme/key.pem", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	has(gateway(0, "store", "check", "-c", one), "messages 1 ", "files 1", "0 broken")
	has(gateway(0, "store", "export", "-c", one, archive), "exported messages 1 ")
	if info, err := os.Stat(archive); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the archive: got %v, %v, want it for its owner alone", info, err)
	}
	has(gateway(1, "store", "export", "-c", one, archive), "exists")
	has(gateway(0, "store", "import", "-c", two, archive), "imported messages 1 ", "files 1")
	has(gateway(0, "store", "import", "-c", two, archive), "imported messages 0 ", "2 were there")

	if s, err = embedded.Open(filepath.Join(dir, "two"), embedded.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Queue().Message(t.Context(), id); err != nil {
		t.Errorf("message %s after the move: %v", id, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	breakFile(t, filepath.Join(dir, "two"))
	has(gateway(1, "store", "check", "-c", two), string(id), "1 broken")
	half := filepath.Join(dir, "half.tar")
	if err := os.WriteFile(half, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	gateway(1, "store", "import", "-c", two, half)
}

func keepOne(t *testing.T, q store.Queue, content string) store.ID {
	t.Helper()
	path := func(local string) smtp.Path {
		p, err := smtp.ParseAddress(local + "@example.org")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	in, err := q.Begin(ctx, &store.Message{Sender: smtp.Sender{Path: path("from")}, Arrived: time.Now(), Expires: time.Now().Add(time.Hour),
		Recipients: []store.Recipient{{Recipient: smtp.Recipient{Path: path("to")}, Destination: "backend:b", State: store.Waiting, Due: time.Now()}}})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Abort()
	if _, err := in.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	id, err := in.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// breakFile changes an octet in the file of a large message.
func breakFile(t *testing.T, dir string) {
	t.Helper()
	broken := false
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil || broken {
			return err
		}
		if i := bytes.Index(data, []byte("a line of a large message")); i >= 0 && !strings.HasSuffix(path, ".log") && !strings.HasSuffix(path, ".sst") {
			data[i] = 'X'
			broken = true
			return os.WriteFile(path, data, 0o600)
		}
		return nil
	})
	if err != nil || !broken {
		t.Fatalf("no file of a large message: %v", err)
	}
}
