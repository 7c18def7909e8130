package delivery

import (
	"crypto/tls"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// told is a short form of Offers.
func told(tr *Transport, backend string) string {
	o, known := tr.Offers(backend)
	if !known {
		return "unknown"
	}
	return fmt.Sprintf("dsn %v binary %v tls %v utf8 %v 8bit %v size %d",
		o.Extensions.DSN, o.Extensions.BinaryMIME, o.Extensions.RequireTLS, o.UTF8, o.EightBit, o.MaxSize)
}

// Real mail teaches what a backend offers; what is old is not believed.
func TestOffers(t *testing.T) {
	f := &fake{ehlo: []string{"DSN", "8BITMIME", "SIZE 1000"}}
	const all = "dsn true binary false tls false utf8 false 8bit true size 1000"
	bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, _ *network) {
		check(t, "no such backend", told(tr, "c"), "unknown")
		check(t, "before any mail", told(tr, "b"), "unknown")
		send(t, tr)
		check(t, "after mail", told(tr, "b"), all)
		time.Sleep(offersAge - time.Second)
		check(t, "later", told(tr, "b"), all)
		time.Sleep(time.Second)
		check(t, "too late", told(tr, "b"), "unknown")
		send(t, tr)
		check(t, "after more mail", told(tr, "b"), all)
	})
}

// Mail goes to any endpoint, so that what one of them lacks is lacking.
func TestOffersOfAll(t *testing.T) {
	a := &fake{ehlo: []string{"DSN", "CHUNKING", "BINARYMIME", "SMTPUTF8", "SIZE 5000"}}
	b := &fake{ehlo: []string{"DSN", "SMTPUTF8", "8BITMIME", "SIZE 3000"}}
	bubble(t, a, b, one(hostA, hostB), func(t *testing.T, tr *Transport, n *network) {
		send(t, tr)
		check(t, "first", told(tr, "b"), "dsn true binary true tls false utf8 true 8bit false size 5000")
		n.set("a:25", nil)
		a.hangUp()
		synctest.Wait()
		check(t, "to the second", send(t, tr), "250 taken")
		check(t, "both", told(tr, "b"), "dsn true binary false tls false utf8 true 8bit false size 3000")
	})
}

// The janitor asks at the start, again where nobody answered, and where there is no mail.
func TestOffersAreProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{ehlo: []string{"DSN"}}
		n := &network{hosts: make(map[string]*fake), holes: make(map[string]bool)}
		tr, err := New(Options{LocalName: "gateway.test", Backends: map[string]BackendOptions{"b": one(hostA)}, Dial: n.dial, ProbeEvery: 5 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		const dsn = "dsn true binary false tls false utf8 false 8bit false size 0"
		synctest.Wait()
		check(t, "nobody there", told(tr, "b"), "unknown")
		n.set("a:25", f)
		time.Sleep(probePause)
		synctest.Wait()
		check(t, "there", told(tr, "b"), dsn)
		check(t, "probes", f.heard("QUIT"), 1)
		for range 10 {
			time.Sleep(4 * time.Minute)
			check(t, "all the time", told(tr, "b"), dsn)
		}
		time.Sleep(time.Minute)
		check(t, "probes in 41 minutes", f.heard("QUIT"), 9)
		check(t, "transactions", stats(t, tr).Transactions, 0)

		// A changed backend is asked at once, and a shutdown does not wait for the answer.
		n.mu.Lock()
		n.holes["a:25"] = true
		n.mu.Unlock()
		o := one(hostA)
		o.MaxUses = 2
		if err := tr.Update(map[string]BackendOptions{"b": o}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		check(t, "changed", told(tr, "b"), "unknown")
		start := time.Now()
		if err := tr.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		check(t, "the shutdown took", time.Since(start), 0)
		f.hangUp()
	})
}

// REQUIRETLS is a promise of a server that is known for certain.
func TestRequireTLS(t *testing.T) {
	ca := peers.NewCA(t)
	certificate := ca.Issue(t, "127.0.0.1")
	private := smtp.Sender{Path: path(t, "from@example.org"), RequireTLS: true}
	for mode, want := range map[TLSMode]string{TLSRequired: "rcpt: " + errNoRequireTLS.Line(), TLSVerify: "250 taken"} {
		f := &fake{ehlo: []string{"REQUIRETLS"}, tls: &tls.Config{Certificates: []tls.Certificate{certificate.TLS}}}
		o := one(f.listen(t))
		o.TLS, o.CAs = mode, ca.Pool()
		tr := open(t, o)
		check(t, string(mode), sendFrom(t, tr, private), want)
		offers, _ := tr.Offers("b")
		check(t, string(mode)+" is offered", offers.Extensions.RequireTLS, mode == TLSVerify)
		check(t, string(mode)+" was said", f.heard("MAIL FROM:<from@example.org> REQUIRETLS") == 1, mode == TLSVerify)
		// A report goes on in any case.
		check(t, string(mode)+", a report", sendFrom(t, open(t, o), smtp.Sender{RequireTLS: true}), "250 taken")
	}
}
