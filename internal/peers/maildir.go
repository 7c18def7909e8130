package peers

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

const (
	// waitLimit bounds every wait for mail. Local delivery takes milliseconds;
	// the rest is for a loaded machine.
	waitLimit = 20 * time.Second

	messageLimit = 64 << 20 // bytes of one delivered message that we read
)

// maildir is the place where a server delivers. The server writes a message
// elsewhere and links it into new/ when it is complete, so whatever is seen in
// new/ is whole.
type maildir struct {
	dir string
	log func() string // shown when a wait fails
}

// list returns the paths of all messages, oldest first. A directory that is not
// there yet has none.
func (m maildir) list() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(m.dir, "new"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	infos := make([]fs.FileInfo, 0, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	paths := make([]string, len(infos))
	for i, info := range infos {
		paths[i] = filepath.Join(m.dir, "new", info.Name())
	}
	return paths, nil
}

// until calls look with the paths of all messages, every few milliseconds, until
// it returns true. It ends the test at the time limit.
func (m maildir) until(t testing.TB, what string, look func(paths []string) bool) {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for {
		paths, err := m.list()
		if err != nil {
			t.Fatalf("peers: list mail: %v", err)
		}
		if look(paths) {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("peers: waited %v for %s; there are %d messages; log:\n%s", waitLimit, what, len(paths), tail(m.log()))
		}
	}
}

// wait returns all messages once there are n of them or more.
func (m maildir) wait(t testing.TB, n int) [][]byte {
	t.Helper()
	var found []string
	m.until(t, fmt.Sprintf("%d messages", n), func(paths []string) bool {
		found = paths
		return len(paths) >= n
	})
	messages := make([][]byte, len(found))
	for i, path := range found {
		messages[i] = readLimited(path, messageLimit)
	}
	return messages
}

// waitFor returns the first message that match accepts. It shows each message to
// match once.
func (m maildir) waitFor(t testing.TB, match func(raw []byte) bool) []byte {
	t.Helper()
	seen := make(map[string]bool)
	var found []byte
	m.until(t, "a certain message", func(paths []string) bool {
		for _, path := range paths {
			if seen[path] {
				continue
			}
			seen[path] = true
			if raw := readLimited(path, messageLimit); match(raw) {
				found = raw
				return true
			}
		}
		return false
	})
	return found
}

// AsSent turns a delivered message back into what was sent: it cuts off the
// fields that the delivering server put on top (Return-Path, X-Original-To,
// Delivered-To, and its own Received field), and writes lines with CRLF, which a
// maildir stores as LF. Comparing the result with what went in shows whether the
// way between them changed a byte.
func AsSent(raw []byte) []byte {
	raw = bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
	for {
		name, rest := cutField(raw)
		switch string(bytes.ToLower(name)) {
		case "return-path", "x-original-to", "delivered-to":
			raw = rest
		case "received":
			return rest
		default:
			return raw
		}
	}
}

// cutField returns the first header field's name and what follows the field. The
// field includes the lines that begin with white space. RFC 5322, Section 2.2.3.
func cutField(raw []byte) (name, rest []byte) {
	name, _, ok := bytes.Cut(raw, []byte(":"))
	if !ok || bytes.ContainsAny(name, " \t\r\n") {
		return nil, raw
	}
	rest = raw
	for first := true; first || len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t'); first = false {
		_, rest, _ = bytes.Cut(rest, []byte("\n"))
	}
	return name, rest
}
