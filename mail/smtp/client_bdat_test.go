package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	chunkEhlo  = slices.Concat(greet, []string{">250-mx.test", ">250-CHUNKING", ">250-BINARYMIME", ">250 PIPELINING"})
	chunkLhlo  = []string{">220 mx.test LMTP", "<LHLO client.test", ">250-mx.test", ">250-CHUNKING", ">250 PIPELINING"}
	chunkTaken = slices.Concat(pipeline, []string{">250 ok", ">250 ok", ">550 no", ">250 ok", "<BDAT 9 LAST", "<text", "<."})
)

// A message in one chunk, and what servers say to it.
func TestClientChunks(t *testing.T) {
	lmtp := ClientOptions{LMTP: true}
	for _, tt := range []struct {
		name   string
		opts   ClientOptions
		script []string
		want   string // what became of the message
		reply  int    // code of the error that is a *Reply
		after  string // what RSET came to
	}{
		{"taken", ClientOptions{}, slices.Concat(chunkEhlo, chunkTaken, []string{">250 2.0.0 taken", "<RSET", ">250 ok"}), "0 550 0 /250", 0, "ok"},
		{"turned off", ClientOptions{NoChunking: true}, slices.Concat(chunkEhlo, allTaken, []string{">354 go", "data", ">250 ok", "<RSET", ">250 ok"}),
			"0 0 0 /250", 0, "ok"},
		{"refused", ClientOptions{}, slices.Concat(chunkEhlo, chunkTaken, []string{">554 5.7.1 spam", "<RSET", ">250 ok"}), "0 550 0 /554", 0, "ok"},
		{"not known after all", ClientOptions{}, slices.Concat(chunkEhlo, chunkTaken, []string{">502 what", "hang"}), "0 550 0 /502", 0, "hang"},
		{"421", ClientOptions{}, slices.Concat(chunkEhlo, chunkTaken, []string{">421 4.3.2 bye"}), "0 550 0 /421", 0, "421"},
		{"3xx", ClientOptions{}, slices.Concat(chunkEhlo, chunkTaken, []string{">354 go", "hang"}), "0 550 0 ", 0, "354"},
		{"closed", ClientOptions{}, slices.Concat(chunkEhlo, chunkTaken), "0 550 0 ", 0, "EOF"},
		{"nobody accepted", ClientOptions{}, slices.Concat(chunkEhlo, pipeline, []string{">250 ok", ">550 no", ">550 no", ">550 no", "<RSET", ">250 ok"}),
			"550 550 550 ", 503, "ok"},
		{"lmtp", lmtp, slices.Concat(chunkLhlo, chunkTaken, []string{">250 ok", ">452 full", "<RSET", ">250 ok"}), "0 550 0 /250/452", 0, "ok"},
		{"lmtp breaks", lmtp, slices.Concat(chunkLhlo, chunkTaken, []string{">250 ok"}), "0 550 0 /250/451", 0, "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if tt.after == "hang" {
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
			}
			var got, after string
			err, scriptErr := talkTo(ctx, tt.opts, tt.script, func(c *Client) (err error) {
				got, err = sendLines(ctx, c)
				after = "ok"
				if err := c.Reset(ctx); err != nil {
					after = err.Error()
				}
				return err
			})
			if r, ok := errors.AsType[*Reply](err); got != tt.want || ok != (tt.reply != 0) || ok && r.Code != tt.reply {
				t.Errorf("got %q, %v, want %q, %d", got, err, tt.want, tt.reply)
			}
			if tt.after == "hang" && after != "ok" || strings.Contains(after, tt.after) {
				return
			}
			t.Errorf("afterwards: got %q, want %q; server: %v", after, tt.after, scriptErr)
		})
	}
}

// sendLines is send with content that ends without a line end.
func sendLines(ctx context.Context, c *Client) (string, error) {
	var to []Recipient
	for _, local := range []string{"b", "c", "d"} {
		to = append(to, Recipient{Path: Path{local, Domain{"mx.test"}}})
	}
	rcpts, err := c.Envelope(ctx, Sender{Path: Path{"a", Domain{"client.test"}}}, to)
	if err != nil {
		return "", err
	}
	said := ""
	for _, err := range rcpts {
		said += fmt.Sprint(codeOf(err), " ")
	}
	replies, err := c.Data(ctx, memContent("text\n."))
	for _, r := range replies {
		said += fmt.Sprint("/", r.Code)
	}
	return said, err
}

// pieces is content that is written in pieces.
type pieces [][]byte

func (p pieces) WriteTo(w io.Writer) (total int64, err error) {
	for _, b := range p {
		n, err := w.Write(b)
		if total += int64(n); err != nil {
			return total, err
		}
	}
	return total, nil
}

// unchunk takes the chunks of a message apart.
func unchunk(t *testing.T, b []byte) (content []byte, chunks int) {
	t.Helper()
	for {
		line, rest, ok := bytes.Cut(b, []byte("\r\n"))
		var n int
		if _, err := fmt.Sscanf(string(line), "BDAT %d", &n); !ok || err != nil || n > len(rest) {
			t.Fatalf("chunk %d begins with %.80q and %d octets", chunks, line, len(rest))
		}
		chunks++
		content, b = append(content, rest[:n]...), rest[n:]
		if bytes.HasSuffix(line, []byte(" LAST")) {
			if len(b) > 0 {
				t.Fatalf("%d octets behind the last chunk", len(b))
			}
			return content, chunks
		}
	}
}

