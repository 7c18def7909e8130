//go:build !race

package tck_test

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy/guest"
)

// A filter that was built with the Go SDK of version 1.0 works as it did. (The race detector
// takes half a minute to compile it.)
func TestOldGoGuest(t *testing.T) {
	file, err := os.Open(filepath.Join(dirOf(0), "headertag.wasm.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	wasm, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	f, err := load(t, wasm)([]byte(`{"rules": [{"when": {"header": "Subject", "contains": "café"}, "add": "X-B", "value": "${from} via ${helo}"}, {"remove": "x-a"}]}`),
		guest.Grants{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := filtertest.Options{Policy: f, Client: filtertest.Client{Helo: "c.example"}}
	d := filtertest.Deliver(t, o, filtertest.Envelope{From: "a@example.com", To: []string{"b@example.com"}}, "Subject: =?utf-8?q?Caf=C3=A9_News?=\nX-A: 1\n\nbody\n")
	for _, step := range d.Steps {
		if step.Err != nil {
			t.Errorf("%s: %v", step.Stage, step.Err)
		}
	}
	if want := "Subject: =?utf-8?q?Caf=C3=A9_News?=\r\nX-B: a@example.com via c.example\r\n\r\nbody\r\n"; strings.TrimSpace(d.Message) != strings.TrimSpace(want) {
		t.Errorf("got message %q, want %q", d.Message, want)
	}
}
