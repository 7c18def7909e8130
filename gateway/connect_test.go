package gateway

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// connect_test.go: what the gateway adds to a connection.

// quitter is a connection whose client says QUIT and nothing else.
type quitter struct {
	remote *net.TCPAddr
	said   bool
}

func (q *quitter) Read(p []byte) (int, error) {
	if q.said {
		return 0, io.EOF
	}
	q.said = true
	return copy(p, "QUIT\r\n"), nil
}

func (q *quitter) Write(p []byte) (int, error)      { return len(p), nil }
func (q *quitter) Close() error                     { return nil }
func (q *quitter) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (q *quitter) RemoteAddr() net.Addr             { return q.remote }
func (q *quitter) SetDeadline(time.Time) error      { return nil }
func (q *quitter) SetReadDeadline(time.Time) error  { return nil }
func (q *quitter) SetWriteDeadline(time.Time) error { return nil }

// noRelay has no backends.
type noRelay struct{}

func (noRelay) Begin(context.Context, string, smtp.Sender, smtp.Forwarded) (smtp.Transaction, error) {
	return nil, net.ErrClosed
}

// BenchmarkConnect: what does a connection cost without the kernel's part, and what of that
// is the counting of addresses? A thousand of them take turns; all have a good record.
func BenchmarkConnect(b *testing.B) {
	rate := Rate{Count: 1 << 29, Per: time.Minute}
	for _, c := range []struct {
		name string
		l    Listener
	}{
		{"plain", Listener{}},
		{"rates", Listener{ConnectionRate: rate, ConnectionRateNetwork: rate}},
		{"greet-delay", Listener{GreetDelay: time.Minute}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.l.Name, c.l.TLS, c.l.Addresses = "mx", TLSOff, []Address{{Network: "tcp", Address: "127.0.0.1:0"}}
			g, err := New(Options{Hostname: "mx.test", Relay: noRelay{}, Listeners: []Listener{c.l}}, Rules{})
			if err != nil {
				b.Fatal(err)
			}
			serve(b, g.listeners[0].srv, g.record.good)
			g.Shutdown(context.Background())
		})
	}
	b.Run("server-alone", func(b *testing.B) {
		accept := smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return smtp.Accept{}, nil })
		srv, err := smtp.NewServer(accept, smtp.ServerOptions{Hostname: "mx.test"})
		if err != nil {
			b.Fatal(err)
		}
		serve(b, srv, func(netip.Addr) {})
		srv.Shutdown(context.Background())
	})
}

// serve lets srv serve one connection after the other.
func serve(b *testing.B, srv *smtp.Server, meet func(netip.Addr)) {
	var addrs []*net.TCPAddr
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		meet(a)
		addrs = append(addrs, net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 1025)))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if err := srv.ServeConn(&quitter{remote: addrs[i%len(addrs)]}); err != nil {
			b.Fatal(err)
		}
	}
}
