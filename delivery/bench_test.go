package delivery

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

// BenchmarkDeliver: what does handing one message to a backend cost, with connections
// that are reused? Both ends and the loopback are in it.
func BenchmarkDeliver(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, parallel := range []bool{false, true} {
			b.Run(fmt.Sprintf("size=%dK/parallel=%v", size>>10, parallel), func(b *testing.B) {
				tr := open(b, one(serveSMTP(b)))
				content := octets(strings.Repeat("The quick brown fox jumps over the lazy dog, again.\r\n", size/53))
				sender, to := from(b), rcpt(b, "to@example.org")
				b.ReportAllocs()
				b.SetBytes(int64(len(content)))
				if !parallel {
					for b.Loop() {
						deliver(b, tr, sender, to, content)
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						deliver(b, tr, sender, to, content)
					}
				})
			})
		}
	}
}

// octets is a smtp.Content that costs nothing to write.
type octets []byte

func (o octets) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(o)
	return int64(n), err
}

func (o octets) Size() int64 { return int64(len(o)) }

func deliver(b *testing.B, tr *Transport, sender smtp.Sender, to smtp.Recipient, content smtp.Content) {
	ctx := b.Context()
	tx, err := tr.Begin(ctx, "b", sender)
	if err == nil {
		err = tx.Rcpt(ctx, to)
	}
	if err != nil {
		b.Error(err)
		return
	}
	if replies, err := tx.Data(ctx, content); err != nil || replies[0].Code != 250 {
		b.Errorf("%v, %v", replies, err)
	}
}

// BenchmarkBegin: what does the pool alone cost?
func BenchmarkBegin(b *testing.B) {
	tr := open(b, one(serveSMTP(b)))
	sender := from(b)
	b.ReportAllocs()
	for b.Loop() {
		tx, err := tr.Begin(b.Context(), "b", sender)
		if err != nil {
			b.Fatal(err)
		}
		tx.Abort()
	}
}

// serveSMTP is a smtp.Server that throws everything away.
func serveSMTP(b testing.TB) Endpoint {
	s, err := smtp.NewServer(smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) {
		return smtp.Accept{}, nil
	}), smtp.ServerOptions{Hostname: "backend.test", MaxMessages: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	l := listen(b, "tcp", "127.0.0.1:0")
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	b.Cleanup(func() {
		s.Shutdown(context.Background())
		<-served
	})
	return Endpoint{Network: "tcp", Address: l.Addr().(*net.TCPAddr).String()}
}
