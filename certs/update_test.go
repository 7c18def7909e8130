package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestUpdate(t *testing.T) {
	dir := t.TempDir()
	first := put(t, dir, spec{label: "first", names: []string{"first.test"}})
	second := put(t, dir, spec{label: "second", names: []string{"second.test"}, notAfter: day(-1)})
	var book logbook
	now := time.Now()
	o := Options{Hostname: "mx1.example.test", Files: []File{first}, Log: book.logger(), Now: func() time.Time { return now }}
	s := open(t, o)
	absent := File{dir + "/absent.crt", dir + "/absent.key"}
	for _, tc := range []struct {
		name  string
		files []File
		want  []string // in the error; none: the list is taken over
		names string   // that are served then
	}{
		{"another beside it", []File{second, first}, nil, "first.test mx1.example.test second.test"},
		{"the same again", []File{second, first}, nil, "first.test mx1.example.test second.test"},
		{"one is missing", []File{first, absent}, []string{"absent.crt", "absent.key"}, "first.test mx1.example.test second.test"},
		{"none is whole", []File{{}, {first.Cert, ""}, first, first},
			[]string{"file 1 has no certificate", "file 1 has no key", "file 2 has no key", "file 4 names the same"}, "first.test mx1.example.test second.test"},
		{"one less", []File{second}, nil, "mx1.example.test second.test"},
		{"none", nil, nil, "mx1.example.test"},
		{"back to the first", []File{first}, nil, "first.test mx1.example.test"},
	} {
		checkError(t, tc.name, s.Update(tc.files, ACME{}), tc.want)
		checkNames(t, s, tc.name, tc.names)
		if err := s.Reload(); err != nil { // reads the list that is in force, not the one that was refused
			t.Errorf("%s: Reload: %v", tc.name, err)
		}
		checkNames(t, s, tc.name+", then Reload", tc.names)
	}
	if got := chosen(t, s, hello("first.test")); got != "first" {
		t.Errorf("at the end: got %s, want first", got)
	}
	if got := strings.Count(book.String(), "expired on"); got != 1 {
		t.Errorf("log of an expired file that stays: %d warnings, want one:\n%s", got, book.String())
	}
}

func checkNames(t *testing.T, s *Store, step, want string) {
	t.Helper()
	if got := strings.Join(s.Names(), " "); got != want {
		t.Errorf("%s: serves %s, want %s", step, got, want)
	}
}

// Update reads the files of before anew, renews the default, and with a problem does
// nothing of it.
func TestUpdateIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	f := put(t, dir, spec{label: "pair", names: []string{"before.test"}})
	now := time.Now()
	s := open(t, Options{Hostname: "mx1.example.test", Files: []File{f}, Now: func() time.Time { return now }})
	own, _ := s.getCertificate(hello("mx1.example.test"))
	kept, _ := s.getCertificate(hello("before.test"))
	if err := s.Update([]File{f}, ACME{}); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.getCertificate(hello("before.test")); again != kept {
		t.Error("Update with unchanged files: they were parsed again")
	}

	put(t, dir, spec{label: "pair", names: []string{"after.test"}})
	now = now.Add(lifetime)
	if err := s.Update([]File{f, {dir + "/no.crt", f.Key}}, ACME{}); err == nil {
		t.Fatal("Update with a missing file: no error")
	}
	checkNames(t, s, "refused", "before.test mx1.example.test")
	if got, _ := s.getCertificate(hello("before.test")); got != kept {
		t.Errorf("refused: serves %v, want the certificate of before", got.Leaf.DNSNames)
	}
	if err := s.Update([]File{f}, ACME{}); err != nil {
		t.Fatal(err)
	}
	checkNames(t, s, "taken over", "after.test mx1.example.test")
	s.mu.Lock()
	renewed := s.own
	s.mu.Unlock()
	if renewed.Leaf.Equal(own.Leaf) || now.After(renewed.Leaf.NotAfter) {
		t.Errorf("default until %v at %v, want it renewed", renewed.Leaf.NotAfter, now)
	}

	// The default counts as much as a file does.
	full := errors.New("no space left")
	s.keeper.dir, s.keeper.write = t.TempDir(), func(string, string, []byte) error { return full }
	err := s.Update([]File{{dir + "/no.crt", f.Key}}, ACME{})
	files, rest := FileErrors(err)
	if len(files) != 1 || !errors.Is(files[0], os.ErrNotExist) || !errors.Is(rest, full) || errors.Is(rest, os.ErrNotExist) {
		t.Errorf("FileErrors(%v) = %v, %v; want the file and %v apart", err, files, rest, full)
	}
	if err := s.Update(nil, ACME{}); !errors.Is(err, full) {
		t.Errorf("Update(nil): %v, want %v", err, full)
	}
	checkNames(t, s, "the default cannot be kept", "after.test mx1.example.test")
}

func TestFileErrors(t *testing.T) {
	a, b, other := &FileError{0, false, errors.New("a")}, &FileError{1, true, errors.New("b")}, errors.New("other")
	for _, tc := range []struct {
		err   error
		files string
		rest  string
	}{
		{nil, "", ""},
		{other, "", "other"},
		{errors.Join(other, other), "", "other\nother"},
		{a, "a", ""},
		{errors.Join(a, errors.Join(other, b)), "a b", "other"},
		{fmt.Errorf("start: %w", errors.Join(fmt.Errorf("tls: %w", b), other)), "b", "other"},
		{fmt.Errorf("doing two things: %w and %w", other, other), "", "doing two things: other and other"}, // kept whole
	} {
		files, rest := FileErrors(tc.err)
		var got []string
		for _, f := range files {
			got = append(got, f.Error())
		}
		restText := ""
		if rest != nil {
			restText = rest.Error()
		}
		if strings.Join(got, " ") != tc.files || restText != tc.rest {
			t.Errorf("FileErrors(%v) = %q, %q; want %q, %q", tc.err, got, restText, tc.files, tc.rest)
		}
	}
}

// While the list changes to and fro, with lists in between that are refused, each handshake
// gets a certificate of one of the lists.
func TestUpdateUnderHandshakes(t *testing.T) {
	const clients, rounds = 4, 30
	dir := t.TempDir()
	one := put(t, dir, spec{label: "one", names: []string{"busy.test"}})
	two := put(t, dir, spec{label: "two", names: []string{"busy.test"}})
	s := open(t, Options{Hostname: "mx1.example.test", Files: []File{one}})
	lists := [][]File{{two}, {two, {"absent", "absent"}}, {one}}

	errs := make(chan error, clients)
	var wait sync.WaitGroup
	for i := range clients {
		wait.Go(func() {
			for range rounds {
				leaf, err := shown(s.ServerConfig(), &tls.Config{ServerName: "busy.test"}, i%2 == 0, plain)
				if err != nil || labelOf(leaf) != "one" && labelOf(leaf) != "two" {
					errs <- fmt.Errorf("got %v, %w", leaf, err)
					return
				}
				s.Names()
			}
		})
	}
	done := make(chan struct{})
	go func() { wait.Wait(); close(done) }()
	for n, running := 0, true; running || n < len(lists); n++ {
		select {
		case <-done:
			running = false
		default:
		}
		list := lists[n%len(lists)]
		if err := s.Update(list, ACME{}); (err != nil) != (len(list) == 2) {
			t.Errorf("Update(%v): %v", list, err)
		}
	}
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}
