package mtasts

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/testnet"
)

// rig_test.go: domains, their policy hosts in memory, and a store that can fail.

// authority issues certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	a := &authority{key: key, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	a.cert, err = x509.ParseCertificate(der)
	check(t, err)
	a.pool.AddCert(a.cert)
	return a
}

// issue returns a certificate; change may change what it says.
func (a *authority) issue(t testing.TB, change func(*x509.Certificate), names ...string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(5, 0, 0),
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.key.Public(), a.key)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// policyHost is a policy host at an address.
type policyHost struct {
	cert tls.Certificate
	// serve is given a connection on which the client said something; what it says itself
	// is all that is sent.
	serve func(conn net.Conn, req *http.Request)
	// refuse is the error of connecting.
	refuse error
}

// rig is a Cache in a world of its own. It is used in a bubble of synctest.
type rig struct {
	t     testing.TB
	dns   *testnet.DNS
	ca    *authority
	opt   Options
	cache *Cache
	log   *logged

	mu    sync.Mutex
	hosts map[string]*policyHost // by address
	asked []string               // of the hosts
	conns sync.WaitGroup
}

// newRig returns a rig with the domain example.com, whose record and policy host are to be
// set. change may change the options.
func newRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, dns: testnet.NewDNS(""), ca: newAuthority(t), log: new(logged), hosts: make(map[string]*policyHost)}
	r.opt = Options{DNS: r.dns, RootCAs: r.ca.pool, Dial: r.dial, Store: newStore(), Log: slog.New(slog.NewTextHandler(r.log, nil))}
	if change != nil {
		change(&r.opt)
	}
	r.cache = r.another()
	return r
}

// another returns a cache with the same options.
func (r *rig) another() *Cache {
	r.t.Helper()
	c, err := New(r.opt)
	check(r.t, err)
	r.t.Cleanup(func() {
		c.Close()
		r.conns.Wait()
	})
	return c
}

const (
	hostAddr = "8.8.4.4"
	hostZone = "mta-sts.example.com A " + hostAddr + "\n"
)

// record sets the record of example.com: an id, or lines of a zone.
func (r *rig) record(id string) {
	if !strings.Contains(id, " ") && id != "" {
		id = "_mta-sts.example.com TXT v=STSv1; id=" + id
	}
	r.dns.Set(hostZone + id)
}

// policy sets the policy of example.com.
func (r *rig) policy(mode Mode, maxAge time.Duration) {
	body := fmt.Sprintf("version: STSv1\r\nmode: %s\r\nmx: mx.example.com\r\nmax_age: %d\r\n", mode, maxAge/time.Second)
	r.host(&policyHost{cert: r.ca.issue(r.t, nil, "mta-sts.example.com"), serve: answer(body)})
}

func (r *rig) host(h *policyHost) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts[hostAddr] = h
}

// fail makes the policy host fail.
func (r *rig) fail() { r.host(&policyHost{refuse: errRefused}) }

var errRefused = errors.New("connection refused")

// answer is a response with a policy.
func answer(body string) func(net.Conn, *http.Request) {
	return say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
}

// say is a response of these octets.
func say(octets string) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) { io.WriteString(conn, octets) }
}

func (r *rig) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || network != "tcp" || port != "443" {
		return nil, fmt.Errorf("dial %s %s", network, address)
	}
	r.mu.Lock()
	h := r.hosts[host]
	r.asked = append(r.asked, host)
	r.mu.Unlock()
	if h == nil || h.refuse != nil {
		return nil, errRefused
	}
	ours, theirs := net.Pipe()
	r.conns.Go(func() { h.talk(theirs) })
	return ours, nil
}

func (h *policyHost) talk(conn net.Conn) {
	defer conn.Close()
	if h.cert.Certificate == nil {
		h.serve(conn, nil) // no TLS
		return
	}
	secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{h.cert}})
	req, err := http.ReadRequest(bufio.NewReader(secure))
	if err != nil {
		return
	}
	h.serve(secure, req)
	secure.Close()
}

// connects returns the policy hosts that were connected to since the last call.
func (r *rig) connects() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.asked
	r.asked = nil
	return asked
}

// fetches returns how many they are.
func (r *rig) fetches() int { return len(r.connects()) }

func (r *rig) lookup() Result {
	r.t.Helper()
	return r.cache.Lookup(context.Background(), "example.com")
}

// logged is a log.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// take returns what was logged since the last call.
func (l *logged) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return l.text.String()
}

// mapStore is a Store that can fail.
type mapStore struct {
	mu   sync.Mutex
	all  map[string]Stored
	fail error
}

func newStore() *mapStore { return &mapStore{all: make(map[string]Stored)} }

// size is how many domains there are.
func (s *mapStore) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

func (s *mapStore) broken(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *mapStore) Get(_ context.Context, domain string) (Stored, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.all[domain]
	return one, ok && s.fail == nil, s.fail
}

func (s *mapStore) Put(_ context.Context, one Stored) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.all[one.Domain] = one
	}
	return s.fail
}

func (s *mapStore) Delete(_ context.Context, domain string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		delete(s.all, domain)
	}
	return s.fail
}

func (s *mapStore) Each(_ context.Context, before time.Time, yield func(Stored) bool) error {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.all))
	err := s.fail
	s.mu.Unlock()
	for _, one := range all {
		if one.Refresh.Before(before) && !yield(one) {
			break
		}
	}
	return err
}

// in runs a test with a rig in a bubble, where an hour takes no time.
func in(t *testing.T, change func(*Options), test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newRig(t, change)) })
}
