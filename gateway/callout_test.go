package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

func mailbox(s string) smtp.Path {
	p, err := smtp.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return p
}

var (
	errNobody = smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "nobody here")
	errLater  = smtp.Refuse(450, smtp.Enhanced{4, 2, 0}, "greylisted")
	errDown   = errors.New("connection refused")
)

// backendBook is an ask function whose answers a test changes.
type backendBook struct {
	mu     sync.Mutex
	answer error
	asked  int
	delay  time.Duration
}

func (b *backendBook) ask(ctx context.Context, backend string, sender smtp.Sender, to smtp.Recipient) error {
	b.mu.Lock()
	b.asked++
	answer, delay := b.answer, b.delay
	b.mu.Unlock()
	if !sender.Path.IsNull() || backend != "store" {
		return fmt.Errorf("asked %s as <%s>", backend, sender.Path)
	}
	select {
	case <-time.After(delay):
		return answer
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *backendBook) set(answer error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

func TestCallout(t *testing.T) {
	type step struct {
		wait   time.Duration
		answer error // of the backend, if it is asked
		want   error // nil, a reply, or errDown for any temporary one
		asked  bool
	}
	stale := calloutSettings{stale: time.Hour}
	for _, tc := range []struct {
		name  string
		s     calloutSettings
		steps []step
	}{
		{"a yes lasts an hour", calloutSettings{}, []step{{0, nil, nil, true}, {59 * time.Minute, errNobody, nil, false}, {time.Minute, errNobody, errNobody, true}}},
		{"a no five minutes", calloutSettings{}, []step{{0, errNobody, errNobody, true}, {4 * time.Minute, nil, errNobody, false}, {time.Minute, nil, nil, true}, {30 * time.Minute, errNobody, nil, false}}},
		{"no answer five seconds", calloutSettings{}, []step{{0, errDown, errDown, true}, {4 * time.Second, nil, errDown, false}, {time.Second, nil, nil, true}}},
		{"a temporary refusal too", calloutSettings{}, []step{{0, errLater, errLater, true}, {time.Second, nil, errLater, false}, {5 * time.Second, nil, nil, true}}},
		{"a yes ends though the backend is down", calloutSettings{}, []step{{0, nil, nil, true}, {time.Hour, errDown, errDown, true}}},
		{"unless it may be stale", stale, []step{{0, nil, nil, true}, {time.Hour, errDown, nil, true}, {time.Second, errDown, nil, false}, {5 * time.Second, errLater, nil, true},
			{time.Hour, errDown, errDown, true}}},
		{"a stale yes becomes a no", stale, []step{{0, nil, nil, true}, {time.Hour, errDown, nil, true}, {time.Minute, errNobody, errNobody, true}, {time.Hour, errDown, errDown, true}}},
		{"a no is never stale", stale, []step{{0, errNobody, errNobody, true}, {6 * time.Minute, errDown, errDown, true}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			clock, book := newTicker(), &backendBook{}
			c := newCallout(tc.s, book.ask, clock.now)
			for i, s := range tc.steps {
				clock.pass(s.wait)
				book.set(s.answer)
				before := book.asked
				err := c.check(t.Context(), "store", mailbox("ann@example.com"))
				if s.want == errDown {
					if r := smtp.ReplyOf(err); r == nil || !r.Temporary() || !errors.Is(err, s.want) {
						t.Fatalf("step %d: %v, want a temporary refusal", i, err)
					}
				} else if want, ok := s.want.(*smtp.Reply); ok && err != want || !ok && err != nil {
					t.Fatalf("step %d: %v, want %v", i, err, s.want)
				}
				if asked := book.asked > before; asked != s.asked {
					t.Fatalf("step %d: the backend was asked: %v", i, asked)
				}
			}
		})
	}
}

// Many ask for one address at once: the backend is asked once, and a client that leaves
// takes nobody's answer away.
func TestCalloutTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book := &backendBook{answer: errNobody, delay: time.Second}
		c := newCallout(calloutSettings{}, book.ask, time.Now)
		first, leave := context.WithCancel(t.Context())
		errs := make([]error, 10)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				ctx := first
				if i > 0 {
					time.Sleep(time.Duration(i) * time.Millisecond)
					ctx = t.Context()
				}
				errs[i] = c.check(ctx, "store", mailbox("ann@example.com"))
			})
		}
		time.Sleep(500 * time.Millisecond)
		leave()
		wg.Wait()
		for i, err := range errs {
			want := error(errNobody)
			if i == 0 {
				want = context.Canceled
			}
			if !errors.Is(err, want) {
				t.Errorf("client %d: %v", i, err)
			}
		}
		if book.asked != 2 || len(c.running) != 0 {
			t.Errorf("the backend was asked %d times, %d questions are open", book.asked, len(c.running))
		}
		start := time.Now() // a question has a time limit
		book.delay = time.Hour
		err := c.check(t.Context(), "store", mailbox("bob@example.com"))
		if !smtp.ReplyOf(err).Temporary() || time.Since(start) != 10*time.Second {
			t.Error(err, time.Since(start))
		}
	})
}

