package lab_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

func TestMain(m *testing.M) { leak.Main(m) }

// TestWorld looks at a small world with other eyes than ours where that is possible: what
// unbound says of the zones, and what a client meets at the hosts.
func TestWorld(t *testing.T) {
	if !lab.Enter(t) {
		return
	}
	testWorld(t)
}

// TestHighPorts is the same where there are no namespaces.
func TestHighPorts(t *testing.T) {
	t.Setenv("LAB_NAMESPACE", "none")
	if !lab.Enter(t) {
		t.Fatal("Enter made a namespace")
	}
	testWorld(t)
}

func testWorld(t *testing.T) {
	w := lab.New(t)
	w.Zone("test", lab.Signed)
	secure := w.Zone("secure.test", lab.Signed)
	w.Zone("plain.test", lab.Insecure).Add("@ MX 10 mx.secure.test.")
	w.Zone("bogus.test", lab.Bogus).Add("@ MX 10 mx.secure.test.")
	w.Zone("lame.test", lab.Lame)
	secure.Add("@ MX 10 mx", "alias CNAME mx", "*.wild A 127.0.0.9", "flipped TXT wrong", "bare TXT unsigned", "deep.er TXT ok", "changing 0 TXT before", "out CNAME plain.test.")
	secure.Break("flipped", dns.TypeTXT)
	secure.Unsign("bare", dns.TypeTXT)
	leaf := w.Authority.Leaf(t, "mx.secure.test")
	mx := w.Host("mx.secure.test", lab.HostOptions{Certificate: leaf.Chain()})
	secure.TLSA("mx", "3 1 1", leaf)
	refusing := w.Host("refusing.secure.test", lab.HostOptions{Certificate: leaf.Chain(), StartTLS: "454 4.7.0 not now"})
	w.Host("closed.secure.test", lab.HostOptions{Closed: true})
	policy := w.Policy("secure.test", lab.PolicyOptions{ID: "1", Body: "version: STSv1\n"})
	w.Start()

	t.Run("dns", func(t *testing.T) {
		for _, tt := range []struct {
			name      string
			typ       resolver.Type
			kind      error // nil: there is an answer
			authentic bool
		}{
			{".", resolver.TypeNS, nil, true},
			{"secure.test", resolver.TypeMX, nil, true},
			{"mx.secure.test", resolver.TypeA, nil, true},
			{"alias.secure.test", resolver.TypeA, nil, true},
			{"_25._tcp.mx.secure.test", resolver.TypeTLSA, nil, true},
			{"x.wild.secure.test", resolver.TypeA, nil, true},
			{"none.secure.test", resolver.TypeA, resolver.ErrNoName, true},
			{"_25._tcp.none.secure.test", resolver.TypeTLSA, resolver.ErrNoName, true},
			{"er.secure.test", resolver.TypeTXT, resolver.ErrNoData, true}, // an empty non-terminal
			{"mx.secure.test", resolver.TypeAAAA, resolver.ErrNoData, true},
			{"flipped.secure.test", resolver.TypeTXT, resolver.ErrBogus, false},
			{"bare.secure.test", resolver.TypeTXT, resolver.ErrBogus, false},
			{"plain.test", resolver.TypeMX, nil, false},
			{"plain.test", resolver.TypeTXT, resolver.ErrNoData, false},
			{"out.secure.test", resolver.TypeMX, nil, false}, // the tail is insecure
			{"out.secure.test", resolver.TypeCNAME, nil, true},
			{"bogus.test", resolver.TypeMX, resolver.ErrBogus, false},
			{"lame.test", resolver.TypeMX, resolver.ErrTemporary, false},
			{"none.test", resolver.TypeMX, resolver.ErrNoName, true},
			{"none", resolver.TypeMX, resolver.ErrNoName, true},
		} {
			t.Run(tt.name+"/"+tt.typ.String(), func(t *testing.T) {
				t.Parallel()
				a, err := w.DNS.Lookup(t.Context(), tt.name, tt.typ)
				authentic := a.Authentic
				if e := (*resolver.Error)(nil); errors.As(err, &e) {
					authentic = e.Authentic
				}
				if !errors.Is(err, tt.kind) || authentic != tt.authentic {
					t.Errorf("got %v, error %v, authentic %v; want error %v, authentic %v", a.Records, err, authentic, tt.kind, tt.authentic)
				}
			})
		}
	})

	t.Run("update", func(t *testing.T) {
		look := func(want string) {
			t.Helper()
			m := new(dns.Msg)
			m.SetQuestion("changing.secure.test.", dns.TypeTXT)
			m.SetEdns0(1232, true)
			reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), m, w.Resolver)
			if err != nil || len(reply.Answer) == 0 || !reply.AuthenticatedData || !strings.Contains(reply.Answer[0].String(), want) {
				t.Fatalf("got %v, error %v, want %s, authenticated", reply, err, want)
			}
		}
		look("before")
		secure.Remove("changing", dns.TypeTXT)
		secure.Add("changing 0 TXT after")
		w.Update(t, secure)
		look("after")
	})

	t.Run("mail", func(t *testing.T) {
		c := dial(t, w, mx)
		if err := c.StartTLS(t.Context(), &tls.Config{ServerName: "mx.secure.test", RootCAs: w.Authority.Pool()}); err != nil {
			t.Fatal(err)
		}
		send(t, c)
		m := mx.Wait(t, 1)[0]
		if m.Helo != "client.test" || m.From.Path.String() != "a@client.test" || len(m.To) != 1 || string(m.Content) != "Subject: hello\r\n\r\nhello\r\n" || m.TLS == nil {
			t.Errorf("got %+v", m)
		}
		if names := mx.ServerNames(); len(names) != 1 || names[0] != "mx.secure.test" || mx.Connections() != 1 {
			t.Errorf("got SNI %q in %d connections", names, mx.Connections())
		}
	})

	t.Run("spoiled", func(t *testing.T) {
		c := dial(t, w, refusing)
		err := c.StartTLS(t.Context(), &tls.Config{InsecureSkipVerify: true})
		if r := smtp.ReplyOf(err); err == nil || r.Code != 454 {
			t.Fatalf("got %v, want 454", err)
		}
		send(t, c) // in clear text
		if m := refusing.Wait(t, 1)[0]; m.TLS != nil {
			t.Error("got TLS")
		}
	})

	t.Run("policy", func(t *testing.T) {
		web := &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return w.Dial(ctx, network, strings.Replace(addr, "mta-sts.secure.test", "127.0.128.1", 1))
			},
			TLSClientConfig:   &tls.Config{RootCAs: w.Authority.Pool()},
			DisableKeepAlives: true,
		}}
		r, err := web.Get("https://mta-sts.secure.test/.well-known/mta-sts.txt")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != "version: STSv1\n" || policy.Requests() != 1 {
			t.Errorf("got %q, error %v, after %d requests", body, err, policy.Requests())
		}
	})
}

// dial connects to a host and says EHLO.
func dial(t *testing.T, w *lab.World, h *lab.Host) *smtp.Client {
	t.Helper()
	nc, err := w.Dial(t.Context(), "tcp", net.JoinHostPort(h.Addr.String(), "25"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	c, err := smtp.NewClient(t.Context(), nc, smtp.ClientOptions{LocalName: "client.test"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// send sends one message.
func send(t *testing.T, c *smtp.Client) {
	t.Helper()
	from, err := smtp.ParseAddress("a@client.test")
	if err != nil {
		t.Fatal(err)
	}
	to, err := smtp.ParseAddress("b@secure.test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Envelope(t.Context(), smtp.Sender{Path: from}, []smtp.Recipient{{Path: to}}); err != nil {
		t.Fatal(err)
	}
	if replies, err := c.Data(t.Context(), strings.NewReader("Subject: hello\r\n\r\nhello\r\n")); err != nil || replies[0].Code != 250 {
		t.Fatalf("got %v, error %v", replies, err)
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Fatal(err)
	}
}
