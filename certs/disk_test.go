//go:build unix

package certs

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestValidateListsAllProblems(t *testing.T) {
	for _, tc := range []struct {
		o    Options
		want []string // each in the error; none: no error
	}{
		{Options{Hostname: "mx1.example.test"}, nil},
		{Options{Hostname: "münchen.test", MinVersion: tls.VersionTLS13, Files: []File{{"a", "a"}, {"a", "b"}}}, nil},
		{Options{}, []string{"hostname is required"}},
		{Options{Hostname: "192.0.2.1"}, []string{`"192.0.2.1" is not a host name`}},
		{Options{Hostname: "my_host.test", MinVersion: 0x0300, Files: []File{{"", "k"}, {"c", ""}, {"x", "y"}, {"x", "y"}}},
			[]string{"my_host.test", "0x0300", "file 1 has no certificate", "file 2 has no key", "file 4 names the same files as file 3"}},
	} {
		err := tc.o.Validate()
		checkError(t, tc.o, err, tc.want)
		if _, newErr := New(tc.o); err != nil && (newErr == nil || newErr.Error() != err.Error()) {
			t.Errorf("New(%+v): %v, want what Validate says: %v", tc.o, newErr, err)
		}
	}
}

// checkError wants each part in the error, or no error if there are no parts.
func checkError(t *testing.T, in any, err error, parts []string) {
	t.Helper()
	if (err == nil) != (len(parts) == 0) {
		t.Errorf("%+v: error %v, want %q in it", in, err, parts)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%+v: error %v, want %q in it", in, err, p)
		}
	}
}

// checkFaults wants FileErrors of one index, with C for a certificate and K for a key at
// fault, and nothing beside them.
func checkFaults(t *testing.T, in string, err error, index int, want string) {
	t.Helper()
	files, rest := FileErrors(fmt.Errorf("start: %w", err))
	got := ""
	for _, f := range files {
		if f.Index != index || !strings.Contains(err.Error(), f.Error()) {
			t.Errorf("%s: index %d: %v, want index %d", in, f.Index, f, index)
		}
		if f.Key {
			got += "K"
		} else {
			got += "C"
		}
	}
	if got != want || rest != nil {
		t.Errorf("%s: %v: at fault %q and %v, want %q alone", in, err, got, rest, want)
	}
}

