package policy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errDown = errors.New("down")

// traffic is calls of one stage of a Breaker, at times of its own.
type traffic struct {
	b       *Breaker
	now     time.Time
	changes []BreakerChange
}

func newTraffic() *traffic {
	tr := &traffic{}
	tr.b = NewBreaker(func(c BreakerChange) { tr.changes = append(tr.changes, c) })
	tr.now = tr.b.start.Add(time.Second)
	return tr
}

// call is one call for a client; it tells whether the filter was asked.
func (tr *traffic) call(client netip.Addr, fails bool) bool {
	p := tr.b.ask(StageRcpt, tr.now)
	switch {
	case p == denied:
		return false
	case fails:
		tr.b.failed(StageRcpt, client, tr.now, p, errDown)
	case p == probing:
		tr.b.passed(StageRcpt, tr.now)
	}
	return true
}

func (tr *traffic) open() bool { return len(tr.b.Broken()) > 0 }

// in returns an address of network n.
func in(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 1}) }

// TestBreakerOpens: the rule, at its borders.
func TestBreakerOpens(t *testing.T) {
	spread := func(n int) []int { // the failures of n networks with one each
		list := make([]int, n)
		for i := range list {
			list[i] = 1
		}
		return list
	}
	for _, tt := range []struct {
		good     int
		failures []int // by network
		want     bool
		why      string
	}{
		{39, spread(11), true, "11 of 50, a network each"},
		{40, spread(10), false, "a fifth is not over a fifth"},
		{38, spread(11), false, "of 49 calls nothing is known"},
		{75, []int{5, 5, 5, 5, 5}, true, "25 of 100, five networks that see the same"},
		{39, []int{3, 2, 2, 2, 2}, false, "two failures beyond the worst four networks are chance"},
		{39, []int{3, 3, 3, 2}, false, "four networks"},
		{0, []int{10, 10, 10, 10, 10}, true, "all calls"},
		{0, []int{1000, 5, 5, 5, 5}, true, "all calls, of which one network makes most"},
		{0, []int{250, 250, 250, 250}, false, "four networks, however many failures"},
		{100, []int{1000, 1, 1, 1, 1}, false, "one network, and a failure by chance in four others"},
		{100, []int{250, 250, 250, 250, 1}, false, "four networks, and a failure by chance in another"},
		{100, append([]int{3000, 3000, 3000, 3000}, spread(4)...), false, "four networks, and what goes wrong anyway"},
		{150, append([]int{3000, 3000, 3000, 3000}, spread(5)...), false, "the others fail at one call in 31"},
		{3000, append(spread(100), 9000), false, "one network, that comes when all places are taken"},
		{3000, spread(1000), true, "more networks than are told apart"},
		{60, append([]int{3000, 3000, 3000, 3000}, spread(20)...), true, "the others fail over a fifth of their own"},
	} {
		tr := newTraffic()
		for range tt.good {
			tr.call(in(999), false)
		}
		for network, n := range tt.failures {
			for range n {
				tr.call(in(network), true)
			}
		}
		if tr.open() != tt.want {
			t.Errorf("%d good calls, failures %v: open %t, want %t: %s", tt.good, tt.failures, tr.open(), tt.want, tt.why)
		}
	}
}

func TestNetworks(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.254", true},
		{"192.0.2.1", "192.0.3.1", false},
		{"::ffff:192.0.2.1", "192.0.2.9", true}, // the same client by another socket
		{"2001:db8:1:2::1", "2001:db8:1:ffff::9", true},
		{"2001:db8:1::1", "2001:db8:2::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
	} {
		if got := networkOf(netip.MustParseAddr(tt.a)) == networkOf(netip.MustParseAddr(tt.b)); got != tt.same {
			t.Errorf("%s and %s: the same network: %t, want %t", tt.a, tt.b, got, tt.same)
		}
	}
	if local := networkOf(netip.Addr{}); local.IsValid() {
		t.Errorf("sessions without an address have the network %s, which others could be in", local)
	}
}

