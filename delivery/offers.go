package delivery

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// offers.go remembers what each endpoint offers, so that whoever receives mail for a backend
// knows what may be promised before the backend is asked. Every new connection teaches it;
// where there is no mail, a probe does from time to time.

// offersAge is how long an endpoint's word counts without contact.
const offersAge = 10 * time.Minute

// probePause is how soon a probe that failed is repeated.
const probePause = 30 * time.Second

// Offers are what a backend takes. What is offered counts only as far as it can be used:
// RequireTLS where the certificate is verified, BinaryMIME where chunking is not turned off.
type Offers struct {
	// Extensions are those that bind who takes the message in.
	Extensions smtp.Extensions
	// UTF8 is SMTPUTF8, EightBit is 8BITMIME.
	UTF8, EightBit bool
	// MaxSize is the largest message in octets, 0 if there is no limit that was told.
	MaxSize int64
}

// and returns what both o and p offer.
func (o Offers) and(p Offers) Offers {
	both := Offers{
		Extensions: smtp.Extensions{
			DSN:        o.Extensions.DSN && p.Extensions.DSN,
			BinaryMIME: o.Extensions.BinaryMIME && p.Extensions.BinaryMIME,
			RequireTLS: o.Extensions.RequireTLS && p.Extensions.RequireTLS,
		},
		UTF8: o.UTF8 && p.UTF8, EightBit: o.EightBit && p.EightBit,
		MaxSize: max(o.MaxSize, p.MaxSize),
	}
	if a, b := o.Extensions.DeliverBy, p.Extensions.DeliverBy; a > 0 && b > 0 {
		both.Extensions.DeliverBy = max(a, b)
	}
	if o.MaxSize > 0 && p.MaxSize > 0 {
		both.MaxSize = min(o.MaxSize, p.MaxSize)
	}
	return both
}

// offersOf reads what the backend at the other end of client offers.
func (b *backend) offersOf(client *smtp.Client) Offers {
	return offersOf(client, b.opts.NoChunking, b.opts.TLS == TLSVerify)
}

// offersOf reads what the server at the other end of client offers. Proven tells that it is
// certain which server that is, if the connection has TLS.
func offersOf(client *smtp.Client, noChunking, proven bool) Offers {
	has := func(keyword string) bool { _, ok := client.Extension(keyword); return ok }
	_, encrypted := client.TLS()
	var by time.Duration
	if least, ok := client.Extension("DELIVERBY"); ok {
		n, _ := strconv.Atoi(least) // none, or nonsense, is that it does not say
		by = max(time.Duration(n)*time.Second, time.Second)
	}
	return Offers{
		Extensions: smtp.Extensions{
			DSN:        has("DSN"),
			BinaryMIME: has("BINARYMIME") && has("CHUNKING") && !noChunking,
			// RFC 8689, Section 4.2.1: whoever the server is must be certain.
			RequireTLS: has("REQUIRETLS") && encrypted && proven,
			DeliverBy:  by,
		},
		UTF8: has("SMTPUTF8"), EightBit: has("8BITMIME"),
		MaxSize: client.MaxSize(),
	}
}

// Offers returns what a backend takes, whichever of its endpoints the mail goes to. It does
// not wait: known is false if no endpoint was heard of for ten minutes, or the backend does
// not exist. Endpoints that were not heard of for so long do not count. With
// Options.ProbeEvery what is known stays known as long as an endpoint can be reached.
func (t *Transport) Offers(backend string) (o Offers, known bool) {
	if t.handlers[backend] != nil {
		return handlerOffers, true
	}
	t.mu.Lock()
	b := t.backends[backend]
	t.mu.Unlock()
	if b == nil {
		return Offers{}, false
	}
	return b.offers(time.Now())
}

func (b *backend) offers(now time.Time) (all Offers, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ep := range b.endpoints() {
		switch {
		case ep.heard.IsZero() || now.Sub(ep.heard) >= offersAge:
		case known:
			all = all.and(ep.offers)
		default:
			all, known = ep.offers, true
		}
	}
	return all, known
}

// learn remembers what an endpoint offers. b.mu is held.
func (ep *endpoint) learn(o Offers) { ep.offers, ep.heard = o, time.Now() }

// prober asks endpoints that had no mail for a while. It belongs to the janitor.
type prober struct {
	every   time.Duration // 0: never
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func newProber(ctx context.Context, every time.Duration) *prober {
	p := &prober{every: every}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// stop ends the probes that run.
func (p *prober) stop() {
	p.cancel()
	p.running.Wait()
}

// start asks the endpoints of b whose turn it is, and returns when the next turn is.
func (p *prober) start(b *backend) (next time.Time) {
	now := time.Now()
	next = now.Add(time.Hour)
	if p.every == 0 {
		return next
	}
	for ep := range b.endpoints() {
		due := b.probeDue(ep, p.every, now)
		if !due.After(now) {
			p.running.Go(func() { b.ask(p.ctx, ep) })
			due = now.Add(min(p.every, probePause))
		}
		if due.Before(next) {
			next = due
		}
	}
	return next
}

// probeDue returns when ep is to be asked. If that is now, it counts as asked.
func (b *backend) probeDue(ep *endpoint, every time.Duration, now time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	var due time.Time
	if !ep.heard.IsZero() {
		due = ep.heard.Add(every)
	}
	if again := ep.asked.Add(min(every, probePause)); !ep.asked.IsZero() && again.After(due) {
		due = again
	}
	if !due.After(now) {
		ep.asked = now
	}
	return due
}

// ask connects to an endpoint only to hear what it offers. Like that of Probe this connection
// is beside the cap, and says nothing about what is up.
func (b *backend) ask(ctx context.Context, ep *endpoint) {
	c, err := b.connect(ctx, ep)
	if err != nil {
		return // who has mail will hear of it
	}
	b.mu.Lock()
	ep.learn(c.offers)
	b.mu.Unlock()
	c.quit(ctx)
}