// Each case spoils one pair. New must name its files and the reason, along with the
// problem of another file; Reload must name them and go on with the old certificate.
func TestBrokenFiles(t *testing.T) {
	good, goodKey := issue(spec{label: "pair", names: []string{"pair.test"}})
	other, otherKey := issue(spec{label: "pair", names: []string{"pair.test"}, key: edKey()})
	p224, p224Key := issue(spec{label: "pair", names: []string{"pair.test"}, key: p224Key()})
	t.Setenv("GODEBUG", "rsa1024min=0") // to make one that is too short
	short, shortKey := issue(spec{label: "pair", names: []string{"pair.test"}, key: must(rsa.GenerateKey(rand.Reader, 768))})
	t.Setenv("GODEBUG", "")
	for _, tc := range []struct {
		name  string
		spoil func(f File)
		want  []string
		fault string // C or K for each FileError
	}{
		{"no certificate", func(f File) { os.Remove(f.Cert) }, []string{"pair.crt", "no such file"}, "C"},
		{"no key", func(f File) { os.Remove(f.Key) }, []string{"pair.key", "no such file"}, "K"},
		{"neither", func(f File) { os.Remove(f.Cert); os.Remove(f.Key) }, []string{"pair.crt: no such", "pair.key: no such"}, "CK"},
		{"empty certificate", func(f File) { write(t, f.Cert, nil) }, []string{"pair.crt", "PEM"}, "C"},
		{"empty key", func(f File) { write(t, f.Key, nil) }, []string{"pair.key", "PEM"}, "K"},
		{"cut certificate", func(f File) { write(t, f.Cert, good[:len(good)/2]) }, []string{"pair.crt", "PEM"}, "C"},
		{"spoilt certificate", func(f File) {
			write(t, f.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{48, 1}}))
		}, []string{"pair.crt", "x509"}, "C"},
		{"key in place of certificate", func(f File) { write(t, f.Cert, goodKey) }, []string{"pair.crt", "private key"}, "C"},
		{"key of another kind", func(f File) { write(t, f.Key, otherKey) }, []string{"pair.crt", "pair.key", "does not match"}, "K"},
		{"certificate of another key", func(f File) { write(t, f.Cert, other) }, []string{"pair.crt", "pair.key", "does not match"}, "K"},
		{"curve without TLS", func(f File) { write(t, f.Cert, p224); write(t, f.Key, p224Key) }, []string{"pair.crt", "pair.key", "unsupported"}, "C"},
		{"short RSA key", func(f File) { write(t, f.Cert, short); write(t, f.Key, shortKey) }, []string{"pair.crt", "pair.key", "768 bits"}, "C"},
		{"too large", func(f File) { write(t, f.Cert, bytes.Repeat([]byte("#"), maxFile+1)) }, []string{"pair.crt", "larger than"}, "C"},
		{"directory", func(f File) { os.Remove(f.Key); os.Mkdir(f.Key, 0o700) }, []string{"pair.key", "not a regular file"}, "K"},
		{"endless device", func(f File) { os.Remove(f.Key); os.Symlink("/dev/zero", f.Key) }, []string{"pair.key", "not a regular file"}, "K"},
		{"pipe that nobody writes", func(f File) { os.Remove(f.Key); syscall.Mkfifo(f.Key, 0o600) }, []string{"pair.key", "not a regular file"}, "K"},
	} {
		dir := t.TempDir()
		f := File{filepath.Join(dir, "pair.crt"), filepath.Join(dir, "pair.key")}
		write(t, f.Cert, good)
		write(t, f.Key, goodKey)
		healthy := put(t, dir, spec{label: "old", names: []string{"healthy.test"}})
		o := Options{Hostname: "mx1.example.test", Files: []File{f, healthy}}
		s := open(t, o)

		tc.spoil(f)
		put(t, dir, spec{label: "old", names: []string{"changed.test"}})
		err := s.Reload()
		checkError(t, "Reload: "+tc.name, err, tc.want)
		checkFaults(t, "Reload: "+tc.name, err, 0, tc.fault)
		if got := chosen(t, s, hello("pair.test")); got != "pair" {
			t.Errorf("Reload: %s: got %s, want the certificate from before", tc.name, got)
		}
		if got := chosen(t, s, hello("changed.test")); got != "old" {
			t.Errorf("Reload: %s: got %s, want the change of the healthy file", tc.name, got)
		}
		o.Files = append(o.Files, File{"absent.crt", "absent.key"})
		_, err = New(o)
		checkError(t, "New: "+tc.name, err, append(tc.want, "absent.crt", "absent.key"))
		err = s.Update([]File{healthy, f}, ACME{})
		checkError(t, "Update: "+tc.name, err, tc.want)
		checkFaults(t, "Update: "+tc.name, err, 1, tc.fault)

		for _, path := range []string{f.Cert, f.Key} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		write(t, f.Cert, good)
		write(t, f.Key, goodKey)
		if err := s.Reload(); err != nil {
			t.Errorf("Reload: %s, mended: %v", tc.name, err)
		}
	}
}

func TestFileWithChainAndKeyInOne(t *testing.T) {
	certPEM, keyPEM := issue(spec{label: "one", names: []string{"one.test"}})
	issuer, _ := issue(spec{label: "issuer"})
	path := filepath.Join(t.TempDir(), "one.pem")
	write(t, path, bytes.Join([][]byte{keyPEM, certPEM, issuer}, []byte("# a comment\n")))
	s := open(t, Options{Hostname: "mx1.example.test", Files: []File{{path, path}}})
	c, _ := s.getCertificate(hello("one.test"))
	if got := labelOf(c.Leaf); got != "one" || len(c.Certificate) != 2 {
		t.Errorf("got %s with a chain of %d, want one with 2", got, len(c.Certificate))
	}
}

