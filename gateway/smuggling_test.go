package gateway_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// smuggling_test.go: messages with a second transaction hidden behind something that is like
// the end of the data, sent through the gateway to backends that know only the true end, and
// to others that find one everywhere. Each hears of one message, or of none.

// laxBackend is a server that ends the data where ends finds something, and takes any CR or
// LF for the end of a command. It offers nothing but pipelining.
type laxBackend struct {
	ends *regexp.Regexp
	addr string

	mu    sync.Mutex // guards what follows
	raw   []byte     // all that came
	mails []string   // "<from> content", of each message that it believes to have got
}

// The kinds of laxBackend.
var (
	anyDot = regexp.MustCompile(`[\r\n]\x00*\.\x00*\r*[\r\n]`)
	lfDot  = regexp.MustCompile(`\n\.\r?\n`)
	crDot  = regexp.MustCompile(`\r\.\r|\r\n\.\r\n`)
	noNULs = regexp.MustCompile(`\x00*\r\x00*\n\x00*\.\x00*\r\x00*\n`)
)

func (b *laxBackend) start(t *testing.T) *laxBackend {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	var running sync.WaitGroup
	running.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer nc.Close()
				b.serve(nc)
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return b
}

func (b *laxBackend) serve(nc net.Conn) {
	nc.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(nc, "220 lax.test ESMTP\r\n")
	var in []byte
	from, data := "", false
	buf := make([]byte, 4096)
	for {
		for {
			if data {
				at := b.ends.FindIndex(append([]byte("\r\n"), in...))
				if at == nil {
					break
				}
				b.mu.Lock()
				b.mails = append(b.mails, from+" "+string(in[:max(at[0]-2, 0)]))
				b.mu.Unlock()
				in, data = in[at[1]-2:], false
				fmt.Fprint(nc, "250 taken\r\n")
				continue
			}
			in = bytes.TrimLeft(in, "\r\n")
			at := bytes.IndexAny(in, "\r\n")
			if at < 0 {
				break
			}
			verb, rest, _ := strings.Cut(string(in[:at]), " ")
			in = in[at+1:]
			switch verb {
			case "EHLO":
				fmt.Fprint(nc, "250-lax.test\r\n250 PIPELINING\r\n")
			case "DATA":
				in = bytes.TrimPrefix(in, []byte("\n"))
				data = true
				fmt.Fprint(nc, "354 go on\r\n")
			case "QUIT":
				fmt.Fprint(nc, "221 bye\r\n")
				return
			case "MAIL":
				from = rest
				fallthrough
			default:
				fmt.Fprint(nc, "250 OK\r\n")
			}
		}
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		b.mu.Lock()
		b.raw = append(b.raw, buf[:n]...)
		b.mu.Unlock()
		in = append(in, buf[:n]...)
	}
}

// falseEnds are what somebody might take for the end of the data.
var falseEnds = []string{
	"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\n.\r", "\r.\n",
	"\r\r\n.\r\r\n", "\r\n.\r\r\n", "\n\n.\n\n", "\r\n.\n\r", "\n\r.\n\r", "\r\n..\r\n", "\r\n.\r\n ", "\n.\n.\n",
	"\r\n\x00.\r\n", "\r\n.\x00\r\n", "\r\n.\r\x00\n", "\r\x00\n.\r\n\x00", "\n\x00.\x00\n", "\r\n\x00\x00.\x00\x00\r\n", "\x00\r\n\x00.\r\n", "\r\n.\x00\n", "\r\x00.\r\x00",
	"\r\n .\r\n", "\r\n.\t\r\n", "\v\n.\f\n", "\x85.\x85", "\u2028.\u2028", "\u0085.\u0085",
}

// trueEnd tells whether a form has the end of the data in it.
func trueEnd(form string) bool { return strings.Contains(form, "\r\n.\r\n") }

const hiddenMail = "MAIL FROM:<evil@x.test>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nSubject: hidden\r\n\r\ntwo"

