package certs

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds each connection of these tests; none comes near it.
const patience = 30 * time.Second

// converse runs both ends of one connection in this process and returns the client's
// error. With starttls the handshake follows a dialogue in clear text on the same
// connection. A reply after the handshake proves that data passes, and lets the client
// read the session tickets, without which a server on a pipe would wait.
func converse(server, client *tls.Config, starttls bool, wrap func(net.Conn) net.Conn) error {
	near, far := net.Pipe()
	deadline := time.Now().Add(patience)
	near.SetDeadline(deadline)
	far.SetDeadline(deadline)
	served := make(chan error, 1)
	go func() {
		defer far.Close()
		served <- serve(far, server, starttls)
	}()
	err := greet(wrap(near), client, starttls)
	near.Close()
	if serveErr := <-served; err == nil {
		err = serveErr
	}
	return err
}

func serve(conn net.Conn, config *tls.Config, starttls bool) error {
	if starttls {
		if err := expect(conn, "220 mx1.example.test\r\n", "EHLO client.test\r\n"); err != nil {
			return err
		}
		if err := expect(conn, "250-mx1.example.test\r\n250 STARTTLS\r\n", "STARTTLS\r\n"); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("220 2.0.0 go ahead\r\n")); err != nil {
			return err
		}
	}
	secure := tls.Server(conn, config)
	if err := secure.Handshake(); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	_, err := secure.Write([]byte("220 secure\r\n"))
	return err
}

// expect says something and reads the answer.
func expect(conn net.Conn, say, want string) error {
	if _, err := conn.Write([]byte(say)); err != nil {
		return err
	}
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		m, err := conn.Read(got[n:])
		if err != nil {
			return err
		}
		n += m
	}
	if string(got) != want {
		return fmt.Errorf("server read %q, want %q", got, want)
	}
	return nil
}

func greet(conn net.Conn, config *tls.Config, starttls bool) error {
	if starttls {
		lines := bufio.NewReader(conn)
		for _, step := range []struct{ last, answer string }{
			{"220 mx1.example.test", "EHLO client.test\r\n"},
			{"250 STARTTLS", "STARTTLS\r\n"},
			{"220 2.0.0 go ahead", ""},
		} {
			if err := readUntil(lines, step.last); err != nil {
				return err
			}
			if step.answer == "" {
				break // not even an empty Write: on a pipe it would wait for a reader
			}
			if _, err := conn.Write([]byte(step.answer)); err != nil {
				return err
			}
		}
	}
	secure := tls.Client(conn, config)
	if err := secure.Handshake(); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	return readUntil(bufio.NewReader(secure), "220 secure")
}

// readUntil reads lines up to the last one of a reply.
func readUntil(r *bufio.Reader, last string) error {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.TrimRight(line, "\r\n") == last {
			return nil
		}
	}
}

func plain(c net.Conn) net.Conn { return c }

// shown does a handshake that trusts anything and returns the certificate that the
// server showed, if it came to that.
func shown(config *tls.Config, client *tls.Config, starttls bool, wrap func(net.Conn) net.Conn) (*x509.Certificate, error) {
	var leaf *x509.Certificate
	client.InsecureSkipVerify = true
	client.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) (err error) {
		leaf, err = x509.ParseCertificate(raw[0])
		return err
	}
	err := converse(config, client, starttls, wrap)
	return leaf, err
}

func TestHandshakes(t *testing.T) {
	s := openFiles(t,
		spec{label: "mx", names: []string{"mx1.example.test"}, key: rsaKey()},
		spec{label: "wild", names: []string{"*.example.test"}},
		spec{label: "idn", names: []string{"xn--mnchen-3ya.test"}})
	for _, starttls := range []bool{true, false} {
		for _, alpn := range [][]string{nil, {"smtp"}, {"acme-tls/1"}} { // the last must not lead anywhere on a mail port
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				for _, tc := range []struct{ sni, want string }{
					{"mx1.example.test", "mx"},
					{"MX1.example.TEST", "mx"},          // upper case
					{"mx2.example.test", "wild"},        // wildcard
					{"xn--mnchen-3ya.test", "idn"},      // A-label
					{"münchen.test", "idn"},             // U-label, as bytes of UTF-8
					{"unknown.test", "mx"},              // unknown
					{"_25._tcp.mx1.example.test", "mx"}, // underscore
					{"my_host.example.test", "mx"},      // underscore below a wildcard
					{"", "mx"},                          // none
					{"192.0.2.1", "mx"},                 // crypto/tls sends none for an address
				} {
					client := &tls.Config{ServerName: tc.sni, NextProtos: alpn, MaxVersion: version}
					leaf, err := shown(s.ServerConfig(), client, starttls, plain)
					if err != nil || labelOf(leaf) != tc.want {
						t.Errorf("starttls=%v alpn=%q %s SNI %q: got %v, %v; want %s",
							starttls, alpn, tls.VersionName(version), tc.sni, leaf, err, tc.want)
					}
				}
			}
		}
	}
}

// A forger replaces the name in the ClientHello by one that crypto/tls would not send.
type forger struct {
	net.Conn
	from, to []byte
}

func (f forger) Write(p []byte) (int, error) {
	return f.Conn.Write(bytes.ReplaceAll(p, f.from, f.to))
}

