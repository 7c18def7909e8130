//go:build linux

package bench

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// sink_test.go: the two ends of what is compared with: a server that takes everything and
// throws it away, and a relay of bytes. Neither checks what it need not know; they are no
// examples of how to do it.

// sink is an SMTP server. It relies on its clients' waiting for the replies to DATA and
// to the end mark, as ours and Postfix do.
type sink struct {
	tls      *tls.Config // nil has no STARTTLS
	messages *atomic.Int64
	chunking bool          // offers BDAT
	delay    time.Duration // before the reply to a message
}

// serve speaks with one client.
func (s *sink) serve(nc net.Conn) {
	defer func() { nc.Close() }()
	buf := make([]byte, 64<<10)
	w, inData := 0, false   // buf[:w] is unread
	chunk, last := 0, false // octets of a chunk that are still to come, and whether it is the last
	out := []byte("220 " + hostname + " ESMTP\r\n")
	for {
		if len(out) > 0 {
			if _, err := nc.Write(out); err != nil {
				return
			}
		}
		n, err := nc.Read(buf[w:])
		if err != nil {
			return
		}
		w += n
		out = out[:0]
		if inData {
			if w, inData = skipData(buf, w); !inData {
				s.take()
				out = append(out, "250 2.0.0 taken\r\n"...)
			}
			continue
		}
		for !inData {
			if chunk > 0 {
				n := min(chunk, w)
				w = copy(buf, buf[n:w])
				if chunk -= n; chunk > 0 {
					break
				}
				if last {
					s.take()
				}
				out = append(out, "250 2.0.0 taken\r\n"...)
			}
			i := bytes.IndexByte(buf[:w], '\n')
			if i < 3 {
				break
			}
			verb := string(bytes.ToUpper(buf[:4]))
			line := string(buf[:i-1])
			w = copy(buf, buf[i+1:w])
			switch verb {
			case "QUIT":
				nc.Write([]byte("221 2.0.0 closing\r\n"))
				return
			case "STAR":
				if s.tls == nil {
					return
				}
				nc.Write([]byte("220 2.0.0 go ahead\r\n"))
				nc = tls.Server(nc, s.tls)
			case "BDAT":
				number, word, _ := strings.Cut(line[len("BDAT "):], " ")
				chunk, _ = strconv.Atoi(number)
				last = word == "LAST"
			default:
				out = s.answer(out, verb)
				inData = verb == "DATA"
			}
		}
	}
}

// take counts a message, after the time that it is to take.
func (s *sink) take() {
	if s.delay > 0 {
		<-time.After(s.delay)
	}
	s.messages.Add(1)
}

// answer appends the reply to a command.
func (s *sink) answer(out []byte, verb string) []byte {
	switch verb {
	case "EHLO":
		out = append(out, "250-"+hostname+"\r\n250-PIPELINING\r\n250-8BITMIME\r\n"...)
		if s.tls != nil {
			out = append(out, "250-STARTTLS\r\n"...)
		}
		if s.chunking {
			out = append(out, "250-CHUNKING\r\n"...)
		}
		return append(out, "250 ENHANCEDSTATUSCODES\r\n"...)
	case "DATA":
		return append(out, "354 go on\r\n"...)
	default:
		return append(out, "250 2.0.0 fine\r\n"...)
	}
}

var endOfData = []byte("\r\n.\r\n")

// skipData throws mail data away that is in buf[:w], but for its last octets, in which the
// end mark may have begun.
func skipData(buf []byte, w int) (left int, goesOn bool) {
	if bytes.HasSuffix(buf[:w], endOfData) {
		return 0, false
	}
	return copy(buf, buf[max(w-len(endOfData)+1, 0):w]), true
}

// relayBytes connects a client with the sink and copies, in both directions.
func relayBytes(client net.Conn, sink string) {
	defer client.Close()
	server, err := net.DialTimeout("tcp", sink, patience)
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(server, client)
		server.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(client, server)
	client.(*net.TCPConn).CloseWrite()
	<-done
}

// accept serves each connection of l in a goroutine of its own. They end with the
// process.
func accept(l net.Listener, serve func(net.Conn)) error {
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		go serve(nc)
	}
}