// smuggle sends one message with a second one in it.
func smuggle(t *testing.T, addr net.Addr, content string, chunks bool) (said string) {
	t.Helper()
	nc, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(nc)
	wait := func(code string) {
		for {
			line, err := r.ReadString('\n')
			if said += line; err != nil {
				t.Fatalf("%q: waiting for %s: got %q, %v", content, code, said, err)
			}
			if len(line) > 3 && line[3] == ' ' {
				if line[:3] != code {
					t.Fatalf("%q: got %q, want %s", content, line, code)
				}
				return
			}
		}
	}
	wait("220")
	io.WriteString(nc, "EHLO c.test\r\nMAIL FROM:<good@x.test>\r\nRCPT TO:<b@example.com>\r\n")
	wait("250")
	wait("250")
	wait("250")
	if chunks {
		half := len(content) / 2
		fmt.Fprintf(nc, "BDAT %d\r\n%sBDAT %d LAST\r\n%sQUIT\r\n", half, content[:half], len(content)-half, content[half:])
	} else {
		io.WriteString(nc, "DATA\r\n")
		wait("354")
		io.WriteString(nc, content+"\r\n.\r\nQUIT\r\n")
	}
	rest, _ := io.ReadAll(r)
	return said + string(rest)
}

// bareEnd returns the first CR or LF that is not part of a CRLF, with what is around it.
func bareEnd(b []byte) string {
	plain := bytes.ReplaceAll(b, []byte("\r\n"), []byte("  "))
	if i := bytes.IndexAny(plain, "\r\n"); i >= 0 {
		return fmt.Sprintf("%q", b[max(0, i-20):min(len(b), i+20)])
	}
	return ""
}

func TestSmuggling(t *testing.T) {
	for name, ends := range map[string]*regexp.Regexp{"any dot": anyDot, "LF": lfDot, "CR": crDot, "no NULs": noNULs, "strict": nil} {
		t.Run(name, func(t *testing.T) {
			strict, lax := &backend{}, &laxBackend{ends: ends}
			if ends == nil {
				strict.start(t)
			} else {
				strict.addr = lax.start(t).addr
			}
			s := newSystem(t, nil, strict)
			for _, form := range falseEnds {
				for _, listener := range []string{"mx", "strict"} {
					for _, chunks := range []bool{false, true} {
						if trueEnd(form) && !chunks {
							continue // what is behind it is the client's own second message
						}
						said := smuggle(t, s.gw.Addr(listener), "Subject: a\r\n\r\none"+form+hiddenMail, chunks)
						got := took(strict, lax, ends)
						refused := strings.Contains(said, "\r\n550 5.5.2 ")
						if len(got) > 1 || len(got) == 0 && !refused || len(got) == 1 && !strings.Contains(got[0], "good@x.test") {
							t.Errorf("%q, listener %s, chunks %v: the backend took %q, the client was told %q", form, listener, chunks, got, said)
						}
						if listener == "mx" && refused {
							t.Errorf("%q, chunks %v: %q", form, chunks, said)
						}
					}
				}
			}
			lax.mu.Lock()
			defer lax.mu.Unlock()
			if at := bareEnd(lax.raw); at != "" {
				t.Errorf("a bare line end went to the backend: %s", at)
			}
		})
	}
}

// took returns what the backend got since it was asked last.
func took(strict *backend, lax *laxBackend, ends *regexp.Regexp) (got []string) {
	if ends == nil {
		strict.mu.Lock()
		defer strict.mu.Unlock()
		for _, e := range strict.got {
			got = append(got, e.from.Path.String()+" "+string(e.content))
			if at := bareEnd(e.content); at != "" {
				got = append(got, "a bare line end: "+at)
			}
		}
		strict.got = nil
		return got
	}
	lax.mu.Lock()
	defer lax.mu.Unlock()
	got, lax.mails = lax.mails, nil
	return got
}