func TestWarnings(t *testing.T) {
	dir := t.TempDir()
	expired := put(t, dir, spec{label: "expired", names: []string{"expired.test"}, notBefore: day(-9), notAfter: day(-1)})
	early := put(t, dir, spec{label: "early", names: []string{"early.test"}, notBefore: day(1)})
	nameless := put(t, dir, spec{label: "name less"})
	odd := put(t, dir, spec{label: "odd", names: []string{"_odd.test", "odd.test"}})
	group := put(t, dir, spec{label: "group", names: []string{"group.test"}})
	open644 := put(t, dir, spec{label: "open", names: []string{"open.test"}})
	if err := errors.Join(os.Chmod(group.Key, 0o640), os.Chmod(open644.Key, 0o644)); err != nil {
		t.Fatal(err)
	}
	var book logbook
	s := open(t, Options{Hostname: "mx1.example.test", Log: book.logger(),
		Files: []File{expired, early, nameless, odd, group, open644}})
	text := book.String()
	for _, want := range []string{"expired.crt: expired on", "early.crt: not valid before", "name less.crt: holds no host name",
		"odd.crt: no client can ask for", "_odd.test", "open.key: key is open to all users of this machine (mode 0644)"} {
		if !strings.Contains(text, want) {
			t.Errorf("log lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "group") {
		t.Errorf("log warns of a key for a group:\n%s", text)
	}
	if strings.Contains(text, "PRIVATE") {
		t.Errorf("log holds a key:\n%s", text)
	}
	book.Reset()
	if err := s.Reload(); err != nil || book.Len() != 0 {
		t.Errorf("Reload of the same files: %v, log %q; want nothing new", err, book.String())
	}
	if err := errors.Join(os.Chmod(group.Key, 0o604), s.Reload()); err != nil || strings.Count(book.String(), "\n") != 1 {
		t.Errorf("Reload after one change of mode: %v, log %q; want one warning", err, book.String())
	}
	if got := chosen(t, s, hello("expired.test")); got != "expired" {
		t.Errorf("SNI of the expired certificate: got %s, want it served", got)
	}
}

// TestDefaultIsKept follows one directory through the life of a gateway. Each step may
// change the clock, the name or the file; then the gateway starts anew.
func TestDefaultIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "certs")
	path := filepath.Join(dir, defaultFile)
	now := time.Now().Truncate(time.Second)
	name := "mx1.example.test"
	good, _ := issue(spec{label: "foreign", names: []string{name}})
	_, strangeKey := issue(spec{label: "strange", key: edKey()})
	var last *x509.Certificate
	for _, tc := range []struct {
		step    string
		change  func()
		sameKey bool
		same    bool // the same certificate
		broken  bool // moved aside, with an error in the log
	}{
		{"first start", func() {}, false, false, false},
		{"restart", func() {}, true, true, false},
		{"restart with two thirds of life gone, almost", func() { now = now.Add(lifetime*2/3 - backdate - time.Minute) }, true, true, false},
		{"restart a little later", func() { now = now.Add(2 * time.Minute) }, true, false, false},
		{"restart long after its end", func() { now = now.Add(10 * lifetime) }, true, false, false},
		{"clock set back", func() { now = now.Add(-5 * lifetime) }, true, false, false},
		{"name changed", func() { name = "mx2.example.test" }, true, false, false},
		{"empty", func() { write(t, path, nil) }, false, false, true},
		{"cut", func() { write(t, path, must(os.ReadFile(path))[:300]) }, false, false, true},
		{"mismatch", func() { write(t, path, append(good, strangeKey...)) }, false, false, true},
		{"too large", func() { write(t, path, make([]byte, maxFile+1)) }, false, false, true},
		{"a directory", func() { os.Remove(path); os.Mkdir(path, 0o700) }, false, false, true},
		{"removed", func() { os.Remove(path) }, false, false, false},
		{"restart", func() {}, true, true, false},
	} {
		tc.change()
		var book logbook
		before := len(must(filepath.Glob(path + ".broken-*")))
		s := open(t, Options{Hostname: name, Dir: dir, Log: book.logger(), Now: func() time.Time { return now }})
		c, _ := s.getCertificate(hello(""))
		leaf := c.Leaf
		if last != nil {
			if got := bytes.Equal(leaf.RawSubjectPublicKeyInfo, last.RawSubjectPublicKeyInfo); got != tc.sameKey {
				t.Errorf("%s: same key: %v, want %v", tc.step, got, tc.sameKey)
			}
			if got := leaf.Equal(last); got != tc.same {
				t.Errorf("%s: same certificate: %v, want %v", tc.step, got, tc.same)
			}
		}
		if err := leaf.VerifyHostname(name); err != nil || now.Before(leaf.NotBefore) || leaf.NotAfter.Sub(now) < renewBefore {
			t.Errorf("%s: at %v for %s got %v to %v, %v", tc.step, now, name, leaf.NotBefore, leaf.NotAfter, err)
		}
		if life := leaf.NotAfter.Sub(leaf.NotBefore); life >= 398*24*time.Hour || leaf.IsCA {
			t.Errorf("%s: lifetime %v, CA %v; want under 398 days and no CA", tc.step, life, leaf.IsCA)
		}
		if got := len(must(filepath.Glob(path+".broken-*"))) > before; got != tc.broken || tc.broken != strings.Contains(book.String(), "level=ERROR") {
			t.Errorf("%s: moved aside: %v, want %v with an error in the log:\n%s", tc.step, got, tc.broken, book.String())
		}
		checkMode(t, tc.step, dir, 0o700)
		checkMode(t, tc.step, path, 0o600)
		if left := must(filepath.Glob(filepath.Join(dir, "*.tmp-*"))); len(left) != 0 {
			t.Errorf("%s: left behind: %q", tc.step, left)
		}
		last = leaf
		now = now.Add(time.Millisecond) // so that two files moved aside have two names
	}
}