// A forged hello breaks the handshake at its last message, since that covers all bytes
// sent. By then a TLS 1.2 client has seen the server's certificate, which is what counts.
func TestForgedNamesGetTheDefault(t *testing.T) {
	s := openFiles(t, spec{label: "mx", names: []string{"mx1.example.test"}},
		spec{label: "other", names: []string{"other.test", "*.other.test"}})
	for _, sni := range []string{
		"192.0.2.1",              // address
		"[2001:db8::1]",          // address
		"mx1..example.test",      // empty label
		".other.test",            // empty label
		"-mx-.other.test",        // hyphens
		"a b.other.test",         // space
		"mx1\x00.other.test",     // NUL
		"\xff\xfe\xfd.test",      // not UTF-8
		"*.other.test",           // wildcard
		"\r\nSTARTTLS\r\n",       // line ends
		strings.Repeat("a", 300), // long label
	} {
		stand := strings.Repeat("q", len(sni))
		forge := func(c net.Conn) net.Conn { return forger{c, []byte(stand), []byte(sni)} }
		client := &tls.Config{ServerName: stand, MaxVersion: tls.VersionTLS12}
		leaf, err := shown(s.ServerConfig(), client, false, forge)
		if leaf == nil || labelOf(leaf) != "mx" {
			t.Errorf("SNI %.40q: got %v, %v; want the default certificate", sni, leaf, err)
		}
	}
}

func TestDefaultPoolVerifiesOurselves(t *testing.T) {
	for _, o := range []Options{
		{Hostname: "mx1.example.test"},
		{Hostname: "MÜNCHEN.test."},
		{Hostname: "mx1.example.test", Dir: t.TempDir()},
		{Hostname: "localhost", Files: []File{put(t, t.TempDir(), spec{label: "file", names: []string{"localhost"}})}},
		{Hostname: strings.Repeat("long.", 30) + "test"}, // no common name
	} {
		s := open(t, o)
		client := &tls.Config{ServerName: s.Names()[0], RootCAs: s.DefaultPool()}
		if err := converse(s.ServerConfig(), client, true, plain); err != nil {
			t.Errorf("%+v: handshake verified against DefaultPool: %v", o, err)
		}
	}
}

func TestMinVersion(t *testing.T) {
	for _, tc := range []struct {
		min, client uint16
		ok          bool
	}{
		{0, tls.VersionTLS11, false},
		{0, tls.VersionTLS12, true},
		{tls.VersionTLS10, tls.VersionTLS10, true},
		{tls.VersionTLS13, tls.VersionTLS12, false},
	} {
		s := open(t, Options{Hostname: "mx1.example.test", MinVersion: tc.min})
		client := &tls.Config{MinVersion: tc.client, MaxVersion: tc.client}
		if _, err := shown(s.ServerConfig(), client, false, plain); (err == nil) != tc.ok {
			t.Errorf("minimum %#x, client %#x: %v; want success: %v", tc.min, tc.client, err, tc.ok)
		}
	}
}

func TestSessionsAreResumed(t *testing.T) {
	s := open(t, Options{Hostname: "mx1.example.test"})
	client := &tls.Config{
		ServerName: "mx1.example.test", RootCAs: s.DefaultPool(),
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	var resumed []bool
	client.VerifyConnection = func(c tls.ConnectionState) error {
		resumed = append(resumed, c.DidResume)
		return nil
	}
	for _, starttls := range []bool{true, false} { // a ticket from one kind of port serves on the other
		if err := converse(s.ServerConfig(), client, starttls, plain); err != nil {
			t.Fatal(err)
		}
	}
	if len(resumed) != 2 || resumed[0] || !resumed[1] {
		t.Errorf("resumed: %v, want [false true]", resumed)
	}
}

// While files change under it, some of them broken in between, each handshake gets one
// of the certificates that were in the file, and never the default or an error.
func TestReloadUnderHandshakes(t *testing.T) {
	const clients, rounds = 4, 40
	dir := t.TempDir()
	f := put(t, dir, spec{label: "busy", names: []string{"busy.test"}, notAfter: day(1)})
	s := open(t, Options{Hostname: "mx1.example.test", Dir: dir, Files: []File{f}})

	errs := make(chan error, clients)
	var wait sync.WaitGroup
	for i := range clients {
		wait.Go(func() {
			for range rounds {
				client := &tls.Config{ServerName: "busy.test"}
				leaf, err := shown(s.ServerConfig(), client, i%2 == 0, plain)
				if err != nil || labelOf(leaf) != "busy" {
					errs <- fmt.Errorf("got %v, %w", leaf, err)
					return
				}
				s.Names()
				s.DefaultPool()
			}
		})
	}
	done := make(chan struct{})
	go func() { wait.Wait(); close(done) }()
	changes := 0
	for running := true; running || changes < 3; changes++ {
		select {
		case <-done:
			running = false
		default:
		}
		if changes%3 == 2 {
			write(t, f.Cert, []byte("half a certif"))
			if err := s.Reload(); err == nil {
				t.Error("Reload of a broken file: no error")
			}
			continue
		}
		put(t, dir, spec{label: "busy", names: []string{"busy.test"}, notAfter: day(2 + changes)})
		if err := s.Reload(); err != nil {
			t.Errorf("Reload: %v", err)
		}
	}
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	put(t, dir, spec{label: "last", names: []string{"busy.test"}})
	last := File{dir + "/last.crt", dir + "/last.key"}
	if err := errors.Join(os.Rename(last.Cert, f.Cert), os.Rename(last.Key, f.Key), s.Reload()); err != nil {
		t.Fatal(err)
	}
	if got := chosen(t, s, hello("busy.test")); got != "last" {
		t.Errorf("after %d changes and the last Reload: got %s, want last", changes, got)
	}
}