// Guessing addresses fills the memory for those that do not exist, and no other.
func TestCalloutRoom(t *testing.T) {
	book := &backendBook{}
	c := newCallout(calloutSettings{entries: 10}, book.ask, time.Now)
	for i := range 12 {
		c.check(t.Context(), "store", mailbox(fmt.Sprintf("user%d@example.com", i)))
	}
	book.answer = errNobody
	for i := range 1000 {
		c.check(t.Context(), "store", mailbox(fmt.Sprintf("guess%d@example.com", i)))
	}
	if c.exist.order.Len() != 10 || len(c.exist.byKey) != 10 || c.others.order.Len() != 5 || len(c.others.byKey) != 5 {
		t.Error(c.exist.order.Len(), c.others.order.Len())
	}
	before := book.asked
	for i := 2; i < 12; i++ {
		if err := c.check(t.Context(), "store", mailbox(fmt.Sprintf("user%d@example.com", i))); err != nil {
			t.Error(i, err)
		}
	}
	if book.asked != before {
		t.Error("known users were forgotten for guesses")
	}
}

func TestCalloutPanic(t *testing.T) {
	c := newCallout(calloutSettings{}, func(context.Context, string, smtp.Sender, smtp.Recipient) error { panic("fault") }, time.Now)
	for range 2 {
		func() {
			defer func() { recover() }()
			c.check(t.Context(), "store", mailbox("ann@example.com"))
		}()
	}
	if len(c.running) != 0 {
		t.Error("others would wait for ever")
	}
}

func TestCalloutSettings(t *testing.T) {
	bad := calloutSettings{positive: -1, negative: -1, temporary: time.Hour, stale: -1, timeout: -1, entries: -1}
	if err := bad.validate(); err == nil || strings.Count(err.Error(), "\n") != 5 {
		t.Errorf("%v", err)
	}
	if err := (calloutSettings{}).validate(); err != nil {
		t.Error(err)
	}
}

// Through a Relay: the transaction ends, and only what is about the recipient is a no.
func TestAskRelay(t *testing.T) {
	reply := func(code int, a, b, c int) *smtp.Reply { return smtp.Refuse(code, smtp.Enhanced{a, b, c}, "x") }
	for _, tc := range []struct {
		begin, rcpt error
		code        int // 0: taken
	}{
		{nil, nil, 0},
		{nil, reply(550, 5, 1, 1), 550},
		{nil, reply(552, 5, 2, 2), 552},
		{nil, reply(550, 0, 0, 0), 550},
		{nil, reply(550, 5, 4, 1), 550}, // Exchange
		{nil, reply(553, 5, 6, 7), 553}, // SMTPUTF8
		{nil, reply(450, 4, 2, 1), 450},
		{nil, reply(550, 5, 1, 8), 451}, // the answer to MAIL
		{nil, reply(554, 5, 7, 1), 451}, // relaying denied: the backend's set-up is wrong
		{nil, reply(530, 0, 0, 0), 451}, // login wanted
		{nil, reply(503, 5, 5, 1), 451},
		{reply(550, 5, 1, 1), nil, 451}, // not about a recipient that it has not heard of
		{reply(451, 4, 4, 1), nil, 451},
		{errDown, nil, 451},
		{nil, fmt.Errorf("%w", errDown), 451},
	} {
		f := &far{begin: func(string) error { return tc.begin }, rcpt: func(string, string) error { return tc.rcpt }}
		err := askRelay(f)(t.Context(), "store", smtp.Sender{}, smtp.Recipient{Path: mailbox("ann@example.com")})
		if r := smtp.ReplyOf(err); tc.code == 0 && r != nil || tc.code != 0 && (r == nil || r.Code != tc.code) {
			t.Errorf("%v, %v: %v, want %d", tc.begin, tc.rcpt, err, tc.code)
		}
		if n := f.count(0); n != 0 {
			t.Errorf("%v, %v: %d transactions are open", tc.begin, tc.rcpt, n)
		}
	}
}
