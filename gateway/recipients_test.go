package gateway

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

func listFile(t testing.TB, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "recipients.txt")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRecipientList(t *testing.T) {
	const file = "\ufeff# who is here\r\n" +
		"ann@example.com\n\n  Bob@Example.COM   # with a comment\n" +
		"a#b@example.com\n" +
		"\"john doe\"@example.com # quoted\n\"quoted\"@example.com\n" +
		"@all.example\n@bücher.example\nmüller@example.com\nÄrger@example.com\nlist+owner@example.com\n+odd@example.com\nuser@[192.0.2.1]"
	for _, tc := range []struct {
		address                string
		plain, cased, separate bool // known by default, with case, with separators "+-"
	}{
		{"ann@example.com", true, true, true},
		{"ANN@EXAMPLE.com", true, false, true},
		{"Bob@example.com", true, true, true},
		{"bob@example.com", true, false, true},
		{"carl@example.com", false, false, false},
		{"ann@other.example", false, false, false},
		{"a#b@example.com", true, true, true},
		{"a@example.com", false, false, false},
		{`"john doe"@example.com`, true, true, true},
		{`quoted@example.com`, true, true, true},
		{"anyone@all.example", true, true, true},
		{"anyone@sub.all.example", false, false, false},
		{"anyone@xn--bcher-kva.example", true, true, true},
		{"MÜLLER@example.com", true, false, true},
		{"ärger@example.com", true, false, true},
		{"ann+books@example.com", false, false, true},
		{"ann-books+x@example.com", false, false, true},
		{"list+owner@example.com", true, true, true},
		{"list@example.com", false, false, false},
		{"list+other@example.com", false, false, false},
		{"+odd@example.com", true, true, true},
		{"+x@example.com", false, false, false},
		{"user@[192.0.2.1]", true, true, true},
	} {
		for _, o := range []struct {
			f    recipientFile
			want bool
		}{{recipientFile{}, tc.plain}, {recipientFile{caseSensitive: true}, tc.cased}, {recipientFile{separators: "+-"}, tc.separate}} {
			o.f.path = listFile(t, file)
			l, err := newRecipientList(o.f)
			if err != nil {
				t.Fatal(err)
			}
			if l.count() != 12 {
				t.Fatalf("%d entries", l.count())
			}
			err = l.check(mailbox(tc.address))
			if (err == nil) != o.want {
				t.Errorf("%s with %+v: %v", tc.address, o.f, err)
			}
			if r := smtp.ReplyOf(err); r != nil && (r.Code != 550 || r.Enh != smtp.Enhanced{5, 1, 1}) {
				t.Errorf("%s: %v", tc.address, r)
			}
			if err := l.check(smtp.Path{Local: "postmaster"}); err != nil {
				t.Errorf("<postmaster>: %v", err)
			}
		}
	}
}