// TestBreakerWindow: failures are forgotten after a minute, and what was called between two
// of them counts for the time in which it was.
func TestBreakerWindow(t *testing.T) {
	// One failure in four, each from another network, but never 50 calls in a minute.
	tr := newTraffic()
	for i := range 2000 {
		tr.call(in(i%200), i%4 == 0)
		tr.now = tr.now.Add(1300 * time.Millisecond)
	}
	if len(tr.changes) > 0 {
		t.Errorf("46 calls a minute: %+v", tr.changes[0])
	}
	// The same share with enough calls.
	tr = newTraffic()
	for i := 0; i < 2000 && !tr.open(); i++ {
		tr.call(in(i%200), i%4 == 0)
		tr.now = tr.now.Add(time.Second)
	}
	if len(tr.changes) != 1 || tr.changes[0].Calls < 50 || tr.changes[0].Calls > 61 {
		t.Errorf("60 calls a minute: %+v", tr.changes)
	}
	// A day without a failure does not hide that all fails now.
	tr = newTraffic()
	for range 200_000 {
		tr.call(in(1), false)
	}
	tr.now = tr.now.Add(24 * time.Hour)
	took := 0
	for ; took < 120 && !tr.open(); took++ {
		for i := range 10 {
			tr.call(in(i), true)
		}
		tr.now = tr.now.Add(time.Second)
	}
	if took < 2 || took > 30 { // the last minute of that day had 139 calls
		t.Errorf("opened after %d s of failures", took)
	}
	// Failures of long ago do not count with those of now.
	tr = newTraffic()
	for round := range 10 {
		for i := range 100 {
			tr.call(in(round), i%2 == 0)
		}
		tr.now = tr.now.Add(breakerWindow)
	}
	if tr.open() {
		t.Error("networks that failed minutes apart opened it")
	}
	if n := len(tr.b.stages[StageRcpt].window.networks); n > 1 {
		t.Errorf("%d networks are remembered, want 1", n)
	}
}

// TestAttackerCannotOpen plays senders that know the rule and have up to four networks: they
// choose at random, with a new taste each second, how often to fail, to succeed, from which
// of their addresses, and when to be quiet. Other clients see the filter fail now and then,
// at one call in 200.
func TestAttackerCannotOpen(t *testing.T) {
	const seed = 1 // chance alone may open it, if not often
	for _, networks := range []int{1, 4} {
		for round := range 6 {
			rnd := rand.New(rand.NewPCG(seed, uint64(round)))
			tr := newTraffic()
			others := 1 + rnd.IntN(30) // their calls in a second
			for range 120 {
				rate, good, used := 1<<rnd.IntN(9), rnd.Float64(), 1+rnd.IntN(networks)
				for i := range rate + others {
					if i < rate {
						host := byte(rnd.IntN(256))
						tr.call(netip.AddrFrom4([4]byte{192, 0, byte(rnd.IntN(used)), host}), rnd.Float64() > good*good)
					} else if client := in(rnd.IntN(500)); !tr.call(client, rnd.IntN(200) == 0) {
						t.Fatalf("%d networks, %d other calls a second: %s was turned away after %+v", networks, others, client, tr.changes)
					}
					tr.now = tr.now.Add(time.Second / time.Duration(rate+others))
				}
			}
		}
	}
}

// TestBreakerRemembersLittle: neither many networks nor a long life make it grow.
func TestBreakerRemembersLittle(t *testing.T) {
	tr := newTraffic()
	for i := range 5_000 {
		tr.call(in(i), true)
		tr.call(in(i), false)
		for range 8 {
			tr.call(in(i), false)
		}
		tr.now = tr.now.Add(time.Millisecond)
	}
	if n := len(tr.b.stages[StageRcpt].window.networks); n != maxFailing || tr.open() {
		t.Errorf("%d networks are remembered, open %t", n, tr.open())
	}
}

// breakIt makes a Breaker open at StageRcpt.
func (tr *traffic) breakIt(t *testing.T) {
	t.Helper()
	for i := range 200 {
		if tr.call(in(i%20), true); tr.open() {
			return
		}
	}
	t.Fatal("200 failures did not open it")
}

