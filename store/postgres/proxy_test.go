package postgres

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxy stands between a store and its database. It passes messages of the protocol on one by
// one, and can break off at a moment that matters.
type proxy struct {
	backend string
	ln      net.Listener
	wg      sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu
	gate  chan struct{}         // guarded by mu: not nil while nothing passes; closed to open
	trap  *trap                 // guarded by mu
}

// trap cuts a connection at the end of the first pipeline with a statement that has a text.
type trap struct {
	text   string
	after  bool          // the database gets the end of the pipeline, and its answer is lost
	closed bool          // from then on nothing passes, until the gate is opened
	sprung chan struct{} // closed when it has happened
}

func newProxy(t testing.TB, backend string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{backend: backend, ln: ln, conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		ln.Close()
		p.open()
		p.cut()
		p.wg.Wait()
	})
	return p
}

// url leads a URL to the proxy.
func (p *proxy) url(t testing.TB, to string) string {
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = p.ln.Addr().String()
	return u.String()
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// hold lets nothing pass until open is called.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gate == nil {
		p.gate = make(chan struct{})
	}
}

func (p *proxy) open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gate != nil {
		close(p.gate)
		p.gate = nil
	}
}

// pass waits while the gate is closed.
func (p *proxy) pass() {
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

func (p *proxy) set(tr trap) *trap {
	tr.sprung = make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trap = &tr
	return &tr
}

func (p *proxy) serve() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.relay(c) })
	}
}

// keep remembers a connection, to be cut.
func (p *proxy) keep(c net.Conn) func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
	return func() {
		c.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}
}

func (p *proxy) relay(client net.Conn) {
	defer p.keep(client)()
	p.pass()
	server, err := net.Dial("tcp", p.backend)
	if err != nil {
		return
	}
	defer p.keep(server)()
	lose := make(chan *trap, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		p.answers(server, client, lose)
		client.Close()
		server.Close()
	})
	p.requests(client, server, lose)
	client.Close()
	server.Close()
	wg.Wait()
}

// frame reads a message: its type, unless it is the first of a connection, its length, and the
// rest.
func frame(r *bufio.Reader, first bool) ([]byte, error) {
	head := 5
	if first {
		head = 4
	}
	b, err := r.Peek(head)
	if err != nil {
		return nil, err
	}
	b = make([]byte, int(binary.BigEndian.Uint32(b[head-4:]))+head-4)
	_, err = io.ReadFull(r, b)
	return b, err
}

// requests passes what the client says, and looks for the trap.
func (p *proxy) requests(client, server net.Conn, lose chan<- *trap) {
	r := bufio.NewReader(client)
	statements := make(map[string]string)
	var caught *trap
	for first := true; ; first = false {
		b, err := frame(r, first)
		if err != nil {
			return
		}
		p.pass()
		switch {
		case first:
		case b[0] == 'P': // Parse: the name of a statement and its text
			name, rest, _ := bytes.Cut(b[5:], []byte{0})
			text, _, _ := bytes.Cut(rest, []byte{0})
			statements[string(name)] = string(text)
		case b[0] == 'B': // Bind: the name of a portal and that of a statement
			_, rest, _ := bytes.Cut(b[5:], []byte{0})
			name, _, _ := bytes.Cut(rest, []byte{0})
			if tr := p.trapFor(statements[string(name)]); tr != nil {
				caught = tr
			}
		case b[0] == 'S' && caught != nil: // Sync, which commits
			if !caught.after {
				p.spring(caught)
				return
			}
			lose <- caught
		}
		if _, err := server.Write(b); err != nil {
			return
		}
	}
}

func (p *proxy) trapFor(text string) *trap {
	p.mu.Lock()
	defer p.mu.Unlock()
	if tr := p.trap; tr != nil && strings.Contains(text, tr.text) {
		p.trap = nil
		return tr
	}
	return nil
}

func (p *proxy) spring(tr *trap) {
	if tr.closed {
		p.hold()
	}
	close(tr.sprung)
}

// answers passes what the server says, until what it says is to be lost: then it waits for
// the end of the transaction.
func (p *proxy) answers(server, client net.Conn, lose <-chan *trap) {
	r := bufio.NewReader(server)
	var lost *trap
	for {
		b, err := frame(r, false)
		if err != nil {
			return
		}
		p.pass()
		if lost == nil {
			select {
			case lost = <-lose:
			default:
			}
		}
		if lost != nil {
			if b[0] == 'Z' { // ReadyForQuery
				p.spring(lost)
				return
			}
			continue
		}
		if _, err := client.Write(b); err != nil {
			return
		}
	}
}

// delayed is a proxy that passes all octets on some time later.
func delayed(t testing.TB, backend string, delay time.Duration) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{backend: backend, ln: ln, conns: make(map[net.Conn]struct{})}
	p.wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() {
				defer p.keep(client)()
				server, err := net.Dial("tcp", backend)
				if err != nil {
					return
				}
				defer p.keep(server)()
				var wg sync.WaitGroup
				wg.Go(func() { later(server, client, delay); server.Close() })
				io.Copy(client, server)
				client.Close()
				server.Close()
				wg.Wait()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

// later copies with a delay, which does not make the line narrower.
func later(to, from net.Conn, delay time.Duration) {
	type piece struct {
		b   []byte
		due time.Time
	}
	pieces := make(chan piece, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range pieces {
			t := time.NewTimer(time.Until(p.due))
			<-t.C
			if _, err := to.Write(p.b); err != nil {
				from.Close()
			}
		}
	})
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if n > 0 {
			pieces <- piece{b[:n], time.Now().Add(delay)}
		}
		if err != nil {
			break
		}
	}
	close(pieces)
	wg.Wait()
}