// chunked returns what a client sends of content, to a server that takes it all.
func chunked(t *testing.T, from Sender, content io.WriterTo, pipelining bool) (sent []byte, chunks int) {
	t.Helper()
	nc := &scriptConn{chunks: slices.Repeat([][]byte{[]byte("250 ok\r\n")}, 200)}
	c := &Client{wire: newWire(nc), raw: nc, opts: ClientOptions{LocalName: "client.test", Timeouts: Timeouts{}.withDefaults()}}
	c.learn("x\nCHUNKING\nBINARYMIME")
	c.wire.timeout = time.Minute
	c.accepted, c.binary = 1, from.Body == BodyBinary
	w := newChunkWriter(c)
	if pipelining {
		w.ahead = chunksAhead
	}
	if err := errors.Join(w.copy(content, c.binary), w.end()); err != nil {
		t.Fatal(err)
	}
	return unchunk(t, nc.out.Bytes())
}

// Text arrives with CRLF for every line end and is otherwise the same, binary content is
// the same, however it is cut.
func TestClientChunkContent(t *testing.T) {
	long := bytes.Repeat([]byte("A line of text.\r\n.\r\n"), 30000)
	bare := bytes.Repeat([]byte("a\nb\r.\r\n\r\r\n"), 20000)
	for _, tt := range []struct {
		name    string
		content pieces
		binary  bool
		chunks  int // 0: any number
	}{
		{"nothing", nil, false, 1},
		{"one line", pieces{[]byte("a\r\n")}, false, 1},
		{"no line end", pieces{[]byte("a")}, false, 1},
		{"dots", pieces{[]byte(".\r\n..\r\n")}, false, 1},
		{"CR at the end", pieces{[]byte("a\r"), []byte("\r"), []byte("\nb\r")}, false, 1},
		{"long", pieces{long}, false, 0},
		{"long in pieces", slices.Collect(slices.Chunk(long, 4096)), false, 0},
		{"long in large pieces", slices.Collect(slices.Chunk(long, 50001)), false, 0},
		{"octet by octet", slices.Collect(slices.Chunk(long[:100000], 1)), false, 2},
		{"bare", pieces{bare}, false, 0},
		{"bare octet by octet", slices.Collect(slices.Chunk(bare[:10000], 1)), false, 1},
		{"binary", pieces{bare, {0, 13}, {10, 13}}, true, 0},
		{"binary in pieces", slices.Collect(slices.Chunk(bare, 30001)), true, 0},
	} {
		for _, pipelining := range []bool{false, true} {
			from := Sender{}
			want := bytes.Join(tt.content, nil)
			if tt.binary {
				from.Body = BodyBinary
			} else {
				want = mended(want)
			}
			got, chunks := chunked(t, from, tt.content, pipelining)
			if !bytes.Equal(got, want) || tt.chunks > 0 && chunks != tt.chunks {
				t.Errorf("%s: got %d octets in %d chunks, want %d octets in %d", tt.name, len(got), chunks, len(want), tt.chunks)
			}
		}
	}
}

// mended is how text leaves, written down simply.
func mended(b []byte) []byte {
	s := strings.NewReplacer("\r\n", "\r\n", "\r", "\r\n", "\n", "\r\n").Replace(string(b))
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\r\n"
	}
	return []byte(s)
}

// FuzzClientChunksNoBareLineEnd: text of any cut leaves as its line ends mended, and no
// chunk of it ends between a CR and its LF.
func FuzzClientChunksNoBareLineEnd(f *testing.F) {
	f.Add([]byte("a\r\n.\r\n"), 1)
	f.Add([]byte("\r\r\n\n\r"), 2)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		cut = min(max(cut, 1), len(text)+1)
		got, _ := chunked(t, Sender{}, pieces(slices.Collect(slices.Chunk(text, cut))), false)
		if want := mended(text); !bytes.Equal(got, want) {
			t.Fatalf("%q in pieces of %d: got %q, want %q", text, cut, got, want)
		}
	})
}

