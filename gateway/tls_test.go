package gateway

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// tls_test.go: what a listener asks of its clients' TLS, with STARTTLS as with implicit TLS.

// TestClientTLS: versions and certificates of clients.
func TestClientTLS(t *testing.T) {
	parity.Row(t, "SS-19", "SS-21", "SS-22", "SS-53")
	ours, theirs := newAuthority(t), newAuthority(t)
	staple := []byte("good until tomorrow")
	old := func(c *tls.Config) *tls.Config { c.MaxVersion = tls.VersionTLS12; return c }
	for _, c := range []struct {
		name     string
		listener Listener
		client   *tls.Config
		peer     bool // the filters see the certificate's subject
		verified bool // and the certificate counts
		fails    bool
	}{
		{"nothing asked", Listener{}, ours.client(t, ann), false, false, false},
		{"asked, none there", Listener{ClientAuth: tls.RequestClientCert}, ours.client(t, ""), false, false, false},
		{"asked", Listener{ClientAuth: tls.RequestClientCert}, stranger(ours, theirs.client(t, ann)), true, false, false},
		{"any required", Listener{ClientAuth: tls.RequireAnyClientCert}, stranger(ours, theirs.client(t, ann)), true, false, false},
		{"any required, none there", Listener{ClientAuth: tls.RequireAnyClientCert}, ours.client(t, ""), false, false, true},
		{"checked", Listener{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ours.pool()}, ours.client(t, ann), true, true, false},
		{"checked, none there", Listener{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ours.pool()}, ours.client(t, ""), false, false, false},
		{"checked and not good", Listener{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ours.pool()}, stranger(ours, theirs.client(t, ann)), false, false, true},
		{"required and checked", Listener{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool()}, ours.client(t, ann), true, true, false},
		{"required and checked, none there", Listener{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool()}, ours.client(t, ""), false, false, true},
		{"lowest version", Listener{MinTLS: tls.VersionTLS13}, ours.client(t, ""), false, false, false},
		{"older than that", Listener{MinTLS: tls.VersionTLS13}, old(ours.client(t, "")), false, false, true},
	} {
		for _, mode := range []TLSMode{TLSStart, TLSImplicit} {
			t.Run(c.name+", "+string(mode), func(t *testing.T) {
				var seen policy.TLS
				asked := 0
				l := c.listener
				l.TLS = mode
				l.Logins = Logins{Credentials: newUsers(t).credentials, Mechanisms: []string{"EXTERNAL"}}
				r := &rig{listener: l, links: []policy.Link{filter("look", policy.StageSecure, func(e *policy.Event) policy.Verdict {
					seen, asked = *e.Session.TLS, asked+1
					return policy.Verdict{}
				})}}
				r.options = func(o *Options) {
					o.TLS = ours.server(t)
					o.TLS.Certificates[0].OCSPStaple = staple
				}
				r.start(t)
				state, mechanisms, err := r.shake(t, mode, c.client)
				if (err != nil) != c.fails {
					t.Fatalf("got %v, want an error: %v", err, c.fails)
				}
				if c.fails {
					r.stop(t)
					if asked > 0 {
						t.Error("filters were asked about a handshake that failed")
					}
					return
				}
				if string(state.OCSPResponse) != string(staple) {
					t.Errorf("stapled: got %q", state.OCSPResponse)
				}
				if (len(mechanisms) > 0) != c.verified {
					t.Errorf("offered: got %q, want EXTERNAL with a certificate that was checked alone", mechanisms)
				}
				r.stop(t)
				if asked != 1 || seen.Version != state.Version || seen.Cipher != state.CipherSuite || seen.ServerName != testHost || (seen.Peer != "") != c.peer {
					t.Errorf("filters saw %+v, %d times", seen, asked)
				}
			})
		}
	}
}

// stranger is a client that trusts a, with the certificate of another authority.
func stranger(a *authority, c *tls.Config) *tls.Config {
	c.RootCAs = a.pool()
	return c
}

// shake does the handshake, and says EHLO behind it.
func (r *rig) shake(t *testing.T, mode TLSMode, config *tls.Config) (tls.ConnectionState, []string, error) {
	t.Helper()
	nc, err := net.Dial("tcp", r.gw.Addr("mx").String())
	if err != nil {
		t.Fatal(err)
	}
	if mode == TLSImplicit {
		nc = tls.Client(nc, config)
	}
	defer nc.Close()
	c, err := smtp.NewClient(t.Context(), nc, smtp.ClientOptions{LocalName: "client.test"})
	if err == nil && mode == TLSStart {
		err = c.StartTLS(t.Context(), config)
	}
	if err != nil {
		return tls.ConnectionState{}, nil, err
	}
	st, _ := c.TLS()
	return st, c.Mechanisms(), c.Quit(t.Context())
}
