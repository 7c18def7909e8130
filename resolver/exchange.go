package resolver

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// exchange.go brings one query to one server and its reply back. Over UDP each query has a
// socket of its own, so that its port is as unknown to others as its number (RFC 5452,
// Section 9.2). Streams are kept for the next query, one query at a time on each.

const (
	// maxForeign is how many datagrams that are not the reply are passed over. Somebody
	// who sends more is guessing, and we go on over TCP, where there is nothing to guess.
	maxForeign = 16
	maxIdle    = 4                // streams kept for each server
	idleTime   = 10 * time.Second // how long; RFC 7766, Section 6.2.3 asks for seconds
	// downTime is how long a server that did not answer is asked last.
	downTime = 30 * time.Second
)

// host is a server as we know it. Its methods are safe for concurrent use.
type host struct {
	Server
	tls     *tls.Config  // nil without TLS
	web     *http.Client // nil without HTTPS
	replies atomic.Uint64
	down    atomic.Int64 // Unix nanoseconds until which it is asked last; 0 if it is not

	mu     sync.Mutex
	idle   []*stream // guarded by mu; the one used last is at the end
	closed bool      // guarded by mu
}

// stream is a connection that stays open between queries.
type stream struct {
	net.Conn
	expiry *time.Timer // closes it; set while it is idle
}

func newHost(s Server) *host {
	if s.Network == "" {
		s.Network = "udp"
	}
	h := &host{Server: s, tls: s.tlsConfig()}
	if s.Network == "https" {
		h.web = newWeb(s)
	}
	return h
}

// exchange sends the query, under a number of its own, and returns what answers it. The
// context must have a deadline.
func (h *host) exchange(ctx context.Context, query *dns.Msg, n *counters) (*dns.Msg, error) {
	if query.Id = newID(); h.web != nil {
		query.Id = 0
	}
	wire, err := query.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack query: %w", err)
	}
	n.queries.Add(1)
	if h.Network == "udp" {
		m, err := h.overUDPFirst(ctx, query, wire, n)
		if err == nil && !m.Truncated {
			return m, nil
		}
		if err != nil && !errors.Is(err, errUseTCP) {
			return nil, err
		}
		n.streams.Add(1)
	}
	overStream := h.overStream
	if h.web != nil {
		overStream = h.overHTTPS
	}
	m, err := overStream(ctx, query, wire)
	if err == nil && m.Truncated {
		return nil, errors.New("reply is truncated on a stream")
	}
	return m, err
}

// overUDPFirst gives UDP a part of the time, and leaves the rest to TCP: a datagram may be
// lost, and a path may take none at all. A server that is at work on the answer loses
// nothing by being asked again.
func (h *host) overUDPFirst(ctx context.Context, query *dns.Msg, wire []byte, n *counters) (*dns.Msg, error) {
	part := ctx
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		part, cancel = context.WithTimeout(ctx, time.Until(deadline)*2/5)
		defer cancel()
	}
	m, err := h.overUDP(part, query, wire, n)
	if err != nil && part.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("%w: %w", errUseTCP, err)
	}
	return m, err
}

// errUseTCP: what came over UDP cannot be used.
var errUseTCP = errors.New("no usable reply over UDP")

func (h *host) overUDP(ctx context.Context, query *dns.Msg, wire []byte, n *counters) (*dns.Msg, error) {
	var d net.Dialer
	// Connected, the socket takes datagrams from the server alone.
	conn, err := d.DialContext(ctx, "udp", h.Address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer watch(ctx, conn)()
	if _, err := conn.Write(wire); err != nil {
		return nil, inTime(ctx, err)
	}
	// What we announce, and some more for servers that do not look at it.
	var buf [4096]byte
	for range maxForeign {
		size, err := conn.Read(buf[:])
		if err != nil {
			return nil, inTime(ctx, err)
		}
		m, err := parseReply(query, buf[:size])
		if err == nil {
			return m, nil
		}
		n.foreign.Add(1)
		if !errors.Is(err, errForeign) {
			return nil, fmt.Errorf("%w: %w", errUseTCP, err)
		}
	}
	return nil, errUseTCP
}

// watch makes what waits on the connection fail when the context ends. The function that
// it returns ends the watch, and tells whether the connection was left alone.
func watch(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

// inTime says that the time is over where the connection's error only follows from that.
func inTime(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no reply in time: %w", ctx.Err())
	}
	return err
}

// overStream uses a stream that is idle, or a new one. A server may close an idle stream
// at any time, so that one which fails says nothing about the server.
func (h *host) overStream(ctx context.Context, query *dns.Msg, wire []byte) (*dns.Msg, error) {
	if s := h.takeIdle(); s != nil {
		if m, err := h.talk(ctx, s, query, wire); err == nil || ctx.Err() != nil {
			return m, err
		}
	}
	s, err := h.dial(ctx)
	if err != nil {
		return nil, inTime(ctx, err)
	}
	return h.talk(ctx, s, query, wire)
}

func (h *host) dial(ctx context.Context) (*stream, error) {
	network := "tcp"
	if h.Network == "unix" {
		network = "unix"
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, h.Address)
	if err != nil || h.tls == nil {
		return &stream{Conn: conn}, err
	}
	secured := tls.Client(conn, h.tls)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return &stream{Conn: secured}, nil
}

// talk sends the query on a stream and reads the reply. It keeps the stream if it can
// serve again, and closes it otherwise.
func (h *host) talk(ctx context.Context, s *stream, query *dns.Msg, wire []byte) (*dns.Msg, error) {
	stop := watch(ctx, s)
	m, err := transact(s, query, wire)
	untouched := stop()
	if err != nil {
		s.Close()
		return nil, inTime(ctx, err)
	}
	if !untouched || !h.keep(s) {
		s.Close()
	}
	return m, nil
}

// transact is one query and one reply in the framing of RFC 1035, Section 4.2.2.
func transact(conn io.ReadWriter, query *dns.Msg, wire []byte) (*dns.Msg, error) {
	// In one write, as RFC 7766, Section 8 asks.
	frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(wire)), uint16(len(wire)))
	if _, err := conn.Write(append(frame, wire...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	return parseReply(query, buf)
}

// takeIdle returns an idle stream, nil if there is none.
func (h *host) takeIdle() *stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.idle) > 0 {
		s := h.idle[len(h.idle)-1]
		h.idle = h.idle[:len(h.idle)-1]
		if s.expiry.Stop() {
			return s
		} // else it is being closed just now
	}
	return nil
}

// keep puts a stream back. It is false if there is no room.
func (h *host) keep(s *stream) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.idle) >= maxIdle {
		return false
	}
	s.expiry = time.AfterFunc(idleTime, func() { h.expire(s) })
	h.idle = append(h.idle, s)
	return true
}

// expire closes a stream that nobody used.
func (h *host) expire(s *stream) {
	h.mu.Lock()
	for i := range h.idle {
		if h.idle[i] == s {
			h.idle = append(h.idle[:i], h.idle[i+1:]...)
			break
		}
	}
	h.mu.Unlock()
	s.Close()
}

// close closes the idle streams; none is kept from now on.
func (h *host) close() {
	if h.web != nil {
		h.web.CloseIdleConnections()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, s := range h.idle {
		s.expiry.Stop()
		s.Close()
	}
	h.idle = nil
}