func checkMode(t *testing.T, step, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != want {
		t.Errorf("%s: %s: %v, %v; want mode %#o", step, path, info, err, want)
	}
}

// A Reload renews with the same key, whether it is in memory or on disk, and puts the
// file back if somebody took it away or spoilt it.
func TestReloadRenewsDefault(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	path := filepath.Join(dir, defaultFile)
	memory := Options{Hostname: "mx1.example.test", Now: func() time.Time { return now }}
	disk := memory
	disk.Dir = dir
	for _, tc := range []struct {
		name   string
		o      Options
		change func()
	}{
		{"in memory, near its end", memory, func() { now = now.Add(lifetime - renewBefore) }},
		{"in memory, ended", memory, func() { now = now.Add(lifetime) }},
		{"on disk, ended", disk, func() { now = now.Add(lifetime) }},
		{"on disk, removed", disk, func() { os.Remove(path) }},
		{"on disk, spoilt", disk, func() { write(t, path, []byte("?")) }},
	} {
		s := open(t, tc.o)
		first, _ := s.getCertificate(hello(""))
		tc.change()
		if err := s.Reload(); err != nil {
			t.Errorf("%s: Reload: %v", tc.name, err)
		}
		next, _ := s.getCertificate(hello(""))
		if next.Leaf.Equal(first.Leaf) || !sameKey(next, first) || next.Leaf.NotAfter.Sub(now) < renewBefore {
			t.Errorf("%s: from %v until %v, same key %v; want another certificate of the same key",
				tc.name, next.Leaf.NotBefore, next.Leaf.NotAfter, sameKey(next, first))
		}
		if tc.o.Dir == "" {
			continue
		}
		if again, _ := open(t, tc.o).getCertificate(hello("")); !again.Leaf.Equal(next.Leaf) {
			t.Errorf("%s: after a restart another certificate than after Reload", tc.name)
		}
	}
}

func sameKey(a, b *tls.Certificate) bool {
	return bytes.Equal(a.Leaf.RawSubjectPublicKeyInfo, b.Leaf.RawSubjectPublicKeyInfo)
}

func TestDefaultCannotBeKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	o := Options{Hostname: "mx1.example.test", Dir: file, Files: []File{{"absent.crt", "absent.key"}}}
	_, err := New(o)
	checkError(t, o, err, []string{file, "not a directory", "absent.crt", "absent.key"})

	// A key that would change with each start is an error, new dates that are lost are not.
	full := errors.New("no space left")
	var book logbook
	now := time.Now()
	k := &keeper{dir: t.TempDir(), hostname: "mx1.example.test", log: book.logger(), now: func() time.Time { return now }}
	k.write = func(string, string, []byte) error { return full }
	if c, err := k.certificate(nil); !errors.Is(err, full) {
		t.Errorf("first start on a full disk: %v, %v; want %v", c, err, full)
	}
	k.write = writeFile
	first, err := k.certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	k.write = func(string, string, []byte) error { return full }
	now = now.Add(lifetime)
	c, err := k.certificate(nil)
	if err != nil || !k.fresh(c.Leaf) || !sameKey(c, first) {
		t.Errorf("renewal on a full disk: %v, %v; want a fresh certificate of the same key", c, err)
	}
	if !strings.Contains(book.String(), "level=ERROR") || !strings.Contains(book.String(), full.Error()) {
		t.Errorf("log lacks the error %v:\n%s", full, book.String())
	}
}

func TestDefaultKeyOpenToOthers(t *testing.T) {
	var book logbook
	o := Options{Hostname: "mx1.example.test", Dir: t.TempDir(), Log: book.logger()}
	open(t, o)
	if err := os.Chmod(filepath.Join(o.Dir, defaultFile), 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, o)
	if err := s.Reload(); err != nil || strings.Count(book.String(), "key is open to all users") != 1 {
		t.Errorf("restart and Reload: %v; want one warning in:\n%s", err, book.String())
	}
}