// TestProbes: one call goes through after 1, 2, 4 … 60 s, and the first success closes it.
func TestProbes(t *testing.T) {
	tr := newTraffic()
	tr.breakIt(t)
	if c := tr.changes[0]; !c.Open || c.Stage != StageRcpt || c.Calls != 50 || c.Failures != 50 || c.Networks != 20 || c.Retry != time.Second || c.Err != errDown {
		t.Errorf("opened: %+v", c)
	}
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		tr.now = tr.now.Add(wait*time.Second - 1)
		if tr.call(in(1), true) {
			t.Fatalf("asked before %d s were over", wait)
		}
		tr.now = tr.now.Add(1)
		p := tr.b.ask(StageRcpt, tr.now)
		if p != probing || tr.b.ask(StageRcpt, tr.now) != denied || tr.b.ask(StageData, tr.now) != granted {
			t.Fatalf("after %d s: %v, want one probe, and other stages untouched", wait, p)
		}
		tr.b.failed(StageRcpt, in(1), tr.now, p, errDown)
	}
	if broken := tr.b.Broken(); len(broken) != 1 || broken[0].Why.Probes != 9 || broken[0].Retry != tr.now.Add(time.Minute) || tr.b.Opened() != 1 {
		t.Errorf("%+v, opened %d times", broken, tr.b.Opened())
	}
	// A session that ends has said nothing about the filter, and a probe that nobody hears of
	// again does not keep it broken for ever.
	tr.now = tr.now.Add(time.Minute)
	if p := tr.b.ask(StageRcpt, tr.now); p != probing {
		t.Fatal("no probe")
	}
	tr.b.abandoned(StageRcpt, tr.now)
	if p := tr.b.ask(StageRcpt, tr.now); p != probing {
		t.Fatal("no probe after one was abandoned")
	}
	tr.now = tr.now.Add(probeTime)
	if !tr.call(in(1), false) || tr.open() {
		t.Fatal("no probe after one that was lost, or it did not close")
	}
	if c := tr.changes[len(tr.changes)-1]; c.Open || c.Probes != 10 || len(tr.changes) != 11 {
		t.Errorf("closed: %+v, %d changes", c, len(tr.changes))
	}
	// All begins anew: one failure does not open it, and the first wait is short again.
	tr.call(in(1), true)
	if tr.open() {
		t.Error("one failure opened it")
	}
	tr.breakIt(t)
	if c := tr.changes[len(tr.changes)-1]; c.Retry != time.Second || tr.b.Opened() != 2 {
		t.Errorf("opened again: %+v", c)
	}
	var none *Breaker
	if none.Broken() != nil || none.Opened() != 0 || none.ask(StageRcpt, tr.now) != granted {
		t.Error("a nil Breaker does something")
	}
	none.failed(StageRcpt, in(1), tr.now, granted, errDown)
}