// A server that refuses a chunk in the middle is heard before all is sent, the replies to
// what was on its way are not taken for others, and the next transaction begins with RSET.
func TestClientChunkRefused(t *testing.T) {
	piece := bytes.Repeat([]byte("x"), maxChunk-2)
	piece = append(piece, "\r\n"...)
	content := pieces(slices.Repeat([][]byte{piece}, 100))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	chunks := 0
	done := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer nc.Close()
		done <- func() error {
			io.WriteString(nc, "220 mx.test\r\n")
			w := newWire(nc)
			w.timeout = time.Minute
			rcpts := 0
			for {
				line, err := w.readLine(1000)
				if err != nil {
					return err
				}
				var n int
				switch cmd := parseCommand(line); cmd.verb {
				case "EHLO":
					io.WriteString(nc, "250-mx.test\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
					continue
				case "BDAT":
					fmt.Sscanf(cmd.args, "%d", &n)
					for n > 0 {
						got := min(n, len(w.unread()))
						w.r += got
						if n -= got; n > 0 {
							if err := w.more(); err != nil {
								return err
							}
						}
					}
					if chunks++; chunks == 3 {
						io.WriteString(nc, "552 5.3.4 too large\r\n")
						continue
					} else if chunks > 3 {
						io.WriteString(nc, "503 5.5.1 no\r\n")
						continue
					}
				case "RCPT":
					rcpts++
				case "MAIL":
					if rcpts > 0 {
						io.WriteString(nc, "503 RSET first\r\n")
						continue
					}
				case "RSET":
					rcpts = 0
				case "QUIT":
					io.WriteString(nc, "221 bye\r\n")
					return nil
				}
				io.WriteString(nc, "250 ok\r\n")
			}
		}()
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(t.Context(), nc, ClientOptions{LocalName: "client.test"})
	if err != nil {
		t.Fatal(err)
	}
	to := []Recipient{{Path: mustPath(t, "<b@mx.test>")}}
	if _, err := c.Envelope(t.Context(), Sender{}, to); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Data(t.Context(), content); codeOf(err) != 552 || c.Broken() {
		t.Errorf("Data: got %v, broken %v", err, c.Broken())
	}
	if rcpts, err := c.Envelope(t.Context(), Sender{}, to); err != nil || rcpts[0] != nil {
		t.Errorf("next Envelope: got %v, %v", rcpts, err)
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil || chunks > 3+chunksAhead {
		t.Errorf("server: %v after %d chunks", err, chunks)
	}
}

// A server that closes in the middle has often said why.
func TestClientChunkCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		big := bytes.Repeat([]byte("text\r\n"), 100000)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		script := slices.Concat(chunkEhlo, []string{"<MAIL *", ">250 ok", "<RCPT *", ">250 ok", "<BDAT *", "gulp", ">552 5.3.4 too large"})
		err, _ := talkTo(ctx, ClientOptions{}, script, func(c *Client) error {
			if err := errors.Join(c.Mail(ctx, Sender{}), c.Rcpt(ctx, Recipient{Path: mustPath(t, "<b@mx.test>")})); err != nil {
				return err
			}
			_, err := c.Data(ctx, memContent(big))
			if !c.Broken() {
				t.Error("the client is not broken")
			}
			return err
		})
		if codeOf(err) != 552 {
			t.Errorf("got %v, want 552", err)
		}
	})
}

// What must not go to a server is refused before it is asked.
func TestClientNeeds(t *testing.T) {
	for _, tt := range []struct {
		offers string
		secure bool
		from   Sender
		want   string
	}{
		{"BINARYMIME", false, Sender{Body: BodyBinary}, "554 5.6.3"}, // without CHUNKING there is no way to send it
		{"CHUNKING", false, Sender{Body: BodyBinary}, "554 5.6.3"},
		{"REQUIRETLS", false, Sender{Path: sender.Path, RequireTLS: true}, "550 5.7.30"},
		{"SIZE", true, Sender{Path: sender.Path, RequireTLS: true}, "550 5.7.30"},
		{"REQUIRETLS", true, Sender{Path: sender.Path, RequireTLS: true}, ""},
		{"REQUIRETLS", false, Sender{RequireTLS: true}, ""}, // a report goes on
		{"SIZE", true, Sender{RequireTLS: true}, ""},
		{"CHUNKING\nBINARYMIME", false, Sender{Body: BodyBinary}, ""},
		{"SIZE", false, Sender{Return: ReturnFull, EnvID: "x"}, ""}, // left out
		{"SIZE", false, Sender{Priority: 1, HoldFor: 1, By: DeliverBy{5, ByNotify, false}}, ""},
		{"SIZE", false, Sender{By: DeliverBy{60, ByReturn, false}}, "550 5.3.3"}, // RFC 2852, Section 4.1
		{"DELIVERBY 61", false, Sender{By: DeliverBy{60, ByReturn, false}}, "550 5.4.7"},
		{"DELIVERBY", false, Sender{By: DeliverBy{-1, ByReturn, false}}, "550 5.4.7"},
		{"DELIVERBY 60", false, Sender{By: DeliverBy{60, ByReturn, false}}, ""},
	} {
		c := replyReader("250 ok\r\n")
		if tt.secure {
			c.tls = tls.Client(c.raw, &tls.Config{InsecureSkipVerify: true})
		}
		c.learn("x\n" + tt.offers)
		got := ""
		if err := c.Mail(t.Context(), tt.from); err != nil {
			r := ReplyOf(err)
			got = fmt.Sprint(r.Code, " ", r.Enh)
		}
		if said := c.raw.(*scriptConn).out.String(); got != tt.want || (said == "") != (tt.want != "") {
			t.Errorf("%q, TLS %v, %+v: got %q and said %q, want %q", tt.offers, tt.secure, tt.from, got, said, tt.want)
		}
	}
}
