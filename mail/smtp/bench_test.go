package smtp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// textLines returns n octets or a little more of ordinary text: lines of 76
// characters with CRLF, none of which begins with a dot.
func textLines(n int) []byte {
	line := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 2)[:76] + "\r\n"
	return []byte(strings.Repeat(line, n/len(line)+1))
}

// dottedLines is the other extreme: every line begins with a dot.
func dottedLines(n int) []byte {
	return bytes.ReplaceAll(textLines(n), []byte("\r\nT"), []byte("\r\n."))
}

// bareLines is text of a system that ends its lines with LF.
func bareLines(n int) []byte {
	return bytes.ReplaceAll(textLines(n), []byte("\r\n"), []byte("\n"))
}

// bareCRs is nothing but line ends that are none: what a hostile sender would choose.
func bareCRs(n int) []byte { return bytes.Repeat([]byte("\r"), n) }

// endlessConn is a connection whose input is one message, over and over. It is
// memory alone, so that what is measured is the framing.
type endlessConn struct {
	net.Conn
	input []byte
	at    int
}

func (c *endlessConn) Read(p []byte) (int, error) {
	n := copy(p, c.input[c.at:])
	if c.at += n; c.at == len(c.input) {
		c.at = 0
	}
	return n, nil
}

func (c *endlessConn) SetReadDeadline(time.Time) error { return nil }