// TestBrokenFilterIsNotAsked: in a chain, OnBroken answers, the filters behind are asked, what
// they edit stays, and the filter is asked again when its time has come.
func TestBrokenFilterIsNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken, asked := true, 0
		faulty := Func("faulty", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
			asked++
			if err := e.Edits.Tag("by", "faulty"); err != nil {
				return Verdict{}, err
			}
			if broken {
				return Verdict{}, errDown
			}
			return Verdict{}, nil
		})
		var steps []Step
		chain := NewChain(
			Link{Filter: faulty, Breaker: NewBreaker(nil), OnErrorAt: map[Stage]OnError{StageHelo: OnErrorReject},
				OnBroken: map[Stage]OnError{StageMessage: OnErrorAccept, StageData: OnErrorReject, StageRcpt: OnErrorQuarantine}},
			Link{Filter: Func("fine", AllStages, tagging)})
		session := func(n int) *Run {
			s := &Session{Remote: netip.AddrPortFrom(in(n), 25)}
			return chain.Open(s, func(s Step) { steps = append(steps, s) })
		}
		stages := []Stage{StageHelo, StageRcpt, StageData, StageMessage, StageReset}
		for n := range breakerCalls {
			for _, stage := range stages {
				session(n).Decide(t.Context(), stage, newTx(t))
			}
		}
		before := asked
		for _, tt := range []struct {
			stage Stage
			want  string
		}{
			{StageHelo, `reject 554 5.3.0 "filter is broken"`}, // as for a failure
			{StageRcpt, `quarantine "filter is broken"`},
			{StageData, `reject 554 5.3.0 "filter is broken"`},
			{StageMessage, `continue ""`},
			{StageReset, `continue ""`},
		} {
			steps = nil
			tx := newTx(t)
			d := session(1).Decide(t.Context(), tt.stage, tx)
			got := d.Action.String()
			if d.Reply != nil {
				got += " " + strings.Join(strings.Fields(d.Reply.Error())[:2], " ")
			}
			if got = fmt.Sprintf("%s %q", got, d.Reason); got != tt.want || !errors.Is(steps[0].Err, ErrBroken) {
				t.Errorf("%s: %s, error %v, want %s", tt.stage, got, steps[0].Err, tt.want)
			}
			if goesOn := !d.Final(); goesOn != (len(steps) == 2) || goesOn && (len(tx.Tags) != map[bool]int{tt.stage.Decides(): 1}[true] || len(tx.Tags) > 0 && tx.Tags[0].Filter != "fine") {
				t.Errorf("%s: %d steps, tags %v", tt.stage, len(steps), tx.Tags)
			}
		}
		if asked != before {
			t.Errorf("a broken filter was asked %d times", asked-before)
		}
		broken = false
		time.Sleep(2 * firstProbe)
		tx := newTx(t)
		session(1).Decide(t.Context(), StageMessage, tx)
		session(1).Decide(t.Context(), StageMessage, tx)
		if asked != before+2 || len(tx.Tags) != 4 {
			t.Errorf("after a second the filter was asked %d times, tags %v", asked-before, tx.Tags)
		}
	})
}

// TestBrokenAtChunks: a filter that missed a piece of a body gets no more of it, and is asked
// about the message.
func TestBrokenAtChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []Stage
		chain := NewChain(Link{Breaker: NewBreaker(nil), OnError: OnErrorAccept, Filter: Func("f", StagesOf(StageChunk, StageMessage),
			func(_ context.Context, e *Event) (Verdict, error) {
				asked = append(asked, e.Stage)
				if e.Stage == StageChunk {
					return Verdict{}, errDown
				}
				return Verdict{}, nil
			})})
		for n := range breakerCalls {
			chain.Open(&Session{Remote: netip.AddrPortFrom(in(n), 25)}, nil).DecideChunk(t.Context(), newTx(t), 0, []byte("x"))
		}
		r, tx := chain.Open(new(Session), nil), newTx(t)
		asked = nil
		r.DecideChunk(t.Context(), tx, 0, []byte("x"))
		if r.WantsChunks() {
			t.Error("it is to see what comes behind a piece that it missed")
		}
		time.Sleep(2 * firstProbe)
		r.DecideChunk(t.Context(), tx, 1, []byte("y"))
		r.Decide(t.Context(), StageMessage, tx)
		equal(t, "asked", asked, []Stage{StageMessage})
		r.EndTransaction()
		r.DecideChunk(t.Context(), tx, 0, []byte("x"))
		equal(t, "asked", asked, []Stage{StageMessage, StageChunk})
	})
}

