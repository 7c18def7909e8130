package gateway

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/policy"
)

// TestByteForByte: what no filter changes arrives as it came, whatever it is.
func TestByteForByte(t *testing.T) {
	big := make([]byte, 0, 3<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for len(big) < 3<<20 {
		for range rnd.IntN(120) {
			big = append(big, byte(14+rnd.IntN(242)))
		}
		big = append(big, "\r\n"...)
	}
	for _, c := range []struct {
		name, in, out string // out is in where it is empty
		file          bool
	}{
		{"empty", "", "\r\n", false}, // the header section gets its end
		{"header alone", "A: b\r\n", "A: b\r\n\r\n", false},
		{"header and its end", "A: b\r\n\r\n", "", false},
		{"body alone", "\r\nhello\r\n", "", false},
		{"no header: a line ends it", "hello world\r\nmore\r\n", "\r\nhello world\r\nmore\r\n", false},
		{"header ended by a line of text", "A: b\r\nhello world\r\nC: d\r\n", "A: b\r\n\r\nhello world\r\nC: d\r\n", false},
		{"odd fields", "A : b\r\nEmpty:\r\nFold: a\r\n \r\n\tb\r\n\r\n\r\n\r\n", "", false},
		{"dots", ".: x\r\n\r\n.\r\n..\r\n. \r\n", "", false},
		{"binary", "A: b\r\n\r\n\x00\xff\x80\r\n", "", false},
		{"large, from memory and a file", "Subject: big\r\n\r\n" + string(big), "", true},
		{"large without a header", string(big), "\r\n" + string(big), true},
		{"header section of nearly a MiB", strings.Repeat("X-Long: "+strings.Repeat("x", 500)+"\r\n", 2000) + "\r\nbody\r\n", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := (&rig{}).start(t)
			files := watchSpool(r.gw)
			p := r.hello(t)
			p.begin("a@example.com")
			in := c.in
			if strings.HasPrefix(in, ".") {
				in = "." + in
			}
			if got := p.data(in); got != "250 2.0.0 queued as 1" {
				t.Fatalf("got %q", got)
			}
			want := c.out
			if want == "" {
				want = c.in
			}
			got := string(r.far.last())
			if _, rest := message.Parse([]byte(got)); strings.Contains(got, "(no Received)") || len(rest) > len(got) {
				t.Fatalf("message begins %.80q", got)
			}
			if got := body([]byte(got)); got != want {
				t.Errorf("%d octets in, got %d, want %d\n got %.200q\nwant %.200q", len(c.in), len(got), len(want), got, want)
			}
			if n := files(); n != 0 {
				t.Errorf("%d files are left in the spool", n)
			}
		})
	}
}

// watchSpool counts the files of the spool's directory.
func watchSpool(g *Gateway) func() int {
	return func() int {
		list, err := os.ReadDir(g.opts.SpoolDir)
		if err != nil {
			return -1
		}
		return len(list)
	}
}

// TestSpoolHasNoName: a crash while a message comes leaves nothing behind, as the file has
// no name even then.
func TestSpoolHasNoName(t *testing.T) {
	dir := t.TempDir()
	s := newSpool(dir, newOverload(overloadSettings{}), 1<<20, func(message.Header) error { return nil })
	s.Write([]byte("A: b\r\n\r\n"))
	if _, err := s.Write(make([]byte, 2*memorySpool)); err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(dir); s.file == nil || len(list) != 0 {
		t.Errorf("file %v, names %v", s.file, list)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestDiskFull: no room is temporary, and the session goes on.
func TestDiskFull(t *testing.T) {
	r := &rig{}
	r.options = func(o *Options) { o.SpoolDir += "/missing" }
	r.start(t)
	p := r.hello(t)
	p.begin("a@example.com")
	if got := p.data("A: b\r\n\r\n" + strings.Repeat("line\r\n", memorySpool/4)); got != "452 4.3.1 no room for the message now, try again later" {
		t.Errorf("got %q", got)
	}
	p.begin("a@example.com")
	if got := p.data(testMessage); got != "250 2.0.0 queued as 1" {
		t.Errorf("a small message after it: got %q", got)
	}
	is(t, "far side", r.far.told(), []string{"begin a <from@client.test>", "rcpt <a@example.com>", "abort", "begin a <from@client.test>", "rcpt <a@example.com>", "data <a@example.com>"})
}

// TestHeaderLimits: loops and header sections without end.
func TestHeaderLimits(t *testing.T) {
	field := func(n int) string { return "X: " + strings.Repeat("x", n-5) + "\r\n" }
	for _, c := range []struct{ name, in, want string }{
		{"50 hops", strings.Repeat("Received: x\r\n", 50) + "\r\n", "250 2.0.0"},
		{"51 hops", strings.Repeat("rEceived : x\r\n", 51) + "\r\nx\r\n", "554 5.4.6 message passed 51 servers"},
		{"as large as may be", strings.Repeat(field(1000), 4) + field(94) + "\r\n" + "body\r\n", "250 2.0.0"},
		{"an octet more", strings.Repeat(field(1000), 4) + field(95) + "\r\n" + "body\r\n", "552 5.3.4 header section is larger than 4096"},
		{"no end", strings.Repeat(field(1000), 1000), "552 5.3.4 header section"},
		{"a body is no header", "hello world\r\n" + strings.Repeat(field(1000), 1000), "250 2.0.0"},
		{"larger than a message may be", "A: b\r\n\r\n" + strings.Repeat(field(1000), 1100), "552 5.3.4 message is larger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{}
			r.listener.MaxHeader = 4096
			r.listener.Server.MaxMessage = 1 << 20
			p := r.start(t).hello(t)
			p.begin("a@example.com")
			if got := p.data(c.in); !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			p.talk("NOOP => 250")
		})
	}
}

// FuzzSpoolKeepsBytes: however a message is cut, header and body together are what came.
func FuzzSpoolKeepsBytes(f *testing.F) {
	f.Add([]byte("A: b\r\n\r\nbody"), uint8(1))
	f.Add([]byte("A: b\r\n c\r\nno field\r\n\r\n"), uint8(3))
	f.Add([]byte("\r\n\r\n"), uint8(1))
	f.Add([]byte(": x\r\nA\n\n"), uint8(2))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var m policy.Message
		calls := 0
		s := newSpool("", newOverload(overloadSettings{}), 1<<20, func(h message.Header) error {
			m.Header = h
			calls++
			return nil
		})
		defer s.Close()
		for rest := in; len(rest) > 0; {
			n := min(int(step)+1, len(rest))
			if _, err := s.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if s.header < 0 {
			if err := s.findHeader(true); err != nil {
				t.Fatal(err)
			}
		}
		m.Body = s.body()
		var out bytes.Buffer
		m.WriteTo(&out)
		if !bytes.Equal(out.Bytes(), in) || calls != 1 {
			t.Errorf("in steps of %d:\n got %q\nwant %q; header seen %d times", int(step)+1, out.Bytes(), in, calls)
		}
		whole, _ := message.Parse(in)
		if got, want := fmt.Sprint(m.Header.Len()), fmt.Sprint(whole.Len()); got != want {
			t.Errorf("%q: fields in steps %s, as a whole %s", in, got, want)
		}
	})
}