// BenchmarkDataReader: how fast is mail data taken off a connection?
func BenchmarkDataReader(b *testing.B) {
	for _, bb := range []struct {
		name string
		text func(int) []byte
	}{{"text", textLines}, {"dots", dottedLines}, {"bareLF", bareLines}, {"bareCR", bareCRs}} {
		b.Run("lines="+bb.name+"/size=64K", func(b *testing.B) {
			content := bb.text(64 << 10)
			var wired bytes.Buffer
			d := NewDataWriter(&wired)
			d.Write(content)
			d.Close()
			if strings.HasPrefix(bb.name, "bare") { // the writer would have mended it
				wired.Reset()
				wired.Write(content)
				wired.WriteString("\r\n.\r\n")
			}
			w := newWire(&endlessConn{input: wired.Bytes()})
			w.timeout = time.Minute
			b.ReportAllocs()
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				r := newDataReader(w, 0, NormalizeLineEndings)
				if _, err := r.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDataWriter: how fast is content made mail data?
func BenchmarkDataWriter(b *testing.B) {
	for _, bb := range []struct {
		name string
		text func(int) []byte
	}{{"text", textLines}, {"dots", dottedLines}, {"bareLF", bareLines}, {"bareCR", bareCRs}} {
		b.Run("lines="+bb.name+"/size=64K", func(b *testing.B) {
			content := bb.text(64 << 10)
			b.ReportAllocs()
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				d := NewDataWriter(io.Discard)
				d.Write(content)
				d.Close()
			}
		})
	}
}

// memContent is content in memory.
type memContent []byte

func (m memContent) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(m)
	return int64(n), err
}

func (m memContent) Size() int64 { return int64(len(m)) }

// BenchmarkSession: what does a message cost, from connecting to QUIT or on a
// connection that stays? Both ends are counted.
func BenchmarkSession(b *testing.B) {
	for _, keep := range []bool{false, true} {
		b.Run(fmt.Sprintf("keep=%v/size=4K", keep), func(b *testing.B) {
			srv, addr := benchServer(b)
			defer srv.Shutdown(context.Background())
			content := memContent(textLines(4 << 10))
			from := Sender{Path: mustPath(b, "<a@client.test>"), Size: content.Size()}
			to := []Recipient{{Path: mustPath(b, "<b@mx.test>")}}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
			defer cancel()
			var c *Client
			b.ReportAllocs()
			b.SetBytes(content.Size())
			for b.Loop() {
				if c == nil {
					c = benchDial(b, ctx, addr)
				}
				if _, err := c.Envelope(ctx, from, to); err != nil {
					b.Fatal(err)
				}
				if _, err := c.Data(ctx, content); err != nil {
					b.Fatal(err)
				}
				if !keep {
					c.Quit(ctx)
					c = nil
				}
			}
			if c != nil {
				c.Quit(ctx)
			}
		})
	}
}

func benchServer(b *testing.B) (*Server, string) {
	return benchServerWith(b, ServerOptions{Hostname: "mx.test", MaxMessages: 1 << 30})
}

func benchServerWith(b *testing.B, o ServerOptions) (*Server, string) {
	accept := HandlerFunc(func(context.Context, *Conn) (Session, error) { return Accept{}, nil })
	srv, err := NewServer(accept, o)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go srv.Serve(l)
	return srv, l.Addr().String()
}

// BenchmarkData: what does the content cost on a connection that stays, by DATA and by
// BDAT? Both ends are counted.
func BenchmarkData(b *testing.B) {
	for _, size := range []int{4 << 10, 100 << 10, 5 << 20} {
		for _, by := range []string{"DATA", "BDAT"} {
			b.Run(fmt.Sprintf("by=%s/size=%dK", by, size>>10), func(b *testing.B) {
				srv, addr := benchServer(b)
				defer srv.Shutdown(context.Background())
				text := textLines(size)
				content := pieces(slices.Collect(slices.Chunk(text, 64<<10)))
				to := []Recipient{{Path: mustPath(b, "<b@mx.test>")}}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
				defer cancel()
				c := benchDialWith(b, ctx, addr, ClientOptions{NoChunking: by == "DATA"})
				b.ReportAllocs()
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					if _, err := c.Envelope(ctx, Sender{}, to); err != nil {
						b.Fatal(err)
					}
					if r, err := c.Data(ctx, content); err != nil || r[0].Code != 250 {
						b.Fatal(r, err)
					}
				}
				c.Quit(ctx)
			})
		}
	}
}

// BenchmarkSend: what does it save to say MAIL, RCPT and DATA together, for one recipient and
// for ten? calls is one after the other, envelope is Envelope and Data, as the gateway does.
// Both ends are counted.
func BenchmarkSend(b *testing.B) {
	for _, rcpts := range []int{1, 10} {
		for _, how := range []string{"calls", "envelope", "send", "send-BDAT", "send-no-PIPELINING"} {
			b.Run(fmt.Sprintf("rcpts=%d/how=%s/size=4K", rcpts, how), func(b *testing.B) {
				o := ServerOptions{Hostname: "mx.test", MaxMessages: 1 << 30}
				if how == "send-no-PIPELINING" {
					o.Without = []string{"PIPELINING"}
				}
				srv, addr := benchServerWith(b, o)
				defer srv.Shutdown(context.Background())
				content := memContent(textLines(4 << 10))
				var to []Recipient
				for i := range rcpts {
					to = append(to, Recipient{Path: mustPath(b, fmt.Sprintf("<b%d@mx.test>", i))})
				}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
				defer cancel()
				c := benchDialWith(b, ctx, addr, ClientOptions{NoChunking: how != "send-BDAT"})
				b.ReportAllocs()
				for b.Loop() {
					if err := benchSend(ctx, c, how, to, content); err != nil {
						b.Fatal(err)
					}
				}
				c.Quit(ctx)
			})
		}
	}
}

func benchSend(ctx context.Context, c *Client, how string, to []Recipient, content memContent) error {
	switch how {
	case "calls":
		err := c.Mail(ctx, Sender{})
		for _, r := range to {
			err = errors.Join(err, c.Rcpt(ctx, r))
		}
		_, sent := c.Data(ctx, content)
		return errors.Join(err, sent)
	case "envelope":
		_, err := c.Envelope(ctx, Sender{}, to)
		_, sent := c.Data(ctx, content)
		return errors.Join(err, sent)
	}
	_, err := c.Send(ctx, Envelope{To: to}, content)
	return err
}

func benchDial(b *testing.B, ctx context.Context, addr string) *Client {
	return benchDialWith(b, ctx, addr, ClientOptions{})
}

func benchDialWith(b *testing.B, ctx context.Context, addr string, o ClientOptions) *Client {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	o.LocalName = "client.test"
	c, err := NewClient(ctx, nc, o)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkEnvelope: what does parsing an envelope cost?
func BenchmarkEnvelope(b *testing.B) {
	mail, rcpt := []byte("MAIL FROM:<sender@client.test> SIZE=4096 BODY=8BITMIME"), []byte("RCPT TO:<recipient@mx.test>")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseMail(parseCommand(mail).args, offered); err != nil {
			b.Fatal(err)
		}
		if _, err := parseRcpt(parseCommand(rcpt).args, false, offered); err != nil {
			b.Fatal(err)
		}
	}
}

func mustPath(tb testing.TB, s string) Path {
	tb.Helper()
	p, err := ParsePath(s)
	if err != nil {
		tb.Fatalf("ParsePath(%q): %v", s, err)
	}
	return p
}