func TestRecipientFileErrors(t *testing.T) {
	for name, tc := range map[string]struct{ content, want string }{
		"empty":        {"", "no address"},
		"comments":     {"# nothing\n", "no address"},
		"no domain":    {"ann@example.com\nbob\n", "line 2"},
		"bad domain":   {"@exa_mple.com\n", "line 1"},
		"two":          {"ann@example.com bob@example.com\n", "something follows"},
		"list of mail": {"Ann <ann@example.com>\n", "line 1"},
		"binary":       {"\x00\x01\x02", "line 1"},
		"not UTF-8":    {"m\xfcller@example.com", "line 1"},
		"long line":    {"ann@example.com\n" + strings.Repeat("x", maxRecipientLine), "line 2"},
		"too large":    {strings.Repeat("#\n", 600), "larger than 1000 octets"},
	} {
		if _, err := newRecipientList(recipientFile{path: listFile(t, tc.content), size: 1000}); name == "long line" {
			_, err = newRecipientList(recipientFile{path: listFile(t, tc.content)})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newRecipientList(recipientFile{path: t.TempDir()}); err == nil {
		t.Error("a folder was read")
	}
	if _, err := newRecipientList(recipientFile{path: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("nothing was read")
	}
}

// The list follows its file. What cannot be a list is told once and changes nothing.
func TestRecipientReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		name := listFile(t, "ann@example.com\n")
		mtime := func(tm time.Time) {
			if err := os.Chtimes(name, tm, tm); err != nil {
				t.Fatal(err)
			}
		}
		write := func(s string) {
			if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
			mtime(time.Now()) // the bubble's
		}
		mtime(time.Now())
		l, err := newRecipientList(recipientFile{path: name, log: plainLog(&log)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.run(ctx) })
		known := func(what, address string, want bool) {
			t.Helper()
			synctest.Wait()
			if got := l.check(mailbox(address)) == nil; got != want {
				t.Errorf("%s: %s is known: %v", what, address, got)
			}
		}
		time.Sleep(10 * time.Second)
		write("bob@example.com\n")
		known("not yet looked", "bob@example.com", false)
		time.Sleep(20 * time.Second)
		known("looked", "bob@example.com", true)
		known("looked", "ann@example.com", false)
		time.Sleep(29 * time.Second)
		write("carl@example.com\n")
		time.Sleep(time.Second)
		known("may be half written", "carl@example.com", false)
		time.Sleep(2 * time.Second)
		known("lay still", "carl@example.com", true)
		for _, s := range []string{"", "carl@example.com\nnonsense\n"} {
			write(s)
			time.Sleep(2 * time.Minute)
			known("a bad file", "carl@example.com", true)
		}
		l.hurry() // says so again
		known("a bad file", "carl@example.com", true)
		os.Remove(name)
		time.Sleep(2 * time.Minute)
		known("no file", "carl@example.com", true)
		write("dora@example.com\n")
		time.Sleep(time.Minute)
		known("it is back", "dora@example.com", true)
		l.hurry()
		known("nothing new", "dora@example.com", true)
		write("eve@example.com\n")
		time.Sleep(3 * time.Second)
		known("nobody is in a hurry", "eve@example.com", false)
		l.hurry()
		known("in a hurry", "eve@example.com", true)
		os.Remove(name)
		l.hurry()
		known("in a hurry for nothing", "eve@example.com", true)
		cancel()
		wg.Wait()
		if read, bad := strings.Count(log.String(), "recipients were read"), strings.Count(log.String(), "the old ones stay"); read != 4 || bad != 5 {
			t.Errorf("read %d, bad %d:\n%s", read, bad, log.String())
		}
	})
}

// FuzzRecipientList: a file is read or refused, and what was read is found.
func FuzzRecipientList(f *testing.F) {
	f.Add([]byte("ann@example.com\n@all.example # x\n\"a b\"@example.com"))
	f.Add([]byte("# \n\n ÄÖ@bücher.example\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		file := recipientFile{}
		set, err := file.parse(bytes.NewReader(in), len(in))
		if err != nil {
			return
		}
		n := 0
		for at := 0; at < len(set.keys); n++ {
			key := set.at(at)
			if !set.has(key) || !bytes.ContainsRune(key, '@') {
				t.Fatalf("%q is not found", key)
			}
			at += 2 + len(key)
		}
		if n != set.n || n == 0 {
			t.Fatalf("%d keys, %d counted", n, set.n)
		}
	})
}

func manyRecipients(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "first.last%d@example%d.com\n", i, i%100)
	}
	return b.String()
}

func BenchmarkRecipientList(b *testing.B) {
	const n = 1_000_000
	content := manyRecipients(n)
	name := listFile(b, content)
	b.Run("load=1M", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			l, err := newRecipientList(recipientFile{path: name})
			if err != nil || l.count() != n {
				b.Fatal(err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/address")
			runtime.KeepAlive(l)
		}
	})
	l, err := newRecipientList(recipientFile{path: name, separators: "+"})
	if err != nil {
		b.Fatal(err)
	}
	there := make([]smtp.Path, 4096)
	for i := range there {
		there[i] = mailbox(fmt.Sprintf("first.last%d@example%d.com", i*200, i*200%100))
	}
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if !l.has(there[i&4095]) {
				b.Fatal("unknown")
			}
		}
	})
	nobody := mailbox("nobody+x@example1.com")
	b.Run("unknown", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.has(nobody)
		}
	})
}