// TestEndOfSessionIsNoFailure: clients that hang up in the middle of a call say nothing
// about the filter, nor does a gateway that ends.
func TestEndOfSessionIsNoFailure(t *testing.T) {
	b := NewBreaker(nil)
	chain := NewChain(Link{Breaker: b, Filter: Func("f", AllStages, func(ctx context.Context, _ *Event) (Verdict, error) {
		return Verdict{}, ctx.Err()
	})})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for n := range 1000 {
		chain.Open(&Session{Remote: netip.AddrPortFrom(in(n), 25)}, nil).Decide(ctx, StageConnect, nil)
	}
	stopped := NewChain(Link{Breaker: b, Filter: Func("f", AllStages, func(context.Context, *Event) (Verdict, error) {
		return Verdict{}, because(CauseStopped, errDown)
	})})
	for n := range 1000 {
		stopped.Open(&Session{Remote: netip.AddrPortFrom(in(n), 25)}, nil).Decide(t.Context(), StageConnect, nil)
	}
	if b.Opened() > 0 {
		t.Error("sessions that ended opened it")
	}
	live := t.Context()
	for n := range 1000 {
		r := chain.Open(&Session{Remote: netip.AddrPortFrom(in(n), 25)}, nil)
		r.Decide(live, StageConnect, nil)
		r.Failed("f", StageConnect, errDown) // what shows only afterwards counts
	}
	if b.Opened() == 0 {
		t.Error("failures that showed afterwards did not open it")
	}
}

// TestBreakerHammer: many sessions at once; some find it failing, some well.
func TestBreakerHammer(t *testing.T) {
	b := NewBreaker(nil)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 4_000 {
				now := b.start.Add(time.Duration(i) * 5 * time.Millisecond)
				switch p := b.ask(StageRcpt, now); {
				case p == denied:
				case i/400%2 == 0:
					b.failed(StageRcpt, in(n), now, p, errDown)
				case p == probing:
					b.passed(StageRcpt, now)
				}
				b.Broken()
			}
		})
	}
	wg.Wait()
	if b.Opened() == 0 {
		t.Errorf("opened %d times", b.Opened())
	}
}

// TestAccount: an account is told what the observer is.
func TestAccount(t *testing.T) {
	var notes, steps []string
	line := func(s Step) string {
		return fmt.Sprintf("%s/%s %s %d edits %q late=%t", s.Filter, s.Stage, s.Verdict.Action, len(s.Edits), cause(s.Err), s.Late)
	}
	note := noteFunc(func(s *Session, step *Step) { notes = append(notes, s.ID+" "+line(*step)) })
	chain := NewChain(Link{Account: note, OnError: OnErrorAccept, Filter: Func("slow", AllStages, slow)}, Link{Account: note, OnError: OnErrorAccept,
		Filter: &probe{name: "none", open: func() (Instance, error) { return nil, errDown }}})
	r := chain.Open(&Session{ID: "s"}, func(s Step) { steps = append(steps, "s "+line(s)) })
	r.Decide(t.Context(), StageRcpt, newTx(t))
	r.Decide(t.Context(), StageMessage, newTx(t))
	r.Failed("slow", StageMessage, errDown)
	want := []string{
		`s slow/rcpt continue 1 edits "" late=false`,
		`s none/rcpt continue 0 edits "pool" late=false`,
		`s slow/message continue 0 edits "cpu" late=false`,
		`s none/message continue 0 edits "pool" late=false`,
		`s slow/message continue 0 edits "verdict" late=true`,
	}
	equal(t, "notes", notes, want)
	equal(t, "steps", steps, want)
}

type noteFunc func(*Session, *Step)

func (f noteFunc) Note(s *Session, step *Step) { f(s, step) }

func cause(err error) string {
	if err == nil {
		return ""
	}
	return CauseOf(err)
}

// slow fails at StageMessage.
func slow(_ context.Context, e *Event) (Verdict, error) {
	if err := e.Edits.Tag("k", "v"); err != nil || e.Stage == StageMessage {
		return Verdict{}, fmt.Errorf("it is late: %w", because(CauseCPU, errDown))
	}
	return Verdict{}, nil
}

func TestCauses(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errDown, CauseOther},
		{fmt.Errorf("x: %w", because(CauseWall, errDown)), CauseWall},
		{because(CauseTrap, because(CauseWall, errDown)), CauseWall}, // who was nearer knows better
		{because("novel", errDown), CauseOther},                      // a metric's label must be one of few
		{fmt.Errorf("x: %w", ErrVerdict), CauseVerdict},
		{panicked("f", "boom", nil), CauseTrap},
	} {
		if got := CauseOf(tt.err); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.err, got, tt.want)
		}
	}
}
